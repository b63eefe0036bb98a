"""Names of components and modules as diffusers' pipelines have them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["changeable", "component", "file_name", "flattened", "owner", "pipeline", "wrapped"]

_ENDINGS = {"one": "", "two": "_2", "three": "_3"}


def component(bb: Backbone, owner: str) -> str:
    """A module of the backbone ("denoiser", "encoder.two") as a pipeline calls it."""
    if owner == "denoiser":
        return "unet" if bb.family == "unet" else "transformer"
    return "text_encoder" + _ENDINGS[owner.removeprefix("encoder.")]


def owner(path: str) -> tuple[str, str]:
    """A module path cut into the backbone's module and the rest.

    >>> owner("encoder.one.encoder.layers.0")
    ('encoder.one', 'encoder.layers.0')
    """
    pieces = path.split(".")
    count = 1 if pieces[0] == "denoiser" else 2
    return ".".join(pieces[:count]), ".".join(pieces[count:])


def wrapped(rest: str) -> str:
    """A module of a CLIP text encoder with the ``text_model.`` that files have and transformers 5 may lack."""
    bare = ("encoder.layers.", "embeddings.", "final_layer_norm")
    return f"text_model.{rest}" if rest.startswith(bare) else rest


def flattened(rest: str) -> str:
    """The inverse of `wrapped`."""
    return rest.removeprefix("text_model.")


def file_name(text: str, otherwise: str = "concept") -> str:
    """A name out of a file, made fit to name a file or folder: letters, digits, ``-`` and ``_`` only.

    >>> file_name("../../<rex>")
    'rex'
    """
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in text).strip("-")
    return plain[:80] or otherwise


def changeable(bb: Backbone) -> list[str]:
    """Paths of every linear map and convolution of denoiser and text encoders."""
    return [
        f"{name}.{path}"
        for name, model in bb.modules_().items()
        if name != "vae"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]


def pipeline(bb: Backbone) -> Any:
    """A diffusers pipeline around copies of the backbone's modules."""
    import copy

    import diffusers

    held = {"vae": bb.vae, component(bb, "denoiser"): bb.denoiser}
    held |= {component(bb, f"encoder.{key}"): one.model for key, one in bb.text_encoders.items()}
    parts: dict[str, Any] = {name: copy.deepcopy(module) for name, module in held.items()}
    for key, one in bb.text_encoders.items():
        parts["tokenizer" + _ENDINGS[key]] = copy.deepcopy(one.tokenizer)
    parts["scheduler"] = copy.deepcopy(bb.scheduler)
    if bb.family == "flux":
        return diffusers.FluxPipeline(**parts)
    if bb.family == "mmdit":
        empty = {"text_encoder_3": None, "tokenizer_3": None}
        return diffusers.StableDiffusion3Pipeline(**(empty | parts))
    if "two" in bb.text_encoders:
        blank = bool(getattr(bb, "_zeros_for_none", True))
        return diffusers.StableDiffusionXLPipeline(**parts, force_zeros_for_empty_prompt=blank)
    more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return diffusers.StableDiffusionPipeline(**parts, **more)
