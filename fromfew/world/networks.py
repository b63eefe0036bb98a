"""Small convolutional networks that look at the world's pictures."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip; the second starts at zero, so the block starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same shape."""
        return x + self.second(F.silu(self.first(F.silu(self.norm(x)))))


class Trunk(nn.Module):
    """Pictures to a grid of features: 2x2 pixels a cell at the stem, halved after every stage but the last.

    Args:
        widths: channels of each stage, multiples of 8.
        blocks: residual blocks a stage.
    """

    def __init__(self, widths: tuple[int, ...] = (32, 64, 128), blocks: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.PixelUnshuffle(2), nn.Conv2d(12, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i:
                layers.append(nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1))
            layers += [Residual(width) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU())
        self.width = widths[-1]

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, 64, 64] in [-1, 1] to [B, width, 8, 8] (with three stages)."""
        return self.layers(pictures)


class Pool(nn.Module):
    """Attention pooling: a learnt score says which cells of the grid count, so a small thing is not averaged away."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.score = nn.Conv2d(width, heads, 1)
        self.out_width = width * heads

    def forward(self, grid: Tensor) -> Tensor:
        """[B, C, H, W] to [B, heads * C]."""
        weights = self.score(grid).flatten(2).softmax(-1)  # [B, heads, HW]
        return torch.einsum("bhn,bcn->bhc", weights, grid.flatten(2)).flatten(1)
