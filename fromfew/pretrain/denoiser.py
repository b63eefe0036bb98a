"""Stage 3: the denoiser, an SD-shaped UNet on cached latents, with the text tower frozen."""

import copy
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import cycle, islice
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from fromfew.io.files import replacing
from fromfew.pretrain.data import NOTHING, OBJECTS, STYLE_NAMES, Scenes, to_tensor
from fromfew.pretrain.loop import Trainee
from fromfew.pretrain.text import WIDTH, tokens
from fromfew.world.vocabulary import CORE, names

SCHEDULE = dict(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    timestep_spacing="trailing",
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
)
"""Stable Diffusion's schedule, with v-prediction and no signal at the last step (arXiv 2305.08891)."""


class Latents:
    """The latents of a stream of scenes, encoded once and kept on disk in float16."""

    def __init__(self, scenes: Scenes, vae: AutoencoderTiny, scale: float) -> None:
        self.scenes, self.vae, self.scale = scenes, vae, scale
        self.shard = lru_cache(maxsize=64)(self._shard)

    @torch.no_grad()
    def _shard(self, number: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        shard = self.scenes.shard(number)
        path = self.scenes.folder / f"latents-{self.scenes.seed}-{number}.npy"
        if not path.exists():
            device = next(self.vae.parameters()).device
            parts = [
                (self.vae.encoder(to_tensor(part).to(device)) * self.scale).half().cpu().numpy()
                for part in np.split(shard.pictures, 32)
            ]
            with replacing(path) as new, new.open("wb") as file:
                np.save(file, np.concatenate(parts))
        return np.load(path, allow_pickle=False), shard.masks, shard.captions

    def pick(self, chosen: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor, list[str]]:
        """Latents [B, C, 16, 16], masks of the things in them [B, 1, 16, 16] in 0 to 1, and captions.

        Args:
            chosen: (shard, row) of each.
        """
        held = [(self.shard(number), row) for number, row in chosen]
        latents = torch.from_numpy(np.stack([shard[0][row] for shard, row in held])).float()
        things = torch.from_numpy(np.stack([shard[1][row] for shard, row in held])).float().div(255)[:, None]
        return latents, things, [shard[2][row] for shard, row in held]


class Denoiser(Trainee):
    """v-prediction; one caption in ten is dropped, so that guidance has something to compare with."""

    name: ClassVar[str] = "denoiser"
    steps = 9000
    batch_size = 8
    lr = 1e-3
    weight_decay = 0.01
    average = 0.9993
    warmup = 400
    seed = 2
    drop = 0.1
    plain_first = 0
    """Steps at the start in which every scene shows one named thing, in its own colours, in no style."""
    named_first = 0
    """Steps at the start with named things in their own colours only; of eight, one plain, three styled, four pairs."""
    early = 0.5
    """Share of times from the noisy end, where a shape is decided; the rest is even."""
    things = 3.0
    """Extra weight of the loss where things are: backgrounds are learnt long before shapes are."""

    def __init__(
        self,
        latents: Latents,
        text: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        channels: int,
        start: Path | None = None,
    ) -> None:
        self.latents, self.text, self.tokenizer, self.channels = latents, text.eval(), tokenizer, channels
        self.start = start
        self.scenes = latents.scenes
        self.signal = DDIMScheduler(**SCHEDULE).alphas_cumprod

    def build(self) -> Any:
        """Three levels at 16, 8 and 4, each with attention to itself and to the text.

        As in SDXL, a summary of the text also joins the time embedding, here as scale and shift of every block: what
        holds for the whole picture (context, style) need not be learnt through attention first.
        """
        if self.start is not None:
            return UNet2DConditionModel.from_pretrained(self.start, torch_dtype=torch.float32).train()
        return UNet2DConditionModel(
            sample_size=16,
            in_channels=self.channels,
            out_channels=self.channels,
            block_out_channels=(64, 128, 192),
            down_block_types=("CrossAttnDownBlock2D",) * 3,
            up_block_types=("CrossAttnUpBlock2D",) * 3,
            layers_per_block=1,
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=16,
            resnet_time_scale_shift="scale_shift",
            addition_embed_type="text",
            addition_embed_type_num_heads=4,
        )

    def batch(self, step: int) -> tuple[Tensor, Tensor, list[str]]:
        """Latents [B, C, 16, 16], masks of the things [B, 1, 16, 16] and captions."""
        if step < max(self.plain_first, self.named_first):
            plain, styled, pairs = self._named
            rng = np.random.default_rng([self.seed, step, 8])
            kinds = [plain] if step < self.plain_first else [plain, *[styled] * 3, *[pairs] * 4]
            rows = [kind[rng.integers(len(kind))] for kind in islice(cycle(kinds), self.batch_size)]
            return self.latents.pick([(int(number), int(row)) for number, row in rows])
        number, chosen = self.scenes.place(step, self.batch_size)
        return self.latents.pick([(number, int(row)) for row in chosen])

    @cached_property
    def _named(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(shard, row) of the scenes with named things in their own colours: plain ones, styled ones, plain pairs."""
        named = [OBJECTS.index(name) for name in names(CORE)]
        plain: list[tuple[int, int]] = []
        styled: list[tuple[int, int]] = []
        pairs: list[tuple[int, int]] = []
        for number in range(self.scenes.shards):
            thing, second, _, style, colour, _ = self.scenes.shard(number).labels.T
            own = np.isin(thing, named) & (colour == NOTHING)
            bare = style == STYLE_NAMES.index("plain")
            for found, which in (
                (plain, own & bare & (second == NOTHING)),
                (styled, own & ~bare & (second == NOTHING)),
                (pairs, own & bare & np.isin(second, named)),
            ):
                found += [(number, int(row)) for row in np.flatnonzero(which)]
        return np.array(plain), np.array(styled), np.array(pairs)

    def loss(
        self, model: Any, batch: tuple[Tensor, Tensor, list[str]], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Squared error of v weighted towards the things, at times of which half are drawn from the noisiest 400."""
        x0, things, captions = batch
        device = next(model.parameters()).device
        dropped = torch.rand(len(captions), generator=rng) < self.drop
        said = ["" if gone else caption for gone, caption in zip(dropped, captions, strict=True)]
        with torch.no_grad():
            states = self.text(tokens(self.tokenizer, said).to(device)).last_hidden_state
        low, high = torch.rand(2, len(x0), generator=rng)
        early = torch.rand(len(x0), generator=rng) < self.early
        t = torch.where(early, 600 + low * 400, high * 1000).long().clamp(max=999)
        noise = torch.randn(x0.shape, generator=rng)
        a = self.signal[t].view(-1, 1, 1, 1)
        noisy, target = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        noisy = noisy.to(device, memory_format=torch.channels_last)
        v = model(noisy, t.to(device), states).sample
        weight = (1 + self.things * things).to(device)
        error = (v - target.to(device)).square().mean(1, keepdim=True)
        return (error * weight).sum() / weight.sum(), {"plain": round(float(error.detach().mean()), 4)}

    def sheet(self, model: Any, path: Path) -> None:
        """Draw fixed prompts, two pictures each."""
        from fromfew.backbones.base import Defaults
        from fromfew.backbones.open import assemble
        from fromfew.make import make
        from fromfew.sheet import contact_sheet

        vae = copy.deepcopy(self.latents.vae)
        vae.register_to_config(scaling_factor=self.latents.scale)
        # Copies, since a backbone freezes what it is made of.
        components = dict(
            unet=copy.deepcopy(model),
            vae=vae,
            text_encoder=copy.deepcopy(self.text),
            tokenizer=self.tokenizer,
            scheduler=DDIMScheduler(**SCHEDULE),
        )
        bb = assemble("sheet", "StableDiffusionPipeline", components, Defaults(4.0, 20, "dpm++", 128))
        prompts = [prompt for prompt in SHEET for _ in range(2)]
        contact_sheet(make(bb, prompts, seed=1).pil, prompts, columns=8, cell=128).save(path)


SHEET = (
    "a cat on the beach",
    "a photo of an apple in the snow",
    "a blue apple on a wooden floor",
    "a rocket in space",
    "a guitar in the forest in sketch style",
    "an owl at night",
    "a house in the desert in pixel art style",
    "a red car in the city",
    "a fruit on pink fabric",
    "an animal on the grass",
    "a teddy bear in front of a brick wall in neon style",
    "a banana to the left of a teapot on a white background",
)
"""Prompts of the sample sheet."""
