"""Every method keeps the contract on every backbone its card names."""

from pathlib import Path

import pytest

from fromfew.method import cards, find
from fromfew.testing.checks import CHECKS
from fromfew.testing.contract import check_method
from fromfew.testing.tiny import tiny

PAIRS = [(name, base) for name, card in cards().items() for base in card.get("backbones", ())]
NOT_TUNED = 5  # checks that only apply where something is learned at test time


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("class-pictures")


@pytest.mark.parametrize(("name", "base"), PAIRS)
def test_method_keeps_the_contract(name: str, base: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FROMFEW_CACHE", str(kept))
    report = check_method(find(name)(), tiny(base))
    least = len(CHECKS) if cards()[name]["kind"] == "tuned" else len(CHECKS) - NOT_TUNED
    assert len(report.ran) >= least, report.skipped
