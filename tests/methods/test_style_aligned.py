from dataclasses import replace

import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.make import make
from fromfew.method import find
from fromfew.parts.share import ShareFirst
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

BASES = ("sd15", "sd3", "flux")


def draw(bb, prompts, concepts=(), **how):
    return make(bb, prompts, concepts, **{"steps": 2, **how}).latents


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("norms", [False, True])
def test_the_first_picture_is_the_bases_bit_for_bit(base, norms):
    bb = tiny(base)
    concept = find("style-aligned")(norms=norms).learn(bb)
    assert torch.equal(draw(bb, ["a cat"], concept), draw(bb, ["a cat"]))
    assert torch.equal(draw(bb, ["a cat", "a dog"], concept)[0], draw(bb, ["a cat", "a dog"])[0])


@pytest.mark.parametrize("base", BASES)
def test_with_everything_off_every_picture_is_the_bases(base):
    bb = tiny(base)
    off = ShareFirst(match=False, shift=-1e9)
    plain = predict(bb, rows=3, branches=("uncond", "cond"))
    with bb.attach(off):
        assert torch.allclose(predict(bb, rows=3, branches=("uncond", "cond")), plain, atol=1e-5)


def test_both_guidance_branches_follow_their_own_first_picture():
    bb = tiny("sd15")
    with bb.attach(ShareFirst()):
        both = predict(bb, rows=3, branches=("uncond", "cond"))
        one = predict(bb, rows=3, branches=("cond",))
    assert torch.allclose(both[3:], one, atol=1e-5)


def test_pictures_depend_on_the_first_and_on_no_other():
    bb = tiny("sd15")
    concept = find("style-aligned")().learn(bb)
    a = draw(bb, ["a cat", "a dog", "a lamp"], concept)
    b = draw(bb, ["a cat", "a dog", "a boat"], concept)
    c = draw(bb, ["a boat", "a dog", "a lamp"], concept)
    assert torch.equal(a[1], b[1])
    assert not torch.allclose(a[1], c[1], atol=1e-4)


def test_a_photo_leads_and_is_left_out_of_the_result():
    bb, refs = tiny("sd15"), few_photos()
    made = []
    for photo in refs.photos[:2]:
        concept = find("style-aligned")().learn(bb, replace(refs, photos=(photo,), role="style"))
        made.append(draw(bb, ["a cat", "a dog"], concept))
    assert len(made[0]) == 2
    assert (made[0] - made[1]).abs().max() > 1e-4
    whole = draw(bb, ["a cat", "a dog"], concept)
    assert torch.allclose(whole, torch.cat([draw(bb, ["a cat", "a dog"], concept, batch=1)]), atol=2e-4)


def test_the_lead_is_asked_for_the_noun_and_not_for_what_its_photo_shows():
    refs = few_photos(1, noun="style")
    refs = replace(refs, role="style", photos=(replace(refs.photos[0], caption="a cat in the city"),))
    bb = tiny("sd15")
    assert find("style-aligned")().learn(bb, refs).parts.lead.lead == "a style"
    assert find("style-aligned")(prompt="a cat in ink").learn(bb, refs).parts.lead.lead == "a cat in ink"


def test_the_lead_is_the_photo_at_every_noise_level():
    from fromfew.parts.lead import Lead
    from fromfew.ports.sampler import Moment
    from fromfew.rows import Rows

    bb = tiny("sd15")
    photo = torch.randn(1, *bb.latent_shape(), generator=torch.Generator().manual_seed(0))
    part = Lead.showing("a cat", photo)
    x, noise = (torch.randn(3, *bb.latent_shape(), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    image = torch.tensor([-1, 0, 1])
    rows = Rows.of(image, ("cond",), torch.tensor(0.3))
    moment = Moment(0, 5, 0.3, 0.2, x, noise, image, bb.path, dict, dict, bb.embed([""]), rows)
    new = part.before(moment)
    assert torch.equal(new[1:], x[1:])
    assert torch.allclose(new[:1], bb.path.mix(photo, noise[:1], torch.tensor([0.3])))


def test_pictures_of_another_size_than_the_photo_are_refused_with_the_reason():
    bb, refs = tiny("sd15"), few_photos(1)
    concept = find("style-aligned")().learn(bb, refs)
    with pytest.raises(FromfewError, match="own size"):
        draw(bb, ["a cat"], concept, size=(bb.default_size, 2 * bb.default_size))
