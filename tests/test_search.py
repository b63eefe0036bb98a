import pytest
import torch
from torch import nn

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.search import Evolution, Search, principal_directions, random_directions


def problem(seed=3):
    value = nn.Parameter(torch.ones(2, 8))
    directions = random_directions(value.shape, 5, 1.0, generator(1))
    goal = value.detach() + directions @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.5])
    return value, goal, Evolution(Search({value: directions}, population=8, spread=0.5), seed)


def run(value, goal, evolution, steps):
    return [evolution.step(lambda: float((value - goal).square().mean().detach())) for _ in range(steps)]


def test_it_finds_what_lies_in_its_space_without_a_gradient():
    value, goal, evolution = problem()
    losses = run(value, goal, evolution, 60)
    assert losses[-1] < 1e-3 * losses[0]
    assert torch.allclose(value, goal, atol=0.05)
    assert value.grad is None


def test_it_stays_in_its_space():
    value, _, evolution = problem()
    aside = torch.randn(2, 8, generator=generator(9))
    run(value, aside, evolution, 10)
    directions = next(iter(evolution.search.directions.values())).reshape(16, 5)
    moved = (value.detach() - 1).reshape(16)
    left = moved - directions @ torch.linalg.lstsq(directions, moved[:, None]).solution[:, 0]
    assert left.norm() < 1e-4 * moved.norm()


def test_told_the_same_losses_again_it_goes_on_with_the_same_bits():
    value, goal, evolution = problem()
    run(value, goal, evolution, 10)
    first, second = value.detach().clone(), None
    other, goal, again = problem()
    run(other, goal, again, 4)
    resumed, goal, third = problem()
    third.state[resumed] = {"told": again.state[other]["told"].clone()}
    run(resumed, goal, third, 6)
    second = resumed.detach()
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_random_directions_move_every_number_by_the_spread_asked_for():
    directions = random_directions(torch.Size([4, 100]), 64, 0.3, generator(0))
    moved = directions @ torch.randn(64, 200, generator=generator(1))
    assert 0.27 < moved.std() < 0.33


def test_principal_directions_are_the_tables_own_axes():
    spreads = torch.tensor([5.0, 1.0, 0.2, 0.1])
    table = torch.randn(2000, 4, generator=generator(0)) * spreads + 3
    directions = principal_directions(table, torch.Size([2, 4]), 4)
    assert torch.allclose(directions[0, :, :2].abs().amax(0), spreads[:2], rtol=0.1)
    assert torch.equal(directions[0, :, :2].abs().argmax(0), torch.tensor([0, 1]))
    assert torch.equal(directions[1, :, 2:], directions[0, :, :2])
    assert directions[0, :, 2:].abs().max() == 0
    with pytest.raises(FromfewError, match="give each 1 to 4"):
        principal_directions(table, torch.Size([2, 4]), 1)
