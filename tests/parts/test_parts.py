"""Every part keeps the contract of parts on every kind of backbone."""

import pytest
import torch
from weight_makers import ONLY_WEIGHTS, WEIGHTS
from word_makers import ONLY as ONLY_WORDS
from word_makers import WORDS

from fromfew.concept import kinds
from fromfew.fit import generator
from fromfew.parts.full import FullDelta
from fromfew.parts.image_states import ImageStates
from fromfew.parts.image_stream import ImageStream
from fromfew.parts.lead import Lead
from fromfew.parts.low_rank import LowRank
from fromfew.parts.record import Record
from fromfew.parts.reference_blocks import ReferenceBlocks
from fromfew.parts.share import ShareFirst, adain
from fromfew.parts.shared_norm import SharedNorm
from fromfew.parts.still_first import StillFirst
from fromfew.testing.contract import check_part
from fromfew.testing.tiny import tiny


def stir(part):
    rng = generator(3)
    with torch.no_grad():
        for value in part.parameters():
            value.add_(torch.randn(value.shape, generator=rng) * 0.1)
    return part.requires_grad_(False)


def stream(bb):
    width = next(iter(bb.select("text.key").values())).in_features
    tokens = torch.randn(1, 3, width, generator=generator(1))
    return ImageStream.of(bb, width, 3).holding(tokens, torch.zeros_like(tokens))


def blocks(bb):
    photo = torch.randn(1, *bb.latent_shape(), generator=generator(6))
    return ReferenceBlocks.of(bb, "cat", photo, generator(0))


def besides(bb):
    states = bb.embed([""]).states.shape[-1]
    return ImageStates.of(torch.randn(2, 12, generator=generator(4)), states, "cat", 1.0, generator(0))


MAKERS = {
    "reference_blocks": blocks,
    "image_states": besides,
    "full": lambda bb: FullDelta.of(bb, *bb.select("attention")),
    "low_rank": lambda bb: LowRank.of(bb.select("attention"), 2, 4.0, generator(0)),
    "image_stream": stream,
    "share": lambda bb: ShareFirst(),
    "shared_norm": lambda bb: SharedNorm(),
    "still_first": lambda bb: StillFirst(),
    "record": lambda bb: Record(("cat",)),
    "lead": lambda bb: Lead("a dog"),
    **WEIGHTS,
    **WORDS,
}
ONLY = {**ONLY_WEIGHTS, "reference_blocks": ("sd15",), **ONLY_WORDS}  # needs blocks that read text apart
QUIET = {"box", "key_lock", "still_first", "record", "lead", "regions"}  # change no single prediction


def test_every_part_is_checked():
    assert sorted(MAKERS) == kinds()


PAIRS = [(kind, base) for kind in sorted(MAKERS) for base in ONLY.get(kind, ("sd15", "sd3", "flux"))]


@pytest.mark.parametrize(("kind", "base"), PAIRS)
def test_part_keeps_the_contract(kind, base):
    bb = tiny(base)
    acts = kind not in QUIET and not (kind == "shared_norm" and base != "sd15")
    report = check_part(stir(MAKERS[kind](bb)), bb, acts=acts)
    assert len(report.ran) >= 5


def test_adain_gives_the_statistics_of_the_other():
    rng = torch.Generator().manual_seed(0)
    z, other = (torch.randn(2, 3, 50, 4, generator=rng) * s + s for s in (1, 3))
    new = adain(z, other)
    assert torch.allclose(new.mean(2), other.mean(2), atol=1e-4)
    assert torch.allclose(new.var(2), other.var(2), rtol=1e-2)
