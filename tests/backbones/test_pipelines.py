"""A folder saved by diffusers opens, and without concepts draws what diffusers' own pipeline draws."""

import diffusers
import pytest
import torch

from fromfew.backbones.open import open_backbone
from fromfew.make import make, noise_of
from fromfew.testing.tiny import tiny_folder

SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "dpm++": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
}
PROMPTS = ["a cat on the beach", "a red unusualword, next to a lamp"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    saved = {}

    def folder(name):
        if name not in saved:
            saved[name] = tiny_folder(name, tmp_path_factory.mktemp(name))
        return saved[name]

    return folder


def both(folder, *, sampler, size=(32, 32), negative="", guidance=4.0, without=(), **call):
    """Pictures in [0, 1] of the pipeline and of make(), from the same latents."""
    bb = open_backbone(folder)
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(without))
    pipe.set_progress_bar_config(disable=True)
    shape = bb.latent_shape(*size)
    latents = torch.stack([noise_of(3, i, shape) for i in range(2)])
    given = latents
    if bb.family == "flux":
        given = pipe._pack_latents(latents, 2, *shape)
    elif bb.path.kind != "flow":
        # DDIM's default clips latents as if they were pictures; a scheduler of another kind says nothing
        # about it.
        more = {"clip_sample": False} if sampler == "ddim" else {}
        pipe.scheduler = SCHEDULERS[sampler].from_config(pipe.scheduler.config, **more)
    if bb.family != "unet":
        call["max_sequence_length"] = 32
    if bb.family != "flux":
        call["negative_prompt"] = [negative] * 2 if negative else None
    theirs = pipe(
        PROMPTS, latents=given, num_inference_steps=5, guidance_scale=guidance, output_type="pt",
        height=size[0], width=size[1], **call,
    ).images  # fmt: skip
    ours = make(
        bb,
        PROMPTS,
        latents=latents,
        steps=5,
        guidance=guidance,
        sampler=sampler,
        size=size,
        negative=negative,
    )
    return theirs, ours.tensor / 2 + 0.5


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("sd15", "ddim"), ("sd15", "dpm++"), ("sd15", "euler"), ("sd21", "ddim"), ("sd21", "dpm++"),
        ("sd21", "euler"),
        ("sdxl", "euler"), ("sdxl", "ddim"), ("sd3", "euler"), ("flux", "euler"),
    ],
)  # fmt: skip
def test_make_draws_what_the_diffusers_pipeline_draws(folders, name, sampler):
    theirs, ours = both(folders(name), sampler=sampler)
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3"])
def test_a_negative_prompt_means_what_it_means_in_diffusers(folders, name):
    theirs, ours = both(folders(name), sampler="euler" if name in ("sdxl", "sd3") else "ddim", negative="a blue car")
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("name", "sampler"), [("sd15", "ddim"), ("sdxl", "euler"), ("sd3", "euler"), ("flux", "euler")]
)
def test_pictures_that_are_not_square_agree_too(folders, name, sampler):
    theirs, ours = both(folders(name), sampler=sampler, size=(48, 32))
    assert ours.shape[-2:] == (48, 32)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_sd3_opens_without_t5(folders, tmp_path):
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(folders("sd3"), text_encoder_3=None, tokenizer_3=None)
    pipe.save_pretrained(tmp_path)
    (tmp_path / "fromfew.json").write_text(
        '{"guidance": 5, "steps": 5, "sampler": "euler", "size": 32, "long_text": 32}'
    )
    theirs, ours = both(tmp_path, sampler="euler", without=("text_encoder_3", "tokenizer_3"))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_guidance_of_one_costs_one_branch_and_is_the_conditional_picture(folders):
    theirs, ours = both(folders("sd15"), sampler="ddim", guidance=1.0)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
