"""``fromfew world``: look at the small world, list its held-out subjects, export reference pictures."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from fromfew.errors import FromfewError, unknown
from fromfew.world.vocabulary import CONTEXTS, CORE, HELD_OUT, HELD_OUT_STYLES, STYLES, WIDE, names


def parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them."""
    p = argparse.ArgumentParser(prog="fromfew world", description=__doc__)
    verbs = p.add_subparsers(dest="what", required=True)
    one = verbs.add_parser("list", help="objects, contexts, styles, and what is held out")
    one.add_argument("--json", action="store_true", help="for machines")
    one = verbs.add_parser("sample", help="draw scenes with their captions")
    one.add_argument("-n", type=int, default=24, help="how many")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, default=Path("out/world"))
    one = verbs.add_parser("export", help="reference pictures of a held-out subject, with captions and masks")
    one.add_argument("subject", help="a held-out object (see list), a held-out style, or face-N for a person")
    one.add_argument("-n", type=int, default=5, help="how many views, each in another scene")
    one.add_argument("--seed", type=int, default=0)
    one.add_argument("--out", type=Path, help="folder (default: out/world/SUBJECT)")
    one.add_argument("--no-masks", action="store_true", help="without masks")
    one.add_argument("--no-captions", action="store_true", help="without captions")
    return p


def run(argv: Sequence[str]) -> int:
    """Run ``fromfew world`` with the arguments after the verb; returns the exit code."""
    args = parser().parse_args(list(argv))
    if args.what == "list":
        listing(args.json)
    elif args.what == "sample":
        sample(args.n, args.seed, args.out)
    else:
        target = args.out or Path("out/world") / args.subject
        noun = export(
            args.subject, target, n=args.n, seed=args.seed, masks=not args.no_masks, captions=not args.no_captions
        )
        sys.stdout.write(f"{args.n} pictures in {target}\nfromfew learn {target} --noun {noun} --as '<v>'\n")
    return 0


def listing(as_json: bool) -> None:
    """Print what the world is made of."""
    world = {
        "objects": names(CORE),
        "called by category only": names(WIDE),
        "held-out objects": names(HELD_OUT),
        "contexts": CONTEXTS,
        "styles": STYLES,
        "held-out styles": HELD_OUT_STYLES,
    }
    if as_json:
        sys.stdout.write(json.dumps(world, indent=2) + "\n")
        return
    for title, entries in world.items():
        sys.stdout.write(f"{title} ({len(entries)})\n")
        sys.stdout.writelines(f"  {name:32s}{what}\n" for name, what in entries.items())


def sample(n: int, seed: int, out: Path) -> None:
    """Draw ``n`` scenes and a sheet into a folder."""
    from fromfew.sheet import contact_sheet
    from fromfew.world.scenes import scene_at

    if n < 1:
        raise FromfewError(f"-n is {n}; it must be at least 1")
    drawn = [scene_at(seed, k) for k in range(n)]
    out.mkdir(parents=True, exist_ok=True)
    for k, one in enumerate(drawn):
        one.picture.save(out / f"{k:03d}.png")
        (out / f"{k:03d}.txt").write_text(one.scene.caption + "\n")
    contact_sheet([d.picture for d in drawn], [d.scene.caption for d in drawn]).save(out / "sheet.png")
    sys.stdout.write(f"{n} scenes in {out}\n")


def subjects() -> dict[str, str]:
    """Every held-out subject that can be exported by name, and its class noun."""
    return {**names(HELD_OUT), **dict.fromkeys(HELD_OUT_STYLES, "style")}


def export(subject: str, out: Path, *, n: int = 5, seed: int = 0, masks: bool = True, captions: bool = True) -> str:
    """Write ``n`` reference pictures of a held-out subject, each in a scene of its own; returns its class noun.

    Args:
        subject: a held-out object or style, or ``face-N`` for a person.
        out: folder for ``00.png``, ``00.mask.png``, ...
        n: how many, 1 to 14 for objects (one a context).
        seed: other views of the same subject.
        masks: also write exact masks.
        captions: also write ``00.txt``, which says what is to be seen and where.

    Raises:
        FromfewError: there is no such subject, or ``n`` is out of range.
    """
    from fromfew.world.reference import said_of, views

    drawn = views(subject, n=n, seed=seed)
    out.mkdir(parents=True, exist_ok=True)
    for k, one in enumerate(drawn):
        one.picture.save(out / f"{k:02d}.png")
        if masks and subject not in HELD_OUT_STYLES:
            one.mask().save(out / f"{k:02d}.mask.png")
        if captions:
            (out / f"{k:02d}.txt").write_text(said_of(subject, one) + "\n")
    return noun_of(subject)


def noun_of(subject: str) -> str:
    """The class noun of a held-out subject.

    Raises:
        FromfewError: there is no such subject.
    """
    if subject.startswith("face-") and subject[5:].isdigit():
        from fromfew.world.faces import HELD_OUT_FROM, identity

        return identity(HELD_OUT_FROM + int(subject[5:])).noun
    if subject not in subjects():
        raise unknown("held-out subject", subject, subjects())
    return subjects()[subject]
