"""The attention port: one interception of every attention call, whatever the architecture around it.

The model's own module runs as it is; only ``scaled_dot_product_attention`` is caught, and only at sites
where a part acts. Projections, norms and rotary embeddings stay the model's. Without parts nothing is
installed at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fromfew.errors import FromfewError
from fromfew.ports.part import Handle, Part, entry_of
from fromfew.rows import Now, Rows

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone

__all__ = ["AttentionPart", "Call", "Site", "Stream", "read_contexts"]


@dataclass(frozen=True, eq=False)
class Site:
    """One attention call of a denoiser.

    Args:
        name: Unique name, the module's path inside the denoiser.
        module: The model's own attention module.
        kind: ``self`` (picture reads picture), ``cross`` (picture reads text) or ``joint`` (both read both).
        depth: Place in order of execution, 0 first to 1 last.
        heads: Number of heads.
        width: Width of the queries over all heads.
        index: Number of the site, in order of execution.
        layout: How tokens lie: ``image``, ``cross``, ``text+image`` or ``image+text``.
        context_width: Width of what keys are projected from at a cross site, else None.
        value: The map that values are projected by at a cross site, else None.
    """

    name: str
    module: nn.Module
    kind: Literal["self", "cross", "joint"]
    depth: float
    heads: int
    width: int
    index: int
    layout: Literal["image", "cross", "text+image", "image+text"]
    context_width: int | None = None
    value: nn.Module | None = None

    @property
    def reads_text(self) -> bool:
        """Whether text is read here."""
        return self.kind != "self"


@dataclass(eq=False)
class Call:
    """One attention call in progress.

    Args:
        site: Where.
        q: ``[B, H, Lq, D]``.
        k: ``[B, H, Lk, D]``.
        v: ``[B, H, Lk, D]``.
        bias: What is added to the scores, broadcastable to ``[B, H, Lq, Lk]``, or None.
        text: Which keys are text.
        image: Which queries (and, unless at a cross site, keys) are picture.
        grid: Height and width of the picture's tokens.
        rows: What every row is.
        context: ``[B, Lc, C]`` what keys and values are projected from, at cross sites.
        strength: How strongly the part being asked is attached.
        state: What that part keeps between steps.
        words: For every row, where the words and placeholders of its prompt stand in the text.
    """

    site: Site
    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    text: slice
    image: slice
    grid: tuple[int, int]
    rows: Rows
    context: Tensor | None
    strength: float
    state: dict[str, Any]
    words: tuple[Mapping[str, list[int]], ...] = ()

    def replace(self, **changes: Any) -> Call:
        """The call with other queries, keys, values or bias; a bias grows with the keys, by zeros."""
        new = replace(self, **changes)
        grown = new.k.shape[2] - self.k.shape[2]
        if grown and new.bias is not None and new.bias.shape[-1] == self.k.shape[2]:
            new.bias = F.pad(new.bias, (0, grown))
        return new


@dataclass(eq=False)
class Stream:
    """Further keys and values read by the same queries; the outputs sum.

    Args:
        k: ``[B, H, L, D]``.
        v: ``[B, H, L, D]``.
        weight: Factor of the output.
        gate: Factor per row or query, broadcastable to ``[B, H, Lq, D]``, or None.
        queries: Which queries ask.
    """

    k: Tensor
    v: Tensor
    weight: float = 1.0
    gate: Tensor | None = None
    queries: slice = field(default_factory=lambda: slice(None))


class AttentionPart(Part):
    """Override only what is needed; the order of the stages is that of the methods below.

    No part may assume the batch's size or order (it reads ``call.rows``) or change B or Lq.
    """

    port = "attention"
    exclusive: tuple[str, ...] = ()
    """Stages this part cannot share with another."""

    def where(self, site: Site) -> bool:
        """Whether the part acts at this site."""
        return True

    def context(self, context: Tensor, now: Now, strength: float) -> Tensor:
        """What keys and values are projected from, ``[B, Lc, C]``; cross sites only."""
        return context

    def qkv(self, call: Call) -> Call:
        """Queries, keys and values."""
        return call

    def bias(self, call: Call) -> Tensor | None:
        """Added to the scores; all biases sum."""
        return None

    def probs(self, call: Call, p: Tensor) -> Tensor:
        """Probabilities ``[B, H, Lq, Lk]``; asking for them costs the fused kernel at this site."""
        return p

    def settle(self, call: Call, y: Tensor) -> Tensor:
        """What was read, ``[B, H, Lq, D]``, before further streams are added."""
        return y

    def extra(self, call: Call) -> Iterable[Stream]:
        """Further keys and values."""
        return ()

    def out(self, call: Call, y: Tensor) -> Tensor:
        """The output ``[B, H, Lq, D]`` before its projection."""
        return y

    def attach(self, bb: Backbone, strength: float) -> Handle:
        """Act at every site that `where` names.

        Raises:
            FromfewError: If the backbone has no such site.
        """
        sites = [site for site in bb.sites.values() if self.where(site)]
        if not sites:
            raise FromfewError(f"{self!r} acts on attention, and {bb.name} has no site for it.")
        actor = _Actor(self, strength, entry_of(bb, self).state)
        handle = Handle()
        for site in sites:
            handle.also(_tap(bb, site).add(actor))
        return handle


@dataclass(eq=False)
class _Actor:
    part: AttentionPart
    strength: float
    state: dict[str, Any]

    def overrides(self, stage: str) -> bool:
        return getattr(type(self.part), stage) is not getattr(AttentionPart, stage)


class _Tap:
    """The parts acting at one site; lives on the site's module while there are any."""

    def __init__(self, bb: Backbone, site: Site) -> None:
        self.bb, self.site = bb, site
        self.actors: list[_Actor] = []
        self.readers = 0
        self.last: Now | None = None

    def add(self, actor: _Actor) -> Callable[[], None]:
        """Let a part act; returns what stops it."""
        self.actors.append(actor)

        def remove() -> None:
            self.actors[:] = [one for one in self.actors if one is not actor]
            self._restore()

        return remove

    def read(self) -> Callable[[], None]:
        """Let the site read its own contexts (see `fromfew.ports.place`); returns what stops it."""
        self.readers += 1

        def remove() -> None:
            self.readers -= 1
            self._restore()

        return remove

    def _restore(self) -> None:
        """Give the module its own forward back if nobody acts here any more."""
        if self.actors or self.readers:
            return
        module = self.site.module.__dict__
        for name in ("forward", "_fromfew_tap"):
            module.pop(name, None)
        if "_fromfew_forward" in module:
            module["forward"] = module.pop("_fromfew_forward")

    def install(self) -> None:
        """Hide the module's forward behind one that catches its attention call."""
        module = self.site.module
        original = module.forward
        if "forward" in module.__dict__:
            module.__dict__["_fromfew_forward"] = original
        module.__dict__["_fromfew_tap"] = self

        def forward(*args: Any, **kwargs: Any) -> Any:
            # Gradient checkpointing runs the module again during backward, when no prediction is under way.
            now = self.bb.now or self.last
            if now is None:
                return original(*args, **kwargs)
            self.last = now
            args, kwargs, context, values = self._context(args, kwargs, now)
            catch = _Catch(self, now, context)
            with self._valued(values), catch if self.actors else nullcontext():
                result = original(*args, **kwargs)
            if not self.actors:
                return result
            if not catch.caught:
                raise FromfewError(
                    f"The attention call at '{self.site.name}' was not seen: the model uses another kernel "
                    "there. Set its attention backend to 'native'."
                )
            return result

        module.__dict__["forward"] = forward

    def _context(self, args: Any, kwargs: Any, now: Now) -> tuple[Any, Any, Tensor | None, Tensor | None]:
        """The arguments with what keys are made from; that; and what values are made from, if it differs."""
        if self.site.kind != "cross":
            return args, kwargs, None, None
        given = kwargs.get("encoder_hidden_states", args[1] if len(args) > 1 else None)
        context, values = now.contexts.get(self.site.name, (given, given))
        apart = values is not context
        for actor in self.actors:
            if context is not None and actor.overrides("context"):
                context = actor.part.context(context, now, actor.strength)
                values = actor.part.context(values, now, actor.strength) if apart else context
        if context is not given:
            if "encoder_hidden_states" in kwargs:
                kwargs = {**kwargs, "encoder_hidden_states": context}
            else:
                args = (args[0], context, *args[2:])
        return args, kwargs, context, values if apart else None

    @contextmanager
    def _valued(self, values: Tensor | None) -> Iterator[None]:
        """While active, the site's values are projected from these."""
        if values is None or self.site.value is None:
            yield
            return
        handle = self.site.value.register_forward_pre_hook(lambda module, args: (values, *args[1:]))
        try:
            yield
        finally:
            handle.remove()

    def run(self, call: Call, options: dict[str, Any]) -> Tensor:
        """All stages, in their fixed order."""
        for actor in self.actors:
            if actor.overrides("qkv"):
                call = actor.part.qkv(replace(call, strength=actor.strength, state=actor.state))
        stages = ("bias", "probs", "settle", "extra", "out")
        asked = {stage: [actor for actor in self.actors if actor.overrides(stage)] for stage in stages}
        for actor in asked["bias"]:
            more = actor.part.bias(replace(call, strength=actor.strength, state=actor.state))
            if more is not None:
                call.bias = more if call.bias is None else call.bias + more
        if asked["probs"]:
            y = self._slow(call, asked["probs"], options)
        else:
            y = F.scaled_dot_product_attention(call.q, call.k, call.v, attn_mask=call.bias, **options)
        for actor in reversed(asked["settle"]):
            y = actor.part.settle(replace(call, strength=actor.strength, state=actor.state), y)
        for actor in asked["extra"]:
            for stream in actor.part.extra(replace(call, strength=actor.strength, state=actor.state)):
                y = _add_stream(y, call, stream, options)
        for actor in asked["out"]:
            y = actor.part.out(replace(call, strength=actor.strength, state=actor.state), y)
        return y

    @staticmethod
    def _slow(call: Call, actors: list[_Actor], options: dict[str, Any]) -> Tensor:
        scale = options.get("scale") or call.q.shape[-1] ** -0.5
        scores = (call.q * scale) @ call.k.transpose(-1, -2)
        p = (scores if call.bias is None else scores + call.bias).softmax(-1)
        for actor in actors:
            p = actor.part.probs(replace(call, strength=actor.strength, state=actor.state), p)
        return p @ call.v


class _Catch(TorchFunctionMode):
    def __init__(self, tap: _Tap, now: Now, context: Tensor | None) -> None:
        super().__init__()
        self.tap, self.now, self.context, self.caught = tap, now, context, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.caught = True
        names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        q, k, v = given.pop("query"), given.pop("key"), given.pop("value")
        bias = _additive(given.pop("attn_mask", None), q.dtype)
        return self.tap.run(self._call(q, k, v, bias), given)

    def _call(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Call:
        site, now = self.tap.site, self.now
        n, words = q.shape[2], now.text_tokens
        text, image = {
            "image": (slice(0, 0), slice(0, n)),
            "cross": (slice(0, k.shape[2]), slice(0, n)),
            "text+image": (slice(0, words), slice(words, n)),
            "image+text": (slice(n - words, n), slice(0, n - words)),
        }[site.layout]
        grid = _grid(now.latent, image.stop - image.start)
        return Call(site, q, k, v, bias, text, image, grid, now.rows, self.context, 1.0, {}, now.words)


def read_contexts(bb: Backbone, sites: Iterable[Site]) -> Handle:
    """Let these cross sites read what `Now.contexts` holds for them, keys and values apart."""
    handle = Handle()
    for site in sites:
        handle.also(_tap(bb, site).read())
    return handle


def _tap(bb: Backbone, site: Site) -> _Tap:
    tap = site.module.__dict__.get("_fromfew_tap")
    if tap is None:
        tap = _Tap(bb, site)
        tap.install()
    return tap


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)


def _grid(latent: tuple[int, int], tokens: int) -> tuple[int, int]:
    """Height and width of ``tokens`` picture tokens: the finest grid, halved (rounding up) until it fits."""
    h, w = latent
    while h * w > tokens:
        h, w = -(-h // 2), -(-w // 2)
    return (h, w) if h * w == tokens else (1, tokens)


def _add_stream(y: Tensor, call: Call, stream: Stream, options: dict[str, Any]) -> Tensor:
    q = call.q[:, :, stream.queries]
    more = F.scaled_dot_product_attention(q, stream.k, stream.v, scale=options.get("scale")) * stream.weight
    if stream.gate is not None:
        more = more * stream.gate
    if more.shape == y.shape:
        return y + more
    whole = torch.zeros_like(y)
    whole[:, :, stream.queries] = more
    return y + whole
