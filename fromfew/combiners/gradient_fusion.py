"""Gradient fusion: maps that answer, to what each concept asks of them, as that concept's own maps did."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fromfew.combine import Combiner, delta_at, deltas, kept, listening, whole_parts

if TYPE_CHECKING:
    from torch import Tensor

    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.fit import Watch
    from fromfew.ports.part import Part

CARD = {
    "title": "Mix-of-Show: Decentralized Low-Rank Adaptation for Multi-Concept Customization of Diffusion Models",
    "arxiv": "2305.18292",
    "year": 2023,
    "kind": "combiner",
    "joins": "any changes of weights, words and other parts",
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "a difference of every weight that any of the concepts changes",
}


@dataclass(frozen=True, kw_only=True)
class GradientFusion(Combiner):
    """For every weight: ``min_W sum_i ‖W X_i - (W0 + ΔW_i) X_i‖²_F + ridge · m ‖W - W0‖²``, beginning at W0.

    ``X_i`` is what the map is given while concept i alone is used: prompts of it for text encoders, its words' features
    (as the fused text encoder makes them) for the maps that read text, a short drawing of it for all others. It is
    solved by ``W - W0 = (sum_i ΔW_i G_i)(sum_i G_i + ridge · m)⁻¹`` with ``G_i = X_i X_iᵀ`` and ``m`` the mean of the
    diagonal of their sum; ``solver="lbfgs"`` descends to it as the paper does.

    Departs from the paper: the closed form is the default, only the features' second moments are kept, what is no
    linear map (convolutions, biases, norms) becomes the mean of the changes, and ``ridge`` holds the weights near the
    base, which the paper leaves to stopping early: two concepts' words differ little, and without it large changes
    answer to that difference.

    >>> GradientFusion(solver="lbfgs").iterations
    500
    """

    solver: Literal["closed", "lbfgs"] = "closed"
    """Closed form, or LBFGS from the base's weights."""
    iterations: int = 500
    """Most iterations of LBFGS a weight."""
    ridge: float = 0.01
    """Weight of staying near the base, as a share of the features' own; 0 is the least change that answers best."""
    drawing: int = 20
    """Sampling steps of the drawing of each concept."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        self.within(iterations=(1, inf), drawing=(1, inf), ridge=(0, inf))

    def join(
        self, bb: Backbone, concepts: Sequence[Concept], *, seed: int, watch: Watch | None, work: Path | None
    ) -> Mapping[str, Part]:
        """Text encoders first, then maps that read text, then all others."""
        import torch

        paths = deltas(concepts)
        linear = {path for path in paths if _is_linear(bb, path)}
        crossing = _crossing(bb)
        stages: list[tuple[list[str], Callable[..., None]]] = [
            ([path for path in paths if path in linear and path.startswith("encoder.")], _read_prompts),
            ([path for path in paths if path in linear and path in crossing], _read_words),
            ([path for path in paths if path in linear and path not in crossing and path[:8] != "encoder."], _draw),
        ]
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for some, record in stages:
                if some:
                    grams = [self._moments(bb, one, some, record, found, seed) for one in concepts]
                    for path in some:
                        found[path] = self._solve(bb, concepts, path, [gram[path] for gram in grams])
                        if watch is not None:
                            watch(len(found), len(paths), "fused")
            for path in paths:
                if path not in found:
                    each = [delta for one in concepts if (delta := delta_at(bb, one, path)) is not None]
                    found[path] = torch.stack(each).mean(0)
        return whole_parts({path: found[path] for path in paths})

    def _solve(self, bb: Backbone, concepts: Sequence[Concept], path: str, grams: Sequence[Tensor]) -> Tensor:
        base = bb.parameter(path)
        each = [delta_at(bb, one, path) for one in concepts]
        wanted = [base.new_zeros(base.shape).double() if one is None else one.double() for one in each]
        if self.solver == "closed":
            return fused(wanted, grams, self.ridge).float()
        return descended(wanted, grams, self.iterations, self.ridge).float()

    def _moments(
        self, bb: Backbone, concept: Concept, paths: Sequence[str], record: Callable[..., None],
        before: Mapping[str, Tensor], seed: int,
    ) -> dict[str, Tensor]:  # fmt: skip
        """``X Xᵀ`` of every map, in double precision."""
        found: dict[str, Tensor] = {}

        def take(module: str, x: Tensor) -> None:
            rows = x.reshape(-1, x.shape[-1]).double()
            path = f"{module}.weight"
            found[path] = found.get(path, 0) + rows.T @ rows

        record(bb, concept, [path.removesuffix(".weight") for path in paths], take, before, self.drawing, seed)
        return found


def fused(wanted: Sequence[Tensor], grams: Sequence[Tensor], ridge: float = 0.0) -> Tensor:
    """``(sum_i ΔW_i G_i)(sum_i G_i + ridge · m)⁻¹``: the change that answers best while it stays small.

    Args:
        wanted: ``[out, in]`` each concept's own change.
        grams: ``[in, in]`` second moments of what the map is given for it.
        ridge: weight of staying small, as a share of ``m``, the mean of the diagonal; 0 takes the pseudo-inverse.
    """
    import torch

    total = torch.stack(list(grams)).sum(0)
    answer = torch.stack([delta @ gram for delta, gram in zip(wanted, grams, strict=True)]).sum(0)
    if not ridge:
        return answer @ torch.linalg.pinv(total, hermitian=True, rtol=1e-10)
    mean = total.diagonal().mean().clamp_min(1e-12)
    return torch.linalg.solve(total + ridge * mean * torch.eye(len(total)).to(total), answer.T).T


def left(change: Tensor, wanted: Sequence[Tensor], grams: Sequence[Tensor]) -> Tensor:
    """``sum_i ‖(ΔW - ΔW_i) X_i‖²``: what remains to be answered."""
    import torch

    return torch.stack(
        [(((change - delta) @ gram) * (change - delta)).sum() for delta, gram in zip(wanted, grams, strict=True)]
    ).sum()


def descended(wanted: Sequence[Tensor], grams: Sequence[Tensor], iterations: int, ridge: float = 0.0) -> Tensor:
    """The same by LBFGS from no change at all."""
    import torch

    size = torch.stack([gram.diagonal().mean() for gram in grams]).sum()
    scaled = [gram / size for gram in grams]
    change = torch.zeros_like(wanted[0]).requires_grad_(True)
    optimiser = torch.optim.LBFGS(
        [change], lr=1, max_iter=iterations, history_size=25, line_search_fn="strong_wolfe", tolerance_grad=1e-12,
        tolerance_change=1e-14,
    )  # fmt: skip

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = left(change, wanted, scaled) + ridge * change.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[arg-type]
    return change.detach()


def _is_linear(bb: Backbone, path: str) -> bool:
    from torch import nn

    return path.endswith(".weight") and isinstance(bb.module(path.removesuffix(".weight")), nn.Linear)


def _crossing(bb: Backbone) -> set[str]:
    """Maps that are given nothing but text."""
    if not any(site.kind == "cross" for site in bb.sites.values()):
        return set()
    return {f"{path}.weight" for path in bb.select("text.key", "text.value")}


def _prompts(concept: Concept) -> list[str]:
    return [sentence.replace("{}", thing) for thing in concept.things for sentence in ("photo of a {}", "{}")]


def _read_prompts(
    bb: Backbone, concept: Concept, modules: Sequence[str], take: Callable[[str, Tensor], None],
    before: Mapping[str, Tensor], steps: int, seed: int,
) -> None:  # fmt: skip
    """What the text encoders are given while the concept is called."""
    with bb.attach(concept), listening(bb, modules, take):
        for prompt in _prompts(concept):
            bb.embed([prompt])


def _read_words(
    bb: Backbone, concept: Concept, modules: Sequence[str], take: Callable[[str, Tensor], None],
    before: Mapping[str, Tensor], steps: int, seed: int,
) -> None:  # fmt: skip
    """Features of the concept's words and of all behind them, from the fused text encoder."""
    import torch

    from fromfew.ports.part import Parts

    own = Parts(**kept([concept]), **whole_parts(before))
    x = torch.zeros(1, *bb.latent_shape(), device=bb.device, dtype=bb.dtype)
    t = torch.full((1,), 0.5, device=bb.device)
    with bb.attach(own):
        for prompt in _prompts(concept):
            text = bb.embed([prompt])
            found = [at for word in concept.answers for at in text.words[0].get(concept.spelled(word), [])]
            begin = min(found, default=1)

            def tail(path: str, given: Tensor, begin: int = begin) -> None:
                take(path, given[:, begin:])

            with listening(bb, modules, tail):
                bb.predict(x, t, text)


def _draw(
    bb: Backbone, concept: Concept, modules: Sequence[str], take: Callable[[str, Tensor], None],
    before: Mapping[str, Tensor], steps: int, seed: int,
) -> None:  # fmt: skip
    """What the maps are given while the concept is drawn."""
    from fromfew.make import make

    with listening(bb, modules, take):
        for thing in concept.things:
            make(bb, f"photo of a {thing}", concept, guidance=1.0, steps=steps, seed=seed)
