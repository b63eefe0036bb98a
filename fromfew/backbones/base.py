"""Backbone: a frozen text-to-image model with one face, whatever it is inside."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fromfew.backbones.samplers import Sampler, build_sampler, noise_path
from fromfew.backbones.text import Text, TextEncoder
from fromfew.errors import FromfewError, unknown
from fromfew.noise import NoisePath
from fromfew.rows import Now, Rows

if TYPE_CHECKING:
    from fromfew.ports.attention import Site
    from fromfew.ports.part import Attached
    from fromfew.ports.place import Place
    from fromfew.ports.text import Spliced

_KEPT_PROMPTS = 1024
_ENCODER_LABELS = {
    "query": ("q_proj", "SelfAttention.q"),
    "key": ("k_proj", "SelfAttention.k"),
    "value": ("v_proj", "SelfAttention.v"),
    "out": ("out_proj", "SelfAttention.o"),
    "mlp": ("fc1", "fc2", "wi", "wi_0", "wi_1", "wo"),
}


@dataclass(frozen=True)
class Defaults:
    """How a backbone likes to be asked.

    Args:
        guidance: Guidance scale.
        steps: Sampling steps.
        sampler: Name of the sampler.
        size: Side of the picture in px.
        long_text: Tokens of a prompt in T5, where the model has one.
        templates: The set of sentences (see `fromfew.templates`) that photos are learned under by default.
    """

    guidance: float = 7.5
    steps: int = 30
    sampler: str = "dpm++"
    size: int = 512
    long_text: int = 256
    templates: str = "auto"


class Backbone(ABC):
    """A frozen model: reads prompts, encodes pictures, predicts noise, and lets parts be attached.

    Subclasses say where attention happens, how the text is composed and how the denoiser is called; all the
    rest is here and final.

    Args:
        name: What the backbone was opened as.
        components: The models, tokenizers and scheduler, named as in a diffusers pipeline.
        defaults: How the model likes to be asked.
    """

    family: ClassVar[str]
    patch: int = 1
    """Latents per side that the denoiser joins to one token."""
    distilled: bool = False
    """Whether guidance is told to the model as a number instead of being computed from two branches."""
    even_times: ClassVar[bool] = False
    """Whether a flow's times are spaced evenly before they are shifted."""

    path: NoisePath
    sites: "dict[str, Site]"

    def __init__(self, name: str, components: Mapping[str, Any], defaults: Defaults) -> None:
        self.name, self.defaults = name, defaults
        self.denoiser: Any = components.get("unet") or components["transformer"]
        self.vae: Any = components["vae"]
        self.scheduler = components["scheduler"]
        self.path = noise_path(self.scheduler)
        self.text_encoders = self._text_encoders(components)
        for module in self.modules_().values():
            module.eval().requires_grad_(False)
        self.attached: list[Attached] = []
        self.now: Now | None = None
        self.places: tuple[Place, ...] | None = None
        self._kept: dict[str | None, Text] = {}
        self._fingerprint: str | None = None
        self._linears = self._label_all()
        self.sites = self._find_sites()

    def _text_encoders(self, components: Mapping[str, Any]) -> dict[str, TextEncoder]:
        found: dict[str, TextEncoder] = {}
        for key, ending in (("one", ""), ("two", "_2"), ("three", "_3")):
            model, tokenizer = components.get("text_encoder" + ending), components.get("tokenizer" + ending)
            if model is None or tokenizer is None:
                continue
            # T5's encoder looks words up in a module of its own that only shares the table's numbers.
            table = getattr(getattr(model, "encoder", None), "embed_tokens", None) or model.get_input_embeddings()
            room = getattr(model.config, "max_position_embeddings", None)
            length = min(tokenizer.model_max_length, room) if room else self.defaults.long_text
            found[key] = TextEncoder(key, tokenizer, model, table, table.embedding_dim, length)
        return found

    # What a family must say.

    @abstractmethod
    def _find_sites(self) -> "dict[str, Site]":
        """Every attention call, by name, in order of execution."""

    @abstractmethod
    def _labels(self, path: str) -> Sequence[str]:
        """The select names, such as "text.key", of one linear of the denoiser."""

    @abstractmethod
    def _compose(self, prompts: Sequence[str | None]) -> Text:
        """Encode prompts, None standing for none, with whatever words are attached."""

    @abstractmethod
    def _call(self, xt: Tensor, t: Tensor, text: Text) -> Tensor:
        """Call the denoiser."""

    @abstractmethod
    def _grid(self, xt: Tensor) -> tuple[int, int]:
        """Height and width of the image's token grid at its finest."""

    # Modules and names.

    def modules_(self) -> dict[str, nn.Module]:
        """All modules of the model: "denoiser", "vae", "encoder.one" and so on."""
        models = [encoder.model for encoder in self.text_encoders.values()]
        return {"denoiser": self.denoiser, "vae": self.vae, **dict(zip(self.encoder_paths, models, strict=True))}

    @property
    def encoder_paths(self) -> tuple[str, ...]:
        """Full paths of the text encoders, "encoder.one" and so on."""
        return tuple(f"encoder.{key}" for key in self.text_encoders)

    def module(self, path: str) -> nn.Module:
        """The module at a full path, such as ``"denoiser.mid_block.attentions.0"``.

        Raises:
            FromfewError: If there is none.
        """
        for name, module in self.modules_().items():
            if path == name:
                return module
            if path.startswith(name + "."):
                try:
                    return module.get_submodule(path[len(name) + 1 :])
                except AttributeError:
                    break
        raise unknown("module", path, [f"{n}.{p}" for n, m in self.modules_().items() for p, _ in m.named_modules()])

    def parameter(self, path: str) -> nn.Parameter:
        """The untouched parameter at a full path, such as ``"denoiser.conv_in.weight"``, whatever is attached.

        Raises:
            FromfewError: If there is none.
        """
        module, _, name = path.rpartition(".")
        found = self.module(module)._parameters
        if found.get(name) is None:
            raise unknown("parameter", path, [f"{module}.{one}" for one in found])
        return found[name]  # type: ignore[return-value]

    def select(self, *what: str) -> dict[str, nn.Linear]:
        """Linear maps by what they do ("text.key", "self.value", "mlp", "encoder.attention"), keyed by path.

        "conv" are the denoiser's convolutions, the only ones that are no linear maps.

        Raises:
            FromfewError: If this backbone has no such maps.
        """
        found: dict[str, nn.Linear] = {}
        for name in what:
            if not self._linears.get(name):
                raise unknown(f"selection of {self.family} backbone", name, self._linears)
            found.update(self._linears[name])
        return found

    def _label_all(self) -> dict[str, dict[str, nn.Linear]]:
        labelled: dict[str, dict[str, nn.Linear]] = {}
        for owner, model in self.modules_().items():
            if owner == "vae":
                continue
            for path, module in model.named_modules():
                if isinstance(module, nn.Conv2d) and owner == "denoiser":
                    labelled.setdefault("conv", {})[f"{owner}.{path}"] = module  # type: ignore[assignment]
                elif isinstance(module, nn.Linear):
                    labels = self._labels(path) if owner == "denoiser" else _encoder_labels(path)
                    for label in labels:
                        labelled.setdefault(label, {})[f"{owner}.{path}"] = module
        return labelled

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The denoiser's number format."""
        return next(self.denoiser.parameters()).dtype

    @property
    def default_size(self) -> int:
        """Side of a picture in px, as the model was trained."""
        return self.defaults.size

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> "Backbone":
        """Move the whole model; returns itself."""
        for name, module in self.modules_().items():
            # SDXL's autoencoder overflows in half precision, and says so.
            careful = name == "vae" and dtype == torch.float16 and getattr(self.vae.config, "force_upcast", False)
            nn.Module.to(module, device=device, dtype=torch.float32 if careful else dtype)
        self._kept.clear()
        self._fingerprint = None
        return self

    def fingerprint(self, *, afresh: bool = False) -> str:
        """Hash of every tensor of every module; remembered until asked ``afresh``."""
        if self._fingerprint is None or afresh:
            digest = hashlib.sha256()
            for owner, module in self.modules_().items():
                for name, value in sorted(module.state_dict().items()):
                    digest.update(f"{owner}.{name} {value.dtype} {tuple(value.shape)}".encode())
                    digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
            self._fingerprint = digest.hexdigest()[:32]
        return self._fingerprint

    # Text.

    def embed(self, prompts: Sequence[str | None], t: Tensor | None = None) -> Text:
        """Encode prompts, with the words and parts attached at this moment; None stands for "no prompt".

        States are remembered by prompt as long as nothing attached touches the text.

        Args:
            prompts: One a row.
            t: The times ``[B]`` they will be read at, if known: where gradients are taken and words depend on it,
                everything is then encoded in one go, and the text is the one of these times.
        """
        from fromfew.ports.place import foreseen
        from fromfew.ports.text import respelled

        prompts = respelled(self, prompts)
        touched = any(entry.part.touches_text for one in self.attached for entry in one.entries)
        if touched and torch.is_grad_enabled():
            text = None if t is None else foreseen(self, prompts, t)
            return self._compose(prompts) if text is None else text
        kept = {} if touched else self._kept
        for prompt in dict.fromkeys(prompts):
            if prompt not in kept:
                # One by one: a prompt's bits must not depend on what else is asked for.
                with torch.no_grad():
                    kept[prompt] = self._compose([prompt])
        text = Text.join([kept[prompt] for prompt in prompts])
        while len(self._kept) > _KEPT_PROMPTS:
            del self._kept[next(iter(self._kept))]
        return text

    def _read(self, key: str, prompts: Sequence[str | None]) -> "tuple[Any, Spliced]":
        """Run one encoder over the prompts, attached words written in; all hidden states are kept."""
        from fromfew.ports.text import attached_words, splice, writing

        encoder, words = self.text_encoders[key], attached_words(self)
        spliced = splice(encoder.tokenizer, [p or "" for p in prompts], words, length=encoder.length)
        with writing(encoder, spliced, words, self.places):
            return encoder.model(spliced.ids.to(self.device), output_hidden_states=True), spliced

    def _edited(self, text: Text) -> Text:
        """The text as the attached parts that edit encoded states leave it."""
        from fromfew.ports.text import attached_states

        for part, strength in attached_states(self):
            text = part.edit_whole(self, text, strength)
        return text

    def compose(self, prompts: Sequence[str | None], places: "Sequence[Place]") -> Text:
        """Encode prompts as these places, one a prompt, read them; nothing is remembered."""
        from fromfew.ports.place import reading

        with reading(self, places):
            return self._compose(prompts)

    def _warn(self, spliced: "Spliced") -> tuple[str, ...]:
        """A warning for every prompt that was too long."""
        return tuple(f"Too long for '{self.name}'; left out: {cut}" for cut in spliced.cut if cut)

    # Pictures.

    @property
    def down(self) -> int:
        """How many px of the picture one latent stands for, per side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return int(self.vae.config.latent_channels)

    def latent_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """Shape ``(C, h, w)`` of the latent of a picture of this size in px (default: the model's own).

        Raises:
            FromfewError: If a side is no multiple of what the model divides by.
        """
        height, width = height or self.default_size, width or height or self.default_size
        unit = self.down * self.patch
        for side in (height, width):
            if side < unit or side % unit:
                near = max(unit, round(side / unit) * unit)
                raise FromfewError(
                    f"A side of {side} px does not fit '{self.name}': use multiples of {unit}; try {near}."
                )
        return self.latent_channels, height // self.down, width // self.down

    def encode(self, images: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [-1, 1] to scaled latents ``[B, C, h, w]``, without chance."""
        coded = self.vae.encode(images.to(self.device, next(self.vae.parameters()).dtype))
        latents = coded.latents if hasattr(coded, "latents") else coded.latent_dist.mode()
        return ((latents - self._vae_shift) * self.vae.config.scaling_factor).to(self.dtype)

    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents ``[B, C, h, w]`` to pictures ``[B, 3, H, W]``, about [-1, 1]."""
        z = (
            latents.to(self.device, next(self.vae.parameters()).dtype) / self.vae.config.scaling_factor
            + self._vae_shift
        )
        return self.vae.decode(z).sample

    @property
    def _vae_shift(self) -> float:
        return getattr(self.vae.config, "shift_factor", None) or 0.0

    # Prediction.

    def predict(self, xt: Tensor, t: Tensor, text: Text, rows: Rows | None = None) -> Tensor:
        """What the model says about ``xt`` ``[B, C, h, w]`` at times ``t`` ``[B]``; its meaning is `path`'s.

        Args:
            xt: Noisy latents.
            t: Times in (0, 1), one a row.
            text: Encoded prompts, one a row.
            rows: What each row is, for the parts attached; by default different pictures of the branch
                "cond".
        """
        from fromfew.ports.place import placed

        before = self.now
        text, contexts = placed(self, text, t)
        self.now = Now(rows or Rows.plain(len(xt), t), text.states.shape[1], self._grid(xt), t, contexts, text.words)
        try:
            return self._call(xt, t, text)
        finally:
            self.now = before

    def checkpointing(self, on: bool = True) -> None:
        """Trade time for memory: recompute the denoiser's activations when gradients are taken."""
        if not on:
            self.denoiser.disable_gradient_checkpointing()  # type: ignore[operator]
            return

        def recompute(block: Callable[..., Any], *args: Any) -> Any:
            now = self.now  # gradients are taken after predict() has returned; parts must then read the same rows

            def run(*inputs: Any) -> Any:
                before, self.now = self.now, now
                try:
                    return block(*inputs)
                finally:
                    self.now = before

            return checkpoint(run, *args, use_reentrant=False)

        self.denoiser.enable_gradient_checkpointing(recompute)  # type: ignore[operator]

    # Parts and samplers.

    def attach(self, *what: Any, strength: float = 1.0) -> "AbstractContextManager[Attached]":
        """Attach concepts or parts for a ``with`` block; afterwards the model is as before, bit for bit."""
        from fromfew.ports.part import Attached

        return Attached(self, what, strength)

    def sampler(self, name: str | None, steps: int, shape: tuple[int, int, int]) -> Sampler:
        """A fresh sampler for one run over latents of shape ``(C, h, w)``.

        Raises:
            FromfewError: If the name is unknown or the sampler does not fit this model.
        """
        tokens = (shape[1] // self.patch) * (shape[2] // self.patch)
        name = name or self.defaults.sampler
        return build_sampler(self.scheduler, self.path, name, steps, tokens, even=self.even_times)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {self.path.kind}, {len(self.sites)} attention sites)"


def _encoder_labels(path: str) -> list[str]:
    """Select names of one linear of a text encoder."""
    labels = ["encoder.all"]
    for label, endings in _ENCODER_LABELS.items():
        if path.endswith(endings):
            labels += [f"encoder.{label}"] + (["encoder.attention"] if label != "mlp" else [])
    return labels
