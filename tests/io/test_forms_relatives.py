"""LoRA's relatives leave for PEFT, which then draws what fromfew draws."""

import copy
import json
from types import SimpleNamespace

import peft as peft_library
import pytest
import strange
import torch

from fromfew.errors import FromfewError
from fromfew.io.export import export
from fromfew.io.forms import peft
from fromfew.io.importing import bring_in, identify
from fromfew.io.tensors import read_tensors
from fromfew.io.verify import verify
from fromfew.method import find
from fromfew.parts.hadamard import Hadamard
from fromfew.parts.kronecker import Kronecker
from fromfew.parts.weight_decomposed import WeightDecomposed
from fromfew.parts.word import Word
from fromfew.ports.text import WordPart
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


def changes(concept):
    return {name: part for name, part in concept.parts.items() if not isinstance(part, WordPart)}


@pytest.mark.parametrize(("name", "more"), [
    ("loha", {"targets": ("attention", "conv")}), ("lokr", {"alpha": 2.0, "targets": ("attention", "conv")}),
    ("lokr", {"rank": 1}), ("lokr", {"rank": 32, "alpha": 7.0}), ("dora", {"targets": ("attention", "conv")}),
    ("dora", {"encoder": True}), ("oft", {}), ("boft", {"side": 4, "factors": 2}),
    ("boft", {"side": 4, "factors": 1, "scaled": False, "targets": ("conv",)}),
    ("ia3", {"targets": ("text.key", "mlp", "conv")}),
])  # fmt: skip
def test_a_pefts_folder_comes_back_bit_by_bit(name, more, tmp_path):
    bb = tiny("sd15")
    concept = untouched(bb, name, **more)
    folder = export(concept, bb, "peft", tmp_path / "adapter").changes
    back = bring_in(identify(folder), bb)
    assert back.ignored == {}
    there = changes(back.concept)
    if name in ("boft", "ia3") and more.get("scaled", True):
        # Their files hold factors, of which the concept keeps what is beyond 1: the file is what stays as it was.
        again = export(back.concept, bb, "peft", tmp_path / "again").changes
        for file in (*folder.glob(f"**/{peft.NUMBERS}"),):
            mine, its = read_tensors(file), read_tensors(again / file.relative_to(folder))
            assert mine.keys() == its.keys()
            assert all(torch.equal(mine[key], its[key]) for key in mine)
        for part, other in zip(changes(concept).values(), there.values(), strict=True):
            for path in part.shapes():
                one, two = (each.delta_of(path, bb.parameter(path)) for each in (part, other))
                torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-5)
        return
    mine = {key: value for part in changes(concept).values() for key, value in part.state_dict().items()}
    its = {key: value for part in there.values() for key, value in part.state_dict().items()}
    assert mine.keys() == its.keys()
    assert all(torch.equal(mine[key], its[key]) for key in mine)


def untouched(bb, name, **more):
    """A concept of this method with random numbers in place of what it would learn."""
    settings = {k: v for k, v in (QUICK | more).items() if k != "rank" or name not in ("oft", "boft", "ia3")}
    method = find(name)(**settings)
    parts = method.parts(bb, few_photos(), torch.Generator().manual_seed(0))
    for part in parts:
        strange.random(part, 0.2)
    for part in parts:
        if isinstance(part, WeightDecomposed):  # sizes near those of the base
            for value in part.sizes.values():
                value.data = value.data.abs() + 1
    return strange.concept(bb, name, **dict(parts.items()))


TARGETS = ["to_q", "to_v", "proj_in", "conv1"]
LINEAR = ["to_q", "to_v", "proj_in"]
WRITTEN = {
    "LoHa": peft_library.LoHaConfig(r=3, alpha=2, target_modules=TARGETS),
    "LoHa, effective": peft_library.LoHaConfig(r=3, alpha=2, target_modules=TARGETS, use_effective_conv2d=True),
    "LoHa, patterns": peft_library.LoHaConfig(
        r=3, alpha=2, target_modules=LINEAR, rank_pattern={"to_q": 2}, alpha_pattern={"to_v": 5}
    ),
    "LoKr": peft_library.LoKrConfig(r=2, alpha=3, target_modules=TARGETS),
    "LoKr, effective": peft_library.LoKrConfig(r=1, alpha=3, target_modules=TARGETS, use_effective_conv2d=True),
    "LoKr, both": peft_library.LoKrConfig(r=1, alpha=3, target_modules=TARGETS, decompose_both=True),
    "LoKr, factor": peft_library.LoKrConfig(r=2, alpha=3, target_modules=TARGETS, decompose_factor=8),
    "DoRA": peft_library.LoraConfig(r=3, lora_alpha=2, target_modules=TARGETS, use_dora=True),
    "DoRA, root": peft_library.LoraConfig(
        r=3, lora_alpha=2, target_modules=TARGETS, use_dora=True, use_rslora=True, rank_pattern={"to_q": 2}
    ),
    "OFT": peft_library.OFTConfig(r=4, oft_block_size=0, target_modules=LINEAR, use_cayley_neumann=False),
    "OFT, series": peft_library.OFTConfig(r=0, oft_block_size=8, target_modules=LINEAR),
    "OFT, short series": peft_library.OFTConfig(
        r=0, oft_block_size=8, target_modules=LINEAR, num_cayley_neumann_terms=3
    ),
    "OFT, shared": peft_library.OFTConfig(
        r=4, oft_block_size=0, target_modules=LINEAR, use_cayley_neumann=False, block_share=True
    ),
    "OFT, confined": peft_library.OFTConfig(
        r=4, oft_block_size=0, target_modules=LINEAR, use_cayley_neumann=False, coft=True, eps=0.5
    ),
    "BOFT": peft_library.BOFTConfig(boft_block_size=4, target_modules=TARGETS),
    "BOFT, factors": peft_library.BOFTConfig(
        boft_block_size=0, boft_block_num=8, boft_n_butterfly_factor=2, target_modules=LINEAR
    ),
    "(IA)3": peft_library.IA3Config(target_modules=[*TARGETS, "ff.net.2"], feedforward_modules=["ff.net.2", "conv1"]),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", WRITTEN)
def test_what_peft_saves_predicts_here_what_it_predicts_there(which, tmp_path, monkeypatch):
    # PEFT multiplies butterflies in a CUDA extension alone; the same product, of plain torch, stands in for it.
    there = SimpleNamespace(forward=lambda blocks: [torch.stack([torch.block_diag(*one) for one in blocks])])
    monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: there)
    bb = tiny("sd15")
    unet = peft_library.get_peft_model(copy.deepcopy(bb.denoiser), copy.deepcopy(WRITTEN[which])).eval()
    rng = torch.Generator().manual_seed(3)
    for key, value in unet.named_parameters():
        if value.requires_grad:
            near = 0.5 if "oft_R" in key else 0.1
            value.data.add_(torch.randn(value.shape, generator=rng) * near)
    x = torch.randn(2, 4, 8, 8, generator=rng)
    text = torch.randn(2, 7, bb.denoiser.config.cross_attention_dim, generator=rng)
    time = torch.tensor([300, 700])
    with torch.no_grad():
        plain = bb.denoiser(x, time, text).sample
        said = unet(x, time, text).sample
    unet.save_pretrained(tmp_path)
    back = bring_in(identify(tmp_path), bb)
    assert back.ignored == {}
    with torch.no_grad(), bb.attach(back.concept):
        here = bb.denoiser(x, time, text).sample
    far = float((said - plain).abs().max())
    assert far > 1e-3
    assert float((here - said).abs().max()) < 1e-4 * max(1.0, far)


def test_what_turns_pixels_and_not_weights_is_refused(tmp_path):
    bb = tiny("sd15")
    config = peft_library.OFTConfig(r=4, oft_block_size=0, target_modules=["conv1"], use_cayley_neumann=False)
    peft_library.get_peft_model(copy.deepcopy(bb.denoiser), config).save_pretrained(tmp_path / "a")
    with pytest.raises(FromfewError, match="turns pixels"):
        bring_in(identify(tmp_path / "a"), bb)
    # Ours turns weights there too, as PEFT's BOFT does.
    concept = untouched(bb, "oft", targets=("conv",))
    done = export(concept, bb, "peft", tmp_path / "b")
    assert json.loads((tmp_path / "b" / peft.CONFIG).read_text())["peft_type"] == "BOFT"
    assert verify(concept, bb, done).ok


def test_two_parts_of_one_kind_leave_in_one_adapter(tmp_path):
    bb = tiny("sd15")
    maps = bb.select("text.key", "text.value")
    keys = {path: one for path, one in maps.items() if path.endswith("to_k")}
    values = {path: one for path, one in maps.items() if path not in keys}
    rng = torch.Generator().manual_seed(0)
    parts = {"one": Hadamard.of(keys, 2, 3.0, rng), "two": Hadamard.of(values, 3, 1.0, rng)}
    for part in parts.values():
        strange.random(part, 0.3)
    made = strange.concept(bb, "loha", word=Word.plain("<v>", "red"), **parts)
    done = export(made, bb, "peft", tmp_path / "a")
    found = bring_in(identify(done.changes), bb).concept
    here = {path: part.delta(path) for part in changes(found).values() for path in part.shapes()}
    there = {path: part.delta(path) for part in parts.values() for path in part.shapes()}
    assert here.keys() == there.keys()
    assert all(torch.equal(here[path], there[path]) for path in there)
    assert verify(made, bb, done).concept < 2e-4
    mixed = strange.concept(bb, "loha", one=parts["one"], two=strange.random(Kronecker.of(values, 3, 1.0, rng), 0.3))
    with pytest.raises(FromfewError, match="of one kind"):
        export(mixed, bb, "peft", tmp_path / "b")


def test_a_butterfly_of_several_sizes_has_no_form_there(tmp_path):
    bb = tiny("sd15")
    concept = untouched(bb, "boft", side=4, factors=2)
    part = next(iter(changes(concept).values()))
    path = next(iter(part.blocks))
    part.blocks[path] = (1, *part.blocks[path][1:])
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
