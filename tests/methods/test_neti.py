import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator, look
from fromfew.make import make
from fromfew.method import find
from fromfew.parts.word_mapper import WordMapper
from fromfew.ports.place import Place, layers_of
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 2e-2, "frequencies": 16, "hidden": 12}
PLACES = [Place(layer, t) for layer in range(4) for t in (0.05, 0.5, 0.95)]


def test_the_network_has_the_size_of_the_papers_on_stable_diffusion():
    with torch.device("meta"):
        word = WordMapper("<v>", "cat", {"one": 0.4}, {"one": 768}, 16)
    assert sum(value.numel() for value in word.parameters()) == 563_616


@pytest.mark.parametrize("base", ["sd15", "sdxl"])
def test_vector_and_bypass_together_have_the_nouns_norm(base):
    bb = tiny(base)
    concept = find("neti")(**QUICK).learn(bb, few_photos())
    word = concept.parts.word
    for key, encoder in bb.text_encoders.items():
        noun = encoder.embedding.weight[word.carriers(encoder.tokenizer)[0]].norm()
        both = torch.cat(word.outputs(PLACES)[key], -1).norm(dim=-1)
        assert torch.allclose(both, noun.expand(len(both)), rtol=1e-5)


def test_it_begins_near_the_noun():
    bb = tiny("sd15")
    word = find("neti")(**QUICK).parts(bb, few_photos(), generator(0)).word
    encoder = bb.text_encoders["one"]
    noun = encoder.embedding.weight[word.carriers(encoder.tokenizer)[0]]
    assert torch.cosine_similarity(word.at("one", PLACES)[:, 0], noun[None]).min() > 0.6


def test_it_differs_by_layer_and_by_time():
    bb = tiny("sd15")
    word = find("neti")(**QUICK).learn(bb, few_photos()).parts.word
    vectors = word.at("one", PLACES)[:, 0]
    assert len({tuple(row.tolist()) for row in vectors}) == len(PLACES)
    assert len(PLACES) == 3 * len(layers_of(bb))


def test_with_no_units_left_it_is_the_same_everywhere_and_loss_is_no_lower():
    bb, refs = tiny("sd15"), few_photos()
    method = find("neti")(**{**QUICK, "steps": 40, "dropout": 0.0})
    concept = method.learn(bb, refs)
    none = concept.parts.word.truncated(0).at("one", PLACES)[:, 0]
    assert torch.allclose(none, none[:1].expand_as(none), atol=1e-6)
    stage = next(iter(method.stages(bb, refs, concept.parts)))
    whole = look(bb, concept.parts, stage, seed=1, count=6)
    concept.parts.word.units = 0
    assert look(bb, concept.parts, stage, seed=1, count=6) > whole


def test_dropping_units_happens_while_learning_only():
    bb, refs = tiny("sd15"), few_photos()
    parts = find("neti")(**QUICK).parts(bb, refs, generator(0))
    stage = next(iter(find("neti")(**QUICK, dropout=1.0).stages(bb, refs, parts)))
    kept = set()
    for step in range(20):
        stage.attach(None, generator(step))
        kept.add(parts.word.drop)
    assert all(0 <= one < 12 for one in kept)
    assert len(kept) > 5
    parts.word.drop = 0
    dropped, whole = parts.word.train().at("one", PLACES), parts.word.eval().at("one", PLACES)
    assert not torch.allclose(dropped, whole)


def test_units_travel_with_the_concept(tmp_path):
    from fromfew.concept import Concept

    bb = tiny("sd15")
    concept = find("neti")(**QUICK, units=3).learn(bb, few_photos())
    loaded = Concept.load(concept.save(tmp_path / "c"))
    assert loaded.parts.word.units == 3
    drawn = [make(bb, "a <v> cat", one, steps=1).latents for one in (concept, loaded)]
    assert torch.equal(*drawn)
    free = make(bb, "a <v> cat", concept.parts.word.truncated(None), steps=1).latents
    assert not torch.equal(drawn[0], free)


def test_without_the_word_predictions_are_the_bases_bit_for_bit():
    bb = tiny("sd15")
    concept = find("neti")(**QUICK).learn(bb, few_photos())
    plain = predict(bb, prompt="a dog")
    with bb.attach(concept):
        assert torch.equal(predict(bb, prompt="a dog"), plain)
        assert not torch.equal(predict(bb, prompt="a <v>"), plain)


def test_it_is_drawn_beside_a_word_of_textual_inversion():
    from dataclasses import replace

    bb = tiny("sd15")
    one = find("neti")(**QUICK).learn(bb, few_photos())
    refs = replace(few_photos(noun="dog"), placeholder="<w>")
    two = find("textual-inversion")(steps=4, batch=2, lr=2e-2).learn(bb, refs)
    both, alone = (make(bb, "a <v> cat, a <w> dog", c, steps=2).latents for c in ([one, two], [one, two.scaled(0)]))
    assert not torch.equal(both, alone)


def test_bad_settings_are_refused():
    for how, why in (({"units": 200}, "units is 0"), ({"dropout": 2.0}, "dropout is"), ({"hidden": 0}, "hidden is")):
        with pytest.raises(FromfewError, match=why):
            find("neti")(**how)
