"""The stages in their order, how one builds on another, and the folder a base model becomes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny, DDIMScheduler
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from fromfew.errors import FromfewError, unknown
from fromfew.io.files import replacing
from fromfew.pretrain.autoencoder import Autoencoder
from fromfew.pretrain.data import Scenes
from fromfew.pretrain.denoiser import SCHEDULE, Denoiser, Latents
from fromfew.pretrain.evaluators import FaceStage, JudgeStage, PairStage
from fromfew.pretrain.loop import Run, Trainee
from fromfew.pretrain.text import EyeStage, Text, text_encoder

BASE = Path(__file__).parent.parent / "weights" / "base"
"""The shipped base, which a stage builds on where nothing of its own has been trained."""
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


def _trained(name: str, folder: Path) -> bool:
    return (folder / name / "state.safetensors").exists()


def autoencoder(folder: Path) -> tuple[Any, float]:
    """The autoencoder and the factor that gives its latents a deviation of one; the shipped one if none is trained.

    One with the shipped encoder keeps the shipped factor: its denoiser has learned with that.
    """
    shipped = AutoencoderTiny.from_pretrained(BASE / "vae", torch_dtype=torch.float32).eval().requires_grad_(False)
    scale = float(shipped.config.scaling_factor)
    if not _trained("autoencoder", folder):
        return shipped, scale
    stage = Autoencoder(folder)
    model = finished(stage, folder)
    ours, theirs = model.encoder.state_dict(), shipped.encoder.state_dict()
    if ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours):
        return model, scale
    return model, round(1 / stage.measure(model)["latent_std"], 4)


def tower(folder: Path) -> CLIPTextModel:
    """The text tower as the denoiser reads it; the shipped one if none is trained."""
    if not _trained("text", folder):
        model = CLIPTextModel.from_pretrained(BASE / "text_encoder", torch_dtype=torch.float32)
        return model.eval().requires_grad_(False)
    return text_encoder(finished(Text(folder), folder)).requires_grad_(False)


def denoiser(folder: Path, device: str = "cpu", start: str | None = None) -> Denoiser:
    """The denoiser's stage, on the latents of the autoencoder.

    Args:
        folder: of pre-training.
        device: where it runs.
        start: a diffusers folder whose ``unet`` it begins from, or ``"world"`` for the shipped base.
    """
    vae, scale = autoencoder(folder)
    text = tower(folder)
    where = folder / "tokenizer" if _trained("text", folder) else BASE / "tokenizer"
    scenes = Scenes(folder / "scenes", seed=11, shards=BASE_SHARDS)
    latents = Latents(scenes, vae.to(device), scale)
    tokenizer = CLIPTokenizer.from_pretrained(where)
    return Denoiser(latents, text.to(device), tokenizer, vae.config.latent_channels, _begin(start, "unet"))


def _begin(start: str | None, model: str) -> Path | None:
    return None if start is None else (BASE if start == "world" else Path(start)) / model


STARTED: dict[str, Callable[[Path, str, str], Trainee]] = {
    "autoencoder": lambda folder, device, start: Autoencoder(folder, start=_begin(start, "vae")),
    "denoiser": denoiser,
}
"""Stages that can begin from the weights of a base: "world" or a diffusers folder."""


STAGES: dict[str, Callable[[Path, str], Trainee]] = {
    "autoencoder": lambda folder, device: Autoencoder(folder),
    "text": lambda folder, device: Text(folder),
    "eye": lambda folder, device: EyeStage(folder, finished(Text(folder), folder).to(device)),
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
    stage = denoiser(folder)
    text, tokenizer, unet = stage.text, stage.tokenizer, finished(stage, folder)
    vae.register_to_config(scaling_factor=scale)
    target.mkdir(parents=True, exist_ok=True)
    for model, name in ((vae, "vae"), (text, "text_encoder"), (unet, "unet")):
        model.half().to(memory_format=torch.contiguous_format).save_pretrained(target / name)
        model.float()
    # AutoencoderTiny writes a setting that it does not read, and warns of it whenever the folder is opened.
    config = target / "vae" / "config.json"
    kept = json.loads(config.read_text())
    for name in ("block_out_channels", "_name_or_path"):  # the other says where this machine keeps its files
        kept.pop(name, None)
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
    sight = finished(find_stage("eye", folder, "cpu"), folder)
    with replacing(target) as new:
        save_file({k: v.half().contiguous() for k, v in sight.eye.state_dict().items()}, new)
