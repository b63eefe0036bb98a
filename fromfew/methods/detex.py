"""DETEX: one word for the subject, and for every photo words of its own for the pose and the background."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.data import Batch, Source
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Decoupled Textual Embeddings for Customized Image Generation",
    "arxiv": "2312.11826",
    "year": 2023,
    "learns": ("subject",),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "about 2 % of the denoiser, and two words a photo",
}


@dataclass(frozen=True, kw_only=True)
class Detex(WordTuned):
    """Learn a subject as a word from which each photo's pose and background are taken by words of their own.

    Minimises ``E Σ m e² / Σ m`` with prompts "a <v> cat, <v-pose-i> pose, <v-scene-i> background", from which pose
    and background are dropped at random; ``m`` is the whole view while the background is named and the subject's mask
    while it is not. Words, and ΔK, ΔV of every layer that reads the text, learn together; pictures of the plain noun
    are weighed by ``prior``.

    Departs from the paper: each photo's words are free vectors instead of the output of mappers from image features;
    how often words are dropped is ours.

    >>> Detex(drop=0.3).drop
    0.3
    """

    prior: float = 1.0
    """Weight of pictures of the plain noun, which keep its meaning; 0 leaves them out."""
    outside: float = 0.0
    """Weight of what lies outside a mask where the background is not named, 0 to 1; it is learned where it is named."""
    drop: float = 0.5
    """How often pose and background, each by itself, are left out of a prompt, 0 to 0.9."""
    word_lr: float | None = None
    """Learning rate of all words; chosen for the base if left open."""

    def __post_init__(self) -> None:
        """Also refuse words that are always dropped."""
        super().__post_init__()
        self.within(drop=(0, 0.9))

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The subject's word, two words a photo, and the maps that read the text."""
        from fromfew.parts.full import FullDelta
        from fromfew.ports.part import Parts

        own = {
            f"{what}{number + 1}": self.word(bb, replace(refs, placeholder=_named(refs, what, number)), rng, nth=nth)
            for number in range(len(refs))
            for nth, what in enumerate(("pose", "scene"), start=1)
        }
        maps = bb.select("text.key", "text.value")
        return Parts(word=self.word(bb, refs, rng), **own, maps=FullDelta.of(bb, *maps))

    def photos(self, bb: Backbone, refs: References) -> Source:
        """Views of the photos; where the background is named all of a view counts, else only the subject."""
        from fromfew.views import uniform

        plain = super().photos(bb, refs)

        def source(rng: Generator) -> Batch:
            batch = plain(rng)
            masks = None if batch.masks is None else batch.masks.clone()
            captions = list(batch.captions)
            for row, number in enumerate(batch.numbers or ()):
                pose, scene = uniform(rng) >= self.drop, uniform(rng) >= self.drop
                captions[row] += f", {_named(refs, 'pose', number or 0)} pose" if pose else ""
                captions[row] += f", {_named(refs, 'scene', number or 0)} background" if scene else ""
                if scene and masks is not None:
                    masks[row] = 1.0 if batch.frames is None else batch.frames[row]
            return replace(batch, captions=captions, masks=masks)

        return source

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; words and maps learn together."""
        rates = {part: self.lr if part is parts.maps else self.word_lr for part in parts}
        yield self.stage(bb, refs, rates, seed=seed)


def _named(refs: References, what: str, number: int) -> str:
    """Placeholder of a photo's own word, such as ``<v-pose-1>``."""
    return f"{refs.placeholder[:-1]}-{what}-{number + 1}>"
