"""The sentences photos are learned under, and how a concept's word gets into them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fromfew.errors import FromfewError, unknown

__all__ = ["TEMPLATES", "class_prompt", "filled", "plain_of", "sentences", "viewed", "with_article", "worded"]

_OBJECT = (
    "a photo of a {}", "a rendering of a {}", "a cropped photo of the {}", "the photo of a {}",
    "a photo of a clean {}", "a photo of a dirty {}", "a dark photo of the {}", "a photo of my {}",
    "a photo of the cool {}", "a close-up photo of a {}", "a bright photo of the {}",
    "a cropped photo of a {}", "a photo of the {}", "a good photo of the {}", "a photo of one {}",
    "a close-up photo of the {}", "a rendition of the {}", "a photo of the clean {}",
    "a rendition of a {}", "a photo of a nice {}", "a good photo of a {}", "a photo of the nice {}",
    "a photo of the small {}", "a photo of the weird {}", "a photo of the large {}",
    "a photo of a cool {}", "a photo of a small {}",
)  # fmt: skip
_FACE = ("a photo of a {}", "a portrait of a {}", "a close-up photo of a {}", "a photo of the face of a {}")
_STYLE = (
    "a {} in {word} style", "the {} in {word} style", "a cropped {} in {word} style",
    "a close-up {} in {word} style", "a bright {} in {word} style", "a small {} in {word} style",
)  # fmt: skip

TEMPLATES: dict[str, tuple[str, ...]] = {
    "photo": _OBJECT,
    "plain": ("a {}", "{}", "a photo of a {}", "a picture of a {}"),
    "face": _FACE,
    "style": _STYLE,
    "plain style": ("a {} in {word} style", "{} in {word} style"),
}
"""Sentences by name; ``{}`` is the thing ("<v> cat"), ``{word}`` the placeholder alone. Those for objects are
those of Textual Inversion (arXiv 2208.01618)."""

_FAR = ("a far away view of ", "a very small picture of ")
_NEAR = ("zoomed in on ", "a close up of ")


def with_article(noun: str) -> str:
    """``noun`` behind "a" or "an".

    >>> with_article("apple"), with_article("cat")
    ('an apple', 'a cat')
    """
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def worded(caption: str, word: str, noun: str | None, *, style: bool = False, keep_noun: bool = True) -> str:
    """A photo's own caption with the concept's word in it: before the noun, else in front; for styles behind.

    >>> worded("a cat on a sofa", "<rex>", "cat")
    'a <rex> cat on a sofa'
    """
    if word in caption:
        return caption
    if style:
        return f"{caption} in {word} style"
    thing = f"{word} {noun}" if noun and keep_noun else word
    if noun:
        found = re.search(rf"(?<![\w-]){re.escape(noun)}(?![\w-])", caption, re.IGNORECASE)
        if found:
            kept = f"{word} {found[0]}" if keep_noun else word
            return caption[: found.start()] + kept + caption[found.end() :]
    return f"{thing}, {caption}"


def plain_of(prompt: str, word: str, noun: str | None) -> str:
    """A prompt without a concept's word: the noun stays if it follows the word, and else takes its place.

    >>> plain_of("a <rex> owl and <rex>", "<rex>", "owl"), plain_of("a cat in <s> style", "<s>", None)
    ('an owl and owl', 'a cat in style')
    """
    here = re.escape(word)
    if noun:
        prompt = re.sub(rf"{here}(?!\s*{re.escape(noun)}(?![\w-]))", noun, prompt)
    prompt = " ".join(prompt.replace(word, " ").split())
    return re.sub(r"\b([Aa])n? (?=(\w))", lambda m: f"{m[1]}{'n' if m[2].lower() in 'aeiou' else ''} ", prompt)


def sentences(templates: str | Sequence[str], role: str = "subject") -> tuple[str, ...]:
    """Templates by name; "auto" and "plain" suit themselves to the role.

    Raises:
        FromfewError: There is no such set, or a sentence has no place for the thing.
    """
    if not isinstance(templates, str):
        if not templates or any("{" not in text for text in templates):
            raise FromfewError("Every template needs a {} where the thing is named.")
        return tuple(templates)
    name = {"auto": {"style": "style", "face": "face"}.get(role, "photo")}.get(templates, templates)
    if role == "style" and name == "plain":
        name = "plain style"
    if name not in TEMPLATES:
        raise unknown("set of templates", name, [*TEMPLATES, "auto"])
    return TEMPLATES[name]


def filled(sentence: str, word: str, noun: str | None) -> str:
    """A template with its words in; for a style the thing is what was painted, not the style itself."""
    if "{word}" in sentence:
        return sentence.replace("{word}", word).replace("{}", noun if noun and noun != "style" else "picture")
    return sentence.replace("{}", f"{word} {noun}" if noun else word)


def class_prompt(sentence: str, noun: str) -> str:
    """A template with the plain noun in, and no concept's word."""
    text = sentence.replace("a {}", "{article}").replace("{article}", with_article(noun)).replace("{}", noun)
    return text.replace(" in {word} style", "")


def viewed(sentence: str, zoom: float, choice: int) -> str:
    """The sentence with words for an unusual distance (arXiv 2212.04488); ``choice`` is 0 or 1."""
    if 0.6 <= zoom <= 1.5:
        return sentence
    return (_FAR if zoom < 1 else _NEAR)[choice] + sentence
