"""Perfusion: the word looks where its noun would look, and only what it paints there is learned."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fromfew.errors import FromfewError
from fromfew.word_tuned import WordTuned

if TYPE_CHECKING:
    from torch import Generator

    from fromfew.backbones.base import Backbone
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage, Step

CARD = {
    "title": "Key-Locked Rank One Editing for Text-to-Image Personalization",
    "arxiv": "2305.01644",
    "year": 2023,
    "learns": ("subject", "style"),
    "photos": (1, 20),
    "kind": "tuned",
    "ports": ("text", "linear"),
    "backbones": ("sd15", "sd21", "sdxl"),
    "adds": "one vector per map that makes values, and the word: well under a megabyte",
}


@dataclass(frozen=True, kw_only=True)
class Perfusion(WordTuned):
    """Learn a word and what each layer makes of it; where it is looked for stays its noun's.

    ``h = W e - (s/n) W i + σ((s/n - β)/τ) o`` with ``s = eᵀ C⁻¹ i``, ``n = iᵀ C⁻¹ i``: ``i`` a running mean of the
    word's encoding, ``o = W e_noun`` for keys (locked) and learned for values, C the second moment of encoded
    captions. Minimises the denoising loss for the word's vector and the values' ``o``, each at its own rate.

    Departs from the paper: C comes from 250 plain captions instead of 100,000; masks weigh the loss as everywhere in
    fromfew; with the global lock, keys come from the prompt whose placeholder is the noun's first token.

    >>> Perfusion(beta=0.6).beta
    0.6
    """

    word_lr: float | None = None
    """Learning rate of the word; chosen for the base if left open."""
    beta: float = 0.7
    """When drawing, how near to the concept an encoding must be for the gate to open: lower is more faithful."""
    tau: float = 0.15
    """When drawing, how softly the gate opens, above 0."""
    learning_beta: float = 0.75
    """The same nearness while learning."""
    learning_tau: float = 0.1
    """The same softness while learning, above 0."""
    lock: Literal["local", "global"] = "local"
    """When drawing, whether the word's keys are the noun's, or all keys are those of a prompt with the noun in it."""

    def __post_init__(self) -> None:
        """Also refuse gates that are none.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        if not (self.tau > 0 and self.learning_tau > 0):
            raise FromfewError(f"tau and learning_tau must be above 0, not {self.tau} and {self.learning_tau}.")

    def needs(self, bb: Backbone) -> list[str]:
        """Also: keys and values made of the encoded text itself."""
        apart = all(site.kind == "cross" for site in bb.sites.values() if site.reads_text)
        return [*super().needs(bb), *([] if apart else ["its text is mixed with the picture before it is read"])]

    def parts(self, bb: Backbone, refs: References, rng: Generator) -> Parts:
        """The word, beginning as the noun, and what every map makes of it; with the global lock, also that."""
        from fromfew.parts.key_lock import KeyLock
        from fromfew.parts.rank_one import RankOne
        from fromfew.ports.part import Parts
        from fromfew.regularise import state_of
        from fromfew.text_statistics import second_moment

        word, gates = self.word(bb, refs, rng, start=refs.noun or ""), (self.learning_beta, self.learning_tau)
        edit = RankOne.of(
            bb.select("text.key"), bb.select("text.value"), state_of(bb, word.start), second_moment(bb),
            gate=(self.beta, self.tau), learning_gate=gates, locked=self.lock == "local",
        )  # fmt: skip
        return Parts(word=word, edit=edit, lock=KeyLock(refs.placeholder) if self.lock == "global" else None)

    def stages(self, bb: Backbone, refs: References, parts: Parts, *, seed: int = 0) -> Iterable[Stage]:
        """One stage; after every update the concept's encoding follows the word's."""
        import torch

        from fromfew.text_statistics import second_moment

        moment = second_moment(bb)

        def follow(step: Step) -> None:
            seen = [step.text.states[i, step.text.where(i, refs.placeholder)] for i in range(len(step.text))]
            if any(len(one) for one in seen):
                parts.edit.meet(torch.cat(seen).float().mean(0), moment, keep=0.99)

        yield self.stage(bb, refs, {parts.word: self.word_lr, parts.edit: self.lr}, seed=seed, after=follow)
