"""Stages 2 and 3: the text tower, told captions apart; and the eye, which learns to say what the tower says.

CLIP (arXiv 2103.00020) trains both towers together. Small and young, that pair keeps only what is easiest to see:
every red thing became one thing to it, and no denoiser can draw apart what its text calls alike. So here the tower
first learns from captions alone that another caption is another thing, is locked, and the eye is then trained
contrastively against it (the other way round in LiT, arXiv 2111.07991).
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fromfew.pretrain.data import OBJECTS, Labels, Scenes, half, to_labels, to_tensor
from fromfew.pretrain.loop import Trainee
from fromfew.pretrain.tokens import LENGTH, train_tokenizer
from fromfew.world.eye import Eye
from fromfew.world.scenes import caption, random_item, random_scene

WIDTH = 192
SHARED = 128
LEADS = ("", "a photo of ", "a picture of ", "a rendering of ", "a painting of ", "a close up photo of ")
"""What may stand before a caption without changing what it says."""


def text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    """CLIP's text tower, small: 3 layers, width 192, 32 tokens."""
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=SHARED,
        hidden_act="quick_gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )


def tokenizer_of(folder: Path) -> CLIPTokenizer:
    """The tokenizer in a folder of pre-training, learnt first if need be."""
    where = folder / "tokenizer"
    if not where.exists():
        train_tokenizer(where)
    return CLIPTokenizer.from_pretrained(where)


class Text(Trainee):
    """Two ways to lead into one caption belong together; every other caption of the batch does not.

    A batch is made of groups that differ in nothing but the thing (as "a cat on the beach", "a balloon on the
    beach"), since things are what is hardest to keep apart.
    """

    name: ClassVar[str] = "text"
    steps = 500
    batch_size = 64
    lr = 1e-3
    average = 0.99
    warmup = 50
    seed = 1
    group = 4
    temperature = 0.1

    def __init__(self, folder: Path) -> None:
        self.tokenizer = tokenizer_of(folder)

    def build(self) -> CLIPTextModelWithProjection:
        """The tower, untrained."""
        return CLIPTextModelWithProjection(text_config(self.tokenizer))

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids [B, L] twice, with leads of their own, and which rows say the same [B, B]."""
        rng = np.random.default_rng([self.seed, step])
        said: list[str] = []
        while len(said) < self.batch_size:
            scene = random_scene(rng, portraits=0.08)
            for k in range(self.group):
                if k and scene.items[0].who < 0:
                    scene = replace(scene, items=(random_item(rng), *scene.items[1:]))
                elif k:
                    scene = random_scene(rng, portraits=1.0)
                words = caption(scene, rng)
                said.append(words.removeprefix("a photo of ").removeprefix("a picture of "))
        both = [[str(rng.choice(LEADS)) + words for words in said] for _ in range(2)]
        first, second = (short(self.tokenizer, way) for way in both)
        same = torch.tensor([[a == b for b in said] for a in said])
        return first, second, same

    def loss(
        self, model: Any, batch: tuple[Tensor, Tensor, Tensor], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Contrast of the end tokens' projections, and of the mean states (all that a denoiser reads)."""
        first, second, same = batch
        device = next(model.parameters()).device
        same = same.to(device)
        a, b = (self._seen(model, ids.to(device)) for ids in (first, second))
        total, hits = torch.zeros((), device=device), 0.0
        target = torch.arange(len(same), device=device)
        twins = same & ~torch.eye(len(same), dtype=torch.bool, device=device)
        for x, y in zip(a, b, strict=True):
            logits = (x @ y.T / self.temperature).masked_fill(twins, -1e4)
            total = total + (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            hits = float((logits.argmax(1) == target).float().mean())
        return total, {"match": round(hits, 3)}

    @staticmethod
    def _seen(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        out = model(ids)
        ended = (ids == model.config.eos_token_id).cumsum(1) > 0
        words = (~ended).float()[..., None]
        mean = (out.last_hidden_state * words)[:, 1:].sum(1) / words[:, 1:].sum(1)
        return F.normalize(out.text_embeds, dim=-1), F.normalize(mean, dim=-1)


class Sight(nn.Module):
    """The eye, its projection to the tower's space, the temperature, and a head that names the object."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = Eye()
        self.project = nn.Linear(self.eye.out_width, SHARED)
        self.name = nn.Linear(self.eye.out_width, len(OBJECTS))
        self.temperature = nn.Parameter(torch.tensor(2.5))


class EyeStage(Trainee):
    """Symmetric contrastive loss between pictures and the locked tower's captions, plus the object's name."""

    name: ClassVar[str] = "eye"
    steps = 2000
    batch_size = 64
    lr = 1.5e-3
    average = 0.99
    seed = 6

    def __init__(self, folder: Path, tower: CLIPTextModelWithProjection, *, shards: int = 40) -> None:
        self.scenes = Scenes(folder / "scenes", seed=11, shards=shards)
        self.tokenizer, self.tower = tokenizer_of(folder), tower.eval()

    def build(self) -> Sight:
        """The eye, untrained."""
        return Sight()

    def batch(self, step: int) -> tuple[Tensor, Tensor, Labels]:
        """Pictures [B, 3, 64, 64], the tower's embeddings of their captions [B, 128], labels."""
        shard, rows = self.scenes.at(step, self.batch_size)
        ids = short(self.tokenizer, [shard.captions[r] for r in rows])
        with torch.no_grad():
            said = F.normalize(self.tower(ids.to(self.tower.device)).text_embeds, dim=-1)
        return half(to_tensor(shard.pictures[rows])), said, to_labels(shard.labels[rows])

    def loss(
        self, model: Any, batch: tuple[Tensor, Tensor, Labels], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Contrast of the batch's captions and pictures, and the naming loss."""
        pictures, words, labels = batch
        device = model.temperature.device
        seen = model.eye(pictures.to(device)).pooled
        image = F.normalize(model.project(seen), dim=-1)
        logits = image @ words.to(device).T * model.temperature.exp().clamp(max=60)
        target = torch.arange(len(logits), device=device)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        naming = F.cross_entropy(model.name(seen), labels.object.to(device))
        hits = (logits.argmax(1) == target).float().mean()
        return contrast + naming, {"match": round(float(hits), 3), "naming": round(float(naming.detach()), 3)}


def text_encoder(tower: CLIPTextModelWithProjection) -> CLIPTextModel:
    """The tower without its projection, as a diffusers folder holds it."""
    model = CLIPTextModel(tower.config)
    # Strict: under other key layouts of transformers nothing may be left at its random start unnoticed.
    model.load_state_dict(tower.text_model.state_dict())
    return model.eval()


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [B, 32]."""
    return tokenizer(captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt").input_ids


def short(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [B, L], padded only to the longest: with causal attention the states before it are the same."""
    return tokenizer(captions, padding=True, max_length=LENGTH, truncation=True, return_tensors="pt").input_ids
