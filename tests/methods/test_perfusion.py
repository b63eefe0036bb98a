from dataclasses import replace

import pytest
import torch
from torch.nn.functional import linear

from fromfew.concept import Concept
from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.method import find
from fromfew.ports.linear import flat
from fromfew.regularise import state_of
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny
from fromfew.text_statistics import captions, second_moment

QUICK = {"steps": 4, "batch": 2, "lr": 5e-2, "word_lr": 5e-2, "views": 2}


@pytest.fixture(scope="module")
def bb(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FROMFEW_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield tiny("sd15")


@pytest.fixture(scope="module")
def edit(bb):
    return find("perfusion")(**QUICK).learn(bb, few_photos()).parts.edit


def answer(bb, edit, path, e):
    weight = bb.parameter(f"{path}.weight")
    return linear(e, weight) + edit.apply_on(path, e[None, None], weight)[0, 0]


def test_captions_are_the_same_everywhere_and_their_moment_is_kept(bb):
    assert len(set(captions())) > 200
    assert captions(2) == ["a photo of a cat", "a photo of my dog on the beach"]
    moment = second_moment(bb)
    assert torch.equal(second_moment(tiny("sd15")), moment)
    assert float(torch.linalg.eigvalsh(moment).min()) > 0
    with torch.no_grad():
        states = torch.cat([bb.embed([one]).states[0] for one in captions()]).double()
    plain = (states.T @ states / len(states)).float()
    assert torch.allclose(moment - plain, 1e-4 * plain.diagonal().mean() * torch.eye(len(plain)), atol=1e-5)


def test_at_the_concept_keys_are_those_of_the_noun(bb, edit):
    edit.tau = 1e-6
    for path in bb.select("text.key"):
        there = linear(edit.noun, bb.parameter(f"{path}.weight"))
        assert torch.allclose(answer(bb, edit, path, edit.concept), there, atol=1e-5)
    for path in bb.select("text.value"):
        assert torch.allclose(answer(bb, edit, path, edit.concept), edit.outputs[flat(path)], atol=1e-5)
    edit.tau = 0.15


def test_what_is_orthogonal_to_the_concept_is_read_as_before(bb, edit):
    e = torch.randn(len(edit.concept), generator=generator(3))
    e = e - (e @ edit.dual) / (edit.dual @ edit.dual) * edit.dual
    assert float(edit.share(e).abs()) < 1e-5
    edit.tau = 1e-3
    for path in bb.select("text.key", "text.value"):
        assert torch.allclose(answer(bb, edit, path, e), linear(e, bb.parameter(f"{path}.weight")), atol=1e-4)
    edit.tau = 0.15


def test_the_gate_has_the_values_of_its_formula(edit):
    edit.train()
    assert float(edit.open(torch.tensor(1.0))) == pytest.approx(0.924, abs=1e-3)
    assert float(edit.open(torch.tensor(0.0))) == pytest.approx(5.5e-4, abs=1e-5)
    edit.eval()
    assert float(edit.open(torch.tensor(1.0))) == pytest.approx(0.8808, abs=1e-3)


def test_keys_are_not_learned_and_not_saved(bb, tmp_path):
    concept = find("perfusion")(**QUICK).learn(bb, few_photos())
    names = set(concept.parts.edit.state_dict())
    assert names == {"concept", "dual", "noun", *(f"outputs.{flat(path)}" for path in bb.select("text.value"))}
    before = find("perfusion")(**QUICK).parts(bb, few_photos(), generator(0)).edit
    assert torch.equal(concept.parts.edit.noun, before.noun)
    assert all(not torch.equal(concept.parts.edit.outputs[name], value) for name, value in before.outputs.items())
    assert Concept.load(concept.save(tmp_path / "c")).parts.edit.beta == 0.7


def test_the_concepts_encoding_follows_the_words(bb):
    method, refs = find("perfusion")(**QUICK), few_photos()
    parts = method.parts(bb, refs, generator(0))
    assert torch.allclose(parts.edit.concept, state_of(bb, "cat"), atol=1e-5)
    [stage] = method.stages(bb, refs, parts)
    with bb.attach(parts):
        text = bb.embed(["a <v> cat", "a photo"])
        before = parts.edit.concept.clone()
        stage.after(type("Step", (), {"text": text})())
        wanted = 0.99 * before + 0.01 * text.states[0, text.where(0, "<v>")].mean(0)
        assert torch.allclose(parts.edit.concept, wanted.detach(), atol=1e-6)
    assert torch.allclose(second_moment(bb) @ parts.edit.dual, parts.edit.concept, atol=1e-3)


def test_a_lower_bar_lets_more_of_the_concept_through(bb, edit):
    plain = predict(bb)
    far = []
    for beta in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        edit.beta = beta
        with bb.attach(edit):
            far.append(float((predict(bb, prompt="a cat") - predict_without(bb, edit)).norm()))
    edit.beta = 0.7
    assert far == sorted(far, reverse=True)
    assert far[0] > 1.05 * far[-1]
    assert torch.equal(predict(bb), plain)


def predict_without(bb, edit):
    """The same with every gate shut: what is far from it has passed the gate."""
    kept, edit.beta = edit.beta, 50.0
    shown = predict(bb, prompt="a cat")
    edit.beta = kept
    return shown


def test_the_global_lock_takes_all_keys_from_the_prompt_with_the_noun(bb):
    refs = few_photos()
    concept = find("perfusion")(**QUICK, lock="global").learn(bb, refs)
    local = find("perfusion")(**QUICK).learn(bb, refs)
    assert torch.equal(concept.parts.word.vectors["one"], local.parts.word.vectors["one"])
    with bb.attach(concept), torch.no_grad():
        text = bb.embed(["a <v> dog on the beach", "a dog"])
    with bb.attach(local), torch.no_grad():
        words = bb.embed(["a <v> dog on the beach", "a dog"])
    with torch.no_grad():
        noun = bb.embed(["a cat dog on the beach", "a dog"])
    assert torch.allclose(text.states, noun.states, atol=1e-5)
    assert torch.allclose(text.values, words.states, atol=1e-5)
    assert not torch.allclose(text.values[0], text.states[0], atol=1e-3)
    with bb.attach(concept):
        one = predict(bb)
    with bb.attach(local):
        assert not torch.allclose(one, predict(bb), atol=1e-4)


@pytest.mark.parametrize("base", ["sd3", "flux"])
def test_bases_that_mix_text_and_picture_are_refused(base):
    with pytest.raises(FromfewError, match="mixed with the picture"):
        find("perfusion")(**QUICK).learn(tiny(base), few_photos())


def test_it_is_no_change_of_weights(bb, edit, tmp_path):
    from fromfew.io.export import export

    concept = find("perfusion")(**QUICK).learn(bb, few_photos())
    with pytest.raises(FromfewError, match="gated by what is read"):
        export(concept, bb, "full", tmp_path / "m")


def test_two_concepts_add_up(bb):
    refs = few_photos()
    one = find("perfusion")(**QUICK).learn(bb, refs)
    two = find("perfusion")(**QUICK).learn(bb, replace(few_photos(2, noun="dog"), placeholder="<w>"), seed=1)
    with bb.attach(one, two):
        both = predict(bb, prompt="a <v> cat and a <w> dog")
    with bb.attach(two, one):
        assert torch.allclose(predict(bb, prompt="a <v> cat and a <w> dog"), both, atol=1e-4)
