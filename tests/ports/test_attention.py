import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from fromfew.errors import FromfewError
from fromfew.parts.record import Record
from fromfew.ports.attention import AttentionPart, Stream, _grid
from fromfew.testing.contract import predict
from fromfew.testing.tiny import tiny

BASES = ("sd15", "sdxl", "sd3", "flux")


class Watch(AttentionPart):
    """Notes every call and changes nothing."""

    kind = "watch"

    def __init__(self):
        super().__init__()
        self.calls = []

    def config(self):
        return {}

    def qkv(self, call):
        self.calls.append(call)
        return call


class Biased(Watch):
    exclusive = ("probs",)

    def bias(self, call):
        bias = torch.zeros(call.k.shape[2])
        bias[0] = 3.0
        return bias.view(1, 1, 1, -1)


class Slow(Watch):
    exclusive = ("probs",)

    def probs(self, call, p):
        return p


class Mute(Watch):
    def out(self, call, y):
        return y * 0


class Echo(Watch):
    def extra(self, call):
        yield Stream(call.k, call.v, weight=call.strength)


@pytest.mark.parametrize("base", BASES)
def test_every_site_is_caught_once_and_nothing_changes(base):
    bb, watch = tiny(base), Watch()
    plain = predict(bb)
    with bb.attach(watch):
        assert torch.equal(predict(bb), plain)
    assert [call.site.name for call in watch.calls] == list(bb.sites)
    assert torch.equal(predict(bb), plain)


@pytest.mark.parametrize("base", BASES)
def test_text_and_image_tokens_lie_where_the_call_says(base):
    bb, watch = tiny(base), Watch()
    with bb.attach(watch):
        predict(bb)
    for call in watch.calls:
        h, w = call.grid
        assert call.image.stop - call.image.start == h * w
        assert len(call.rows) == len(call.q)
        if call.site.kind == "joint":
            text = call.text.stop - call.text.start
            assert text + h * w == call.q.shape[2]


@pytest.mark.parametrize("base", BASES)
def test_probabilities_asked_for_equal_the_fused_kernel(base):
    bb = tiny(base)
    plain = predict(bb)
    with bb.attach(Slow()):
        assert torch.allclose(predict(bb), plain, atol=1e-5)


def test_biases_streams_and_outputs_act():
    bb = tiny("sd15")
    plain = predict(bb)
    for part in (Biased(), Mute(), Echo()):
        with bb.attach(part):
            assert not torch.allclose(predict(bb), plain, atol=1e-4), part
    assert torch.equal(predict(bb), plain)


def test_biases_sum_whatever_the_order():
    bb = tiny("sd15")

    class Other(Watch):
        def bias(self, call):
            return torch.linspace(0, 1, call.k.shape[2]).view(1, 1, 1, -1)

    seen = []
    for order in ((Biased(), Other()), (Other(), Biased())):
        with bb.attach(*order):
            seen.append(predict(bb))
    assert torch.equal(*seen)


def test_two_parts_that_need_a_stage_alone_are_refused_by_name():
    bb = tiny("sd15")
    with pytest.raises(FromfewError, match="probs"), bb.attach(Slow(), Biased()):
        pass
    assert bb.attached == []


def test_parts_come_off_in_any_order():
    bb = tiny("sd3")
    plain = predict(bb)
    a, b = bb.attach(Echo()), bb.attach(Mute())
    a.__enter__()
    b.__enter__()
    a.__exit__(None, None, None)
    with bb.attach(Mute()):
        pass
    b.__exit__(None, None, None)
    assert torch.equal(predict(bb), plain)
    assert not any("forward" in site.module.__dict__ for site in bb.sites.values())


def test_a_forward_that_was_replaced_before_is_put_back():
    bb = tiny("sd15")
    module = next(iter(bb.sites.values())).module
    before = module.forward
    module.forward = before
    with bb.attach(Watch()):
        predict(bb)
    assert module.__dict__["forward"] == before


def test_a_call_that_is_never_caught_is_an_error():
    bb = tiny("sd15")
    site = next(iter(bb.sites.values()))

    class Other:
        def __call__(self, attn, hidden_states, *args, **kwargs):
            return hidden_states

    kept = site.module.processor
    site.module.processor = Other()
    try:
        with bb.attach(Watch()), pytest.raises(FromfewError, match="native"):
            predict(bb)
    finally:
        site.module.processor = kept


def test_outside_a_prediction_attention_is_left_alone():
    bb, watch = tiny("sd15"), Watch()
    q = torch.randn(1, 1, 4, 8, generator=torch.Generator().manual_seed(0))
    with bb.attach(watch):
        scaled_dot_product_attention(q, q, q)
    assert watch.calls == []


@pytest.mark.parametrize(
    ("latent", "tokens", "grid"),
    [
        ((16, 16), 64, (8, 8)),
        ((16, 32), 128, (8, 16)),
        ((5, 7), 12, (3, 4)),
        ((4, 4), 16, (4, 4)),
        ((4, 4), 7, (1, 7)),
    ],
)
def test_grids_follow_the_latents_shape(latent, tokens, grid):
    assert _grid(latent, tokens) == grid


@pytest.mark.parametrize("base", BASES)
def test_recorded_maps_are_attention_of_the_word(base):
    bb, record = tiny(base), Record(("cat", "elsewhere"), least=1)
    with bb.attach(record) as there, torch.no_grad():
        text = bb.embed(["a cat", "a dog"])
        xt = torch.randn(2, *bb.latent_shape(), generator=torch.Generator().manual_seed(0))
        bb.predict(xt, torch.full((2,), 0.5), text)
        maps = record.read(there, text)
        assert record.read(there, text) == {}, "a record is read once"
    assert maps["cat"].dim() == 3
    assert bool((maps["cat"][0] > 0).all()), "every place reads the word a little"
    assert float(maps["cat"].max()) <= 1
    assert not bool(maps["cat"][1].any()), "the second prompt has no cat"
    assert not bool(maps["elsewhere"].any())
