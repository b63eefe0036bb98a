"""Every method that is trained beforehand is trained by one command, and goes on after a stop with the same bits."""

import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.io.tensors import read_tensors
from fromfew.method import cards, find
from fromfew.pretrain import adapter
from fromfew.pretrain.adapter import PairSource, train_adapter
from fromfew.pretrain.cli import adapters, parser
from fromfew.pretrained import Pretrained
from fromfew.testing.eye import tiny_eye
from fromfew.testing.tiny import tiny


def test_methods_with_weights_of_their_own_are_stages_of_pretraining():
    assert {"ip-adapter", "e4t", "hyperdreambooth"} <= set(adapters())
    assert all(issubclass(find(name), Pretrained) for name in adapters())
    assert all(name in cards() for name in adapter.USUAL)
    for name in adapters():
        assert parser().parse_args([name, "--steps", "3"]).stage == name


def test_rows_tell_the_noun_that_their_caption_has():
    batch = PairSource(3)(torch.Generator().manual_seed(2))
    assert len(batch) == 3
    assert all(noun in caption for noun, caption in zip(batch.nouns, batch.captions, strict=True))
    assert batch.shown.shape == batch.images.shape
    assert not torch.equal(batch.shown, batch.images)


@pytest.mark.parametrize("name", ["e4t", "hyperdreambooth"])
def test_a_stopped_training_goes_on_with_the_same_bits(name, tmp_path, monkeypatch):
    from dataclasses import replace

    eye, real = tiny_eye(tmp_path / "eye"), find(name).resolved
    monkeypatch.setattr(find(name), "resolved", lambda self, bb: replace(real(self, bb), eye=eye))
    monkeypatch.setattr(PairSource, "__call__", _small(tiny("sd15").default_size))
    how = {"steps": 4, "batch": 2, "base": "tiny-sd15"}
    whole = train_adapter(tmp_path / "a", name, target=tmp_path / "whole.safetensors", **how)
    state = train_adapter(tmp_path / "b", name, until=2, target=tmp_path / "parts.safetensors", **how)
    assert state == tmp_path / "b" / name / "state.safetensors"
    assert not (tmp_path / "parts.safetensors").exists()
    parts = train_adapter(tmp_path / "b", name, target=tmp_path / "parts.safetensors", **how)
    one, two = read_tensors(whole), read_tensors(parts)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert {value.dtype for value in one.values()} == {torch.float16}


def test_training_goes_on_from_weights(tmp_path, monkeypatch):
    from dataclasses import replace

    eye, real = tiny_eye(tmp_path / "eye"), find("e4t").resolved
    monkeypatch.setattr(find("e4t"), "resolved", lambda self, bb: replace(real(self, bb), eye=eye))
    monkeypatch.setattr(PairSource, "__call__", _small(tiny("sd15").default_size))
    how, still = {"steps": 1, "batch": 2, "base": "tiny-sd15"}, 1e-12
    first = train_adapter(tmp_path / "a", "e4t", target=tmp_path / "first.safetensors", lr=1e-2, **how)
    before = {key: value.clone() for key, value in read_tensors(first).items()}
    how_on = {"lr": still, "start": str(first)} | how
    gone_on = read_tensors(train_adapter(tmp_path / "b", "e4t", target=tmp_path / "on.safetensors", **how_on))
    assert all(torch.equal(value, before[key]) for key, value in gone_on.items())
    anew = train_adapter(tmp_path / "c", "e4t", target=tmp_path / "anew.safetensors", lr=still, **how)
    assert not all(torch.equal(value, before[key]) for key, value in read_tensors(anew).items())
    with pytest.raises(FromfewError, match="no weights for this base at"):
        train_adapter(tmp_path / "d", "e4t", start=str(tmp_path / "none.safetensors"), **how)


def _small(size):
    draw = PairSource.__call__

    def call(self, rng):
        from dataclasses import replace

        batch = draw(self, rng)
        small = [torch.nn.functional.interpolate(one, size) for one in (batch.images, batch.shown)]
        return replace(batch, images=small[0], shown=small[1])

    return call


def test_a_method_that_is_not_trained_beforehand_is_refused(tmp_path):
    with pytest.raises(FromfewError, match="not trained beforehand"):
        train_adapter(tmp_path, "lora")
