import pytest
import torch

from fromfew.concept import Concept
from fromfew.encoders import look_at, squares
from fromfew.encoders.hyper import HyperNetwork
from fromfew.errors import FromfewError
from fromfew.fit import fit, generator
from fromfew.method import find
from fromfew.parts.light_low_rank import LightLowRank, frame
from fromfew.ports.part import Parts
from fromfew.testing.contract import few_photos, predict, quick
from fromfew.testing.tiny import tiny


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    bb = tiny("sd15")
    return bb, quick(find("hyperdreambooth")(inner=(8, 6)), bb, tmp_path_factory.mktemp("weights"))


def test_frames_are_orthonormal_and_come_from_the_seed():
    left, right = frame(64, 10, "map", "left", 0), frame(10, 48, "map", "right", 0)
    assert torch.allclose(left.T @ left, torch.eye(10), atol=1e-5)
    assert torch.allclose(right @ right.T, torch.eye(10), atol=1e-5)
    assert torch.equal(left, frame(64, 10, "map", "left", 0))
    assert not torch.equal(left, frame(64, 10, "map", "left", 1))


def test_a_change_has_rank_one_and_lies_in_its_frames():
    part = LightLowRank({"denoiser.map": (40, 30)}, (8, 6))
    assert [name for name, _ in part.named_parameters()] == ["left", "right"]
    assert not part.delta("denoiser.map").any()
    part = part.holding(torch.randn(1, 1, 14, generator=generator(0)))
    delta = part.delta("denoiser.map")
    left, right, _ = part.frames("denoiser.map")
    assert int(torch.linalg.matrix_rank(delta)) == 1
    assert torch.allclose(left @ left.T @ delta @ right.T @ right, delta, atol=1e-5)
    x = torch.randn(3, 5, 30, generator=generator(1))
    assert torch.allclose(part.apply_to("denoiser.map", x), x @ delta.T, atol=1e-5)


def test_each_row_of_a_batch_gets_its_own_change():
    part = LightLowRank({"denoiser.a": (40, 30), "denoiser.b": (20, 30)}, (8, 6))
    numbers = torch.randn(3, 2, 14, generator=generator(0))
    whole, x = part.holding(numbers), torch.randn(3, 5, 30, generator=generator(1))
    for path in ("denoiser.a", "denoiser.b"):
        alone = torch.cat([part.holding(numbers[i : i + 1]).apply_to(path, x[i : i + 1]) for i in range(3)])
        assert torch.allclose(whole.apply_to(path, x), alone, atol=1e-5)


def test_the_network_says_nothing_at_first_and_more_with_every_pass():
    network = HyperNetwork(12, 5, 14)
    seen = torch.randn(2, 7, 12, generator=generator(0))
    assert not network(seen).any()
    torch.nn.init.normal_(network.leave.weight, std=0.5)
    one, two = network(seen, passes=1), network(seen, passes=2)
    assert one.shape == (2, 5, 14)
    assert float((two - one).detach().norm()) > 0.1 * float(one.detach().norm())
    assert torch.equal(network(seen), network(seen, passes=4))


def test_what_the_network_says_stays_and_the_rest_is_tuned(ready):
    bb, method = ready
    refs = few_photos()
    before, concept = method.resolved(bb).parts(bb, refs, generator(0)), method.learn(bb, refs)
    for name, value in before.light.state_dict().items():
        assert torch.equal(concept.parts.light.state_dict()[name], value)
        assert bool(value.any())
    ranks = []
    for path in concept.parts.light.targets():
        both = concept.parts.light.delta(path) + concept.parts.tuned.delta(path)
        ranks.append(int(torch.linalg.matrix_rank(both)))
    assert min(ranks) > 1
    assert max(ranks) <= 1 + concept.parts.tuned.rank
    seen = look_at(method.eye, squares(refs, bb.default_size), bb.device, patches=True)
    said = method.resolved(bb).filled(bb)(seen).mean(0)
    assert torch.allclose(said[:, :8], before.light.left.detach(), atol=1e-6)


def test_other_photos_get_another_change(ready):
    bb, method = ready
    me = method.resolved(bb)
    turned = few_photos(2)
    other = type(turned).of(*(p.image.rotate(90) for p in few_photos(3).photos[2:]), noun="cat")
    one, two = (me.parts(bb, refs, generator(0)).light.left for refs in (turned, other))
    assert not torch.equal(one, two)


def test_training_beforehand_moves_the_network_and_lowers_its_loss(ready):
    from fromfew.data import photo_batches
    from fromfew.fit import look

    bb, method = ready
    me = method.resolved(bb)
    modules = me.fresh(bb)
    batches = photo_batches(few_photos(), size=bb.default_size, batch=3, word="", variants=2)
    stage = me.pretrain(bb, modules, batches, steps=25, lr=1e-2)
    before = look(bb, Parts(), stage, seed=3)
    fit(bb, Parts(), stage, rng=generator(0))
    assert look(bb, Parts(), stage, seed=3) < before
    caption = stage.batches(generator(0)).captions[0]
    assert caption.startswith("x")  # a rare word of the tiny base, since the source tells no noun


def test_a_concept_keeps_two_small_tables_and_the_tuned_change(ready, tmp_path):
    bb, method = ready
    concept = method.learn(bb, few_photos())
    light = concept.parts.light
    assert sum(p.numel() for p in light.parameters()) == 14 * len(light.targets())
    loaded = Concept.load(concept.save(tmp_path / "c"))
    with bb.attach(concept):
        one = predict(bb)
    with bb.attach(loaded):
        assert torch.equal(predict(bb), one)


def test_without_weights_it_says_where_they_should_be():
    with pytest.raises(FromfewError, match="no weights for this base"):
        find("hyperdreambooth")(steps=1).learn(tiny("sd15"), few_photos())
