"""FLUX in kohya form: joined maps lose nothing, and diffusers' converter takes them apart as they were."""

import pytest
import strange
import torch
from strange import tiny

from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.forms import kohya, kohya_flux
from fromfew.io.forms.thin import Thin, thin
from fromfew.io.verify import NOISE, verify
from fromfew.parts.low_rank import LowRank


class Real:
    """Names and sizes of one double and one single block of the real FLUX.1, without their numbers."""

    name, family = "flux", "flux"

    def __init__(self):
        from diffusers import FluxTransformer2DModel

        with torch.device("meta"):
            self.denoiser = FluxTransformer2DModel(num_layers=1, num_single_layers=1)

    def select(self, *what):
        return {}

    def module(self, path):
        return self.denoiser.get_submodule(path.removeprefix("denoiser."))


def test_diffusers_takes_every_map_of_the_real_blocks_apart_as_it_was():
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    bb, rng = Real(), torch.Generator().manual_seed(0)
    maps = {}
    for path in kohya_flux.names(bb):
        out, wide = bb.module(path).weight.shape
        maps[path] = Thin(torch.randn(1, wide, generator=rng), torch.randn(out, 1, generator=rng), 0.5)
    assert len(maps) == 14 + 6
    found = _convert_kohya_flux_lora_to_diffusers(kohya_flux.write(maps, bb))
    assert len(found) == 2 * len(maps)
    for path, one in maps.items():
        name = f"transformer.{path.removeprefix('denoiser.')}"
        down, up = found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"]
        assert down.shape[0] == 1, "it was taken apart, not doubled"
        assert torch.equal(up[:50] @ down[:, :50], one.scale * one.up[:50] @ one.down[:, :50])


def test_double_blocks_and_the_text_encoder_mean_the_same_in_diffusers(tmp_path):
    """The twin's single blocks cannot be tried so: diffusers' converter has the real widths written into it."""
    bb = tiny("flux")
    paths = [path for path in kohya_flux.names(bb) if ".single_" not in path and path.startswith("denoiser.")]
    part = strange.random(LowRank({p: tuple(bb.module(p).weight.shape) for p in paths}, 4, 2.0), 0.1)
    clip = [path for path in kohya_flux.names(bb) if path.startswith("encoder.one") and "attn" in path]
    text = strange.random(LowRank({p: tuple(bb.module(p).weight.shape) for p in clip}, 4, 2.0), 0.3, 2)
    concept = strange.concept(bb, "lora", denoiser=part, encoder=text, placeholder=None)
    found = verify(concept, bb, export(concept, bb, "kohya", tmp_path / "x.safetensors"))
    assert found.effect > 20 * NOISE
    assert found.ok


def test_a_lora_of_the_blocks_comes_back_and_missing_thirds_stay_missing():
    bb = tiny("flux")
    maps = thin(strange.lora(bb, encoder=False), bb, None, "kohya").maps
    del maps["denoiser.single_transformer_blocks.0.attn.to_k"]
    again, ignored = kohya.read(kohya.write(maps, bb), bb)
    assert ignored == []
    assert set(again) == set(maps)
    for path, one in maps.items():
        torch.testing.assert_close(again[path].delta(), one.delta(), rtol=0, atol=0)


def test_a_joined_map_that_is_no_diagonal_is_read_with_its_whole_down():
    bb, name = tiny("flux"), "lora_unet_double_blocks_0_img_attn_qkv"
    head, rng = "denoiser.transformer_blocks.0.attn.", torch.Generator().manual_seed(0)
    wide = bb.module(f"{head}to_q").weight.shape[1]
    down, up = torch.randn(3, wide, generator=rng), torch.randn(3 * wide, 3, generator=rng)
    tensors = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(1.5)}
    maps, ignored = kohya.read(tensors, bb)
    assert ignored == []
    whole = torch.cat([maps[f"{head}{one}"].delta() for one in ("to_q", "to_k", "to_v")])
    torch.testing.assert_close(whole, 0.5 * up @ down)


def test_maps_outside_of_the_blocks_have_no_names_and_other_sizes_are_refused(tmp_path):
    bb = tiny("flux")
    with pytest.raises(FromfewError, match=r"no names for 10 .*time_text_embed"):
        export(strange.lora(bb, targets=("all",), encoder=False), bb, "kohya", tmp_path / "x.safetensors")
    name = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {f"{name}.lora_down.weight": torch.ones(1, 8), f"{name}.lora_up.weight": torch.ones(9, 1)}
    with pytest.raises(FromfewError, match="gives 9 numbers"):
        kohya.read(tensors, bb)
    with pytest.raises(FromfewError, match="only one of"):
        kohya.read({f"{name}.lora_down.weight": torch.ones(1, 8)}, bb)
