"""Learning that watches itself: deterministic, without side effects, stopping by rules worked out by hand."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import fromfew.fit as fitting
from fromfew.errors import FromfewError
from fromfew.method import find
from fromfew.testing.tiny import tiny
from fromfew.watching import Look, Watcher, level, settled, split
from fromfew.world.reference import references


@pytest.fixture(scope="module")
def bb():
    return tiny("sd15")


def refs(n=2):
    return references("raccoon", n=n)


def learn(bb, watch=None, **settings):
    chosen = {"steps": 6, "batch": 1, "lr": 0.05, "views": 1} | settings
    return find("textual-inversion").of(chosen).learn(bb, refs(), seed=1, watch=watch)


def test_four_photos_or_more_give_one_up_to_be_watched_and_fewer_are_mirrored():
    learned, held = split(refs(5))
    assert (len(learned), len(held)) == (4, 1)
    assert not set(learned.hashes) & set(held.hashes)
    learned, held = split(refs(2))
    assert (len(learned), len(held)) == (2, 2)
    assert held.photos[0].image.tobytes() != learned.photos[0].image.tobytes()


def test_the_dvar_rule_fires_at_the_first_step_worked_out_by_hand():
    losses = [1.0] + [0.1] * 20
    fired = [n for n in range(1, 21) if settled(losses[:n], window=4, ratio=0.15)]
    assert fired[0] == 5  # four equal values after the drop: variance 0 in the window
    noise = torch.randn(400, generator=torch.Generator().manual_seed(0)).tolist()
    assert not any(settled(noise[:n], window=310, ratio=0.15) for n in range(1, 401))
    assert not settled([0.5] * 50, window=4, ratio=0.15)


def test_rates_that_would_fall_to_an_end_stay_level_at_half_unless_the_user_chose():
    world = SimpleNamespace(name="world")
    usual, chosen = find("custom-diffusion")().resolved(world), level(find("custom-diffusion")(), world)
    assert (usual.schedule, chosen.schedule) == ("cosine", "constant")
    assert (chosen.lr, chosen.word_lr) == (usual.lr / 2, usual.word_lr / 2)
    assert chosen.steps == usual.steps
    asked = find("custom-diffusion")(schedule="cosine", lr=0.5)
    assert level(asked, world) == asked.resolved(world)
    flat = find("custom-diffusion")()
    assert level(flat, SimpleNamespace(name="other")) == flat.resolved(SimpleNamespace(name="other"))


def test_looking_twice_gives_the_same_numbers(bb):
    probe = Watcher(bb, refs()).probe
    assert probe.look(1) == probe.look(1)


def test_fidelity_is_that_to_learned_views_and_the_gap_says_how_much_worse_held_out_ones_are_known(bb):
    learned, held = split(refs(5))
    alone, both = Watcher(bb, held).probe, Watcher(bb, held, learned).probe
    assert [len(alone.said), len(both.said)] == [4, 20]
    assert torch.equal(alone.xt[:4], both.xt[:4]), "what is held out is looked at with the same noise"
    assert alone.look(0).gap == 0
    concept = learn(bb)
    with bb.attach(*concept.parts):
        one, two = alone.look(6), both.look(6)
    assert two.gap == pytest.approx(two.fidelity - one.fidelity, abs=1e-5)
    assert two.fidelity != pytest.approx(one.fidelity, abs=1e-5)


def test_views_are_asked_by_their_own_captions_where_they_have_some(bb):
    told = replace(refs(5), photos=tuple(replace(one, caption="an animal in the snow") for one in refs(5).photos))
    learned, held = split(told)
    assert set(Watcher(bb, held, learned).probe.said) == {"an <v> animal in the snow"}
    bare = replace(told, photos=tuple(replace(one, caption=None) for one in told.photos))
    assert set(Watcher(bb, *reversed(split(bare))).probe.said) == {"a <v> animal"}


def test_the_base_alone_is_fully_obedient_and_has_not_drifted(bb):
    look = Watcher(bb, refs()).probe.look(0)
    assert look.drift == pytest.approx(0, abs=1e-9)
    assert -1 <= look.alignment <= 1


def test_watching_does_not_change_what_is_learned(bb):
    seen = []
    plain = learn(bb, watch=lambda done, total, note="": seen.append(note))
    noted = []
    watcher = Watcher(bb, refs(), every=2, patience=99, fall=0, inner=lambda done, total, note="": noted.append(note))
    learn(bb, watch=watcher)
    assert [n.partition(",")[0] for n in noted] == seen
    assert [look.step for look in watcher.looks] == [2, 4, 6]
    assert plain.card.steps == 6


def test_the_best_state_is_what_the_concept_holds(bb):
    watcher = Watcher(bb, refs(), every=1, patience=99)
    concept = learn(bb, watch=watcher)
    assert watcher.best == max(watcher.looks, key=lambda look: look.score)
    held = list(concept.parts.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(held, watcher.kept[0].values(), strict=True))
    assert f"after step {watcher.best.step}" in watcher.sentence


def test_nothing_better_for_long_enough_ends_learning_early(bb, monkeypatch):
    def watched(fall, *scores):
        watcher, told = Watcher(bb, refs(), every=1, patience=2, gain=0.2, fall=fall), iter(scores)
        monkeypatch.setattr(watcher.probe, "look", lambda step: Look(step, 1.0, next(told), 1.0, 0.0))
        return watcher, learn(bb, watch=watcher, steps=50)

    watcher, concept = watched(0, 0.1, 0.3, 0.4, 0.5, 0.6, 0.4)
    assert (watcher.best.step, concept.card.steps) == (5, 6), "(.6 + .4) is 1.11 of (.4 + .5), (.6 + .5) was 1.57"
    assert "the 2 looks up to step 6 were hardly better than those before" in watcher.sentence
    # The rates fall over 0.4 of six steps; what comes of it is kept unless it is worse by a fifth.
    watcher, concept = watched(0.4, 0.1, 0.3, 0.4, 0.5, 0.6, 0.4, 0.5, 0.51)
    assert (watcher.best.step, concept.card.steps) == (8, 8)
    assert "up to step 6 were hardly better than those before, and the rates fell to 0 up to step 8" in watcher.sentence
    watcher, concept = watched(0.4, 0.1, 0.3, 0.4, 0.5, 0.6, 0.4, 0.4, 0.49)
    assert (watcher.best.step, concept.card.steps) == (5, 8)
    watcher, concept = watched(0.4, 0.1, 0.3, 0.4, 0.5, 0.6, 0.4, 0.55, 0.54)
    assert (watcher.best.step, concept.card.steps) == (7, 8), "those that fell are compared as they are"


def test_rates_fall_so_that_they_end_with_the_steps_where_the_rule_never_speaks(bb):
    watcher, totals = Watcher(bb, refs(), every=2, patience=99, fall=0.5), []
    watcher.inner = lambda done, total, note="": totals.append((done, total))
    learn(bb, watch=watcher, steps=12)
    assert watcher.end == 12
    assert totals[-1] == (12, 12)
    assert "all steps were done, and the rates fell to 0 up to step 12" in watcher.sentence


def test_a_run_killed_between_two_looks_sees_the_same_again(bb, tmp_path):
    straight = Watcher(bb, refs(), every=2, patience=99)
    whole = learn(bb, watch=straight)

    def dies(done, total, note=""):
        if done == 5:
            raise KeyboardInterrupt

    method = find("textual-inversion").of({"steps": 6, "batch": 1, "lr": 0.05, "views": 1})
    kept = partial(fitting.fit, every=0.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "fit", kept)
        with pytest.raises(KeyboardInterrupt):
            method.learn(bb, refs(), seed=1, watch=Watcher(bb, refs(), every=2, inner=dies), work=tmp_path)
    again = Watcher(bb, refs(), every=2, patience=99)
    concept = method.learn(bb, refs(), seed=1, watch=again, work=tmp_path)
    assert again.looks == straight.looks
    assert again.sentence == straight.sentence
    pairs = zip(whole.parts.state_dict().values(), concept.parts.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_look_that_was_interrupted_is_looked_again(bb, tmp_path, monkeypatch):
    method = find("textual-inversion").of({"steps": 6, "batch": 1, "lr": 0.05, "views": 1})
    straight = Watcher(bb, refs(), every=2, patience=99)
    method.learn(bb, refs(), seed=1, watch=straight)
    torn = Watcher(bb, refs(), every=2, patience=99)
    monkeypatch.setattr(torn, "_better", lambda look: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        method.learn(bb, refs(), seed=1, watch=torn, work=tmp_path)
    assert torn.looks, "it was interrupted after it had noted what it saw"
    again = Watcher(bb, refs(), every=2, patience=99)
    method.learn(bb, refs(), seed=1, watch=again, work=tmp_path)
    assert again.looks == straight.looks


def test_a_stage_that_was_stopped_early_is_not_gone_on_with(bb, tmp_path):
    first = Watcher(bb, refs(), every=1, patience=1, gain=99.0)
    method = find("textual-inversion").of({"steps": 12, "batch": 1, "lr": 0.05, "views": 1})
    concept = method.learn(bb, refs(), seed=1, watch=first, work=tmp_path)
    assert concept.card.steps < 12
    heard = []
    again = Watcher(bb, refs(), every=1, patience=1, gain=99.0, inner=lambda *what: heard.append(what))
    same = method.learn(bb, refs(), seed=1, watch=again, work=tmp_path)
    assert heard == []
    assert (same.card.steps, same.card.loss, same.card.seconds) == (
        concept.card.steps, concept.card.loss, concept.card.seconds,
    )  # fmt: skip
    assert again.sentence == first.sentence
    pairs = zip(concept.parts.state_dict().values(), same.parts.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_unknown_rules_and_a_dressed_base_are_refused(bb):
    with pytest.raises(FromfewError, match="rule"):
        Watcher(bb, refs(), rule="fronts")
    concept = learn(bb, steps=1)
    with bb.attach(concept), pytest.raises(FromfewError, match="attached"):
        Watcher(bb, refs())
