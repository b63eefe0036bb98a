"""A tiny random image encoder, saved as transformers saves one, for contracts."""

from __future__ import annotations

from pathlib import Path

__all__ = ["tiny_eye"]


def tiny_eye(folder: Path) -> str:
    """Write a seeded CLIP image tower (32 px, width 16) to a folder, once; returns the folder."""
    if not (folder / "model.safetensors").exists():
        import torch
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        config = CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, projection_dim=16, num_hidden_layers=2,
            num_attention_heads=2, image_size=32, patch_size=8,
        )  # fmt: skip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return str(folder)
