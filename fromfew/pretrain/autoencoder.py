"""Stage 1: the autoencoder, diffusers' AutoencoderTiny at 8x down-sampling."""

from itertools import product
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from fromfew.pretrain.data import Scenes, to_tensor
from fromfew.pretrain.loop import Trainee
from fromfew.pretrain.pictures import write_rows

CROP = 64


PATCH = 8
SETTLE = 0.25
"""Factor on the latents before the decoder, whose first step squashes everything beyond about 3."""


class Autoencoder(Trainee):
    """A fixed linear encoder and a trained decoder.

    The encoder is the principal components of 8 x 8 patches, written into AutoencoderTiny's own (linear, blockless)
    convolutions; only the decoder learns. Two cores cannot afford to learn both: from scratch the pair stood at
    19.5 dB after 4,000 crops, while twelve components alone give 26 dB, and the denoiser need not wait.

    Loss: L1 + L2 + gradient on 64 x 64 crops; the network has no sense of place, so crops teach as much as wholes.
    """

    name: ClassVar[str] = "autoencoder"
    steps = 6500
    batch_size = 8
    lr = 2e-3
    average = 0.998

    def __init__(
        self, folder: Path, *, channels: int = 12, width: int = 48, shards: int = 8, start: Path | None = None
    ) -> None:
        self.channels, self.width, self.start = channels, width, start
        self.scenes = Scenes(folder / "scenes", seed=11, shards=shards)
        self.held = Scenes(folder / "scenes", seed=12, shards=1)

    def build(self) -> Any:
        """Width 48 everywhere; no blocks at full resolution, where two cores would spend most of their time.

        Begun from another one, the encoder is the same to the bit: a denoiser of its latents need not be trained again.
        """
        if self.start is not None:
            begun = AutoencoderTiny.from_pretrained(self.start, torch_dtype=torch.float32).train()
            begun.encoder.requires_grad_(False)
            return begun
        model = AutoencoderTiny(
            latent_channels=self.channels,
            encoder_block_out_channels=(self.width,) * 4,
            decoder_block_out_channels=(self.width,) * 4,
            num_encoder_blocks=(0, 0, 0, 0),
            num_decoder_blocks=(3, 2, 1, 0),
        )
        for module in model.decoder.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Every residual block starts as the identity: measured, 18.5 dB after 100 steps instead of under 16.
        for module in model.decoder.modules():
            if isinstance(module, AutoencoderTinyBlock):
                nn.init.zeros_(module.conv[-1].weight)
        mean, rows = components(self.scenes.shard(0).pictures, self.channels)
        write_encoder(model.encoder, rows, -rows @ mean)
        model.encoder.requires_grad_(False)
        return model

    def batch(self, step: int) -> Tensor:
        """[B, 3, 64, 64] in [-1, 1]."""
        shard, rows = self.scenes.at(step, self.batch_size)
        corners = np.random.default_rng([11, step]).integers(0, 128 - CROP + 1, (len(rows), 2))
        crops = [shard.pictures[r, y : y + CROP, x : x + CROP] for r, (y, x) in zip(rows, corners, strict=True)]
        return to_tensor(np.stack(crops))

    def loss(self, model: Any, batch: Tensor, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction and edges."""
        batch = batch.contiguous(memory_format=torch.channels_last).to(next(model.parameters()).device)
        latents = model.encoder(batch)
        error = model.decoder(latents) - batch
        edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
        loss = error.abs().mean() + error.square().mean() + edges
        return loss, {"psnr": round(float(psnr(error.detach())), 2)}

    def measure(self, model: Any) -> dict[str, float]:
        """PSNR (dB) on 64 scenes of another seed, and the latents' standard deviation."""
        pictures = to_tensor(self.held.shard(0).pictures[:64]).to(next(model.parameters()).device)
        with torch.no_grad():
            latents = model.encoder(pictures)
            error = model.decoder(latents).clamp(-1, 1) - pictures
        return {"held_psnr": round(float(psnr(error)), 2), "latent_std": round(float(latents.std()), 4)}

    def sheet(self, model: Any, path: Path) -> None:
        """Scenes above, what comes back below."""
        pictures = to_tensor(self.held.shard(0).pictures[:8]).to(next(model.parameters()).device)
        with torch.no_grad():
            write_rows([pictures, model.decoder(model.encoder(pictures))], path)


def psnr(error: Tensor) -> Tensor:
    """Mean peak signal-to-noise ratio (dB) of errors [B, 3, H, W] of pictures in [-1, 1]."""
    return (-10 * torch.log10(error.square().flatten(1).mean(1) / 4)).mean()


def components(pictures: np.ndarray, count: int) -> tuple[Tensor, Tensor]:
    """Principal components of 8 x 8 patches, half whitened.

    Half whitened: a component of variance v is scaled to the standard deviation v^(1/4), so that the first
    components are drawn first and the fine ones still weigh something.

    Args:
        pictures: [N, 128, 128, 3] uint8.
        count: how many components.

    Returns:
        The mean patch [192] and the rows [count, 192] that give latents; patches lie in [0, 1] in the order
        (y, x, colour).
    """
    n, side = len(pictures), pictures.shape[1] // PATCH
    patches = pictures.reshape(n, side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, PATCH**2 * 3)
    values = patches[::7].astype(np.float64) / 255
    mean = values.mean(0)
    spread, basis = np.linalg.eigh(np.cov(values.T))
    order = np.argsort(spread)[::-1][:count]
    # A component's sign is anybody's choice; the largest entry positive makes it ours.
    basis = basis[:, order] * np.sign(basis[np.abs(basis[:, order]).argmax(0), order])
    rows = basis.T * spread[order, None] ** -0.25 * SETTLE
    return torch.from_numpy(mean).float(), torch.from_numpy(rows).float()


@torch.no_grad()
def write_encoder(encoder: nn.Module, rows: Tensor, bias: Tensor) -> None:
    """Write a linear map of 8 x 8 patches into AutoencoderTiny's strided convolutions.

    Each convolution gathers 2 x 2 neighbours into channels: 12 numbers a pixel, then 48; the third and the last
    would need 192, so the third already maps to the latents and the last only adds the mean.

    Args:
        encoder: ``EncoderTiny`` of width 48 without blocks.
        rows: [latents, 192], patches in the order (y, x, colour).
        bias: [latents].
    """
    first, *strided, last = (m for m in encoder.modules() if isinstance(m, nn.Conv2d))
    for conv in (first, *strided, last):
        conv.weight.zero_()
        if conv.bias is not None:
            conv.bias.zero_()
    where = tuple(product((0, 1), repeat=2))
    for p, (dy, dx) in enumerate(where):
        for colour in range(3):
            first.weight[p * 3 + colour, colour, 1 + dy, 1 + dx] = 1
        for k in range(12):
            strided[1].weight[p * 12 + k, k, 1 + dy, 1 + dx] = 1
    for k in range(12):
        strided[0].weight[k, k, 1, 1] = 1
    patch = rows.view(len(rows), PATCH, PATCH, 3)
    # A pixel lies in a 4 x 4 quarter of the patch, there in a 2 x 2, there at one of four places.
    for (ry, rx), (q, (qy, qx)), (p, (py, px)) in product(where, enumerate(where), enumerate(where)):
        y, x = 4 * ry + 2 * qy + py, 4 * rx + 2 * qx + px
        at = slice(q * 12 + p * 3, q * 12 + p * 3 + 3)
        strided[2].weight[: len(rows), at, 1 + ry, 1 + rx] = patch[:, y, x]
    for k in range(len(rows)):
        last.weight[k, k, 1, 1] = 1
    cast(Tensor, last.bias).copy_(bias)
