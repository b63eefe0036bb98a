"""Every method keeps the contract: all of it on the first tiny model its card names, on the others what may differ."""

from pathlib import Path

import pytest

from fromfew.method import cards, find
from fromfew.testing.checks import CHECKS, ON_EVERY_BASE, WHERE_SOMETHING_LEARNS
from fromfew.testing.contract import check_method
from fromfew.testing.tiny import tiny

PAIRS = [(name, base) for name, card in cards().items() for base in card.get("backbones", ())]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("class-pictures")


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_method_keeps_the_contract(name: str, base: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMFEW_CACHE", str(kept))
    card = cards()[name]
    wanted = tuple(CHECKS) if base == card["backbones"][0] else ON_EVERY_BASE
    report = check_method(find(name)(), tiny(base), only=wanted)
    may_skip = set() if card["kind"] == "tuned" else set(WHERE_SOMETHING_LEARNS)
    assert set(report.skipped) <= may_skip, report.skipped
    assert {*report.ran, *report.skipped} == set(wanted)
