"""``fromfew methods``: what can be learned and how, read from the methods' cards without running them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fromfew.commands.console import say, say_json
from fromfew.commands.parsing import Parser

__all__ = ["run"]


def _photos(card: Mapping[str, Any]) -> str:
    least, most = card.get("photos", (1, 1))
    return str(least) if least == most else f"{least}-{most}"


def _row(name: str, card: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        name, str(card.get("kind", "?")), " ".join(card.get("learns", ())), _photos(card),
        " ".join(card.get("ports", ())), " ".join(card.get("backbones", ())),
        f"{card.get('year', '')} {card.get('title', '')}".strip(),
    )  # fmt: skip


def run(argv: Sequence[str]) -> int:
    """List the methods as a table, or with ``--json`` their whole cards."""
    from fromfew.registry import cards

    parser = Parser("methods", "List the methods of learning.")
    parser.add_argument("--json", action="store_true", help="the cards as JSON")
    found = parser.read(argv)
    known = cards()
    if found.json:
        say_json([{"name": name, **card} for name, card in known.items()])
        return 0
    rows: list[tuple[str, ...]] = [("method", "kind", "learns", "photos", "ports", "backbones", "paper")]
    rows += [_row(name, card) for name, card in known.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)] + [0]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    say("\nfromfew show METHOD tells more of one.\n")
    list_combiners()
    return 0


def list_combiners() -> None:
    """Say what joins concepts that were learned apart."""
    from fromfew.registry import COMBINERS

    rows = [("combiner", "joins", "backbones", "paper")]
    for name, card in COMBINERS.cards().items():
        paper = f"{card.get('year', '')} {card.get('title', '')}".strip()
        rows.append((name, str(card.get("joins", "")), " ".join(card.get("backbones", ())), paper))
    widths = [max(len(row[column]) for row in rows) for column in range(3)] + [0]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    say("\nfromfew combine --method COMBINER --help tells more of one.")
