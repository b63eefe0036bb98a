"""A few seconds of every fuzzer; scripts/fuzz.py runs them for as long as one likes."""

import pytest

from fromfew.errors import FromfewError
from fromfew.testing import fuzz as fuzzing
from fromfew.testing.fuzz import TARGETS, capped, fuzz


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_but_a_result_or_a_plain_refusal_comes_out(target, tmp_path):
    fuzz(target, tmp_path, count=1, seed=-1)
    with capped():
        told = fuzz(target, tmp_path, count=60, seconds=8, seed=1)
    assert [f"{one.number}: {one.what}" for one in told.findings] == []
    assert told.inputs >= 10
    assert told.refused > 0, "no input was bad enough to be refused"


def fed(monkeypatch, feed, tmp_path):
    monkeypatch.setitem(TARGETS, "planted", feed)
    return [one.what for one in fuzz("planted", tmp_path, count=1).findings]


def test_faults_hangs_floods_and_empty_messages_are_found(monkeypatch, tmp_path):
    def fault(rng, home):
        raise KeyError("x")

    def hang(rng, home):
        while True:
            pass

    def mumble(rng, home):
        raise FromfewError("no")

    def refuse(rng, home):
        raise FromfewError("This is refused as it should be.")

    def flood(rng, home):
        return bytearray(3 * 1024**3)

    monkeypatch.setattr(fuzzing, "PATIENCE", 0.2)
    assert "KeyError" in fed(monkeypatch, fault, tmp_path)[0]
    assert "Hang" in fed(monkeypatch, hang, tmp_path)[0]
    assert "a message of 2 letters" in fed(monkeypatch, mumble, tmp_path)[0]
    assert fed(monkeypatch, refuse, tmp_path) == []
    with capped():
        assert "MemoryError" in fed(monkeypatch, flood, tmp_path)[0]
