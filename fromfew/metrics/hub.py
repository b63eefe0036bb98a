"""Networks for photographs, from a folder or the hub's local store: CLIP, DINO, OWL-ViT, face and Inception nets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fromfew.errors import FromfewError
from fromfew.metrics.networks import Detector, Reader, Sight, fitted, mark_of

__all__ = ["Clip", "Dino", "DreamSight", "FaceNet", "Inception", "Owl"]

_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def _normal(images: Tensor, spread: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in spread)
    return (images * 0.5 + 0.5 - mean) / std


def _open(where: str, load: Callable[..., Any]) -> Any:
    """A frozen model or a tokenizer; pickled weights are never read, and nothing is downloaded."""
    try:
        found = load(where, local_files_only=True)
    except (OSError, ValueError) as error:
        raise FromfewError(
            f"The network '{where}' is not here: {str(error).splitlines()[0]} Give a folder in transformers' "
            "layout, or fetch it into the hub's local store first."
        ) from error
    return found.eval().requires_grad_(False) if isinstance(found, nn.Module) else found


def _tensors_only(kind: Any) -> Callable[..., Any]:
    return lambda where, **how: kind.from_pretrained(where, use_safetensors=True, **how)


class Clip(Reader):
    """CLIP (arXiv 2103.00020): shorter side bicubic to the model's size, centre square; cosine of projections.

    Args:
        where: folder or hub id, such as ``openai/clip-vit-base-patch32``.
    """

    def __init__(self, where: str = "openai/clip-vit-base-patch32") -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.net = _open(where, _tensors_only(CLIPModel))
        self.tokenizer = _open(where, CLIPTokenizer.from_pretrained)
        self.side = self.net.config.vision_config.image_size
        self.name = f"{Path(where).name} {mark_of(self.net)}"

    def _pixels(self, images: Tensor) -> Tensor:
        return _normal(fitted(images.float(), self.side, self.side), _CLIP)

    def see(self, images: Tensor) -> Tensor:
        """Unit vectors of the projection space."""
        seen = self.net.vision_model(pixel_values=self._pixels(images)).pooler_output
        return F.normalize(self.net.visual_projection(seen), dim=-1)

    def read(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of the projection space."""
        length = self.net.config.text_config.max_position_embeddings
        ids = self.tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        said = self.net.text_model(input_ids=ids.input_ids, attention_mask=ids.attention_mask).pooler_output
        return F.normalize(self.net.text_projection(said), dim=-1)

    def grid(self, images: Tensor) -> Tensor:
        """The last layer's patches, [B, C, h, w]."""
        return _patches(self.net.vision_model(pixel_values=self._pixels(images)).last_hidden_state)


class Dino(Sight):
    """DINO (arXiv 2104.14294) or DINOv2 (2304.07193): shorter side 256, centre 224, the class token.

    Args:
        where: folder or hub id, such as ``facebook/dino-vits16`` or ``facebook/dinov2-small``.
    """

    def __init__(self, where: str = "facebook/dino-vits16", *, resize: int = 256, crop: int = 224) -> None:
        from transformers import AutoModel

        self.net = _open(where, _tensors_only(AutoModel))
        self.resize, self.crop = resize, crop
        self.name = f"{Path(where).name} {mark_of(self.net)}"

    def _states(self, images: Tensor) -> Tensor:
        pixels = _normal(fitted(images.float(), self.resize, self.crop), _IMAGENET)
        return self.net(pixel_values=pixels).last_hidden_state

    def see(self, images: Tensor) -> Tensor:
        """Unit class tokens."""
        return F.normalize(self._states(images)[:, 0], dim=-1)

    def grid(self, images: Tensor) -> Tensor:
        """The last layer's patches, [B, C, h, w]."""
        return _patches(self._states(images))


def _patches(states: Tensor) -> Tensor:
    """[B, 1 + n * n, C] to [B, C, n, n], the class token left out."""
    side = int((states.shape[1] - 1) ** 0.5)
    return states[:, -side * side :].transpose(1, 2).unflatten(2, (side, side))


class FaceNet(Sight):
    """A face embedding exported as TorchScript, such as an ArcFace (arXiv 1801.07698); faces must be cut out.

    Args:
        where: the ``.pt`` file; it is run, so take it from people you trust.
        side: side of the pictures it takes.
    """

    def __init__(self, where: str, *, side: int = 112) -> None:
        if not Path(where).is_file():
            raise FromfewError(f"There is no face network at '{where}'.")
        self.net = torch.jit.load(where, map_location="cpu").eval()
        self.side, self.name = side, f"{Path(where).stem} {mark_of(self.net)}"

    def see(self, images: Tensor) -> Tensor:
        """Unit vectors."""
        return F.normalize(self.net(fitted(images.float(), self.side, self.side)), dim=-1)


class DreamSight(Sight):
    """DreamSim's ensemble (arXiv 2306.09344), through its package: pictures made 224 px square, in [0, 1].

    The package and the code of DINO's repository are run, so take them from people you trust; nothing is downloaded.

    Args:
        where: the folder that the package calls ``cache_dir``, filled by using it once where there is a network.

    Raises:
        FromfewError: The package cannot be used here, or the folder lacks something that it would download.
    """

    files = (
        "ensemble_lora", "dino_vitb16_pretrain.pth", "clip_vitb16_pretrain.pth.tar",
        "open_clip_vitb16_pretrain.pth.tar", "facebookresearch_dino_main", "checkpoints/dino_vitbase16_pretrain.pth",
    )  # fmt: skip

    def __init__(self, where: str) -> None:
        missing = [name for name in self.files if not (Path(where) / name).exists()]
        if missing:
            raise FromfewError(
                f"The folder '{where}' lacks {', '.join(missing)} of DreamSim's ensemble; fill it with "
                f"dreamsim(cache_dir='{where}') where there is a network."
            )
        try:
            from dreamsim import dreamsim
        except (ImportError, RuntimeError) as error:  # a torchvision made for another torch is a RuntimeError
            raise FromfewError(
                "DreamSim needs its package, and a torchvision made for the torch that is here: "
                f"pip install dreamsim ({str(error).splitlines()[0]})"
            ) from error
        self.net = dreamsim(pretrained=True, device="cpu", cache_dir=where, normalize_embeds=True)[0]
        self.name = f"dreamsim-ensemble {mark_of(self.net)}"

    def see(self, images: Tensor) -> Tensor:
        """Unit vectors."""
        pixels = F.interpolate(images.float(), (224, 224), mode="bicubic", antialias=True).clamp(-1, 1)
        return F.normalize(self.net.embed(pixels * 0.5 + 0.5), dim=-1)


class Inception(Sight):
    """Inception-v3 as FID knows it (the TensorFlow port of torch-fidelity), its 2048 features not normalised.

    Args:
        where: torch-fidelity's file of weights; its own store if left open.
    """

    def __init__(self, where: str | None = None) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise FromfewError("FID on photographs needs torch-fidelity: pip install torch-fidelity") from error
        wanted = ["2048", "logits_unbiased"]
        self.net = FeatureExtractorInceptionV3("inception-v3-compat", wanted, feature_extractor_weights_path=where)
        self.name = f"inception-v3-compat {mark_of(self.net)}"

    def see(self, images: Tensor) -> Tensor:
        """[B, 2048]."""
        return self._run(images)[0]

    def classes(self, images: Tensor) -> Tensor:
        """Probabilities [B, 1008]."""
        return self._run(images)[1].softmax(-1)

    def _run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = ((images * 0.5 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        features, logits = self.net(pixels)
        return features.float(), logits.float()


class Owl(Detector):
    """OWL-ViT (arXiv 2205.06230): the best score of any box for "a photo of a THING".

    Args:
        where: folder or hub id, such as ``google/owlvit-base-patch32``.
    """

    def __init__(self, where: str = "google/owlvit-base-patch32") -> None:
        from transformers import CLIPTokenizer, OwlViTForObjectDetection

        self.net = _open(where, _tensors_only(OwlViTForObjectDetection))
        self.tokenizer = _open(where, CLIPTokenizer.from_pretrained)
        self.side = self.net.config.vision_config.image_size
        self.name = f"{Path(where).name} {mark_of(self.net)}"

    def find(self, images: Tensor, things: Sequence[str]) -> Tensor:
        """[B, T] in [0, 1]."""
        pixels = F.interpolate(images.float(), (self.side, self.side), mode="bicubic", antialias=True)
        length = self.net.config.text_config.max_position_embeddings
        asked = [f"a photo of a {thing}" for thing in things]
        ids = self.tokenizer(asked, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        rows = []
        for picture in _normal(pixels.clamp(-1, 1), _CLIP):
            out = self.net(input_ids=ids.input_ids, attention_mask=ids.attention_mask, pixel_values=picture[None])
            rows.append(out.logits[0].sigmoid().amax(0))
        return torch.stack(rows)
