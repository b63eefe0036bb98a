"""A stage's state in one safetensors file: parts, optimiser, losses; written whole or not at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.io.tensors import read_header, read_tensors, write_tensors

__all__ = ["load_state", "save_state"]


def save_state(
    path: Path,
    modules: Sequence[nn.Module],
    optimiser: torch.optim.Optimizer | None,
    mark: str,
    losses: list[float],
) -> None:
    """Write the state in one step: a kill at any moment leaves the old file or the new one.

    Args:
        path: The file.
        modules: What learns.
        optimiser: Its optimiser, if anything learns.
        mark: What identifies the run; another run's state is refused.
        losses: The loss of every step so far; their number is the step.
    """
    tensors: dict[str, Tensor] = {"losses": torch.tensor(losses, dtype=torch.float64)}
    for name, parameter in _named(modules):
        tensors[f"value/{name}"] = parameter.detach()
        for key, value in (optimiser.state.get(parameter, {}) if optimiser else {}).items():
            tensors[f"{key}/{name}"] = value if isinstance(value, Tensor) else torch.tensor(value)
    write_tensors(path, tensors, {"mark": _hash(modules, mark), "format": "1"})


def load_state(
    path: Path, modules: Sequence[nn.Module], optimiser: torch.optim.Optimizer | None, mark: str
) -> list[float]:
    """Put a state back; returns the losses so far.

    Raises:
        FromfewError: If the file is damaged or belongs to another run.
    """
    if read_header(path).metadata.get("mark") != _hash(modules, mark):
        raise FromfewError(
            f"'{path}' keeps the state of another run (other photos, settings, seed or base). "
            "Remove it, or work in another folder."
        )
    tensors = read_tensors(path)
    for name, parameter in _named(modules):
        with torch.no_grad():
            parameter.copy_(tensors[f"value/{name}"])
        kept = {key.partition("/")[0]: key for key in tensors if key.partition("/")[2] == name}
        state = {key: tensors[full] for key, full in kept.items() if key != "value"}
        if optimiser is not None and state:
            # AdamW keeps its step count on the CPU, its moments beside the parameter.
            moved = {key: value if value.dim() == 0 else value.to(parameter.device) for key, value in state.items()}
            optimiser.state[parameter] = moved
    return list(tensors["losses"].tolist())


def _named(modules: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    for i, module in enumerate(modules):
        for name, parameter in module.named_parameters():
            yield f"{i}/{name}", parameter


def _hash(modules: Sequence[nn.Module], mark: str) -> str:
    shapes = json.dumps([[name, list(parameter.shape)] for name, parameter in _named(modules)])
    return hashlib.sha256(f"{mark} {shapes}".encode()).hexdigest()
