"""The proofs: methods learn held-out subjects of the world. Slow: ``pytest -m slow tests/test_proofs.py``."""

import numpy as np
import pytest
import torch

import fromfew
from fromfew.pretrain.data import CONTEXT_NAMES, half, to_tensor
from fromfew.world.evaluators import evaluator
from fromfew.world.reference import references
from fromfew.world.vocabulary import CONTEXTS

SUBJECTS = ("peacock", "roller-skate", "mate")
PLACES = ("beach", "snow", "city", "wood")


@pytest.fixture(scope="module")
def bb():
    return fromfew.open_backbone("world")


def scores(bb, refs, concepts, word):
    """Mean likeness to the references, and the share of pictures in the context that was asked for."""
    judge = evaluator("judge")
    prompts = [f"a {word}{refs.noun} {CONTEXTS[place]}" for place in PLACES]
    drawn = fromfew.make(bb, prompts * 2, concepts, seed=11).tensor
    shown = to_tensor(np.stack([np.asarray(photo.image) for photo in refs.photos]))
    with torch.no_grad():
        alike = (judge.embedding(half(drawn)) @ judge.embedding(half(shown)).T).mean()
        told = judge(half(drawn))["context"].argmax(1)
    asked = torch.tensor([CONTEXT_NAMES.index(place) for place in PLACES] * 2)
    return float(alike), float((told == asked).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "textual-inversion", "custom-diffusion", "dreambooth", "ip-adapter", "e4t"])
def test_a_method_beats_the_untouched_base_on_held_out_subjects(bb, method):
    gained, lost = [], []
    for subject in SUBJECTS:
        refs = references(subject, n=5)
        before, there = scores(bb, refs, [], "")
        concept = fromfew.learn(refs, method=method, base=bb, seed=0)
        after, still = scores(bb, refs, [concept], "<v> ")
        gained.append(after - before)
        lost.append(there - still)
    assert np.mean(gained) > 0.1, gained
    assert np.mean(lost) < 0.3, lost
