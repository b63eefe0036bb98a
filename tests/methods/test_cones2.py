"""Cones 2: one vector on the noun's state, and nothing else."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fromfew.errors import FromfewError
from fromfew.fit import fit, generator
from fromfew.make import make
from fromfew.method import find
from fromfew.parts.record import Record
from fromfew.parts.residual import Residual
from fromfew.rows import Rows
from fromfew.testing.contract import check_part, few_photos
from fromfew.testing.tiny import tiny

LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)


@pytest.fixture(scope="module")
def bb():
    return tiny("sd15")


def quick(**how):
    return find("cones2")(**{"steps": 4, "batch": 2, "lr": 5e-3, **how})


def stirred(bb, placeholder, noun, seed):
    part = Residual.of(bb, placeholder, noun)
    with torch.no_grad():
        part.vectors["states"].copy_(torch.randn(part.vectors["states"].shape, generator=generator(seed)))
    return part.requires_grad_(False)


def states(bb, prompt, *parts):
    with torch.no_grad(), bb.attach(*parts):
        text = bb.embed([prompt])
    return text.states[0], text.words[0]


def test_without_a_vector_the_prompt_is_the_nouns_own(bb):
    nothing = Residual.of(bb, "<v>", "cat")
    assert torch.equal(states(bb, "a <v> cat on the beach", nothing)[0], states(bb, "a cat on the beach")[0])


def test_only_the_nouns_state_moves_and_by_the_vector(bb):
    part = stirred(bb, "<v>", "cat", 1)
    one, words = states(bb, "a <v> cat and a dog", part)
    two, _ = states(bb, "a cat and a dog")
    at = words["<v>"]
    assert at == words["cat"]
    moved = (one - two).norm(dim=1) > 0
    assert moved.nonzero().flatten().tolist() == at
    assert torch.allclose(one[at] - two[at], part.vectors["states"], atol=1e-6)
    assert torch.equal(states(bb, "a cat and a dog", part)[0], two)


def test_two_subjects_of_one_noun_have_their_own_places(bb):
    a, b = stirred(bb, "<a>", "cat", 1), stirred(bb, "<b>", "cat", 2)
    both, words = states(bb, "a <a> cat and a <b> cat", a, b)
    plain, _ = states(bb, "a cat and a cat")
    for part, name in ((a, "<a>"), (b, "<b>")):
        at = words[name]
        assert len(at) == 1
        assert torch.allclose((both - plain)[at], part.vectors["states"], atol=1e-6)
    assert words["<a>"] != words["<b>"]


def test_a_noun_of_several_tokens_moves_whole(bb):
    part = stirred(bb, "<v>", "xylophone", 1)
    assert part.tokens > 1
    one, words = states(bb, "a <v> xylophone", part)
    moved = ((one - states(bb, "a xylophone")[0]).norm(dim=1) > 0).nonzero().flatten().tolist()
    assert moved == list(range(words["<v>"][0], words["<v>"][0] + part.tokens))


def test_what_is_kept_is_one_vector_and_the_rest_of_the_text_was_held(bb):
    """Card 9: the first token's state stays (cosine above .99) while the noun's moves; the file holds one vector."""
    method = quick(steps=12).resolved(bb)
    refs = few_photos(2)
    parts = method.parts(bb, refs, generator(0))
    [stage] = method.stages(bb, refs, parts)
    fit(bb, parts, stage, rng=generator(0))
    tuned, words = states(bb, "a <v> cat", parts.word, parts.encoder)
    still, _ = states(bb, "a cat")
    assert float(F.cosine_similarity(tuned[0], still[0], dim=0)) > 0.99
    at = words["<v>"][0]
    assert float((tuned[at] - still[at]).norm()) > 5 * float((tuned[0] - still[0]).norm())
    kept = method.keep(bb, parts)
    assert kept.count() == still.shape[1]
    assert float(kept.word.vectors["states"].norm()) > 0
    concept = quick().learn(bb, refs)
    assert concept.card.learned == still.shape[1]
    assert concept.card.bytes == 4 * still.shape[1]


def test_holding_less_lets_the_rest_of_the_text_drift_more(bb):
    drift = {}
    for weight in (0.0, 1.0):
        method = quick(steps=8, hold_first=weight, hold_rest=weight).resolved(bb)
        refs = few_photos(2)
        parts = method.parts(bb, refs, generator(0))
        [stage] = method.stages(bb, refs, parts)
        assert len(stage.terms) == (3 if weight else 1)
        fit(bb, parts, stage, rng=generator(0))
        tuned, words = states(bb, "a <v> cat", parts.word, parts.encoder)
        rest = [0, *range(words["<v>"][0] + 1, len(tuned))]
        drift[weight] = float((tuned[rest] - states(bb, "a cat")[0][rest]).norm())
    assert drift[1.0] < drift[0.0]


def test_photos_are_learned_under_the_bare_noun(bb):
    method = quick().resolved(bb)
    refs = few_photos(2)
    [stage] = method.stages(bb, refs, method.parts(bb, refs, generator(0)))
    assert set(stage.batches(generator(0)).captions) == {"<v> cat"}


def test_layout_draws_the_noun_itself_into_its_region(bb):
    a, b = stirred(bb, "<a>", "cat", 1), stirred(bb, "<b>", "cat", 2)
    one, two = (replace(quick().learn(bb, few_photos(1)), placeholder=p.placeholder, parts=_parts(p)) for p in (a, b))
    prompt = "a <a> cat and a <b> cat"
    how = {"steps": 2, "region_method": "layout"}
    left = make(bb, prompt, [one, two], regions={"<a>": LEFT, "<b>": RIGHT}, **how).latents
    right = make(bb, prompt, [one, two], regions={"<a>": RIGHT, "<b>": LEFT}, **how).latents
    assert not torch.allclose(left, right, atol=1e-3)
    from fromfew.regions import _layout, read_regions

    regions = read_regions({"<a>": LEFT, "<b>": RIGHT}, {"<a>": "cat", "<b>": "cat"}, (32, 32), [prompt])
    layout = _layout(bb, regions, [(one, 1.0), (two, 1.0)], {"<a>": "cat", "<b>": "cat"})
    rows = Rows.of(torch.tensor([0]), ("cond",), torch.tensor(0.9))
    record = Record(("<a>", "<b>", "and"))
    with torch.no_grad(), bb.attach(a, b), bb.attach(layout), bb.attach(record) as there:
        text = bb.embed([prompt])
        bb.predict(torch.zeros(1, *bb.latent_shape()), rows.t, text, rows)
        maps = record.read(there, text)
    half = maps["<a>"].shape[-1] // 2
    assert float(maps["<a>"][0][:, half + 2 :].max()) < 1e-6 < float(maps["<a>"][0][:, : half - 2].min())
    assert float(maps["<b>"][0][:, : half - 2].max()) < 1e-6
    assert float(maps["and"].min()) > 1e-6


def _parts(part):
    from fromfew.ports.part import Parts

    return Parts(word=part)


def test_it_is_drawn_beside_concepts_of_other_methods(bb):
    own = quick(steps=2).learn(bb, few_photos(2))
    refs = replace(few_photos(2, noun="dog"), placeholder="<w>")
    for name in ("textual-inversion", "custom-diffusion"):
        other = find(name)(steps=2, batch=1, lr=1e-2, prior=0.0).learn(bb, refs)
        both = make(bb, "a <v> cat and a <w> dog", [own, other], steps=2).latents
        alone = make(bb, "a <v> cat and a dog", own, steps=2).latents
        assert bool(torch.isfinite(both).all())
        assert not torch.allclose(both, alone, atol=1e-3)


def test_settings_that_cannot_be_meant_are_refused(bb):
    for how, why in (({"modifier": "rare"}, "modifier"), ({"noun": False}, "noun on"), ({"hold_rest": -1}, "or more")):
        with pytest.raises(FromfewError, match=why):
            find("cones2")(**how)
    refs = few_photos(1)
    bare = replace(refs, noun=None, photos=tuple(replace(photo, caption="a thing") for photo in refs.photos))
    with pytest.raises(FromfewError, match="--noun"):
        quick().learn(bb, bare)
    with pytest.raises(FromfewError, match="tokens"):
        Residual("<v>", "cat", 8, tokens=0)
    wide = Residual("<v>", "cat", 999)
    with pytest.raises(FromfewError, match="999"):
        wide.check(bb)


def test_the_part_keeps_what_parts_promise(bb):
    check_part(stirred(bb, "<v>", "cat", 1), bb)
