"""The words of ``fromfew bench``."""

import subprocess
import sys

import pytest

from fromfew.bench.cli import _methods, run, settings_of
from fromfew.bench.task import shipped
from fromfew.errors import FromfewError


def test_settings_are_read_as_python_would_and_need_a_method_that_takes_part():
    found = settings_of(["lora.steps=20", "lora.modifier=rare", "lora.masked=false"], ["lora"])
    assert found == {"lora": {"steps": 20, "modifier": "rare", "masked": False}}
    with pytest.raises(FromfewError, match=r"METHOD\.NAME=VALUE"):
        settings_of(["lora=20"], ["lora"])
    with pytest.raises(FromfewError, match="Unknown method"):
        settings_of(["lore.steps=20"], ["lora"])


def test_controls_always_take_part_unless_left_out():
    assert _methods("lora", False) == ["lora", "base", "paste", "real"]
    assert _methods("lora,base", True) == ["lora", "base"]
    with pytest.raises(FromfewError, match="Did you mean 'dreambooth'"):
        _methods("dreamboth", False)


def test_ways_of_joining_and_of_keeping_apart_are_part_of_a_name():
    assert _methods("lora,lora+zip-lora,custom-diffusion+joint,lora@noise", True)[1:3] == [
        "lora+zip-lora", "custom-diffusion+joint",
    ]  # fmt: skip
    assert settings_of(["lora.steps=2"], ["lora+weighted@noise"]) == {"lora": {"steps": 2}}
    for wrong, said in (("lora+zip", "way of joining"), ("lora@noises", "region method"), ("loar+joint", "lora")):
        with pytest.raises(FromfewError, match=said):
            _methods(wrong, True)


def test_the_tasks_are_listed_with_their_licences(capsys):
    assert run(["tasks"]) == 0
    told = capsys.readouterr().out
    assert "world/objects v2" in told
    assert told.count("licence:") == len(shipped())


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(FromfewError, match="no folder"):
        run(["report", "nowhere"])


def test_help_and_the_list_of_tasks_import_no_torch():
    code = (
        "import sys; from fromfew.bench.cli import _parser, run; _parser().format_help(); run(['tasks']); "
        "assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
