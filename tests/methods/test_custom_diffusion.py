import pytest
import torch

from fromfew.fit import generator
from fromfew.method import find
from fromfew.parts.full import FullDelta
from fromfew.parts.still_first import StillFirst
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 2e-2, "word_lr": 2e-2, "prior": 0.0}


@pytest.mark.parametrize("base", ["sd15", "sd3", "flux"])
def test_only_the_words_vectors_and_the_maps_that_read_text_are_kept(base):
    bb = tiny(base)
    parts = find("custom-diffusion")(**QUICK).learn(bb, few_photos()).parts
    maps = {path for name in bb.select("text.key", "text.value") for path, _ in _parameters(bb, name)}
    assert set(parts.maps.shapes()) == maps
    assert [name for name, _ in parts.items()] == ["word", "maps"]
    assert all(bool(value.any()) for value in parts.maps.deltas.values())


def _parameters(bb, name):
    return [(f"{name}.{one}", p) for one, p in bb.module(name).named_parameters()]


def test_the_first_token_sends_no_gradient_to_the_maps():
    bb = tiny("sd15")
    maps = FullDelta.of(bb, *bb.select("text.key", "text.value"))
    text = bb.embed(["a cat"])
    first = type(text)(prompts=text.prompts, states=text.states[:, :1], pooled=text.pooled, words=text.words)
    xt = torch.randn(1, *bb.latent_shape(), generator=torch.Generator().manual_seed(0))
    seen = []
    for extra in ((), (StillFirst(),)):
        with bb.attach(maps, *extra):
            out = bb.predict(xt, torch.full((1,), 0.5), first).square().mean()
            grads = torch.autograd.grad(out, list(maps.parameters()), allow_unused=True)
        seen.append([g is not None and bool(g.any()) for g in grads])
    assert any(seen[0])
    assert not any(seen[1])


def test_small_and_large_views_say_so_in_their_prompts_and_mask_what_lies_outside():
    bb, refs = tiny("sd15"), few_photos()
    source = find("custom-diffusion")(**QUICK, views=0).photos(bb, refs)
    batches = [source(generator(0, step)) for step in range(30)]
    captions = [caption for batch in batches for caption in batch.captions]
    assert any("far away" in one or "very small" in one for one in captions)
    assert all("<v> cat" in one for one in captions)
    small = [batch.masks[i] for batch in batches if batch.masks is not None for i in range(2)]
    assert any(float(mask.mean()) < 0.5 for mask in small)


def test_the_word_begins_as_a_rare_one():
    bb = tiny("sd15")
    word = find("custom-diffusion")(**QUICK).parts(bb, few_photos(), generator(0)).word
    assert word.start not in ("cat", "")
