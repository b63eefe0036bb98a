"""An exported file against the other library's own loader: the same noise and prompt, two pictures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.export import Exported, adapter
from fromfew.io.forms import embedding, ip_adapter, lycoris, peft
from fromfew.io.forms.names import pipeline
from fromfew.io.importing import bring_in, identify
from fromfew.io.tensors import read_header, read_tensors
from fromfew.make import make, noise_of
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept

__all__ = ["NOISE", "Verified", "verify"]

NOISE = 2e-4
"""Greatest difference, in pixels of [-1, 1], that rounding explains."""
_STEPS = 4


@dataclass(frozen=True)
class Verified:
    """Greatest differences of two pictures, in [-1, 1].

    Args:
        library: Whose loader read the file.
        file: Between that library and fromfew, both reading the file.
        concept: Between that library reading the file and the concept itself.
        effect: Between the concept and the bare base, to compare with.
        exact: Whether the form holds the concept without approximation.
    """

    library: str
    file: float
    concept: float
    effect: float
    exact: bool

    @property
    def ok(self) -> bool:
        """Whether nothing but rounding differs, and, for exact forms, nothing was lost."""
        return self.file <= NOISE and (not self.exact or self.concept <= NOISE)

    def told(self) -> list[str]:
        """Lines for the reader."""
        return [
            f"read by {self.library}: differs from fromfew reading the same file by {self.file:.1e}",
            f"and from the concept itself by {self.concept:.1e}"
            + ("" if self.exact else " (the file is an approximation)"),
            f"(pixels in [-1, 1]; the concept changes the picture by {self.effect:.1e}, rounding up to {NOISE:g})",
        ]


def verify(concept: Concept, bb: Backbone, done: Exported, *, seed: int = 0) -> Verified:
    """Draw one picture through the other library and one through fromfew.

    Args:
        concept: What was exported.
        bb: Its base.
        done: What `export` wrote.
        seed: Of the noise both begin from.

    Raises:
        FromfewError: If the other library is missing or has no loader for this.
    """
    with _quiet():
        return (_verify_adapter if done.form == "ip-adapter" else _verify)(concept, bb, done, seed)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the other libraries' progress bars and remarks; their settings are put back."""
    from diffusers.utils import logging as theirs
    from transformers.utils import logging as others

    levels, bars = [one.get_verbosity() for one in (theirs, others)], others.is_progress_bar_enabled()
    for one in (theirs, others):
        one.set_verbosity_error()
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one, level in zip((theirs, others), levels, strict=True):
            one.set_verbosity(level)
        theirs.enable_progress_bar()
        if bars:
            others.enable_progress_bar()


def _verify(concept: Concept, bb: Backbone, done: Exported, seed: int) -> Verified:
    """A LoRA, word, Custom Diffusion or whole model."""
    prompt = " ".join(word for word in ("a", concept.placeholder, concept.noun or "cat") if word)
    pipe = _loaded(concept, bb, done)
    theirs = _theirs(pipe, bb, _respelled(prompt, concept), seed)
    ours = _ours(bb, prompt, concept, seed)
    far, effect = _apart(theirs, ours), _apart(ours, _ours(bb, _respelled(prompt, concept), (), seed))
    files = [done.changes] if done.changes is not None else []
    found = [one for path in [*files, *done.words.values()] for one in identify(path)]
    again = bring_in(found, bb).concept
    assert again is not None
    return Verified(
        library=_LIBRARY[done.form],
        # A model in a folder says nothing of the plain text its placeholder stands for.
        file=_apart(theirs, _ours(bb, prompt if again.placeholder else _respelled(prompt, concept), again, seed)),
        concept=far,
        effect=effect,
        exact=done.exact,
    )


_LIBRARY = {"diffusers": "diffusers", "kohya": "diffusers", "peft": "peft", "custom-diffusion": "diffusers",
            "full": "diffusers", "ip-adapter": "diffusers"}  # fmt: skip


def _apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _respelled(prompt: str, concept: Concept) -> str:
    for part in concept.parts:
        if isinstance(part, WordPart) and part.alias is not None:
            prompt = prompt.replace(part.placeholder, part.alias)
    return prompt


def _ours(bb: Backbone, prompt: str, concepts: Any, seed: int) -> Tensor:
    return make(bb, prompt, concepts, steps=_STEPS, seed=seed).tensor


def _scheduler(pipe: Any, bb: Backbone) -> None:
    """The base's scheduler as its default sampler has it."""
    import diffusers

    if bb.path.kind == "flow":
        return
    kinds = {"ddim": diffusers.DDIMScheduler, "dpm++": diffusers.DPMSolverMultistepScheduler,
             "euler": diffusers.EulerDiscreteScheduler}  # fmt: skip
    sampler = bb.defaults.sampler
    more = {"clip_sample": False} if sampler == "ddim" else {}
    pipe.scheduler = kinds[sampler].from_config(bb.scheduler.config, **more)


def _theirs(pipe: Any, bb: Backbone, prompt: str, seed: int, **more: Any) -> Tensor:
    """A picture ``[1, 3, H, W]`` in [-1, 1] of a diffusers pipeline."""
    _scheduler(pipe, bb)
    pipe.set_progress_bar_config(disable=True)
    shape = bb.latent_shape()
    latents = noise_of(seed, 0, shape)[None].to(bb.device, bb.dtype)
    if bb.family == "flux":
        latents = pipe._pack_latents(latents, 1, *shape)
    if bb.family != "unet":
        more["max_sequence_length"] = bb.defaults.long_text
    with torch.no_grad():
        drawn = pipe(
            [prompt], latents=latents, num_inference_steps=_STEPS, guidance_scale=bb.defaults.guidance,
            output_type="pt", height=bb.default_size, width=bb.default_size, **more,
        ).images  # fmt: skip
    return drawn.float().cpu() * 2 - 1


def _loaded(concept: Concept, bb: Backbone, done: Exported) -> Any:
    """A pipeline of the base with the file read by its library."""
    if done.form == "full":
        import diffusers

        pipe = diffusers.DiffusionPipeline.from_pretrained(done.changes)
    else:
        pipe = pipeline(bb)
        if done.changes is not None:
            _LOADERS[done.form](pipe, bb, done.changes)
    for placeholder, path in done.words.items():
        _load_word(pipe, bb, path, placeholder)
    return pipe


def _needs_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise FromfewError(
            "Other libraries read LoRA through the package peft, which is not installed: pip install 'fromfew[peft]'."
        ) from error


def _load_lora(pipe: Any, bb: Backbone, path: Path) -> None:
    _needs_peft()
    kind = lycoris.beyond(read_header(path).tensors)
    if kind is not None:
        raise FromfewError(f"diffusers reads no file with keys such as '{kind}'; A1111 and ComfyUI do.")
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)


def _load_peft(pipe: Any, bb: Backbone, folder: Path) -> None:
    _needs_peft()
    from peft import PeftModel

    for name, where in peft.folders(folder).items():
        _no_butterfly(where)
        model = getattr(pipe, ("unet" if bb.family == "unet" else "transformer") if name == "." else name)
        PeftModel.from_pretrained(model, str(where))  # puts its layers into the model itself


def _no_butterfly(where: Path) -> None:
    """PEFT drops all factors of a BOFT but one, where it cannot build its CUDA extension; refuse before it fails."""
    if json.loads((where / peft.CONFIG).read_text()).get("boft_n_butterfly_factor", 1) == 1:
        return
    from peft.tuners.boft.layer import get_fbd_cuda

    if get_fbd_cuda() is None:
        raise FromfewError("PEFT multiplies the factors of a BOFT only with its CUDA extension, which is not here.")


def _load_custom(pipe: Any, bb: Backbone, path: Path) -> None:
    # Without the pipeline, diffusers 0.42 reads the file and then does not use it.
    pipe.unet.load_attn_procs(str(path.parent), weight_name=path.name, _pipeline=pipe)


_LOADERS: dict[str, Callable[[Any, Backbone, Path], None]] = {
    "diffusers": _load_lora, "kohya": _load_lora, "peft": _load_peft, "custom-diffusion": _load_custom,
}  # fmt: skip


def _load_word(pipe: Any, bb: Backbone, path: Path, placeholder: str) -> None:
    if not hasattr(pipe, "load_textual_inversion"):
        raise FromfewError(f"diffusers has no loader of learned words for {type(pipe).__name__}.")
    several = embedding.keys(bb)
    if not several:
        pipe.load_textual_inversion(str(path), token=placeholder)
        return
    tensors = read_tensors(path)
    endings = {"one": "", "two": "_2", "three": "_3"}
    for key, name in several.items():
        pipe.load_textual_inversion(
            tensors[name], token=placeholder, text_encoder=getattr(pipe, "text_encoder" + endings[key]),
            tokenizer=getattr(pipe, "tokenizer" + endings[key]),
        )  # fmt: skip


def _verify_adapter(concept: Concept, bb: Backbone, done: Exported, seed: int) -> Verified:
    """An adapter against diffusers' loader, both given the same features instead of a picture."""
    from fromfew.methods.ip_adapter import IPAdapter

    assert done.changes is not None
    modules: Any = IPAdapter.of(dict(concept.card.settings)).filled(bb)
    tensors = adapter(concept, bb)
    plus = ip_adapter.plus(tensors)
    wide = tensors["project.proj_in.weight" if plus else "project.proj.weight"].shape[1]
    rng = torch.Generator().manual_seed(seed)
    seen = torch.randn((1, 5, wide) if plus else (1, wide), generator=rng)
    pipe = pipeline(bb)
    pipe.load_ip_adapter(
        str(done.changes.parent), subfolder="", weight_name=done.changes.name, image_encoder_folder=None
    )
    given = [torch.cat([torch.zeros_like(seen), seen])[:, None]]
    theirs = _theirs(pipe, bb, "a cat", seed, ip_adapter_image_embeds=given)
    with torch.no_grad():
        tokens, nothing = modules["project"](seen), modules["project"](torch.zeros_like(seen))
        stream = modules["stream"].holding(tokens, nothing)
    ours = _ours(bb, "a cat", stream, seed)
    apart = _apart(theirs, ours)
    return Verified("diffusers", apart, apart, _apart(ours, _ours(bb, "a cat", (), seed)), done.exact)
