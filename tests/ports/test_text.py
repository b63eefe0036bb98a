import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.parts.word import Word, rare
from fromfew.ports.text import respelled, splice
from fromfew.testing.tiny import tiny

BASES = ("sd15", "sdxl", "sd3", "flux")


@pytest.mark.parametrize("base", BASES)
def test_a_plain_prompt_is_tokenised_as_the_tokenizer_does(base):
    bb = tiny(base)
    for encoder in bb.text_encoders.values():
        prompt = "a red cat, next to a lamp"
        own = encoder.tokenizer(prompt, padding="max_length", max_length=encoder.length, truncation=True).input_ids
        assert splice(encoder.tokenizer, [prompt], [], length=encoder.length).ids[0].tolist() == own


@pytest.mark.parametrize("base", BASES)
def test_a_word_of_three_vectors_takes_two_places_more_than_one(base):
    bb = tiny(base)
    one, three = (Word.learned(bb, "<v>", "cat", n, generator(0)) for n in (1, 3))
    for encoder in bb.text_encoders.values():
        kept = [
            int(splice(encoder.tokenizer, ["a <v> dog"], [(word, 1.0)], length=encoder.length).mask.sum())
            for word in (one, three)
        ]
        assert kept[1] - kept[0] == 2


def test_positions_of_placeholders_and_words_are_known():
    bb = tiny("sd15")
    tokenizer = bb.text_encoders["one"].tokenizer
    word = Word.learned(bb, "<v>", "cat", 2, generator(0))
    spliced = splice(tokenizer, ["a <v> dog. a <v> lamp"], [(word, 1.0)], length=77)
    before = len(tokenizer("a", add_special_tokens=False).input_ids)
    where = spliced.where[0]
    assert where["<v>"][:2] == [1 + before, 2 + before]
    assert len(where["<v>"]) == 4
    assert len(where["a"]) >= 2
    assert set(where["dog"]).isdisjoint(where["<v>"])
    ids = spliced.ids[0]
    assert tokenizer.decode(ids[where["dog"]]).strip().startswith("dog")


def test_a_placeholder_beyond_the_end_of_the_prompt_is_refused():
    bb = tiny("sd15")
    word = Word.learned(bb, "<v>", "cat", 1, generator(0))
    with bb.attach(word), pytest.raises(FromfewError, match="too long"):
        bb.embed(["a cat and " * 80 + "<v>"])


def test_text_that_does_not_fit_is_reported():
    bb = tiny("sd15")
    assert splice(bb.text_encoders["one"].tokenizer, ["cat " * 200], [], length=20).cut[0]
    assert splice(bb.text_encoders["one"].tokenizer, ["cat"], [], length=20).cut == [""]


@pytest.mark.parametrize("base", BASES)
def test_a_fresh_word_is_the_word_it_began_as(base):
    bb = tiny(base)
    plain = bb.embed(["a cat dog"])
    with bb.attach(Word.learned(bb, "<v>", "cat", 1, generator(0))):
        ours = bb.embed(["a <v> dog"])
    tokens = [len(e.tokenizer("cat", add_special_tokens=False).input_ids) for e in bb.text_encoders.values()]
    if set(tokens) == {1}:
        assert torch.equal(plain.states, ours.states)
    else:
        assert ours.states.shape == plain.states.shape


def test_vectors_are_written_only_where_the_word_stands():
    bb = tiny("sd15")
    word = Word.learned(bb, "<v>", "cat", 1, generator(0)).requires_grad_(False)
    word.vectors["one"] += 1
    plain = bb.embed(["a dog"])
    with bb.attach(word):
        assert torch.equal(bb.embed(["a dog"]).states, plain.states)
        changed = bb.embed(["a <v> dog"])
    with bb.attach(word, strength=0):
        still = bb.embed(["a <v> dog"])
    at = changed.where(0, "<v>")[0]
    assert torch.equal(changed.states[0, :at], still.states[0, :at]), "a causal encoder cannot look ahead"
    assert not torch.equal(changed.states[0, at], still.states[0, at])


def test_an_alias_is_spelled_out_and_an_empty_one_vanishes():
    bb = tiny("sd15")
    with bb.attach(Word.plain("<a>", "ktn"), Word.plain("<b>", "")):
        assert respelled(bb, ["a <a> cat and a <b> dog", None]) == ["a ktn cat and a dog", None]
    assert respelled(bb, ["a <a> cat"]) == ["a <a> cat"]


def test_two_words_of_one_placeholder_are_refused_and_two_of_different_ones_are_not():
    bb = tiny("sd15")
    one, two = (Word.learned(bb, "<v>", "cat", 1, generator(i)) for i in range(2))
    with pytest.raises(FromfewError, match="answer to '<v>'"), bb.attach(one, two):
        pass
    assert bb.attached == []
    other = Word.learned(bb, "<w>", "dog", 1, generator(3))
    with bb.attach(one, other):
        text = bb.embed(["a <v> and a <w>"])
    assert text.where(0, "<v>") != text.where(0, "<w>")


def test_a_word_of_another_base_is_refused():
    word = Word.learned(tiny("sd15"), "<v>", "cat", 1, generator(0))
    bb = tiny("sdxl")
    with pytest.raises(FromfewError, match="text encoders"), bb.attach(word):
        pass


def test_a_rare_word_is_one_token_where_the_tokenizer_has_one():
    bb = tiny("sd15")
    tokenizer = bb.text_encoders["one"].tokenizer
    assert len(tokenizer(rare(bb), add_special_tokens=False).input_ids) == 1


def test_a_placeholder_in_other_letters_is_plain_text():
    bb = tiny("sd15")
    word = Word.learned(bb, "<v>", "cat", 1, torch.Generator().manual_seed(0))
    encoder = bb.text_encoders["one"]
    for prompt, count in (("a <V> cat", 0), ("a <V> and <v>", 1)):
        found = splice(encoder.tokenizer, [prompt], [(word, 1.0)], length=encoder.length)
        assert len(found.where[0].get("<v>", [])) == count
    with bb.attach(word):
        bb.embed(["a <V> and <v>"])


def test_half_a_letter_is_refused():
    encoder = tiny("sd15").text_encoders["one"]
    with pytest.raises(FromfewError, match="no text"):
        splice(encoder.tokenizer, ["a \ud83d cat"], [], length=encoder.length)
