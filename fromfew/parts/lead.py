"""Lead: the picture that others follow: drawn from a prompt of its own, or a photo at every noise level."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fromfew.errors import FromfewError
from fromfew.ports.sampler import Moment, SamplerPart

__all__ = ["Lead"]


class Lead(SamplerPart):
    """Draws a first picture in every batch and leaves it out of the result.

    With a photo, the first picture is the photo: before every step its latents are those of the photo mixed
    with the noise it began from, for the time of that step.

    Args:
        prompt: What the first picture shows.
        shape: ``[C, h, w]`` of the photo's latents, or None without a photo.
    """

    kind = "lead"
    couples_images = True

    def __init__(self, prompt: str, shape: list[int] | None = None) -> None:
        super().__init__()
        self.photo: Tensor
        self.lead = prompt
        self.shape = list(shape) if shape is not None else None
        if self.shape is not None:
            self.register_buffer("photo", torch.zeros(1, *self.shape))

    @classmethod
    def showing(cls, prompt: str, latents: Tensor) -> Lead:
        """A lead that is a photo with these latents ``[1, C, h, w]``."""
        part = cls(prompt, list(latents.shape[1:]))
        part.photo.copy_(latents.detach().cpu())
        return part

    def before(self, moment: Moment) -> Tensor:
        """The photo, at this noise, in the lead's place.

        Raises:
            FromfewError: If pictures of another size are drawn.
        """
        if self.shape is None:
            return moment.x
        if list(moment.x.shape[1:]) != self.shape:
            raise FromfewError(
                f"The photo was read for latents of shape {self.shape}; pictures of "
                f"{list(moment.x.shape[1:])} are asked for. Draw at the base's own size."
            )
        photo, noise = self.photo.to(moment.x), moment.noise[:1].to(moment.x)
        t = torch.full((1,), moment.t, device=moment.x.device)
        lead = (moment.image == -1).view(-1, 1, 1, 1)
        return torch.where(lead, moment.path.mix(photo, noise, t), moment.x)

    def config(self) -> dict[str, Any]:
        """Prompt and shape."""
        return {"prompt": self.lead, "shape": self.shape}

    def __repr__(self) -> str:
        return f"Lead({self.lead!r}, {'photo' if self.shape else 'drawn'})"
