"""Settings that depend on the base: the one place where they live.

A method's setting that is ``None`` takes its value here: from the base's own table if there is one, else from
``default``. The defaults follow the papers' practice on Stable Diffusion; the table of ``world``, the small
embedded base, was chosen by measurement.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RECIPES", "recipe"]

RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "textual-inversion": {"steps": 3000, "batch": 4, "lr": 2e-3, "schedule": "constant", "class_images": 100},
        "dreambooth": {
            "steps": 800, "batch": 1, "lr": 5e-6, "encoder_lr": 2e-6, "schedule": "constant", "class_images": 200,
        },
        "lora": {
            "steps": 500, "batch": 1, "lr": 1e-4, "encoder_lr": 1e-5, "schedule": "constant", "class_images": 100,
            "rank": 8, "targets": ("attention",),
        },
        "custom-diffusion": {
            "steps": 250, "batch": 4, "lr": 8e-5, "word_lr": 8e-5, "schedule": "constant", "class_images": 200,
        },
        "ip-adapter": {"eye": "h94/IP-Adapter:models/image_encoder", "tokens": 4, "plus": False},
    },
    "world": {
        "textual-inversion": {"steps": 200, "batch": 4, "lr": 5e-2, "schedule": "cosine", "class_images": 8},
        "dreambooth": {
            "steps": 250, "batch": 3, "lr": 1.5e-3, "encoder_lr": 2e-5, "schedule": "cosine", "class_images": 8,
        },
        "lora": {
            "steps": 400, "batch": 4, "lr": 5e-3, "encoder_lr": 2e-2, "schedule": "cosine", "class_images": 8,
            "rank": 32, "targets": ("all",),
        },
        "custom-diffusion": {
            "steps": 200, "batch": 3, "lr": 3e-3, "word_lr": 3e-2, "schedule": "cosine", "class_images": 8,
        },
        "ip-adapter": {"eye": "world", "tokens": 8, "plus": True},
    },
}


def recipe(method: str, base: str) -> dict[str, Any]:
    """The settings of a method on a base, by the base's name."""
    return {**RECIPES["default"].get(method, {}), **RECIPES.get(base, {}).get(method, {})}
