import json
from dataclasses import dataclass

import pytest
import torch

from fromfew.backbones.twins import TWINS
from fromfew.errors import FromfewError
from fromfew.guidance import CFG
from fromfew.make import make, noise_of
from fromfew.parts.low_rank import LowRank
from fromfew.parts.word import Word
from fromfew.ports.part import Parts
from fromfew.ports.sampler import Moment, SamplerPart
from fromfew.testing.tiny import tiny

PROMPTS = ["a cat on the beach", "a dog in the snow", "a lamp"]


@pytest.fixture(scope="module")
def bb():
    return tiny("sd15")


def low_rank(bb, seed=0, size=0.5):
    """A low-rank part with something in it."""
    rng = torch.Generator().manual_seed(seed)
    part = LowRank.of(bb.select("text.key", "text.value", "self.value"), 2, 2.0, rng)
    with torch.no_grad():
        for up in part.up.values():
            up.copy_(torch.randn(up.shape, generator=rng) * size)
    return part


def word(bb, placeholder, seed):
    part = Word.learned(bb, placeholder, "cat", 1, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        for vector in part.vectors.values():
            vector.add_(torch.randn(vector.shape, generator=torch.Generator().manual_seed(seed)))
    return part


@pytest.mark.parametrize("name", TWINS)
def test_picture_i_of_a_batch_equals_picture_i_alone(name):
    bb = tiny(name)
    together = make(bb, PROMPTS, low_rank(bb), steps=3, seed=5)
    one_by_one = make(bb, PROMPTS, low_rank(bb), steps=3, seed=5, batch=1)
    alone = make(bb, PROMPTS[2], low_rank(bb), steps=3, seed=5, first=2)
    torch.testing.assert_close(together.tensor, one_by_one.tensor, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.tensor[2:], alone.tensor, atol=1e-5, rtol=0)


def test_the_noise_of_a_picture_depends_on_seed_and_index_only():
    assert torch.equal(noise_of(1, 2, (4, 8, 8)), noise_of(1, 2, (4, 8, 8)))
    assert not torch.equal(noise_of(1, 2, (4, 8, 8)), noise_of(1, 3, (4, 8, 8)))
    assert not torch.equal(noise_of(1, 2, (4, 8, 8)), noise_of(2, 2, (4, 8, 8)))


def test_drawing_twice_gives_the_same_bits_and_leaves_the_global_rng_alone(bb):
    state = torch.random.get_rng_state()
    first, second = make(bb, PROMPTS, steps=2), make(bb, PROMPTS, steps=2)
    assert torch.equal(first.tensor, second.tensor)
    assert torch.equal(state, torch.random.get_rng_state())


def test_seed_negative_guidance_steps_and_sampler_matter(bb):
    base = make(bb, "a cat", steps=3).tensor
    for change in ({"seed": 1}, {"negative": "a dog"}, {"guidance": 3.0}, {"steps": 4}, {"sampler": "ddim"}):
        assert not torch.allclose(base, make(bb, "a cat", **({"steps": 3} | change)).tensor, atol=1e-4), change


def test_size_is_height_and_width(bb):
    drawn = make(bb, "a cat", steps=1, size=(48, 32))
    assert drawn.tensor.shape == (1, 3, 48, 32)
    assert drawn.pil[0].size == (32, 48)
    assert make(bb, "a cat", steps=1, size=16).tensor.shape == (1, 3, 16, 16)


def test_watch_hears_of_every_step_of_every_batch(bb):
    heard = []
    make(bb, PROMPTS, steps=2, batch=2, watch=lambda i, n: heard.append((i, n)))
    assert heard == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_provenance_tells_everything_and_is_json(bb):
    drawn = make(bb, PROMPTS, (low_rank(bb), 0.5), steps=2, seed=7, negative="blurry", guidance=3.0, sampler="ddim")
    told = json.loads(json.dumps(drawn.provenance))[1]
    expected = {
        "prompt": PROMPTS[1], "negative": "blurry", "seed": 7, "index": 1, "steps": 2,
        "guidance": "CFG(scale=3.0)",
        "sampler": "ddim", "size": [32, 32], "base": "tiny-sd15", "fingerprint": bb.fingerprint(),
    }  # fmt: skip
    assert expected.items() <= told.items()
    assert told["concepts"][0]["strength"] == 0.5
    assert {"fromfew", "torch", "diffusers"} <= told["versions"].keys()
    assert len(drawn) == len(list(drawn)) == 3


@dataclass(frozen=True)
class Three(CFG):
    """Cond, uncond and an empty one, to be combined by hand."""

    branches = ("uncond", "cond", "plain")

    def prompt(self, branch, prompt, negative):
        return {"uncond": negative, "cond": prompt, "plain": ""}[branch]

    def __call__(self, preds, t):
        return preds["uncond"] + self.scale * (preds["cond"] - preds["plain"])


@pytest.mark.parametrize("name", TWINS)
def test_a_guide_may_ask_for_any_number_of_branches(name):
    bb = tiny(name)
    three = make(bb, PROMPTS[:2], guidance=Three(3.0), steps=2)
    two = make(bb, PROMPTS[:2], guidance=CFG(3.0), steps=2)
    # "plain" reads the same as "uncond", unless no prompt at all is read as zeros
    assert torch.allclose(three.tensor, two.tensor, atol=1e-4) is (name != "sdxl")


def test_a_strength_of_zero_is_the_base_and_pairs_and_scaled_agree(bb):
    part = low_rank(bb)
    base = make(bb, "a cat", steps=2).tensor
    assert torch.equal(make(bb, "a cat", [(part, 0.0)], steps=2).tensor, base)
    full, half = make(bb, "a cat", part, steps=2).tensor, make(bb, "a cat", [(part, 0.5)], steps=2).tensor
    assert not torch.allclose(full, base, atol=1e-4)
    assert not torch.allclose(half, full, atol=1e-4)
    assert torch.equal(make(bb, "a cat", (part, 0.5), steps=2).tensor, half)


def test_several_concepts_at_once_each_with_its_own_word(bb):
    first, second = word(bb, "<a>", 1), word(bb, "<b>", 2)
    both = make(bb, "a <a> cat and <b>", [first, (Parts(word=second), 1.0), low_rank(bb)], steps=2)
    one = make(bb, "a <a> cat and <b>", [first, low_rank(bb)], steps=2)
    assert both.warnings == ()
    assert one.warnings == ("'<b>' names no concept that is attached; it is read as plain text",)
    assert not torch.allclose(both.tensor, one.tensor, atol=1e-4)


def test_two_concepts_of_one_name_are_refused_and_nothing_stays(bb):
    with pytest.raises(FromfewError, match="<a>"):
        make(bb, "a <a>", [word(bb, "<a>", 1), word(bb, "<a>", 2)], steps=1)
    assert bb.attached == []


def test_an_exception_in_the_middle_leaves_the_model_as_it_was(bb):
    base, print_ = make(bb, "a cat", steps=2).tensor, bb.fingerprint(afresh=True)

    def stop(i, n):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(bb, "a <a> cat", [low_rank(bb), word(bb, "<a>", 1)], steps=2, watch=stop)
    assert bb.attached == []
    assert bb.now is None
    assert bb.fingerprint(afresh=True) == print_
    assert torch.equal(make(bb, "a cat", steps=2).tensor, base)


class Diary(SamplerPart):
    """Writes down when it is asked, and what it is told."""

    kind = "diary"
    couples_images = False

    def __init__(self, lead=None):
        super().__init__()
        self.lead, self.pages, self.images = lead, [], []

    def config(self):
        return {}

    def note(self, moment: Moment, name: str):
        self.pages.append((name, moment.step))
        self.images.append(moment.image.tolist())
        moment.state["times"] = [*moment.state.get("times", []), moment.t]
        assert moment.x.shape == moment.noise.shape
        return moment.x

    def start(self, moment):
        return self.note(moment, "start")

    def before(self, moment):
        return self.note(moment, "before")

    def guide(self, moment, pred):
        self.note(moment, "guide")
        return pred

    def after(self, moment):
        assert all(a >= b for a, b in zip(moment.state["times"], moment.state["times"][1:], strict=False))
        return self.note(moment, "after")


def test_sampler_parts_are_asked_in_order_and_see_the_pictures(bb):
    diary = Diary()
    with_it = make(bb, PROMPTS, diary, steps=2, batch=2)
    one = [("start", 0), ("before", 0), ("guide", 0), ("after", 0), ("before", 1), ("guide", 1), ("after", 1)]
    assert diary.pages == one * 2
    assert diary.images == [[0, 1]] * 7 + [[2]] * 7
    assert torch.equal(with_it.tensor, make(bb, PROMPTS, steps=2, batch=2).tensor)


def test_parts_that_couple_pictures_get_all_of_them_at_once(bb):
    diary = Diary()
    diary.couples_images = True
    make(bb, PROMPTS, diary, steps=1, batch=1)
    assert diary.images == [[0, 1, 2]] * 4


def test_a_lead_is_drawn_first_in_every_batch_and_left_out(bb):
    diary = Diary(lead="a toy")
    drawn = make(bb, PROMPTS, diary, steps=1, batch=2)
    assert diary.images == [[-1, 0, 1]] * 4 + [[-1, 2]] * 4
    assert len(drawn) == 3
    torch.testing.assert_close(drawn.tensor, make(bb, PROMPTS, steps=1).tensor, atol=1e-5, rtol=0)


class Nudge(SamplerPart):
    """Moves the latents along a gradient of the prediction, as guidance by attention maps does."""

    kind = "nudge"

    def config(self):
        return {}

    def before(self, moment):
        with torch.enable_grad():
            x = moment.x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(moment.predict(x)["cond"].square().sum(), x)
        return moment.x - 0.01 * gradient


@pytest.mark.parametrize("name", TWINS)
def test_a_sampler_part_may_follow_a_gradient(name):
    bb = tiny(name)
    assert not torch.equal(make(bb, "a cat", Nudge(), steps=2).tensor, make(bb, "a cat", steps=2).tensor)


def test_words_that_do_not_fit_are_named_never_dropped_silently(bb):
    drawn = make(bb, "a cat " * 60 + "zebra", steps=1)
    assert len(drawn.warnings) == 1
    assert "zebra" in drawn.warnings[0].replace(" ", "")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"sampler": "ddmi"}, "'ddim'"),
        ({"size": 33}, "multiples of 2; try 32"),
        ({"steps": 0}, "at least one step"),
        ({"latents": torch.zeros(1, 4, 3, 3)}, "need noise of shape"),
        ({"prompts": []}, "no prompt"),
    ],
)
def test_what_does_not_fit_is_said(bb, wrong, says):
    with pytest.raises(FromfewError, match=says):
        make(bb, wrong.pop("prompts", "a cat"), **wrong)


def test_ddim_does_not_fit_a_flow_model():
    with pytest.raises(FromfewError, match="'euler' or 'dpm\\+\\+'"):
        make(tiny("flux"), "a cat", sampler="ddim")
