"""``fromfew check``: a method against the laws that every method keeps, on the tiny models its card names."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fromfew.commands.console import clock, remark, say, say_json
from fromfew.commands.parsing import Parser
from fromfew.errors import FromfewError, unknown

__all__ = ["run"]


def _one(name: str, twin: str) -> dict[str, Any]:
    """The laws a method keeps on one tiny model, or the first it breaks."""
    from fromfew.registry import find
    from fromfew.testing.contract import check_method
    from fromfew.testing.tiny import tiny

    began = time.monotonic()
    result: dict[str, Any] = {
        "method": name,
        "base": f"tiny-{twin}",
        "kept": [],
        "skipped": {},
        "broken": None,
    }
    try:
        report = check_method(find(name)(), tiny(twin))
    except (AssertionError, FromfewError) as error:
        result["broken"] = str(error) or type(error).__name__
    else:
        result |= {"kept": report.ran, "skipped": report.skipped}
    return {**result, "seconds": round(time.monotonic() - began, 2)}


def run(argv: Sequence[str]) -> int:
    """Check one method, or all; 1 if any law is broken.

    Raises:
        FromfewError: There is no such method.
    """
    from fromfew.registry import cards

    parser = Parser("check", "Check a method against its contract, on the tiny models its card names.")
    parser.add_argument("method", nargs="?", metavar="METHOD", help="the method's name")
    parser.add_argument("--all", action="store_true", help="every method")
    parser.add_argument("--json", action="store_true", help="the results as JSON")
    found = parser.read(argv)
    known = cards()
    if bool(found.method) == found.all:
        raise FromfewError("Name one method, or give --all: fromfew check lora.")
    names = list(known) if found.all else [found.method.replace("_", "-").lower()]
    results = []
    for name in names:
        if name not in known:
            raise unknown("method", name, known)
        for twin in known[name].get("backbones", ()):
            if not found.json:
                remark(f"{name} on tiny-{twin} ...")
            results.append(_one(name, twin))
            if not found.json:
                one = results[-1]
                told = f"broken: {one['broken']}" if one["broken"] else f"keeps {len(one['kept'])} laws"
                if one["skipped"]:
                    told += f", {len(one['skipped'])} do not apply"
                say(f"{name} on {one['base']}: {told} ({clock(one['seconds'])})")
    if found.json:
        say_json(results)
    return 1 if any(one["broken"] for one in results) else 0
