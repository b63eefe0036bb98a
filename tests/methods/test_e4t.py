from dataclasses import replace

import pytest
import torch

from fromfew.data import photo_batches
from fromfew.errors import FromfewError
from fromfew.fit import fit, generator, look
from fromfew.method import find
from fromfew.parts.encoded_word import EncodedWord
from fromfew.parts.offsets import Offsets
from fromfew.ports.part import Parts
from fromfew.ports.place import Place
from fromfew.testing.contract import few_photos, predict, quick
from fromfew.testing.tiny import tiny


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    bb = tiny("sd15")
    return bb, quick(find("e4t")(), bb, tmp_path_factory.mktemp("weights"))


def sources(bb):
    source = photo_batches(few_photos(), size=bb.default_size, batch=3, word="", variants=2)
    said = ["a cat", "a photo of a cat", "a lamp"]
    return lambda rng: replace(source(rng), captions=said, nouns=["cat", "cat", None])


def test_before_any_training_offsets_are_nothing_and_the_word_is_near_its_noun(ready):
    bb, method = ready
    modules = method.resolved(bb).fresh(bb)
    plain = predict(bb, prompt="a cat")
    with bb.attach(modules["offsets"]):
        assert torch.equal(predict(bb, prompt="a cat"), plain)
    word = modules["word"].holding(torch.randn(modules["word"].seen, generator=generator(0)), "<v>", "cat")
    with bb.attach(word):
        assert float((predict(bb, prompt="a <v>") - predict(bb, prompt="a cat")).norm()) < 0.5 * float(plain.norm())


def test_offsets_multiply_entries_by_one_plus_a_matrix_of_rank_three():
    part = Offsets({"map.weight": (12, 9)})
    for value in part.parameters():
        value.data.copy_(torch.randn(value.shape, generator=generator(1)))
    base = torch.randn(12, 9, generator=generator(2))
    factor = part.delta_of("map.weight", base) / base
    assert int(torch.linalg.matrix_rank(factor, rtol=1e-4)) == 3


def test_the_word_changes_with_time_and_with_what_was_seen(ready):
    bb, method = ready
    concept = method.learn(bb, few_photos())
    word = concept.parts.word
    early, late = word.at("one", [Place(t=0.9), Place(t=0.1)])
    assert not torch.allclose(early, late, atol=1e-5)
    other = word.holding(-word.features, "<v>", "cat")
    assert not torch.allclose(other.at("one", [Place(t=0.9)])[0], early, atol=1e-5)
    assert float(word.features.norm()) > 0


def test_a_stronger_pull_keeps_the_word_nearer_to_its_noun(ready):
    bb, method = ready
    sizes = []
    for pull in (0.0, 100.0):
        word = replace(method, pull=pull, steps=15).learn(bb, few_photos()).parts.word
        sizes.append(float(word.offset(torch.tensor([0.2, 0.5, 0.8])).norm()))
    assert sizes[1] < sizes[0]


def test_every_row_is_trained_beforehand_under_a_word_of_its_own(ready):
    bb, method = ready
    me = method.resolved(bb)
    modules = me.fresh(bb)
    stage = me.pretrain(bb, modules, sources(bb), steps=20, lr=1e-2)
    batch = stage.batches(generator(0))
    assert batch.captions == ["a <row0>", "a photo of a <row1>", "<row2>, a lamp"]
    parts = stage.attach(batch, generator(0))
    assert [parts.word0.start, parts.word1.start, parts.word2.start] == ["cat", "cat", "object"]
    assert parts.word0.net is modules["word"].net
    assert not torch.equal(parts.word0.features, parts.word1.features)
    began = {name: value.clone() for name, value in modules.state_dict().items()}
    before = look(bb, Parts(), stage, seed=3)
    fit(bb, Parts(), stage, rng=generator(0))
    moved = [name for name, value in modules.state_dict().items() if not torch.equal(value, began[name])]
    assert set(moved) == {name for name in began if name != "word.features"}
    assert look(bb, Parts(), stage, seed=3) < before


def test_tuning_begins_nearer_from_trained_modules_than_from_fresh_ones(ready, tmp_path):
    from fromfew.io.tensors import write_tensors

    bb, method = ready
    me = replace(method.resolved(bb), steps=3, lr=1e-4, prior=0.0)
    losses = []
    for steps in (0, 40):
        modules = me.fresh(bb)
        if steps:
            source = photo_batches(few_photos(), size=bb.default_size, batch=3, word="", variants=2)
            fit(bb, Parts(), me.pretrain(bb, modules, source, steps=steps, lr=1e-2), rng=generator(0))
        write_tensors(tmp_path / f"{steps}.safetensors", modules.state_dict())
        tuned = replace(me, weights=str(tmp_path / f"{steps}.safetensors"))
        parts = tuned.learn(bb, few_photos()).parts
        [stage] = tuned.stages(bb, few_photos(), parts)
        losses.append(look(bb, parts, replace(stage, train={}), seed=9, count=8))
    assert losses[1] < losses[0]


def test_a_word_for_another_base_is_refused_and_so_is_another_modifier():
    word = EncodedWord("<v>", "cat", {"one": 5}, 4)
    with pytest.raises(FromfewError, match="does not fit"):
        word.check(tiny("sd15"))
    with pytest.raises(FromfewError, match="modifier"):
        find("e4t")(modifier="rare")
    with pytest.raises(FromfewError, match="no weights for this base"):
        find("e4t")(steps=1).learn(tiny("sd15"), few_photos())
