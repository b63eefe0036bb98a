"""A part of every kind that changes weights, for test_parts.py."""

from fromfew.fit import generator
from fromfew.parts.channels import Channels
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.kronecker import Kronecker
from fromfew.parts.low_rank_conv import LowRankConv
from fromfew.parts.rotation import Rotation
from fromfew.parts.spectral import Spectral
from fromfew.parts.weight_decomposed import WeightDecomposed

WEIGHTS = {
    "hadamard": lambda bb: Hadamard.of(bb.select("attention"), 2, 4.0, generator(0)),
    "kronecker": lambda bb: Kronecker.of(bb.select("attention"), 1, 2.0, generator(0)),
    "rotation": lambda bb: Rotation.of(bb.select("attention"), side=4, factors=2, scaled=True),
    "weight_decomposed": lambda bb: WeightDecomposed.of(bb.select("attention"), 2, 4.0, generator(0)),
    "channels": lambda bb: Channels.of(bb.select("attention"), bb.select("mlp")),
    "spectral": lambda bb: Spectral.of(bb.select("attention")),
    "low_rank_conv": lambda bb: LowRankConv.of(bb.select("conv"), 2, 4.0, generator(0)),
}
