"""Files of other tools to concepts: what they are, which base they fit, and what of them was not understood."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.io.files import hash_regular
from fromfew.io.forms import custom_diffusion, embedding, full_model, ip_adapter, kohya, peft
from fromfew.io.forms import diffusers as diffusers_form
from fromfew.io.forms.pickled import read_pickled_word
from fromfew.io.forms.relatives import kinds_in, parts_of
from fromfew.io.tensors import read_header, read_tensors

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept

__all__ = ["Found", "Imported", "bring_in", "identify"]

_WHAT = {
    "diffusers": "{kind} in diffusers' form", "kohya": "{kind} in the form of sd-scripts, A1111 and ComfyUI",
    "peft": "{kind} in PEFT's form", "embedding": "a learned word (textual inversion)",
    "custom-diffusion": "Custom Diffusion in diffusers' form", "ip-adapter": "an IP-Adapter checkpoint",
    "full": "a whole model in a diffusers folder",
}  # fmt: skip
_OLD = {".pt", ".bin", ".pth"}


@dataclass(eq=False)
class Found:
    """A file, read and recognised, before any base is looked at.

    Args:
        path: Where it lies.
        form: Its form: a key of `export.FORMS`, or "embedding".
        fits: Which bases it fits, in words.
        tensors: What is in it, where it is one file.
        told: What fromfew wrote into it, empty for files of other tools.
        notes: What else it says of itself.
    """

    path: Path
    form: str
    fits: str
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    told: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def what(self) -> str:
        """One phrase that says what it is."""
        kind = kinds_in(self.tensors)
        return _WHAT[self.form].format(kind=f"{'an' if kind[0] in '(O' else 'a'} {kind}")


@dataclass(eq=False)
class Imported:
    """What files became.

    Args:
        concept: The concept; None if they hold an adapter, which is no concept before it has read a picture.
        adapter: The adapter's weights, for the method ip-adapter.
        settings: Settings of ip-adapter that fit them.
        ignored: Keys that found no place, by file.
    """

    concept: Concept | None = None
    adapter: dict[str, Tensor] | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    ignored: dict[Path, list[str]] = field(default_factory=dict)


def identify(path: Path | str) -> list[Found]:
    """What a file or folder is; a folder of Custom Diffusion brings its words along.

    Raises:
        FromfewError: If it is nothing known, damaged, or could run code.
    """
    path = Path(path)
    if path.is_dir():
        return _folder(path)
    if path.name == peft.NUMBERS and (path.parent / peft.CONFIG).is_file():
        return _folder(path.parent)
    if path.suffix.lower() in _OLD:
        tensors, called = read_pickled_word(path)
        named = {called: next(iter(tensors.values()))} if called and list(tensors) == ["emb_params"] else tensors
        return [Found(path, "embedding", embedding.fits(named), named)]
    metadata, tensors = read_header(path).metadata, read_tensors(path)
    _finite(path, tensors)
    form = _form(tensors)
    if form != "embedding" and any(name.startswith("base_model.model.") for name in tensors):
        raise FromfewError(
            f"'{path}' is a PEFT adapter without the {peft.CONFIG} that lay beside it and says its kind and scale. "
            f"Put it there, and call the file {peft.NUMBERS}."
        )
    if form is None:
        some = ", ".join(sorted(tensors)[:3])
        raise FromfewError(
            f"'{path}' is no LoRA, learned word, Custom Diffusion or IP-Adapter that fromfew knows; it holds {some}."
        )
    fits = embedding.fits(tensors) if form == "embedding" else _fits(tensors)
    return [Found(path, form, fits, tensors, _told(metadata), _notes(metadata))]


def _finite(path: Path, tensors: Mapping[str, Tensor]) -> None:
    odd = next((key for key, one in tensors.items() if not bool(one.float().isfinite().all())), None)
    if odd is not None:
        raise FromfewError(f"'{path}' is damaged: '{odd[:80]}' holds a number that is not finite.")


def _form(tensors: Mapping[str, Tensor]) -> str | None:
    tests = {
        "kohya": kohya.is_form, "custom-diffusion": custom_diffusion.is_form, "ip-adapter": ip_adapter.is_form,
        "diffusers": diffusers_form.is_form, "embedding": embedding.is_form,
    }  # fmt: skip
    return next((form for form, test in tests.items() if test(tensors)), None)


def _folder(path: Path) -> list[Found]:
    if (path / "model_index.json").is_file():
        return [Found(path, "full", "the model it was made from")]
    adapters = peft.folders(path)
    if adapters:
        tensors = {f"{name}/{key}": value for name, folder in adapters.items()
                   for key, value in read_tensors(folder / peft.NUMBERS).items()}  # fmt: skip
        _finite(path, tensors)
        told = _told(read_header(next(iter(adapters.values())) / peft.NUMBERS).metadata)
        return [Found(path, "peft", _fits(tensors), tensors, told)]
    if (path / custom_diffusion.FILE).is_file():
        files = sorted(path.glob("*.safetensors"), key=lambda one: one.name != custom_diffusion.FILE)
        return [found for file in files for found in identify(file)]
    inside = sorted(path.glob("*.safetensors"))
    if len(inside) == 1:
        return identify(inside[0])
    raise FromfewError(
        f"'{path}' is no model, PEFT adapter or Custom Diffusion; name the file you mean ({len(inside)} there)."
    )


def _told(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What fromfew wrote; anything odd in it counts as nothing."""
    try:
        found = json.loads(metadata.get("fromfew", "{}"))
    except (ValueError, RecursionError):
        return {}
    texts = ("name", "placeholder", "noun", "method", "alias", "start")
    if not isinstance(found, dict) or any(not isinstance(found.get(key), str | None) for key in texts):
        return {}
    return found


def _notes(metadata: Mapping[str, str]) -> list[str]:
    """What people look for in sd-scripts' notes."""
    wanted = {
        "ss_base_model_version": "base", "ss_sd_model_name": "base's file", "ss_network_dim": "rank",
        "ss_network_alpha": "alpha", "ss_output_name": "name", "modelspec.trigger_phrase": "trigger words",
    }  # fmt: skip
    return [f"{label}: {metadata[key][:200]}" for key, label in wanted.items() if metadata.get(key)]


_MARKS = (  # a piece of a key, and what has it
    ("double_blocks", "FLUX"), ("single_transformer_blocks", "FLUX"), ("joint_blocks", "Stable Diffusion 3"),
    ("lora_te2_", "Stable Diffusion XL"), ("text_encoder_2.", "Stable Diffusion XL"),
    ("add_k_proj", "Stable Diffusion 3 or FLUX"),
)  # fmt: skip
_WIDTHS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}


def _fits(tensors: Mapping[str, Tensor]) -> str:
    """Which bases a file's keys and widths belong to, in words."""
    mark = next((what for piece, what in _MARKS if any(piece in name for name in tensors)), None)
    if mark is not None:
        return mark
    reads = ("attn2_to_k.lora_down.weight", "attn2.to_k.lora_A.weight", "to_k_custom_diffusion.weight",
             "to_k_ip.weight", "attn2.to_k.lora.down.weight", "attn2.processor.to_k_lora.down.weight",
             "attn2_to_k.hada_w1_b", "attn2.to_k.hada_w1_b")  # fmt: skip
    widths = {value.shape[1] for name, value in tensors.items() if name.endswith(reads) and value.dim() > 1}
    if len(widths) == 1:
        width = widths.pop()
        return _WIDTHS.get(width, f"a base whose text is {width} wide")
    return "a base that its keys alone do not tell"


def bring_in(
    found: Sequence[Found],
    bb: Backbone,
    *,
    name: str | None = None,
    placeholder: str | None = None,
    noun: str | None = None,
    alias: str | None = None,
) -> Imported:
    """One concept from what was found.

    Args:
        found: What `identify` made of each file; a LoRA and its words may come together.
        bb: The base to use it on.
        name: What to call the concept.
        placeholder: How prompts are to call it.
        noun: The plain noun of what it is.
        alias: Plain text (trigger words) that the placeholder stands for.

    Raises:
        FromfewError: If nothing of a file fits the base, or it is of a kind that cannot be read.
    """
    from fromfew.parts.word import Word
    from fromfew.ports.part import Part, Parts

    told = found[0].told
    noun = noun or told.get("noun")
    result, parts = Imported(), dict[str, Part]()
    for number, one in enumerate(found):
        held, ignored = _parts(one, bb, placeholder, noun or "thing", result)
        if ignored:
            result.ignored[one.path] = ignored
        for key, part in held.items():
            parts[key if key not in parts else f"{key}{number}"] = part
    if result.adapter is not None:
        return result
    alias = alias if alias is not None else told.get("alias")
    called = placeholder or told.get("placeholder")
    if alias is not None and not any(isinstance(part, Word) for part in parts.values()):
        parts = {"word": Word.plain(called or "<v>", alias), **parts}
    spoken = next((part.placeholder for part in parts.values() if isinstance(part, Word)), None)
    result.concept = _concept(found, bb, Parts(**parts), name, spoken, noun)
    result.concept.check(bb)
    return result


def _parts(
    one: Found, bb: Backbone, placeholder: str | None, start: str, result: Imported
) -> tuple[dict[str, Any], list[str]]:
    """Parts of one file by name, and what of it was ignored."""
    if one.form == "embedding":
        word = embedding.read(
            one.tensors, bb, name=embedding.default_name(one.path),
            placeholder=placeholder or one.told.get("placeholder"), start=one.told.get("start") or start,
        )  # fmt: skip
        return {"word": word}, []
    if one.form == "ip-adapter":
        result.adapter, ignored = ip_adapter.read(one.tensors, bb)
        result.settings = dict(ip_adapter.settings(one.tensors))
        return {}, ignored
    if one.form == "full":
        part, ignored = full_model.read(one.path, bb)
        if part is None:
            raise FromfewError(f"'{one.path}' is '{bb.name}' itself: no parameter differs.")
        return {"model": part}, ignored
    if one.form == "custom-diffusion":
        part, ignored = custom_diffusion.read(one.tensors, bb)
        return {"maps": part}, ignored
    maps: dict[str, Any]
    if one.form == "peft":
        maps, ignored = peft.read(one.path, bb)
    elif one.form == "kohya":
        maps, ignored = kohya.read(one.tensors, bb)
    else:
        maps, ignored = diffusers_form.read(one.tensors, bb)
    if not maps:
        raise FromfewError(
            f"'{one.path}' is {one.what} for {one.fits}; none of its {len(one.tensors)} keys fits '{bb.name}'."
        )
    return dict(parts_of(maps, bb).items()), ignored


def _concept(
    found: Sequence[Found], bb: Backbone, parts: Any, name: str | None, placeholder: str | None, noun: str | None
) -> Concept:
    from fromfew.concept import Card, Concept

    parts.requires_grad_(False)
    parts.eval()
    files = [{"file": one.path.name, "form": one.form,
              "sha256": hash_regular(one.path) if one.path.is_file() else None} for one in found]  # fmt: skip
    card = Card.of(
        bb,
        parts,
        method="import",
        settings={"files": files, "learned by": found[0].told.get("method")},
        rights="The file's author decides; look at the licence it came with.",
    )
    called = name or found[0].told.get("name") or found[0].path.stem
    return Concept(called, placeholder, noun, parts, card)
