"""Pictures carry their recipe, in any language, and only whole recipes are taken from them."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fromfew.errors import FromfewError
from fromfew.io.metadata import free_path, parameters_text, png_bytes, read_recipe, write_png

RECIPE = {
    "prompts": ["a <rex> cat", "two"], "index": 0, "seed": 3, "steps": 20, "guidance": 5.0, "negative": "",
    "pixels": [64, 96],
    "sampler": "ddim", "size": None, "batch": 8, "base": "world", "base_fingerprint": "abcdef0123456789",
    "concepts": [{"name": "rex", "path": "concepts/rex", "sha256": "0", "strength": 0.8}],
    "versions": {"fromfew": "0.1.0"},
}  # fmt: skip


def picture() -> Image.Image:
    return Image.linear_gradient("L").convert("RGB")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt=st.text(st.characters(exclude_categories=["Cs"]), max_size=50), negative=st.text('abc ,:\n"é', max_size=9)
)
def test_a_recipe_comes_back_as_it_was_written(tmp_path, prompt, negative):
    recipe = {**RECIPE, "prompts": [prompt], "negative": negative}
    write_png(tmp_path / "a.png", picture(), recipe)
    read = read_recipe(tmp_path / "a.png")
    assert {key: read[key] for key in recipe} == recipe
    with Image.open(tmp_path / "a.png") as image:
        assert image.convert("RGB").tobytes() == picture().tobytes()


def test_equal_pictures_and_recipes_make_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        write_png(tmp_path / name, picture(), dict(reversed(RECIPE.items())) if name == "b.png" else RECIPE)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_other_tools_find_their_parameters():
    assert parameters_text({**RECIPE, "negative": "dogs"}) == (
        "a <rex> cat\nNegative prompt: dogs\nSteps: 20, Sampler: ddim, CFG scale: 5.0, Seed: 3, Size: 96x64, "
        'Model hash: abcdef0123, Model: world, Concepts: "rex:0.8", Version: fromfew 0.1.0'
    )


@pytest.mark.parametrize("key", [key for key in RECIPE if key != "pixels"])
@pytest.mark.parametrize("value", [None, True, [1], {"a": 1}, "x", -5, 1e9], ids=repr)
def test_a_recipe_with_a_wrong_value_is_refused_or_harmless(tmp_path, key, value):
    write_png(tmp_path / "a.png", picture(), None)
    text = json.dumps({"schema": 1, **RECIPE, key: value})
    (tmp_path / "a.png").write_bytes(png_bytes(picture(), {"fromfew": text}))
    found, said = None, "carries a damaged recipe"
    try:
        found = read_recipe(tmp_path / "a.png")
    except FromfewError as error:
        said = str(error)
    assert "carries a damaged recipe" in said
    if found is not None:
        assert type(found[key]) in {type(RECIPE[key]), int, list, str, type(None), dict}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_picture_gives_a_recipe_or_a_reason(tmp_path, data):
    raw = bytearray(png_bytes(Image.new("RGB", (8, 8)), {"fromfew": json.dumps({"schema": 1, **RECIPE})}))
    for _ in range(data.draw(st.integers(1, 5))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.png").write_bytes(raw[: data.draw(st.integers(1, len(raw)))])
    said = "/a.png'"
    try:
        read_recipe(tmp_path / "a.png")
    except FromfewError as error:
        said = str(error)
    assert "/a.png'" in said


def test_names_that_are_taken_are_passed_over(tmp_path: Path):
    assert free_path(tmp_path, "cat").name == "cat-0001.png"
    (tmp_path / "cat-0001.png").touch()
    (tmp_path / "cat-0003.png").touch()
    assert free_path(tmp_path, "cat").name == "cat-0002.png"
