"""NoisePath: the only place that knows eps from v from flow.

Times ``t`` are floats in (0, 1): 0 is the clean image and 1 is noise, whatever the model was trained to
predict.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class NoisePath:
    """How a model mixes image and noise, and what it predicts about the mixture.

    With ``a²`` the signal level at ``t``, eps and v models see ``x_t = a x0 + √(1-a²) noise``; flow models
    see ``x_t = (1-t) x0 + t noise``. An eps model predicts ``noise``, a v model ``a noise - √(1-a²) x0``
    (Salimans & Ho, arXiv:2202.00512), a flow model ``noise - x0`` (Lipman et al., arXiv:2210.02747).

    Args:
        kind: What the model predicts.
        alphas: ``[T]`` cumulative signal levels ``a²`` of eps and v models, falling from 1 towards 0.
        shift: Timestep shift of flow models; above 1 spends more time near noise (Esser et al.,
            arXiv:2403.03206).
        dynamic: Shift as a function of the number of image tokens: ``(base_shift, max_shift, base_tokens,
            max_tokens)``, the shift's logarithm being linear in the tokens. Used by FLUX.

    Raises:
        ValueError: If ``alphas`` is missing for eps or v, or given for flow.
    """

    kind: Literal["eps", "v", "flow"]
    alphas: Tensor | None = None
    shift: float = 1.0
    dynamic: tuple[float, float, int, int] | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("eps", "v", "flow"):
            raise ValueError(f"NoisePath.kind is 'eps', 'v' or 'flow', not {self.kind!r}")
        if (self.alphas is None) != (self.kind == "flow"):
            raise ValueError(f"a {self.kind!r} path {'has no' if self.kind == 'flow' else 'needs'} alphas")

    def for_tokens(self, tokens: int) -> "NoisePath":
        """The same path with the shift that belongs to a picture of ``tokens`` image tokens."""
        if self.dynamic is None:
            return self
        base, most, base_tokens, max_tokens = self.dynamic
        slope = (most - base) / (max_tokens - base_tokens)
        return replace(self, shift=math.exp(base + slope * (tokens - base_tokens)))

    def draw(self, n: int, rng: Generator) -> Tensor:
        """Draw ``[n]`` times in (0, 1) as the model was trained: uniform, or shifted logit-normal."""
        if self.alphas is None:
            return self.shifted(torch.sigmoid(torch.randn(n, generator=rng, device=rng.device)))
        step = torch.randint(len(self.alphas), (n,), generator=rng, device=rng.device)
        return (step + 0.5) / len(self.alphas)

    def shifted(self, t: Tensor) -> Tensor:
        """Apply the flow's time shift: ``s t / (1 + (s-1) t)``; times of eps and v models stay."""
        return t if self.alphas is not None else self.shift * t / (1 + (self.shift - 1) * t)

    def index(self, t: Tensor) -> Tensor:
        """The model's own timestep: long in 0…T-1 for eps and v, float in 0…1000 for flow."""
        if self.alphas is None:
            return t * 1000
        steps = len(self.alphas)
        return (t.double() * steps).floor().long().clamp(0, steps - 1)

    def time(self, index: Tensor) -> Tensor:
        """The inverse of `index`: the time in (0, 1) of a model's own timestep."""
        if self.alphas is None:
            return index.float() / 1000
        return (index.float() + 0.5) / len(self.alphas)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of image and noise in ``x_t``, each ``[B, 1, 1, 1]``."""
        if self.alphas is None:
            signal, sigma = 1 - t, t
        else:
            level = self.alphas.to(t.device)[self.index(t)]
            signal, sigma = level.sqrt(), (1 - level).sqrt()
        return signal.float().view(-1, 1, 1, 1), sigma.float().view(-1, 1, 1, 1)

    def mix(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The noisy ``x_t`` ``[B, C, h, w]`` at times ``t`` ``[B]``."""
        signal, sigma = self.levels(t)
        return (signal * x0 + sigma * noise).to(x0.dtype)

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the model should predict, ``[B, C, h, w]``."""
        if self.kind == "eps":
            return noise
        if self.kind == "flow":
            return noise - x0
        signal, sigma = self.levels(t)
        return (signal * noise - sigma * x0).to(x0.dtype)

    def split(self, xt: Tensor, pred: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Take ``x_t`` apart into ``(x0, noise)``, given a prediction at times ``t`` ``[B]``."""
        signal, sigma = self.levels(t)
        if self.kind == "flow":
            return xt - sigma * pred, xt + signal * pred
        if self.kind == "v":
            return signal * xt - sigma * pred, sigma * xt + signal * pred
        return (xt - sigma * pred) / signal.clamp_min(1e-6), pred

    def schedule(self, steps: int) -> Tensor:
        """``[steps + 1]`` times from noise to image, the last one 0."""
        if self.alphas is not None:
            start = float(self.time(torch.tensor(len(self.alphas) - 1)))
            return torch.linspace(start, 0, steps + 1)
        return self.shifted(torch.linspace(1, 0, steps + 1))


def zero_terminal_snr(alphas: Tensor) -> Tensor:
    """Rescale signal levels ``[T]`` so that the last step is pure noise (Lin et al., arXiv:2305.08891)."""
    root = alphas.sqrt()
    first, last = root[0].clone(), root[-1].clone()
    return ((root - last) * first / (first - last)) ** 2
