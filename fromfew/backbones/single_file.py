"""A single ``.safetensors`` checkpoint, converted by diffusers with a configuration on this machine."""

from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint

from fromfew.backbones.base import Backbone
from fromfew.backbones.validate import check_folder, check_weights
from fromfew.errors import FromfewError
from fromfew.io.tensors import refuse_pickle


def open_single_file(path: Path, dtype: torch.dtype, config: Path | None) -> Backbone:
    """Open one checkpoint file.

    Args:
        path: The file.
        dtype: Number format.
        config: A diffusers folder of the same architecture; its weights, if it has any, are not read.

    Raises:
        FromfewError: If it is no safetensors file, or no configuration for it is to be had.
    """
    from fromfew.backbones.open import assemble, read_defaults

    refuse_pickle(path)
    if path.suffix != ".safetensors":
        raise FromfewError(f"'{path}' is no .safetensors file, the only kind of checkpoint that is read.")
    check_weights(path)
    folder = config or _known_config(path)
    pipeline = check_folder(folder, weights=False)["_class_name"]
    more: dict[str, Any] = {}
    if pipeline == "StableDiffusionPipeline":
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    try:
        loaded = getattr(diffusers, pipeline).from_single_file(
            str(path), config=str(folder), local_files_only=True, torch_dtype=dtype, **more
        )
    except (ValueError, KeyError, RuntimeError, OSError) as error:
        raise FromfewError(f"'{path}' does not fit the configuration in '{folder}': {error}") from error
    components = dict(loaded.components)
    if "force_zeros_for_empty_prompt" in loaded.config:
        components["force_zeros_for_empty_prompt"] = loaded.config.force_zeros_for_empty_prompt
    return assemble(path.stem, pipeline, components, read_defaults(folder))


def _known_config(path: Path) -> Path:
    """The configuration that diffusers recognises the checkpoint by, from the hub or its cache."""
    from fromfew.backbones.hub import snapshot

    known = fetch_diffusers_config(load_single_file_checkpoint(str(path), local_files_only=True))
    name = known["pretrained_model_name_or_path"]
    try:
        return snapshot(name, None, None, weights=False)
    except FromfewError as error:
        raise FromfewError(
            f"'{path}' holds weights only. Its configuration and tokenizers, those of '{name}', are neither "
            "in the hub's cache nor can the hub be reached. Connect once, or pass config=<a diffusers folder "
            "of that model>."
        ) from error
