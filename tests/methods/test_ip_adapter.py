from dataclasses import replace

import pytest
import torch

from fromfew.data import photo_batches
from fromfew.errors import FromfewError
from fromfew.fit import fit, generator, look
from fromfew.method import find
from fromfew.ports.part import Parts
from fromfew.testing.contract import few_photos, predict, quick
from fromfew.testing.eye import tiny_eye
from fromfew.testing.tiny import tiny


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    return tiny_eye(tmp_path_factory.mktemp("eye"))


@pytest.mark.parametrize("plus", [False, True])
def test_another_photo_gives_another_picture(plus, tmp_path):
    bb, refs = tiny("sd15"), few_photos()
    method = quick(find("ip-adapter")(plus=plus), bb, tmp_path)
    seen = []
    for photo in refs.photos[:2]:
        with bb.attach(method.learn(bb, replace(refs, photos=(photo,)))):
            seen.append(predict(bb, prompt="a cat"))
    assert (seen[0] - seen[1]).abs().max() > 1e-4


def test_untrained_maps_already_act_so_the_stream_is_wired(eye):
    bb = tiny("sd15")
    method = find("ip-adapter")(eye=eye)
    parts = method.read(bb, few_photos(), method.fresh(bb))
    plain = predict(bb, prompt="a cat")
    with bb.attach(parts):
        assert not torch.allclose(predict(bb, prompt="a cat"), plain, atol=1e-4)


def test_maps_begin_as_copies_of_the_texts_own(eye):
    bb = tiny("sd15")
    stream = find("ip-adapter")(eye=eye).fresh(bb)["stream"]
    for path, own in bb.select("text.key").items():
        assert torch.equal(stream.key[path.rsplit(".", 1)[0].replace(".", "/")], own.weight)


def test_the_unconditional_branch_reads_what_dropped_rows_read_in_training(eye):
    bb = tiny("sd15")
    method = find("ip-adapter")(eye=eye, drop=1.0)
    modules = method.fresh(bb)
    stream = method.read(bb, few_photos(), modules).stream
    batch = photo_batches(few_photos(), size=bb.default_size, batch=2)(generator(0))
    attach = method.pretrain(bb, modules, lambda rng: batch, steps=1).attach
    dropped = attach(batch, generator(0)).stream
    assert torch.allclose(dropped.rows[0], stream.nothing[0], atol=1e-6)
    plain = predict(bb, prompt="a cat", branches=("uncond",))
    with bb.attach(stream):
        assert not torch.equal(predict(bb, prompt="a cat", branches=("uncond",)), plain)


def test_pretraining_lowers_the_loss_and_trains_the_adapter_only(eye):
    bb, refs = tiny("sd15"), few_photos()
    before = bb.fingerprint(afresh=True)
    method = find("ip-adapter")(eye=eye)
    modules = method.fresh(bb)
    began = {name: value.clone() for name, value in modules.state_dict().items()}
    batches = photo_batches(refs, size=bb.default_size, batch=2, variants=1)
    stage = method.pretrain(bb, modules, batches, steps=25, lr=5e-3)
    first = look(bb, Parts(), stage, seed=5)
    fit(bb, Parts(), stage, rng=generator(0))
    assert look(bb, Parts(), stage, seed=5) < first
    still = [n for n, v in modules.state_dict().items() if torch.equal(v, began[n]) and v.numel() > 1 and bool(v.any())]
    assert still == []
    assert bb.fingerprint(afresh=True) == before


def test_weights_that_are_missing_or_of_other_settings_are_refused(eye, tmp_path):
    bb, refs = tiny("sd15"), few_photos()
    with pytest.raises(FromfewError, match="no weights for this base"):
        find("ip-adapter")(eye=eye).learn(bb, refs)
    method = quick(find("ip-adapter")(), bb, tmp_path)
    with pytest.raises(FromfewError, match="do not fit"):
        replace(method, tokens=7).learn(bb, refs)
    with pytest.raises(FromfewError, match=r"cannot be opened|no image encoder"):
        replace(method, eye=str(tmp_path / "nowhere")).learn(bb, refs)


def test_several_photos_are_averaged(tmp_path):
    bb, refs = tiny("sd15"), few_photos()
    method = quick(find("ip-adapter")(), bb, tmp_path)
    alone = [method.learn(bb, replace(refs, photos=(photo,))).parts.stream.tokens for photo in refs.photos]
    together = method.learn(bb, refs).parts.stream.tokens
    assert torch.allclose(torch.stack(alone).mean(0), together, atol=1e-5)
