"""The command line: one verb, one file in `fromfew.commands`; nothing heavy is imported before its time."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from importlib import import_module

from fromfew.errors import FromfewError, unknown

__all__ = ["VERBS", "main"]

VERBS: dict[str, tuple[str, str]] = {
    "learn": ("fromfew.commands.learn", "learn a concept from a few photos"),
    "make": ("fromfew.commands.make", "make pictures of concepts"),
    "combine": ("fromfew.commands.combine", "join concepts that were learned apart into one"),
    "methods": ("fromfew.commands.methods", "list the methods of learning"),
    "show": ("fromfew.commands.show", "show a concept, a method, or how a picture was made"),
    "export": ("fromfew.commands.export", "write a concept as a file that other tools read"),
    "import": ("fromfew.commands.import_", "make a concept of another tool's file"),
    "check": ("fromfew.commands.check", "check a method against its contract on tiny models"),
    "world": ("fromfew.world.cli", "draw scenes of the embedded toy world, export subjects' photos"),
    "pretrain": ("fromfew.pretrain.cli", "train the embedded base model, resumable"),
    "bench": ("fromfew.bench.cli", "compare methods on subjects and prompts"),
}

_DEBUG = "FROMFEW_DEBUG"


def _usage() -> str:
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {about}" for verb, (_, about) in VERBS.items()]
    return "\n".join([
        "fromfew: learn anything from a few pictures, make it anywhere.", "",
        "usage: fromfew VERB ...", "", *lines, "",
        'fromfew VERB --help tells more. A start:',
        '  fromfew learn photos/ --noun "cat" --as "<rex>"',
        '  fromfew make "a <rex> cat on the beach" --with concepts/rex',
    ])  # fmt: skip


def _run(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from fromfew import __version__

        print(f"fromfew {__version__}")
        return 0
    verb = argv[0]
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    return int(import_module(VERBS[verb][0]).run(list(argv[1:])) or 0)


def _interrupted(argv: Sequence[str]) -> int:
    print("\nStopped.", file=sys.stderr)
    if argv and argv[0] in ("learn", "pretrain"):
        again = [word for word in argv if word not in ("--resume", "--replace")] + ["--resume"]
        print(f"Go on with:\n  fromfew {shlex.join(again)}", file=sys.stderr)
    return 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The words after ``fromfew``; default: those the program was started with.

    Returns:
        0 if all went well, 2 if the user can put it right, 130 if interrupted, 1 for a fault of fromfew.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(argv)
    except FromfewError as error:
        print(f"fromfew: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return _interrupted(argv)
    except BrokenPipeError:
        # The reader went away (as in `| head`); closing stdout quietly keeps Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except Exception as error:
        if os.environ.get(_DEBUG):
            raise
        print(
            f"fromfew: a fault of fromfew itself, please report it: {type(error).__name__}: {error}\n"
            f"Run it again with {_DEBUG}=1 in the environment for the details.",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(main())
