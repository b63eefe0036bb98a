import json
import shutil

import diffusers
import pytest
import torch
from ldm import original_names
from safetensors.torch import load_file, save_file

from fromfew.backbones.open import assemble, open_backbone
from fromfew.backbones.twins import twin
from fromfew.errors import FromfewError
from fromfew.make import make
from fromfew.testing.tiny import tiny, tiny_folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return tiny_folder("sd15", tmp_path_factory.mktemp("sd15"))


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "model")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No hub to reach, and an empty cache."""
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "sd3", "flux"])
def test_a_saved_folder_opens_as_the_same_model(name, tmp_path):
    folder = tiny_folder(name, tmp_path)
    opened, twin = open_backbone(folder), open_backbone(f"tiny-{name}")
    assert opened.fingerprint() == twin.fingerprint()
    assert opened.defaults == twin.defaults
    assert opened.path.kind == twin.path.kind


def test_half_precision_draws_finite_pictures(saved):
    bb = open_backbone(saved, dtype=torch.bfloat16)
    assert bb.dtype == torch.bfloat16
    assert make(bb, "a cat", steps=2).tensor.isfinite().all()


def test_without_a_file_of_defaults_the_pipelines_own_are_taken(folder):
    (folder / "fromfew.json").unlink()
    defaults = open_backbone(folder).defaults
    assert (defaults.guidance, defaults.steps, defaults.size) == (7.5, 30, 32)


def test_a_default_that_does_not_exist_is_named(folder):
    (folder / "fromfew.json").write_text('{"step": 3}')
    with pytest.raises(FromfewError, match="'steps'"):
        open_backbone(folder)


@pytest.mark.parametrize("ending", [".bin", ".pt", ".ckpt"])
def test_pickled_weights_are_refused_by_name_with_the_reason(folder, ending):
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(ending))
    with pytest.raises(FromfewError, match=rf"diffusion_pytorch_model\{ending} may run any code"):
        open_backbone(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer"),
        (b"\xff" * 64, "no proper safetensors"),
    ],
)
def test_weights_that_are_none_are_named(folder, content, says):
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(content)
    with pytest.raises(FromfewError, match=says) as caught:
        open_backbone(folder)
    assert str(weights) in str(caught.value)


def change(path, **more):
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_a_configuration_that_asks_to_run_code_is_refused(folder):
    change(folder / "unet" / "config.json", auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(FromfewError, match="auto_map"):
        open_backbone(folder)


def test_a_class_that_is_not_known_is_refused(folder):
    change(folder / "model_index.json", unet=["my_code", "MyUNet"])
    with pytest.raises(FromfewError, match="'MyUNet' for 'unet'"):
        open_backbone(folder)


def test_a_pipeline_that_is_not_known_is_refused(folder):
    change(folder / "model_index.json", _class_name="AudioPipeline")
    with pytest.raises(FromfewError, match="AudioPipeline"):
        open_backbone(folder)


def test_a_component_that_is_missing_is_named(folder):
    change(folder / "model_index.json", text_encoder=[None, None])
    with pytest.raises(FromfewError, match="lacks text_encoder"):
        open_backbone(folder)


def test_a_variant_that_is_missing_is_named_and_one_that_is_there_is_loaded(folder):
    with pytest.raises(FromfewError, match="variant 'fp16'"):
        open_backbone(folder, variant="fp16")
    plain = open_backbone(folder).fingerprint()
    for weights in folder.glob("*/*.safetensors"):
        save_file(load_file(weights), weights.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        weights.unlink()
    assert open_backbone(folder, variant="fp16").fingerprint() == plain


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("wrold", "'world'"),
        ("tiny-sd1", "'tiny-sd15'"),
        ("./no/such/folder", "does not exist"),
        ("nothing.safetensors", "does not exist"),
    ],
)
def test_a_name_that_leads_nowhere_is_answered(name, says):
    with pytest.raises(FromfewError, match=says):
        open_backbone(name)


def test_a_folder_without_an_index_says_so(tmp_path):
    with pytest.raises(FromfewError, match=r"no model_index\.json"):
        open_backbone(tmp_path)


def test_a_hub_id_that_cannot_be_had_offline_says_what_to_do(offline):
    with pytest.raises(FromfewError, match="not in the hub's cache"):
        open_backbone("someone/some-model")


def test_a_hub_id_in_the_cache_opens_offline(offline, saved):
    commit = "0123456789abcdef0123456789abcdef01234567"
    home = offline / "models--someone--some-model"
    shutil.copytree(saved, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    bb = open_backbone("someone/some-model", revision="main")
    assert bb.name == "someone/some-model"
    assert bb.fingerprint() == tiny("sd15").fingerprint()


def test_a_single_checkpoint_file_opens_with_a_local_configuration(folder, tmp_path):
    path = tmp_path / "one.safetensors"
    save_file(original_names(tiny("sd15")), path)
    for weights in folder.glob("*/*.safetensors"):
        weights.unlink()
    assert open_backbone(path, config=folder).fingerprint() == tiny("sd15").fingerprint()


def test_a_single_checkpoint_without_configuration_says_what_is_needed(offline, tmp_path):
    path = tmp_path / "one.safetensors"
    save_file(original_names(tiny("sd15")), path)
    with pytest.raises(FromfewError, match="configuration and tokenizers, those of 'stable-diffusion-v1-5"):
        open_backbone(path)


def test_a_checkpoint_that_is_a_pickle_is_refused(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(1)}, path)
    with pytest.raises(FromfewError, match="pickle"):
        open_backbone(path)


def test_a_model_for_inpainting_is_refused_with_the_reason():
    pipeline, components, defaults = twin("sd15")
    components["unet"] = diffusers.UNet2DConditionModel.from_config(components["unet"].config, in_channels=9)
    with pytest.raises(FromfewError, match="reads 9 channels"):
        assemble("inpainting", pipeline, components, defaults)
