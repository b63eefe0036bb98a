"""What the documents list is what there is."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fromfew.cli import main
from fromfew.commands.parsing import Parser
from fromfew.registry import COMBINERS, METHODS

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT) for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("script", ["list_methods.py", "measured.py"])
def test_lists_of_methods_are_those_of_the_files_and_figures_those_of_the_records(script):
    said = subprocess.run(
        [sys.executable, ROOT / "scripts" / script, "--check"], capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("name", METHODS.own())
def test_every_method_has_a_page_that_says_what_it_departs_from_and_how_it_was_verified(name):
    page = (ROOT / "docs/methods" / f"{name}.md").read_text(encoding="utf-8")
    assert page.splitlines()[0].split(":")[0] == f"# {name}"
    assert "depart" in page.lower()
    assert "verified" in page.lower()


def test_the_index_leads_to_every_page():
    folder = ROOT / "docs/methods"
    index = (folder / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in folder.glob("[!R]*.md") if f"({page.name})" not in index] == []


def test_every_combiner_and_way_of_keeping_apart_is_told():
    from fromfew.regions import METHODS as WAYS

    page = (ROOT / "docs/several.md").read_text(encoding="utf-8")
    assert [name for name in [*COMBINERS.own(), *WAYS] if f"`{name}`" not in page] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_between_documents_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", text)
    assert [link for link in links if not (ROOT / page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_named_in_documents_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    folders, endings = "tests|scripts|docs|examples|benchmarks|fromfew", "py|md|toml|csv|json"
    named = re.findall(rf"`((?:{folders})/[\w./-]+\.(?:{endings}))`", text)
    assert [file for file in named if "my-method" not in file and not (ROOT / file).exists()] == []


class Read(BaseException):
    """A command line was understood; nothing else is to happen."""


def commands(page):
    """What the blocks of a page say to type: the words behind ``fromfew``, continued lines joined, remarks left out."""
    blocks = re.findall(r"^```(?:sh)?\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fromfew ")]


def test_commands_are_found_in_the_documents():
    assert ["methods"] in commands("README.md")
    assert ["combine", "concepts/rex", "concepts/tom:0.8"] in [words[:3] for words in commands("docs/several.md")]


@pytest.mark.parametrize(("page", "words"), [(page, words) for page in PAGES for words in commands(page)], ids=str)
def test_every_command_in_the_documents_is_understood(page, words, monkeypatch):
    def stopped(read):
        def reads(parser, argv):
            read(parser, argv)
            raise Read

        return reads

    # The second is for verbs whose parser is a plain one, which leaves the program instead of raising.
    monkeypatch.setattr(Parser, "read", stopped(Parser.read))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stopped(argparse.ArgumentParser.parse_args))
    monkeypatch.setattr(argparse.ArgumentParser, "error", lambda parser, message: pytest.fail(message))
    with pytest.raises(Read):
        main(words)
