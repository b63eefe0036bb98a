import pytest
import torch
from torch import nn

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.parts.full import FullDelta
from fromfew.parts.low_rank import LowRank
from fromfew.ports.linear import DeltaPart, flat
from fromfew.testing.contract import predict
from fromfew.testing.tiny import tiny


def stirred(part, scale=0.05):
    rng = generator(2)
    with torch.no_grad():
        for value in part.parameters():
            value.add_(torch.randn(value.shape, generator=rng) * scale)
    return part.requires_grad_(False)


def test_differences_over_one_parameter_sum():
    bb = tiny("sd15")
    path = next(iter(bb.select("text.value")))
    one, two = (stirred(FullDelta.of(bb, path)) for _ in range(2))
    both = FullDelta.of(bb, path).requires_grad_(False)
    for name in both.deltas:
        both.deltas[name].data = one.deltas[name] + 0.5 * two.deltas[name]
    with bb.attach(one), bb.attach(two, strength=0.5):
        summed = predict(bb)
    with bb.attach(both):
        assert torch.allclose(predict(bb), summed, atol=1e-6)


def test_differences_come_off_in_any_order_and_leave_no_trace():
    bb = tiny("sd15")
    plain = predict(bb)
    one, two = (bb.attach(stirred(FullDelta.of(bb, "denoiser"))) for _ in range(2))
    one.__enter__()
    two.__enter__()
    assert not torch.equal(predict(bb), plain)
    one.__exit__(None, None, None)
    predict(bb)
    two.__exit__(None, None, None)
    assert torch.equal(predict(bb), plain)
    assert not any(k.startswith("_fromfew") for m in bb.denoiser.modules() for k in m.__dict__)


def test_a_changed_difference_is_seen_at_once():
    bb = tiny("sd15")
    part = FullDelta.of(bb, "denoiser").requires_grad_(False)
    with bb.attach(part):
        before = predict(bb)
        stirred(part)
        assert not torch.equal(predict(bb), before)


def test_an_exception_in_a_module_leaves_its_parameter_in_place():
    bb = tiny("sd15")
    path = next(iter(bb.select("text.value")))
    with bb.attach(stirred(FullDelta.of(bb, path))), pytest.raises(RuntimeError):
        bb.module(path)(torch.zeros(1, 3))
    assert "weight" not in bb.module(path).__dict__


def test_a_low_rank_part_equals_its_own_weight_difference():
    bb = tiny("sd3")
    maps = bb.select("attention")
    thin = stirred(LowRank.of(maps, 3, 6.0, generator(0)))
    full = FullDelta({f"{path}.weight": m.weight.shape for path, m in maps.items()}).requires_grad_(False)
    for path in maps:
        full.deltas[f"{path}.weight".replace(".", "/")].data = thin.delta(path)
    with bb.attach(thin):
        one = predict(bb)
    with bb.attach(full):
        assert torch.allclose(predict(bb), one, atol=1e-4)


def test_a_part_of_another_shape_or_place_is_refused_before_anything_is_touched():
    small, other = tiny("sd15"), tiny("flux")
    part = LowRank.of(small.select("text.key"), 2, 2.0, generator(0))
    with pytest.raises(FromfewError, match="does not fit"), other.attach(part):
        pass
    path = next(iter(small.select("text.key")))
    with pytest.raises(FromfewError, match="learned on"), small.attach(LowRank({path: (3, 3)})):
        pass
    assert other.attached == []
    assert small.attached == []


class Doubled(DeltaPart):
    """A difference that is the base's own parameter, times a number."""

    kind = "doubled"

    def __init__(self, paths):
        super().__init__()
        self.paths, self.times = paths, nn.Parameter(torch.zeros(1))

    def shapes(self):
        return self.paths

    def delta_of(self, path, base):
        return base * self.times

    def config(self):
        return {"paths": self.paths}


def test_a_difference_may_depend_on_the_base_and_is_computed_once_while_nothing_changes(monkeypatch):
    bb = tiny("sd15")
    path = next(iter(bb.select("text.value"))) + ".weight"
    part = Doubled({path: tuple(bb.parameter(path).shape)}).requires_grad_(False)
    asked = []
    monkeypatch.setattr(Doubled, "delta_of", lambda self, path, base: asked.append(path) or base * self.times)
    plain = predict(bb)
    with bb.attach(part):
        assert torch.equal(predict(bb), plain)
        predict(bb)
        assert len(asked) == 1
        part.times.fill_(1.0)
        twice = predict(bb)
    full = FullDelta({path: bb.parameter(path).shape}).requires_grad_(False)
    full.deltas[flat(path)].copy_(bb.parameter(path))
    with bb.attach(full):
        assert torch.allclose(predict(bb), twice, atol=1e-6)
    with pytest.raises(FromfewError, match="delta_of"):
        part.delta(path)
    with pytest.raises(FromfewError, match="Unknown parameter"):
        bb.parameter(path.removesuffix("weight") + "wait")


def test_convolutions_have_a_name_of_their_own():
    bb = tiny("sd15")
    assert all(m.weight.dim() == 4 for m in bb.select("conv").values())
    assert not set(bb.select("conv")) & set(bb.select("all"))
