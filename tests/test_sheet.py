"""Contact sheets hold every picture, and say what it is."""

import pytest
from PIL import Image

from fromfew.errors import FromfewError
from fromfew.sheet import contact_sheet, grid

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]


def test_every_picture_is_on_the_sheet_in_its_place():
    pictures = [Image.new("RGB", (32, 32), colour) for colour in COLOURS]
    page = contact_sheet(pictures, [""] * 5, columns=3, cell=64)
    assert page.width == 3 * 72 + 8
    places = [(8 + 72 * column + 32, row) for row in (40, 120) for column in range(3)]
    assert [page.getpixel(place) for place in places[:5]] == COLOURS


def test_pictures_of_any_shape_fit_their_cell_whole():
    page = grid([[(Image.new("RGB", (200, 50), "red"), ""), (Image.new("RGB", (50, 200), "red"), "")]], cell=64)
    red = sum(page.getpixel((x, y)) == (255, 0, 0) for x in range(page.width) for y in range(page.height))
    assert red == 2 * 64 * 16


def test_captions_are_drawn_and_long_ones_wrapped_or_cut():
    picture = Image.new("RGB", (64, 64), "white")
    plain, told = (contact_sheet([picture], [text]) for text in ("", "a cat on the beach"))
    assert told.height > plain.height
    assert told.convert("L").getextrema()[0] < 100
    endless = contact_sheet([picture], ["miaow " * 500 + "x" * 500], title="t" * 900)
    assert endless.height < 400


def test_huge_sets_do_not_make_huge_pages():
    page = contact_sheet([Image.new("RGB", (8, 8))] * 3000, [""] * 3000)
    assert page.width * page.height < 90_000_000


def test_an_empty_sheet_and_a_missing_caption_are_refused():
    with pytest.raises(FromfewError, match="no picture"):
        contact_sheet([], [])
    with pytest.raises(FromfewError, match="need as many captions"):
        contact_sheet([Image.new("RGB", (8, 8))], [])


def test_a_row_is_as_high_as_its_highest_picture():
    wide, square = Image.new("RGB", (256, 128), "red"), Image.new("RGB", (128, 128), "red")
    tall, flat = grid([[(square, "")]], cell=96), grid([[(wide, "")]], cell=96)
    assert tall.size[0] == flat.size[0]
    assert tall.size[1] - flat.size[1] == 48
    mixed = grid([[(wide, ""), (square, "")]], cell=96)
    assert mixed.size[1] == tall.size[1]
