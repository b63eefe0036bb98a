"""IP-Adapter checkpoints have the official keys, in diffusers' order, and mean the same there."""

import pytest
import strange
import torch
from strange import tiny

from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.forms import ip_adapter
from fromfew.io.importing import bring_in, identify
from fromfew.io.tensors import read_tensors, write_tensors
from fromfew.io.verify import NOISE, verify
from fromfew.methods.ip_adapter import IPAdapter
from fromfew.parts.word import Word
from fromfew.testing.eye import tiny_eye


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    return tiny_eye(tmp_path_factory.mktemp("eye"))


def adapter(bb, eye, folder, *, plus, tokens=4, inner=128):
    """A concept read by an adapter of random weights, and the file they lie in."""
    file = folder / "weights.safetensors"
    method = IPAdapter(eye=eye, tokens=tokens, plus=plus, inner=inner, weights=str(file))
    modules = method.fresh(bb)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in modules.parameters():
            value += 0.2 * torch.randn(value.shape, generator=rng)
    write_tensors(file, modules.state_dict())
    concept = strange.concept(bb, "ip-adapter", word=Word.plain("<v>", ""), stream=modules["stream"])
    concept.card.settings.update(method.settings())
    return concept, file


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_numbers_follow_diffusers_own_list_of_attentions(base):
    bb = tiny(base)
    listed = [name.removesuffix(".processor") for name in bb.denoiser.attn_processors]
    expected = {f"denoiser.{name}": place for place, name in enumerate(listed) if name.endswith("attn2")}
    assert ip_adapter.numbers(bb) == expected
    assert all(number % 2 for number in expected.values())


@pytest.mark.parametrize(("base", "plus"), [("sd15", False), ("sdxl", True)])
def test_an_adapter_means_the_same_in_diffusers(base, plus, eye, tmp_path):
    bb = tiny(base)
    concept, _ = adapter(bb, eye, tmp_path, plus=plus, tokens=8 if plus else 4)
    found = verify(concept, bb, export(concept, bb, "ip-adapter", tmp_path / "out"))
    assert found.effect > 50 * NOISE
    assert found.file <= NOISE


@pytest.mark.parametrize("plus", [False, True])
def test_keys_are_the_official_ones_and_come_back_bit_by_bit(plus, eye, tmp_path):
    bb = tiny("sd15")
    concept, file = adapter(bb, eye, tmp_path, plus=plus)
    done = export(concept, bb, "ip-adapter", tmp_path / "x.safetensors")
    keys = set(read_tensors(done.files[0]))
    official = {"image_proj.latents", "image_proj.proj_in.weight", "image_proj.layers.0.0.norm1.weight",
                "image_proj.layers.3.0.to_kv.weight", "image_proj.layers.1.1.1.weight", "image_proj.norm_out.bias",
                } if plus else {"image_proj.proj.weight", "image_proj.norm.bias"}  # fmt: skip
    assert official | {"ip_adapter.1.to_k_ip.weight", "ip_adapter.3.to_v_ip.weight"} <= keys
    back = bring_in(identify(done.files[0]), bb)
    assert back.concept is None
    assert back.ignored == {}
    assert back.settings == {"plus": plus, "tokens": 4, **({"inner": 128} if plus else {})}
    learned = {name: value for name, value in read_tensors(file).items()
               if name not in ("stream.tokens", "stream.nothing")}  # fmt: skip
    assert set(back.adapter) - set(learned) == {"stream.tokens", "stream.nothing"}
    for name, value in learned.items():
        assert torch.equal(back.adapter[name], value), name


def test_an_imported_adapter_fills_the_method(eye, tmp_path):
    bb = tiny("sd15")
    concept, _ = adapter(bb, eye, tmp_path, plus=False)
    done = export(concept, bb, "ip-adapter", tmp_path / "x.safetensors")
    back = bring_in(identify(done.files[0]), bb)
    write_tensors(tmp_path / "back.safetensors", back.adapter)
    method = IPAdapter(eye=eye, weights=str(tmp_path / "back.safetensors"), **back.settings)
    assert torch.equal(method.filled(bb)["stream"].key[next(iter(concept.parts.stream.key))],
                       next(iter(concept.parts.stream.key.values())))  # fmt: skip


def test_a_plus_adapter_of_the_published_width_goes_out_and_comes_in(eye, tmp_path):
    """The twin's text is 32 wide, so that no width is the published one for it; 768 has 12 heads, as for SD 1."""
    bb = tiny("sd15")
    concept, file = adapter(bb, eye, tmp_path, plus=True, tokens=16, inner=768)
    done = export(concept, bb, "ip-adapter", tmp_path / "x.safetensors")
    shapes = {name: tuple(value.shape) for name, value in read_tensors(done.files[0]).items()}
    assert shapes["image_proj.latents"] == (1, 16, 768)
    assert shapes["image_proj.layers.3.0.to_kv.weight"] == (1536, 768)
    assert shapes["image_proj.layers.3.1.1.weight"] == (3072, 768)
    assert verify(concept, bb, done).file <= NOISE
    back = bring_in(identify(done.files[0]), bb)
    assert back.settings == {"plus": True, "tokens": 16, "inner": 768}
    write_tensors(tmp_path / "back.safetensors", back.adapter)
    method = IPAdapter(eye=eye, weights=str(tmp_path / "back.safetensors"), **back.settings)
    again, first = method.filled(bb).state_dict(), read_tensors(file)
    assert all(torch.equal(again[name], first[name]) for name in first if not name.startswith("stream."))


def test_export_tells_which_tools_read_a_width():
    form = {"image_proj.latents": torch.ones(1, 4, 768), "image_proj.proj_out.weight": torch.ones(768, 768)}
    form |= {f"image_proj.layers.{n}.0.to_q.weight": torch.ones(768, 768) for n in range(4)}
    assert ip_adapter.notes(form) == []
    wide = form | {"image_proj.proj_out.weight": torch.ones(2048, 768)}
    assert "read only 1280" in ip_adapter.notes(wide)[0]


def test_resamplers_of_other_depth_or_heads_and_widths_without_heads_are_refused():
    form = {"image_proj.latents": torch.ones(1, 4, 128), "ip_adapter.1.to_k_ip.weight": torch.ones(2, 2)}
    with pytest.raises(FromfewError, match="whole heads"):
        ip_adapter.settings(form | {"image_proj.layers.0.0.to_q.weight": torch.ones(64, 128)})
    with pytest.raises(FromfewError, match="4 layers in its resampler, this one 1"):
        ip_adapter.settings(form | {"image_proj.layers.0.0.to_q.weight": torch.ones(128, 128)})
    with pytest.raises(FromfewError, match="multiple of 64"):
        IPAdapter(inner=100)


def test_import_tells_what_was_ignored_in_an_adapter(eye, tmp_path, capsys):
    from fromfew.cli import main

    bb = tiny("sd15")
    concept, _ = adapter(bb, eye, tmp_path, plus=True)
    done = export(concept, bb, "ip-adapter", tmp_path / "x.safetensors")
    more = {"image_proj.extra.weight": torch.ones(2), "ip_adapter.77.to_k_ip.weight": torch.ones(2, 2)}
    odd = {**read_tensors(done.files[0]), **more}
    write_tensors(tmp_path / "odd.safetensors", odd)
    out = tmp_path / "weights" / "odd.safetensors"
    assert main(["import", str(tmp_path / "odd.safetensors"), "--base", "tiny-sd15", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "2 keys that have no place in this base: image_proj.extra.weight, ip_adapter.77.to_k_ip.weight" in said
    assert "--tokens 4 --plus --inner 128" in said
    assert out.exists()


def test_a_plain_adapter_of_other_than_four_tokens_is_refused(eye, tmp_path):
    bb = tiny("sd15")
    concept, _ = adapter(bb, eye, tmp_path, plus=False, tokens=2)
    with pytest.raises(FromfewError, match="four tokens"):
        export(concept, bb, "ip-adapter", tmp_path / "x.safetensors")


def test_kinds_beyond_plain_and_plus_are_refused(tmp_path):
    tensors = {"image_proj.proj.0.weight": torch.ones(2, 2), "ip_adapter.1.to_k_ip.weight": torch.ones(2, 2)}
    write_tensors(tmp_path / "face.safetensors", tensors)
    with pytest.raises(FromfewError, match="FaceID"):
        bring_in(identify(tmp_path / "face.safetensors"), tiny("sd15"))
