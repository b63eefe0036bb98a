"""Stage 2: the text tower and the eye, trained contrastively as CLIP is (arXiv 2103.00020), then frozen."""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fromfew.pretrain.data import CORE, OBJECTS, WIDE, Labels, Scenes, half, names, to_labels, to_tensor
from fromfew.pretrain.loop import Trainee
from fromfew.pretrain.tokens import LENGTH, train_tokenizer
from fromfew.world.eye import Eye

WIDTH = 192
SHARED = 128
SEEN = tuple(OBJECTS.index(name) for name in (*names(CORE), *names(WIDE)))


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


class Towers(nn.Module):
    """Both towers, the temperature, and a head that names the object (so that the eye tells single things apart)."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = CLIPTextModelWithProjection(text_config(tokenizer))
        self.eye = Eye()
        self.project = nn.Linear(self.eye.out_width, SHARED)
        self.name = nn.Linear(self.eye.out_width, len(OBJECTS))
        self.temperature = nn.Parameter(torch.tensor(2.5))


class Text(Trainee):
    """Symmetric contrastive loss between captions and pictures, plus the object's name from the picture."""

    name: ClassVar[str] = "text"
    steps = 600
    batch_size = 64
    lr = 1.5e-3
    average = 0.99
    seed = 1

    def __init__(self, folder: Path, *, shards: int = 24) -> None:
        self.scenes = Scenes(folder / "scenes", seed=11, shards=shards)
        where = folder / "tokenizer"
        if not (where / "vocab.json").exists():
            train_tokenizer(where)
        self.tokenizer = CLIPTokenizer.from_pretrained(where)

    def build(self) -> Towers:
        """Both towers, untrained."""
        return Towers(self.tokenizer)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Labels]:
        """Pictures [B, 3, 64, 64], token ids [B, 32], labels."""
        shard, rows = self.scenes.at(step, self.batch_size)
        ids = tokens(self.tokenizer, [shard.captions[r] for r in rows])
        return half(to_tensor(shard.pictures[rows])), ids, to_labels(shard.labels[rows])

    def loss(
        self, model: Any, batch: tuple[Tensor, Tensor, Labels], rng: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Contrast of the batch's captions and pictures, and a half of the naming loss."""
        pictures, ids, labels = batch
        device = model.temperature.device
        seen = model.eye(pictures.to(device)).pooled
        image = F.normalize(model.project(seen), dim=-1)
        words = F.normalize(model.text(ids.to(device)).text_embeds, dim=-1)
        logits = image @ words.T * model.temperature.exp().clamp(max=60)
        target = torch.arange(len(logits), device=device)
        contrast = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        naming = F.cross_entropy(model.name(seen), labels.object.to(device))
        hits = (logits.argmax(1) == target).float().mean()
        return contrast + 0.5 * naming, {"match": round(float(hits), 3), "naming": round(float(naming.detach()), 3)}


def text_encoder(tower: CLIPTextModelWithProjection) -> Any:
    """The tower without its projection, as a diffusers folder holds it."""
    model = CLIPTextModel(tower.config)
    # Strict: under other key layouts of transformers nothing may be left at its random start unnoticed.
    model.load_state_dict(tower.text_model.state_dict())
    return model.eval()


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Token ids [B, 32]."""
    return tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
