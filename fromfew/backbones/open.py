"""open_backbone: a name, a diffusers folder, a single checkpoint file or a hub id becomes a Backbone."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch

from fromfew.backbones.base import Backbone, Defaults
from fromfew.backbones.validate import CLASSES, PIPELINES, check_folder, load_component
from fromfew.errors import FromfewError, unknown

_WORLD = Path(__file__).parents[1] / "weights" / "base"
_FILE = "fromfew.json"
_BESIDE = {  # by pipeline: guidance, steps, sampler, T5 tokens
    "StableDiffusionPipeline": (7.5, 30, "dpm++", 256),
    "StableDiffusionXLPipeline": (5.0, 30, "euler", 256),
    "StableDiffusion3Pipeline": (7.0, 28, "euler", 256),
    "FluxPipeline": (3.5, 28, "euler", 512),
}


def open_backbone(
    name: str | Path,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
) -> Backbone:
    """Open a frozen model. Only safetensors are read, never a pickle, and never code from the model's folder.

    Args:
        name: "world" (the model that comes with the package), "tiny-sd15" and its kin, "sd15-shape" (no numbers,
            for counting), a diffusers folder, a single ``.safetensors`` checkpoint, or a hub id "owner/name".
        device: Where to put it.
        dtype: Number format of its weights.
        revision: Commit, branch or tag of a hub id.
        variant: Weights' variant, such as "fp16".
        config: For a single checkpoint: a diffusers folder of the same architecture, for its configuration
            and tokenizers, weights not needed; by default those in the hub's cache.

    Raises:
        FromfewError: If there is no such model, it cannot be had offline, or it holds what is never loaded.
    """
    backbone = _open(str(name), dtype, revision, variant, config)
    if backbone.device.type == "meta":
        return backbone
    return backbone.to(device, None if backbone.dtype == dtype else dtype)


def _open(
    name: str, dtype: torch.dtype, revision: str | None, variant: str | None, config: str | Path | None
) -> Backbone:
    if name.startswith("tiny-"):
        from fromfew.backbones.twins import TWINS, twin

        if name[5:] not in TWINS:
            raise unknown("tiny backbone", name, [f"tiny-{one}" for one in TWINS])
        return assemble(name, *twin(name[5:]))
    if name == "sd15-shape":
        from fromfew.backbones.shapes import sd15

        return sd15()
    if name == "world":
        if not (_WORLD / "model_index.json").is_file():
            raise FromfewError(f"The embedded model 'world' is not installed: '{_WORLD}' has no model_index.json.")
        return _folder(_WORLD, name, dtype, variant)
    path = Path(name)
    if path.is_dir():
        return _folder(path, path.name, dtype, variant)
    if path.is_file():
        from fromfew.backbones.single_file import open_single_file

        return open_single_file(path, dtype, Path(config) if config else None)
    if len(name.split("/")) == 2 and not name.startswith((".", "/", "~")) and not path.suffix:
        from fromfew.backbones.hub import snapshot

        return _folder(snapshot(name, revision, variant), name, dtype, variant)
    if "/" in name or path.suffix:
        raise FromfewError(f"'{name}' does not exist, and is no hub id of the form 'owner/name'.")
    raise unknown("backbone", name, ["world", "tiny-sd15", "tiny-sd21", "tiny-sdxl", "tiny-sd3", "tiny-flux"])


def _folder(folder: Path, name: str, dtype: torch.dtype, variant: str | None) -> Backbone:
    index = check_folder(folder, variant)
    components = {
        part: load_component(folder / part, spec[1], dtype, variant)
        for part, spec in index.items()
        if isinstance(spec, list) and spec[1] in CLASSES
    }
    if "force_zeros_for_empty_prompt" in index:
        components["force_zeros_for_empty_prompt"] = index["force_zeros_for_empty_prompt"]
    return assemble(name, index["_class_name"], components, read_defaults(folder))


def assemble(name: str, pipeline: str, components: Mapping[str, Any], defaults: Defaults | None = None) -> Backbone:
    """A backbone from loaded components, named as in a diffusers pipeline of that class.

    Raises:
        FromfewError: If no backbone is made of such a pipeline.
    """
    from fromfew.backbones.flux import FluxBackbone
    from fromfew.backbones.mmdit import MMDiTBackbone
    from fromfew.backbones.unet import UNetBackbone

    if pipeline not in PIPELINES:
        raise unknown("pipeline", pipeline, PIPELINES)
    kinds: dict[str, type[Backbone]] = {
        "StableDiffusion3Pipeline": MMDiTBackbone,
        "FluxPipeline": FluxBackbone,
    }
    needed = [part for part in PIPELINES[pipeline] if components.get(part) is None]
    if needed:
        raise FromfewError(f"'{name}' lacks {', '.join(needed)}, which a {pipeline} needs.")
    if defaults is None:
        guidance, steps, sampler, long_text = _BESIDE[pipeline]
        defaults = Defaults(guidance, steps, sampler, 0, long_text)
    backbone = kinds.get(pipeline, UNetBackbone)(name, components, defaults)
    if not defaults.size:
        sample = getattr(backbone.denoiser.config, "sample_size", None) or 128
        backbone.defaults = defaults = replace(defaults, size=sample * backbone.down)
        if pipeline == "FluxPipeline" and not backbone.distilled:  # FLUX schnell: four steps, no guidance of any kind
            backbone.defaults = replace(defaults, guidance=1.0, steps=4)
    return backbone


def read_defaults(folder: Path) -> Defaults | None:
    """How a folder's model likes to be asked, from its ``fromfew.json``; None if there is none.

    Raises:
        FromfewError: If the file is not JSON or names something unknown.
    """
    path = folder / _FILE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FromfewError(f"'{path}' is not JSON: {error}.") from error
    known = [field.name for field in fields(Defaults)]
    for key in found:
        if key not in known:
            raise unknown(f"default in '{path}'", key, known)
    return Defaults(**found)


def write_defaults(folder: Path, defaults: Defaults) -> None:
    """Store a model's defaults beside it."""
    (folder / _FILE).write_text(json.dumps(asdict(defaults), indent=2) + "\n", encoding="utf-8")
