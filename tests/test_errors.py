"""Errors name the nearest right answer."""

import pytest

from fromfew.errors import FromfewError, nearest, unknown

METHODS = ["custom-diffusion", "dreambooth", "ip-adapter", "loha", "lora", "style-aligned", "textual-inversion"]


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("loar", "lora"), ("LoRA", "lora"), ("textual_inversion", "textual-inversion"),
        ("dream", "dreambooth"),
        ("inversion", "textual-inversion"), ("style-align", "style-aligned"), ("ipadapter", "ip-adapter"),
    ],
)  # fmt: skip
def test_the_nearest_name_comes_first(asked, meant):
    assert nearest(asked, METHODS)[0] == meant
    assert f"'{meant}'" in str(unknown("method", asked, METHODS))


def test_when_nothing_is_near_everything_is_listed():
    assert str(unknown("method", "xyz", METHODS)).endswith("There is: " + ", ".join(METHODS) + ".")
    assert "and 80 more" in str(unknown("method", "?", [f"name {i}" for i in range(100)]))
    assert str(unknown("method", "xyz", [])) == "Unknown method 'xyz'. There are none."


def test_users_errors_are_value_errors():
    assert issubclass(FromfewError, ValueError)
