"""A bench small enough for a test."""

from functools import partial

import pytest
from bench_makers import small_plan, small_suite

from fromfew.testing.tiny import tiny


@pytest.fixture(scope="session")
def suite():
    return small_suite()


@pytest.fixture(scope="session")
def bb():
    return tiny("sd15")


@pytest.fixture
def plan(bb, suite):
    return partial(small_plan, bb, suite)
