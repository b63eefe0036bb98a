"""Import says what a file is, which base it fits and what it ignored; nothing is lost in silence."""

import json

import pytest
import strange
import torch
from strange import tiny

from fromfew.cli import main
from fromfew.concept import load
from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.forms import diffusers, peft
from fromfew.io.forms.thin import Thin, parts_of, split, thin
from fromfew.io.importing import bring_in, identify
from fromfew.io.tensors import read_header, read_tensors, write_tensors


@pytest.fixture(scope="module")
def bb():
    return tiny("sd15")


@pytest.fixture(scope="module")
def lora(bb):
    return strange.lora(bb)


@pytest.mark.parametrize("form", ["diffusers", "kohya", "peft"])
def test_a_lora_is_recognised_and_comes_back_with_its_word(form, bb, lora, tmp_path):
    done = export(lora, bb, form, tmp_path / ("a" if form == "peft" else "a.safetensors"))
    found = identify(done.files[0])
    assert [one.form for one in found] == [form]
    back = bring_in(found, bb)
    assert back.ignored == {}
    assert (back.concept.name, back.concept.placeholder, back.concept.noun) == ("rex", "<v>", "cat")
    assert back.concept.parts.word.alias == "red"
    for path in lora.parts.denoiser.targets():
        torch.testing.assert_close(back.concept.parts.maps.delta(path), lora.parts.denoiser.delta(path))


def test_no_lora_of_diffusers_form_needs_an_alpha_or_names_modules_of_transformers_5(bb, lora):
    tensors = diffusers.write(thin(lora, bb, None, "diffusers").maps, bb)
    encoder = [name for name in tensors if name.startswith("text_encoder.")]
    assert encoder
    assert all(name.startswith("text_encoder.text_model.encoder.layers.") for name in encoder)
    assert all(name.endswith((".lora_A.weight", ".lora_B.weight")) for name in tensors)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
         "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"),
        ("mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.down.weight",
         "denoiser.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"),
        ("unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k.lora.down.weight",
         "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.to_v_lora.down.weight",
         "encoder.one.encoder.layers.0.self_attn.v_proj"),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight",
         "encoder.one.encoder.layers.0.self_attn.q_proj"),
        ("text_encoder.encoder.layers.0.self_attn.out_proj.lora_A.weight",
         "encoder.one.encoder.layers.0.self_attn.out_proj"),
    ],
)  # fmt: skip
def test_earlier_spellings_of_diffusers_are_read(old, new, bb):
    weight = bb.module(new).weight
    up = old.replace(".down.", ".up.").replace("lora_A", "lora_B")
    tensors = {old: torch.ones(1, weight.shape[1]), up: torch.ones(weight.shape[0], 1)}
    maps, ignored = diffusers.read(tensors, bb)
    assert list(maps) == [new]
    assert ignored == []


def test_a_dora_is_read_and_half_a_pair_is_refused(bb):
    key = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"
    pair = {f"{key}.lora_A.weight": torch.ones(1, 32), f"{key}.lora_B.weight": torch.ones(32, 1)}
    maps, ignored = diffusers.read({**pair, f"{key}.lora_magnitude_vector": torch.ones(32)}, bb)
    assert [one.kind.kind for one in maps.values()] == ["weight_decomposed"]
    assert ignored == []
    assert diffusers.read({f"{key}.lora_magnitude_vector": torch.ones(1)}, bb)[1] == [f"{key}.lora_magnitude_vector"]
    with pytest.raises(FromfewError, match="no lora_B"):
        diffusers.read({f"{key}.lora_A.weight": torch.ones(1, 16)}, bb)


def test_a_file_for_another_base_is_refused_with_the_base_it_fits(bb, tmp_path):
    key = "unet.down_blocks.9.attentions.0.transformer_blocks.0.attn2.to_k"
    write_tensors(tmp_path / "x.safetensors", {f"{key}.lora_A.weight": torch.ones(1, 2048),
                                               f"{key}.lora_B.weight": torch.ones(640, 1)})  # fmt: skip
    with pytest.raises(FromfewError, match="Stable Diffusion XL; none of its 2 keys fits"):
        bring_in(identify(tmp_path / "x.safetensors"), bb)


def test_a_file_of_nothing_known_is_refused_with_what_it_holds(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"a.b.c": torch.ones(1), "d": torch.ones(3, 3, 3)})
    with pytest.raises(FromfewError, match=r"a\.b\.c"):
        identify(tmp_path / "x.safetensors")


def test_a_file_with_a_number_that_is_none_is_refused(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"emb_params": torch.tensor([[1.0, float("nan")]])})
    with pytest.raises(FromfewError, match="not finite"):
        identify(tmp_path / "x.safetensors")


def test_peft_scales_by_alpha_over_rank_its_root_or_a_pattern(bb, lora, tmp_path):
    folder = export(lora, bb, "peft", tmp_path / "a").files[0]
    config = folder / "unet" / peft.CONFIG
    plain = json.loads(config.read_text())
    path = next(iter(lora.parts.denoiser.targets()))
    rest = path.removeprefix("denoiser.")
    for change, scale in (
        ({}, 0.5), ({"use_rslora": True}, 1.0), ({"alpha_pattern": {rest: 8.0}}, 2.0), ({"lora_alpha": 4}, 1.0),
    ):  # fmt: skip
        config.write_text(json.dumps(plain | change))
        assert peft.read(folder, bb)[0][path].scale == scale


@pytest.mark.parametrize(("change", "said"), [
    ({"peft_type": "VERA"}, "the kind VERA"), ({"use_dora": True}, "says '.*' is a DoRA"),
    ({"bias": "all"}, "bias: all"),
    ({"r": "many"}, "no configuration"), ({"fan_in_fan_out": True}, "fan_in_fan_out"),
    ({"alpha_pattern": {"(a+)+b": 1}}, "more than the name"), ({"lora_alpha": 1e999}, "not finite"),
    ({"alpha_pattern": [1]}, "no configuration"),
])  # fmt: skip
def test_other_adapters_of_peft_are_refused(change, said, bb, lora, tmp_path):
    folder = export(lora, bb, "peft", tmp_path / "a").files[0]
    config = folder / "unet" / peft.CONFIG
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(FromfewError, match=said):
        peft.read(folder, bb)


def test_the_numbers_of_an_adapter_alone_are_not_read_without_what_says_their_scale(bb, lora, tmp_path):
    folder = export(lora, bb, "peft", tmp_path / "a").files[0] / "unet"
    assert identify(folder / peft.NUMBERS)[0].form == "peft"
    (folder / peft.CONFIG).unlink()
    with pytest.raises(FromfewError, match="without the adapter_config"):
        identify(folder / peft.NUMBERS)


def test_a_rank_beyond_the_narrowest_map_comes_back_exactly(bb):
    path = next(iter(bb.select("text.key")))
    out, inner = bb.module(path).weight.shape
    rng = torch.Generator().manual_seed(0)
    wide = Thin(torch.randn(80, inner, generator=rng), torch.randn(out, 80, generator=rng), 0.1)
    part = parts_of({path: wide}, bb).maps
    torch.testing.assert_close(part.delta(path), wide.delta(), atol=1e-4, rtol=1e-4)


def test_the_error_of_an_approximation_is_that_of_the_singular_values_left_out():
    rng = torch.Generator().manual_seed(0)
    delta = torch.randn(12, 8, 3, 3, generator=rng)
    values = torch.linalg.svdvals(delta.flatten(1))
    gone = (delta - split(delta, 5).delta()).norm()
    torch.testing.assert_close(gone, values[5:].norm(), rtol=1e-4, atol=1e-5)


def test_what_no_lora_can_hold_is_named_and_counted(bb):
    found = thin(strange.dreambooth(bb), bb, 64, "kohya")
    assert "denoiser.conv_norm_out.weight" in found.missing
    assert max(found.errors.values()) < 1e-5, "rank 64 is the whole of so narrow maps"
    assert 0.01 < found.error < 0.9, "the parts left out count"


def test_a_whole_change_needs_a_rank(bb):
    with pytest.raises(FromfewError, match="--rank"):
        thin(strange.dreambooth(bb), bb, None, "kohya")


def test_a_failed_export_leaves_no_file(bb, tmp_path):
    with pytest.raises(FromfewError):
        export(strange.dreambooth(bb), bb, "custom-diffusion", tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_custom_diffusion_has_an_entry_for_every_attention(bb, tmp_path):
    export(strange.custom(bb), bb, "custom-diffusion", tmp_path)
    tensors = read_tensors(tmp_path / "pytorch_custom_diffusion_weights.safetensors")
    owners = {name.partition(".processor")[0] + ".processor" for name in tensors}
    assert owners == set(bb.denoiser.attn_processors)


def test_a_folder_of_custom_diffusion_brings_its_words_along(bb, tmp_path):
    concept = strange.custom(bb)
    export(concept, bb, "custom-diffusion", tmp_path)
    back = bring_in(identify(tmp_path), bb)
    assert back.ignored == {}
    assert torch.equal(back.concept.parts.word.vectors["one"], concept.parts.word.vectors["one"])
    for path in concept.parts.maps.shapes():
        torch.testing.assert_close(back.concept.parts.maps.delta(path), concept.parts.maps.delta(path))


def test_notes_of_other_hands_in_our_own_field_are_not_trusted(bb, lora, tmp_path):
    tensors = diffusers.write(thin(lora, bb, None, "diffusers").maps, bb)
    for note in ("[]", "{", '{"placeholder": 7}', "9" * 9):
        write_tensors(tmp_path / "x.safetensors", tensors, {"fromfew": note})
        assert identify(tmp_path / "x.safetensors")[0].told == {}


def test_the_command_line_exports_and_imports(bb, lora, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora.save(tmp_path / "rex")
    assert main(["export", "rex", "--form", "comfyui", "--to", "rex.safetensors"]) == 0
    assert "write 'red'" in capsys.readouterr().out
    assert read_header(tmp_path / "rex.safetensors").metadata["ss_network_dim"] == "4"
    assert main(["export", "rex", "--form", "kohya", "--to", "rex.safetensors"]) == 2
    assert "--replace" in capsys.readouterr().err
    tensors = dict(read_tensors(tmp_path / "rex.safetensors"))
    tensors["lora_unet_nowhere.alpha"] = torch.tensor(1.0)
    write_tensors(tmp_path / "odd.safetensors", tensors)
    assert main(["import", "odd.safetensors"]) == 2
    assert "Say with --base" in capsys.readouterr().err
    assert main(["import", "odd.safetensors", "--base", "tiny-sd15", "--as", "<w>", "--alias", "red"]) == 0
    told = capsys.readouterr().out
    assert "a LoRA in the form of sd-scripts" in told
    assert "lora_unet_nowhere.alpha" in told
    again = load(tmp_path / "concepts" / "odd")
    assert again.placeholder == "<w>"
    assert again.parts.maps.delta(next(iter(lora.parts.denoiser.targets()))).any()


def test_an_unknown_form_names_the_nearest(tmp_path, lora, capsys):
    lora.save(tmp_path / "rex")
    assert main(["export", str(tmp_path / "rex"), "--form", "kohja", "--to", str(tmp_path / "x")]) == 2
    assert "Did you mean 'kohya'?" in capsys.readouterr().err


def test_a_name_in_a_file_never_becomes_a_path(bb, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = json.dumps({"name": "../../out", "placeholder": "<a/b>", "base": {"name": "tiny-sd15"}})
    vectors = {"<a/b>": torch.ones(1, 32)}
    write_tensors(tmp_path / "x.safetensors", vectors, {"fromfew": told})
    assert main(["import", "x.safetensors"]) == 0
    assert (tmp_path / "concepts" / "out" / "concept.json").is_file()
    assert main(["export", "concepts/out", "--form", "diffusers", "--to", str(tmp_path / "there")]) == 0
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["out.safetensors"]
