"""learn: photos to a concept in one call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fromfew.errors import FromfewError
from fromfew.method import Learner, find
from fromfew.references import References

if TYPE_CHECKING:
    from fromfew.backbones.base import Backbone
    from fromfew.concept import Concept
    from fromfew.fit import Watch

__all__ = ["learn"]


def learn(
    photos: References | Path | str | Sequence[Path | str] | Sequence[References] | None,
    *,
    method: str | Learner = "lora",
    base: Backbone | str = "world",
    noun: str | None = None,
    placeholder: str = "<v>",
    role: str = "subject",
    seed: int = 0,
    watch: Watch | None = None,
    work: Path | str | None = None,
    **settings: Any,
) -> Concept:
    """Learn a concept from a few photos; it is ready for `make` and for ``concept.save(folder)``.

    Args:
        photos: A folder, files, or `References`; None for methods that need none. Several `References` are learned
            together, by methods whose card says ``joint``.
        method: A method, or its name.
        base: A backbone, or what to open.
        noun: The plain noun of what the photos show.
        placeholder: What stands for the concept in prompts, as in "a <v> cat".
        role: subject, style or face.
        seed: All chance follows from it.
        watch: Called as ``watch(done, total, note)``.
        work: Folder that keeps the state; the same call goes on from there after a kill, with the same bits.
        **settings: Settings of the method, when it is given by name.

    Raises:
        FromfewError: If photos, method, base or settings do not suit.
    """
    from fromfew.backbones.open import open_backbone

    if isinstance(method, str):
        method = find(method).of(settings)
    elif settings:
        raise FromfewError("Give settings to the method itself, or name the method and give them here.")
    if isinstance(photos, Sequence) and photos and all(isinstance(one, References) for one in photos):
        first, *others = cast(Sequence[References], photos)
        photos = replace(first, also=(*first.also, *others))
    if photos is not None and not isinstance(photos, References):
        photos = References.read(photos, noun=noun, placeholder=placeholder, role=role)  # type: ignore[arg-type]
    bb = open_backbone(base) if isinstance(base, str) else base
    return method.learn(bb, photos, seed=seed, watch=watch, work=Path(work) if work is not None else None)
