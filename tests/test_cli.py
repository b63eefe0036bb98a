"""The command line: from photos to pictures that repeat bit for bit, through kills and interruptions."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fromfew
from fromfew.cli import VERBS, main
from fromfew.commands.console import clock, progress
from fromfew.commands.settings import settings_of
from fromfew.registry import cards, names

ENV = {**os.environ, "PYTHONPATH": str(Path(fromfew.__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(3):
        Image.linear_gradient("L").rotate(30 * number).resize((80, 60)).convert("RGB").save(folder / f"{number}.png")
    return folder


def words(photos: Path, out: Path, *more: str) -> list[str]:
    return [
        "learn",
        str(photos),
        "--noun",
        "cat",
        "--as",
        "<rex>",
        "--base",
        "tiny-sd15",
        "--out",
        str(out),
        *more,
    ]


@pytest.fixture(scope="module")
def concept(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("concepts") / "rex"
    assert main(words(photos, out, "--steps", "2")) == 0
    return out


def test_help_and_version_answer_at_once_and_name_every_verb(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(verb in told for verb in VERBS)
    assert main(["--version"]) == 0
    assert fromfew.__version__ in capsys.readouterr().out
    assert main([]) == 2


@pytest.mark.parametrize("argv", [["--help"], ["methods"], ["show", "lora"], ["learn", "--help"], ["make", "--help"]])
def test_what_needs_no_model_imports_no_torch(argv):
    code = f"import sys\nfrom fromfew.cli import main\nmain({argv})\nheavy = ['torch', 'diffusers', 'numpy']"
    code += "\nsys.stderr.write(' '.join(name for name in heavy if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV, check=True)
    assert done.stderr == ""
    assert len(done.stdout) > 200


def test_learning_leaves_a_concept_a_preview_and_no_rubbish(concept):
    assert sorted(item.name for item in concept.iterdir()) == [
        "concept.json",
        "concept.safetensors",
        "preview.png",
    ]
    assert [item.name for item in concept.parent.iterdir()] == ["rex"]


def test_learning_ends_with_the_command_to_type_next(photos, tmp_path, capsys):
    assert main(words(photos, tmp_path / "rex", "--steps", "1", "--no-preview", "--json")) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["next"] == f'fromfew make "a <rex> cat on the beach" --with {tmp_path}/rex'
    assert told["placeholder"] == "<rex>"


def test_made_pictures_carry_their_recipe_and_repeat_bit_for_bit(concept, tmp_path, capsys):
    out = tmp_path / "out"
    asked = ["make", "a <rex> cat", "--with", f"{concept}:0.8", "-n", "3", "--seed", "7", "--steps", "3"]
    assert main([*asked, "--negative", "dög", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(path).name for path in told["pictures"]] == [f"a-rex-cat-000{i}.png" for i in (1, 2, 3)]
    assert Path(told["sheet"]).exists()
    second = Path(told["pictures"][1])
    with Image.open(second) as picture:
        recipe = json.loads(picture.text["fromfew"])
        assert picture.text["parameters"].startswith("a <rex> cat\nNegative prompt: dög\nSteps: 3, Sampler: ")
        assert ", Seed: 7, Size: 32x32, " in picture.text["parameters"]
    assert (recipe["seed"], recipe["index"], recipe["concepts"][0]["strength"]) == (7, 1, 0.8)
    assert main(["make", "--from", str(second), "--out", str(tmp_path / "again"), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["equal"] is True
    assert Path(again["pictures"][0]).read_bytes() == second.read_bytes()


def drawn(monkeypatch, spoil=None):
    """Note how many pictures every call of make draws; ``spoil`` alters what calls of one picture give."""
    making: Any = import_module("fromfew.make")
    real, counts = making.make, []

    def noted(bb, prompts, *args, **kwargs):
        counts.append(len(prompts))
        found = real(bb, prompts, *args, **kwargs)
        return replace(found, tensor=spoil(found.tensor)) if spoil and len(prompts) == 1 else found

    monkeypatch.setattr(making, "make", noted)
    return counts


def test_repeating_a_picture_draws_that_one_only_and_its_batch_if_company_shows(concept, tmp_path, monkeypatch, capsys):
    asked = ["make", "a <rex> cat", "--with", str(concept), "-n", "5", "--batch", "2", "--steps", "2", "--no-sheet"]
    assert main([*asked, "--out", str(tmp_path)]) == 0
    last = tmp_path / "a-rex-cat-0004.png"
    again = ["make", "--from", str(last), "--out", str(tmp_path / "again"), "--json"]
    capsys.readouterr()
    with monkeypatch.context() as patch:
        counts = drawn(patch)
        assert main(again) == 0
        assert counts == [1]
    assert json.loads(capsys.readouterr().out)["equal"] is True
    with monkeypatch.context() as patch:
        counts = drawn(patch, spoil=lambda tensor: tensor * 0.5)
        assert main(again) == 0
        assert counts == [1, 2], "the fourth of five in twos is the second of its batch"
    assert json.loads(capsys.readouterr().out)["equal"] is True


def test_pictures_never_overwrite_each_other(concept, tmp_path):
    asked = ["make", "a <rex> cat", "--with", str(concept), "-n", "1", "--steps", "1", "--out", str(tmp_path)]
    assert main(asked) == 0
    first = (tmp_path / "a-rex-cat-0001.png").read_bytes()
    assert main([*asked, "--seed", "1"]) == 0
    assert (tmp_path / "a-rex-cat-0001.png").read_bytes() == first
    assert (tmp_path / "a-rex-cat-0002.png").read_bytes() != first


def test_a_picture_of_a_changed_concept_is_not_repeated(photos, tmp_path, capsys):
    out = tmp_path / "rex"
    assert main(words(photos, out, "--steps", "1", "--no-preview")) == 0
    assert (
        main(
            [
                "make",
                "a <rex> cat",
                "--with",
                str(out),
                "-n",
                "1",
                "--steps",
                "1",
                "--out",
                str(tmp_path / "o"),
            ]
        )
        == 0
    )
    assert main(words(photos, out, "--steps", "1", "--seed", "5", "--no-preview", "--replace")) == 0
    assert main(["make", "--from", str(tmp_path / "o" / "a-rex-cat-0001.png")]) == 2
    assert "is not the one the picture was made with" in capsys.readouterr().err


def test_a_concept_that_no_prompt_calls_is_remarked(concept, tmp_path, capsys):
    assert main(["make", "a cat", "--with", str(concept), "-n", "1", "--steps", "1", "--out", str(tmp_path)]) == 0
    assert "No prompt calls <rex>" in capsys.readouterr().err


def test_concepts_methods_and_pictures_can_be_shown(concept, tmp_path, capsys):
    assert main(["show", str(concept), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["placeholder"], shown["card"]["method"]) == ("<rex>", "lora")
    assert main(["show", str(concept)]) == 0
    assert "<rex> cat" in capsys.readouterr().out
    assert main(["show", "lora", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)["settings"]
    assert any({"name": "rank", "kind": "int"}.items() <= one.items() for one in settings)


def test_methods_are_listed_for_people_and_machines(capsys):
    assert main(["methods", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(listed) == names()
    assert all(one["kind"] in ("tuned", "encoded", "free") and one["ports"] for one in listed.values())
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in listed)


@pytest.mark.parametrize("name", names())
def test_every_setting_of_every_method_is_a_flag_with_help(name, capsys):
    from fromfew.method import find

    settings = settings_of(name)
    assert all(one.about for one in settings), [one.name for one in settings if not one.about]
    assert {one.name for one in settings} == set(find(name)().settings())
    defaults = {one.name: one.default for one in settings}
    assert json.dumps(defaults, sort_keys=True) == json.dumps(find(name)().settings(), sort_keys=True)
    assert main(["learn", "--method", name, "--help"]) == 0
    told = capsys.readouterr().out
    for one in settings:
        assert f"--{one.name.replace('_', '-')}" in told or f"--use-{one.name.replace('_', '-')}" in told
    assert cards()[name]["title"].split()[0] in told


@pytest.mark.parametrize("base", ["tiny-sd15", "tiny-sd21", "tiny-sdxl", "tiny-sd3", "tiny-flux"])
def test_photos_become_pictures_on_every_kind_of_base(base, photos, tmp_path):
    learn = ["learn", str(photos), "--noun", "cat", "--base", base, "--steps", "1", "--no-preview"]
    assert main([*learn, "--out", str(tmp_path / "v")]) == 0
    made = [
        "make",
        "a <v> cat",
        "--with",
        str(tmp_path / "v"),
        "-n",
        "1",
        "--steps",
        "2",
        "--out",
        str(tmp_path),
    ]
    assert main(made) == 0
    with Image.open(tmp_path / "a-v-cat-0001.png") as picture:
        assert picture.size == (32, 32)


def test_a_method_that_learns_nothing_needs_no_photos(tmp_path, capsys):
    learn = ["learn", "--method", "style-aligned", "--base", "tiny-sd15", "--no-preview"]
    assert main([*learn, "--out", str(tmp_path / "s")]) == 0
    capsys.readouterr()
    made = ["make", "a cat", "a dog", "--with", str(tmp_path / "s"), "--steps", "2", "--out", str(tmp_path)]
    assert main([*made, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["recipe"]["prompts"] == ["a cat", "a dog"]


def test_a_run_that_is_refused_leaves_nothing_behind(photos, tmp_path):
    out = tmp_path / "v"
    assert main(["learn", str(photos), "--noun", "cat", "--method", "ip-adapter", "--base", "tiny-sd15",
                 "--weights", str(tmp_path / "none.safetensors"), "--out", str(out)]) == 2  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def fingerprint(folder: Path) -> bytes:
    return (folder / "concept.safetensors").read_bytes()


def test_ctrl_c_leaves_a_resumable_run_and_says_how_to_go_on(photos, tmp_path, capsys, monkeypatch):
    out, whole = tmp_path / "rex", tmp_path / "whole"
    monkeypatch.setattr("fromfew.commands.learn.progress", interrupted_after(5))
    asked = words(photos, out, "--steps", "9", "--no-preview")
    assert main(asked) == 130
    assert f"--out {out} --steps 9 --no-preview --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(asked) == 2, "an interrupted run is not written over"
    assert main([*asked, "--resume"]) == 0
    assert main(words(photos, whole, "--steps", "9", "--no-preview")) == 0
    assert fingerprint(out) == fingerprint(whole)
    assert main([*asked, "--resume"]) == 0, "a finished run is finished"


def interrupted_after(steps: int):
    """A progress bar during which Ctrl-C is pressed."""
    from contextlib import contextmanager

    @contextmanager
    def progress(title: str):
        def watch(done: int, total: int, note: str = "") -> None:
            if done == steps:
                raise KeyboardInterrupt

        yield watch

    return progress


KILLED = """
import os, signal, sys
import fromfew.fit
from fromfew.cli import main
import fromfew.commands.learn as learn
from contextlib import contextmanager
fromfew.fit.fit.__kwdefaults__["every"] = 0.0  # the state is written after every step
@contextmanager
def progress(title):
    def watch(done, total, note=""):
        if done == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
    yield watch
learn.progress = progress
sys.exit(main(sys.argv[2:]))
"""


def test_a_run_killed_twice_ends_with_the_same_bits(photos, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "rex"
    assert main(words(photos, whole, "--steps", "9", "--no-preview")) == 0
    again = words(photos, out, "--steps", "9", "--no-preview", "--resume")
    for moment, status in ((3, -signal.SIGKILL), (7, -signal.SIGKILL), (0, 0)):
        done = subprocess.run([sys.executable, "-c", KILLED, str(moment), *again], env=ENV, check=False)
        assert done.returncode == status
    assert fingerprint(out) == fingerprint(whole)


@pytest.mark.slow
def test_kills_at_any_moment_do_not_change_a_bit(photos, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "rex"
    assert main(words(photos, whole, "--steps", "40", "--no-preview")) == 0
    again = words(photos, out, "--steps", "40", "--no-preview", "--resume")
    chance, status = random.Random(0), -signal.SIGKILL
    for _ in range(100):
        run = subprocess.Popen([sys.executable, "-c", KILLED, "-1", *again], env=ENV, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(1, 6))
        run.kill()
        status = run.wait()
        if status == 0:
            break
    assert status == 0 or subprocess.run([sys.executable, "-c", KILLED, "-1", *again], env=ENV, check=True)
    assert fingerprint(out) == fingerprint(whole)


def test_two_runs_into_one_folder_do_not_mix(photos, tmp_path):
    from fromfew.io.files import lock

    with lock(tmp_path / "rex"):
        command = [sys.executable, "-m", "fromfew", *words(photos, tmp_path / "rex", "--steps", "1")]
        done = subprocess.run(command, env=ENV, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"is being written by another fromfew (process {os.getpid()})" in done.stderr


def test_a_fault_of_ours_is_told_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr("fromfew.registry.cards", lambda: 1 / 0)
    assert main(["methods"]) == 1
    told = capsys.readouterr().err
    assert "ZeroDivisionError" in told
    assert "Traceback" not in told


def test_learning_that_watches_itself_keeps_its_best_state(photos, tmp_path, capsys):
    asked = words(photos, tmp_path / "rex", "--steps", "20", "--no-preview", "--watch")
    assert main(asked) == 0
    assert "Kept the state after step" in capsys.readouterr().err
    free = ["learn", "--method", "style-aligned", "--base", "tiny-sd15", "--watch", "--out", str(tmp_path / "s")]
    assert main(free) == 2
    assert "--watch is for methods that learn step by step" in capsys.readouterr().err


def test_times_are_told_as_people_tell_them():
    assert [clock(x) for x in (0.2, 59.6, 61, 3599, 7300)] == [
        "0 s",
        "1 min 0 s",
        "1 min 1 s",
        "59 min 59 s",
        "2 h 1 min",
    ]


def test_what_a_run_before_has_done_says_nothing_of_the_time_left(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("fromfew.commands.console.time.monotonic", lambda: now[0])
    with progress("bench") as watch:
        for now[0], done in ((0.0, 90), (20.0, 90), (60.0, 91), (120.0, 92)):
            watch(done, 100, "loha")
        now[0] = 140.0
        watch(0, 10)  # the next stage
        now[0] = 170.0
        watch(3, 10)
    assert capsys.readouterr().err.splitlines() == [
        "bench: 90/100 loha",
        "bench: 91/100 loha, 9 min 0 s left",
        "bench: 92/100 loha, 8 min 0 s left",
        "bench: 0/10",
        "bench: 3/10, 1 min 10 s left",
    ]


def test_the_documentation_names_every_verb_and_flag():
    from fromfew.commands import learn_plan, make

    page = (Path(fromfew.__file__).parents[1] / "docs" / "cli.md").read_text()
    parsers = [learn_plan.parser_of("lora", "world", cards()["lora"])[0], make._parser()]
    flags = {
        flag
        for parser in parsers
        for action in parser._actions
        for flag in action.option_strings
        if flag.startswith("--") and not action.dest.startswith("setting_") and flag != "--help"
    }
    assert [name for name in [*VERBS, *flags] if f"`{name}`" not in page] == []
