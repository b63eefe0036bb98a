"""A stage's state in one safetensors file: parts, optimiser, losses; written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.io.tensors import read_header, read_tensors, write_tensors

__all__ = ["Kept", "load_state", "save_state"]

_MEMORY = "memory/"


class Remembered(Protocol):
    """What a state expects of an optimiser: tensors by parameter."""

    state: Any


@dataclass
class Kept:
    """What a stage remembers besides the numbers that learn.

    Args:
        losses: The loss of every step so far; their number is the step.
        seconds: Time spent so far.
        finished: Whether the stage has ended, be it before its last step.
        told: What the watch remembers, as plain JSON.
        seen: Tensors that the watch remembers.
        falls: The step at which the rates began to fall, and over how many, if the watch let them.
    """

    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    finished: bool = False
    told: Mapping[str, Any] | None = None
    seen: Mapping[str, Tensor] = field(default_factory=dict)
    falls: tuple[int, int] | None = None


def save_state(path: Path, modules: Sequence[nn.Module], optimiser: Remembered | None, mark: str, kept: Kept) -> None:
    """Write the state in one step: a kill at any moment leaves the old file or the new one.

    Args:
        path: The file.
        modules: What learns.
        optimiser: Its optimiser, if anything learns and more steps may come.
        mark: What identifies the run; another run's state is refused.
        kept: The rest.
    """
    tensors: dict[str, Tensor] = {"losses": torch.tensor(kept.losses, dtype=torch.float64)}
    for name, parameter in _named(modules):
        tensors[f"value/{name}"] = parameter.detach()
        for key, value in (optimiser.state.get(parameter, {}) if optimiser else {}).items():
            tensors[f"{key}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    tensors |= {f"{_MEMORY}{name}": value for name, value in kept.seen.items()}
    about = {"seconds": kept.seconds, "finished": kept.finished, "told": kept.told, "falls": kept.falls}
    write_tensors(path, tensors, {"mark": _hash(modules, mark), "format": "3", "about": json.dumps(about)})


def load_state(path: Path, modules: Sequence[nn.Module], optimiser: Remembered | None, mark: str) -> Kept:
    """Put a state back; returns the rest of what was kept.

    Raises:
        FromfewError: If the file is damaged or belongs to another run.
    """
    metadata = read_header(path).metadata
    if metadata.get("format") != "3" or metadata.get("mark") != _hash(modules, mark):
        raise FromfewError(
            f"'{path}' keeps the state of another run (other photos, settings, seed or base). "
            "Remove it, or work in another folder."
        )
    about, tensors = json.loads(metadata["about"]), read_tensors(path)
    for name, parameter in _named(modules):
        with torch.no_grad():
            parameter.copy_(tensors[f"value/{name}"])
        kept = {key.partition("/")[0]: key for key in tensors if key.partition("/")[2] == name}
        state = {key: tensors[full] for key, full in kept.items() if key != "value"}
        if optimiser is not None and state:
            # AdamW keeps its step count on the CPU, its moments beside the parameter.
            moved = {key: value if value.dim() == 0 else value.to(parameter.device) for key, value in state.items()}
            optimiser.state[parameter] = moved
    seen = {name.removeprefix(_MEMORY): value for name, value in tensors.items() if name.startswith(_MEMORY)}
    falls = tuple(about["falls"]) if about["falls"] else None
    return Kept(tensors["losses"].tolist(), about["seconds"], about["finished"], about["told"], seen, falls)


def _named(modules: Sequence[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """Everything that is saved, buffers too: running means move while parameters learn."""
    for i, module in enumerate(modules):
        for name, value in module.state_dict(keep_vars=True).items():
            yield f"{i}/{name}", value


def _hash(modules: Sequence[nn.Module], mark: str) -> str:
    shapes = json.dumps([[name, list(parameter.shape)] for name, parameter in _named(modules)])
    return hashlib.sha256(f"{mark} {shapes}".encode()).hexdigest()
