"""How much memory learning or drawing will need, told before work starts.

Nothing is estimated from tables: one step (or one picture) is gone through with tensors that have shapes and no
numbers (PyTorch's ``meta`` device), by the very modules, parts and batch that will be used, and the bytes that would
be alive at the same time are counted, gradients included. Attention is counted as the fused kernels of CPU and GPU do
it, which keep no matrix of weights. To this come the base itself, the optimiser's two moments for every number that
learns, and what writing the state takes.
"""

from __future__ import annotations

import copy
import math
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.method import Tuned
    from fromfew.references import References

__all__ = ["Need", "available", "checked", "counting", "gigabytes", "to_learn", "to_make", "weigh"]

_SAVING = 2
"""Writing a state holds a copy of every tensor and the file's bytes."""
_SPARE = {"cpu": 1.4}
"""What the process grows by for every byte that is alive: on the CPU 1.3 to 1.39 was measured (LoRA on the embedded
base, batches 4 and 16), for the memory that kernels and the allocator take for themselves."""
_SPARE_ELSEWHERE = 1.2


@dataclass(frozen=True)
class Need:
    """Bytes that are alive at once, at the worst moment.

    Args:
        base: The base itself, which is open already when this is known.
        learned: What learns: the numbers, and two moments of each for the optimiser.
        work: What a step (or a picture) needs besides, gradients included.
        batch: Rows it was counted for, as ``--batch`` has them.
    """

    base: int
    learned: int
    work: int
    batch: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.base + self.beside

    @property
    def beside(self) -> int:
        """What is needed beside the open base."""
        return self.learned + self.work


def gigabytes(count: float) -> str:
    """Bytes for a reader, in units of 1000.

    >>> gigabytes(3_140_000_000), gigabytes(8_000_000)
    ('3.1 GB', '8 MB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{max(1, round(count / 1e6))} MB"


def available(device: torch.device | str) -> int | None:
    """Bytes free for new tensors on a device; None if the system does not tell."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    found = [*_free_here(), *_free_in_group()]
    return min(found) if found else None


def _free_here() -> Iterator[int]:
    """What the whole machine has left."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return
    yield from (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _free_in_group(root: Path = Path("/sys/fs/cgroup")) -> Iterator[int]:
    """What this container has left, where it has a limit of its own."""
    older = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"
    for most, now in (("memory.max", "memory.current"), older):
        try:
            limit, used = ((root / name).read_text().strip() for name in (most, now))
        except OSError:
            continue
        if limit.isdigit() and used.isdigit() and int(limit) < 2**60:
            yield max(0, int(limit) - int(used))


def weigh(*modules: nn.Module) -> int:
    """Bytes of all parameters and buffers, each counted once."""
    held = {id(one): one for module in modules for one in (*module.parameters(), *module.buffers())}
    return sum(one.numel() * one.element_size() for one in held.values())


class _Count(TorchDispatchMode):
    """Counts the bytes of storages made inside, as long as they live."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.now = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and one.device.type == self.device:
                self._add(one.untyped_storage(), before)
        return made

    def _add(self, storage: Any, before: set[int]) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in before:
            return
        self.known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


class _Fused(torch.autograd.Function):
    """Attention without numbers: keeps queries, keys, values, the result and a number a query, as the kernels do."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        made = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, made, q.new_empty(q.shape[:-1]))
        return made

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = ctx.saved_tensors[:3]
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


class _Attention(TorchFunctionMode):
    """Puts `_Fused` in the place of PyTorch's attention, which on this device would make the matrix of weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.scaled_dot_product_attention:
            named = dict(zip(("query", "key", "value"), args, strict=False)) | (kwargs or {})
            return _Fused.apply(named["query"], named["key"], named["value"])
        return func(*args, **(kwargs or {}))


@contextmanager
def counting(device: str = "meta") -> Iterator[_Count]:
    """Count what is alive on a device: ``peak`` is the most bytes at once of tensors made inside."""
    with ExitStack() as stack:
        if device == "meta":
            stack.enter_context(_Attention())
        yield stack.enter_context(_Count(device))


def hollow(bb: Backbone, *parts: nn.Module) -> tuple[Any, ...]:
    """Copies of a backbone and of parts for it that have every shape and no numbers."""
    memo: dict[int, Any] = {id(one.tokenizer): one.tokenizer for one in bb.text_encoders.values()}
    for module in (*bb.modules_().values(), *parts):
        for one in module.parameters():
            memo[id(one)] = nn.Parameter(torch.empty_like(one, device="meta"), requires_grad=one.requires_grad)
        for buffer in module.buffers():
            memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    kept, bb._kept = bb._kept, {}
    try:
        return copy.deepcopy((bb, *parts), memo)
    finally:
        bb._kept = kept


def to_learn(bb: Backbone, method: Tuned, refs: References, *, batch: int | None = None) -> Need:
    """What one step of a method takes at the worst.

    Args:
        bb: The open base, nothing attached.
        method: The method; settings left open are filled in for the base.
        refs: What it learns from.
        batch: Instead of the method's own.
    """
    from fromfew.fit import generator

    me = method.resolved(bb)
    asked = batch or me.batch or 1
    rows = asked * (2 if me.prior else 1)
    parts = me.parts(bb, refs, generator(0))
    base, learned = weigh(*bb.modules_().values()), weigh(parts)
    other, own = hollow(bb, parts)
    prompt = " ".join(word for word in ("a", refs.placeholder, refs.noun) if word)
    own.requires_grad_(True)
    with counting() as count, other.attach(own):
        _one_step(other, prompt, rows)
    # The state is written between two steps, when nothing but gradients is alive.
    saving = learned + _SAVING * 3 * learned if bb.device.type == "cpu" else learned
    return Need(base, 3 * learned, max(_spared(count.peak, bb), saving), asked)


def _spared(peak: int, bb: Backbone) -> int:
    return round(peak * _SPARE.get(bb.device.type, _SPARE_ELSEWHERE))


def _one_step(bb: Backbone, prompt: str, rows: int) -> None:
    """One picture encoded, then prediction, loss and gradients of so many rows."""
    from fromfew.rows import Rows

    with torch.no_grad():
        bb.encode(torch.empty(1, 3, bb.default_size, bb.default_size, device="meta"))
    x = torch.empty(rows, *bb.latent_shape(), device="meta", dtype=bb.dtype)
    t = torch.full((rows,), 0.5)  # times are numbers even here: some parts choose by them
    pred = bb.predict(x, t, bb.embed([prompt] * rows), Rows.plain(rows, t))
    loss = (pred - x).square().mean()
    if loss.requires_grad:
        loss.backward()


def to_make(bb: Backbone, concepts: Sequence[Any], *, batch: int, size: tuple[int, int], guided: bool) -> Need:
    """What drawing a batch takes at the worst: one prediction, or the pictures' decoding.

    Args:
        bb: The open base, nothing attached.
        concepts: What is attached.
        batch: Pictures drawn at once.
        size: Their height and width.
        guided: Whether every picture has a second row for guidance.
    """
    from fromfew.rows import Rows

    parts = [part for concept in concepts for part in concept.parts]
    other, *own = hollow(bb, *parts)
    rows = batch * (2 if guided else 1)
    with torch.no_grad(), counting() as count, other.attach(*own):
        x = torch.empty(batch, *bb.latent_shape(*size), device="meta", dtype=bb.dtype)
        t = torch.full((rows,), 0.5)  # times are numbers even here: some parts choose by them
        text = other.embed(["a cat"] * rows)
        other.predict(x.repeat(rows // batch, 1, 1, 1), t, text, Rows.plain(rows, t))
        other.decode(x).float()
    return Need(weigh(*bb.modules_().values()), weigh(*parts), _spared(count.peak, bb), batch)


def checked(
    count: Callable[[int], Need], batch: int, device: torch.device | str, what: str, *, force: bool = False
) -> Need | None:
    """Count what a batch takes, and refuse it if that is not there.

    Args:
        count: Batch to need.
        batch: What was asked for.
        device: Where.
        what: Such as "Learning".
        force: Refuse nothing.

    Returns:
        The need; None if it cannot be told, since a part looks at its numbers.

    Raises:
        FromfewError: With the largest batch that fits, or that none does.
    """
    try:
        need = count(batch)
    except FromfewError:
        raise
    except Exception:  # what a part does with tensors without numbers can fail in any way; learning is not at fault
        return None
    free = available(device)
    if force or free is None or need.beside <= free:
        return need
    found = need
    while found.batch > 1 and found.beside > free:
        # No batch fits that is larger than this share of the last one, were all its memory the batch's.
        found = count(max(1, min(found.batch - 1, math.floor(found.batch * free / found.beside))))
    if found.beside <= free:
        way = f"--batch {found.batch} would need about {gigabytes(found.beside)}."
    else:
        least = gigabytes(found.beside)
        way = f"Not even --batch 1 fits (about {least}): take a smaller base, or a method that learns less."
    raise FromfewError(
        f"{what} with batch {need.batch} would need about {gigabytes(need.beside)} beside the base, and only "
        f"{gigabytes(free)} are free on {device}. {way} --force begins nevertheless."
    )
