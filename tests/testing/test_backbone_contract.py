import pytest
import torch

from fromfew.backbones.twins import TWINS
from fromfew.errors import FromfewError
from fromfew.testing.backbone_contract import (
    CHECKS,
    check_backbone,
    model_is_frozen,
    taps_catch_every_site_once,
)
from fromfew.testing.tiny import tiny


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", TWINS)
def test_every_twin_keeps_the_contract(name, check):
    check(tiny(name))


def test_check_backbone_runs_every_check():
    assert check_backbone(tiny("sd15")) == [check.__name__ for check in CHECKS]


def test_the_contract_notices_a_site_that_is_not_reached():
    bb = tiny("sd15")
    first = next(iter(bb.sites))
    bb.sites = {name: site for name, site in bb.sites.items() if name != first} | {first: bb.sites[first]}
    with pytest.raises(AssertionError, match="were caught as"):
        taps_catch_every_site_once(bb)


def test_the_contract_notices_a_model_left_training():
    bb = tiny("sd15")
    bb.denoiser.train()
    with pytest.raises(AssertionError, match="training mode"):
        model_is_frozen(bb)


def test_twins_are_the_same_numbers_every_time_and_leave_the_global_rng_alone():
    state = torch.random.get_rng_state()
    first, second = tiny("sd15").fingerprint(), tiny("sd15").fingerprint()
    assert first == second
    assert torch.equal(state, torch.random.get_rng_state())


def test_an_unknown_twin_is_answered_with_the_nearest():
    with pytest.raises(FromfewError, match="'sdxl'"):
        tiny("sdx")


@pytest.mark.parametrize("name", TWINS)
def test_the_tokenizers_of_the_twins_know_common_words_whole(name):
    for encoder in tiny(name).text_encoders.values():
        ids = encoder.tokenizer("a photo of a red cat on the beach", add_special_tokens=False).input_ids
        assert len(ids) == 9
