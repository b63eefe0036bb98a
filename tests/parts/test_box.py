import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.make import make
from fromfew.parts.box import Box
from fromfew.ports.sampler import SamplerPart
from fromfew.testing.part_checks import PART_CHECKS
from fromfew.testing.tiny import tiny

LEFT = (0.0, 0.0, 0.5, 1.0)


class Shares(SamplerPart):
    """Notes how much of a word's map lies in a box after every step."""

    kind = "shares"

    def __init__(self, word, box):
        super().__init__()
        self.word, self.box, self.seen = word, Box(word, box), []

    def config(self):
        return {}

    def after(self, moment):
        maps = moment.maps(moment.x, (self.word,), 16)[self.word]
        self.seen.append(1 - self.box.outside(maps).sqrt())
        return moment.x


def test_the_loss_is_the_squared_share_outside():
    box = Box("cat", LEFT)
    maps = torch.zeros(3, 4, 4)
    maps[0, :, :2] = 1.0
    maps[1, :, 2:] = 0.5
    maps[2] = 1.0
    assert torch.allclose(box.outside(maps), torch.tensor([0.0, 1.0, 0.25]))
    assert box.outside(torch.zeros(1, 4, 4)).item() == 0


@pytest.mark.parametrize("base", ["sd15", "sd3"])
def test_more_of_the_word_is_read_from_its_box_than_without(base):
    bb = tiny(base)
    shares = []
    for scale in (0.0, 3000.0):
        note = Shares("cat", LEFT)
        make(bb, ["a cat", "a dog beside a cat"], [Box("cat", LEFT, scale=scale, stop=0.0, until=1.0), note], steps=4)
        shares.append(note.seen[-1])
    assert (shares[1] > shares[0]).all()


def test_pictures_without_the_word_or_already_right_stay_bit_for_bit():
    bb = tiny("sd15")
    plain = make(bb, ["a dog", "a cat"], steps=2).latents
    moved = make(bb, ["a dog", "a cat"], Box("cat", LEFT, scale=300, stop=0.0, until=1.0), steps=2).latents
    assert torch.equal(moved[0], plain[0])
    assert not torch.equal(moved[1], plain[1])
    calm = make(bb, ["a dog", "a cat"], Box("cat", LEFT, scale=300, stop=1.0, until=1.0), steps=2).latents
    assert torch.equal(calm, plain)


def test_only_the_first_steps_are_moved():
    class Count(SamplerPart):
        kind = "count"

        def __init__(self):
            super().__init__()
            self.seen = []

        def config(self):
            return {}

        def before(self, moment):
            self.seen.append(moment.x.clone())
            return moment.x

    bb, runs = tiny("sd15"), []
    for until in (0.5, 0.0):
        before, after = Count(), Count()
        make(bb, "a cat", [before, Box("cat", LEFT, scale=300, stop=0.0, until=until), after], steps=4)
        runs.append([bool((a != b).any()) for a, b in zip(before.seen, after.seen, strict=True)])
    assert runs == [[True, True, False, False], [False] * 4]


def test_the_part_comes_back_and_what_cannot_be_is_refused():
    part = Box("cat", LEFT)
    PART_CHECKS["part_comes_back_from_its_configuration"](part, tiny("sd15"), False, "a cat")
    for box, how in (((0, 0, 0, 1), {}), ((0, 0, 2, 1), {}), (LEFT, {"inner": 0}), (LEFT, {"until": 2})):
        with pytest.raises(FromfewError, match=r"box|Box"):
            Box("cat", box, **how)
