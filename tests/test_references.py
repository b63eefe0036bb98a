"""Folders of photos are read as people keep them, and nothing is lost silently."""

import json
from pathlib import Path

import pytest
from PIL import Image

from fromfew.errors import FromfewError
from fromfew.references import References, check_noun, check_placeholder


def photos(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), (40 * number, 9, 9)).save(folder / name)
    return folder


def names(refs: References) -> list[str]:
    return [photo.path.name for photo in refs.photos if photo.path]


def test_photos_come_in_the_order_a_person_would_count_them(tmp_path):
    refs = References.read(photos(tmp_path, "10.jpg", "9.jpg", "1.jpg", "a.png"), noun="cat")
    assert names(refs) == ["1.jpg", "9.jpg", "10.jpg", "a.png"]
    assert len(set(refs.hashes)) == 4
    assert refs.words == "<v> cat"


def test_other_files_are_ignored_and_said_to_be(tmp_path):
    photos(tmp_path, "1.jpg", "sub/2.jpg")
    for name in (".hidden.jpg", "Thumbs.db", "notes.txt", "film.mp4"):
        (tmp_path / name).write_text("x")
    refs = References.read(tmp_path, noun="cat")
    assert names(refs) == ["1.jpg"]
    told = refs.notes[-1]
    for name in (".hidden.jpg", "Thumbs.db", "notes.txt", "film.mp4", "sub/"):
        assert name in told


def test_a_bad_photo_is_left_out_only_if_asked(tmp_path):
    photos(tmp_path, "1.jpg", "2.jpg")
    (tmp_path / "3.jpg").write_bytes(b"")
    with pytest.raises(FromfewError, match=r"1 of 3 pictures cannot be used"):
        References.read(tmp_path, noun="cat")
    refs = References.read(tmp_path, noun="cat", skip_bad=True)
    assert len(refs) == 2
    assert "3.jpg' is empty" in refs.notes[0]


def test_captions_lie_beside_the_pictures(tmp_path):
    photos(tmp_path, "1.jpg", "2.jpg", "3.jpg")
    (tmp_path / "1.txt").write_text("\ufeffa cat\n on a  sofa\n", encoding="utf-8")
    (tmp_path / "2.txt").write_text("")
    refs = References.read(tmp_path, noun="cat")
    assert [photo.caption for photo in refs.photos] == ["a cat on a sofa", None, None]


def test_captions_may_stand_in_for_the_noun(tmp_path):
    photos(tmp_path, "1.jpg")
    (tmp_path / "1.txt").write_text("sleeping on a sofa")
    refs = References.read(tmp_path)
    assert refs.noun is None
    assert refs.words == "<v>"


@pytest.mark.parametrize("key", ["text", "caption", "prompt"])
def test_an_imagefolder_is_read_with_its_metadata(tmp_path, key):
    photos(tmp_path, "1.jpg", "2.jpg", "train/3.jpg")
    rows = [{"file_name": "2.jpg", key: "a cat asleep"}, {"file_name": "train/3.jpg", key: "a cat awake"}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    refs = References.read(tmp_path, noun="cat")
    assert names(refs) == ["1.jpg", "2.jpg", "3.jpg"]
    assert [photo.caption for photo in refs.photos] == [None, "a cat asleep", "a cat awake"]


def test_a_table_of_captions_may_be_csv(tmp_path):
    photos(tmp_path, "1.jpg")
    (tmp_path / "metadata.csv").write_text('file_name,text\n1.jpg,"a cat, asleep"\n')
    assert References.read(tmp_path, noun="cat").photos[0].caption == "a cat, asleep"


@pytest.mark.parametrize("inside", [True, False], ids=["folder itself", "folder of folders"])
def test_kohyas_folders_give_repeats_and_noun(tmp_path, inside):
    home = tmp_path / "set"
    photos(home, "10_rex fluffy cat/1.jpg", "10_rex fluffy cat/2.jpg")
    if not inside:
        photos(home, "3_rex fluffy cat/3.jpg")
    refs = References.read(home / "10_rex fluffy cat" if inside else home)
    assert refs.noun == "fluffy cat"
    assert [photo.repeats for photo in refs.photos] == ([10, 10] if inside else [3, 10, 10])


def test_a_noun_given_by_hand_beats_the_folders(tmp_path):
    photos(tmp_path, "10_rex cat/1.jpg")
    assert References.read(tmp_path, noun="tiger").noun == "tiger"


@pytest.mark.parametrize("name", ["1.mask.png", "1.jpg.mask.png"])
def test_masks_lie_beside_the_pictures_and_are_no_pictures(tmp_path, name):
    photos(tmp_path, "1.jpg", "2.jpg")
    mask = Image.new("L", (64, 48), 0)
    mask.paste(255, (0, 0, 30, 48))
    mask.save(tmp_path / name)
    refs = References.read(tmp_path, noun="cat")
    assert names(refs) == ["1.jpg", "2.jpg"]
    assert refs.photos[1].mask is None
    found = refs.photos[0].mask
    assert found is not None
    assert (found.getpixel((5, 5)), found.getpixel((60, 5))) == (255, 0)


def test_the_same_photo_twice_is_pointed_out(tmp_path):
    photos(tmp_path, "1.jpg")
    (tmp_path / "2.jpg").write_bytes((tmp_path / "1.jpg").read_bytes())
    assert "2.jpg is the same picture as 1.jpg." in References.read(tmp_path, noun="cat").notes


def test_single_files_and_pictures_in_memory_are_references_too(tmp_path):
    photos(tmp_path, "1.jpg", "2.jpg")
    assert len(References.read([tmp_path / "1.jpg", tmp_path / "2.jpg"], noun="cat")) == 2
    assert len(References.read(tmp_path / "1.jpg", noun="cat")) == 1
    first, second = Image.new("RGBA", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    refs = References.of(first, second, noun="cat", captions=["a cat"])
    assert [photo.image.mode for photo in refs.photos] == ["RGB", "RGB"]
    assert [photo.caption for photo in refs.photos] == ["a cat", None]
    assert refs.hashes == References.of(first, second, noun="cat").hashes
    with pytest.raises(FromfewError, match="No pictures"):
        References.of(noun="cat")


@pytest.mark.parametrize("noun", ["cat", "fluffy cat", "T-shirt", "été", "child's toy", "猫", "R2D2 droid"])
def test_plain_nouns_are_taken_as_they_are(noun):
    assert check_noun(f"  {noun} ") == noun


@pytest.mark.parametrize("word", ["<v>", "<rex>", "<rex-2>", "<my_cat>", "<7>"])
def test_plain_placeholders_are_taken_as_they_are(word):
    assert check_placeholder(word) == word


@pytest.mark.parametrize("folder", ["dog", "cat", "teapot"])
def test_the_notes_of_a_clean_folder_are_empty(tmp_path, folder):
    assert References.read(photos(tmp_path / folder, "1.jpg", "2.jpg"), noun=folder).notes == ()
