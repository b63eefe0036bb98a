"""Joining concepts learned apart: what every combiner keeps, and what tells each from a stub."""

import json
from dataclasses import replace

import pytest
import torch

from fromfew.cli import main
from fromfew.combine import combine, delta_at, deltas, listening
from fromfew.combiners.custom_diffusion import _called, _features, _plain, solve
from fromfew.combiners.gradient_fusion import _read_words, descended, fused, left
from fromfew.concept import Card, Concept, load
from fromfew.errors import FromfewError
from fromfew.fit import fit, generator, look
from fromfew.make import make
from fromfew.parts.full import FullDelta
from fromfew.parts.low_rank import LowRank
from fromfew.parts.word import Word
from fromfew.ports.part import Parts
from fromfew.registry import COMBINERS
from fromfew.testing.part_checks import state_of
from fromfew.testing.tiny import tiny

BOTH = "a <a> cat and a <b> dog"
ALL = ("text.key", "text.value", "self.value", "encoder.value")
QUICK = {
    "zip-lora": {"steps": 3, "pictures": 1, "drawing": 1}, "gradient-fusion": {"drawing": 2},
    "custom-diffusion": {"captions": 20},
}  # fmt: skip


@pytest.fixture(scope="module")
def bb():
    return tiny("sd15")


def concept(bb, placeholder, noun, seed, where=("text.key", "text.value"), whole=False, size=0.3):
    """A concept with a stirred word and a change of some maps, low-rank or whole."""
    rng = torch.Generator().manual_seed(seed)
    word = Word.learned(bb, placeholder, noun, 1, rng)
    maps = FullDelta.of(bb, *bb.select(*where)) if whole else LowRank.of(bb.select(*where), 2, 2.0, rng)
    with torch.no_grad():
        for vectors in word.vectors.values():
            vectors.add_(torch.randn(vectors.shape, generator=rng) * size)
        for value in (maps.deltas if whole else maps.up).values():
            value.copy_(torch.randn(value.shape, generator=rng) * size * (0.2 if whole else 1))
    card = Card("x", {}, {"name": bb.name, "family": bb.family, "fingerprint": bb.fingerprint()}, photos=(f"p{seed}",))
    return Concept(placeholder.strip("<>"), placeholder, noun, Parts(word=word, maps=maps).requires_grad_(False), card)


@pytest.fixture(scope="module")
def two(bb):
    return [concept(bb, "<a>", "cat", 1), concept(bb, "<b>", "dog", 2, whole=True)]


def drawn(bb, prompt, concepts):
    return make(bb, prompt, concepts, steps=2).latents


@pytest.mark.parametrize("method", COMBINERS.names())
def test_every_combiner_gives_an_ordinary_concept(bb, two, method, tmp_path):
    drawn(bb, BOTH, two)
    before = state_of(bb)
    one = combine(two, method=method, base=bb, **QUICK.get(method, {}))
    for what, value in state_of(bb).items():
        assert value == before[what], f"{what} changed"
    assert one.answers == {"<a>": "cat", "<b>": "dog"}
    assert one.card.method == f"combine {method}"
    assert one.card.photos == ("p1", "p2")
    assert [told["name"] for told in one.card.settings["concepts"]] == ["a", "b"]
    again = combine(two, method=method, base=bb, **QUICK.get(method, {}))
    state = one.parts.state_dict()
    assert all(torch.equal(value, again.parts.state_dict()[name]) for name, value in state.items())
    back = load(one.save(tmp_path / "c"))
    assert torch.equal(drawn(bb, BOTH, back), drawn(bb, BOTH, one))
    assert torch.equal(drawn(bb, "a cat", one.scaled(0)), drawn(bb, "a cat", ()))
    for alone in ("a <a> cat", "a <b> dog"):
        assert not torch.allclose(drawn(bb, alone, one), drawn(bb, alone, one.scaled(0)), atol=1e-2)


@pytest.mark.parametrize("method", COMBINERS.names())
def test_every_card_says_all_and_backbones_are_those(method):
    card, kind = COMBINERS.cards()[method], COMBINERS.find(method)
    assert card.keys() >= {"title", "arxiv", "year", "kind", "joins", "backbones", "adds"}
    assert kind.of(kind().settings()) == kind()
    assert "Departs" in str(kind.__doc__) or method == "weighted"
    others = {"sd15", "sd21", "sdxl", "sd3", "flux"} - set(card["backbones"])
    for name in sorted(others):
        other = tiny(name)
        with pytest.raises(FromfewError, match="reads text and picture together"):
            combine([concept(other, "<a>", "cat", 1), concept(other, "<b>", "dog", 2)], method=method, base=other)


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_the_general_combiners_work_on_other_families(name):
    bb = tiny(name)
    pair = [concept(bb, "<a>", "cat", 1), concept(bb, "<b>", "dog", 2)]
    for method in ("weighted", "gradient-fusion", "zip-lora"):
        one = combine(pair, method=method, base=bb, **QUICK.get(method, {}))
        assert bool(torch.isfinite(drawn(bb, BOTH, one)).all())


def test_what_cannot_be_joined_is_refused_with_a_reason(bb, two):
    with pytest.raises(FromfewError, match="both answer to <a>"):
        combine([two[0], two[0]], base=bb)
    other = replace(two[1], card=replace(two[1].card, base={**two[1].card.base, "fingerprint": "x"}))
    with pytest.raises(FromfewError, match="another base"):
        combine([two[0], other], base=bb)
    with pytest.raises(FromfewError, match="Unknown combiner 'wieghted'"):
        combine(two, method="wieghted", base=bb)
    with pytest.raises(FromfewError, match="Unknown setting of weighted"):
        combine(two, base=bb, means=True)
    wide = concept(bb, "<c>", "boat", 3, where=ALL)
    with pytest.raises(FromfewError, match="only maps that read text"):
        combine([two[0], wide], method="custom-diffusion", base=bb)
    bare = [replace(one, parts=Parts(word=one.parts.word)) for one in two]
    with pytest.raises(FromfewError, match="none of them changes a weight"):
        combine(bare, method="zip-lora", base=bb)
    assert combine(bare, base=bb).answers == {"<a>": "cat", "<b>": "dog"}


def test_weighted_is_what_attaching_both_is(bb, two):
    three = [*two, concept(bb, "<c>", "boat", 3, where=ALL)]
    pairs = [(three[0], 0.5), (three[1], 1.0), (three[2], 0.25)]
    whole_words = [(replace(one, parts=Parts(word=one.parts.word)), 1.0) for one, _ in pairs]
    maps = [(replace(one, parts=Parts(maps=one.parts.maps)), strength) for one, strength in pairs]
    one = combine(pairs, base=bb)
    assert torch.allclose(drawn(bb, BOTH, one), drawn(bb, BOTH, [*whole_words, *maps]), atol=2e-4)
    mean = combine(pairs, base=bb, mean=True)
    path = deltas(three)[0]
    assert torch.allclose(delta_at(bb, mean, path) * 3, delta_at(bb, one, path), atol=1e-6)


def test_thin_changes_stay_thin(bb, two):
    one = combine([two[0], concept(bb, "<c>", "boat", 3)], base=bb)
    assert {part.kind for part in one.parts} == {"word", "low_rank"}
    assert one.card.bytes < combine(two, base=bb).card.bytes


def test_the_closed_form_holds_its_constraint_and_is_the_least_change(bb, two):
    """Card 5: max |W Cᵀ - Vᵀ| < 1e-4, and any other feasible map changes what plain captions say by more."""
    paths = deltas(two)
    modules = [path.removesuffix(".weight") for path in paths]
    with torch.no_grad():
        plain = _features(bb, modules, _plain(60), None)
        own = [_features(bb, modules, _called(one), one) for one in two]
    merged = combine(two, method="custom-diffusion", base=bb, captions=60)
    for path, module in zip(paths, modules, strict=True):
        w0 = bb.parameter(path).double()
        change = delta_at(bb, merged, path).double()
        c = torch.cat([one[module] for one in own])
        v = torch.cat([one[module] @ (w0 + delta_at(bb, w, path)).T for one, w in zip(own, two, strict=True)])
        assert float(((w0 + change) @ c.T - v.T).abs().max()) < 1e-4
        z = torch.randn(w0.shape, generator=generator(3)).double()
        z = z - z @ torch.linalg.pinv(c) @ c  # Z Cᵀ = 0
        assert float((z @ c.T).abs().max()) < 1e-6
        least = (change @ plain[module].T).norm()
        for size in (1e-2, -1e-2, 1.0):
            assert float(((change + size * z) @ plain[module].T).norm()) > float(least)


def test_the_merge_of_one_concept_says_of_its_word_what_it_said(bb, two):
    c = torch.randn(3, 5, generator=generator(1)).double()
    w0, w1 = torch.zeros(4, 5).double(), torch.randn(4, 5, generator=generator(2)).double()
    plain = torch.randn(50, 5, generator=generator(4)).double()
    change = solve(w0, plain, [torch.cat([c, c])], [w1])  # rows given twice count once
    assert torch.allclose(change @ c.T, w1 @ c.T, atol=1e-8)


def moments(bb, one, path, prompt):
    rows, where = [], [path.removesuffix(".weight")]
    with torch.no_grad(), listening(bb, where, lambda p, x: rows.append(x.reshape(-1, x.shape[-1]))):
        make(bb, prompt, one, guidance=1.0, steps=2)
    return torch.cat(rows)


def test_fusing_one_concept_is_that_concept_and_two_leave_less_than_their_mean(bb):
    """Card 10: relative residual below 1e-3 for one; below that of the weight average for two, everywhere."""
    one, other = concept(bb, "<a>", "cat", 1, where=ALL), concept(bb, "<b>", "dog", 2, where=ALL)
    alone = combine([one], method="gradient-fusion", base=bb, drawing=2, ridge=0.0)
    both = combine([one, other], method="gradient-fusion", base=bb, drawing=2, ridge=0.0)
    paths = [path for path in deltas([one]) if "attn1" in path]
    assert paths
    for path in paths:
        xs = [moments(bb, c, path, f"photo of a {c.placeholder} {c.noun}") for c in (one, other)]
        d1, d2 = (delta_at(bb, c, path) for c in (one, other))
        w0 = bb.parameter(path)
        y = xs[0] @ (w0 + d1).T
        assert float((xs[0] @ (w0 + delta_at(bb, alone, path)).T - y).norm() / y.norm()) < 1e-3

        def residual(change, xs=xs, d1=d1, d2=d2):
            return sum(float((x @ (change - d).T).square().sum()) for x, d in zip(xs, (d1, d2), strict=True))

        assert residual(delta_at(bb, both, path)) < residual((d1 + d2) / 2)


def test_closed_form_and_descent_answer_alike():
    rng = torch.Generator().manual_seed(0)
    xs = [torch.randn(7, 6, generator=rng).double() for _ in range(2)]
    wanted = [torch.randn(4, 6, generator=rng).double() for _ in range(2)]
    grams = [x.T @ x for x in xs]
    closed, gone_down = fused(wanted, grams), descended(wanted, grams, 500)
    assert torch.allclose(left(closed, wanted, grams), left(gone_down, wanted, grams), rtol=1e-4)
    # Where the features never go, the base's weights are kept.
    thin = [x[:1].T @ x[:1] for x in xs]
    change = fused(wanted, thin)
    never = torch.linalg.svd(torch.cat([x[:1] for x in xs])).Vh[2:]
    assert float((change @ never.T).abs().max()) < 1e-8


def test_a_ridge_keeps_changes_small_where_concepts_hardly_differ_and_both_solvers_heed_it():
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(3, 6, generator=rng).double()
    xs = [x, x + 1e-3 * torch.randn(3, 6, generator=rng).double()]  # two words that are nearly one
    wanted = [torch.randn(4, 6, generator=rng).double() for _ in range(2)]
    grams = [one.T @ one for one in xs]
    free, held = fused(wanted, grams), fused(wanted, grams, 0.01)
    assert float(free.norm()) > 20 * float(held.norm())
    mean = torch.stack(wanted).mean(0)
    assert torch.allclose(held @ x.T, mean @ x.T, atol=0.1), "what both are asked alike is answered by their mean"
    assert torch.allclose(descended(wanted, grams, 500, 0.01), held, atol=1e-4)


def test_fusion_by_descent_is_an_option(bb, two):
    how = {"solver": "lbfgs", "iterations": 60, "drawing": 2, "ridge": 0.0}
    one = combine(two, method="gradient-fusion", base=bb, **how)
    closed = combine(two, method="gradient-fusion", base=bb, drawing=2, ridge=0.0)
    fusion, path = COMBINERS.find("gradient-fusion")(), deltas(two)[0]
    with torch.no_grad():
        grams = [fusion._moments(bb, c, [path], _read_words, {}, 0)[path] for c in two]
    wanted = [delta_at(bb, c, path).double() for c in two]
    least, most = left(delta_at(bb, closed, path).double(), wanted, grams), left(wanted[0] * 0, wanted, grams)
    assert least <= left(delta_at(bb, one, path).double(), wanted, grams) < least + 0.05 * (most - least)
    with pytest.raises(FromfewError, match="Unknown solver"):
        combine(two, method="gradient-fusion", base=bb, solver="magic")


def test_zip_begins_as_the_plain_sum_and_parts_the_columns(bb):
    pair = [concept(bb, "<a>", "cat", 1, where=ALL), concept(bb, "<b>", "dog", 2, where=ALL)]
    zipper = COMBINERS.find("zip-lora")(steps=30, lr=0.05, overlap=1.0, pictures=1, drawing=2)
    zipped = zipper.zipped(bb, pair)
    for path in deltas(pair):
        total = delta_at(bb, pair[0], path) + delta_at(bb, pair[1], path)
        assert torch.allclose(zipped.delta(path), total, atol=1e-6)
    began = float(zipped.overlap())
    stage = zipper.stage(bb, pair, zipped, 0)
    own = replace(stage, terms=stage.terms[:1])
    before = look(bb, Parts(), own, seed=5)
    fit(bb, Parts(), stage, rng=generator(0))
    assert float(zipped.overlap()) < 0.5 * began
    assert look(bb, Parts(), own, seed=5) < before


def test_without_overlap_zipping_only_fits_each_alone(bb):
    pair = [concept(bb, "<a>", "cat", 1), concept(bb, "<b>", "dog", 2)]
    zipper = COMBINERS.find("zip-lora")(steps=20, lr=0.05, overlap=0.0, pictures=1, drawing=2)
    zipped = zipper.zipped(bb, pair)
    stage = zipper.stage(bb, pair, zipped, 0)
    assert len(stage.terms) == 1
    before = look(bb, Parts(), stage, seed=5)
    fit(bb, Parts(), stage, rng=generator(0))
    assert look(bb, Parts(), stage, seed=5) < before


def test_the_command_line_joins_lists_and_refuses(bb, two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for one in two:
        one.save(tmp_path / one.name)
    assert main(["combine", "a:0.5", "b", "--out", "both", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answers"] == {"<a>": "cat", "<b>": "dog"}
    assert load(tmp_path / "both").card.settings["concepts"][0]["strength"] == 0.5
    assert "a <a> cat and a <b> dog" in said["next"]
    assert main(["make", BOTH, "--with", "both", "--steps", "1", "-n", "1", "--out", "o"]) == 0
    assert main(["show", "both"]) == 0
    assert "combine weighted" in capsys.readouterr().out
    for words, why in (
        (["a", "b", "--out", "both"], "--replace"), (["a", "--out", "x"], "two or more"), (["a", "b"], "--out"),
        (["a", "b", "--out", "a", "--replace"], "one of the concepts"), (["a", "a", "--out", "x"], "both answer"),
        (["a", "b", "--method", "zipp-lora", "--out", "x"], "zip-lora"), (["a", "c", "--out", "x"], "does not exist"),
    ):  # fmt: skip
        assert main(["combine", *words]) == 2
        assert why in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
    assert main(["combine", "--list"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in COMBINERS.names())
    assert main(["combine", "--method", "zip-lora", "--help"]) == 0
    assert "--overlap" in capsys.readouterr().out
