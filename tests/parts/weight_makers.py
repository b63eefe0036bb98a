"""A part of every kind that changes weights, for test_parts.py."""

import torch

from fromfew.fit import generator
from fromfew.parts.channels import Channels
from fromfew.parts.encoded_word import EncodedWord
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.key_lock import KeyLock
from fromfew.parts.kronecker import Kronecker
from fromfew.parts.light_low_rank import LightLowRank
from fromfew.parts.low_rank_conv import LowRankConv
from fromfew.parts.neurons import Neurons, Search
from fromfew.parts.offsets import Offsets
from fromfew.parts.rank_one import RankOne
from fromfew.parts.rotation import Rotation
from fromfew.parts.spectral import Spectral
from fromfew.parts.weight_decomposed import WeightDecomposed


def shut(bb):
    search = Search.of(bb.select("text.key", "text.value"), 0.05)
    for value in search.gates.values():
        value.data.copy_(torch.randn(value.shape, generator=generator(0)))
    return Neurons.found(search)


def said(bb):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        word = EncodedWord.of(bb, 6, 8)
    word.scale = 1.0
    return word.holding(torch.randn(6, generator=generator(2)), "<v>", "dog")


def gated(bb):
    width = next(iter(bb.select("text.key").values())).in_features
    noun = torch.randn(width, generator=generator(0))
    return RankOne.of(bb.select("text.key"), bb.select("text.value"), noun, torch.eye(width))


WEIGHTS = {
    "hadamard": lambda bb: Hadamard.of(bb.select("attention"), 2, 4.0, generator(0)),
    "kronecker": lambda bb: Kronecker.of(bb.select("attention"), 1, 2.0, generator(0)),
    "rotation": lambda bb: Rotation.of(bb.select("attention"), side=4, factors=2, scaled=True),
    "weight_decomposed": lambda bb: WeightDecomposed.of(bb.select("attention"), 2, 4.0, generator(0)),
    "channels": lambda bb: Channels.of(bb.select("attention"), bb.select("mlp")),
    "spectral": lambda bb: Spectral.of(bb.select("attention")),
    "neurons": shut,
    "rank_one": gated,
    "key_lock": lambda bb: KeyLock("<v>"),
    "light_low_rank": lambda bb: LightLowRank.of(bb.select("attention"), (6, 4)),
    "offsets": lambda bb: Offsets.of(bb.select("attention")),
    "encoded_word": said,
    "low_rank_conv": lambda bb: LowRankConv.of(bb.select("conv"), 2, 4.0, generator(0)),
}
ONLY_WEIGHTS = {"low_rank_conv": ("sd15",), "rank_one": ("sd15",)}  # needs convolutions; needs text read apart
