"""The stages in their order, how one builds on another, and the folder a base model becomes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from safetensors.torch import save_file

from fromfew.errors import FromfewError, unknown
from fromfew.io.files import replacing
from fromfew.pretrain.autoencoder import Autoencoder
from fromfew.pretrain.data import Scenes
from fromfew.pretrain.denoiser import SCHEDULE, Denoiser, Latents
from fromfew.pretrain.evaluators import FaceStage, JudgeStage, PairStage
from fromfew.pretrain.loop import Run, Trainee
from fromfew.pretrain.text import Text, text_encoder

BASE_SHARDS = 40
"""Shards of 1,024 scenes that the denoiser sees before the stream begins again."""


def finished(stage: Trainee, folder: Path) -> Any:
    """The averaged network of a stage that has run.

    Raises:
        FromfewError: the stage has not been run in this folder.
    """
    if not (folder / stage.name / "state.safetensors").exists():
        raise FromfewError(f"'{stage.name}' has not been trained in {folder}; run `fromfew pretrain {stage.name}`")
    run = Run(stage, folder)
    with torch.no_grad():
        torch._foreach_copy_(run.trained, run.average)
    return run.model.eval().requires_grad_(False)


def autoencoder(folder: Path) -> tuple[Any, float]:
    """The trained autoencoder and the factor that gives its latents a standard deviation of one."""
    stage = Autoencoder(folder)
    model = finished(stage, folder)
    return model, round(1 / stage.measure(model)["latent_std"], 4)


def towers(folder: Path) -> tuple[Any, Any]:
    """The trained text tower and eye, with the tokenizer."""
    stage = Text(folder)
    return finished(stage, folder), stage.tokenizer


def denoiser(folder: Path, device: str = "cpu") -> Denoiser:
    """The denoiser's stage, on the latents of the trained autoencoder."""
    vae, scale = autoencoder(folder)
    both, tokenizer = towers(folder)
    scenes = Scenes(folder / "scenes", seed=11, shards=BASE_SHARDS)
    latents = Latents(scenes, vae.to(device), scale)
    return Denoiser(latents, both.text.to(device), tokenizer, vae.config.latent_channels)


STAGES: dict[str, Callable[[Path, str], Trainee]] = {
    "autoencoder": lambda folder, device: Autoencoder(folder),
    "text": lambda folder, device: Text(folder),
    "denoiser": denoiser,
    "judge": lambda folder, device: JudgeStage(folder),
    "pair": lambda folder, device: PairStage(folder),
    "face": lambda folder, device: FaceStage(folder),
}
"""Stage name to what builds it, in the order they must run."""


def find_stage(name: str, folder: Path, device: str) -> Trainee:
    """The stage with a name.

    Raises:
        FromfewError: there is no such stage.
    """
    if name not in STAGES:
        raise unknown("stage", name, STAGES)
    return STAGES[name](folder, device)


def assemble(folder: Path, target: Path) -> None:
    """Write what has been trained as a standard diffusers folder (float16), without the pretrain states."""
    vae, scale = autoencoder(folder)
    both, tokenizer = towers(folder)
    unet = finished(denoiser(folder), folder)
    vae.register_to_config(scaling_factor=scale)
    text = text_encoder(both.text)
    target.mkdir(parents=True, exist_ok=True)
    for model, name in ((vae, "vae"), (text, "text_encoder"), (unet, "unet")):
        model.half().to(memory_format=torch.contiguous_format).save_pretrained(target / name)
        model.float()
    # AutoencoderTiny writes a setting that it does not read, and warns of it whenever the folder is opened.
    config = target / "vae" / "config.json"
    kept = {k: v for k, v in json.loads(config.read_text()).items() if k != "block_out_channels"}
    config.write_text(json.dumps(kept, indent=2) + "\n")
    tokenizer.save_pretrained(target / "tokenizer")
    DDIMScheduler(**SCHEDULE).save_pretrained(target / "scheduler")
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny"],
    }
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_eye(folder: Path, target: Path) -> None:
    """Write the eye's weights (float16)."""
    both, _ = towers(folder)
    with replacing(target) as new:
        save_file({k: v.half().contiguous() for k, v in both.eye.state_dict().items()}, new)
