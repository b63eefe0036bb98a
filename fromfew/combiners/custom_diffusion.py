"""Custom Diffusion's merge: maps that say what each concept said about its own words, and the least else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fromfew.combine import Combiner, delta_at, deltas, kept, listening, whole_parts
from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from torch import Tensor

    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.fit import Watch
    from fromfew.ports.part import Part

CARD = {
    "title": "Multi-Concept Customization of Text-to-Image Diffusion",
    "arxiv": "2212.04488",
    "year": 2022,
    "kind": "combiner",
    "joins": "changes of the keys and values that read the text (as custom-diffusion learns them), and words",
    "backbones": ("sd15", "sd21", "sdxl"),
    "adds": "about 2 % of the denoiser, whatever the number of concepts",
}

_NOUNS = (
    "dog", "cat", "bird", "horse", "fish", "car", "boat", "bicycle", "train", "house", "church", "bridge", "tree",
    "flower", "apple", "cake", "bread", "cup", "bottle", "chair", "table", "lamp", "clock", "book", "phone", "guitar",
    "shoe", "hat", "bag", "toy", "man", "woman", "child", "face", "beach", "city", "forest", "mountain", "sky", "room",
)  # fmt: skip
_AT_ONCE = 16
_CAPTIONS = (
    "a photo of a {}", "a {} on the beach", "a small red {} in the snow", "a painting of a {} at night",
    "two old {} next to a blue box",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CustomDiffusionMerge(Combiner):
    """Solve for every key and value map: ``min ‖(W - W0) C_regᵀ‖_F  subject to  W Cᵀ = Vᵀ``.

    ``C`` are the text features of every concept's own words, ``V`` what its own maps made of them, and ``C_reg`` those
    of plain captions. In closed form ``W = W0 + (Vᵀ - W0 Cᵀ)(d Cᵀ)⁻¹ d`` with ``d = C G⁻¹``, ``G = C_regᵀ C_reg``.

    Departs from the paper: the plain captions are sentences about common things instead of captions from the web, and
    ``G`` is held away from being singular by ``ridge`` times its mean diagonal, which small text encoders need.

    >>> CustomDiffusionMerge(captions=100).captions
    100
    """

    captions: int = 200
    """How many plain captions the maps are held still for, 1 to 200."""
    ridge: float = 1e-6
    """What is added to the diagonal of G, as a share of its mean."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot be meant.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        self.within(captions=(1, len(_NOUNS) * len(_CAPTIONS)))
        if not 0 < self.ridge <= 1:
            raise FromfewError(f"ridge is above 0 and at most 1, not {self.ridge}.")

    def needs(self, bb: Backbone, concepts: Sequence[Concept]) -> list[str]:
        """Only keys and values of cross-attention see the same features whatever else is drawn."""
        if not any(site.kind == "cross" for site in bb.sites.values()):
            return [f"'{bb.name}' reads text and picture together, so its maps see no fixed features of a word"]
        able = {f"{path}.weight" for path in bb.select("text.key", "text.value")}
        why = []
        for one in concepts:
            other = next((path for path in deltas([one]) if path not in able), None)
            if other is not None:
                why.append(f"'{one.name}' changes '{other}', and only maps that read text can be merged so")
            if not one.answers:
                why.append(f"'{one.name}' answers to no placeholder")
        return why

    def join(
        self, bb: Backbone, concepts: Sequence[Concept], *, seed: int, watch: Watch | None, work: Path | None
    ) -> Mapping[str, Part]:
        """The merged maps."""
        import torch

        paths = deltas(concepts)
        modules = [path.removesuffix(".weight") for path in paths]
        with torch.no_grad():
            plain = _features(bb, modules, _plain(self.captions), None)
            own = [_features(bb, modules, _called(one), one) for one in concepts]
            found: dict[str, Tensor] = {}
            for number, (path, module) in enumerate(zip(paths, modules, strict=True)):
                base = bb.parameter(path).detach().double()
                maps = [base + _double(delta_at(bb, one, path), base) for one in concepts]
                found[path] = solve(base, plain[module], [one[module] for one in own], maps, self.ridge).float()
                if watch is not None:
                    watch(number + 1, len(paths), "merged")
        return whole_parts(found)


def solve(base: Tensor, plain: Tensor, own: Sequence[Tensor], maps: Sequence[Tensor], ridge: float = 1e-6) -> Tensor:
    """The least change of a map that makes of every concept's features what its own map made of them.

    Args:
        base: ``[out, in]`` W0.
        plain: ``[M, in]`` features the map should make the same of as before.
        own: ``[s_i, in]`` features of each concept's words.
        maps: ``[out, in]`` each concept's own map.
        ridge: Share of G's mean diagonal that is added to it.

    Returns:
        ``[out, in]`` W - W0.
    """
    import torch

    c = torch.cat([one.double() for one in own])
    v = torch.cat([one.double() @ w.T for one, w in zip(own, maps, strict=True)])
    first = _firsts(c)
    c, v = c[first], v[first]
    g = plain.double().T @ plain.double()
    g = g + ridge * g.diagonal().mean() * torch.eye(len(g), dtype=g.dtype, device=g.device)
    d = torch.linalg.solve(g, c.T).T
    # A pseudo-inverse, since features of alike words may be dependent to the last bits.
    return (v.T - base @ c.T) @ torch.linalg.pinv(d @ c.T, hermitian=True) @ d


def _firsts(rows: Tensor) -> list[int]:
    """Numbers of the rows that are like no earlier one."""
    found: list[int] = []
    for i, row in enumerate(rows):
        if all(float((row - rows[j]).abs().max()) > 1e-6 * float(row.abs().max()) for j in found):
            found.append(i)
    return found


def _double(delta: Tensor | None, base: Tensor) -> Tensor:
    return base * 0 if delta is None else delta.to(base)


def _plain(count: int) -> list[str]:
    return [sentence.replace("{}", noun) for sentence in _CAPTIONS for noun in _NOUNS][:count]


def _called(concept: Concept) -> list[str]:
    return [sentence.replace("{}", thing) for sentence in ("{}", "photo of a {}") for thing in concept.things]


def _features(
    bb: Backbone, modules: Sequence[str], prompts: Sequence[str], concept: Concept | None
) -> dict[str, Tensor]:
    """What every map is given for the words of a concept, or for whole captions up to their end, ``[n, in]``."""
    import torch

    from fromfew.ports.part import Parts

    found: dict[str, list[Tensor]] = {module: [] for module in modules}
    own = Parts(**kept([concept])) if concept is not None else Parts()
    with bb.attach(own):
        for start in range(0, len(prompts), _AT_ONCE):
            text = bb.embed(prompts[start : start + _AT_ONCE])
            places = [_places(words, concept) for words in text.words]

            def take(path: str, given: Tensor, places: list[list[int]] = places) -> None:
                found[path] += [rows[at].double() for rows, at in zip(given, places, strict=True)]

            x = torch.zeros(len(text), *bb.latent_shape(), device=bb.device, dtype=bb.dtype)
            with listening(bb, modules, take):
                bb.predict(x, torch.full((len(text),), 0.5, device=bb.device), text)
    return {path: torch.cat(rows) for path, rows in found.items()}


def _places(words: Mapping[str, list[int]], concept: Concept | None) -> list[int]:
    """Positions of a concept's words, or of all tokens from the begin to the end of a plain caption."""
    there = sorted({at for where in words.values() for at in where})
    if concept is None:
        return list(range(max(there) + 2))
    begin = min(at for word in concept.answers for at in words.get(concept.spelled(word), [0]))
    return [at for at in there if at >= begin]
