from dataclasses import replace

import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator, look
from fromfew.method import find
from fromfew.parts._over import Over
from fromfew.parts.neurons import Neurons, Search
from fromfew.ports.linear import flat
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 1e-2, "prior": 0.0, "views": 2, "word_steps": 2, "word_lr": 1e-2}


class Shrunk(Over):
    """Entries shrink by given shares."""

    kind = "shrunk"

    def __init__(self, shapes, shares):
        super().__init__(shapes)
        self.shares = shares

    def delta_of(self, path, base):
        return -base * self.shares[flat(path)]

    def sources(self, path):
        return [self.shares[flat(path)]]


def scored(bb, **settings):
    """The gates after scoring, and the stage that scored."""
    from fromfew.fit import fit

    method = find("cones")(**QUICK | settings)
    parts = method.parts(bb, few_photos(), generator(0))
    [stage] = method.stages(bb, few_photos(), parts)
    fit(bb, parts, stage, rng=generator(0))
    return parts, stage


def test_scores_are_the_sum_of_entry_times_gradient():
    bb = tiny("sd15")
    parts, stage = scored(bb, steps=1)
    path = next(iter(parts.neurons.shapes()))
    fresh = Search.of(bb.select("text.key", "text.value"), 0.01)
    from fromfew.fit import _Loop
    from fromfew.ports.part import Parts

    seed = int(torch.randint(2**62, (1,), generator=generator(0)))
    loop = _Loop(bb, Parts(n=fresh), replace(stage, train={fresh: 1.0}), seed)
    with loop, bb.attach(parts.word, fresh):
        loop.loss(0).backward()
    gates = parts.neurons.gates[flat(path)]
    assert torch.allclose(gates, -QUICK["lr"] * fresh.gates[flat(path)].grad, atol=1e-9)
    assert bool(gates.any())


def test_the_best_entries_lower_the_loss_as_their_scores_say_and_others_do_not():
    bb = tiny("sd15")
    parts, stage = scored(bb, steps=1, lr=1.0)
    search = parts.neurons
    seed = int(torch.randint(2**62, (1,), generator=generator(0)))

    def loss(shares):
        part = Shrunk(search.shapes(), shares)
        with bb.attach(parts.word):
            return look(bb, type(parts)(word=parts.word, n=part), replace(stage, train={}), seed=seed, count=1)

    flatted = torch.cat([value.flatten() for value in search.gates.values()])
    bar = flatted.topk(100).values[-1]
    chosen = {name: (value >= bar) * 0.01 for name, value in search.gates.items()}
    said = 0.01 * float(flatted[flatted >= bar].sum())
    zero = {name: torch.zeros_like(value) for name, value in search.gates.items()}
    lowered = loss(zero) - loss(chosen)
    assert lowered == pytest.approx(said, rel=0.2)
    rng = generator(4)
    share = 100 / len(flatted)
    others = {name: (torch.rand(value.shape, generator=rng) < share) * 0.01 for name, value in zero.items()}
    assert abs(loss(zero) - loss(others)) < 0.5 * lowered


def test_what_is_shut_is_shut_while_scores_are_added_up():
    bb = tiny("sd15")
    concept = find("cones")(**QUICK, density=0.05)
    parts = concept.parts(bb, few_photos(), generator(0))
    path = next(iter(parts.neurons.shapes()))
    gates, base = parts.neurons.gates[flat(path)], bb.parameter(path)
    assert not parts.neurons.delta_of(path, base).any()
    with torch.no_grad():
        gates.copy_(torch.randn(gates.shape, generator=generator(1)) - 1.8)
    for _ in range(4):  # whatever the gates' size, to the bit
        with torch.no_grad():
            gates.mul_(0.3)
        delta = parts.neurons.delta_of(path, base)
        kept = Neurons.found(parts.neurons)
        assert torch.equal(delta, kept.delta_of(path, base))
    assert 0 < len(kept.places(path).unique()) < parts.neurons.count(path)  # fewer lie above 0 than may be shut
    delta.sum().backward()
    assert torch.equal(gates.grad, -base.detach())


def test_shut_entries_are_zero_and_all_others_the_bases():
    bb = tiny("sd15")
    concept = find("cones")(**QUICK, density=0.03).learn(bb, few_photos())
    part = concept.parts.neurons
    assert list(part.parameters()) == []
    for path in part.shapes():
        base = bb.parameter(path)
        new = base + part.delta_of(path, base)
        shut = torch.zeros(base.numel(), dtype=torch.bool)
        shut[part.places(path).long()] = True
        assert not new.flatten()[shut].any()
        assert torch.equal(new.flatten()[~shut], base.flatten()[~shut])
        assert 1 <= int(shut.sum()) <= max(1, round(0.03 * base.numel()))


def test_two_sets_join():
    bb = tiny("sd15")
    path = next(iter(bb.select("text.key")))
    maps = {path: bb.module(path)}
    sets = []
    for seed in (0, 1):
        search = Search.of(maps, 0.3)
        for value in search.gates.values():
            value.data.copy_(torch.randn(value.shape, generator=generator(seed)))
        sets.append(Neurons.found(search))
    both = torch.cat([part.places(f"{path}.weight").long() for part in sets]).unique()
    assert len(both) < sum(len(part.places(f"{path}.weight")) for part in sets)
    with bb.attach(*sets):
        predict(bb)
        layers = bb.module(path)._fromfew_layers["weight"]
        joined = layers.kept[1].flatten()
        one = predict(bb)
    with bb.attach(*reversed(sets)):
        assert torch.equal(predict(bb), one)
    rest = torch.ones(len(joined), dtype=torch.bool)
    rest[both] = False
    assert not joined[both].any()
    assert torch.equal(joined[rest], bb.parameter(f"{path}.weight").flatten()[rest])


def test_a_random_set_of_the_same_size_does_not_help_as_much():
    bb = tiny("sd15")
    parts, stage = scored(bb, steps=8, density=0.02)
    found = Neurons.found(parts.neurons)
    rng = generator(7)
    for value in parts.neurons.gates.values():
        value.data.copy_(torch.rand(value.shape, generator=rng))
    other = Neurons.found(parts.neurons)
    losses = [
        look(bb, type(parts)(word=parts.word, neurons=part), replace(stage, train={}), seed=5, count=8)
        for part in (found, other)
    ]
    assert losses[0] < losses[1]


def test_only_places_are_kept_and_a_density_out_of_range_is_refused(tmp_path):
    bb = tiny("sd15")
    concept = find("cones")(**QUICK).learn(bb, few_photos())
    state = concept.parts.state_dict()
    assert {value.dtype for value in state.values()} == {torch.int32}
    numbers = sum(bb.parameter(path).numel() for path in concept.parts.neurons.shapes())
    assert concept.card.bytes == pytest.approx(4 * 0.01 * numbers, rel=0.2)
    with pytest.raises(FromfewError, match="density"):
        find("cones")(density=0.0)


def test_a_learned_word_comes_first():
    bb = tiny("sd15")
    method = find("cones")(**QUICK, modifier="word")
    parts = method.parts(bb, few_photos(), generator(0))
    assert [stage.name for stage in method.stages(bb, few_photos(), parts)] == ["word", "score"]
