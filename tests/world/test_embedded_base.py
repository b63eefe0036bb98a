"""The embedded base is a standard diffusers folder, and methods start from what it draws."""

import json

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import fromfew
from fromfew.make import noise_of
from fromfew.pretrain.ship import WEIGHTS


@pytest.fixture(scope="module")
def bb():
    return fromfew.open_backbone("world")


def test_any_diffusers_script_opens_it_and_draws_the_same_picture(bb):
    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS / "base", torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    noise = noise_of(3, 0, bb.latent_shape(128, 128))[None]
    prompt = "a red apple in the snow"
    theirs = pipe(prompt, latents=noise, guidance_scale=4.0, num_inference_steps=4, output_type="pt").images
    ours = fromfew.make(bb, prompt, seed=3, steps=4, sampler="ddim", guidance=4.0).tensor
    assert torch.allclose(ours / 2 + 0.5, theirs.float(), atol=1e-4)


def test_pictures_follow_the_prompt(bb):
    drawn = fromfew.make(bb, ["a red apple in the snow", "a red apple in space"], seed=1, steps=8).tensor
    snow, space = drawn.mean((1, 2, 3)).tolist()
    assert snow > 0.3  # light
    assert space < -0.3  # dark


def test_a_concept_learned_and_saved_draws_the_same_picture_again(bb, tmp_path):
    photos = [WEIGHTS.parent.parent / "examples" / "photos" / "peacock"]
    concept = fromfew.learn(photos[0], noun="bird", placeholder="<pea>", base=bb, steps=6, seed=2)
    concept.save(tmp_path / "pea")
    again = fromfew.load(tmp_path / "pea")
    first, second, plain = (
        fromfew.make(bb, "a <pea> bird on the beach", held, seed=5, steps=3).tensor for held in (concept, again, ())
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, plain)
    card = json.loads((tmp_path / "pea" / "concept.json").read_text())
    assert card["noun"] == "bird"
    assert np.isfinite(first.numpy()).all()
