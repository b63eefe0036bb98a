"""A small slice of scripts/kill_learn.py: real processes, really killed."""

import sys

import pytest

from fromfew.testing.kills import torment

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks a process that has loaded torch")


def test_a_run_that_is_killed_and_resumed_ends_in_the_same_bits(tmp_path):
    told = torment("two stages, watched", tmp_path, 2, seed=3)
    assert told.kills == 2
    assert told.wrong == []
