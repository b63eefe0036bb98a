"""A whole model with the concept merged in, as a folder that diffusers opens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fromfew.errors import FromfewError
from fromfew.io.files import replace_folder, write_atomic
from fromfew.io.forms.names import pipeline
from fromfew.ports.linear import DeltaPart, LinearPart, flat
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.ports.part import Part

__all__ = ["merged", "read", "write"]


def merged(concept: Concept, bb: Backbone) -> Any:
    """A diffusers pipeline of the base with the concept's weight changes added; the base itself is untouched.

    Raises:
        FromfewError: If the concept holds more than words and changes of weights.
    """
    held = [(name, part) for name, part in concept.parts.items() if not isinstance(part, WordPart)]
    for name, part in held:
        if not isinstance(part, LinearPart | DeltaPart):
            raise FromfewError(f"A model's weights cannot hold {name}: {part!r}.")
    pipe = pipeline(bb)
    modules = _modules(pipe, bb)
    with torch.no_grad():
        for _, part in held:
            for path, delta in _deltas(part, bb):
                owner = next(name for name in modules if path.startswith(f"{name}."))
                target = modules[owner].get_parameter(path[len(owner) + 1 :])
                target += (concept.strength * delta).to(target)
    return pipe


def _modules(pipe: Any, bb: Backbone) -> dict[str, Any]:
    from fromfew.io.forms.names import component

    return {name: getattr(pipe, component(bb, name)) for name in bb.modules_() if name != "vae"}


def _deltas(part: Part, bb: Backbone) -> list[tuple[str, torch.Tensor]]:
    if isinstance(part, LinearPart):
        return [(f"{path}.weight", part.delta(path).detach()) for path in part.targets()]
    assert isinstance(part, DeltaPart)
    return [(path, part.delta_of(path, bb.parameter(path)).detach()) for path in part.shapes()]


def write(concept: Concept, bb: Backbone, folder: Path) -> None:
    """Save the merged model as safetensors, with the base's defaults beside, in one step."""
    from fromfew.backbones.open import write_defaults

    pipe = merged(concept, bb)
    with replace_folder(folder, keep=False) as fresh:
        pipe.save_pretrained(fresh, safe_serialization=True)
        _as_open(fresh / "scheduler" / "scheduler_config.json", bb)
        write_defaults(fresh, bb.defaults)


def _as_open(path: Path, bb: Backbone) -> None:
    """Leave out of the saved scheduler what the base left open: another scheduler has other defaults there."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for name in bb.scheduler.config.get("_use_default_values", ()):
        config.pop(name, None)
    write_atomic(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def read(folder: Path, bb: Backbone) -> tuple[Part | None, list[str]]:
    """The difference of a model in a folder from the base, parameter by parameter; None if there is none.

    Returns:
        The difference, and parameters of the folder that the base lacks or that it has in another shape.

    Raises:
        FromfewError: If the folder holds a model of another family.
    """
    from fromfew.backbones.open import open_backbone
    from fromfew.parts.full import FullDelta

    other = open_backbone(folder)
    if other.family != bb.family:
        raise FromfewError(f"'{folder}' is of the family {other.family}, '{bb.name}' of {bb.family}.")
    deltas, ignored = {}, []
    for name, module in other.modules_().items():
        if name == "vae" or name not in bb.modules_():
            continue
        mine = dict(bb.modules_()[name].named_parameters())
        for path, value in module.named_parameters():
            base = mine.get(path)
            if base is None or base.shape != value.shape:
                ignored.append(f"{name}.{path}")
            elif not torch.equal(base, value):
                deltas[f"{name}.{path}"] = (value - base).detach().float().cpu()
    if not deltas:
        return None, ignored
    part = FullDelta({path: tuple(value.shape) for path, value in deltas.items()})
    for path, delta in deltas.items():
        part.deltas[flat(path)].data = delta
    return part, ignored
