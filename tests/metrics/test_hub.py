"""Networks for photographs: seeded models give what transformers gives for the same pictures and words."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fromfew.backbones.twins import clip_tokenizer
from fromfew.errors import FromfewError
from fromfew.metrics.base import Case
from fromfew.metrics.hub import Clip, Dino, DreamSight, FaceNet, Inception, Owl
from fromfew.metrics.subject import DreamSim
from fromfew.metrics.suites import hub

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": 32, "patch_size": 8}  # fmt: skip


def pictures(side: int, n: int = 3) -> list[Image.Image]:
    coarse = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(side))
    pixels = (F.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 1) * 255).round().byte()
    return [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in pixels]


def tensor(images: list[Image.Image]) -> torch.Tensor:
    pixels = [np.array(one) for one in images]
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1


def saved(model, folder, *others):
    for one in (model, *others):
        one.save_pretrained(folder)
    return str(folder), model.eval()


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    from transformers import CLIPConfig, CLIPModel

    tokenizer = clip_tokenizer()
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": len(tokenizer), "max_position_embeddings": 16, "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24))
    return saved(model, tmp_path_factory.mktemp("clip"), tokenizer)


def vit(family, folder, side=32, patch=8):
    import transformers as t

    with torch.random.fork_rng():
        torch.manual_seed(0)
        if family == "v1":
            model = t.ViTModel(t.ViTConfig(**{**VISION, "image_size": side, "patch_size": patch}))
        else:
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
            model = t.Dinov2Model(t.Dinov2Config(**sizes, image_size=side, patch_size=patch))
        for value in model.parameters():  # their own beginnings hardly depend on the picture
            torch.nn.init.normal_(value, std=0.1) if value.dim() > 1 else None
    return saved(model, folder)


@pytest.fixture
def dino(tmp_path):
    return lambda family, **how: vit(family, tmp_path, **how)


def processed(side, images, **how):
    import transformers.models.clip.image_processing_pil_clip as pil

    made = pil.CLIPImageProcessorPil(size={"shortest_edge": how.pop("resize", side)}, crop_size=side, **how)
    return made(images, return_tensors="pt")["pixel_values"]


def test_clip_is_that_of_transformers_for_pictures_and_words(clip):
    folder, model = clip
    ours, images = Clip(folder), pictures(32)
    pixels = processed(32, images)
    with torch.no_grad():
        theirs = model.get_image_features(pixel_values=pixels)
        theirs = F.normalize(getattr(theirs, "pooler_output", theirs), dim=-1)
        assert torch.allclose(ours.see(tensor(images)), theirs, atol=1e-5)
        said = ["a cat on the beach", "a red dog", "a photo of a house in the snow, with a very long rest of it"]
        ids = clip_tokenizer()(said, padding=True, truncation=True, max_length=16, return_tensors="pt")
        words = model.get_text_features(**ids)
        words = F.normalize(getattr(words, "pooler_output", words), dim=-1)
        assert torch.allclose(ours.read(said), words, atol=1e-5)
    assert ours.grid(tensor(images)).shape == (3, 32, 4, 4)


def test_bigger_pictures_are_made_smaller_as_pillow_makes_them(clip):
    ours, images = Clip(clip[0]), pictures(80)
    with torch.no_grad():
        assert torch.allclose(ours._pixels(tensor(images)), processed(32, images), atol=0.02)


@pytest.mark.parametrize("family", ["v1", "v2"])
def test_dino_is_the_class_token_of_transformers(dino, family):
    folder, model = dino(family)
    ours, images = Dino(folder, resize=32, crop=32), pictures(32)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    with torch.no_grad():
        pixels = processed(32, images, image_mean=mean, image_std=std)
        states = model(pixel_values=pixels).last_hidden_state
        assert torch.allclose(ours.see(tensor(images)), F.normalize(states[:, 0], dim=-1), atol=1e-5)
        assert torch.allclose(ours.grid(tensor(images)).flatten(2).transpose(1, 2), states[:, 1:], atol=1e-4)
    assert not torch.allclose(states[0, 0], states[1, 0], atol=1e-3), "the network must tell pictures apart"


def test_the_suite_of_photographs_scores_a_case_offline(clip, dino):
    from fromfew.metrics.base import score

    suite = hub(clip[0], dino("v1", side=224, patch=56)[0])
    found = score(Case(tensor(pictures(32)), ("a cat",) * 3, tensor(pictures(40))[:, :, 4:36, 4:36]), suite.metrics)
    assert {"clip-t", "clip-i", "dino-i", "copy-rate"} <= set(found)
    assert all(-1 <= value <= 1 for value in found["dino-i"])
    assert set(found) <= set(suite.about())


def test_owl_scores_every_thing_by_its_best_box(tmp_path):
    from transformers import OwlViTConfig, OwlViTForObjectDetection

    tokenizer = clip_tokenizer(pad="!")
    text = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": len(tokenizer), "max_position_embeddings": 16}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = OwlViTConfig(text_config=text, vision_config={**VISION, "num_hidden_layers": 1}, projection_dim=32)
        folder, model = saved(OwlViTForObjectDetection(config), tmp_path, tokenizer)
    ours, images = Owl(folder), pictures(32, n=2)
    found = ours.find(tensor(images), ["cat", "dog", "house"])
    assert found.shape == (2, 3)
    ids = tokenizer(["a photo of a dog"], padding="max_length", max_length=16, truncation=True, return_tensors="pt")
    with torch.no_grad():
        alone = model(**ids, pixel_values=processed(32, images[1:])).logits.sigmoid().amax()
    assert found[1, 1] == pytest.approx(float(alone), abs=1e-5)


def test_a_face_network_is_run_as_it_was_exported(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(48, 6)).eval()
    torch.jit.trace(net, torch.zeros(1, 3, 32, 32)).save(str(tmp_path / "face.pt"))
    ours, images = FaceNet(str(tmp_path / "face.pt"), side=32), tensor(pictures(32))
    with torch.no_grad():
        assert torch.allclose(ours.see(images), F.normalize(net(images), dim=-1), atol=1e-6)
    with pytest.raises(FromfewError, match="no face network"):
        FaceNet(str(tmp_path / "none.pt"))


def test_inception_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(FromfewError, match="pip install torch-fidelity"):
        Inception()


def test_networks_that_are_not_here_are_named_and_nothing_is_fetched(tmp_path):
    for kind in (Clip, Dino, Owl):
        with pytest.raises(FromfewError, match="is not here"):
            kind(str(tmp_path))


@pytest.fixture
def dreams(tmp_path, monkeypatch):
    """A folder filled as the package fills it, and a package with its face that sees four pixels."""
    for name in DreamSight.files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    class Net(torch.nn.Linear):
        def embed(self, pixels):
            assert pixels.shape[1:] == (3, 224, 224)
            assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1
            return self(F.adaptive_avg_pool2d(pixels, 2).flatten(1))

    def dreamsim(pretrained=True, device="cuda", cache_dir="./models", normalize_embeds=True):
        assert pretrained
        assert cache_dir == str(tmp_path)
        net = Net(12, 12, bias=False)
        torch.nn.init.eye_(net.weight)
        return net.to(device).requires_grad_(False), None

    package = ModuleType("dreamsim")
    package.dreamsim = dreamsim
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    return tmp_path


def test_dreamsim_is_the_mean_distance_to_the_photos(dreams, clip):
    sight = DreamSight(str(dreams))
    halves = torch.ones(2, 3, 224, 224)
    halves[0, :, :112], halves[1, :, 112:] = -1, -1  # opposite halves black: orthogonal
    values = DreamSim(sight)(Case(halves, ("a cat",) * 2, halves))
    assert torch.allclose(values, torch.full((2,), 0.5), atol=1e-3)  # 0 to itself, 1 to the other
    one = DreamSim(sight)(Case(halves[:1], ("a cat",), halves[:1]))
    assert torch.allclose(one, torch.zeros(1), atol=1e-5)
    names = [metric.name for metric in hub(clip[0], clip[0], dreamsim=str(dreams)).metrics]
    assert "dreamsim" in names
    assert not DreamSim(sight).higher


def test_dreamsim_says_what_its_folder_or_its_package_lacks(dreams, monkeypatch):
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(FromfewError, match="pip install dreamsim"):
        DreamSight(str(dreams))
    (dreams / "ensemble_lora").unlink()
    with pytest.raises(FromfewError, match="lacks ensemble_lora of DreamSim"):
        DreamSight(str(dreams))
