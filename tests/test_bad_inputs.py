"""More than a hundred bad inputs, each with the exact message it must get (in bad_inputs.json)."""

import json
import re
import shutil
from pathlib import Path

import pytest
from bad_commands import COMMANDS
from bad_files import PICTURES, TENSORS
from bad_folders import BASES, CONCEPTS, FOLDERS, photos

from fromfew.cli import main
from fromfew.commands.concepts import peek
from fromfew.errors import FromfewError
from fromfew.io.pictures import read_picture
from fromfew.io.tensors import read_header
from fromfew.references import References

TABLES = {
    "PICTURES": PICTURES,
    "FOLDERS": FOLDERS,
    "TENSORS": TENSORS,
    "CONCEPTS": CONCEPTS,
    "BASES": BASES,
    "COMMANDS": COMMANDS,
}
SAID: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("bad_inputs.json").read_text())


def refused(call, **names: Path) -> str:
    """What a call was refused with, its folders written as {names}."""
    with pytest.raises(FromfewError) as caught:
        call()
    return short(str(caught.value), **names)


def short(text: str, **names: Path) -> str:
    for name, path in sorted(names.items(), key=lambda item: -len(str(item[1]))):
        text = text.replace(str(path), "{" + name + "}")
    return text


def nearest_method_only(text: str) -> str:
    """Without the methods that are named after the nearest one: every new method may be one of them."""
    from fromfew.method import names

    def first(found: re.Match[str]) -> str:
        return found[1] + "?" if set(re.findall(r"'([^']+)'", found[2])) <= set(names()) else found[0]

    return re.sub(r"(Did you mean '[^']+')((?:(?:,| or) '[^']+')+)\?", first, text)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> tuple[Path, Path]:
    """A good concept and the photos it was learned from."""
    home = tmp_path_factory.mktemp("good")
    taken = photos(home / "photos", "1.jpg")
    words = ["--noun", "cat", "--as", "<rex>", "--base", "tiny-sd15", "--steps", "1", "--no-preview"]
    assert main(["learn", str(taken), *words, "--out", str(home / "rex")]) == 0
    return home / "rex", taken


@pytest.fixture(scope="module")
def good_base(tmp_path_factory) -> Path:
    from fromfew.testing.tiny import tiny_folder

    return tiny_folder("sd15", tmp_path_factory.mktemp("base") / "base")


def test_the_table_is_complete_and_long():
    for name, entries in SAID.items():
        assert list(entries) == list(TABLES[name]), name
    assert sum(map(len, SAID.values())) >= 120


@pytest.mark.parametrize("what", PICTURES)
def test_a_bad_picture_is_refused_by_name_with_the_reason(what, tmp_path):
    path = PICTURES[what](tmp_path)
    assert refused(lambda: read_picture(path), t=tmp_path) == SAID["PICTURES"][what]


@pytest.mark.parametrize("what", FOLDERS)
def test_a_bad_folder_is_refused_and_no_picture_lost_silently(what, tmp_path):
    where, how = FOLDERS[what](tmp_path)
    assert refused(lambda: References.read(where, **how), t=tmp_path) == SAID["FOLDERS"][what]


@pytest.mark.parametrize("what", TENSORS)
def test_a_bad_tensor_file_is_refused_before_anything_is_allocated(what, tmp_path):
    path = TENSORS[what](tmp_path)
    assert refused(lambda: read_header(path), t=tmp_path) == SAID["TENSORS"][what]


@pytest.mark.parametrize("what", CONCEPTS)
def test_a_bad_concept_is_refused(what, tmp_path, good):
    from fromfew.concept import kinds, load

    shutil.copytree(good[0], tmp_path / "rex")
    CONCEPTS[what](tmp_path / "rex")
    said = refused(lambda: (peek(tmp_path / "rex"), load(tmp_path / "rex")), t=tmp_path)
    there = ", ".join(kinds()[:20]) + (f" and {len(kinds()) - 20} more" if len(kinds()) > 20 else "")
    assert said.replace(there, "{kinds}") == SAID["CONCEPTS"][what]


@pytest.mark.parametrize("what", BASES)
def test_a_bad_base_is_refused(what, tmp_path, good_base):
    from fromfew.backbones.open import open_backbone

    shutil.copytree(good_base, tmp_path / "base")
    BASES[what](tmp_path / "base")
    assert refused(lambda: open_backbone(tmp_path / "base"), t=tmp_path) == SAID["BASES"][what]


@pytest.mark.parametrize("what", COMMANDS)
def test_a_bad_command_is_refused_before_anything_is_written(what, tmp_path, good, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = COMMANDS[what](tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = [word.replace("{c}", str(good[0])).replace("{p}", str(good[1])) for word in words]
    assert main([word.replace("{t}", str(tmp_path)) for word in words]) == 2
    said = short(capsys.readouterr().err.strip(), c=good[0], p=good[1], t=tmp_path)
    assert nearest_method_only(said) == SAID["COMMANDS"][what]
    assert sorted(tmp_path.rglob("*")) == before
