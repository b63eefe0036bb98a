"""Concepts to files that other tools read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError, unknown
from fromfew.io.files import replace_folder, write_atomic
from fromfew.io.forms import custom_diffusion, embedding, full_model, ip_adapter, kohya, lycoris, peft, peft_others
from fromfew.io.forms import diffusers as diffusers_form
from fromfew.io.forms.names import component, file_name
from fromfew.io.forms.thin import Thinned, thin
from fromfew.io.tensors import write_tensors
from fromfew.ports.text import WordPart

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.parts.word import Word

__all__ = ["ALSO", "FORMS", "Exported", "export", "form_named"]

FORMS: dict[str, str] = {
    "diffusers": "LoRA and learned words for diffusers (and ComfyUI)",
    "kohya": "LoRA, LoHa, LoKr, DoRA and learned words for A1111, ComfyUI and sd-scripts",
    "peft": "LoRA, LoHa, LoKr, DoRA, OFT, BOFT and (IA)3 as adapter folders of PEFT",
    "custom-diffusion": "key and value maps and words for diffusers' Custom Diffusion",
    "ip-adapter": "the adapter a picture was read with, as an IP-Adapter checkpoint",
    "full": "a whole diffusers model with the concept merged in",
}
ALSO = {"a1111": "kohya", "comfyui": "kohya"}
"""Other names of forms."""
_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def form_named(name: str) -> str:
    """A form by its name or another name of it.

    Raises:
        FromfewError: If there is none.
    """
    plain = name.lower().replace("_", "-")
    plain = ALSO.get(plain, plain)
    if plain not in FORMS:
        raise unknown("form", name, [*FORMS, *ALSO])
    return plain


@dataclass(eq=False)
class Exported:
    """What was written.

    Args:
        form: The form.
        files: Every file or folder, the main one first.
        words: Placeholder of every learned word to its file.
        changes: The main file or folder, if it holds changes of weights.
        thinned: What making changes thin cost, for LoRA.
        notes: What one must know to use it.
        rounded: Whether numbers were written in a shorter format.
    """

    form: str
    files: list[Path] = field(default_factory=list)
    words: dict[str, Path] = field(default_factory=dict)
    changes: Path | None = None
    thinned: Thinned | None = None
    notes: list[str] = field(default_factory=list)
    rounded: bool = False

    @property
    def exact(self) -> bool:
        """Whether the files hold all of the concept, to the last bit but one or two."""
        return not self.rounded and not (self.thinned and (self.thinned.errors or self.thinned.missing))


@dataclass(eq=False)
class _Job:
    """One export under way."""

    concept: Concept
    bb: Backbone
    to: Path
    rank: int | None
    dtype: torch.dtype
    done: Exported

    def wrote(self, main: Path) -> None:
        """Note where the changes of weights are."""
        self.done.files.append(main)
        self.done.changes = main


def export(
    concept: Concept,
    bb: Backbone,
    form: str,
    to: Path | str,
    *,
    rank: int | None = None,
    dtype: str = "float32",
) -> Exported:
    """Write a concept in another tool's form.

    Args:
        concept: The concept.
        bb: The base it was learned on.
        form: One of `FORMS`.
        to: A file (``.safetensors``) or folder, as the form has it; a folder gets the form's usual name.
        rank: For LoRA: bottleneck that changes of whole weights are brought down to.
        dtype: Number format of the file: float32, float16 or bfloat16.

    Raises:
        FromfewError: If the form cannot hold the concept; nothing is written then.
    """
    form, to = form_named(form), Path(to)
    if dtype not in _TYPES:
        raise unknown("number format", dtype, _TYPES)
    concept.check(bb)
    for part in concept.parts:
        if isinstance(part, WordPart) and part.alias is None and part.kind != "word":
            raise FromfewError(f"No other tool's form can hold {part!r}: it is more than one list of vectors.")
    job = _Job(concept, bb, to, rank, _TYPES[dtype], Exported(form, rounded=dtype != "float32"))
    _WRITERS[form](job)
    done = job.done
    for part in concept.parts:
        if isinstance(part, WordPart) and part.alias is not None:
            stands = f"'{part.alias}'" if part.alias else "nothing"
            done.notes.append(f"Where fromfew has {part.placeholder}, write {stands} in other tools' prompts.")
    return done


def about(concept: Concept, word: Word | None = None) -> dict[str, str]:
    """What a file says of itself, for a later import; other tools pass over it."""
    aliases = [p for p in concept.parts if isinstance(p, WordPart) and p.alias is not None]
    told: dict[str, Any] = {
        "name": concept.name,
        "placeholder": word.placeholder if word is not None else concept.placeholder,
        "noun": concept.noun,
        "method": concept.card.method,
        "base": dict(concept.card.base),
    }
    if word is not None:
        told["start"] = word.start
    elif aliases:
        told["alias"] = aliases[0].alias
    return {"format": "pt", "fromfew": json.dumps(told, ensure_ascii=False, sort_keys=True)}


def _file(to: Path, usual: str) -> Path:
    """The file itself, or the usual name in a folder."""
    if to.suffix == ".safetensors":
        return to
    if to.suffix and not to.is_dir():
        raise FromfewError(f"'{to}' must end in .safetensors, or be a folder.")
    return to / usual


def _put(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], dtype: torch.dtype) -> None:
    write_tensors(path, {name: one.to(dtype).contiguous() for name, one in tensors.items()}, metadata)


def _words(job: _Job, main: Path, *, beside: bool = True) -> None:
    """Write every learned word: to ``main``, or beside the file that holds the changes."""
    concept, bb, done = job.concept, job.bb, job.done
    words = embedding.words(concept)
    for word in words:
        plain = file_name(word.placeholder, "word")
        alone = not beside and len(words) == 1
        path = main if alone else main.with_name(f"{main.stem}-{plain}.safetensors")
        held = embedding.vectors(word, concept, bb)
        tensors = embedding.write(held, bb, word.placeholder, a1111=done.form == "kohya")
        _put(path, tensors, about(concept, word), job.dtype)
        done.files.append(path)
        done.words[word.placeholder] = path
        if done.form == "kohya":
            done.notes.append(f"A1111 and ComfyUI call the word by its file's name: {path.stem}.")


def _lora(job: _Job) -> None:
    concept, bb, to, done = job.concept, job.bb, job.to, job.done
    kohya_form = done.form == "kohya"
    only_words = all(isinstance(part, WordPart) for part in concept.parts)
    if only_words and not embedding.words(concept):
        raise FromfewError(f"'{concept.name}' holds nothing but plain text; there is nothing to write.")
    if only_words:
        _words(job, _file(to, f"{file_name(concept.name)}.safetensors"), beside=False)
        return
    main = _file(to, f"{file_name(concept.name)}.safetensors" if kohya_form else "pytorch_lora_weights.safetensors")
    if kohya_form and job.rank is None and bb.family == "unet" and lycoris.holds(concept):
        tensors, notes, rank_, alpha = lycoris.write(concept, kohya.names(bb))
        _put(main, tensors, {**about(concept), **kohya.training(concept, bb, rank_, alpha), **notes}, job.dtype)
        job.wrote(main)
        _words(job, main)
        return
    form = kohya if kohya_form else diffusers_form
    done.thinned = found = thin(concept, bb, job.rank, done.form, form.names(bb))
    if kohya_form:
        tensors = kohya.write(found.maps, bb)
        rank_, alpha = kohya.rank_alpha(tensors)
        metadata = {**about(concept), **kohya.training(concept, bb, rank_, alpha)}
    else:
        tensors, metadata = diffusers_form.write(found.maps, bb), about(concept)
    _put(main, tensors, metadata, job.dtype)
    job.wrote(main)
    _words(job, main)


def _peft(job: _Job) -> None:
    concept, bb, to, done = job.concept, job.bb, job.to, job.done
    if job.rank is None and peft_others.holds(concept):
        written = peft_others.write(concept, bb, peft.targets)
    else:
        done.thinned = thin(concept, bb, job.rank, done.form)
        written = peft.write(done.thinned.maps, bb)
    with replace_folder(to, keep=False) as fresh:
        for where, (config, tensors) in written.items():
            folder = fresh if where == "." else fresh / where
            folder.mkdir(exist_ok=True)
            _put(folder / peft.NUMBERS, tensors, about(concept), job.dtype)
            write_atomic(folder / peft.CONFIG, json.dumps(config, indent=2) + "\n")
    job.wrote(to)
    _words(job, to.with_name(f"{to.name}.safetensors"))


def _custom(job: _Job) -> None:
    main = _file(job.to, custom_diffusion.FILE)
    _put(main, custom_diffusion.write(job.concept, job.bb), about(job.concept), job.dtype)
    job.wrote(main)
    _words(job, main)


def _full(job: _Job) -> None:
    to = job.to
    if job.dtype != torch.float32:
        raise FromfewError("A whole model is written in the number format of its base; leave --dtype out.")
    full_model.write(job.concept, job.bb, to)
    job.wrote(to)
    _words(job, to.with_name(f"{to.name}.safetensors"))


def adapter(concept: Concept, bb: Backbone) -> dict[str, Tensor]:
    """Weights of the adapter that read a concept's picture, from the file its method names.

    Raises:
        FromfewError: If the concept was not read by ip-adapter.
    """
    from fromfew.methods.ip_adapter import IPAdapter

    if concept.card.method != "ip-adapter":
        raise FromfewError(f"'{concept.name}' was learned by {concept.card.method}, not read by ip-adapter.")
    modules = IPAdapter.of(dict(concept.card.settings)).filled(bb)
    return {name: value.detach().cpu() for name, value in modules.state_dict().items()}


def _adapter(job: _Job) -> None:
    concept, bb = job.concept, job.bb
    main = _file(job.to, "ip-adapter.safetensors")
    tensors = ip_adapter.write(adapter(concept, bb), bb)
    _put(main, tensors, {"format": "pt"}, job.dtype)
    job.wrote(main)
    job.done.notes += ip_adapter.notes(tensors)
    eye, scale = concept.card.settings.get("eye"), concept.card.settings.get("scale", 1.0)
    job.done.notes.append(
        "The file is the adapter, not the picture: give the other tool the picture too, read by the image "
        f"encoder '{eye}', at scale {scale:g}."
    )


_WRITERS = {
    "diffusers": _lora, "kohya": _lora, "peft": _peft, "custom-diffusion": _custom, "ip-adapter": _adapter,
    "full": _full,
}  # fmt: skip


def told(done: Exported, bb: Backbone) -> list[str]:
    """What the reader should see of an export, line by line."""
    lines = [f"{path}" for path in done.files]
    found = done.thinned
    if found is not None and (found.errors or found.missing):
        worst = sorted(found.errors.items(), key=lambda item: -item[1])
        lines += [f"  {error:.3e}  {_short(path, bb)}" for path, error in worst]
        lines.append(f"  {found.error:.3e}  relative Frobenius error over everything that was learned")
    if found is not None and found.missing:
        names = ", ".join(_short(path, bb) for path in found.missing[:6])
        more = f" and {len(found.missing) - 6} more" if len(found.missing) > 6 else ""
        lines.append(f"Left out, since a LoRA cannot hold them: {names}{more}.")
    return [*lines, *done.notes]


def _short(path: str, bb: Backbone) -> str:
    head = "encoder." + path.split(".")[1] if path.startswith("encoder.") else "denoiser"
    return component(bb, head) + path.removeprefix(head)
