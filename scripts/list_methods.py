"""Write the lists of methods into README.md and docs/methods/README.md, from the methods' own files.

python scripts/list_methods.py            # writes
python scripts/list_methods.py --check    # only says whether they are true; 1 if not
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fromfew.registry import COMBINERS, METHODS, Shelf

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- written by scripts/list_methods.py -->", "<!-- end -->"

FAMILIES = {
    "A word": "only what stands for the subject in prompts is learned; the model itself stays as it is",
    "A word and the model": "what the word means is learned into the model as well: all of it, or thin changes",
    "Pre-trained, then tuned": "an encoder that was trained beforehand says most of it, a short tuning the rest",
    "Pre-trained": "nothing is learned per subject: photos are read in one go",
    "While drawing": "nothing is learned at all",
}


def family(card: Mapping[str, Any]) -> str:
    """Which family a method's card puts it into."""
    if card["kind"] == "free":
        return "While drawing"
    if card["kind"] == "encoded":
        return "Pre-trained"
    if card.get("needs_weights"):
        return "Pre-trained, then tuned"
    return "A word" if set(card["ports"]) <= {"text", "sampler"} else "A word and the model"


def line(name: str, shelf: Shelf) -> tuple[str, str]:
    """A method's proper name and its idea: the first line of its file."""
    said = ast.get_docstring(ast.parse(shelf.file(name).read_text(encoding="utf-8"))) or ""
    proper, _, idea = said.splitlines()[0].partition(": ")
    return proper, idea.rstrip(".")


def short() -> str:
    """The list for the front page."""
    cards, rows = METHODS.cards(), []
    for title, about in FAMILIES.items():
        rows.append(f"\n**{title}**: {about}.\n")
        own = [name for name, card in cards.items() if family(card) == title and name in METHODS.own()]
        rows += [f"- [`{name}`](docs/methods/{name}.md): {line(name, METHODS)[1]}" for name in own]
    rows.append("\n**Joining** what was learned apart ([several subjects](docs/several.md)):\n")
    rows += [f"- `{name}`: {line(name, COMBINERS)[1]}" for name in COMBINERS.own()]
    return "\n".join(rows) + "\n"


def table() -> str:
    """The table for the index of pages."""
    cards, rows = METHODS.cards(), []
    for title, about in FAMILIES.items():
        rows += [f"\n## {title}\n", f"{about[0].upper()}{about[1:]}.\n"]
        rows += ["| method | paper | learns | photos | bases | together | adds |", "|---|---|---|---|---|---|---|"]
        for name, card in cards.items():
            if name not in METHODS.own() or family(card) != title:
                continue
            paper = f"[{line(name, METHODS)[0]}](https://arxiv.org/abs/{card['arxiv']}), {card['year']}"
            photos, bases = "{} to {}".format(*card["photos"]), ", ".join(card["backbones"])
            together = "yes" if card.get("joint") else ""
            cells = (f"[`{name}`]({name}.md)", paper, ", ".join(card["learns"]), photos, bases, together, card["adds"])
            rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Write both, or check them."""
    wrong = 0
    for file, made in ((ROOT / "README.md", short()), (ROOT / "docs/methods/README.md", table())):
        text = file.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        new = head + BEGIN + "\n" + made + "\n" + END + rest.partition(END)[2]
        if new != text and "--check" in sys.argv:
            print(f"{file.relative_to(ROOT)} is out of date: run scripts/list_methods.py")
            wrong = 1
        elif new != text:
            file.write_text(new, encoding="utf-8")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
