"""check_backbone: what every backbone promises, checked on one."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from fromfew.backbones.base import Backbone
from fromfew.backbones.text import Text
from fromfew.ports.attention import AttentionPart, Call, Site
from fromfew.rows import Rows


class _Count(AttentionPart):
    """Counts every call that is caught, and notes what it was told about it."""

    kind = "count"

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Call] = []

    def config(self) -> dict[str, object]:
        return {}

    def qkv(self, call: Call) -> Call:
        self.seen.append(call)
        return call


def _inputs(bb: Backbone, rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Text]:
    rng = Generator().manual_seed(seed)
    xt = torch.randn(rows, *bb.latent_shape(), generator=rng).to(bb.device, bb.dtype)
    return xt, bb.path.draw(rows, rng).to(bb.device), bb.embed(["a red cat"] * rows)


def noise_path_is_consistent(bb: Backbone) -> None:
    """mix, target and split are inverse at any time, and the schedule falls from noise to image."""
    rng = Generator().manual_seed(1)
    x0, noise = (torch.randn(64, 2, 4, 4, generator=rng) for _ in range(2))
    t = torch.linspace(0.02, 0.98, 64)
    xt = bb.path.mix(x0, noise, t)
    image, left = bb.path.split(xt, bb.path.target(x0, noise, t), t)
    # An eps model's image is divided by the signal, which is all but gone at t = 0.98.
    torch.testing.assert_close(image, x0, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(left, noise, atol=2e-5, rtol=1e-5)
    drawn = bb.path.draw(512, rng)
    assert drawn.min() > 0, "a time of 0 was drawn"
    assert drawn.max() < 1, "a time of 1 was drawn"
    times = bb.path.schedule(7)
    assert len(times) == 8, "a schedule has one time more than steps"
    assert times[-1] == 0, "a schedule ends at 0"
    assert (times.diff() < 0).all(), "a schedule falls"


def embedding_is_stable(bb: Backbone) -> None:
    """The same prompt gives the same text, alone or beside others, and every word is found."""
    prompts = ["a red cat", "a photo of a dog, next to a lamp"]
    once, again, alone = bb.embed(prompts), bb.embed(prompts), bb.embed(prompts[1:])
    assert torch.equal(once.states, again.states), "embed gave other states the second time"
    torch.testing.assert_close(once.states[1:], alone.states, atol=1e-5, rtol=1e-4)
    for word in ("photo", "dog", "lamp"):
        places = once.where(1, word)
        assert places, f"'{word}' is not found in '{prompts[1]}'"
        assert max(places) < once.states.shape[1], f"'{word}' lies beyond the states"
    assert not once.where(1, "cat"), "a word of another prompt is found"


def pictures_round_trip(bb: Backbone) -> None:
    """Encode gives the announced shape, the same twice; decode gives the picture's shape back."""
    height, width = bb.default_size, bb.default_size + bb.down * bb.patch
    picture = torch.rand(2, 3, height, width, generator=Generator().manual_seed(2)) * 2 - 1
    with torch.no_grad():
        latents = bb.encode(picture)
        assert latents.shape[1:] == bb.latent_shape(height, width), "encode gives another shape than latent_shape says"
        assert torch.equal(latents, bb.encode(picture)), "encode is not deterministic"
        assert bb.decode(latents).shape == picture.shape, "decode gives another shape than was encoded"


def taps_catch_every_site_once(bb: Backbone) -> None:
    """Every declared site is reached once per call, in order, and knows where text and image lie."""
    xt, t, text = _inputs(bb)
    count = _Count()
    with torch.no_grad():
        before = bb.predict(xt, t, text)
        with bb.attach(count):
            during = bb.predict(xt, t, text, Rows.plain(2, t))
        after = bb.predict(xt, t, text)
    caught = [call.site.name for call in count.seen]
    assert caught == list(bb.sites), f"sites {list(bb.sites)} were caught as {caught}"
    torch.testing.assert_close(during, before, atol=1e-5, rtol=1e-4)
    assert torch.equal(before, after), "detaching did not restore the prediction bit for bit"
    for call in count.seen:
        _check_layout(call, call.site)


def _check_layout(call: Call, site: Site) -> None:
    pictures = len(range(*call.image.indices(call.q.shape[2])))
    words = len(range(*call.text.indices(call.k.shape[2])))
    height, width = call.grid
    assert pictures == height * width, f"{site.name}: {pictures} image tokens on a grid of {height} x {width}"
    assert (words > 0) == site.reads_text, f"{site.name}: {words} text tokens at a site of kind {site.kind}"
    if site.kind == "joint":
        assert pictures + words == call.k.shape[2], f"{site.name}: text and image are not all of the keys"


def model_is_frozen(bb: Backbone) -> None:
    """Nothing trains, nothing drops out, and the fingerprint survives use."""
    before = bb.fingerprint(afresh=True)
    xt, t, text = _inputs(bb)
    with torch.no_grad():
        bb.predict(xt, t, text)
    for name, module in bb.modules_().items():
        assert not any(one.training for one in module.modules()), f"{name} is in training mode"
        assert not any(p.requires_grad for p in module.parameters()), f"{name} has parameters that would be trained"
    assert bb.fingerprint(afresh=True) == before, "using the model changed it"


def selections_are_linears_of_the_model(bb: Backbone) -> None:
    """The common select names exist, and each key is the path of its map."""
    for what in (
        "text.key",
        "text.value",
        "self.key",
        "self.value",
        "attention",
        "mlp",
        "all",
        "encoder.attention",
    ):
        found = bb.select(what)
        assert found, f"nothing is selected by '{what}'"
        for path, linear in found.items():
            assert isinstance(linear, nn.Linear), f"{path} is no linear map"
            assert bb.module(path) is linear, f"{path} is the path of another module"


def checkpointing_keeps_gradients(bb: Backbone) -> None:
    """Gradient checkpointing changes memory and time only."""
    xt, t, text = _inputs(bb)
    grads = []
    for on in (False, True):
        bb.checkpointing(on)
        x = xt.clone().requires_grad_()
        bb.predict(x, t, text).square().mean().backward()
        assert x.grad is not None
        grads.append(x.grad)
    bb.checkpointing(False)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-5)


CHECKS: tuple[Callable[[Backbone], None], ...] = (
    noise_path_is_consistent,
    embedding_is_stable,
    pictures_round_trip,
    taps_catch_every_site_once,
    model_is_frozen,
    selections_are_linears_of_the_model,
    checkpointing_keeps_gradients,
)


def check_backbone(bb: Backbone) -> list[str]:
    """Run every check on a backbone; returns the names of those that ran.

    Raises:
        AssertionError: If the backbone breaks a promise; the message says which.
    """
    for check in CHECKS:
        check(bb)
    return [check.__name__ for check in CHECKS]
