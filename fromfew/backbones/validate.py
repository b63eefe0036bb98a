"""What may be loaded: known classes, safetensors with a sound header, configurations that name no code."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from fromfew.errors import FromfewError
from fromfew.io.tensors import read_header

_UNET = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_TWO = ("text_encoder_2", "tokenizer_2")
_JOINT = ("transformer", *_UNET[1:], *_TWO)
PIPELINES: dict[str, tuple[str, ...]] = {
    "StableDiffusionPipeline": _UNET,
    "StableDiffusionXLPipeline": (*_UNET, *_TWO),
    "StableDiffusion3Pipeline": _JOINT,
    "FluxPipeline": _JOINT,
}
"""Pipelines that can be opened, and the components each needs."""

_MODELS: dict[str, Any] = {
    "UNet2DConditionModel": diffusers.UNet2DConditionModel,
    "SD3Transformer2DModel": diffusers.SD3Transformer2DModel,
    "FluxTransformer2DModel": diffusers.FluxTransformer2DModel,
    "AutoencoderKL": diffusers.AutoencoderKL,
    "AutoencoderTiny": diffusers.AutoencoderTiny,
    "CLIPTextModel": transformers.CLIPTextModel,
    "CLIPTextModelWithProjection": transformers.CLIPTextModelWithProjection,
    "T5EncoderModel": transformers.T5EncoderModel,
}
_TOKENIZERS: dict[str, Any] = {
    "CLIPTokenizer": transformers.CLIPTokenizer,
    "CLIPTokenizerFast": transformers.CLIPTokenizer,
    "T5Tokenizer": transformers.T5Tokenizer,
    "T5TokenizerFast": transformers.T5Tokenizer,
}
_SCHEDULERS: dict[str, Any] = {
    name: getattr(diffusers, name)
    for name in (
        "DDIMScheduler", "DDPMScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
        "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler",
        "HeunDiscreteScheduler", "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler",
        "UniPCMultistepScheduler",
    )
}  # fmt: skip
CLASSES = {**_MODELS, **_TOKENIZERS, **_SCHEDULERS}
"""Every class that may be loaded, by the name a model_index.json gives it."""

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_IGNORED = ("safety_checker", "feature_extractor", "image_encoder")


def check_folder(folder: Path, variant: str | None = None, *, weights: bool = True) -> dict[str, Any]:
    """Check a diffusers folder before anything of it is loaded; without ``weights``, its configuration only.

    Returns:
        Its model_index.json.

    Raises:
        FromfewError: If a class is unknown, a configuration names code, or weights are no sound safetensors.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise FromfewError(f"'{folder}' is no diffusers folder: it has no model_index.json.{_found(folder)}")
    index = read_config(path)
    pipeline = index.get("_class_name")
    if pipeline not in PIPELINES:
        raise FromfewError(f"'{path}' is a '{pipeline}'; fromfew opens {', '.join(PIPELINES)}.")
    for part, spec in index.items():
        if part in _IGNORED or not isinstance(spec, list) or spec in ([], [None, None]):
            continue
        if len(spec) != 2 or spec[1] not in CLASSES:
            known = ", ".join(sorted(CLASSES))
            raise FromfewError(
                f"'{path}' wants the class '{spec[-1]}' for '{part}'. It is not loaded; known are: {known}."
            )
        _check_component(folder / part, spec[1], variant, weights)
    return index


def _check_component(folder: Path, kind: str, variant: str | None, needed: bool) -> None:
    if not folder.is_dir():
        raise FromfewError(f"'{folder.parent}' has no folder '{folder.name}', which its model_index.json names.")
    for config in sorted(folder.glob("*.json")):
        read_config(config)
    if kind in _MODELS and needed:
        weights = sorted(folder.glob("*.safetensors"))
        if not weights:
            raise FromfewError(f"'{folder}' has no .safetensors weights.{_found(folder)}")
        if variant and not any(f".{variant}" in file.name for file in weights):
            raise FromfewError(f"'{folder}' has no weights of the variant '{variant}': {weights[0].name} is there.")
        for file in weights:
            check_weights(file)


def _found(folder: Path) -> str:
    """Names the pickles in a folder, and why they are refused."""
    pickles = sorted(file.name for file in folder.iterdir() if file.suffix.lower() in _PICKLES)
    if not pickles:
        return ""
    return f" {', '.join(pickles)} may run any code when read and is refused; convert it to safetensors first."


def check_weights(path: Path) -> None:
    """Check that a file holds safetensors and not a web page, a pointer or nothing.

    Raises:
        FromfewError: If it does not; the message says what it is.
    """
    if path.stat().st_size == 0:
        raise FromfewError(f"'{path}' is empty (0 bytes): the download did not finish. Fetch it again.")
    with path.open("rb") as file:
        head = file.read(64).lstrip()
    if head.startswith(b"<"):
        raise FromfewError(f"'{path}' is a web page, not weights: the download was answered with an error page.")
    if head.startswith(b"version https://git-lfs"):
        raise FromfewError(f"'{path}' is a pointer, not weights: run `git lfs pull` in its folder.")
    read_header(path)


def read_config(path: Path) -> dict[str, Any]:
    """A JSON configuration that names no code.

    Raises:
        FromfewError: If it is empty, a web page, not JSON, or has an ``auto_map``.
    """
    raw = path.read_bytes().strip()
    if not raw:
        raise FromfewError(f"'{path}' is empty: the download did not finish. Fetch it again.")
    if raw.startswith(b"<"):
        raise FromfewError(f"'{path}' is a web page, not JSON: the download was answered with an error page.")
    try:
        found = json.loads(raw)
    except ValueError as error:
        raise FromfewError(f"'{path}' is not JSON: {error}.") from error
    if isinstance(found, dict) and found.get("auto_map"):
        raise FromfewError(f"'{path}' has an auto_map: it asks to run code of its own ({found['auto_map']}). Refused.")
    return found


def load_component(folder: Path, kind: str, dtype: torch.dtype, variant: str | None = None) -> Any:
    """Load one checked component; nothing is fetched from anywhere."""
    if kind not in _MODELS:
        return CLASSES[kind].from_pretrained(folder, local_files_only=True)
    how = {"dtype": dtype} if hasattr(transformers, kind) else {"torch_dtype": dtype}
    bars = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        return _MODELS[kind].from_pretrained(
            folder, use_safetensors=True, local_files_only=True, variant=variant, **how
        )
    finally:
        if bars:
            transformers.utils.logging.enable_progress_bar()
