import pytest
import torch

from fromfew.backbones.text import Text
from fromfew.guidance import CFG, Distilled, Rescaled

RNG = torch.Generator().manual_seed(0)
PREDS = {name: torch.randn(2, 4, 8, 8, generator=RNG) for name in ("uncond", "cond")}
T = torch.tensor(0.5)


def test_cfg_goes_from_the_unconditional_through_the_conditional_prediction():
    torch.testing.assert_close(CFG(0.0)(PREDS, T), PREDS["uncond"])
    torch.testing.assert_close(CFG(1.0)(PREDS, T), PREDS["cond"])
    torch.testing.assert_close(CFG(3.0)(PREDS, T), 3 * PREDS["cond"] - 2 * PREDS["uncond"])


def test_a_scale_of_one_asks_for_one_branch():
    assert CFG(1.0).branches == ("cond",)
    assert CFG(2.0).branches == ("uncond", "cond")


def test_rescaled_guidance_has_the_spread_of_the_conditional_prediction():
    guided = Rescaled(7.5, 1.0)(PREDS, T)
    torch.testing.assert_close(guided.std((1, 2, 3)), PREDS["cond"].std((1, 2, 3)))
    torch.testing.assert_close(Rescaled(7.5, 0.0)(PREDS, T), CFG(7.5)(PREDS, T))


def test_a_distilled_model_is_told_the_scale_in_one_branch():
    text = Distilled(3.5).dress(Text(("a", "b"), torch.zeros(2, 4, 8)))
    assert text.extra["guidance"].tolist() == pytest.approx([3.5, 3.5])
    assert Distilled(3.5).branches == ("cond",)
    torch.testing.assert_close(Distilled(3.5)(PREDS, T), PREDS["cond"])


def test_the_negative_prompt_is_read_on_the_unconditional_branch_only():
    assert CFG(3.0).prompt("uncond", "a cat", None) is None
    assert CFG(3.0).prompt("uncond", "a cat", "blurry") == "blurry"
    assert CFG(3.0).prompt("cond", "a cat", "blurry") == "a cat"
