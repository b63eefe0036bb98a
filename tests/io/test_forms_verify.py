"""Exported files draw, through the other library's own loader, the picture that fromfew draws."""

import pytest
import strange
import torch
from strange import tiny

from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.importing import bring_in, identify
from fromfew.io.verify import NOISE, verify
from fromfew.make import make

pytest.importorskip("peft")


def checked(concept, bb, form, to, **how):
    """What `verify` finds; the concept must show, or agreement would mean nothing."""
    done = export(concept, bb, form, to, **how)
    found = verify(concept, bb, done)
    assert found.effect > 50 * NOISE
    assert found.file <= NOISE
    return found


@pytest.mark.parametrize(
    ("base", "form"),
    [("sd15", "kohya"), ("sdxl", "kohya"), ("sd15", "diffusers"), ("sd3", "diffusers"), ("flux", "diffusers"),
     ("sd15", "peft"), ("sdxl", "peft")],
)  # fmt: skip
def test_a_lora_of_denoiser_and_text_encoder_means_the_same_elsewhere(base, form, tmp_path):
    bb = tiny(base)
    # All maps of a UNet; the rank is beyond the narrowest, and alpha is not the rank.
    concept = strange.lora(bb, targets=("all",), rank=24, alpha=12.0, scale=0.1)
    to = tmp_path / ("adapter" if form == "peft" else "x.safetensors")
    assert checked(concept, bb, form, to).concept <= NOISE


@pytest.mark.parametrize(
    ("base", "form"), [("sd15", "diffusers"), ("sd15", "a1111"), ("sdxl", "a1111"), ("flux", "diffusers")]
)
def test_a_word_of_several_vectors_means_the_same_elsewhere(base, form, tmp_path):
    bb = tiny(base)
    assert checked(strange.word(bb, 2), bb, form, tmp_path / "x.safetensors").concept <= NOISE


@pytest.mark.parametrize("base", ["sd21", "sdxl"])
def test_custom_diffusion_means_the_same_in_diffusers(base, tmp_path):
    bb = tiny(base)
    assert checked(strange.custom(bb), bb, "custom-diffusion", tmp_path).concept <= NOISE


@pytest.mark.parametrize("base", ["sd15", "flux"])
def test_a_whole_model_means_the_same_in_diffusers(base, tmp_path):
    bb = tiny(base)
    assert checked(strange.dreambooth(bb), bb, "full", tmp_path / "model").concept <= NOISE


def test_a_whole_change_brought_down_to_a_lora_is_read_alike_and_says_what_it_lost(tmp_path):
    bb = tiny("sd15")
    found = checked(strange.dreambooth(bb), bb, "kohya", tmp_path / "x.safetensors", rank=8)
    assert not found.exact
    assert found.concept > NOISE


def test_half_precision_is_told_apart_from_a_fault(tmp_path):
    bb = tiny("sd15")
    found = checked(strange.lora(bb), bb, "kohya", tmp_path / "x.safetensors", dtype="float16")
    assert not found.exact
    assert found.ok
    assert found.concept < 0.05


def test_a_file_that_differs_is_found_out(tmp_path):
    bb = tiny("sd15")
    concept = strange.lora(bb)
    done = export(concept, bb, "kohya", tmp_path / "x.safetensors")
    assert not verify(concept.scaled(0.5), bb, done).ok


def test_a_base_without_a_loader_of_words_is_told(tmp_path):
    bb = tiny("sd3")
    concept = strange.word(bb, 1)
    done = export(concept, bb, "diffusers", tmp_path / "x.safetensors")
    with pytest.raises(FromfewError, match="no loader of learned words"):
        verify(concept, bb, done)


def test_a_concept_that_left_and_came_back_draws_the_same_bits(tmp_path):
    bb = tiny("sd15")
    concept = strange.lora(bb)
    done = export(concept, bb, "kohya", tmp_path / "x.safetensors")
    again = bring_in(identify(done.files[0]), bb).concept
    again = type(again).load(again.save(tmp_path / "again"))
    assert again.placeholder == "<v>"
    ours, back = (make(bb, "a <v> cat", one, steps=2).tensor for one in (concept, again))
    assert torch.equal(ours, back)
