"""COTI: textual inversion from a pool of photos, of which the best are chosen round by round."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from fromfew.errors import FromfewError
from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Controllable Textual Inversion for Personalized Text-to-Image Generation",
    "arxiv": "2304.05265",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 1000),
    "kind": "tuned",
    "ports": ("text",),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "a few kilobytes: the word's vectors",
}


@dataclass(frozen=True, kw_only=True)
class COTI(WordTuned):
    """Learn a word from the best photos of a noisy pool, and keep its best state.

    The first photos are trusted; the others are a pool. Every cycle two heads learn from the chosen photos what shows
    the concept and what is a good picture, the ``add`` best of the pool by ``quality + 10 · match`` join, and the word
    is learned anew by textual inversion's ``E ‖f(x_t, t, c(v)) - target‖²``, down a ladder of rates. On each rung
    pictures are drawn and scored ``10 sin(π a/20) sin(π c/20)``; the next rung goes on from the best state, not the
    last.

    Departs from the paper: what does not show the concept is drawn by the base from the plain noun, and without a
    predictor of quality (``judge``) every picture is as good as another.

    >>> COTI(add=4).add
    4
    """

    vectors: int = 1
    """Vectors per text encoder."""
    initial: int = 10
    """How many of the first photos are trusted from the start."""
    add: int = 10
    """How many photos of the pool join in every cycle."""
    cycles: int | None = None
    """How often the word is learned anew; chosen for the base if left open."""
    ladder: tuple[float, ...] = (1.0, 0.5, 0.15, 0.1, 0.05)
    """Rungs: factors of the learning rate, each for all the steps."""
    checks: int | None = None
    """How often on every rung pictures are drawn and scored; chosen for the base if left open."""
    previews: int = 4
    """Pictures drawn at each."""
    hidden: tuple[int, int] | None = None
    """Widths of the head that tells the concept; chosen for the base if left open."""
    judge: str | None = None
    """File of a linear predictor of quality on the eye's features; none if left open."""
    eye: str | None = None
    """Frozen image encoder: world, a folder or a hub id; chosen for the base if left open."""

    def __post_init__(self) -> None:
        """Also refuse counts that cannot be."""
        super().__post_init__()
        self.within(vectors=(1, 16), **dict.fromkeys(("initial", "add", "cycles", "checks", "previews"), (1, inf)))
        if not self.ladder or not all(factor > 0 for factor in self.ladder):
            raise FromfewError(f"ladder is a few factors above 0, not {list(self.ladder)}.")

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the noun."""
        from fromfew.ports.part import Parts

        return Parts(word=self.word(bb, refs, rng, count=self.vectors, start=refs.noun or ""))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """Cycle after cycle, rung after rung, as many stages a rung as it is checked."""
        from torch import stack

        from fromfew.best_of import best_of, copied, halts
        from fromfew.class_images import class_images
        from fromfew.encoders import look_at, squares
        from fromfew.pool import Pool, Scorer, drawn_worth
        from fromfew.stage import Stage
        from fromfew.views import picture_tensor

        see = partial(look_at, self.eye, device=bb.device)
        drawn = class_images(bb, refs.noun or "picture", self.class_images or 16, seed=seed)
        photos, other = see(squares(refs, bb.default_size)), see(stack([picture_tensor(one) for one in drawn]))
        pool, began = Pool.of(len(refs), self.initial), copied(parts)
        scorer = Scorer(photos.shape[1], self.hidden or (4096, 2048), judge=self.judge, seed=seed)
        prompts = [f"a photo of a {refs.placeholder} {refs.noun or ''}".strip()] * self.previews
        score = partial(drawn_worth, bb, prompts, parts, scorer, see, seed=seed)
        for cycle in range(self.cycles or 1):
            pool.grow(scorer, photos, other, self.add, cycle / (self.cycles or 1))
            chosen = replace(refs, photos=tuple(refs.photos[i] for i in sorted(pool.labels)))
            parts.load_state_dict(began)
            batches = self.with_prior(bb, chosen, seed=seed)
            for rung, factor in enumerate(self.ladder, 1):
                rates, name = {parts.word: (self.lr or 0.0) * factor}, f"cycle {cycle + 1}, rung {rung}"
                stage = Stage(self.steps or 1, batches, self.terms(), rates, name=name)
                yield from best_of(halts(stage, self.checks or 1), parts, score)
