"""Tiny twins: randomly initialised, seeded models of every real architecture, with tokenizers built in code.

They are for contracts, not for quality: 32x32 px pictures, 16x16 latents, widths of a few dozen numbers.
"""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from fromfew.backbones.base import Defaults

WIDTH = 32
_WORDS = """a an the of on in at with and to is it photo picture painting drawing style cat dog toy vase bear
teapot person man woman face red blue green yellow black white small large big beach snow city forest moon
table street water night sky house car hat ball star apple boat lamp tree flower running sitting holding
wearing next"""


def clip_tokenizer(pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer that knows some sixty words whole and spells the others."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges: dict[tuple[str, str], int] = {}
    for word in sorted(set(_WORDS.split())):
        # Later merges rank lower, so a word that is whole already stays whole.
        while len(pieces := _pieces(word, merges)) > 1:
            merges[pieces[0], pieces[1]] = len(merges)
            vocabulary.append(pieces[0] + pieces[1])
    ids = {token: i for i, token in enumerate(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))}
    pairs: Any = list(merges)
    return CLIPTokenizer(vocab=ids, merges=pairs, pad_token=pad, model_max_length=77)


def _pieces(word: str, merges: dict[tuple[str, str], int]) -> list[str]:
    """A word cut as byte-pair encoding cuts it."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while known := [pair for pair in pairwise(pieces) if pair in merges]:
        first, second = min(known, key=merges.__getitem__)
        i = next(i for i, pair in enumerate(pairwise(pieces)) if pair == (first, second))
        pieces[i : i + 2] = [first + second]
    return pieces


def t5_tokenizer() -> T5Tokenizer:
    """A T5 tokenizer that knows some sixty words whole and spells the others."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789<>.,-'"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [(letter, -9.0) for letter in letters]
    pieces += [("▁" + word, -2.0) for word in sorted(set(_WORDS.split())) if len(word) > 0]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=512)


def _clip(tokenizer: CLIPTokenizer, *, pooled: bool, old_end: bool = False) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        # The first Stable Diffusion encoders say 2, and are then read at the largest id.
        eos_token_id=2 if old_end else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if pooled else CLIPTextModel)(config)


def _t5(tokenizer: T5Tokenizer, width: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(tokenizer),
            d_model=width,
            d_kv=8,
            d_ff=2 * WIDTH,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
        )
    )


def _vae(**more: Any) -> diffusers.AutoencoderKL:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **more,
    )


def _unet(**more: Any) -> diffusers.UNet2DConditionModel:
    settings: dict[str, Any] = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
    } | more
    return diffusers.UNet2DConditionModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, **settings
    )


_BETAS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
_STEPS: dict[str, Any] = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def _sd15() -> dict[str, Any]:
    tokenizer = clip_tokenizer()
    return {
        "tokenizer": tokenizer,
        "text_encoder": _clip(tokenizer, pooled=False, old_end=True),
        "unet": _unet(),
        "vae": _vae(scaling_factor=0.18215),
        "scheduler": diffusers.DDIMScheduler(**_BETAS, **_STEPS),
    }


def _sd21() -> dict[str, Any]:
    tokenizer = clip_tokenizer(pad="!")
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        scaling_factor=0.8,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": _clip(tokenizer, pooled=False),
        "unet": _unet(use_linear_projection=True, attention_head_dim=(2, 4)),
        "vae": vae,
        "scheduler": diffusers.DDIMScheduler(
            **_BETAS,
            **_STEPS,
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
        ),
    }


def _sdxl() -> dict[str, Any]:
    first, second = clip_tokenizer(), clip_tokenizer(pad="!")
    return {
        "tokenizer": first,
        "tokenizer_2": second,
        "text_encoder": _clip(first, pooled=False, old_end=True),
        "text_encoder_2": _clip(second, pooled=True),
        "unet": _unet(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=2 * WIDTH,
            attention_head_dim=(2, 4),
            transformer_layers_per_block=(1, 2),
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        ),
        "vae": _vae(scaling_factor=0.13025, force_upcast=False),
        "scheduler": diffusers.EulerDiscreteScheduler(**_BETAS, steps_offset=1, timestep_spacing="leading"),
    }


def _sd3() -> dict[str, Any]:
    first, second, third = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    return {
        "tokenizer": first,
        "tokenizer_2": second,
        "tokenizer_3": third,
        "text_encoder": _clip(first, pooled=True, old_end=True),
        "text_encoder_2": _clip(second, pooled=True),
        "text_encoder_3": _t5(third, 80),
        "transformer": diffusers.SD3Transformer2DModel(
            sample_size=16,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=80,  # wider than both CLIP encoders together, as in the real one
            caption_projection_dim=WIDTH,
            pooled_projection_dim=2 * WIDTH,
            pos_embed_max_size=32,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        "vae": _vae(scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _flux() -> dict[str, Any]:
    first, second = clip_tokenizer(), t5_tokenizer()
    return {
        "tokenizer": first,
        "tokenizer_2": second,
        "text_encoder": _clip(first, pooled=False),
        "text_encoder_2": _t5(second, WIDTH),
        "transformer": diffusers.FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=2,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=WIDTH,
            pooled_projection_dim=WIDTH,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=True,
        ),
        "vae": _vae(scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False),
        "scheduler": diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0),
    }


_MAKERS: dict[str, tuple[Callable[[], dict[str, Any]], str, Defaults]] = {
    "sd15": (_sd15, "StableDiffusionPipeline", Defaults(7.5, 10, "dpm++", 32)),
    "sd21": (_sd21, "StableDiffusionPipeline", Defaults(7.5, 10, "ddim", 32)),
    "sdxl": (_sdxl, "StableDiffusionXLPipeline", Defaults(5.0, 10, "euler", 32)),
    "sd3": (_sd3, "StableDiffusion3Pipeline", Defaults(5.0, 10, "euler", 32, long_text=32)),
    "flux": (_flux, "FluxPipeline", Defaults(3.5, 10, "euler", 32, long_text=32)),
}
TWINS = tuple(_MAKERS)


def twin(name: str) -> tuple[str, dict[str, Any], Defaults]:
    """Pipeline class, components and defaults of a twin; the same numbers every time, no global RNG."""
    maker, pipeline, defaults = _MAKERS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return pipeline, maker(), defaults


def save_twin(name: str, path: Path) -> Defaults:
    """Save a twin as diffusers saves its pipelines; returns its defaults."""
    pipeline, components, defaults = twin(name)
    if pipeline == "StableDiffusionPipeline":
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    getattr(diffusers, pipeline)(**components).save_pretrained(path)
    return defaults
