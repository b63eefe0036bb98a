"""Learned words leave and come back in every layout; old pickled files are read without running them."""

import io
import pickle
import zipfile
from collections import OrderedDict

import pytest
import strange
import torch
from strange import tiny

from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.forms import embedding
from fromfew.io.forms.pickled import read_pickled_word
from fromfew.io.importing import bring_in, identify
from fromfew.io.tensors import read_tensors, write_tensors


@pytest.mark.parametrize("base", ["sd15", "sdxl", "sd3", "flux"])
@pytest.mark.parametrize("form", ["diffusers", "a1111"])
def test_a_word_comes_back_bit_by_bit(base, form, tmp_path):
    bb = tiny(base)
    concept = strange.word(bb, 3)
    done = export(concept, bb, form, tmp_path / "rex.safetensors")
    again = bring_in(identify(done.files[0]), bb).concept
    assert again.placeholder == "<v>"
    for key, vectors in concept.parts.word.vectors.items():
        assert torch.equal(again.parts.word.vectors[key], vectors)


def test_diffusers_calls_the_vectors_by_the_placeholder_and_a1111_emb_params(tmp_path):
    bb = tiny("sd15")
    concept = strange.word(bb)
    for form, key in (("diffusers", "<v>"), ("a1111", "emb_params")):
        done = export(concept, bb, form, tmp_path / f"{form}.safetensors")
        assert list(read_tensors(done.files[0])) == [key]


@pytest.mark.parametrize(
    ("base", "keys"),
    [("sdxl", {"clip_l", "clip_g"}), ("sd3", {"clip_l", "clip_g", "t5xxl"}), ("flux", {"clip_l", "t5xxl"})],
)
def test_bases_of_several_encoders_have_one_key_for_each(base, keys, tmp_path):
    bb = tiny(base)
    done = export(strange.word(bb), bb, "a1111", tmp_path / "rex.safetensors")
    assert set(read_tensors(done.files[0])) == keys


def test_emb_params_is_no_name_so_the_file_gives_it(tmp_path):
    write_tensors(tmp_path / "my cat!.safetensors", {"emb_params": torch.ones(2, 32)})
    concept = bring_in(identify(tmp_path / "my cat!.safetensors"), tiny("sd15")).concept
    assert concept.placeholder == "<my-cat>"


def test_a_word_of_another_base_is_refused_with_the_base_it_fits(tmp_path):
    write_tensors(tmp_path / "x.safetensors", {"clip_l": torch.ones(1, 768), "clip_g": torch.ones(1, 1280)})
    with pytest.raises(FromfewError, match="Stable Diffusion XL"):
        bring_in(identify(tmp_path / "x.safetensors"), tiny("sd15"))


def test_the_strength_of_a_word_is_folded_into_its_vectors(tmp_path):
    bb = tiny("sd15")
    concept = strange.word(bb, 1)
    half = embedding.vectors(concept.parts.word, concept.scaled(0.5), bb)["one"]
    none = embedding.vectors(concept.parts.word, concept.scaled(0.0), bb)["one"]
    full = concept.parts.word.vectors["one"]
    torch.testing.assert_close(half, (none + full) / 2)
    assert not torch.equal(half, none)


def pickled(path, content):
    torch.save(content, path)
    return path


def test_an_old_a1111_file_is_read_with_its_name(tmp_path):
    vectors = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    old = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "oldcat", "step": 9}
    found = identify(pickled(tmp_path / "x.pt", old))
    concept = bring_in(found, tiny("sd15")).concept
    assert concept.placeholder == "oldcat"
    assert torch.equal(concept.parts.word.vectors["one"], vectors)


def test_an_old_file_whose_vectors_are_a_module_is_read(tmp_path):
    held = torch.nn.ParameterDict({"*": torch.nn.Parameter(torch.ones(1, 32))})
    tensors, name = read_pickled_word(pickled(tmp_path / "x.pt", {"string_to_param": held, "name": None}))
    assert torch.equal(tensors["emb_params"], torch.ones(1, 32))
    assert name is None


def test_an_old_diffusers_file_in_half_precision_and_not_contiguous_is_read(tmp_path):
    vectors = torch.arange(64).half().view(32, 2).T
    tensors, _ = read_pickled_word(pickled(tmp_path / "learned_embeds.bin", {"<cat>": vectors}))
    assert torch.equal(tensors["<cat>"], vectors)


class Evil:
    ran = False

    def __reduce__(self):
        return (exec, ("import strange; strange.EVIL = True",))


@pytest.mark.parametrize("content", [Evil(), {"x": Evil()}, {"string_to_param": OrderedDict(a=Evil())}])
def test_a_file_that_would_run_code_is_refused_and_nothing_runs(content, tmp_path):
    with pytest.raises(FromfewError, match="could run code"):
        read_pickled_word(pickled(tmp_path / "x.pt", content))
    assert not hasattr(strange, "EVIL")


def archive(path, program, storages=()):
    with zipfile.ZipFile(path, "w") as held:
        held.writestr("x/data.pkl", program)
        for key, data in storages:
            held.writestr(f"x/data/{key}", data)
    return path


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",
        b"\x80\x02ctorch\nFloatStorage\n)R.",
        b"\x80\x02cbuiltins\ngetattr\n.",
        b"\x80\x02}h\x07.", b"\x80\x02.", b"R.", b"", b"\x80\x02]q\x00h\x00a.",
        b"(lp0\n.", b"\x80\x02i__main__\nEvil\n.",
    ],
)  # fmt: skip
def test_broken_and_hostile_pickles_are_refused_in_words(program, tmp_path):
    with pytest.raises(FromfewError, match="could run code"):
        read_pickled_word(archive(tmp_path / "x.pt", program))


def test_a_tensor_that_reaches_beyond_its_numbers_is_refused(tmp_path):
    whole = io.BytesIO()
    torch.save({"<a>": torch.ones(4, 8)}, whole)
    with zipfile.ZipFile(whole) as held:
        program = next(held.read(name) for name in held.namelist() if name.endswith("data.pkl"))
    path = archive(tmp_path / "x.pt", program, [("0", b"\0" * 64)])
    with pytest.raises(FromfewError, match="beyond its numbers"):
        read_pickled_word(path)


def test_a_plain_pickle_is_refused(tmp_path):
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FromfewError, match="could run code"):
        identify(tmp_path / "x.pt")
