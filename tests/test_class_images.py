"""Pictures of the plain noun are drawn once, kept, and the same after an interruption."""

import sys

import pytest
from PIL import Image

from fromfew.class_images import class_images
from fromfew.testing.tiny import tiny


def drawn(bb, folder, count: int = 10, **how) -> list[bytes]:
    return [image.tobytes() for image in class_images(bb, "cat", count, seed=0, folder=folder, steps=2, **how)]


def test_they_are_drawn_once_and_kept(tmp_path, monkeypatch):
    bb = tiny("sd15")
    first = drawn(bb, tmp_path)
    assert len(set(first)) == 10
    monkeypatch.setattr(sys.modules["fromfew.make"], "make", lambda *_, **__: pytest.fail("drawn again"))
    assert drawn(bb, tmp_path) == first
    assert drawn(bb, tmp_path, 3) == first[:3], "fewer are the first of more"


def test_an_interruption_loses_nothing_and_changes_nothing(tmp_path):
    bb = tiny("sd15")
    whole = drawn(bb, tmp_path / "whole")

    def stop(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drawn(bb, tmp_path / "cut", watch=stop)
    kept = list((tmp_path / "cut").rglob("*.png"))
    assert len(kept) == 8
    kept[3].unlink()  # and one of them is lost
    assert drawn(bb, tmp_path / "cut") == whole


def test_another_seed_noun_or_base_has_its_own(tmp_path):
    bb = tiny("sd15")
    first = drawn(bb, tmp_path, 2)
    others = [
        class_images(bb, "cat", 2, seed=1, folder=tmp_path, steps=2),
        class_images(bb, "dog", 2, seed=0, folder=tmp_path, steps=2),
        class_images(tiny("sdxl"), "cat", 2, seed=0, folder=tmp_path, steps=2),
    ]
    for images in others:
        assert all(isinstance(image, Image.Image) and image.tobytes() not in first for image in images)
    assert len(list(tmp_path.iterdir())) == 4
