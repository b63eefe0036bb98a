"""The world's evaluators: networks that say what a picture shows, trained apart from the base.

* ``Judge`` names object, second object, context, style and colour; its embedding measures likeness to a subject.
* ``Pair`` is a CLIP-like pair (arXiv 2103.00020) with words of its own: how well a picture fits a prompt.
* ``FaceId`` embeds portraits so that pictures of one person lie together.

All three look at 64 x 64 pictures in [-1, 1] (``pretrain.data.half`` of a 128 x 128 one).
"""

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.world.networks import Pool, Trunk
from fromfew.world.scenes import is_wide

FOLDER = Path(__file__).parent.parent / "weights" / "evaluators"


class Judge(nn.Module):
    """One trunk, one embedding, one linear head for every factor of a scene."""

    def __init__(self, objects: int = 340, contexts: int = 14, styles: int = 8, colours: int = 9) -> None:
        super().__init__()
        self.trunk = Trunk((40, 80, 160), blocks=1)
        self.pool = Pool(160, heads=6)
        self.embed = nn.Linear(self.pool.out_width, 256)
        heads = dict(object=objects, second=objects, context=contexts, style=styles, colour=colours)
        self.heads = nn.ModuleDict({name: nn.Linear(256, n) for name, n in heads.items()})

    def embedding(self, pictures: Tensor) -> Tensor:
        """[B, 3, 64, 64] to unit vectors [B, 256]."""
        return F.normalize(self.embed(self.pool(self.trunk(pictures))), dim=-1)

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        """[B, 3, 64, 64] to logits of every factor, each [B, classes]."""
        seen = self.embedding(pictures) * 12  # a unit vector alone would cap the logits
        return {name: head(seen) for name, head in self.heads.items()}


def side_views(image: Tensor, relation: str | None) -> Tensor:
    """The two sides of a picture, each a square that fills the view: [2, 3, H, W], left and right or top and bottom.

    Things of a pair stand in these squares as a single thing stands in a whole picture. The sides of a picture twice as
    wide as high are squares already.

    Args:
        image: [3, H, W].
        relation: which sides: top and bottom for "above", else left and right.
    """
    height, width = image.shape[-2:]
    if is_wide(height, width):
        return torch.stack([image[..., :height], image[..., -height:]])
    h, w = height // 2, width // 2
    if relation == "above":
        corners = ((0, w // 2), (h, w // 2))
    else:
        low = round(0.55 * h)  # things stand a little below the middle
        corners = ((low, 0), (low, w))
    cut = torch.stack([image[:, top : top + h, left : left + w] for top, left in corners])
    return F.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False)


def words(caption: str) -> list[str]:
    """Lower-case words of a caption."""
    return re.findall(r"[a-z0-9]+", caption.lower())


class Pair(nn.Module):
    """A convolutional picture tower and a recurrent word tower that meet in one space.

    Args:
        vocabulary: the words it knows; others are left out.
    """

    def __init__(self, vocabulary: list[str]) -> None:
        super().__init__()
        self.vocabulary = {word: i + 1 for i, word in enumerate(vocabulary)}
        self.trunk = Trunk((32, 64, 128), blocks=1)
        self.pool = Pool(128, heads=6)
        self.picture = nn.Linear(self.pool.out_width, 128)
        self.word = nn.Embedding(len(vocabulary) + 1, 96, padding_idx=0)
        self.reader = nn.GRU(96, 128, batch_first=True, bidirectional=True)
        self.caption = nn.Linear(256, 128)
        self.temperature = nn.Parameter(torch.tensor(2.5))

    def see(self, pictures: Tensor) -> Tensor:
        """[B, 3, 64, 64] to unit vectors [B, 128]."""
        return F.normalize(self.picture(self.pool(self.trunk(pictures))), dim=-1)

    def read(self, captions: list[str]) -> Tensor:
        """Captions to unit vectors [B, 128]; how many captions there are changes none of them."""
        ids = [[self.vocabulary[w] for w in words(c) if w in self.vocabulary] or [0] for c in captions]
        length = max(len(row) for row in ids)
        table = torch.tensor([row + [0] * (length - len(row)) for row in ids], device=self.temperature.device)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.word(table), torch.tensor([len(row) for row in ids]), batch_first=True, enforce_sorted=False
        )
        _, last = self.reader(packed)  # [2, B, 128]
        return F.normalize(self.caption(last.transpose(0, 1).flatten(1)), dim=-1)


class FaceId(nn.Module):
    """Portraits to unit vectors in which one person stays one place."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk((32, 64, 128), blocks=1)
        self.pool = Pool(128, heads=4)
        self.embed = nn.Linear(self.pool.out_width, 128)

    def forward(self, pictures: Tensor) -> Tensor:
        """[B, 3, 64, 64] to unit vectors [B, 128]."""
        return F.normalize(self.embed(self.pool(self.trunk(pictures))), dim=-1)


@lru_cache(maxsize=3)
def evaluator(name: str) -> Any:
    """A trained evaluator, frozen.

    Args:
        name: ``"judge"``, ``"pair"`` or ``"face"``.

    Raises:
        FromfewError: its weights are not there.
    """
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        raise FromfewError(f"No weights for the evaluator '{name}' at {path}; run `fromfew pretrain {name}`")
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["config"])
        model: Any = {"judge": Judge, "pair": Pair, "face": FaceId}[name](**about)
        model.load_state_dict({key: file.get_tensor(key).float() for key in file.keys()})  # noqa: SIM118
    return model.eval().requires_grad_(False)
