import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.tensors import read_tensors
from fromfew.make import make
from fromfew.method import find
from fromfew.ports.place import layers_of
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 2e-2}


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_the_file_holds_a_vector_for_every_layer_and_encoder(tmp_path, base):
    bb = tiny(base)
    concept = find("p-plus")(**QUICK, vectors=2).learn(bb, few_photos())
    held = read_tensors(concept.save(tmp_path / "c") / "concept.safetensors")
    widths = sum(encoder.width for encoder in bb.text_encoders.values())
    assert sum(value.numel() for value in held.values()) == 2 * len(layers_of(bb)) * widths


def test_it_begins_as_the_plain_noun_and_every_layer_learns_its_own():
    bb, refs = tiny("sd15"), few_photos()
    method = find("p-plus")(**QUICK)
    fresh = method.parts(bb, refs, torch.Generator().manual_seed(0))
    with bb.attach(fresh):
        assert torch.allclose(predict(bb, prompt="a <v> dog"), predict(bb, prompt="a cat dog"), atol=1e-5)
    rows = method.learn(bb, refs).parts.word.vectors["one"][0]
    assert all(not torch.equal(rows[i], rows[j]) for i in range(len(rows)) for j in range(i))


def test_without_the_word_predictions_are_the_bases_bit_for_bit():
    bb = tiny("sd15")
    concept = find("p-plus")(**QUICK).learn(bb, few_photos())
    plain = predict(bb, prompt="a dog")
    with bb.attach(concept):
        assert torch.equal(predict(bb, prompt="a dog"), plain)
        assert not torch.equal(predict(bb, prompt="a <v>"), plain)


def test_what_has_no_layers_of_its_own_is_refused():
    with pytest.raises(FromfewError, match="apart from the picture"):
        find("p-plus")(**QUICK).learn(tiny("sd3"), few_photos())
    with pytest.raises(FromfewError, match="vectors is 1 to 16"):
        find("p-plus")(vectors=0)
    with pytest.raises(FromfewError, match="modifier"):
        find("p-plus")(modifier="rare")


def other(bb, name, placeholder, **how):
    from dataclasses import replace

    refs = replace(few_photos(noun="dog"), placeholder=placeholder)
    return find(name)(**{**QUICK, **how}).learn(bb, refs)


@pytest.mark.parametrize(
    ("name", "how"), [("lora", {}), ("textual-inversion", {}), ("prospect", {}), ("neti", {"frequencies": 8})]
)
def test_two_concepts_of_different_methods_are_drawn_together(name, how):
    bb = tiny("sd15")
    one = find("p-plus")(**QUICK).learn(bb, few_photos())
    two = other(bb, name, "<w>", **how)
    both, first, second = (
        make(bb, "a <v> cat and a <w> dog", concepts, steps=2).latents
        for concepts in ([one, two], [one, two.scaled(0)], [one.scaled(0), two])
    )
    assert torch.isfinite(both).all()
    assert not torch.equal(both, first)
    assert not torch.equal(both, second)


@pytest.mark.parametrize(("name", "how"), [("p-plus", {}), ("neti", {"frequencies": 8}), ("catversion", {})])
def test_no_other_tool_is_given_half_a_word(name, how, tmp_path):
    bb = tiny("sd15")
    concept = find(name)(**{**QUICK, **how}).learn(bb, few_photos())
    with pytest.raises(FromfewError, match="more than one list of vectors"):
        export(concept, bb, "diffusers", tmp_path / "x")
    assert not list(tmp_path.iterdir())
