"""E4T: an encoder that knows the domain says the word, a few steps of tuning do the rest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any

from fromfew.pretrained import Pretrained
from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.backbones.base import Backbone
    from fromfew.data import Batch, Source
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "Encoder-based Domain Tuning for Fast Personalization of Text-to-Image Models",
    "arxiv": "2302.12228",
    "year": 2023,
    "learns": ("subject", "face", "style"),
    "photos": (1, 8),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "as much as the denoiser itself",
    "needs_weights": True,
}


@dataclass(frozen=True, kw_only=True)
class E4T(WordTuned, Pretrained):
    """Say the word from the photo with an encoder that was trained on the domain, then tune everything briefly.

    ``v = v_noun + 0.1 · E(f, t)`` and ``W ∘ (1 + Δ)`` for attention, E and Δ trained beforehand; both, and a
    difference of every weight of the denoiser, then minimise ``E ‖f(x_t, t, c(v)) - target‖² + pull · ‖E‖²``.

    Departs from the paper: E sees the photo and the time but not the noisy picture itself; Δ is learned as the
    matrix of rank 3 that the paper's maps can make; pre-training shows a thing and asks for another view of it.

    >>> E4T(pull=0.2).pull
    0.2
    """

    noun: bool = False
    """Whether the noun follows the word in templates; the word begins as it."""
    eye: str | None = None
    """Frozen image encoder: world, a folder or a hub id; chosen for the base if left open."""
    pull: float = 0.1
    """Weight of keeping what the encoder says small, so that the word stays near its noun."""
    encoder: bool = False
    """Whether the text encoders learn as well."""

    def __post_init__(self) -> None:
        """Also refuse a pull below 0."""
        super().__post_init__()
        self.within(pull=(0, inf))

    def modules(self, bb: Backbone) -> nn.Module:
        """The encoder behind the eye, and the offsets."""
        from torch import nn

        from fromfew.encoders import open_eye
        from fromfew.parts.encoded_word import EncodedWord
        from fromfew.parts.offsets import Offsets

        word = EncodedWord.of(bb, open_eye(self.eye, device=str(bb.device)).width)
        return nn.ModuleDict({"word": word, "offsets": Offsets.of(bb.select("attention"))})

    def pretrain(self, bb: Backbone, modules: Any, batches: Source, *, steps: int, lr: float) -> Stage:
        """Denoise every row under a word of its own, said from its picture; the pull is a tenth of the tuning's."""
        from fromfew.encoders import look_at
        from fromfew.losses import denoise
        from fromfew.naming import with_words
        from fromfew.parts.encoded_word import loudness
        from fromfew.ports.part import Parts
        from fromfew.stage import Stage

        words: list[Any] = []

        def attach(batch: Batch, rng: Generator) -> Parts:
            seen = look_at(self.eye, batch.looked_at, bb.device)
            words[:] = modules["word"].each(seen, batch.nouns or [None] * len(batch))
            return Parts(offsets=modules["offsets"], **{f"word{i}": word for i, word in enumerate(words)})

        said = with_words(batches, lambda row: f"<row{row}>", keep_noun=False)
        terms = [(1.0, denoise), (0.1 * self.pull, loudness(words))]
        return Stage(steps, said, terms, {modules: lr}, attach=attach, decay=0.01, name=self.name())

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word the encoder says of the photos, the offsets, and a difference of every weight."""
        from fromfew.encoders import look_at, squares
        from fromfew.parts.full import FullDelta
        from fromfew.ports.part import Parts

        ready: Any = self.filled(bb)
        seen = look_at(self.eye, squares(refs, bb.default_size), bb.device).mean(0)
        word = ready["word"].holding(seen, refs.placeholder, refs.noun or "object")
        encoders = bb.encoder_paths if self.encoder else ()
        return Parts(word=word, offsets=ready["offsets"], denoiser=FullDelta.of(bb, "denoiser", *encoders))

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One short stage in which all of it learns."""
        from fromfew.losses import only
        from fromfew.parts.encoded_word import loudness

        more = [(self.pull, only("photo", loudness([parts.word])))]
        yield self.stage(bb, refs, dict.fromkeys(parts, self.lr), seed=seed, more=more)
