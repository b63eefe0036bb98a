"""``fromfew export``: a concept as a file that other tools read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from fromfew.commands.concepts import base_to_use, peek
from fromfew.commands.console import remark, say, say_json
from fromfew.commands.parsing import Parser, whole
from fromfew.errors import FromfewError

__all__ = ["run"]

_ABOUT = """Write a concept in another tool's form.

forms:
  diffusers         LoRA and learned words for diffusers (and ComfyUI)
  kohya             the same for A1111, ComfyUI and sd-scripts; also called a1111, comfyui
  peft              LoRA as adapter folders of PEFT
  custom-diffusion  key and value maps and words for diffusers' Custom Diffusion
  ip-adapter        the adapter a picture was read with, as an IP-Adapter checkpoint
  full              a whole diffusers model with the concept merged in"""


def _parser() -> Parser:
    parser = Parser("export", _ABOUT)
    parser.add_argument("concept", metavar="CONCEPT", help="the concept's folder")
    parser.add_argument("--form", required=True, help="one of the forms above")
    parser.add_argument("--to", required=True, type=Path, metavar="FILE",
                        help="file (.safetensors) or folder to write")  # fmt: skip
    parser.add_argument("--rank", type=whole(1, 1024), help="width of the LoRA that whole changes become")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float32",
                        help="number format of the file (default: float32)")  # fmt: skip
    parser.add_argument("--base", help="the base it was learned on (default: by the name it has on its card)")
    parser.add_argument("--verify", action="store_true",
                        help="read the file back with the other library and compare pictures")  # fmt: skip
    parser.add_argument("--replace", action="store_true", help="write over what is there")
    parser.add_argument("--json", action="store_true", help="the result as JSON")
    return parser


def run(argv: Sequence[str]) -> int:
    """Export one concept; 1 if verifying finds a difference beyond rounding.

    Raises:
        FromfewError: The form cannot hold the concept, or the target exists.
    """
    found = _parser().read(argv)
    known = peek(found.concept)
    if found.to.is_file() and not found.replace:
        raise FromfewError(f"'{found.to}' exists. Give another name, or --replace.")
    if found.to.is_dir() and any(found.to.iterdir()) and not found.replace:
        raise FromfewError(f"The folder '{found.to}' is not empty. Give another name, or --replace.")
    base = base_to_use(found.base, [known])

    from fromfew.backbones.open import open_backbone
    from fromfew.concept import load
    from fromfew.io.export import export, form_named, told

    form = form_named(found.form)
    concept, bb = load(known.folder), open_backbone(base)
    if not concept.same_base(bb):
        remark(f"'{bb.name}' is not, to the bit, the base '{known.name}' was learned on.")
    done = export(concept, bb, form, found.to, rank=found.rank, dtype=found.dtype)
    result = None
    if found.verify:
        from fromfew.io.verify import verify

        remark("Drawing the same picture through the other library ...")
        result = verify(concept, bb, done)
    if found.json:
        say_json({
            "form": form, "files": [str(path) for path in done.files],
            "words": {word: str(path) for word, path in done.words.items()},
            "error": done.thinned.error if done.thinned else 0.0,
            "errors": done.thinned.errors if done.thinned else {},
            "missing": done.thinned.missing if done.thinned else [], "notes": done.notes,
            "verified": {**asdict(result), "ok": result.ok} if result else None,
        })  # fmt: skip
    else:
        for line in [*told(done, bb), *(result.told() if result else ())]:
            say(line)
    if result is not None and not result.ok:
        remark("The other library does not draw what fromfew draws; please report it with the file.")
        return 1
    return 0
