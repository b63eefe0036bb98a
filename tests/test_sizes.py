"""What a concept adds to Stable Diffusion 1.5, counted from shapes, is what the papers and their files say."""

import pytest
import torch

from fromfew.cli import main
from fromfew.method import find, names
from fromfew.sizes import bytes_of, parts_on, sd15_shape
from fromfew.testing.tiny import tiny

WORD, ATTENTION = 768, 199_296  # numbers of one word, and of LoRA of rank 1 on all attention maps of the UNet
SUM = 12_480  # widths of the sixteen layers that read text
UNET = 859_520_964


def numbers(method, **settings):
    parts = parts_on(find(method)(**settings), sd15_shape())
    assert {value.device.type for value in parts.state_dict().values()} == {"meta"}
    return bytes_of(parts) / 4


def test_the_shape_is_that_of_the_real_model():
    bb = sd15_shape()
    assert sum(p.numel() for p in bb.denoiser.parameters()) == UNET
    assert sum(p.numel() for p in bb.text_encoders["one"].model.parameters()) == 123_060_480
    layers = [site for site in bb.sites.values() if site.kind == "cross"]
    assert len(layers) == 16
    assert sum(site.width for site in layers) == SUM
    assert [site.width for site in layers[:7]] == [320, 320, 640, 640, 1280, 1280, 1280]


def test_words_have_one_number_per_channel_and_vector():
    assert numbers("textual-inversion") == WORD
    assert numbers("textual-inversion", vectors=3) == 3 * WORD


@pytest.mark.parametrize("rank", [4, 8])
def test_thin_changes_grow_with_their_rank(rank):
    assert numbers("lora", rank=rank) == ATTENTION * rank
    assert numbers("lora", rank=rank, encoder=True) == (ATTENTION + 73_728) * rank
    assert numbers("lora", rank=rank, modifier="word") == ATTENTION * rank + WORD
    assert numbers("loha", rank=rank, targets=("attention",)) == 2 * ATTENTION * rank
    outputs = sum(m.out_features for m in sd15_shape().select("attention").values())
    assert numbers("dora", rank=rank) == ATTENTION * rank + outputs


def test_the_smaller_relatives():
    assert numbers("oft") == 11_602_368  # half of 23.3 M raw numbers, less the diagonal
    outputs = sum(m.out_features for m in sd15_shape().select("attention").values())
    inputs = sum(m.in_features for m in sd15_shape().select("attention").values())
    assert numbers("boft", side=8, factors=1) == inputs * 7 / 2 + outputs
    assert numbers("lokr", rank=8, targets=("attention",)) < 0.2 * numbers("lora", rank=8)
    keys = sum(m.out_features for m in sd15_shape().select("text.key", "text.value", "self.key", "self.value").values())
    assert numbers("ia3", targets=("text.key", "text.value", "self.key", "self.value")) == keys


def test_whole_weights():
    assert numbers("custom-diffusion") == 2 * SUM * 768 + WORD
    assert numbers("dreambooth") == UNET
    assert numbers("dreambooth", encoder=True) == UNET + 123_060_480
    assert numbers("attn-dreambooth") == UNET + WORD


def test_spectra_are_about_a_megabyte():
    found = numbers("svdiff")
    # The paper's file: 430 kB of norms, 617 of linear maps, 355 of convolutions, with what the format adds to each.
    assert found == 100_160 + 140_416 + 82_280
    assert 0.9 < 4 * found / 1_404_000 < 1.0


def test_perfusion_is_below_a_hundred_kilobytes():
    assert numbers("perfusion") == SUM + WORD + 3 * 768
    assert 4 * numbers("perfusion") < 110_000


def test_cones_are_one_place_in_a_hundred():
    assert numbers("cones") == pytest.approx(0.01 * 2 * SUM * 768, rel=1e-3)


@pytest.mark.parametrize("name", ["textual-inversion", "lora", "svdiff", "perfusion", "cones", "oft"])
def test_counting_agrees_with_a_concept_that_was_learned(name):
    from fromfew.memory import hollow
    from fromfew.testing.contract import few_photos

    bb, quick = tiny("sd15"), {"steps": 1, "batch": 1, "lr": 1e-3, "class_images": 2}
    method = find(name)(**quick | ({"prior": 0.0}))
    assert bytes_of(parts_on(method, hollow(bb)[0])) == method.learn(bb, few_photos(1)).card.bytes


def test_every_method_can_be_counted():
    for name in names():
        assert bytes_of(parts_on(find(name)(), sd15_shape())) >= 0, name


def test_show_tells_it(capsys):
    assert main(["show", "lora", "--base", "sd15-shape"]) == 0
    assert "6,377,472 bytes (6.38 MB)" in capsys.readouterr().out
    assert main(["learn", "x", "--base", "sd15-shape"]) == 2


def test_no_number_is_left_behind():
    assert torch.zeros(2).device.type == "cpu"
    assert torch.randn(2, generator=torch.Generator().manual_seed(0)).device.type == "cpu"
