"""The code in docs/adding.md is run as it stands there."""

import re
import sys
import types
from pathlib import Path

import pytest

from fromfew.testing.contract import check_method, check_part
from fromfew.testing.tiny import tiny

PAGE = Path(__file__).parent.parent / "docs" / "adding.md"


def blocks():
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)


@pytest.fixture
def thin_keys(tmp_path, monkeypatch):
    (tmp_path / "thin_keys.py").write_text(blocks()[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    module = __import__("thin_keys")
    yield module.ThinKeys
    sys.modules.pop("thin_keys", None)


def test_the_method_of_the_page_keeps_the_contract(thin_keys):
    report = check_method(thin_keys(), tiny("sd15"))
    assert report.skipped == {}


def test_the_part_of_the_page_keeps_the_contract(monkeypatch):
    module = types.ModuleType("fromfew.parts.quieter")
    exec(blocks()[1], module.__dict__)
    monkeypatch.setitem(sys.modules, "fromfew.parts.quieter", module)
    monkeypatch.setattr("fromfew.concept.kinds", lambda: ["quieter"])
    module.Quieter.__module__ = "fromfew.parts.quieter"
    assert len(check_part(module.Quieter(), tiny("sd15")).ran) >= 5
