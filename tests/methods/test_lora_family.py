"""LoRA's relatives change weights as PEFT's own layers do, for the same numbers."""

import peft
import pytest
import torch
from torch import nn

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.method import find
from fromfew.parts.channels import Channels
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.kronecker import Kronecker, factors
from fromfew.parts.low_rank_conv import LowRankConv
from fromfew.parts.rotation import Rotation, butterfly, cayley
from fromfew.parts.weight_decomposed import WeightDecomposed
from fromfew.ports.linear import flat
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 2e-2, "encoder_lr": 2e-2, "views": 2}
FAMILY = ("loha", "lokr", "dora", "ia3", "oft", "boft")
NAME = flat("map.weight")


class Net(nn.Module):
    """One map named "map", linear or a convolution."""

    def __init__(self, conv=False):
        super().__init__()
        rng = torch.Generator().manual_seed(1)
        self.map = nn.Conv2d(12, 16, 3, padding=1) if conv else nn.Linear(24, 16)
        with torch.no_grad():
            for value in self.map.parameters():
                value.copy_(torch.randn(value.shape, generator=rng) * 0.3)

    def forward(self, x):
        return self.map(x)


def stirred(part, by=0.2):
    rng = generator(5)
    with torch.no_grad():
        for value in part.parameters():
            value.add_(torch.randn(value.shape, generator=rng) * by)
    return part.requires_grad_(False)


def peft_layer(config, numbers, conv=False):
    """PEFT's layer over the map, its adapter filled with these numbers."""
    model = peft.get_peft_model(Net(conv), config)
    state = {name: value for name, value in model.named_parameters() if ".default" in name or "magnitude" in name}
    for name, value in numbers.items():
        [key] = [one for one in state if f".{name}." in one or one.endswith(f".{name}.default")]
        assert state[key].shape == value.shape, (name, state[key].shape, value.shape)
        state[key].data.copy_(value)
    return model.eval()


def ours(part, conv=False):
    """The map with our change of its weight (and bias) laid over it."""
    net = Net(conv)
    for path in part.shapes():
        value = net.get_parameter(path)
        value.data.add_(part.delta_of(path, Net(conv).get_parameter(path)))
    return net


def same(part, config, numbers, conv=False):
    x = torch.randn(3, 12, 5, 5, generator=generator(6)) if conv else torch.randn(3, 24, generator=generator(6))
    layer = peft_layer(config, numbers, conv)
    with torch.no_grad():
        there, here, plain = layer(x), ours(part, conv)(x), Net(conv)(x)
    assert torch.allclose(there, here, atol=1e-4), float((there - here).abs().max())
    assert not torch.allclose(here, plain, atol=1e-2)


@pytest.mark.parametrize("conv", [False, True])
def test_loha_is_pefts_with_the_scale_once(conv):
    part = stirred(Hadamard.of({"map": Net(conv).map}, 4, 8.0, generator(0)))
    one = part.own("map.weight")
    names = {"hada_w1_a": "up1", "hada_w1_b": "down1", "hada_w2_a": "up2", "hada_w2_b": "down2"}
    config = peft.LoHaConfig(r=4, alpha=8, target_modules=["map"])
    same(part, config, {key: one[value] for key, value in names.items()}, conv)


@pytest.mark.parametrize("conv", [False, True])
def test_lokr_is_pefts_with_the_scale_once(conv):
    part = stirred(Kronecker.of({"map": Net(conv).map}, 1, 2.0, generator(0)))
    one = part.own("map.weight")
    numbers = {"lokr_w1": one["small"], "lokr_w2_a": one["up"], "lokr_w2_b": one["down"]}
    same(part, peft.LoKrConfig(r=1, alpha=2, target_modules=["map"]), numbers, conv)


def test_lokr_with_a_whole_second_factor_is_pefts_at_scale_one():
    part = stirred(Kronecker.of({"map": Net().map}, 8, 4.0, generator(0)))
    one = part.own("map.weight")
    config = peft.LoKrConfig(r=8, alpha=8, target_modules=["map"])
    same(part, config, {"lokr_w1": one["small"], "lokr_w2": one["whole"]})


def test_lokr_is_a_kronecker_product_of_divisors():
    part = stirred(Kronecker.of({"map": Net().map}, 1, 1.0, generator(0)))
    one = part.own("map.weight")
    assert torch.allclose(part.delta("map.weight"), torch.kron(one["small"], one["up"] @ one["down"]), atol=1e-6)
    from peft.tuners.lokr.layer import factorization

    for size in (12, 32, 127, 320, 768, 1280):
        for most in (-1, 2, 4, 7, 8, 16):
            assert factors(size, most) == factorization(size, most), (size, most)


def test_loha_reaches_ranks_beyond_its_own():
    wide = nn.Linear(64, 64)
    part = stirred(Hadamard.of({"map": wide}, 4, 4.0, generator(0)))
    assert 8 < int(torch.linalg.matrix_rank(part.delta("map.weight"))) <= 16


@pytest.mark.parametrize("conv", [False, True])
def test_dora_is_pefts(conv):
    part = stirred(WeightDecomposed.of({"map": Net(conv).map}, 4, 8.0, generator(0)))
    one = part.own("map.weight")
    down = one["down"].view(4, 12, 3, 3) if conv else one["down"]
    up = one["up"][..., None, None] if conv else one["up"]
    size = one["sizes"].view(1, -1, 1, 1) if conv else one["sizes"]
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["map"], use_dora=True)
    same(part, config, {"lora_A": down, "lora_B": up, "lora_magnitude_vector": size}, conv)


def test_doras_norm_gives_no_gradient():
    part = WeightDecomposed.of({"map": Net().map}, 4, 4.0, generator(0))
    stirred(part).requires_grad_(True)
    base = Net().map.weight
    part.delta_of("map.weight", base)[0].sum().backward()
    up, down, size = (part.own("map.weight")[name] for name in ("up", "down", "sizes"))
    norm = (base + up @ down)[0].norm().detach()
    assert torch.allclose(up.grad[0], (size[0] / norm).detach() * down.detach().sum(1), atol=1e-5)


@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_oft_is_pefts_exact_cayley(blocks):
    part = stirred(Rotation.of({"map": Net().map}, blocks=blocks))
    config = peft.OFTConfig(r=blocks, oft_block_size=0, use_cayley_neumann=False, target_modules=["map"])
    same(part, config, {"oft_R": part.own("map.weight")["angles"][0]})


def test_boft_of_one_factor_is_pefts():
    part = stirred(Rotation.of({"map": Net().map}, side=4, factors=1, scaled=True))
    one = part.own("map.weight")
    rows, columns = torch.triu_indices(4, 4, 1)
    skew = torch.zeros(1, 6, 4, 4)
    skew[..., rows, columns] = one["angles"]
    config = peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=["map"], bias="boft_only")
    numbers = {"boft_R": skew - skew.transpose(-1, -2), "boft_s": 1 + one["sizes"][:, None]}
    same(part, config, numbers)


def test_butterflies_are_pefts():
    from peft.tuners.boft.layer import BOFTLayer

    for size, side, levels in ((32, 4, 3), (32, 8, 2), (64, 2, 4)):
        for level in range(levels):
            theirs = BOFTLayer.block_butterfly_perm(None, size, size // side // 2**level, side // 2, levels - 1)
            assert torch.equal(butterfly(size, side, level), theirs), (size, side, level)


def test_boft_is_the_product_of_its_factors():
    wide = nn.Linear(32, 8)
    part = stirred(Rotation.of({"map": wide}, side=4, factors=3))
    whole = torch.eye(32)
    for level, turns in enumerate(part.turns("map.weight")):
        order = torch.eye(32)[butterfly(32, 4, level)]
        whole = order @ torch.block_diag(*turns) @ order.T @ whole
    new = wide.weight + part.delta_of("map.weight", wide.weight)
    assert torch.allclose(new, wide.weight @ whole.T, atol=1e-5)
    # Three butterflies of four join all of sixteen inputs where one would join four.
    assert int((whole[0].abs() > 1e-6).sum()) >= 16


def test_a_rotation_is_orthogonal_however_far_it_turns():
    turns = cayley(_skew_of(torch.randn(40, 40, generator=generator(0)) * 5))
    assert float((turns @ turns.T - torch.eye(40)).norm()) < 1e-4
    assert torch.equal(cayley(torch.zeros(3, 8, 8)), torch.eye(8).expand(3, 8, 8))


def _skew_of(x):
    return x - x.T


def test_oft_keeps_lengths_and_angles_after_learning():
    bb = tiny("sd15")
    part = find("oft")(**QUICK).learn(bb, few_photos()).parts.denoiser
    moved = 0.0
    for path in part.shapes():
        base = bb.parameter(path).float()
        new = base + part.delta_of(path, base)
        assert torch.allclose(new @ new.T, base @ base.T, atol=1e-4)
        moved += float((new - base).norm())
    assert moved > 0.1


def test_confined_rotations_stay_in_their_ball():
    bb = tiny("sd15")
    radius = 1e-4
    part = find("oft")(**QUICK, confined=radius).learn(bb, few_photos()).parts.denoiser
    norms = []
    for path, (_, n, side) in part.blocks.items():
        skew = 2**0.5 * part.angles[flat(path)].norm(dim=-1) / (radius * side**2 / n**0.5)
        norms.append(float(skew.max()))
    assert max(norms) <= 1 + 1e-5
    assert max(norms) > 0.99
    with pytest.raises(FromfewError, match="blocks"):
        find("oft")(blocks=0)


def test_ia3_is_pefts_on_outputs_and_on_inputs():
    part = stirred(Channels.of({"map": Net().map}, {}))
    config = peft.IA3Config(target_modules=["map"], feedforward_modules=[])
    same(part, config, {"ia3_l": 1 + part.factor("map.weight")[:, None]})
    part = stirred(Channels.of({}, {"map": Net().map}))
    config = peft.IA3Config(target_modules=["map"], feedforward_modules=["map"])
    same(part, config, {"ia3_l": 1 + part.factor("map.weight")[None]})


def test_locon_is_pefts():
    part = stirred(LowRankConv.of({"map": Net(True).map}, 4, 2.0, generator(0)))
    one = part.own("map.weight")
    config = peft.LoraConfig(r=4, lora_alpha=2, target_modules=["map"])
    same(part, config, {"lora_A": one["down"], "lora_B": one["up"]}, conv=True)


def test_lora_takes_convolutions_as_a_target():
    bb = tiny("sd15")
    parts = find("lora")(**QUICK, rank=2, targets=("attention", "conv")).learn(bb, few_photos()).parts
    assert set(parts.convolutions.shapes()) == {f"{path}.weight" for path in bb.select("conv")}
    assert set(parts.denoiser.targets()) == set(bb.select("attention"))
    assert all(bool(value.any()) for value in parts.convolutions.up.values())


@pytest.mark.parametrize("name", FAMILY)
def test_at_the_start_it_is_the_base_bit_for_bit(name):
    bb = tiny("sd15")
    parts = find(name)(**QUICK, encoder=True, targets=("attention", "mlp")).parts(bb, few_photos(), generator(0))
    plain = predict(bb, prompt="a cat")
    with bb.attach(parts), torch.no_grad():
        assert torch.equal(predict(bb, prompt="a cat"), plain)
