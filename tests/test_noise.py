import math

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fromfew.backbones.samplers import build_sampler, noise_path
from fromfew.errors import FromfewError
from fromfew.noise import NoisePath, zero_terminal_snr

ALPHAS = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
PATHS = {
    "eps": NoisePath("eps", ALPHAS),
    "v": NoisePath("v", ALPHAS),
    "v to zero": NoisePath("v", zero_terminal_snr(ALPHAS)),
    "flow": NoisePath("flow", shift=3.0),
}


def pair(seed=0):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, 8, 8, generator=rng), torch.randn(1, 4, 8, 8, generator=rng)


@pytest.mark.parametrize("name", PATHS)
@given(t=st.floats(0.001, 0.999), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_split_undoes_mix_at_any_time(name, t, seed):
    (x0, noise), path, time = pair(seed), PATHS[name], torch.tensor([t])
    image, left = path.split(path.mix(x0, noise, time), path.target(x0, noise, time), time)
    torch.testing.assert_close(image, x0, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(left, noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PATHS)
def test_time_0_is_the_image_and_time_1_is_noise(name):
    (x0, noise), path = pair(), PATHS[name]
    assert (path.mix(x0, noise, torch.tensor([0.0])) - x0).abs().max() < 0.15
    assert (path.mix(x0, noise, torch.tensor([1.0])) - noise).abs().max() < 0.35


def test_mix_and_target_are_those_of_diffusers():
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    (x0, noise), index = pair(), torch.tensor([613])
    path = PATHS["v"]
    t = path.time(index)
    assert path.index(t) == index
    torch.testing.assert_close(path.mix(x0, noise, t), scheduler.add_noise(x0, noise, index))
    torch.testing.assert_close(path.target(x0, noise, t), scheduler.get_velocity(x0, noise, index))


def test_every_timestep_survives_the_way_to_a_time_and_back():
    index = torch.arange(1000)
    assert torch.equal(PATHS["eps"].index(PATHS["eps"].time(index)), index)


def test_times_are_drawn_as_the_models_were_trained():
    rng = torch.Generator().manual_seed(0)
    uniform, shifted = PATHS["eps"].draw(20000, rng), PATHS["flow"].draw(20000, rng)
    assert abs(uniform.mean() - 0.5) < 0.01
    # the median of a logit-normal is 1/2, which a shift of 3 moves to 3/4
    assert abs(shifted.median() - 0.75) < 0.01
    again = torch.Generator().manual_seed(0)
    assert torch.equal(PATHS["eps"].draw(20000, again), uniform)


def test_zero_terminal_snr_ends_in_pure_noise_and_keeps_the_first_step():
    fixed = zero_terminal_snr(ALPHAS)
    assert fixed[-1] == 0
    torch.testing.assert_close(fixed[0], ALPHAS[0])
    assert (fixed.diff() < 0).all()
    theirs = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
    )
    torch.testing.assert_close(fixed, theirs.alphas_cumprod, atol=1e-5, rtol=1e-3)


def test_the_dynamic_shift_is_flux_own():
    path = noise_path(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    assert math.isclose(path.for_tokens(256).shift, math.exp(0.5), rel_tol=1e-6)
    assert math.isclose(path.for_tokens(4096).shift, math.exp(1.15), rel_tol=1e-6)
    assert PATHS["flow"].for_tokens(4096).shift == 3.0


@pytest.mark.parametrize("kind", ["eps", "flow", "x0"])
def test_a_path_that_contradicts_itself_is_refused(kind):
    with pytest.raises(ValueError, match=kind):
        NoisePath(kind, None if kind != "flow" else ALPHAS)


STORED = {
    "eps": diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
    ),
    "v": diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    ),
    "flow": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "dynamic": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
}


FITTING = [(name, one) for name in ("eps", "v") for one in ("ddim", "dpm++", "euler")]
FITTING += [(name, one) for name in ("flow", "dynamic") for one in ("dpm++", "euler")]


@pytest.mark.parametrize(("stored", "sampler"), FITTING)
def test_a_sampler_led_by_the_truth_arrives_at_the_image(stored, sampler):
    path, (x0, noise) = noise_path(STORED[stored]), pair()
    run = build_sampler(STORED[stored], path, sampler, 12, tokens=64)
    x = run.start(noise)
    assert run.times[-1] == 0
    assert (run.times.diff() < 0).all()
    for i in range(len(run)):
        t = run.times[i].expand(1)
        signal, sigma = path.levels(t)
        left = (x - signal * x0) / sigma  # the noise that is in x if x0 is the image
        # a sampler's latents are mixed as the path mixes them: their noise stays of unit size
        assert 0.8 < float(left.std()) / float(noise.std()) < 1.3
        x = run.step(i, path.target(x0, left, t), x)
    torch.testing.assert_close(x, x0, atol=0.15, rtol=0)


def test_a_model_that_predicts_something_else_is_refused():
    with pytest.raises(FromfewError, match="'sample'"):
        noise_path(diffusers.DDIMScheduler(prediction_type="sample"))
