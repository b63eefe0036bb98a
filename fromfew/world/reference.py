"""Reference pictures of held-out subjects: what a person would hand over, drawn by the world."""

import hashlib

import numpy as np
from PIL.Image import Image

from fromfew.errors import FromfewError, unknown
from fromfew.references import Reference, References, Role
from fromfew.world.cli import noun_of, subjects
from fromfew.world.faces import HELD_OUT_FROM, look
from fromfew.world.scenes import Drawn, Item, Scene, article, draw, words_for
from fromfew.world.vocabulary import CONTEXTS, CORE, HELD_OUT, HELD_OUT_STYLES, RELATIONS, names


def views(subject: str, *, n: int = 5, seed: int = 0) -> list[Drawn]:
    """``n`` pictures of a held-out subject, every one in another context.

    Args:
        subject: a held-out object or style, or ``face-N``.
        n: 1 to 14.
        seed: other views of the same subject.

    Raises:
        FromfewError: there is no such subject, or ``n`` is out of range.
    """
    if not 1 <= n <= len(CONTEXTS):
        raise FromfewError(f"{n} views were asked for; one a context makes 1 to {len(CONTEXTS)}")
    noun_of(subject)  # refuses unknown names before anything is drawn
    rng = np.random.default_rng([77, seed, *subject.encode()])
    contexts = rng.permutation(list(CONTEXTS))[:n]
    return [draw(_scene(subject, str(context), rng), rng) for context in contexts]


def _scene(subject: str, context: str, rng: np.random.Generator) -> Scene:
    if subject in HELD_OUT_STYLES:
        return Scene((Item(str(rng.choice(list(names(CORE))))),), context, subject)
    if subject.startswith("face-"):
        return Scene((Item("face", who=HELD_OUT_FROM + int(subject[5:]), how=look(rng)),), context)
    return Scene((Item(subject),), context)


def said_of(subject: str, drawn: Drawn) -> str:
    """What a person would write under a reference picture: the class noun, or what is shown in a style, and where."""
    lead = "a portrait of " if subject.startswith("face-") else ""
    shown = words_for(drawn.scene.items[0]) if subject in HELD_OUT_STYLES else noun_of(subject)
    return f"{lead}{article(shown)} {CONTEXTS[drawn.scene.context]}"


def together(
    one: str, other: str, placeholders: tuple[str, str] = ("<v1>", "<v2>"), *, n: int = 3, seed: int = 0
) -> tuple[References, References]:
    """Pictures that show two held-out objects side by side, as references of each, with exact masks.

    Args:
        one: a held-out object.
        other: another one.
        placeholders: what stands for each in prompts.
        n: 1 to 14.
        seed: other pictures of the same two.

    Raises:
        FromfewError: one of them is no held-out object, or ``n`` is out of range.
    """
    for subject in (one, other):
        if subject not in names(HELD_OUT):
            raise unknown("held-out object", subject, list(names(HELD_OUT)))
    if not 1 <= n <= len(CONTEXTS):
        raise FromfewError(f"{n} pictures were asked for; one a context makes 1 to {len(CONTEXTS)}")
    rng = np.random.default_rng([78, seed, *one.encode(), *other.encode()])
    contexts = [str(context) for context in rng.permutation(list(CONTEXTS))[:n]]
    relations = [("left", "right")[i % 2] for i in range(n)]
    scenes = zip(contexts, relations, strict=True)
    drawn = [draw(Scene((Item(one), Item(other)), where, relation=how), rng) for where, how in scenes]
    nouns = noun_of(one), noun_of(other)
    said = [f"{article(nouns[0])} {RELATIONS[how]} {article(nouns[1])} {CONTEXTS[where]}"
            for where, how in zip(contexts, relations, strict=True)]  # fmt: skip

    def of(nth: int) -> References:
        photos = tuple(_photo(each, each.mask(nth), text) for each, text in zip(drawn, said, strict=True))
        return References(photos=photos, noun=nouns[nth], role="subject", placeholder=placeholders[nth])

    return of(0), of(1)


def _photo(drawn: Drawn, mask: Image | None, caption: str | None) -> Reference:
    """A drawn picture as a reference that lies in no file."""
    sha = hashlib.sha256(drawn.picture.tobytes()).hexdigest()
    return Reference(image=drawn.picture, mask=mask, caption=caption, path=None, sha256=sha)


def references(
    subject: str,
    *,
    n: int = 5,
    seed: int = 0,
    placeholder: str = "<v>",
    masks: bool = False,
    captions: bool = True,
) -> References:
    """The pictures of `views` as references, without going through files.

    Args:
        subject: a held-out object or style, or ``face-N``.
        n: 1 to 14.
        seed: other views of the same subject.
        placeholder: what stands for the subject in prompts.
        masks: also give exact masks.
        captions: also say what is to be seen and where (see `said_of`).
    """
    if subject not in subjects() and not subject.startswith("face-"):
        raise unknown("held-out subject", subject, subjects())
    photos = tuple(
        _photo(one, one.mask() if masks else None, said_of(subject, one) if captions else None)
        for one in views(subject, n=n, seed=seed)
    )
    role: Role = "style" if subject in HELD_OUT_STYLES else "face" if subject.startswith("face-") else "subject"
    return References(photos=photos, noun=noun_of(subject), role=role, placeholder=placeholder)
