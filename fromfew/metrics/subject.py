"""Does the picture show the subject of the photos, and more than a copy of them?"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fromfew.metrics.base import Case, Metric
from fromfew.metrics.networks import Sight, lesser_side, seen

__all__ = ["ClipI", "CopyRate", "DinoI", "Diversity", "DreamSim", "Each", "HeldOut", "MaskedSubject", "lpips"]


class _Looks(Metric):
    """A metric of one image network."""

    def __init__(self, sight: Sight) -> None:
        self.sight = sight

    @property
    def network(self) -> str:
        """The image network."""
        return self.sight.name


class ClipI(_Looks):
    """Mean cosine to all photos in CLIP's image space."""

    name, source = "clip-i", "arXiv 2103.00020 (as in 2208.12242: mean over all photos)"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [-1, 1]."""
        return (seen(case, self.sight, case.images) @ seen(case, self.sight, case.photos).T).mean(1)


class DinoI(ClipI):
    """Mean cosine to all photos in DINO's space, which tells things of one class apart."""

    name, source = "dino-i", "arXiv 2104.14294 (as in 2208.12242: class token, mean over all photos)"


class DreamSim(_Looks):
    """Mean DreamSim distance to all photos, tuned to what people find alike; less is more alike."""

    name, source, higher = "dreamsim", "arXiv 2306.09344 (1 - cosine, mean over all photos)", False

    def __call__(self, case: Case) -> Tensor:
        """[B] in [0, 2]."""
        return 1 - (seen(case, self.sight, case.images) @ seen(case, self.sight, case.photos).T).mean(1)


class HeldOut(_Looks):
    """DINO-I against photos of the subject that were not learned from."""

    name, source = "dino-i-held", "as dino-i, photos not learned from; ours"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [-1, 1]; NaN without such photos."""
        if case.held is None or not len(case.held):
            return self._nothing(case)
        return (seen(case, self.sight, case.images) @ seen(case, self.sight, case.held).T).mean(1)


class MaskedSubject(_Looks):
    """Is every place of the subject found again somewhere in the picture, whatever the background?

    ``mean over photos, mean over places p inside the mask, max over the picture's places q of cos(p, q)``.
    """

    name, source = "subject-masked", "ours: places inside the photos' masks, best match in the picture"

    def __call__(self, case: Case) -> Tensor:
        """[B] in [-1, 1]; NaN without masks."""
        if case.masks is None:
            return self._nothing(case)
        drawn = F.normalize(torch.cat([self.sight.grid(x) for x in case.images.split(64)]).flatten(2), dim=1)
        there = F.normalize(self.sight.grid(case.photos), dim=1)
        masks = F.interpolate(case.masks.float(), size=there.shape[-2:], mode="area")[:, 0]
        values = []
        for grid, mask in zip(there, masks, strict=True):
            inside = mask >= min(0.5, float(mask.max()))  # a tiny subject still has its best covered place
            values.append(torch.einsum("cp,bcq->bpq", grid[:, inside], drawn).amax(2).mean(1))
        return torch.stack(values).mean(0)


class Each(_Looks):
    """Is every one of two things, on its own side of the picture, like its own photos?

    The mean over things of the mean cosine between a thing's side, enlarged to a picture, and its photos; with
    ``other`` those of the other thing instead.
    """

    def __init__(self, sight: Sight, other: bool = False) -> None:
        super().__init__(sight)
        self.other, self.higher = other, not other  # type: ignore[misc]
        self.name = "each-other" if other else "each-own"  # type: ignore[misc]
        self.source = f"ours: a thing's side of the picture against {'the other' if other else 'its own'} photos"  # type: ignore[misc]

    def __call__(self, case: Case) -> Tensor:
        """[B] in [-1, 1]; NaN without two things and a relation. Of "and" the order that is more like counts."""
        from fromfew.world.evaluators import side_views

        values = self._nothing(case)
        if len(case.things) != 2:
            return values
        photos = [seen(case, self.sight, one) for one in case.things]
        for i, want in enumerate(case.wants):
            if not want.relation:
                continue
            looked = self.sight.see(side_views(case.images[i], want.relation))
            table = torch.stack([(looked @ one.T).mean(1) for one in photos])  # thing by side
            straight, crossed = table.diagonal().mean(), table.flip(1).diagonal().mean()
            if want.relation == "right" or (want.relation == "and" and crossed > straight):
                straight, crossed = crossed, straight
            values[i] = crossed if self.other else straight
        return values


def lpips(first: list[Tensor], second: list[Tensor], weights: list[Tensor] | None = None) -> Tensor:
    """LPIPS (arXiv 1801.03924) of features of several depths, [B] >= 0; 0 for equal pictures.

    ``sum over layers, mean over places of w . (a / |a| - b / |b|)^2``.

    Args:
        first: [B, C, h, w] of every layer.
        second: the same of the other pictures.
        weights: [C] of every layer; 1 if left out (the uncalibrated form).
    """
    total = torch.zeros(len(first[0]))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        gap = (F.normalize(a, dim=1, eps=1e-10) - F.normalize(b, dim=1, eps=1e-10)).square()
        if weights is not None:
            gap = gap * weights[i].view(1, -1, 1, 1)
        total = total + gap.sum(1).mean((1, 2))
    return total


class Diversity(_Looks):
    """Mean LPIPS to the other pictures of the same prompt (DIV)."""

    name, source = "diversity", "DIV of arXiv 2208.12242 with LPIPS (1801.03924), uncalibrated"

    def __call__(self, case: Case) -> Tensor:
        """[B] >= 0; NaN for a picture alone in its group."""
        values = self._nothing(case)
        group = torch.tensor(case.group or range(len(case)))
        for i in range(len(case)):
            others = (group == group[i]).nonzero()[:, 0]
            others = others[others != i]
            if len(others):
                mine = self.sight.layers(case.images[i : i + 1])
                theirs = self.sight.layers(case.images[others])
                values[i] = lpips([x.expand_as(y) for x, y in zip(mine, theirs, strict=True)], theirs).mean()
        return values


class CopyRate(Metric):
    """Which share of the picture's structured patches lies, pixel for pixel, in a photo or its mirror image?

    Patches of a quarter of the side, normalised cross-correlation of at least 0.9 at any place, of pictures
    without their slow changes of light (any two ramps would match); patches without structure count for
    neither side.
    """

    name, source, higher = "copy-rate", "ours: patches found in a photo by normalised cross-correlation", False
    side, patch, stride, alike, spread = 64, 16, 8, 0.9, 0.03

    def __call__(self, case: Case) -> Tensor:
        """[B] in [0, 1]; 0 for pictures without structure."""
        key = (id(case.images), "copy-rate")
        if key not in case.cache:
            photos = self._small(case.photos)
            photos = torch.cat([photos, photos.flip(-1)])
            case.cache[key] = torch.stack([self._rate(one, photos) for one in self._small(case.images)])
        return case.cache[key]

    def _small(self, images: Tensor) -> Tensor:
        small = F.interpolate(images.float(), size=lesser_side(images, self.side), mode="area") / 2
        return small - F.avg_pool2d(small, 9, 1, 4, count_include_pad=False)

    def _rate(self, picture: Tensor, photos: Tensor) -> Tensor:
        """Share of one picture's patches [] that the photos [R, 3, s, s] contain."""
        n = self.patch
        patches = picture.unfold(1, n, self.stride).unfold(2, n, self.stride)
        patches = patches.permute(1, 2, 0, 3, 4).flatten(0, 1)  # [P, 3, n, n]
        patches = patches - patches.mean((1, 2, 3), keepdim=True)
        norm = patches.flatten(1).norm(dim=1)
        busy = norm > self.spread * (3 * n * n) ** 0.5
        if not busy.any():
            return torch.zeros(())
        patches = patches[busy] / norm[busy].view(-1, 1, 1, 1)
        match = F.conv2d(photos, patches)  # the patches have mean 0: the photos' means fall out
        # Over windows of this area: sum of squares minus (sum)^2 / count is the centred square norm.
        count = 3 * n * n
        total = F.avg_pool2d(photos.sum(1, keepdim=True), n, 1) * n * n
        square = F.avg_pool2d(photos.square().sum(1, keepdim=True), n, 1) * n * n
        centred = (square - total.square() / count).clamp(min=1e-6).sqrt()
        return ((match / centred).amax((0, 2, 3)) >= self.alike).float().mean()
