"""make: the only sampling loop."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import Generator, Tensor

from fromfew.backbones.base import Backbone
from fromfew.backbones.samplers import Sampler
from fromfew.backbones.text import Text
from fromfew.concept import versions
from fromfew.errors import FromfewError
from fromfew.guidance import CFG, Distilled, Guide
from fromfew.ports.part import attached
from fromfew.ports.sampler import Moment, attached_samplers
from fromfew.rows import Rows

_LEAD = -1  # index of a picture that is drawn first in every batch and left out of the result


@dataclass(frozen=True, eq=False)
class Images:
    """Pictures and how they came about.

    Args:
        tensor: ``[I, 3, H, W]`` in [-1, 1].
        provenance: Per picture, everything needed to draw it again.
        latents: ``[I, C, h, w]`` before decoding.
        warnings: What the reader should know, such as words that did not fit.
    """

    tensor: Tensor
    provenance: list[dict[str, Any]] = field(default_factory=list)
    latents: Tensor | None = None
    warnings: tuple[str, ...] = ()

    @property
    def pil(self) -> list[Image.Image]:
        """The pictures as RGB images."""
        bytes_ = ((self.tensor / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return [Image.fromarray(picture.permute(1, 2, 0).cpu().numpy()) for picture in bytes_]

    def __len__(self) -> int:
        return len(self.tensor)

    def __iter__(self) -> Iterator[Image.Image]:
        return iter(self.pil)

    def __getitem__(self, index: int) -> Image.Image:
        return self.pil[index]


def noise_of(seed: int, index: int, shape: tuple[int, int, int]) -> Tensor:
    """Unit noise ``[C, h, w]`` of picture ``index``; depends on seed and index only."""
    digest = hashlib.sha256(f"fromfew {seed} {index}".encode()).digest()
    rng = Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randn(shape, generator=rng)


def make(  # noqa: PLR0913
    bb: Backbone,
    prompts: str | Sequence[str],
    concepts: Any = (),
    *,
    guidance: float | Guide | None = None,
    steps: int | None = None,
    seed: int = 0,
    negative: str = "",
    size: int | tuple[int, int] | None = None,
    sampler: str | None = None,
    batch: int = 8,
    first: int = 0,
    latents: Tensor | None = None,
    watch: Callable[[int, int], object] | None = None,
) -> Images:
    """Draw one picture per prompt; picture i of a batch equals picture i alone.

    Args:
        bb: The backbone.
        prompts: What to draw; a concept is called by its placeholder, as in "a <v> cat on the beach".
        concepts: A concept, a part, or a sequence of them; a pair ``(concept, strength)`` weakens or strengthens one.
        guidance: Scale of classifier-free guidance, or a guide; default as the backbone likes it, as are the next four.
        steps: Sampling steps.
        seed: Picture i's noise depends on the seed and i only.
        negative: What not to draw.
        size: Side, or (height, width), in px.
        sampler: "dpm++", "ddim" or "euler".
        batch: Pictures drawn at once.
        first: Index of the first picture, to draw picture i of an earlier call again.
        latents: ``[I, C, h, w]`` unit noise to begin from instead of the seed's.
        watch: Called with (steps done, steps in all).

    Returns:
        The pictures with their provenance.

    Raises:
        FromfewError: If a name, size or number does not fit, or concepts contradict each other.
    """
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    height, width = size if isinstance(size, tuple) else (size or bb.default_size,) * 2
    shape = bb.latent_shape(height, width)
    guide = _guide(bb, guidance)
    order = bb.sampler(sampler, bb.defaults.steps if steps is None else steps, shape)
    indices = range(first, first + len(prompts))
    start = _start(seed, indices, shape) if latents is None else latents
    if not prompts or start.shape != (len(prompts), *shape):
        raise FromfewError(f"{len(prompts)} prompts need noise of shape {(len(prompts), *shape)}, not {tuple(start.shape)}.")
    drawing = _Drawing(bb, prompts, indices, negative or None, guide, order.name, len(order), shape, seed, watch)
    pairs = _pairs(concepts)
    with torch.no_grad(), ExitStack() as stack:
        for concept, strength in pairs:
            stack.enter_context(bb.attach(concept, strength=strength))
        drawn = drawing.all(start, batch)
        pictures = torch.cat([bb.decode(z) for z in drawn.split(batch)]).float().clamp(-1, 1).cpu()
    told = {"seed": seed, "negative": negative, "guidance": repr(guide), "sampler": order.name, "steps": len(order)}
    told |= {"size": [height, width], "base": bb.name, "fingerprint": bb.fingerprint(), "versions": versions()}
    told["concepts"] = [_describe(concept, strength) for concept, strength in pairs]
    told["own_noise"] = latents is not None
    provenance = [{"prompt": prompt, "index": i, **told} for i, prompt in zip(indices, prompts, strict=True)]
    return Images(pictures, provenance, drawn.cpu(), tuple(dict.fromkeys(drawing.warnings)))


@dataclass(eq=False)
class _Drawing:
    """One call of `make`, concepts attached."""

    bb: Backbone
    prompts: list[str]
    indices: range
    negative: str | None
    guide: Guide
    sampler: str
    steps: int
    shape: tuple[int, int, int]
    seed: int
    watch: Callable[[int, int], object] | None
    warnings: list[str] = field(default_factory=list)

    def all(self, start: Tensor, batch: int) -> Tensor:
        """Latents ``[I, C, h, w]`` of all pictures."""
        coupled = any(getattr(entry.part, "couples_images", False) for entry in attached(self.bb))
        size = len(self.prompts) if coupled else max(1, batch)
        groups = [range(i, min(i + size, len(self.prompts))) for i in range(0, len(self.prompts), size)]
        return torch.cat([self.batch(group, start, g, len(groups)) for g, group in enumerate(groups)])

    def batch(self, group: range, start: Tensor, number: int, of: int) -> Tensor:
        """Latents of the pictures of one batch, a lead picture drawn first and left out where a part asks for one."""
        images, prompts = [self.indices[i] for i in group], [self.prompts[i] for i in group]
        noise = start[group.start : group.stop]
        lead = next((p.lead for p, _, _ in attached_samplers(self.bb) if p.lead is not None), None)
        if lead is not None:
            images, prompts = [_LEAD, *images], [lead, *prompts]
            noise = torch.cat([noise_of(self.seed, _LEAD, self.shape)[None].to(noise), noise])
        run = self.bb.sampler(self.sampler, self.steps, self.shape)
        done = self._run(run, torch.tensor(images), self._text(prompts), noise.to(self.bb.device, self.bb.dtype), number, of)
        return done if lead is None else done[1:]

    def _text(self, prompts: list[str]) -> Text:
        """All branches' text, branch after branch."""
        asked = [self.guide.prompt(branch, prompt, self.negative) for branch in self.guide.branches for prompt in prompts]
        text = self.guide.dress(self.bb.embed(asked))
        known = {entry.concept for entry in attached(self.bb)}
        known |= {getattr(entry.part, "placeholder", None) for entry in attached(self.bb)}
        strange = {name for prompt in prompts for name in re.findall(r"<[^<>\s]+>", prompt)} - known
        self.warnings += [f"'{name}' names no concept that is attached; it is read as plain text" for name in sorted(strange)]
        self.warnings += text.warnings
        return text

    def _run(self, run: Sampler, image: Tensor, text: Text, noise: Tensor, number: int, of: int) -> Tensor:  # noqa: PLR0913
        bb, branches = self.bb, self.guide.branches
        image = image.to(bb.device)
        parts = attached_samplers(bb)
        for entry in attached(bb):
            entry.state.clear()  # what parts keep between steps belongs to one run
        x = run.start(noise)
        for step in range(len(run)):
            t = run.times[step].to(bb.device)
            rows = Rows.of(image, branches, t)

            def predict(latents: Tensor, rows: Rows = rows) -> dict[str, Tensor]:
                out = bb.predict(latents.repeat(len(branches), 1, 1, 1), rows.t, text, rows)
                return dict(zip(branches, out.chunk(len(branches)), strict=True))

            moment = Moment(
                step=step, steps=len(run), t=float(t), next=float(run.times[step + 1]), x=x, noise=noise, image=image,
                path=bb.path, predict=predict, text=text, rows=rows,
            )  # fmt: skip
            x = self._hooks(parts, moment, ("start", "before") if step == 0 else ("before",))
            pred = self.guide(predict(x), t)
            for part, _, state in parts:
                moment.state = state
                pred = part.guide(moment, pred)
            moment.x = run.step(step, pred, x)
            x = self._hooks(parts, moment, ("after",))
            if self.watch is not None:
                self.watch(number * len(run) + step + 1, of * len(run))
        return x

    @staticmethod
    def _hooks(parts: Sequence[tuple[Any, float, dict[str, Any]]], moment: Moment, names: tuple[str, ...]) -> Tensor:
        """Let every sampler part act on the latents, in the order attached."""
        for name in names:
            for part, _, state in parts:
                moment.state = state
                moment.x = getattr(part, name)(moment)
        return moment.x


def _start(seed: int, indices: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    return torch.stack([noise_of(seed, i, shape) for i in indices]) if indices else torch.empty(0)


def _guide(bb: Backbone, guidance: float | Guide | None) -> Guide:
    if guidance is None:
        guidance = bb.defaults.guidance
    if not isinstance(guidance, int | float):
        return guidance
    return Distilled(float(guidance)) if bb.distilled else CFG(float(guidance))


def _pairs(concepts: Any) -> list[tuple[Any, float]]:
    """Concepts with their strengths, whatever way they were given."""
    if not isinstance(concepts, list | tuple):
        return [(concepts, 1.0)]
    if len(concepts) == 2 and isinstance(concepts[1], int | float):
        return [(concepts[0], float(concepts[1]))]
    return [one if isinstance(one, tuple) else (one, 1.0) for one in concepts]


def _describe(concept: Any, strength: float) -> dict[str, Any]:
    """A concept as provenance keeps it."""
    card = getattr(concept, "card", None)
    method = card.get("method") if isinstance(card, dict) else getattr(card, "method", None)
    return {
        "name": getattr(concept, "name", type(concept).__name__),
        "placeholder": getattr(concept, "placeholder", None),
        "method": method,
        "strength": strength * float(getattr(concept, "strength", 1.0)),
    }

