"""Concepts with random numbers in every part, big enough to show; for tests of what leaves and comes back."""

from functools import cache

import torch

from fromfew.concept import Card, Concept
from fromfew.parts.full import FullDelta
from fromfew.parts.low_rank import LowRank
from fromfew.parts.word import Word
from fromfew.ports.part import Parts
from fromfew.testing.tiny import tiny as fresh

tiny = cache(fresh)
"""One twin of each name for all tests; nothing here alters it."""


def concept(bb, method, *, placeholder="<v>", noun="cat", **parts):
    card = Card(method, {}, {"name": bb.name, "family": bb.family, "fingerprint": bb.fingerprint()})
    return Concept("rex", placeholder, noun, Parts(**parts), card)


def random(part, scale, seed=1):
    rng = torch.Generator().manual_seed(seed)
    for value in part.parameters():
        value.data = torch.randn(value.shape, generator=rng) * scale
    return part.requires_grad_(False)


def low_rank(bb, *what, rank=4, alpha=2.0, seed=1, scale=0.3):
    maps = bb.select(*what)
    return random(LowRank({p: tuple(m.weight.shape) for p, m in maps.items()}, rank, alpha), scale, seed)


def lora(bb, *, encoder=True, targets=("attention",), **how):
    clip = {p: m for p, m in bb.select("encoder.attention").items() if "layers." in p}
    text = LowRank({p: tuple(m.weight.shape) for p, m in clip.items()}, how.get("rank", 4), how.get("alpha", 2.0))
    return concept(
        bb, "lora", word=Word.plain("<v>", "red"), denoiser=low_rank(bb, *targets, **how),
        encoder=random(text, 0.3, 2) if encoder else None,
    )  # fmt: skip


def word(bb, count=2, placeholder="<v>", noun="cat"):
    rng = torch.Generator().manual_seed(5)
    part = Word.learned(bb, placeholder, "dog", count, rng)
    for value in part.vectors.values():
        value.data += torch.randn(value.shape, generator=rng) * value.std()
    return concept(bb, "textual-inversion", word=part.requires_grad_(False), placeholder=placeholder, noun=noun)


def dreambooth(bb, scale=0.02):
    part = random(FullDelta.of(bb, "denoiser"), scale)
    return concept(bb, "dreambooth", word=Word.plain("<v>", "red"), denoiser=part)


def custom(bb, scale=0.3):
    maps = random(FullDelta.of(bb, *bb.select("text.key", "text.value")), scale)
    return concept(bb, "custom-diffusion", word=word(bb, 1).parts.word, maps=maps)
