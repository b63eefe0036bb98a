"""Readers of published sets of photographs, each from a folder as it was published; what is missing is named."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.bench.task import Prompt, Single, Subject, slotted
from fromfew.errors import FromfewError
from fromfew.metrics.base import Want

if TYPE_CHECKING:
    from fromfew.references import References

__all__ = ["READERS"]

Found = tuple[list[Subject], list[str]]
About = Mapping[str, Any]
_PICTURES = {".jpg", ".jpeg", ".png", ".webp"}


def _pictures(folder: Path) -> list[Path]:
    """Pictures right in a folder, by name."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES)


def _single(name: str, noun: str, files: list[Path], role: str = "subject") -> Single:
    def load(placeholder: str) -> References:
        from fromfew.references import References

        return References.read(files, noun=noun, placeholder=placeholder, role=role)  # type: ignore[arg-type]

    return Single(name, noun, load)


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        return []
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _said(text: str) -> str:
    """A published template in our form: the token's slot goes, the noun's becomes ``{}``."""
    return text.replace("{0} {1}", "{}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FromfewError(f"'{path}' cannot be read as JSON: {error}") from error


def _first(folder: Path, *names: str) -> Path:
    """The first of several places that is there."""
    return next((folder / name for name in names if (folder / name).exists()), folder)


def dreambooth(folder: Path, about: About) -> Found:
    """30 subjects x 25 prompts: a folder of photos a subject (the shipped table holds classes and prompts)."""
    root = _first(folder, "dataset")
    subjects, problems = [], []
    for name, (noun, kind, count) in about["subjects"].items():
        files = _pictures(root / name)
        if len(files) < count:
            problems.append(f"{name}: {len(files)} of {count} photos in '{root / name}'")
        if files:
            prompts = tuple(Prompt(_said(text)) for text in about["prompts"][kind])
            subjects.append(Subject(name, (_single(name, noun, files),), prompts))
    return subjects, problems


def dreambench_v2(folder: Path, about: About) -> Found:
    """DreamBooth's photos with the 220 prompts of SuTI, which the user brings: ``prompts.json``, subject to list."""
    where = folder / "prompts.json"
    if not where.is_file():
        return [], ["prompts.json: subject to a list of prompts with {} for the subject; it was never published"]
    asked = _json(where)
    inside = {**about, "subjects": {n: v for n, v in about["subjects"].items() if n in asked}}
    subjects, problems = dreambooth(folder, inside)
    problems += [f"{name}: no subject of that name" for name in asked if name not in about["subjects"]]
    total = sum(len(lines) for lines in asked.values())
    if total != about["count"]:
        problems.append(f"prompts.json: {total} of {about['count']} prompts")
    found = [replace(s, prompts=tuple(Prompt(_said(t)) for t in asked[s.name])) for s in subjects]
    return found, problems


def customconcept101(folder: Path, about: About) -> Found:
    """101 concepts x 20 prompts, from ``dataset.json``, ``prompts/`` and ``benchmark_dataset/``."""
    table = folder / "dataset.json"
    if not table.is_file():
        return [], ["dataset.json: not there"]
    subjects, problems = [], []
    for one in _json(table):
        single, lines, missing = _concept(folder, one)
        prompts = tuple(Prompt(line) for line in lines)
        problems += missing if prompts else [*missing, f"{one['prompt_filename']}: no prompts"]
        if single and prompts:
            subjects.append(Subject(single.name, (single,), prompts))
    return subjects, problems


def _concept(folder: Path, one: Mapping[str, Any]) -> tuple[Single | None, list[str], list[str]]:
    where = folder / one["instance_data_dir"]
    files = _pictures(where)
    single = _single(where.name, one["class_prompt"], files) if files else None
    return single, _lines(folder / one["prompt_filename"]), [] if files else [f"'{where}': no photos"]


def customconcept101_pairs(folder: Path, about: About) -> Found:
    """101 pairs x 12 prompts, from ``dataset_multiconcept.json``."""
    table = folder / "dataset_multiconcept.json"
    if not table.is_file():
        return [], ["dataset_multiconcept.json: not there"]
    subjects, problems = [], []
    for first, second, both in _json(table):
        parts = []
        for one in (first, second):
            single, _, missing = _concept(folder, one)
            problems += missing
            parts += [single] if single else []
        lines = _lines(folder / both["prompt_filename_compose"])
        if not lines:
            problems.append(f"{both['prompt_filename_compose']}: no prompts")
        elif len(parts) == 2:
            name = " + ".join(part.name for part in parts)
            subjects.append(Subject(name, tuple(parts), tuple(Prompt(line) for line in lines)))
    return subjects, list(dict.fromkeys(problems))


def custom_diffusion(folder: Path, about: About) -> Found:
    """10 concepts x 20 prompts of the paper: ``NAME/`` with photos and ``prompts/NAME.txt`` in bare words."""
    subjects, problems = [], []
    for name, noun in about["subjects"].items():
        files = _pictures(_first(folder, f"data/{name}", name))
        text = _first(folder, f"prompts/{name}.txt", f"paper_prompts/{name}.txt", f"{name}.txt")
        lines = [re.sub(r"<new\d> ", "", line) for line in _lines(text)]
        if not files:
            problems.append(f"{name}: no photos")
        if len(lines) < 20:
            problems.append(f"{name}: {len(lines)} of 20 prompts")
        without = [line for line in lines if "{}" not in slotted(line, noun)]
        if without:
            problems.append(f"{name}: '{without[0]}' does not name the {noun}; left out")
        prompts = tuple(Prompt(slotted(line, noun)) for line in lines if line not in without)
        if files and prompts:
            subjects.append(Subject(name, (_single(name, noun, files),), prompts))
    return subjects, problems


def stellar(folder: Path, about: About) -> Found:
    """A folder an identity: ``K.jpg``, ``K_attributes.json``, ``prompt.json`` with ``{}`` and detectables."""
    subjects, problems = [], []
    homes = sorted(path.parent for path in folder.glob("*/prompt.json"))
    if len(homes) < about["count"]:
        problems.append(f"{len(homes)} of {about['count']} identities")
    for home in homes:
        files = [path for path in _pictures(home) if path.stem.isdigit()]
        if not files:
            problems.append(f"{home.name}: no photos")
            continue
        noun = _stellar_noun(home / f"{files[0].stem}_attributes.json")
        said = _json(home / "prompt.json")
        things = said.get("detectables") or [()] * len(said["prompts"])
        prompts = tuple(
            Prompt(text, want=Want(things=tuple(names))) for text, names in zip(said["prompts"], things, strict=True)
        )
        subjects.append(Subject(home.name, (_single(home.name, noun, files[:1], "face"),), prompts))
    return subjects, problems


def _stellar_noun(path: Path) -> str:
    if not path.is_file():
        return "person"
    male = _json(path).get("attributes", {}).get("Male")
    return "person" if male is None else "man" if int(male) > 0 else "woman"


def dreambench_plus(folder: Path, about: About) -> Found:
    """150 pictures x 9 prompts: ``images/KIND/NN.jpg`` with ``captions/KIND/NN.txt``, subject on the first line."""
    root = _first(folder, "data")
    subjects, problems = [], []
    pictures = sorted((root / "images").rglob("*.jpg"))
    if len(pictures) < about["count"]:
        problems.append(f"{len(pictures)} of {about['count']} pictures in '{root / 'images'}'")
    for picture in pictures:
        place = picture.relative_to(root / "images").with_suffix("")
        lines = _lines(root / "captions" / f"{place}.txt")
        if len(lines) < 2:
            problems.append(f"{place}: no captions")
            continue
        noun, role = lines[0].lower(), "style" if "style" in place.parts else "subject"
        prompts = tuple(Prompt(slotted(line, noun), plain=line) for line in lines[1:])
        subjects.append(Subject(str(place), (_single(str(place), noun, [picture], role),), prompts))
    return subjects, problems


def survey_objects(folder: Path, about: About) -> Found:
    """The survey's unified set: ``info.json``, ``subjects/NAME/*.jpg``; live prompts for cats and dogs."""
    return _survey(folder, about, "subjects", "subject_with_cls", "subject")


def survey_faces(folder: Path, about: About) -> Found:
    """The survey's unified set of faces: ``info.json``, ``face/ID/face.jpg``."""
    return _survey(folder, about, "face", "id_with_gender", "face")


def _survey(folder: Path, about: About, part: str, table: str, role: str) -> Found:
    if not (folder / "info.json").is_file():
        return [], ["info.json: not there"]
    info = _json(folder / "info.json")[part]
    subjects, problems = [], []
    named = info[table]
    pairs: Iterable[tuple[str, str]] = named.items() if isinstance(named, dict) else [tuple(p) for p in named]
    for name, noun in pairs:
        files = _pictures(folder / part / name)
        if not files:
            problems.append(f"{name}: no photos in '{folder / part / name}'")
            continue
        live = "prompt_live" if noun in ("cat", "dog") else "prompt_object"
        keys = [live] if role == "subject" else [key for key in info if key.startswith("prompt_")]
        prompts = tuple(Prompt(_said(text)) for key in keys for text in info[key])
        subjects.append(Subject(name, (_single(name, noun, files, role),), prompts))
    if len(subjects) < about["count"]:
        problems.append(f"{len(subjects)} of {about['count']} subjects")
    return subjects, problems


READERS: dict[str, Callable[[Path, About], Found]] = {
    "dreambooth": dreambooth,
    "dreambench-v2": dreambench_v2,
    "customconcept101": customconcept101,
    "customconcept101-pairs": customconcept101_pairs,
    "custom-diffusion": custom_diffusion,
    "stellar": stellar,
    "dreambench-plus": dreambench_plus,
    "survey-objects": survey_objects,
    "survey-faces": survey_faces,
}
"""Reader by the name that a task's file gives it."""
