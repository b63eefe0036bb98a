"""IP-Adapter: a picture as a few extra tokens, read by keys and values of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError
from fromfew.pretrained import Encoded

if TYPE_CHECKING:
    from torch import Generator, nn

    from fromfew.backbones.base import Backbone
    from fromfew.data import Batch, Source
    from fromfew.ports.part import Parts
    from fromfew.references import References
    from fromfew.stage import Stage

CARD = {
    "title": "IP-Adapter: Text Compatible Image Prompt Adapter for Text-to-Image Diffusion Models",
    "arxiv": "2308.06721",
    "year": 2023,
    "learns": ("subject", "style", "face"),
    "photos": (1, 8),
    "kind": "encoded",
    "ports": ("text", "attention"),
    "backbones": ("sd15", "sd21", "sdxl", "sd3", "flux"),
    "adds": "the picture's tokens; the adapter itself is about 3 % of the denoiser",
    "needs_weights": True,
}


@dataclass(frozen=True, kw_only=True)
class IPAdapter(Encoded):
    """Attend to the text as before, and with the same queries to the picture; add the two.

    ``y = softmax(Q Kᵀ) V + scale · softmax(Q K'ᵀ) V'`` with ``K', V'`` from the picture's tokens. Only they
    and the projection to tokens were trained, by denoising pictures that show themselves. In prompts the
    placeholder stands for nothing: the picture says it.

    Departs from the paper: tokens of several photos are averaged; at joint attention only the picture asks.

    >>> IPAdapter(scale=0.6).scale
    0.6
    """

    scale: float = 1.0
    """Weight of the picture: 1 for the picture alone, about 0.5 together with a prompt."""
    eye: str | None = None
    """Frozen image encoder: world, a folder or a hub id; chosen for the base if left open."""
    tokens: int | None = None
    """Tokens a picture becomes, as in the weights; chosen for the base if left open."""
    plus: bool | None = None
    """Whether all patches are read instead of one vector of the whole, as in the weights; chosen if left open."""
    inner: int = 128
    """Width of a Plus adapter's resampler, as in the weights: 768 in the published ones for SD 1, 1280 for SDXL."""
    drop: float = 0.05
    """Share of pre-training rows that see no picture, so that guidance has something to compare with."""

    def __post_init__(self) -> None:
        """Refuse a width that has no whole heads.

        Raises:
            FromfewError: Naming the setting.
        """
        super().__post_init__()
        if self.inner < 64 or self.inner % 64:
            raise FromfewError(f"inner is a multiple of 64 (heads are 64 wide), not {self.inner}.")

    def modules(self, bb: Backbone) -> nn.Module:
        """The projection and the stream's maps."""
        from torch import nn

        from fromfew.encoders import open_eye
        from fromfew.encoders.project import Projector, Resampler
        from fromfew.parts.image_stream import ImageStream

        eye, tokens = open_eye(self.eye, device=str(bb.device)), self.tokens or 4
        width = next(iter(bb.select("text.key").values())).in_features
        if self.plus:
            heads = self.inner // 64
            project: nn.Module = Resampler(eye.patch_width, width, tokens, inner=self.inner, heads=heads)
        else:
            project = Projector(eye.width, width, tokens)
        return nn.ModuleDict({"project": project, "stream": ImageStream.of(bb, width, tokens)})

    def read(self, bb: Backbone, refs: References, modules: Any) -> Parts:
        """The photos' tokens, averaged, in the stream."""
        import torch

        from fromfew.encoders import look_at, squares
        from fromfew.parts.word import Word
        from fromfew.ports.part import Parts

        seen = look_at(self.eye, squares(refs, bb.default_size), bb.device, patches=bool(self.plus))
        tokens = modules["project"](seen).mean(0, keepdim=True)
        nothing = modules["project"](torch.zeros_like(seen[:1]))
        stream = modules["stream"].holding(tokens, nothing, self.scale)
        return Parts(word=Word.plain(refs.placeholder, ""), stream=stream)

    def pretrain(self, bb: Backbone, modules: Any, batches: Source, *, steps: int, lr: float = 1e-4) -> Stage:
        """Denoise every row while it reads its own picture; ``drop`` of the rows read none."""
        import torch

        from fromfew.encoders import look_at
        from fromfew.losses import denoise
        from fromfew.ports.part import Parts
        from fromfew.stage import Stage

        def attach(batch: Batch, rng: Generator) -> Parts:
            seen = look_at(self.eye, batch.looked_at, bb.device, patches=bool(self.plus))
            keep = torch.rand(len(seen), generator=rng).to(seen.device) >= self.drop
            seen = torch.where(keep.view(-1, *[1] * (seen.dim() - 1)), seen, 0.0)
            tokens = modules["project"](seen)
            return Parts(stream=modules["stream"].holding(tokens, torch.zeros_like(tokens[:1])))

        return Stage(steps, batches, [(1.0, denoise)], {modules: lr}, attach=attach, decay=0.01)
