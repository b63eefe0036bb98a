"""Settings that depend on the base: the one place where they live.

A method's setting that is ``None`` takes its value here: from the base's own table if there is one, else from
``default``. The defaults follow the papers' practice on Stable Diffusion. The table of ``world``, the small
embedded base, was chosen by measurement for textual-inversion, dreambooth, lora, custom-diffusion, style-aligned,
p-plus and break-a-scene (among two or three), and, on two objects of the bench, for catversion, cones, cones2 and
perfusion; the others' are first guesses.
"""

from __future__ import annotations

from typing import Any

__all__ = ["RECIPES", "recipe"]

# A table: a line a method, as long as it fits.
# fmt: off
RECIPES: dict[str, dict[str, dict[str, Any]]] = {
    "default": {
        "textual-inversion": {
            "steps": 3000, "batch": 4, "lr": 2e-3, "schedule": "constant", "class_images": 100, "vectors": 1,
        },
        "p-plus": {"steps": 500, "batch": 8, "lr": 5e-3, "schedule": "constant", "class_images": 100},
        "neti": {"steps": 1000, "batch": 8, "lr": 8e-3, "schedule": "constant", "class_images": 100},
        "compositional-inversion": {
            "steps": 5000, "batch": 4, "lr": 5e-3, "schedule": "constant", "class_images": 100,
        },
        "gradient-free": {
            "steps": 400, "batch": 5, "lr": 1.0, "spread": 1.0, "schedule": "constant", "class_images": 100,
        },
        "catversion": {"steps": 1000, "batch": 2, "lr": 1e-2, "length": 1, "schedule": "constant", "class_images": 100},
        "coti": {
            "steps": 2000, "batch": 4, "lr": 5e-4, "schedule": "constant", "class_images": 200, "cycles": 20,
            "checks": 20, "hidden": (4096, 2048), "eye": "openai/clip-vit-large-patch14",
        },
        "prospect": {"steps": 3000, "batch": 4, "lr": 2e-3, "schedule": "constant", "class_images": 100},
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
        "loha": {
            "steps": 500, "batch": 1, "lr": 5e-4, "encoder_lr": 1e-5, "schedule": "constant", "class_images": 100,
            "rank": 8, "targets": ("attention", "mlp"),
        },
        "lokr": {
            "steps": 500, "batch": 1, "lr": 1e-3, "encoder_lr": 1e-5, "schedule": "constant", "class_images": 100,
            "rank": 8, "targets": ("attention", "mlp"),
        },
        "dora": {
            "steps": 500, "batch": 1, "lr": 1e-4, "encoder_lr": 1e-5, "schedule": "constant", "class_images": 100,
            "rank": 8, "targets": ("attention",),
        },
        "ia3": {
            "steps": 500, "batch": 1, "lr": 5e-3, "encoder_lr": 1e-5, "schedule": "constant", "class_images": 100,
            "targets": ("text.key", "text.value", "self.key", "self.value", "mlp"),
        },
        "oft": {
            "steps": 1000, "batch": 1, "lr": 6e-5, "encoder_lr": 1e-5, "schedule": "constant", "class_images": 200,
            "targets": ("attention",),
        },
        "boft": {
            "steps": 1000, "batch": 1, "lr": 3e-4, "encoder_lr": 1e-5, "schedule": "constant", "class_images": 200,
            "targets": ("attention",),
        },
        "svdiff": {
            "steps": 500, "batch": 1, "lr": 1e-3, "thin_lr": 1e-6, "encoder_lr": 1e-6, "schedule": "constant",
            "class_images": 200,
        },
        "perfusion": {"steps": 400, "batch": 16, "lr": 3e-2, "word_lr": 6e-3, "schedule": "constant",
                      "class_images": 100},
        "cones": {"steps": 1000, "batch": 1, "lr": 2e-5, "density": 0.01, "word_steps": 500, "word_lr": 2e-3,
                  "schedule": "constant", "class_images": 20},
        "attn-dreambooth": {
            "steps": 500, "batch": 4, "lr": 2e-6, "word_steps": 60, "word_lr": 1e-3, "attention_steps": 100,
            "attention_lr": 2e-5, "schedule": "constant", "class_images": 200,
        },
        "e4t": {
            "steps": 15, "batch": 16, "lr": 1.6e-5, "schedule": "constant", "class_images": 100,
            "eye": "h94/IP-Adapter:models/image_encoder",
        },
        "hyperdreambooth": {
            "steps": 40, "batch": 1, "lr": 1e-4, "rank": 4, "schedule": "constant", "class_images": 100,
            "eye": "h94/IP-Adapter:models/image_encoder", "inner": (100, 50),
        },
        "break-a-scene": {
            "steps": 800, "batch": 1, "lr": 2e-6, "word_lr": 5e-4, "schedule": "constant", "class_images": 100,
            "low_rank": 0, "encoder": True,
        },
        "disenbooth": {
            "steps": 2000, "batch": 1, "lr": 1e-4, "word_lr": 1e-4, "image_lr": 1e-4, "schedule": "constant",
            "class_images": 100, "rank": 4, "eye": "h94/IP-Adapter:models/image_encoder",
        },
        "vico": {
            "steps": 400, "batch": 4, "lr": 1e-5, "word_lr": 5e-3, "schedule": "constant", "class_images": 100,
        },
        "detex": {
            "steps": 500, "batch": 4, "lr": 8e-5, "word_lr": 8e-5, "schedule": "constant", "class_images": 200,
        },
        "cones2": {"steps": 4000, "batch": 1, "lr": 5e-6, "hold_rest": 1e-3, "schedule": "constant",
                   "class_images": 100},
        "mix-of-show": {
            "steps": 1000, "batch": 2, "lr": 1e-4, "word_lr": 1e-3, "encoder_lr": 1e-5, "schedule": "linear",
            "class_images": 100, "rank": 4, "norm_stop": 1.43,
        },
        "ip-adapter": {"eye": "h94/IP-Adapter:models/image_encoder", "tokens": 4, "plus": False},
        "style-aligned": {"shift": 0.0, "norms": False, "from_depth": 0.0},
    },
    "world": {
        "textual-inversion": {
            "steps": 150, "batch": 4, "lr": 1e-2, "schedule": "cosine", "class_images": 8, "vectors": 3,
        },
        "p-plus": {"steps": 120, "batch": 4, "lr": 1e-2, "schedule": "cosine", "class_images": 8},
        "neti": {"steps": 120, "batch": 4, "lr": 1e-2, "schedule": "cosine", "class_images": 8},
        "compositional-inversion": {"steps": 120, "batch": 4, "lr": 1e-2, "schedule": "cosine", "class_images": 8},
        "gradient-free": {
            "steps": 100, "batch": 4, "lr": 1.0, "spread": 1.0, "schedule": "constant", "class_images": 8,
        },
        "catversion": {"steps": 120, "batch": 4, "lr": 1e-1, "length": 4, "schedule": "cosine", "class_images": 8},
        "coti": {
            "steps": 80, "batch": 4, "lr": 5e-2, "schedule": "constant", "class_images": 16, "cycles": 2,
            "checks": 2, "hidden": (128, 64), "eye": "world",
        },
        "prospect": {"steps": 150, "batch": 4, "lr": 1e-2, "schedule": "cosine", "class_images": 8},
        "dreambooth": {
            "steps": 150, "batch": 3, "lr": 7e-4, "encoder_lr": 2e-5, "schedule": "cosine", "class_images": 8,
        },
        "lora": {
            "steps": 150, "batch": 4, "lr": 5e-3, "encoder_lr": 2e-2, "schedule": "cosine", "class_images": 8,
            "rank": 32, "targets": ("all",),
        },
        "custom-diffusion": {
            "steps": 150, "batch": 3, "lr": 3e-3, "word_lr": 3e-2, "schedule": "cosine", "class_images": 8,
        },
        "loha": {
            "steps": 150, "batch": 4, "lr": 2e-3, "encoder_lr": 2e-2, "schedule": "cosine", "class_images": 8,
            "rank": 16, "targets": ("all",),
        },
        "lokr": {
            "steps": 150, "batch": 4, "lr": 1e-2, "encoder_lr": 2e-2, "schedule": "cosine", "class_images": 8,
            "rank": 16, "targets": ("all",),
        },
        "dora": {
            "steps": 150, "batch": 4, "lr": 5e-3, "encoder_lr": 2e-2, "schedule": "cosine", "class_images": 8,
            "rank": 32, "targets": ("all",),
        },
        "ia3": {
            "steps": 150, "batch": 4, "lr": 5e-2, "encoder_lr": 2e-2, "schedule": "cosine", "class_images": 8,
            "targets": ("text.key", "text.value", "self.key", "self.value", "mlp"),
        },
        "oft": {
            "steps": 120, "batch": 4, "lr": 7e-4, "encoder_lr": 2e-2, "schedule": "cosine", "class_images": 8,
            "targets": ("all",),
        },
        "boft": {
            "steps": 120, "batch": 4, "lr": 1.5e-3, "encoder_lr": 2e-2, "schedule": "cosine", "class_images": 8,
            "targets": ("all",),
        },
        "svdiff": {
            "steps": 120, "batch": 4, "lr": 1e-1, "thin_lr": 3e-3, "encoder_lr": 1e-3, "schedule": "cosine",
            "class_images": 8,
        },
        "perfusion": {"steps": 150, "batch": 4, "lr": 1e-1, "word_lr": 3e-2, "schedule": "cosine", "class_images": 8},
        "cones": {"steps": 200, "batch": 4, "lr": 2e-5, "density": 0.05, "word_steps": 150, "word_lr": 5e-2,
                  "schedule": "constant", "class_images": 8},
        "attn-dreambooth": {
            "steps": 100, "batch": 4, "lr": 3e-4, "word_steps": 40, "word_lr": 1e-2, "attention_steps": 40,
            "attention_lr": 1e-3, "schedule": "cosine", "class_images": 8,
        },
        "e4t": {"steps": 60, "batch": 4, "lr": 1e-3, "schedule": "cosine", "class_images": 8, "eye": "world"},
        "hyperdreambooth": {
            "steps": 100, "batch": 4, "lr": 5e-3, "rank": 8, "schedule": "cosine", "class_images": 8,
            "eye": "world", "inner": (16, 8),
        },
        "break-a-scene": {
            "steps": 200, "batch": 4, "lr": 3e-3, "word_lr": 1e-2, "schedule": "cosine", "class_images": 8,
            "low_rank": 16, "encoder": False,
        },
        "disenbooth": {
            "steps": 120, "batch": 4, "lr": 5e-3, "word_lr": 3e-2, "image_lr": 3e-3, "schedule": "cosine",
            "class_images": 8, "rank": 32, "eye": "world",
        },
        "vico": {
            "steps": 120, "batch": 4, "lr": 2e-3, "word_lr": 3e-2, "schedule": "cosine", "class_images": 8,
        },
        "detex": {
            "steps": 120, "batch": 4, "lr": 3e-3, "word_lr": 3e-2, "schedule": "cosine", "class_images": 8,
        },
        "cones2": {"steps": 120, "batch": 4, "lr": 1e-3, "hold_rest": 1e-4, "schedule": "cosine", "class_images": 8},
        "mix-of-show": {
            "steps": 120, "batch": 4, "lr": 5e-3, "word_lr": 3e-2, "encoder_lr": 2e-3, "schedule": "cosine",
            "class_images": 8, "rank": 16, "norm_stop": 0.0,
        },
        "ip-adapter": {"eye": "world", "tokens": 8, "plus": True},
        "style-aligned": {"shift": 3.0, "norms": True, "from_depth": 0.85},
    },
}
# fmt: on


def recipe(method: str, base: str) -> dict[str, Any]:
    """The settings of a method on a base, by the base's name."""
    return {**RECIPES["default"].get(method, {}), **RECIPES.get(base, {}).get(method, {})}
