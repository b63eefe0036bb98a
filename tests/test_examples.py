"""Every example runs, and so does the Python of the start page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
EXAMPLES = [
    ("learn_and_make.py", 4, ["sheet.png"]),
    ("two_subjects.py", 2, ["sheet.png"]),
    ("without_learning.py", 3, ["ip-adapter.png", "style-aligned.png"]),
]


def test_every_example_is_run_here():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {script for script, *_ in EXAMPLES}


@pytest.mark.parametrize(("script", "steps", "sheets"), EXAMPLES)
def test_an_example_runs_and_leaves_its_sheets(tmp_path, script, steps, sheets):
    command = [sys.executable, str(ROOT / "examples" / script), "--steps", str(steps), "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path)
    for sheet in sheets:
        with Image.open(tmp_path / sheet) as picture:
            assert min(picture.size) > 200


def test_the_python_of_the_start_page_runs(tmp_path, monkeypatch):
    text = (ROOT / "docs" / "start.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "start.md", "exec"), {})
    assert (tmp_path / "pea.png").exists()
