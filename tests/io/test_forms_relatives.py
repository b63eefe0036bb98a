"""LoRA's relatives leave for PEFT, which then draws what fromfew draws."""

import json

import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.verify import verify
from fromfew.method import find
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

QUICK = {"steps": 3, "batch": 1, "lr": 2e-2, "encoder_lr": 2e-2, "views": 2, "rank": 3}
KINDS = {"loha": "LOHA", "lokr": "LOKR", "dora": "LORA", "oft": "OFT", "ia3": "IA3"}


def learned(bb, name, **more):
    settings = {k: v for k, v in (QUICK | more).items() if k != "rank" or name not in ("oft", "ia3")}
    return find(name)(**settings).learn(bb, few_photos())


@pytest.mark.parametrize(("name", "more"), [
    ("loha", {"alpha": 2.0}), ("lokr", {"alpha": 2.0}), ("dora", {"alpha": 2.0}), ("oft", {}),
    ("ia3", {"targets": ("text.key", "text.value", "mlp")}), ("loha", {"targets": ("attention", "conv")}),
    ("dora", {"encoder": True}),
])  # fmt: skip
def test_peft_draws_the_same(name, more, tmp_path):
    bb = tiny("sd15")
    concept = learned(bb, name, **more)
    done = export(concept, bb, "peft", tmp_path / "adapter")
    assert done.exact
    config = json.loads(next((tmp_path / "adapter").rglob("adapter_config.json")).read_text())
    assert config["peft_type"] == KINDS[name]
    if name == "oft":
        assert config["use_cayley_neumann"] is False
    seen = verify(concept, bb, done)
    assert seen.concept < 2e-4
    assert seen.effect > 1e-3


def test_convolutions_of_a_lora_leave_exactly(tmp_path):
    bb = tiny("sd15")
    concept = learned(bb, "lora", targets=("attention", "conv"))
    done = export(concept, bb, "diffusers", tmp_path)
    assert done.exact
    seen = verify(concept, bb, done)
    assert max(seen.file, seen.concept) < 2e-4
    assert seen.effect > 1e-3


def test_a_butterfly_has_no_form_there(tmp_path):
    bb = tiny("sd15")
    concept = find("boft")(**{k: v for k, v in QUICK.items() if k != "rank"}).learn(bb, few_photos())
    with pytest.raises(FromfewError, match="'full'"):
        export(concept, bb, "peft", tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_what_changes_weights_by_what_they_are_is_merged_into_whole_models(tmp_path):
    from fromfew.io.forms.full_model import merged
    from fromfew.testing.contract import predict

    bb = tiny("sd15")
    concept = learned(bb, "oft")
    with bb.attach(concept):
        one = predict(bb)
    pipe = merged(concept, bb)
    kept, bb.denoiser = bb.denoiser, pipe.unet
    try:
        with torch.no_grad(), bb.attach(concept.parts.word):
            assert torch.allclose(predict(bb), one, atol=1e-4)
    finally:
        bb.denoiser = kept
