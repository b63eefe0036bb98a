"""Prompts: words land where they were written, whatever stands around them; misspelt ones are named."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fromfew.commands.concepts import Known, check_prompts
from fromfew.errors import FromfewError
from fromfew.parts.word import Word
from fromfew.ports.text import splice
from fromfew.references import check_placeholder
from fromfew.testing.tiny import tiny

TEXTS = st.text(max_size=24).filter(lambda text: "<" not in text)


@cache
def tokenizer(name: str) -> Any:
    encoders = tiny(name).text_encoders
    return encoders[list(encoders)[-1]].tokenizer


def known(placeholder: str | None) -> Known:
    return Known(Path("concepts/it"), "it", placeholder, "cat", "lora", "world", "f", placeholder or "", {})


@pytest.mark.parametrize("name", ["sd15", "flux"], ids=["CLIP", "T5"])
@settings(max_examples=120, deadline=None)
@given(pieces=st.lists(TEXTS, min_size=1, max_size=4), count=st.integers(1, 3))
def test_every_word_has_its_places_in_order_and_nothing_else_has(name, pieces, count):
    word = Word("<rex>", "cat", {"one": 8}, count)
    prompt = "<rex>".join(pieces)
    done, said = None, "falls off its end"
    try:
        done = splice(tokenizer(name), [prompt], [(word, 1.0)], length=77)
    except FromfewError as error:
        said = str(error)
    assert "falls off its end" in said
    if done is not None:
        places = done.where[0].get("<rex>", [])
        assert len(places) == count * (len(pieces) - 1)
        assert places == sorted(set(places))
        assert done.ids.shape == done.mask.shape == (1, 77)
        assert all(done.mask[0, place] == 1 for place in places)
        carriers = word.carriers(tokenizer(name))
        assert [int(done.ids[0, place]) for place in places] == carriers * (len(pieces) - 1)


@settings(max_examples=200, deadline=None)
@given(prompt=st.text(max_size=60))
def test_any_prompt_is_passed_or_refused_with_a_sentence(prompt):
    said = "."
    try:
        check_prompts([prompt], [known("<rex>")])
    except FromfewError as error:
        said = str(error)
    assert said[-1] in ".?"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_one_slip_of_the_finger_is_understood(data):
    letters = data.draw(st.text("abcdefghijklmnop", min_size=3, max_size=8))
    at = data.draw(st.integers(0, len(letters) - 2))
    other = data.draw(st.sampled_from("qrstuv"))
    slips = [letters[:at] + letters[at + 1 :], letters[:at] + other + letters[at:],
             letters[:at] + other + letters[at + 1 :],
             letters[:at] + letters[at + 1] + letters[at] + letters[at + 2 :]]  # fmt: skip
    slip = data.draw(st.sampled_from([text for text in slips if text != letters] or [letters + "q"]))
    with pytest.raises(FromfewError, match=f"Did you mean <{letters}>"):
        check_prompts([f"a <{slip}> cat"], [known(f"<{letters}>"), known("<zzzzzzzzzzzz>")])


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_what_is_proposed_for_a_placeholder_is_one(text):
    try:
        assert check_placeholder(text) == text
    except FromfewError as error:
        proposed = str(error).rsplit("'", 2)[1]
        assert check_placeholder(proposed) == proposed


def test_concepts_that_need_no_word_are_not_missed():
    assert check_prompts(["a cat"], [known(None)]) == []
    assert "No prompt calls <rex>" in check_prompts(["a cat"], [known("<rex>")])[0]
    assert check_prompts(["a cat", "a <rex> cat"], [known("<rex>")]) == []


def test_two_concepts_of_one_name_are_refused():
    from dataclasses import replace

    other = replace(known("<rex>"), name="other", sha256="other")
    with pytest.raises(FromfewError, match="both answer to <rex>"):
        check_prompts(["a <rex> cat"], [known("<rex>"), other])
