import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fromfew.rows import Rows


@given(images=st.integers(1, 5), branches=st.integers(1, 4), offset=st.integers(-1, 9))
def test_rows_hold_every_picture_once_in_every_branch(images, branches, offset):
    names = [f"b{i}" for i in range(branches)]
    rows = Rows.of(torch.arange(images) + offset, names, torch.tensor(0.5))
    assert len(rows) == images * branches
    for name in names:
        assert rows.image[rows.is_(name)].tolist() == list(range(offset, offset + images))


@given(st.lists(st.tuples(st.sampled_from(["cond", "uncond", "x"]), st.integers(-1, 5)), min_size=1, max_size=12))
def test_the_first_of_a_branch_is_its_lowest_picture_whatever_the_order(pairs):
    branch, image = zip(*pairs, strict=True)
    rows = Rows(branch, torch.tensor(image), torch.full((len(pairs),), 0.5))
    for row, first in enumerate(rows.first_of_branch().tolist()):
        assert branch[first] == branch[row]
        assert image[first] == min(i for b, i in pairs if b == branch[row])


def test_plain_rows_are_different_pictures_of_the_branch_cond():
    rows = Rows.plain(3, torch.tensor([0.1, 0.2, 0.3]))
    assert rows.branch == ("cond",) * 3
    assert rows.image.tolist() == [0, 1, 2]
    assert rows.at(torch.tensor(0.7)).t.tolist() == pytest.approx([0.7] * 3)


def test_a_value_is_given_to_the_rows_of_one_branch_only():
    rows = Rows.of(torch.arange(2), ("uncond", "cond"), torch.tensor(0.5))
    given_ = rows.give(torch.ones(1, 3, 2), branch="cond")
    assert given_.shape == (4, 3, 2)
    assert given_.sum((1, 2)).tolist() == [0, 0, 6, 6]
    per_row = rows.give(torch.arange(4.0).view(4, 1), branch="uncond", else_=-1)
    assert per_row.flatten().tolist() == [0, 1, -1, -1]


def test_rows_are_chosen_with_their_concepts():
    rows = Rows(("cond", "cond"), torch.tensor([0, 1]), torch.tensor([0.5, 0.5]), ("<a>", None))
    assert rows.select([1, 0]).concept == (None, "<a>")
    assert rows.speaks_of("<a>").tolist() == [True, True]
    assert rows.speaks_of("<b>").tolist() == [False, True]


def test_rows_that_disagree_are_refused():
    with pytest.raises(ValueError, match="2 branches, 1 images"):
        Rows(("cond", "cond"), torch.tensor([0]), torch.tensor([0.5, 0.5]))
