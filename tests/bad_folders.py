"""Folders of photos, concepts and bases as people spoil them, each made in a fresh folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_files import Maker, jpeg
from PIL import Image

Spoiler = Callable[[Path], None]
FOLDERS: dict[str, Maker] = {}
CONCEPTS: dict[str, Spoiler] = {}
BASES: dict[str, Spoiler] = {}


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg())
    return folder


def folder_case(what: str, **how: Any) -> Callable[[Maker], Maker]:
    """An entry of arguments for `References.read`."""

    def add(make: Maker) -> Maker:
        FOLDERS[what] = lambda folder: (make(folder), {"noun": "cat", **how})
        return make

    return add


@folder_case("a folder that is not there")
def _(folder: Path) -> Path:
    photos(folder, "photos/a.jpg")
    return folder / "photoes"


@folder_case("an empty folder")
def _(folder: Path) -> Path:
    return folder


@folder_case("a folder of texts")
def _(folder: Path) -> Path:
    (folder / "notes.txt").write_text("hello")
    return folder


@folder_case("a folder of folders of pictures")
def _(folder: Path) -> Path:
    return photos(folder, "rex/a.jpg")


@folder_case("one bad picture of three")
def _(folder: Path) -> Path:
    photos(folder, "1.jpg", "2.jpg", "3.jpg")
    (folder / "2.jpg").write_bytes(b"")
    return folder


@folder_case("nothing but bad pictures, though bad ones may be skipped", skip_bad=True)
def _(folder: Path) -> Path:
    photos(folder, "1.jpg", "2.jpg")
    (folder / "1.jpg").write_bytes(b"")
    (folder / "2.jpg").write_bytes(b"<html>")
    return folder


@folder_case("a HEIC photo among the others")
def _(folder: Path) -> Path:
    photos(folder, "1.jpg")
    (folder / "2.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    return folder


@folder_case("a mask of another shape")
def _(folder: Path) -> Path:
    photos(folder, "1.jpg")
    Image.new("L", (64, 64), 255).save(folder / "1.mask.png")
    return folder


@folder_case("a mask that marks nothing")
def _(folder: Path) -> Path:
    photos(folder, "1.jpg")
    Image.new("L", (64, 48), 0).save(folder / "1.mask.png")
    return folder


@folder_case("a caption that is no text")
def _(folder: Path) -> Path:
    photos(folder, "1.jpg")
    (folder / "1.txt").write_bytes(b"\xff\xfe\x00caf\xe9")
    return folder


def metadata(folder: Path, *lines: Any) -> Path:
    photos(folder, "1.jpg")
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "metadata.jsonl").write_text(text)
    return folder


@folder_case("metadata that is not JSON")
def _(folder: Path) -> Path:
    return metadata(folder, "file_name: 1.jpg")


@folder_case("metadata without a file's name")
def _(folder: Path) -> Path:
    return metadata(folder, {"text": "a cat"})


@folder_case("metadata that names a file outside")
def _(folder: Path) -> Path:
    return metadata(folder, {"file_name": "../../etc/passwd", "text": "a cat"})


@folder_case("metadata that names an absolute file")
def _(folder: Path) -> Path:
    return metadata(folder, {"file_name": "/etc/passwd", "text": "a cat"})


@folder_case("metadata that names a file that is not there")
def _(folder: Path) -> Path:
    return metadata(folder, {"file_name": "1.jpg", "text": "a cat"}, {"file_name": "7.jpg", "text": "a cat"})


@folder_case("metadata that names a file twice")
def _(folder: Path) -> Path:
    return metadata(folder, {"file_name": "1.jpg", "text": "a cat"}, {"file_name": "1.jpg", "text": "a dog"})


@folder_case("metadata whose caption is a number")
def _(folder: Path) -> Path:
    return metadata(folder, {"file_name": "1.jpg", "text": 7})


@folder_case("no noun and no captions", noun=None)
def _(folder: Path) -> Path:
    return photos(folder, "1.jpg")


@folder_case("a noun with an article", noun="a cat")
def _(folder: Path) -> Path:
    return photos(folder, "1.jpg")


@folder_case("an empty noun", noun="  ")
def _(folder: Path) -> Path:
    return photos(folder, "1.jpg")


@folder_case("a sentence for a noun", noun="this is my cat which I love, truly")
def _(folder: Path) -> Path:
    return photos(folder, "1.jpg")


@folder_case("a placeholder without brackets", placeholder="rex")
def _(folder: Path) -> Path:
    return photos(folder, "1.jpg")


@folder_case("a placeholder with a space", placeholder="<My Rex>")
def _(folder: Path) -> Path:
    return photos(folder, "1.jpg")


@folder_case("a placeholder that ends the text", placeholder="<|endoftext|>")
def _(folder: Path) -> Path:
    return photos(folder, "1.jpg")


@folder_case("an unknown role", role="stile")
def _(folder: Path) -> Path:
    return photos(folder, "1.jpg")


def spoiled(what: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """An entry that gets the folder of a good concept and spoils it."""

    def add(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
        CONCEPTS[what] = spoil
        return spoil

    return add


def edited(path: Path, change: Callable[[dict], Any]) -> None:
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


@spoiled("no card")
def _(concept: Path) -> None:
    (concept / "concept.json").unlink()


@spoiled("no numbers")
def _(concept: Path) -> None:
    (concept / "concept.safetensors").unlink()


@spoiled("a card that is not JSON")
def _(concept: Path) -> None:
    (concept / "concept.json").write_text("{")


@spoiled("a card that is a list")
def _(concept: Path) -> None:
    (concept / "concept.json").write_text("[]")


@spoiled("an empty card")
def _(concept: Path) -> None:
    (concept / "concept.json").write_text("")


@spoiled("a card from the future")
def _(concept: Path) -> None:
    edited(concept / "concept.json", lambda about: about.update(schema=99))


@spoiled("a card that names code")
def _(concept: Path) -> None:
    edited(concept / "concept.json", lambda about: about["parts"][0].update(kind="os.system"))


@spoiled("a card with a part of an unknown kind")
def _(concept: Path) -> None:
    edited(concept / "concept.json", lambda about: about["parts"][0].update(kind="low_rnk"))


@spoiled("numbers cut short")
def _(concept: Path) -> None:
    path = concept / "concept.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


@spoiled("numbers of another concept")
def _(concept: Path) -> None:
    from safetensors.torch import save_file
    from torch import zeros

    save_file({"other": zeros(1)}, concept / "concept.safetensors")


def spoiled_base(what: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def add(spoil: Callable[[Path], None]) -> Callable[[Path], None]:
        BASES[what] = spoil
        return spoil

    return add


@spoiled_base("a folder without an index")
def _(base: Path) -> None:
    (base / "model_index.json").unlink()


@spoiled_base("an index that is not JSON")
def _(base: Path) -> None:
    (base / "model_index.json").write_text("{")


@spoiled_base("a pipeline that is not known")
def _(base: Path) -> None:
    edited(base / "model_index.json", lambda index: index.update(_class_name="EvilPipeline"))


@spoiled_base("weights that are a pickle")
def _(base: Path) -> None:
    for file in (base / "unet").glob("*.safetensors"):
        file.rename(file.with_name("diffusion_pytorch_model.bin"))


@spoiled_base("a missing part")
def _(base: Path) -> None:
    shutil.rmtree(base / "vae")
