"""Stage 1: the autoencoder, diffusers' AutoencoderTiny at 8x down-sampling, trained from scratch on scenes."""

from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from diffusers import AutoencoderTiny
from diffusers.models.autoencoders.vae import AutoencoderTinyBlock
from torch import Tensor, nn

from fromfew.pretrain.data import Scenes, to_tensor
from fromfew.pretrain.loop import Trainee
from fromfew.pretrain.pictures import write_rows

CROP = 64


class Autoencoder(Trainee):
    """L1 + L2 + gradient loss on 64 x 64 crops: the network has no sense of place, so crops teach as much as wholes."""

    name: ClassVar[str] = "autoencoder"
    steps = 7000
    batch_size = 8
    lr = 2e-3
    average = 0.998

    def __init__(self, folder: Path, *, channels: int = 8, width: int = 48, shards: int = 8) -> None:
        self.channels, self.width = channels, width
        self.scenes = Scenes(folder / "scenes", seed=11, shards=shards)
        self.held = Scenes(folder / "scenes", seed=12, shards=1)

    def build(self) -> AutoencoderTiny:
        """Width 48 everywhere; no blocks at full resolution, where two cores would spend most of their time."""
        model = AutoencoderTiny(
            latent_channels=self.channels,
            encoder_block_out_channels=(self.width,) * 4,
            decoder_block_out_channels=(self.width,) * 4,
            num_encoder_blocks=(0, 1, 2, 3),
            num_decoder_blocks=(3, 2, 1, 0),
        )
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # Every residual block starts as the identity: measured, 18.5 dB after 100 steps instead of under 16.
        for module in model.modules():
            if isinstance(module, AutoencoderTinyBlock):
                nn.init.zeros_(module.conv[-1].weight)
        return model

    def batch(self, step: int) -> Tensor:
        """[B, 3, 64, 64] in [-1, 1]."""
        shard, rows = self.scenes.at(step, self.batch_size)
        corners = np.random.default_rng([11, step]).integers(0, 128 - CROP + 1, (len(rows), 2))
        crops = [shard.pictures[r, y : y + CROP, x : x + CROP] for r, (y, x) in zip(rows, corners, strict=True)]
        return to_tensor(np.stack(crops))

    def loss(self, model: nn.Module, batch: Tensor, rng: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """Reconstruction, edges, and a light pull of the latents towards zero."""
        batch = batch.contiguous(memory_format=torch.channels_last).to(next(model.parameters()).device)
        latents = model.encoder(batch)
        error = model.decoder(latents) - batch
        edges = (error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()) / 2
        loss = error.abs().mean() + error.square().mean() + edges + 1e-4 * latents.square().mean()
        return loss, {"psnr": round(float(psnr(error.detach())), 2)}

    def measure(self, model: nn.Module) -> dict[str, float]:
        """PSNR (dB) on 64 scenes of another seed, and the latents' standard deviation."""
        pictures = to_tensor(self.held.shard(0).pictures[:64]).to(next(model.parameters()).device)
        with torch.no_grad():
            latents = model.encoder(pictures)
            error = model.decoder(latents).clamp(-1, 1) - pictures
        return {"held_psnr": round(float(psnr(error)), 2), "latent_std": round(float(latents.std()), 4)}

    def sheet(self, model: nn.Module, path: Path) -> None:
        """Scenes above, what comes back below."""
        pictures = to_tensor(self.held.shard(0).pictures[:8]).to(next(model.parameters()).device)
        with torch.no_grad():
            write_rows([pictures, model.decoder(model.encoder(pictures))], path)


def psnr(error: Tensor) -> Tensor:
    """Mean peak signal-to-noise ratio (dB) of errors [B, 3, H, W] of pictures in [-1, 1]."""
    return (-10 * torch.log10(error.square().flatten(1).mean(1) / 4)).mean()
