"""Does the picture show what the prompt says?"""

from __future__ import annotations

from torch import Tensor

from fromfew.metrics.base import Case, Metric, Want
from fromfew.metrics.networks import Detector, Reader, seen
from fromfew.metrics.subject import CopyRate

__all__ = ["ClipT", "GroundingObjects", "PenalisedClipT"]


class ClipT(Metric):
    """Cosine of picture and prompt, the placeholder dropped and the class noun kept."""

    name, source = "clip-t", "arXiv 2103.00020 (as in 2208.12242: cosine, token stripped)"

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    @property
    def network(self) -> str:
        """The pair of towers."""
        return self.reader.name

    def __call__(self, case: Case) -> Tensor:
        """[B] in [-1, 1]."""
        said = list(dict.fromkeys(case.prompts))
        texts = self.reader.read(said)
        rows = texts[[said.index(prompt) for prompt in case.prompts]]
        return (seen(case, self.reader, case.images) * rows).sum(-1)


class PenalisedClipT(ClipT):
    """CLIP-T, softly lowered where a picture repeats a photo: ``clip-t * (1 - copy rate)``.

    Stellar (arXiv 2312.06116) penalises pictures that replicate the input softly, without a published formula;
    this one is ours.
    """

    name, source = "clip-t-penalised", "idea of arXiv 2312.06116, formula ours: clip-t * (1 - copy-rate)"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [-1, 1]."""
        return super().__call__(case) * (1 - CopyRate()(case))


class GroundingObjects(Metric):
    """Mean, over the things a prompt names, of the detector's best score for each (GOA)."""

    name, source = "goa", "arXiv 2312.06116"

    def __init__(self, detector: Detector) -> None:
        self.detector = detector

    @property
    def network(self) -> str:
        """The detector."""
        return self.detector.name

    def __call__(self, case: Case) -> Tensor:
        """[B] in [0, 1]; NaN where nothing is named."""
        values = self._nothing(case)
        for i in range(len(case)):
            want = case.wants[i] if case.wants else Want(object=case.noun)
            things = want.things or [thing for thing in (want.object, want.second) if thing]
            if things:
                values[i] = self.detector.find(case.images[i : i + 1], things).mean()
        return values
