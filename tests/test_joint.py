"""Several subjects learned together: how they are given, and what is learned of each."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fromfew.cli import main
from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.learn import learn
from fromfew.method import find
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny


@pytest.fixture
def two():
    return few_photos(2), replace(few_photos(3, noun="dog"), placeholder="<w>")


def test_every_batch_holds_photos_of_every_subject(two):
    bb, refs = tiny("sd15"), replace(two[0], also=two[1:])
    method = find("custom-diffusion")(batch=4, prior=0.0)
    batch = method.photos(bb, refs)(generator(0))
    assert [("<v>" in text, "<w>" in text) for text in batch.captions] == [(True, False)] * 2 + [(False, True)] * 2
    assert all(("cat" in text) == ("<v>" in text) for text in batch.captions)


def test_each_subject_begins_as_another_rare_word(two):
    bb, refs = tiny("sd15"), replace(two[0], also=two[1:])
    words = find("custom-diffusion")().words(bb, refs, generator(0))
    assert list(words) == ["word", "word2"]
    assert [word.placeholder for word in words.values()] == ["<v>", "<w>"]
    assert words["word"].start != words["word2"].start


def test_names_must_differ_and_lists_are_flat(two):
    with pytest.raises(FromfewError, match="both called <v>"):
        replace(two[0], also=(two[0],))
    with pytest.raises(FromfewError, match="beside each other"):
        replace(two[0], also=(replace(two[1], also=(replace(two[1], placeholder="<x>"),)),))


def test_hashes_and_subjects_count_all(two):
    refs = replace(two[0], also=two[1:])
    assert len(refs.hashes) == 5
    assert [one.placeholder for one in refs.subjects] == ["<v>", "<w>"]
    assert all(one.also == () for one in refs.subjects)


def test_learning_takes_a_list_of_references(two):
    bb = tiny("sd15")
    quick = {"steps": 1, "batch": 2, "prior": 0.0, "lr": 1e-3}
    concept = learn(list(two), method="custom-diffusion", base=bb, **quick)
    assert concept.answers == {"<v>": "cat", "<w>": "dog"}
    assert len(concept.card.photos) == 5
    with pytest.raises(FromfewError, match="one thing at a time"):
        learn(list(two), method="textual-inversion", base=bb)
    few = replace(two[1], photos=())
    with pytest.raises(FromfewError, match="at least 1 photo, not 0"):
        learn([two[0], few], method="custom-diffusion", base=bb)


def test_one_text_for_two_things_is_refused(two):
    method = find("custom-diffusion")(modifier="rare", text="sks")
    with pytest.raises(FromfewError, match="One text"):
        method.words(tiny("sd15"), replace(two[0], also=two[1:]), generator(0))


def test_the_command_line_learns_two(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, colour in (("rex", "red"), ("tom", "blue")):
        (tmp_path / name).mkdir()
        Image.new("RGB", (40, 40), colour).save(tmp_path / name / "1.png")
    words = ["learn", "rex", "--noun", "cat", "--as", "<rex>", "--also", "tom", "--noun", "dog", "--as", "<tom>"]
    words += ["--base", "tiny-sd15", "--steps", "1", "--prior", "0", "--no-preview", "--json"]
    assert main([*words, "--method", "custom-diffusion"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["concept"] == "concepts/rex-tom"
    about = json.loads((tmp_path / said["concept"] / "concept.json").read_text())
    assert (about["placeholder"], about["noun"], about["also"]) == ("<rex>", "cat", {"<tom>": "dog"})
    assert "a <rex> cat and a <tom> dog" in said["next"]
    assert main([*words, "--method", "textual-inversion", "--replace"]) == 2
    assert "combine" in capsys.readouterr().err
    assert main([*words[:7], "tom", "--noun", "dog", "--method", "custom-diffusion"]) == 2
    assert "--as" in capsys.readouterr().err


def test_a_second_subject_changes_what_is_learned(two):
    bb = tiny("sd15")
    method = find("custom-diffusion")(steps=3, batch=2, prior=0.0, lr=1e-2, word_lr=1e-2)
    alone = method.learn(bb, two[0])
    both = method.learn(bb, replace(two[0], also=two[1:]))
    one, other = alone.parts.maps.state_dict(), both.parts.maps.state_dict()
    assert any(not torch.equal(one[name], other[name]) for name in one)
