"""``fromfew make``: prompts and concepts in, pictures out that carry how they were made."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.commands.concepts import Known, base_to_use, check_prompts, open_base, peek
from fromfew.commands.console import progress, remark, say, say_json
from fromfew.commands.fits import check_drawing, couples
from fromfew.commands.parsing import Parser, number, size, strengthened, whole
from fromfew.errors import FromfewError, unknown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["run"]

SAMPLERS = ("dpm++", "ddim", "euler")
REGION_METHODS = ("attention", "layout", "noise")
_MOST = 10_000
_EPILOG = """examples:
  fromfew make "a <rex> cat on the beach" --with concepts/rex -n 8
  fromfew make "a <rex> cat in <mine> style" --with concepts/rex:0.9 --with concepts/mine:0.7
  fromfew make "a <rex> cat and a <tom> dog" --with concepts/rex --with concepts/tom \\
      --region "<rex>=0,0,0.5,1" --region "<tom>=0.5,0,1,1"
  fromfew make --from out/picture-0001.png        (the same picture again, bit for bit)
"""


@dataclass(frozen=True)
class _Order:
    """Pictures to make, checked; ``None`` leaves a number to the base."""

    prompts: tuple[str, ...]
    concepts: tuple[tuple[Known, float], ...]
    base: str
    device: str
    seed: int
    steps: int | None
    guidance: float | None
    negative: str
    sampler: str | None
    size: tuple[int, int] | None
    batch: int
    regions: Mapping[str, Any]
    region_method: str
    force: bool


def _parser() -> Parser:
    parser = Parser("make", "Make pictures of concepts.", epilog=_EPILOG)
    add = parser.add_argument
    add("prompts", nargs="*", metavar="PROMPT", help='what to make, such as "a <rex> cat on the beach"; one or more')
    add("--with", dest="concepts", action="append", default=[], type=strengthened, metavar="FOLDER[:HOW]",
        help="a concept and how strongly it acts (default: 1); may be given several times")  # fmt: skip
    add("-n", "--number", type=whole(1, _MOST), help="pictures per prompt (default: 4, or 1 for several prompts)")
    add("--seed", type=whole(0, 2**63 - 1), help="seed; picture i depends on it and on i only (default: 0)")
    add("--out", type=Path, default=Path("out"), help="folder for the pictures (default: out)")
    add("--base", help="model to draw with (default: the one the concepts were learned on, else world)")
    add("--steps", type=whole(1, 1000), help="sampling steps (default: chosen for the base)")
    add("--guidance", type=number(0, 100), help="how strictly to follow the prompt (default: chosen for the base)")
    add("--negative", help="what not to draw")
    add("--sampler", choices=SAMPLERS, help="how to draw (default: chosen for the base)")
    add("--size", type=size, metavar="SIZE", help="side, or WIDTHxHEIGHT, in pixels (default: the base's)")
    add("--region", dest="regions", action="append", default=[], metavar="WHAT=BOX",
        help='where a concept is to be: "<rex>=0,0,0.5,1" (left,top,right,bottom, shares of the picture or px), or '
        '"<rex>=find" for where the base puts its noun; WHAT may be the prompt of the region; repeatable')  # fmt: skip
    add("--region-method", choices=REGION_METHODS,
        help="how to keep it there: it reads its own prompt (attention, the default), words are drawn into their "
        "regions (layout), or each region is drawn by the base with its concept alone (noise)")  # fmt: skip
    add("--batch", type=whole(1, 1024), help="pictures drawn at once; less needs less memory (default: 8)")
    add("--force", action="store_true", help="begin even if memory will probably not suffice")
    add("--device", default="auto", help="cpu, cuda or auto (default: auto)")
    add("--from", dest="source", type=Path, metavar="PICTURE", help="repeat a picture made by fromfew, bit for bit")
    add("--no-sheet", action="store_true", help="no contact sheet")
    add("--json", action="store_true", help="say the result as JSON")
    return parser


def _order(found: argparse.Namespace) -> _Order:
    """What was asked for on the command line, checked."""
    if not found.prompts:
        raise FromfewError('Say what to make: fromfew make "a cat on the beach".')
    seen = [(peek(folder), strength) for folder, strength in found.concepts]
    for remark_ in check_prompts(found.prompts, [one for one, _ in seen]):
        remark(remark_)
    count = found.number or (4 if len(found.prompts) == 1 else 1)
    prompts = tuple(prompt for prompt in found.prompts for _ in range(count))
    if len(prompts) > _MOST:
        raise FromfewError(f"{len(prompts):,} pictures are more than {_MOST:,} at once.")
    base = base_to_use(found.base, [one for one, _ in seen])
    return _Order(
        prompts, tuple(seen), base, found.device, found.seed or 0, found.steps, found.guidance,
        found.negative or "", found.sampler, found.size, found.batch or 8,
        _regions(found.regions, prompts, [one for one, _ in seen]), found.region_method or "attention",
        found.force,
    )  # fmt: skip


def _regions(given: Sequence[str], prompts: Sequence[str], seen: Sequence[Known]) -> dict[str, Any]:
    """The regions, read; what they mean for the picture is checked where it is drawn.

    Raises:
        FromfewError: One is not WHAT=BOX, is given twice, or calls a concept that is not there.
    """
    answers = [word for one in seen for word in one.answers]
    found: dict[str, Any] = {}
    for text in given:
        what, equals, where = text.rpartition("=")
        what, where = what.strip(), where.strip()
        if not (equals and what and where):
            raise FromfewError(f"'{text}' is no region: write what and where, such as \"<rex>=0,0,0.5,1\".")
        if what in found:
            raise FromfewError(f"The region of '{what}' is given twice.")
        for word in re.findall(r"<[^<>\s]+>", what):
            if word not in answers:
                raise unknown("concept of a region", word, answers)
            lacking = next((prompt for prompt in prompts if word not in prompt), None)
            if lacking is not None:
                raise FromfewError(f"The region of {word} belongs to nothing: '{lacking}' does not call {word}.")
        found[what] = where if where == "find" else _box(where, what)
    return found


def _box(text: str, what: str) -> list[float]:
    """Left, top, right, bottom.

    Raises:
        FromfewError: They are not four numbers.
    """
    try:
        box = [float(piece) for piece in text.split(",")]
    except ValueError:
        box = []
    if len(box) != 4 or not all(0 <= value < 1e5 for value in box):
        raise FromfewError(
            f"'{text}' is no box for '{what}': write left,top,right,bottom as shares of the picture, such as "
            "0,0,0.5,1, or in px; or find."
        )
    return box


_FIXED = (
    "prompts", "number", "seed", "steps", "guidance", "negative", "sampler", "size", "batch", "regions",
    "region_method",
)  # fmt: skip


def _repeated(found: argparse.Namespace) -> tuple[_Order, dict[str, Any]]:
    """The order that made a picture, from the picture.

    Raises:
        FromfewError: Something else was asked for as well, or a concept is gone or has changed.
    """
    from fromfew.io.metadata import read_recipe

    given = [
        f"--{name}" if name != "prompts" else "a prompt" for name in _FIXED if getattr(found, name) not in (None, [])
    ]
    if given:
        raise FromfewError(f"--from repeats a picture as it was made; it cannot be combined with {', '.join(given)}.")
    recipe = read_recipe(found.source)
    paths = [folder for folder, _ in found.concepts] or [Path(one["path"]) for one in recipe["concepts"]]
    if len(paths) != len(recipe["concepts"]):
        raise FromfewError(f"The picture was made with {len(recipe['concepts'])} concepts; --with names {len(paths)}.")
    concepts = []
    for path, one in zip(paths, recipe["concepts"], strict=True):
        known = peek(path)
        if known.sha256 != one["sha256"]:
            raise FromfewError(
                f"The concept '{path}' is not the one the picture was made with (it has been learned anew?). "
                "Name the right folder with --with."
            )
        concepts.append((known, float(one["strength"])))
    shape = tuple(recipe["size"]) if recipe["size"] else None
    order = _Order(
        tuple(recipe["prompts"]), tuple(concepts), found.base or recipe["base"], found.device, recipe["seed"],
        recipe["steps"], recipe["guidance"], recipe["negative"], recipe["sampler"], shape, recipe["batch"],
        recipe.get("regions", {}), recipe.get("region_method", "attention"),
        found.force,
    )  # fmt: skip
    return order, recipe


def _versions() -> dict[str, str]:
    from fromfew.concept import versions

    return {**versions(), "pillow": __import__("PIL").__version__}


def _recipe(order: _Order, bb: Any, told: Mapping[str, Any]) -> dict[str, Any]:
    """Everything needed to make the pictures again; ``index`` is added for each."""
    import torch

    guidance = order.guidance if order.guidance is not None else bb.defaults.guidance
    return {
        "prompts": list(order.prompts),
        "seed": order.seed,
        "steps": told["steps"],
        "guidance": guidance,
        "negative": order.negative,
        "sampler": told["sampler"],
        "size": list(told["size"]),
        "batch": order.batch,
        **({"regions": dict(order.regions), "region_method": order.region_method} if order.regions else {}),
        "base": order.base,
        "base_fingerprint": bb.fingerprint(),
        "concepts": [
            {"name": one.name, "placeholder": one.placeholder, "path": str(one.folder), "method": one.method,
             "strength": strength, "sha256": one.sha256}
            for one, strength in order.concepts
        ],
        "device": str(bb.device),
        "threads": torch.get_num_threads(),
        "versions": _versions(),
    }  # fmt: skip


def _open(order: _Order, recipe: Mapping[str, Any] | None) -> tuple[Any, list[tuple[Any, float]]]:
    """The base and the concepts with their strengths."""
    import torch

    from fromfew.concept import load

    if recipe is not None and isinstance(recipe.get("threads"), int) and 1 <= recipe["threads"] <= 1024:
        torch.set_num_threads(recipe["threads"])  # sums are rounded in another order with other threads
    bb = open_base(order.base, order.device)
    if recipe is not None:
        _same_ground(recipe, bb)
    pairs = []
    for known, strength in order.concepts:
        concept = load(known.folder)
        concept.check(bb)
        if not concept.same_base(bb):
            remark(f"'{known.name}' was learned on another base than '{order.base}'; it may look different.")
        pairs.append((concept, strength))
    return bb, pairs


def _draw(order: _Order, bb: Any, pairs: Sequence[Any], only: range | None = None) -> tuple[list[Image], Any]:
    """The pictures (of the whole order, or of some indices only), and the recipe."""
    from fromfew.make import make

    chosen = only if only is not None else range(len(order.prompts))
    check_drawing(pairs, bb, len(chosen), order.batch, order.size, order.force)
    with progress("making") as watch:
        drawn = make(
            bb, [order.prompts[i] for i in chosen], pairs, guidance=order.guidance, steps=order.steps,
            seed=order.seed, negative=order.negative, size=order.size, sampler=order.sampler, batch=order.batch,
            first=chosen.start, regions=order.regions, region_method=order.region_method, watch=watch,
        )  # fmt: skip
    for warning in drawn.warnings:
        remark(warning)
    return list(drawn), _recipe(order, bb, drawn.provenance[0])


def _same_ground(recipe: Mapping[str, Any], bb: Any) -> None:
    """Refuse another base; remark on other versions or another device."""
    if bb.fingerprint() != recipe["base_fingerprint"]:
        raise FromfewError(
            f"The base '{bb.name}' is not the one the picture was made with. Name the right one with --base."
        )
    now = _versions()
    other = [f"{key} {was} (now {now.get(key)})" for key, was in recipe["versions"].items() if now.get(key) != was]
    if recipe.get("device") != str(bb.device):
        other.append(f"device {recipe.get('device')} (now {bb.device})")
    if other:
        remark(f"Made with {', '.join(other)}: the picture may differ in its last bits.")


def _stem(prompt: str) -> str:
    """The beginning of a prompt as a file name."""
    words = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")
    return words[:48].rstrip("-") or "picture"


def _save(order: _Order, images: Sequence[Image], recipe: Mapping[str, Any], out: Path) -> list[Path]:
    from fromfew.io.metadata import free_path, write_png

    paths = []
    for index, (image, prompt) in enumerate(zip(images, order.prompts, strict=True)):
        path = free_path(out, _stem(prompt))
        write_png(path, image, {**recipe, "index": index, "pixels": [image.height, image.width]})
        paths.append(path)
    return paths


def _sheet(order: _Order, images: Sequence[Image], out: Path) -> Path:
    from fromfew.io.metadata import free_path, write_png
    from fromfew.sheet import contact_sheet

    once = len(set(order.prompts)) == 1
    captions = [f"{i}" if once else prompt for i, prompt in enumerate(order.prompts)]
    names = ", ".join(f"{one.name}:{strength:g}" for one, strength in order.concepts)
    title = (order.prompts[0] if once else "") + f"   [seed {order.seed}{'; ' + names if names else ''}]"
    path = free_path(out, "sheet")
    write_png(path, contact_sheet(images, captions, title=title.strip()))
    return path


def _check_folder(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise FromfewError(f"'{out}' is a file. Choose a folder with --out.")


def _once_more(order: _Order, before: Mapping[str, Any], source: Path) -> tuple[Image, dict[str, Any]]:
    """One picture of an order, and the recipe: drawn alone, or, if it is another then, in the company it had.

    Alone it is the same but for the last bits of its sums, which the size of a batch may round otherwise; whether they
    show is seen by comparing.
    """
    from fromfew.io.pictures import read_picture

    index, count = before["index"], len(order.prompts)
    bb, pairs = _open(order, before)
    together = couples(pairs)
    batch = max(1, order.batch)
    start = index // batch * batch
    beside = range(count) if together else range(start, min(start + batch, count))
    ways = [beside] if together else [range(index, index + 1), beside]
    try:
        expected = read_picture(source).image.tobytes()
    except FromfewError:  # drawn in a shape that no photo may have
        ways, expected = [beside], b""
    for chosen in ways:
        images, recipe = _draw(order, bb, pairs, chosen)
        image = images[index - chosen.start]
        if chosen == beside or image.tobytes() == expected:
            break
    return image, recipe


def _repeat(found: argparse.Namespace) -> int:
    """Make one picture again and say whether its file came out with equal bytes."""
    from fromfew.io.metadata import free_path, write_png

    order, before = _repeated(found)
    image, recipe = _once_more(order, before, found.source)
    index = before["index"]
    kept = {"base": before["base"], "concepts": before["concepts"]}  # where they lie now does not matter
    path = free_path(found.out, _stem(order.prompts[index]))
    write_png(path, image, {**recipe, **kept, "index": index, "pixels": [image.height, image.width]})
    equal = path.read_bytes() == found.source.read_bytes()
    if found.json:
        say_json({"pictures": [str(path)], "equal": equal})
    else:
        say(f"{path}\n{'Equal to the bit' if equal else 'Not equal to the bit'}: {found.source}")
    return 0


def run(argv: Sequence[str]) -> int:
    """Make pictures.

    Raises:
        FromfewError: Something asked for cannot be; nothing was written.
    """
    found = _parser().read(argv)
    _check_folder(found.out)
    if found.source is not None:
        return _repeat(found)
    order = _order(found)
    images, recipe = _draw(order, *_open(order, None))
    order = replace(order, steps=recipe["steps"])
    paths = _save(order, images, recipe, found.out)
    sheet = None if found.no_sheet or len(images) < 2 else _sheet(order, images, found.out)
    if found.json:
        say_json({"pictures": list(map(str, paths)), "sheet": str(sheet) if sheet else None, "recipe": recipe})
        return 0
    for path in paths:
        say(str(path))
    if sheet:
        say(f"Sheet: {sheet}")
    say(f"Again: fromfew make --from {shlex.quote(str(paths[0]))}")
    return 0
