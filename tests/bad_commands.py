"""Command lines that cannot be meant, with what has to lie around for each."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bad_files import Maker, png

COMMANDS: dict[str, Maker] = {}


def command(what: str, *words: str, put: Callable[[Path], Any] | None = None) -> None:
    """An entry of words; {c} is a good concept <rex> cat, {p} a folder of photos, {t} the fresh folder."""
    COMMANDS[what] = lambda folder: (put(folder) if put else None, list(words))[1]


def holding(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.doc").write_text("years of work")


def half_learned(folder: Path) -> None:
    (folder / "out" / ".work").mkdir(parents=True)
    (folder / "out" / ".work" / "run.json").write_text('{"method": "dreambooth"}')


def a_file(folder: Path) -> None:
    (folder / "file").write_text("x")


def a_picture(folder: Path, **texts: str) -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for key, value in texts.items():
        info.add_text(key, value)
    (folder / "a.png").write_bytes(png(pnginfo=info))


LEARN = ("learn", "{p}", "--noun", "cat", "--base", "tiny-sd15")
MAKE = ("make", "a <rex> cat", "--with", "{c}")
command("an unknown verb", "lern")
command("an unknown flag", *LEARN, "--stepz", "3")
command("a misspelt flag", "make", "a cat", "--negtive", "dog")
command("learning without photos", "learn", "--noun", "cat")
command("an unknown method", *LEARN, "--method", "lora-x")
command("a method without a name", *LEARN, "--method")
command("a base that is not there", "learn", "{p}", "--noun", "cat", "--base", "{t}/nowhere")
command("an unknown base", "learn", "{p}", "--noun", "cat", "--base", "wrld")
command("an unknown tiny base", "learn", "{p}", "--noun", "cat", "--base", "tiny-sd14")
command("an unknown device", *LEARN, "--device", "gpu")
command("steps that are a word", *LEARN, "--steps", "many")
command("no steps", *LEARN, "--steps", "0")
command("a learning rate that is no number", *LEARN, "--lr", "nan")
command("a seed below zero", *LEARN, "--seed", "-1")
command("an unknown modifier", *LEARN, "--modifier", "wrod")
command("a role the method does not learn", *LEARN, "--role", "motion")
command("a folder with other files as output", *LEARN, "--out", "{t}/out", put=holding)
command("a file as output", *LEARN, "--out", "{t}/file", put=a_file)
command("a concept in the way", *LEARN, "--out", "{c}")
command("an interrupted run in the way", *LEARN, "--out", "{t}/out", put=half_learned)
command("going on with another run", *LEARN, "--out", "{t}/out", "--resume", put=half_learned)
command("an article in the noun", "learn", "{p}", "--noun", "the cat")
command("making nothing", "make")
command("an empty prompt", "make", " ")
command("a prompt without quotes", "make", "a", "cat", "--size", "big")
command("a misspelt placeholder", "make", "a <rxe> cat", "--with", "{c}")
command("a placeholder of no concept", "make", "a <rex> cat")
command("another concept's placeholder", "make", "a <zebra> cat", "--with", "{c}")
command("a concept that is not there", "make", "a <rex> cat", "--with", "{c}x")
command("a folder that is no concept", "make", "a <rex> cat", "--with", "{p}")
command("a strength that is a word", *MAKE[:-1], "{c}:strong")
command("a strength out of range", *MAKE[:-1], "{c}:50")
command("the same concept twice", *MAKE, "--with", "{c}")
command("no pictures", *MAKE, "-n", "0")
command("too many pictures", *MAKE, "-n", "1000000")
command("a size that is a word", *MAKE, "--size", "big")
command("a size out of range", *MAKE, "--size", "4")
command("guidance below zero", *MAKE, "--guidance", "-3")
command("an unknown sampler", *MAKE, "--sampler", "plms")
command("a file as the pictures' folder", *MAKE, "--out", "{t}/file", put=a_file)
command("repeating a picture that is not there", "make", "--from", "{t}/a.png")
command("repeating a JPEG", "make", "--from", "{p}/1.jpg")
command("repeating a picture without a recipe", "make", "--from", "{t}/a.png", put=a_picture)
command("repeating another tool's picture", "make", "--from", "{t}/a.png",
        put=lambda folder: a_picture(folder, parameters="a cat\nSteps: 20"))  # fmt: skip
command("repeating a damaged recipe", "make", "--from", "{t}/a.png",
        put=lambda folder: a_picture(folder, fromfew="{"))  # fmt: skip
command("repeating a recipe from the future", "make", "--from", "{t}/a.png",
        put=lambda folder: a_picture(folder, fromfew='{"schema": 7}'))  # fmt: skip
command("repeating a recipe that lacks its number", "make", "--from", "{t}/a.png",
        put=lambda folder: a_picture(folder, fromfew='{"schema": 1, "prompts": ["a"]}'))  # fmt: skip
command("repeating with another seed", "make", "--from", "{t}/a.png", "--seed", "3")
command("showing nothing", "show")
command("showing what is not there", "show", "loar")
command("checking nothing", "check")
command("checking an unknown method", "check", "loar")
