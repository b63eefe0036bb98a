"""Tiny twins of the real models: seeded, random, built in a moment; for contracts, not for quality."""

from pathlib import Path

from fromfew.backbones.base import Backbone
from fromfew.backbones.open import assemble, write_defaults
from fromfew.backbones.twins import TWINS, save_twin, twin
from fromfew.errors import unknown


def tiny(name: str = "sd15") -> Backbone:
    """A fresh tiny backbone: "sd15" (eps), "sd21" (v), "sdxl", "sd3" (flow) or "flux" (flow).

    Raises:
        FromfewError: If there is no such twin.
    """
    if name not in TWINS:
        raise unknown("tiny backbone", name, TWINS)
    return assemble(f"tiny-{name}", *twin(name))


def tiny_folder(name: str, path: Path) -> Path:
    """Save a twin as diffusers saves its pipelines, with its defaults beside; returns the path.

    Raises:
        FromfewError: If there is no such twin.
    """
    if name not in TWINS:
        raise unknown("tiny backbone", name, TWINS)
    write_defaults(path, save_twin(name, path))
    return path
