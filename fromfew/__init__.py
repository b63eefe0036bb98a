"""fromfew: learn anything from a few pictures, make it anywhere.

The package is lazy: ``import fromfew`` costs nothing until a name is used, so that command lines answer at
once.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "make": "fromfew.make",
    "load": "fromfew.concept",
    "Concept": "fromfew.concept",
    "References": "fromfew.references",
    "Reference": "fromfew.references",
    "open_backbone": "fromfew.backbones.open",
    "find": "fromfew.method",
    "learn": "fromfew.learn",
    "combine": "fromfew.combine",
}
__all__ = ["Concept", "Reference", "References", "combine", "find", "learn", "load", "make", "open_backbone"]


def __getattr__(name: str) -> Any:
    """Import a public name from its module the first time it is asked for."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'fromfew' has no attribute {name!r}")


class _Package(ModuleType):
    """The package; a submodule such as ``fromfew.make`` never hides the verb of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
