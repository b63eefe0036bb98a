"""LoHa, LoKr and DoRA as LyCORIS writes them: key by key by its rules, and back bit by bit."""

import json

import pytest
import strange
import torch
from strange import tiny
from torch import nn

from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.forms import kohya
from fromfew.io.forms.relatives import parts_of
from fromfew.io.importing import bring_in, identify
from fromfew.io.tensors import read_header, read_tensors, write_tensors
from fromfew.io.verify import verify
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.kronecker import Kronecker
from fromfew.parts.low_rank import LowRank
from fromfew.parts.weight_decomposed import WeightDecomposed
from fromfew.parts.word import Word

LINEAR = "denoiser.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
CONV = "denoiser.mid_block.resnets.0.conv1"
NAMES = {LINEAR: "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
         CONV: "lora_unet_mid_block_resnets_0_conv1"}  # fmt: skip
KINDS = {"loha": Hadamard, "lokr": Kronecker, "dora": WeightDecomposed}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.3


def concept(bb, kind, *, rank=3, alpha=2.0, **more):
    maps = {path: bb.module(path) for path in (LINEAR, CONV)}
    part = strange.random(KINDS[kind].of(maps, rank, alpha, torch.Generator().manual_seed(0), **more), 0.3)
    return strange.concept(bb, kind, word=Word.plain("<v>", "red"), denoiser=part)


def change_by_the_rules(given, weight):
    """The change of a weight, written from LyCORIS's rules and not from the code."""

    def product(a, b, t=None):
        if t is None:
            return a.flatten(1) @ b.flatten(1)
        return torch.einsum("ijkl,ip,jr->prkl", t, a, b).flatten(1)

    alpha = float(given["alpha"])
    if "hada_w1_a" in given:
        scale = alpha / given["hada_w1_b"].shape[0]
        one = product(given["hada_w1_a"], given["hada_w1_b"], given.get("hada_t1"))
        return (scale * one * product(given["hada_w2_a"], given["hada_w2_b"], given.get("hada_t2"))).view(weight.shape)
    if "lora_down.weight" in given:
        down, up = given["lora_down.weight"], given["lora_up.weight"]
        delta = (alpha / down.shape[0] * up.flatten(1) @ down.flatten(1)).view(weight.shape)
        if "dora_scale" not in given:
            return delta
        new = weight + delta
        sizes = new.flatten(1).norm(dim=1).view(-1, *[1] * (weight.dim() - 1))
        return new / sizes * given["dora_scale"] - weight
    thin = [given[name].shape[0] for name in ("lokr_w1_b", "lokr_w2_b") if name in given]
    scale = alpha / thin[0] if thin else 1.0
    one = given["lokr_w1"] if "lokr_w1" in given else given["lokr_w1_a"] @ given["lokr_w1_b"]
    if "lokr_w2" in given:
        two = given["lokr_w2"].flatten(1)
    else:
        two = product(given["lokr_w2_a"], given["lokr_w2_b"], given.get("lokr_t2"))
    return (scale * torch.kron(one, two)).view(weight.shape)


def deltas(parts, bb):
    found = {}
    for part in parts:
        if isinstance(part, Word):
            continue
        for path in part.shapes() if hasattr(part, "shapes") else part.targets():
            base = bb.parameter(path if path.endswith(".weight") else f"{path}.weight")
            value = part.delta_of(path, base) if hasattr(part, "delta_of") else part.delta(path)
            found[path.removesuffix(".weight")] = value.detach()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_spelled_by_the_rules_and_means_what_the_concept_does(kind, tmp_path):
    bb = tiny("sd15")
    made = concept(bb, kind)
    done = export(made, bb, "kohya", tmp_path / "a.safetensors")
    assert done.exact
    tensors = read_tensors(done.files[0])
    part = made.parts.denoiser
    wanted = {}
    for path, name in NAMES.items():
        own, weight = part.own(f"{path}.weight"), bb.parameter(f"{path}.weight")
        if kind == "loha":
            held = {"hada_w1_a": own["up1"], "hada_w1_b": own["down1"], "hada_w2_a": own["up2"],
                    "hada_w2_b": own["down2"]}  # fmt: skip
        elif kind == "lokr" and "whole" in own:
            held = {"lokr_w1": own["small"], "lokr_w2": own["whole"].view(own["whole"].shape[0], -1, *weight.shape[2:])}
        elif kind == "lokr":
            held = {"lokr_w1": own["small"], "lokr_w2_a": own["up"], "lokr_w2_b": own["down"]}
        else:
            ones = (1, 1) if weight.dim() == 4 else ()
            held = {"lora_down.weight": own["down"].view(3, *weight.shape[1:]),
                    "lora_up.weight": own["up"].view(len(weight), 3, *ones),
                    "dora_scale": own["sizes"].view(len(weight), 1, *ones)}  # fmt: skip
        wanted |= {f"{name}.{key}": value for key, value in held.items()} | {f"{name}.alpha": torch.tensor(2.0)}
    assert {key: value.shape for key, value in tensors.items()} == {key: value.shape for key, value in wanted.items()}
    assert all(torch.equal(tensors[key], value) for key, value in wanted.items())
    notes = read_header(done.files[0]).metadata
    assert notes["ss_network_module"] == "lycoris.kohya"
    assert json.loads(notes["ss_network_args"])["algo"] == {"dora": "lora"}.get(kind, kind)
    for path, name in NAMES.items():
        weight = bb.parameter(f"{path}.weight").detach()
        given = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        here = part.delta_of(f"{path}.weight", weight)
        torch.testing.assert_close(here, change_by_the_rules(given, weight), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "more"), [
    ("loha", {}), ("dora", {}), ("lokr", {}), ("lokr", {"rank": 1}), ("lokr", {"factor": 4}), ("lokr", {"rank": 32}),
])  # fmt: skip
def test_a_file_comes_back_bit_by_bit(kind, more, tmp_path):
    bb = tiny("sd15")
    made = concept(bb, kind, **more)
    found = identify(export(made, bb, "kohya", tmp_path / "a.safetensors").files[0])
    assert found[0].what.startswith(f"a {dict(loha='LoHa', lokr='LoKr', dora='DoRA')[kind]} in the form")
    back = bring_in(found, bb)
    assert back.ignored == {}
    parts = [part for part in back.concept.parts if not isinstance(part, Word)]
    assert [part.kind for part in parts] == [made.parts.denoiser.kind]
    mine, its = made.parts.denoiser.state_dict(), parts[0].state_dict()
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)
    again = type(parts[0]).build(parts[0].config())
    again.load_state_dict(parts[0].state_dict())
    assert back.concept.parts.word.alias == "red"


def file_of(given, path):
    return {f"{NAMES[path]}.{key}": value for key, value in given.items()}


def tucker(bb, names):
    out, into, *kernel = bb.module(CONV).weight.shape
    return {names[0]: draw(2, 2, *kernel), names[1]: draw(2, out, seed=1), names[2]: draw(2, into, seed=2)}


def loha(out, into, rank=2):
    return {"hada_w1_a": draw(out, rank), "hada_w1_b": draw(rank, into), "hada_w2_a": draw(out, rank),
            "hada_w2_b": draw(rank, into)}  # fmt: skip


def odd_files(bb):
    out, into = bb.module(LINEAR).weight.shape
    c_out, c_into = bb.module(CONV).weight.shape[:2]
    alpha = {"alpha": torch.tensor(3.0)}
    return {
        "a LoHa with Tucker cores": (CONV, alpha | tucker(bb, ("hada_t1", "hada_w1_a", "hada_w1_b"))
                                     | tucker(bb, ("hada_t2", "hada_w2_a", "hada_w2_b"))),
        "a LoKr with a Tucker core": (CONV, alpha | {"lokr_w1": draw(2, 4)} | {
            "lokr_t2": draw(2, 2, 3, 3), "lokr_w2_a": draw(2, c_out // 2), "lokr_w2_b": draw(2, c_into // 4)}),
        "a LoKr of two thin factors": (LINEAR, alpha | {
            "lokr_w1_a": draw(4, 2), "lokr_w1_b": draw(2, 2), "lokr_w2_a": draw(out // 4, 2),
            "lokr_w2_b": draw(2, into // 2)}),
        "a LoKr of a thin first factor": (LINEAR, alpha | {
            "lokr_w1_a": draw(8, 2), "lokr_w1_b": draw(2, 2), "lokr_w2": draw(out // 8, into // 2)}),
        "a whole LoKr, whatever its alpha": (LINEAR, alpha | {
            "lokr_w1": draw(2, 8), "lokr_w2": draw(out // 2, into // 8)}),
        "a LoKr with the larger factor first": (LINEAR, alpha | {
            "lokr_w1": draw(out // 2, 2), "lokr_w2": draw(2, into // 2)}),
        "numbers of half precision": (LINEAR, {key: value.half() for key, value in (alpha | loha(out, into)).items()}),
    }  # fmt: skip


@pytest.mark.parametrize("which", odd_files(tiny("sd15")))
def test_what_other_tools_write_is_held_to_the_last_digit(which):
    bb = tiny("sd15")
    path, given = odd_files(bb)[which]
    maps, ignored = kohya.read(file_of(given, path), bb)
    assert ignored == []
    parts = parts_of(maps, bb)
    weight = bb.parameter(f"{path}.weight").detach()
    wanted = change_by_the_rules({key: value.float() for key, value in given.items()}, weight)
    torch.testing.assert_close(deltas(parts, bb)[path], wanted, atol=1e-5, rtol=1e-4)
    assert wanted.abs().max() > 1e-3
    for part in parts:
        type(part).build(json.loads(json.dumps(part.config()))).load_state_dict(part.state_dict())


def test_an_alpha_of_nothing_is_a_factor_of_one():
    bb = tiny("sd15")
    out, into = bb.module(LINEAR).weight.shape
    found = [
        kohya.read(file_of(loha(out, into) | more, LINEAR), bb)[0][LINEAR]
        for more in ({}, {"alpha": torch.tensor(0.0)})
    ]
    assert [(one.rank, one.alpha) for one in found] == [(2, 2.0), (2, 2.0)]


def test_maps_of_other_ranks_and_kinds_become_parts_of_their_own(tmp_path):
    bb = tiny("sd15")
    linear, conv = bb.module(LINEAR).weight.shape, bb.module(CONV).weight
    other = LINEAR.replace("to_q", "to_k")
    wide = loha(*linear, 4) | {"alpha": torch.tensor(1.0)}
    thin = loha(len(conv), conv[0].numel()) | {"alpha": torch.tensor(1.0)}
    lora = {"lora_down.weight": draw(2, linear[1]), "lora_up.weight": draw(linear[0], 2), "alpha": torch.tensor(1.0)}
    key = kohya.names(bb)[other]
    tensors = file_of(wide, LINEAR) | file_of(thin, CONV) | {f"{key}.{name}": value for name, value in lora.items()}
    write_tensors(tmp_path / "a.safetensors", tensors | {"lora_unet_nowhere.hada_w1_a": draw(2, 2)})
    found = identify(tmp_path / "a.safetensors")
    assert found[0].what.startswith("a LoHa and LoRA in")
    back = bring_in(found, bb)
    assert back.ignored == {tmp_path / "a.safetensors": ["lora_unet_nowhere.hada_w1_a"]}
    kinds = [type(part) for part in back.concept.parts]
    assert sorted(kind.__name__ for kind in kinds) == ["Hadamard", "Hadamard", "LowRank"]
    here = deltas(back.concept.parts, bb)
    for path, given in ((LINEAR, wide), (CONV, thin), (other, lora)):
        weight = bb.parameter(f"{path}.weight").detach()
        torch.testing.assert_close(here[path], change_by_the_rules(given, weight), atol=1e-5, rtol=1e-4)
    assert LowRank in kinds


def test_a_lora_with_a_tucker_core_is_read():
    bb = tiny("sd15")
    out, into, *kernel = bb.module(CONV).weight.shape
    up, core, down = draw(out, 2, 1, 1), draw(2, 2, *kernel, seed=1), draw(2, into, 1, 1, seed=2)
    given = {"lora_up.weight": up, "lora_mid.weight": core, "lora_down.weight": down, "alpha": torch.tensor(1.0)}
    one = kohya.read(file_of(given, CONV), bb)[0][CONV]
    wanted = 0.5 * torch.einsum("oi,ijkl,jn->onkl", up[..., 0, 0], core, down[..., 0, 0])
    torch.testing.assert_close(one.delta(), wanted, atol=1e-5, rtol=1e-4)
    # Three convolutions one after the other, as a trainer runs them.
    x = draw(1, into, 5, 5)
    there = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), core, padding=1), up) * 0.5
    torch.testing.assert_close(nn.functional.conv2d(x, one.delta(), padding=1), there, atol=1e-4, rtol=1e-4)


def test_names_without_underscored_prefixes_of_kohya_are_read():
    bb = tiny("sd15")
    out, into = bb.module(LINEAR).weight.shape
    given = {"lokr_w1": draw(2, 2), "lokr_w2": draw(out // 2, into // 2), "alpha": torch.tensor(1.0)}
    key = NAMES[LINEAR].replace("lora_unet_", "lycoris_")
    maps, ignored = kohya.read({f"{key}.{name}": value for name, value in given.items()}, bb)
    assert (list(maps), ignored) == ([LINEAR], [])


@pytest.mark.parametrize(("given", "said"), [
    ({"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2)}, "no hada_w2_b beside"),
    ({"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 3), "hada_w2_b": (3, 32)}, "ranks"),
    ({"hada_w1_a": (9, 2), "hada_w1_b": (2, 32), "hada_w2_a": (9, 2), "hada_w2_b": (2, 32)}, "file's hadamard of it"),
    ({"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32), "scalar": ()}, "scalar"),
    ({"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32), "dora_scale": (32, 1)},
     "dora_scale"),
    ({"lokr_w1": (2, 2)}, "no lokr_w2_a beside"),
    ({"lokr_w1": (5, 2), "lokr_w2": (16, 16)}, "first factor"),
    ({"lokr_w1": (2, 2), "lokr_w2": (16, 17)}, "file's kronecker of it"),
    ({"lokr_w1": (0, 2), "lokr_w2": (16, 16)}, "first factor"),
    ({"lora_down.weight": (2, 32), "lora_up.weight": (32, 2), "dora_scale": (1, 32)}, "lengths of columns"),
    ({"lora_down.weight": (2, 32), "lora_up.weight": (32, 2), "dora_scale": (32, 2)}, "64 sizes for 32"),
    ({"lora_down.weight": (2, 32)}, "no lora_up"),
    ({"lora_down.weight": (2, 32), "lora_up.weight": (32, 3)}, "do not multiply"),
    ({"oft_blocks": (4, 8, 8)}, "of a kind that is not read"),
    ({"a1.weight": (4, 8)}, "of a kind that is not read"),
    ({"lokr_w1": (2, 2), "lokr_w2": (16, 16), "alpha": (2,)}, "no number"),
])  # fmt: skip
def test_what_cannot_be_held_is_refused_by_name(given, said):
    bb = tiny("sd15")
    assert tuple(bb.module(LINEAR).weight.shape) == (32, 32)
    tensors = {name: draw(*shape) for name, shape in given.items()}
    with pytest.raises(FromfewError, match=said):
        parts_of(kohya.read(file_of(tensors, LINEAR), bb)[0], bb)


def test_a_map_that_is_named_twice_is_refused():
    bb = tiny("sd15")
    given = {"lora_down.weight": draw(2, 32), "lora_up.weight": draw(32, 2)}
    both = [NAMES[LINEAR], NAMES[LINEAR].replace("lora_unet_", "lycoris_")]
    with pytest.raises(FromfewError, match="twice"):
        kohya.read({f"{key}.{name}": value for key in both for name, value in given.items()}, bb)


def test_that_diffusers_has_no_reader_is_said_before_anything_is_drawn(tmp_path):
    bb = tiny("sd15")
    made = concept(bb, "loha")
    with pytest.raises(FromfewError, match="diffusers reads no file with keys such as"):
        verify(made, bb, export(made, bb, "kohya", tmp_path / "a.safetensors"))
