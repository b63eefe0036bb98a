"""Samplers: diffusers' schedulers behind one face; times in (0, 1), latents as the path mixes them."""

from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from fromfew.errors import FromfewError, unknown
from fromfew.noise import NoisePath

_KINDS = {"epsilon": "eps", "v_prediction": "v"}
SAMPLERS = ("dpm++", "ddim", "euler")


def noise_path(scheduler: Any) -> NoisePath:
    """The noise path of the model that a diffusers scheduler was stored with.

    Raises:
        FromfewError: If it predicts something that is neither eps, v nor flow.
    """
    config = scheduler.config
    if isinstance(scheduler, FlowMatchEulerDiscreteScheduler):
        if config.use_dynamic_shifting:
            dynamic = (
                config.base_shift,
                config.max_shift,
                config.base_image_seq_len,
                config.max_image_seq_len,
            )
            return NoisePath("flow", dynamic=dynamic)
        return NoisePath("flow", shift=config.shift)
    predicts = config.get("prediction_type", "epsilon")
    if predicts not in _KINDS:
        raise FromfewError(
            f"The scheduler says the model predicts '{predicts}'; known are epsilon, v_prediction and flow."
        )
    return NoisePath(_KINDS[predicts], DDIMScheduler.from_config(config).alphas_cumprod)  # type: ignore[arg-type]


class Sampler:
    """One run of a diffusers scheduler; its state lives and dies with this object.

    Args:
        name: The sampler's name.
        scheduler: A fresh scheduler whose timesteps are set.
        path: The model's noise path.

    Attributes:
        times: ``[steps + 1]`` from noise to image, the last one 0.
    """

    def __init__(self, name: str, scheduler: Any, path: NoisePath) -> None:
        self.name, self.path, self._scheduler = name, path, scheduler
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        times = scheduler.sigmas[:-1] if path.kind == "flow" else path.time(scheduler.timesteps)
        self.times = torch.cat([times.float().cpu(), torch.zeros(1)])
        # Euler for eps and v works on latents divided by the signal level; everybody else sees them as mixed.
        self._divided = isinstance(scheduler, EulerDiscreteScheduler)
        self._norms = torch.ones(len(self.times))
        if self._divided:
            self._norms = (scheduler.sigmas.float() ** 2 + 1).sqrt()

    def __len__(self) -> int:
        return len(self.times) - 1

    def start(self, noise: Tensor) -> Tensor:
        """The first latents, from unit noise."""
        return noise * float(getattr(self._scheduler, "init_noise_sigma", 1.0) / self._norms[0])

    def step(self, i: int, pred: Tensor, xt: Tensor) -> Tensor:
        """From the latents at ``times[i]`` to those at ``times[i + 1]``."""
        timestep = self._scheduler.timesteps[i]
        inner = xt * self._norms[i].to(xt.device)
        if self._divided:
            self._scheduler.is_scale_input_called = True  # predict() is given the scaled latents already
        after = self._scheduler.step(pred, timestep, inner, return_dict=False)[0]
        return (after / self._norms[i + 1].to(xt.device)).to(xt.dtype)


def build_sampler(stored: Any, path: NoisePath, name: str, steps: int, tokens: int, *, even: bool = False) -> Sampler:
    """A fresh sampler for one run.

    Args:
        stored: The scheduler stored with the model.
        path: The model's noise path.
        name: One of `SAMPLERS`.
        steps: How many steps.
        tokens: Image tokens of the picture, which FLUX's time shift depends on.
        even: Space the flow's times evenly before shifting, as FLUX does.

    Raises:
        FromfewError: If the name is unknown, or no sampler of that name fits the model.
    """
    if name not in SAMPLERS:
        raise unknown("sampler", name, SAMPLERS)
    if steps < 1:
        raise FromfewError(f"A picture needs at least one step, not {steps}.")
    if path.kind == "flow":
        return _flow(stored, path.for_tokens(tokens), name, steps, even)
    config = dict(stored.config)
    if name == "ddim":
        scheduler: Any = DDIMScheduler.from_config(config, clip_sample=config.get("clip_sample", False))
    elif name == "euler":
        scheduler = EulerDiscreteScheduler.from_config(config)
    else:
        scheduler = DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    scheduler.set_timesteps(steps)
    return Sampler(name, scheduler, path)


def _flow(stored: Any, path: NoisePath, name: str, steps: int, even: bool) -> Sampler:
    if name == "ddim":
        raise FromfewError("'ddim' does not fit a flow model: use 'euler' or 'dpm++'.")
    if name == "dpm++":
        solver: Any = DPMSolverMultistepScheduler(
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=path.shift,
            final_sigmas_type="zero",
        )
        solver.set_timesteps(steps)
        return Sampler(name, solver, path)
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(stored.config)
    sigmas = np.linspace(1.0, 1 / steps, steps).tolist() if even else None
    mu = float(np.log(path.shift)) if stored.config.use_dynamic_shifting else None
    scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu)
    return Sampler(name, scheduler, path)
