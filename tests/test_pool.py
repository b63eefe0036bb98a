import math

import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.io.tensors import write_tensors
from fromfew.pool import Pool, Scorer, worth


def test_chosen_and_waiting_are_always_a_partition_and_the_best_move():
    pool = Pool.of(12, 3)
    rng = generator(0)
    for cycle in range(4):
        before = list(pool.waiting)
        scores = torch.rand(len(before), generator=rng)
        taken = pool.take(scores, 10 * scores, 2, cycle / 4)
        assert taken == [before[i] for i in scores.topk(2).indices]
        assert sorted([*pool.labels, *pool.waiting]) == list(range(12))
    assert len(pool.labels) == 11


def test_labels_of_later_cycles_believe_the_score_more():
    pool = Pool.of(3, 1)
    pool.take(torch.tensor([2.0, 1.0]), torch.tensor([4.0, 4.0]), 1, 0.0)
    pool.take(torch.tensor([1.0]), torch.tensor([4.0]), 1, 0.5)
    assert pool.labels == {0: 10.0, 1: 10.0, 2: 7.0}


def test_the_true_ones_of_a_planted_pool_come_first():
    rng = generator(1)
    middle = torch.randn(24, generator=rng)
    true = middle + 0.7 * torch.randn(14, 24, generator=rng)
    false = torch.randn(10, 24, generator=rng)
    other = torch.randn(30, 24, generator=rng)
    photos = torch.cat([true[:4], torch.stack([false, true[4:]], 1).reshape(20, 24)])  # every second one is true
    taken = Pool.of(24, 4).grow(Scorer(24, (32, 16)), photos, other, 10, 0.0)
    assert sum((i - 4) % 2 == 1 for i in taken) >= 8


def test_the_same_seed_gives_the_same_heads_and_torchs_chance_is_untouched():
    x, y = torch.randn(8, 6, generator=generator(0)), torch.randn(8, 6, generator=generator(1))
    before = torch.get_rng_state()
    scores = []
    for seed in (0, 0, 1):
        scorer = Scorer(6, (8, 8), seed=seed)
        scorer.learn(x, y, torch.full((8,), 10.0), epochs=5)
        scores.append(scorer.match(x))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_a_predictor_of_quality_is_read_and_goes_on_learning(tmp_path):
    weight = torch.tensor([[10.0, 0.0, 0.0]])
    write_tensors(tmp_path / "judge.safetensors", {"weight": weight, "bias": torch.zeros(1)})
    scorer = Scorer(3, (4, 4), judge=str(tmp_path / "judge.safetensors"))
    seen = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0], [-1.0, 0.0, 0.0]])
    assert torch.allclose(scorer.quality(seen), torch.tensor([10.0, 0.0, 0.0]))
    scorer.learn(seen[1:2], seen[2:], torch.tensor([10.0]))
    assert scorer.quality(seen[1:2]).item() > 0
    assert torch.equal(Scorer(3, (4, 4)).quality(seen), torch.full((3,), 10.0))
    with pytest.raises(FromfewError, match="no predictor"):
        Scorer(5, (4, 4), judge=str(tmp_path / "judge.safetensors"))


def test_worth_needs_both():
    ten, none, half = torch.full((2,), 10.0), torch.zeros(2), torch.full((2,), 5.0)
    assert worth(ten, ten) == pytest.approx(10)
    assert worth(ten, none) == pytest.approx(0)
    assert worth(half, ten) == pytest.approx(10 * math.sin(math.pi / 4))
