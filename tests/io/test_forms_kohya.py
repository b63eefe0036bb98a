"""Kohya files follow the form's rules key by key, and come back bit by bit."""

import pytest
import strange
import torch
from strange import tiny

from fromfew.errors import FromfewError
from fromfew.io.export import export, told
from fromfew.io.forms import kohya
from fromfew.io.forms.thin import Thin, even, parts_of, thin
from fromfew.io.verify import NOISE, verify
from fromfew.parts.low_rank import LowRank
from fromfew.testing.tiny import tiny as fresh

# Written from the form's rules, not from the code: SD 1 has diffusers' paths with underscores.
SD15 = {
    "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k":
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "denoiser.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0":
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
    "denoiser.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj":
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
    "denoiser.mid_block.attentions.0.transformer_blocks.0.ff.net.2":
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_2",
    "denoiser.up_blocks.1.attentions.1.proj_in": "lora_unet_up_blocks_1_attentions_1_proj_in",
    "encoder.one.encoder.layers.0.self_attn.q_proj": "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    "encoder.one.encoder.layers.1.self_attn.out_proj": "lora_te_text_model_encoder_layers_1_self_attn_out_proj",
    "encoder.one.encoder.layers.1.mlp.fc1": "lora_te_text_model_encoder_layers_1_mlp_fc1",
}  # fmt: skip
# SDXL counts blocks as its original code does. The twin has one residual layer a block, so that a way down goes
# conv_in, (residual, downsampler), (residual with attention); and a way up two residuals a block.
SDXL = {
    "denoiser.conv_in": "lora_unet_input_blocks_0_0",
    "denoiser.down_blocks.0.resnets.0.conv1": "lora_unet_input_blocks_1_0_in_layers_2",
    "denoiser.down_blocks.0.resnets.0.time_emb_proj": "lora_unet_input_blocks_1_0_emb_layers_1",
    "denoiser.down_blocks.0.downsamplers.0.conv": "lora_unet_input_blocks_2_0_op",
    "denoiser.down_blocks.1.resnets.0.conv_shortcut": "lora_unet_input_blocks_3_0_skip_connection",
    "denoiser.down_blocks.1.attentions.0.proj_in": "lora_unet_input_blocks_3_1_proj_in",
    "denoiser.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v":
        "lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_v",
    "denoiser.mid_block.resnets.0.conv2": "lora_unet_middle_block_0_out_layers_3",
    "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q":
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
    "denoiser.mid_block.resnets.1.conv1": "lora_unet_middle_block_2_in_layers_2",
    "denoiser.up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2":
        "lora_unet_output_blocks_1_1_transformer_blocks_0_ff_net_2",
    "denoiser.up_blocks.0.upsamplers.0.conv": "lora_unet_output_blocks_1_2_conv",
    "denoiser.up_blocks.1.resnets.1.conv1": "lora_unet_output_blocks_3_0_in_layers_2",
    "denoiser.conv_out": "lora_unet_out_2",
    "denoiser.time_embedding.linear_2": "lora_unet_time_embed_2",
    "denoiser.add_embedding.linear_1": "lora_unet_label_emb_0_0",
    "encoder.one.encoder.layers.1.mlp.fc2": "lora_te1_text_model_encoder_layers_1_mlp_fc2",
    "encoder.two.text_model.encoder.layers.0.self_attn.v_proj":
        "lora_te2_text_model_encoder_layers_0_self_attn_v_proj",
    "encoder.two.text_projection": "lora_te2_text_projection",
}  # fmt: skip
# The real SDXL: two residual layers a block, attention in blocks 1 and 2 on the way down, 0 and 1 on the way up.
REAL_SDXL = {
    "down_blocks.1.attentions.0.proj_in": "input_blocks_4_1_proj_in",
    "down_blocks.2.attentions.1.transformer_blocks.9.attn2.to_k":
        "input_blocks_8_1_transformer_blocks_9_attn2_to_k",
    "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
    "up_blocks.0.attentions.2.transformer_blocks.0.attn1.to_q":
        "output_blocks_2_1_transformer_blocks_0_attn1_to_q",
    "up_blocks.0.upsamplers.0.conv": "output_blocks_2_2_conv",
    "up_blocks.1.attentions.2.proj_out": "output_blocks_5_1_proj_out",
    "up_blocks.2.resnets.2.conv_shortcut": "output_blocks_8_0_skip_connection",
}  # fmt: skip


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def bb(request):
    return tiny(request.param)


def test_every_key_of_stable_diffusion_1_is_spelled_by_the_rules():
    names = kohya.names(tiny("sd15"))
    assert {path: names[path] for path in SD15} == SD15


def test_every_key_of_sdxl_is_spelled_by_the_rules():
    names = kohya.names(tiny("sdxl"))
    assert {path: names[path] for path in SDXL} == SDXL


def test_the_numbers_of_the_real_sdxl_are_those_of_its_original_code():
    attentive = {"up_blocks.0": True, "up_blocks.1": True}
    assert {path: kohya.sgm(path, 2, attentive) for path in REAL_SDXL} == REAL_SDXL


@pytest.mark.parametrize("base", ["sd15", "sd21", "sdxl"])
def test_diffusers_own_converter_reads_every_key_as_the_map_it_stands_for(base):
    from diffusers.loaders import lora_conversion_utils as theirs
    from diffusers.utils import convert_unet_state_dict_to_peft

    bb = tiny(base)
    paths = [path for path in kohya.names(bb) if path.startswith("denoiser.")]
    names = kohya.names(bb)
    tensors = {}
    for number, path in enumerate(paths):
        tensors[f"{names[path]}.lora_down.weight"] = torch.full((1, 1), float(number))
        tensors[f"{names[path]}.lora_up.weight"] = torch.zeros(1, 1)
    mapped = theirs._maybe_map_sgm_blocks_to_diffusers(tensors, bb.denoiser.config)
    found, _ = theirs._convert_non_diffusers_lora_to_diffusers(mapped)
    plain = convert_unet_state_dict_to_peft({key.removeprefix("unet."): value for key, value in found.items()})
    read = {int(value): key.removesuffix(".lora_A.weight") for key, value in plain.items() if "lora_A" in key}
    assert read == {number: path.removeprefix("denoiser.") for number, path in enumerate(paths)}


def with_a_strange_map(base):
    """A twin with a map that Stable Diffusion does not have, as the embedded base has in its embedding of the text."""
    bb = fresh(base)
    first = bb.denoiser.time_embedding.linear_1
    bb.denoiser.time_embedding.strange = torch.nn.Linear(first.in_features, first.out_features).requires_grad_(False)
    return bb, "denoiser.time_embedding.strange"


def test_maps_without_a_name_are_refused_or_left_out_with_the_error_told(tmp_path):
    bb, path = with_a_strange_map("sd15")
    maps = {**bb.select("attention"), path: bb.module(path)}
    part = strange.random(LowRank({p: tuple(m.weight.shape) for p, m in maps.items()}, 4, 2.0), 0.3)
    concept = strange.concept(bb, "lora", denoiser=part)
    with pytest.raises(FromfewError, match=r"no names for 1 .*time_embedding\.strange.*'diffusers'.*--rank"):
        export(concept, bb, "kohya", tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []
    done = export(concept, bb, "kohya", tmp_path / "x.safetensors", rank=4)
    assert done.thinned.missing == [path]
    norms = {p: float(part.delta(p).square().sum()) for p in maps}
    assert done.thinned.error == pytest.approx((norms[path] / sum(norms.values())) ** 0.5, rel=1e-3)
    assert any("Left out" in line and "strange" in line for line in told(done, bb))
    assert verify(concept, bb, done).file <= NOISE
    assert not done.exact


def test_a_lora_of_all_linear_maps_means_the_same_in_diffusers(bb, tmp_path):
    concept = strange.lora(bb, targets=("all",), scale=0.05, encoder=False)
    found = verify(concept, bb, export(concept, bb, "kohya", tmp_path / "x.safetensors"))
    assert found.effect > 20 * NOISE
    assert found.ok


def test_no_two_modules_share_a_key(bb):
    names = kohya.names(bb)
    assert len(set(names.values())) == len(names) > 60


def test_every_map_has_two_matrices_and_one_scalar_alpha_and_nothing_else(bb):
    maps = thin(strange.lora(bb, rank=24, alpha=6.0), bb, None, "kohya").maps
    tensors = kohya.write(maps, bb)
    endings = sorted(name.partition(".")[2] for name in tensors)
    assert endings == sorted(["alpha", "lora_down.weight", "lora_up.weight"] * len(maps))
    for name, tensor in tensors.items():
        if name.endswith("alpha"):
            assert tensor.shape == ()
            assert float(tensor) == 6.0
        elif name.endswith("down.weight"):
            assert tensor.shape[0] == 24, "one rank for all maps, whatever their own width"


def test_a_lora_comes_back_from_kohya_bit_by_bit(bb):
    maps = thin(strange.lora(bb), bb, None, "kohya").maps
    again, ignored = kohya.read(kohya.write(maps, bb), bb)
    assert ignored == []
    assert set(again) == set(maps)
    for path, one in maps.items():
        assert torch.equal(again[path].delta(), one.delta())


def test_text_encoder_keys_without_text_model_are_read_too():
    bb = tiny("sd15")
    tensors = kohya.write(thin(strange.lora(bb), bb, None, "kohya").maps, bb)
    bare = {name.replace("lora_te_text_model_", "lora_te_"): value for name, value in tensors.items()}
    assert set(bare) != set(tensors)
    again, ignored = kohya.read(bare, bb)
    assert ignored == []
    assert len(again) == len(tensors) // 3


def test_sdxl_files_in_diffusers_numbering_are_read_too():
    bb = tiny("sdxl")
    path = "denoiser.down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_v"
    weight = bb.module(path).weight
    key = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn2_to_v"
    tensors = {f"{key}.lora_down.weight": torch.ones(1, weight.shape[1]),
               f"{key}.lora_up.weight": torch.ones(weight.shape[0], 1)}  # fmt: skip
    assert list(kohya.read(tensors, bb)[0]) == [path]


def test_keys_without_a_place_are_named():
    bb = tiny("sd15")
    tensors = kohya.write(thin(strange.lora(bb), bb, None, "kohya").maps, bb)
    tensors["lora_unet_down_blocks_7_attentions_0_proj_in.lora_down.weight"] = torch.ones(1, 1)
    assert kohya.read(tensors, bb)[1] == ["lora_unet_down_blocks_7_attentions_0_proj_in.lora_down.weight"]


@pytest.mark.parametrize("kind", ["hada_w1_a", "lokr_w1"])
def test_half_a_change_is_refused_by_name(kind):
    with pytest.raises(FromfewError, match=kind.split("_")[0]):
        kohya.read({f"lora_unet_mid_block_attentions_0_proj_in.{kind}": torch.ones(1)}, tiny("sd15"))


def test_a_scale_of_no_map_is_named():
    key = "lora_unet_mid_block_attentions_0_proj_in.dora_scale"
    assert kohya.read({key: torch.ones(1)}, tiny("sd15")) == ({}, [key])


def test_families_that_the_form_is_not_written_for_are_refused():
    with pytest.raises(FromfewError, match="mmdit"):
        kohya.names(tiny("sd3"))


def test_a_lora_of_a_convolution_changes_it_by_the_product():
    bb = tiny("sd15")
    key, path = "lora_unet_mid_block_attentions_0_proj_in", "denoiser.mid_block.attentions.0.proj_in"
    weight = bb.module(path).weight
    assert weight.dim() == 4
    rng = torch.Generator().manual_seed(0)
    down = torch.randn(2, weight.shape[1], 1, 1, generator=rng)
    up = torch.randn(weight.shape[0], 2, 1, 1, generator=rng)
    tensors = {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up, f"{key}.alpha": torch.tensor(1.0)}
    parts = parts_of(kohya.read(tensors, bb)[0], bb)
    expected = 0.5 * torch.einsum("orxy,rihw->oihw", up, down)
    torch.testing.assert_close(parts.convolutions.delta(f"{path}.weight"), expected)


def test_mixed_ranks_and_scales_become_even_without_changing_anything():
    a, b = Thin(torch.ones(1, 3), torch.ones(2, 1), 0.5), Thin(torch.ones(4, 3), torch.ones(2, 4), 2.0)
    same, rank, alpha = even({"a": a, "b": b})
    assert rank == 4
    for name, one in {"a": a, "b": b}.items():
        assert same[name].rank == 4
        torch.testing.assert_close(same[name].scale, alpha / rank)
        torch.testing.assert_close(same[name].delta(), one.delta())


def test_training_notes_name_the_base_the_rank_and_alpha():
    bb = tiny("sdxl")
    notes = kohya.training(strange.lora(bb), bb, 8, 4.0)
    assert notes["ss_base_model_version"] == "sdxl_base_v1-0"
    assert (notes["ss_network_dim"], notes["ss_network_alpha"]) == ("8", "4")
    assert all(isinstance(value, str) for value in notes.values())
