from dataclasses import replace

import pytest
import torch
from torch import nn

from fromfew.cut_mix import Thing, cut_mix
from fromfew.data import Batch
from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.losses import unmixed
from fromfew.method import find
from fromfew.parts.spectral import Spectral, spectrum
from fromfew.ports.linear import flat
from fromfew.stage import Step
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 3, "batch": 2, "lr": 1e-2, "thin_lr": 1e-3, "encoder_lr": 1e-3, "prior": 0.0, "views": 2}


def two():
    return replace(few_photos(), also=(replace(few_photos(2, noun="dog"), placeholder="<w>"),))


def test_no_shift_is_the_base_bit_for_bit():
    bb = tiny("sd15")
    parts = find("svdiff")(**QUICK).parts(bb, few_photos(), generator(0))
    plain = predict(bb, prompt="a cat")
    with bb.attach(parts), torch.no_grad():
        assert torch.equal(predict(bb, prompt="a cat"), plain)


def test_values_below_zero_are_cut_off():
    weight = nn.Conv2d(6, 8, 3).weight
    part = Spectral({"map.weight": tuple(weight.shape)}).requires_grad_(False)
    part.shifts[flat("map.weight")].copy_(-2 * spectrum(weight)[1])
    assert float((weight + part.delta_of("map.weight", weight)).detach().norm()) < 1e-5


def test_after_learning_singular_vectors_are_the_bases():
    bb = tiny("sd15")
    part = find("svdiff")(**QUICK).learn(bb, few_photos()).parts.denoiser
    for path in list(part.shapes())[:12]:
        base = bb.parameter(path)
        u, values, v = spectrum(base)
        turned = u.T @ (base + part.delta_of(path, base)).flatten(1) @ v.T
        assert float((turned - turned.diag().diag()).abs().max()) < 1e-4 * float(values.max())
        assert not torch.allclose(turned.diag(), values, atol=1e-4)


def test_every_weight_of_the_denoiser_is_counted_once_and_no_bias():
    bb = tiny("sd15")
    parts = find("svdiff")(**QUICK).parts(bb, few_photos(), generator(0))
    wanted = 0
    for name, value in bb.denoiser.named_parameters():
        if value.dim() > 1 or name.endswith("weight"):
            wanted += value.numel() if value.dim() == 1 else min(value.shape[0], value[0].numel())
    assert parts.count() == wanted


def test_a_spectrum_is_computed_once_and_again_when_the_weight_changes(monkeypatch):
    weight = nn.Linear(4, 5).weight
    first = spectrum(weight)
    assert spectrum(weight) is first
    with torch.no_grad():
        weight.mul_(2)
    assert torch.allclose(spectrum(weight)[1], 2 * first[1], atol=1e-5)


def things(masks=False):
    def source(colour):
        def of(rng):
            images = torch.full((2, 3, 8, 8), colour)
            images[..., 2:6] = -colour
            return Batch(images, torch.ones(2, 1, 8, 8), ["alone"] * 2, ["photo"] * 2, [(colour, 0), (colour, 1)])

        return of

    return [Thing(source(0.5), "<v> cat", "<v>"), Thing(source(0.25), "<w> apple", "<w>")]


def test_joined_pictures_show_each_thing_in_its_half_and_say_which():
    batch = cut_mix(things(), share=1.0)(generator(0))
    assert len(batch) == 4
    seen = set()
    for row in range(4):
        halves = [float(batch.images[row, 0, 0, column]) for column in (0, 7)]
        first = batch.regions[row]["<v>"]
        left = halves[0] == -0.5
        assert halves == ([-0.5, -0.25] if left else [-0.25, -0.5])
        assert torch.equal(first[0, 0], torch.tensor(([1.0] * 4 + [0.0] * 4) if left else [0.0] * 4 + [1.0] * 4))
        assert torch.equal(first + batch.regions[row]["<w>"], torch.ones(1, 8, 8))
        names = ["a <v> cat", "an <w> apple"] if "an <w>" in batch.captions[row] else ["a <v> cat", "a <w> apple"]
        order = [batch.captions[row].index(name) for name in names]
        assert (order == sorted(order)) is left
        seen.add("on the left" in batch.captions[row])
        assert batch.keys[row] is not None
    assert cut_mix(things(), share=0.0)(generator(0)).captions == ["alone"] * 4
    said = [caption for step in range(10) for caption in cut_mix(things(), share=0.6)(generator(0, step)).captions]
    assert 0.3 < sum("photo" in one for one in said) / len(said) < 0.9
    assert any("on the left" in one for one in said)
    assert any(one != "alone" and "on the left" not in one for one in said)


def test_the_half_that_is_kept_holds_the_mask():
    first, second = things()

    def aside(rng):
        batch = first.source(rng)
        masks = torch.zeros(2, 1, 8, 8)
        masks[..., 6:] = 1
        return replace(batch, masks=masks)

    batch = cut_mix([replace(first, source=aside), second], share=1.0)(generator(1))
    for row in range(len(batch)):
        own = batch.regions[row]["<v>"][0, 0] > 0
        assert float(batch.masks[row, 0, 0, own].sum()) == 2
    with pytest.raises(FromfewError, match="two or more"):
        cut_mix([first])


def test_the_unmix_term_is_what_lies_on_the_others_half():
    left = torch.zeros(1, 4, 4)
    left[..., :2] = 1
    maps = {"cat": torch.zeros(2, 4, 4, requires_grad=True)}
    with torch.no_grad():
        maps["cat"][0, :, 0] = 0.2
        maps["cat"][0, 1, 3] = 0.1
    batch = Batch(torch.zeros(2, 3, 4, 4), None, ["", ""], ["photo"] * 2, [None] * 2, regions=[{"<v>": left}, {}])
    step = Step(*[torch.zeros(2, 1)] * 6, text=None, rows=None, batch=batch, maps=maps)
    term = unmixed({"<v>": "cat"})(step)
    assert term.tolist() == pytest.approx([0.25 / 16, 0.0])
    term.sum().backward()
    assert float(maps["cat"].grad[0, 1, 3]) > 0


@pytest.mark.parametrize("modifier", ["rare", "word"])
def test_two_subjects_are_learned_in_halves_and_kept_apart(modifier):
    bb = tiny("sd15")
    method = find("svdiff")(**QUICK, modifier=modifier)
    [stage] = method.stages(bb, two(), method.parts(bb, two(), generator(0)))
    [stage_without] = replace(method, unmix=0.0).stages(bb, two(), method.parts(bb, two(), generator(0)))
    assert len(stage.terms) == len(stage_without.terms) + 1
    assert len(stage.record) == 2
    assert stage_without.record == ()
    one, other = method.learn(bb, two()), replace(method, unmix=5.0).learn(bb, two())
    assert not torch.equal(*(next(iter(c.parts.denoiser.parameters())) for c in (one, other)))
    assert any("on the left" in caption for step in range(6) for caption in stage.batches(generator(0, step)).captions)
