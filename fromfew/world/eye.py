"""The eye: the world's frozen image encoder, what adapters look at references with."""

from typing import NamedTuple

from torch import Tensor, nn

from fromfew.world.networks import Pool, Trunk


class Seen(NamedTuple):
    """What the eye makes of pictures."""

    pooled: Tensor
    """[B, out_width]"""
    grid: Tensor
    """[B, 192, 8, 8]"""


class Eye(nn.Module):
    """A small residual network with attention pooling; trained with the text tower on the world's captions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk((32, 96, 192), blocks=1)
        self.pool = Pool(192, heads=4)
        self.out_width = self.pool.out_width

    def forward(self, pictures: Tensor) -> Seen:
        """[B, 3, 64, 64] in [-1, 1] to features."""
        grid = self.trunk(pictures)
        return Seen(self.pool(grid), grid)
