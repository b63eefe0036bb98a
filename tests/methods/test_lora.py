import torch

from fromfew.fit import generator
from fromfew.method import find
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 1, "lr": 2e-2, "encoder_lr": 2e-2}


def test_at_the_start_it_is_the_base_bit_for_bit():
    bb = tiny("sd15")
    parts = find("lora")(**QUICK, rank=3, encoder=True).parts(bb, few_photos(), generator(0))
    plain = predict(bb, prompt="a cat")
    with bb.attach(parts):
        assert torch.equal(predict(bb, prompt="a cat"), plain)


def test_no_change_has_more_than_its_rank():
    bb = tiny("sd15")
    part = find("lora")(**QUICK, rank=3).learn(bb, few_photos()).parts.denoiser
    ranks = [int(torch.linalg.matrix_rank(part.delta(path))) for path in part.targets()]
    assert max(ranks) <= 3
    assert min(ranks) >= 1


def test_targets_are_the_maps_asked_for():
    bb = tiny("sd15")
    method = find("lora")(**QUICK, rank=2, targets=("text.key", "text.value"))
    assert set(method.learn(bb, few_photos()).parts.denoiser.targets()) == set(bb.select("text.key", "text.value"))


def test_half_the_alpha_is_half_the_change():
    bb = tiny("sd15")
    whole, half = (
        find("lora")(**QUICK, rank=4, alpha=a).parts(bb, few_photos(), generator(0)).denoiser for a in (4.0, 2.0)
    )
    for part in (whole, half):
        for value in part.up.values():
            value.data.fill_(0.1)
    for path in whole.targets():
        assert torch.allclose(half.delta(path), whole.delta(path) / 2)


def test_a_concept_is_stronger_the_more_strength_it_gets():
    bb = tiny("sd15")
    concept = find("lora")(**QUICK, rank=4, text="cat", modifier="text").learn(bb, few_photos())
    plain = predict(bb, prompt="a cat cat")
    far = []
    for strength in (0.0, 0.25, 0.5, 1.0):
        with bb.attach(concept.scaled(strength)):
            far.append(float((predict(bb) - plain).norm()))
    assert far[0] == 0
    assert far == sorted(far)


def test_two_concepts_at_once_answer_to_their_own_placeholders():
    from dataclasses import replace

    bb, refs = tiny("sd15"), few_photos()
    one = find("lora")(**QUICK, rank=2, modifier="word").learn(bb, refs)
    two = find("lora")(**QUICK, rank=2, modifier="word").learn(bb, replace(refs, placeholder="<w>"), seed=1)
    with bb.attach(one, two):
        both = predict(bb, prompt="a <v> cat and a <w> cat")
        text = bb.embed(["a <v> cat and a <w> cat"])
        assert text.where(0, "<v>") < text.where(0, "<w>")
    with bb.attach(two, one):
        assert torch.allclose(predict(bb, prompt="a <v> cat and a <w> cat"), both, atol=1e-5)
