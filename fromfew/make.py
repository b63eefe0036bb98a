"""make: the only sampling loop."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from fromfew.parts.record import Record
from fromfew.ports.part import attached
from fromfew.ports.sampler import Moment, attached_samplers
from fromfew.regions import FIND, cramped, enter
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
    regions: Mapping[str, Any] | None = None,
    region_method: str = "attention",
    watch: Callable[[int, int], object] | None = None,
) -> Images:
    """Draw one picture per prompt; picture i of a batch equals picture i alone.

    Args:
        bb: The backbone.
        prompts: What to draw; a concept is called by its placeholder, as in "a <v> cat on the beach".
        concepts: A concept, a part, or a sequence of them; a pair ``(concept, strength)`` weakens or
            strengthens one.
        guidance: Scale of classifier-free guidance, or a guide; default as the backbone likes it, as are the
            next four.
        steps: Sampling steps.
        seed: Picture i's noise depends on the seed and i only.
        negative: What not to draw.
        size: Side, or (height, width), in px.
        sampler: "dpm++", "ddim" or "euler".
        batch: Pictures drawn at once.
        first: Index of the first picture, to draw picture i of an earlier call again.
        latents: ``[I, C, h, w]`` unit noise to begin from instead of the seed's.
        regions: Where things are to be: a placeholder, or a whole prompt of the region's own ("a <v> cat in the
            snow"), to its box ``(left, top, right, bottom)`` (shares of the picture, or px if any is above 1), to a
            mask ``[h, w]``, or to "find": then the base first draws the plain nouns, and the region is where it looks
            at this one's.
        region_method: How. "attention": inside a region the picture reads the region's prompt (Mix-of-Show, arXiv
            2305.18292). "layout": all reads the one prompt, with every word drawn into its region and kept out of the
            others' (Cones 2, 2305.19327). "noise": a region is predicted by the base with its own concept and no
            other attached, so that concepts cannot disturb each other (OMG, 2403.10983); outside, the base draws the
            plain nouns.
        watch: Called with (steps done, steps in all).

    Returns:
        The pictures with their provenance.

    Raises:
        FromfewError: If a name, size or number does not fit, or concepts contradict each other.
    """
    order = _Order.of(bb, prompts, guidance, steps, sampler, size, seed, negative, first)
    noise = order.noise() if latents is None else latents
    if noise.shape != (len(order.prompts), *order.shape):
        asked, given = (len(order.prompts), *order.shape), tuple(noise.shape)
        raise FromfewError(f"These prompts need noise of shape {asked}, not {given}.")
    if regions and FIND in [where for where in regions.values() if isinstance(where, str)] and len(order.prompts) > 1:
        return _one_by_one(order, noise, lambda i, z: make(
            bb, order.prompts[i], concepts, guidance=guidance, steps=steps, seed=seed, negative=negative, size=size,
            sampler=sampler, first=first + i, latents=z if latents is not None else None, regions=regions,
            region_method=region_method, watch=_ticks(watch, i, len(order.prompts)),
        ))  # fmt: skip
    pairs = _pairs(concepts)
    told = order.told() | {"own_noise": latents is not None, "concepts": [_describe(*pair) for pair in pairs]}
    prompts = order.prompts
    small: list[str] = []
    with torch.no_grad(), ExitStack() as stack:
        if regions:
            told["regions"] = {what: _plain(where) for what, where in regions.items()}
            told["region_method"] = region_method
            order = enter(order, pairs, regions, region_method, stack)
            small = cramped(regions, order.size, bb.default_size) if region_method == "noise" else []
        else:
            for concept, strength in pairs:
                stack.enter_context(bb.attach(concept, strength=strength))
        runs = order.runs(noise, batch)
        drawn = torch.cat([run.draw(_ticks(watch, i, len(runs))) for i, run in enumerate(runs)])
        pictures = torch.cat([bb.decode(z) for z in drawn.split(max(1, batch))]).float().clamp(-1, 1).cpu()
        warnings = dict.fromkeys([*small, *_strange(order), *(w for run in runs for w in run.text.warnings)])
    provenance = [{"prompt": p, "index": i, **told} for i, p in zip(order.indices, prompts, strict=True)]
    return Images(pictures, provenance, drawn.cpu(), tuple(warnings))


@dataclass(frozen=True, eq=False)
class _Order:
    """What is to be drawn, every default filled in."""

    bb: Backbone
    prompts: list[str]
    indices: range
    negative: str
    guide: Guide
    sampler: str
    steps: int
    size: tuple[int, int]
    seed: int

    @classmethod
    def of(
        cls,
        bb: Backbone,
        prompts: str | Sequence[str],
        guidance: float | Guide | None,
        steps: int | None,
        sampler: str | None,
        size: int | tuple[int, int] | None,
        seed: int,
        negative: str,
        first: int,
    ) -> "_Order":
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        if not prompts:
            raise FromfewError("There is no prompt, so there is nothing to draw.")
        guidance = bb.defaults.guidance if guidance is None else guidance
        if isinstance(guidance, int | float):
            guidance = Distilled(float(guidance)) if bb.distilled else CFG(float(guidance))
        steps = bb.defaults.steps if steps is None else steps
        both = size if isinstance(size, tuple) else (size or bb.default_size,) * 2
        indices = range(first, first + len(prompts))
        sampler = sampler or bb.defaults.sampler
        order = cls(bb, prompts, indices, negative, guidance, sampler, steps, both, seed)
        bb.sampler(sampler, steps, order.shape)  # refuses what does not fit before anything is drawn
        return order

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of one picture's latents."""
        return self.bb.latent_shape(*self.size)

    def noise(self) -> Tensor:
        """Every picture's own noise."""
        return torch.stack([noise_of(self.seed, i, self.shape) for i in self.indices])

    def text(self, prompts: Sequence[str]) -> Text:
        """What all branches read, branch after branch."""
        ask, negative = self.guide.prompt, self.negative or None
        return self.guide.dress(
            self.bb.embed([ask(branch, p, negative) for branch in self.guide.branches for p in prompts])
        )

    def runs(self, noise: Tensor, batch: int) -> "list[_Run]":
        """The order cut into batches; parts that couple pictures get all of them in one."""
        count = len(self.prompts)
        coupled = any(getattr(entry.part, "couples_images", False) for entry in attached(self.bb))
        size = count if coupled else max(1, batch)
        lead = next((part.lead for part, _, _ in attached_samplers(self.bb) if part.lead is not None), None)
        found = []
        for i in range(0, count, size):
            images, prompts, z = (
                list(self.indices[i : i + size]),
                self.prompts[i : i + size],
                noise[i : i + size],
            )
            if lead is not None:
                images, prompts = [_LEAD, *images], [lead, *prompts]
                z = torch.cat([noise_of(self.seed, _LEAD, self.shape)[None].to(z), z])
            z = z.to(self.bb.device, self.bb.dtype)
            image = torch.tensor(images, device=self.bb.device)
            found.append(_Run(self, image, self.text(prompts), z, lead is not None))
        return found

    def told(self) -> dict[str, Any]:
        """What provenance says of all pictures alike."""
        about = {"seed": self.seed, "negative": self.negative, "guidance": repr(self.guide)}
        about |= {"sampler": self.sampler, "steps": self.steps, "size": list(self.size)}
        return about | {"base": self.bb.name, "fingerprint": self.bb.fingerprint(), "versions": versions()}


@dataclass(frozen=True, eq=False)
class _Run:
    """One batch, from noise to latents."""

    order: _Order
    image: Tensor
    text: Text
    noise: Tensor
    led: bool

    def draw(self, tick: Callable[[int, int], object]) -> Tensor:
        """The only sampling loop. Latents ``[I, C, h, w]``, the lead picture left out."""
        bb, guide = self.order.bb, self.order.guide
        sampler = bb.sampler(self.order.sampler, self.order.steps, self.order.shape)
        for entry in attached(bb):
            entry.state.clear()  # what parts keep between steps belongs to one run
        x = sampler.start(self.noise)
        for step in range(len(sampler)):
            moment = self._moment(sampler, step, x)
            if step == 0:
                self._ask("start", moment)
            self._ask("before", moment)
            t = moment.rows.t[0]
            pred = guide(moment.predict(moment.x), t)
            for part, _, moment.state in attached_samplers(bb):
                pred = part.guide(moment, pred)
            moment.x = sampler.step(step, pred, moment.x)
            self._ask("after", moment)
            x = moment.x
            tick(step + 1, len(sampler))
        return x[1:] if self.led else x

    def _moment(self, sampler: Sampler, step: int, x: Tensor) -> Moment:
        bb, branches = self.order.bb, self.order.guide.branches
        t, after = sampler.times[step : step + 2].tolist()
        rows = Rows.of(self.image, branches, torch.tensor(t, device=bb.device))

        def predict(latents: Tensor) -> dict[str, Tensor]:
            out = bb.predict(latents.repeat(len(branches), 1, 1, 1), rows.t, self.text, rows)
            return dict(zip(branches, out.chunk(len(branches)), strict=True))

        def maps(latents: Tensor, words: Sequence[str], side: int | None) -> Mapping[str, Tensor]:
            own = [i for i, branch in enumerate(rows.branch) if branch == "cond"]
            record, text, here = Record(words, side=side), self.text.select(own), rows.select(own)
            with bb.attach(record) as there:
                bb.predict(latents, here.t, text, here)
                return record.read(there, text)

        return Moment(step, len(sampler), t, after, x, self.noise, self.image, bb.path, predict, maps, self.text, rows)

    def _ask(self, hook: str, moment: Moment) -> None:
        """Let every sampler part act on the latents, in the order attached."""
        for part, _, moment.state in attached_samplers(self.order.bb):
            moment.x = getattr(part, hook)(moment)


def _one_by_one(order: _Order, noise: Tensor, draw: Callable[[int, Tensor], Images]) -> Images:
    """Pictures of which each needs a call of its own, as one result."""
    each = [draw(i, noise[i : i + 1]) for i in range(len(order.prompts))]
    latents = [one.latents for one in each if one.latents is not None]
    return Images(
        torch.cat([one.tensor for one in each]), [told for one in each for told in one.provenance], torch.cat(latents),
        tuple(dict.fromkeys(warning for one in each for warning in one.warnings)),
    )  # fmt: skip


def _ticks(watch: Callable[[int, int], object] | None, run: int, runs: int) -> Callable[[int, int], object]:
    """Progress over all batches, from the progress of one."""
    return lambda i, n: watch(run * n + i, runs * n) if watch is not None else None


def _strange(order: _Order) -> list[str]:
    """Warnings of placeholders in prompts that belong to nothing attached."""
    entries = attached(order.bb)
    known = {entry.concept for entry in entries} | {getattr(e.part, "placeholder", None) for e in entries}
    found = {name for prompt in order.prompts for name in re.findall(r"<[^<>\s]+>", prompt)}
    return [f"'{n}' names no concept that is attached; it is read as plain text" for n in sorted(found - known)]


def _pairs(concepts: Any) -> list[tuple[Any, float]]:
    """Concepts with their strengths, whatever way they were given."""
    if not isinstance(concepts, list | tuple):
        return [(concepts, 1.0)]
    if len(concepts) == 2 and isinstance(concepts[1], int | float):
        return [(concepts[0], float(concepts[1]))]
    return [one if isinstance(one, tuple) else (one, 1.0) for one in concepts]


def _plain(where: Any) -> Any:
    """A region's box as provenance keeps it; of a mask only that it was one."""
    return "mask" if isinstance(where, Tensor) else where if isinstance(where, str) else [float(v) for v in where]


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
