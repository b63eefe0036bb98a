"""Real models without their weights: every module, name and shape, for counting what a concept adds."""

from __future__ import annotations

import torch

from fromfew.backbones.base import Backbone, Defaults

__all__ = ["sd15"]


def sd15() -> Backbone:
    """Stable Diffusion 1.5 on the device "meta": 859.5 M numbers in the UNet, 123.1 M in the text encoder, none kept.

    Its tokenizer is that of the tiny twins.
    """
    import diffusers
    from transformers import CLIPTextConfig, CLIPTextModel

    from fromfew.backbones.twins import clip_tokenizer
    from fromfew.backbones.unet import UNetBackbone

    tokenizer = clip_tokenizer()
    text = CLIPTextConfig(
        vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        projection_dim=768, max_position_embeddings=77, eos_token_id=2,
    )  # fmt: skip
    with torch.device("meta"):
        components = {
            "unet": diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8),
            "vae": diffusers.AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
            ),
            "text_encoder": CLIPTextModel(text),
        }  # fmt: skip
    scheduler = diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    components |= {"tokenizer": tokenizer, "scheduler": scheduler}
    bb = UNetBackbone("sd15-shape", components, Defaults(7.5, 30, "dpm++", 512))
    bb._fingerprint = "shape"
    return bb
