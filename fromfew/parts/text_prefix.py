"""TextPrefix: learned keys and values in front of a prompt, inside the text encoder's own attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from fromfew.errors import FromfewError
from fromfew.ports.part import Handle
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.backbones.text import TextEncoder

__all__ = ["TextPrefix"]


class TextPrefix(WordPart):
    """``softmax([Q K'ᵀ + bias; Q Kᵀ]) [V'; V]`` in the last layers of every CLIP text encoder (arXiv:2311.14631).

    It acts in prompts that hold its placeholder, which itself takes no place in them; all others, the empty one too,
    are read as before, bit for bit.

    Args:
        placeholder: What calls it.
        sizes: Encoder name to how many of its last layers have a prefix and how wide they are.
        count: Keys and values per layer, at least 1.
        bias: Added to the scores of the prefix.

    Raises:
        FromfewError: If a number is out of range.
    """

    kind = "text_prefix"
    alias = None

    def __init__(self, placeholder: str, sizes: Mapping[str, Sequence[int]], count: int = 1, bias: float = 1.0) -> None:
        super().__init__()
        if not placeholder.strip() or not 1 <= count <= 64 or not sizes:
            raise FromfewError("A prefix needs a placeholder, a text encoder and 1 to 64 keys a layer.")
        self.placeholder, self.count, self.bias = placeholder, count, bias
        self._sizes = {key: (int(layers), int(width)) for key, (layers, width) in sizes.items()}
        shapes = {key: (layers, count, width) for key, (layers, width) in self._sizes.items()}
        self.keys = nn.ParameterDict({key: torch.zeros(shape) for key, shape in shapes.items()})
        self.values = nn.ParameterDict({key: torch.zeros(shape) for key, shape in shapes.items()})

    @classmethod
    def learned(
        cls, bb: Backbone, placeholder: str, rng: Generator, *, count: int, last: int | None, bias: float, spread: float
    ) -> TextPrefix:
        """A prefix to be learned, from N(0, spread²), in the ``last`` layers of each encoder (all if None).

        Raises:
            FromfewError: If an encoder has no attention of CLIP's kind.
        """
        sizes = {}
        for key, encoder in bb.text_encoders.items():
            found = _attentions(encoder)
            if not found:
                raise FromfewError(f"The text encoder '{key}' of {bb.name} has no attention that takes a prefix.")
            layers = len(found) if last is None else min(last, len(found))
            sizes[key] = (layers, found[0].k_proj.out_features)
        part = cls(placeholder, sizes, count, bias)
        with torch.no_grad():
            for value in part.parameters():
                value.copy_(torch.randn(value.shape, generator=rng) * spread)
        return part

    def carriers(self, tokenizer: Any) -> list[int]:
        """None: the placeholder takes no place."""
        return []

    def written(self, key: str, base: Tensor, strength: float) -> Tensor | None:
        """Nothing is written."""
        return None

    def inside(self, encoder: TextEncoder, rows: Sequence[bool], strength: float) -> Handle:
        """While the encoder reads, its last layers see the prefix in these rows."""
        handle = Handle()
        layers = self._sizes[encoder.key][0]
        for i, module in enumerate(_attentions(encoder)[-layers:]):
            handle.also(_replaced(module, self._seeing(module, encoder.key, i, rows, strength)))
        return handle

    def _seeing(self, module: Any, key: str, layer: int, rows: Sequence[bool], strength: float) -> Any:
        original = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            catch = _Catch(self, key, layer, rows, strength)
            with catch:
                result = original(*args, **kwargs)
            if not catch.caught:
                raise FromfewError(f"The attention of text encoder '{key}' was not seen: set its attention to 'sdpa'.")
            return result

        return forward

    def attend(self, key: str, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **how: Any) -> Tensor:
        """Attention of ``[B, H, L, D]`` with the prefix in front; ``mask`` is additive, or None."""
        shape = (self.count, k.shape[1], k.shape[3])
        more_k, more_v = (
            table[key][layer].to(k).view(shape).transpose(0, 1).expand(len(k), -1, -1, -1)
            for table in (self.keys, self.values)
        )
        whole = torch.zeros(q.shape[2], k.shape[2], device=q.device, dtype=q.dtype) if mask is None else mask
        bias = torch.full((*whole.shape[:-1], self.count), self.bias, device=q.device, dtype=q.dtype)
        mask = torch.cat([bias, whole], -1)
        return F.scaled_dot_product_attention(
            q, torch.cat([more_k, k], 2), torch.cat([more_v, v], 2), attn_mask=mask, **how
        )

    def check(self, bb: Backbone) -> None:
        """The same text encoders, with layers enough, of the same widths."""
        for key, encoder in bb.text_encoders.items():
            found, (layers, width) = _attentions(encoder), self._sizes.get(key, (0, 0))
            if not layers or len(found) < layers or found[0].k_proj.out_features != width:
                raise FromfewError(f"{self!r} does not fit {bb.name}: text encoder '{key}' is another.")

    def config(self) -> dict[str, Any]:
        """Everything but the numbers."""
        sizes = {key: list(size) for key, size in self._sizes.items()}
        return {"placeholder": self.placeholder, "sizes": sizes, "count": self.count, "bias": self.bias}

    def __repr__(self) -> str:
        layers = "+".join(str(layers) for layers, _ in self._sizes.values())
        return f"TextPrefix({self.placeholder!r}, {layers} layers, count={self.count})"


class _Catch(TorchFunctionMode):
    """Catches the one attention call inside a layer."""

    def __init__(self, part: TextPrefix, key: str, layer: int, rows: Sequence[bool], strength: float) -> None:
        super().__init__()
        self.part, self.key, self.layer, self.rows, self.strength = part, key, layer, rows, strength
        self.caught = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        self.caught = True
        named = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
        q, k, v = named.pop("query"), named.pop("key"), named.pop("value")
        mask = _additive(named.pop("attn_mask", None), named.pop("is_causal", False), q, k)
        new = self.part.attend(self.key, self.layer, q, k, v, mask, **named)
        if all(self.rows) and self.strength == 1:
            return new
        plain = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **named)
        here = torch.tensor(self.rows, device=q.device).view(-1, 1, 1, 1)
        return torch.where(here, plain + self.strength * (new - plain), plain)


def _replaced(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Hide a module's forward behind another; returns what puts the old one back."""
    kept = module.__dict__.get("forward")
    module.__dict__["forward"] = forward

    def back() -> None:
        del module.__dict__["forward"]
        if kept is not None:
            module.__dict__["forward"] = kept

    return back


def _additive(mask: Tensor | None, causal: bool, q: Tensor, k: Tensor) -> Tensor | None:
    """A mask to be added to the scores, or None."""
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], device=q.device, dtype=torch.bool).tril()
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, float("-inf"))


def _attentions(encoder: TextEncoder) -> list[Any]:
    """The encoder's self-attention layers, first to last, where they are of CLIP's kind."""
    wanted = ("q_proj", "k_proj", "v_proj", "out_proj")
    return [m for m in encoder.model.modules() if all(hasattr(m, name) for name in wanted)]
