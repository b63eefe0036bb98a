import pytest
import torch

from fromfew.encoders import open_eye, squares
from fromfew.encoders.project import Projector, Resampler
from fromfew.errors import FromfewError
from fromfew.testing.contract import few_photos
from fromfew.testing.eye import tiny_eye


@pytest.fixture(scope="module")
def eye(tmp_path_factory):
    return open_eye(tiny_eye(tmp_path_factory.mktemp("eye")))


def test_features_have_the_widths_they_say_and_do_not_depend_on_the_batch(eye):
    images = torch.rand(3, 3, 48, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    pooled, patches = eye.pooled(images), eye.patches(images)
    assert pooled.shape == (3, eye.width)
    assert patches.shape[0] == 3
    assert patches.shape[2] == eye.patch_width
    assert torch.allclose(eye.pooled(images[1:2])[0], pooled[1], atol=1e-5)


def test_gradients_reach_the_picture_and_nothing_in_the_encoder(eye):
    images = torch.zeros(1, 3, 32, 32, requires_grad=True)
    eye.pooled(images).sum().backward()
    assert bool(images.grad.any())
    assert all(p.grad is None for p in eye.model.parameters())


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(FromfewError, match="/no/such/folder"):
        open_eye("/no/such/folder")


def test_squares_are_the_middle_of_every_photo():
    seen = squares(few_photos(2), 16)
    assert seen.shape == (2, 3, 16, 16)
    assert float(seen.min()) >= -1
    assert float(seen.max()) <= 1


@pytest.mark.parametrize(
    "make", [lambda: (Projector(8, 6, 4), (2, 8)), lambda: (Resampler(8, 6, 4, inner=16), (2, 5, 8))]
)
def test_projections_give_tokens_of_the_width_asked_for(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module, shape = make()
    seen = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    tokens = module(seen)
    assert tokens.shape == (2, 4, 6)
    assert torch.allclose(tokens.mean(-1), torch.zeros(2, 4), atol=1e-5)
    assert not torch.allclose(tokens[0], tokens[1])


def test_the_worlds_encoder_reads_its_weights_and_any_size(tmp_path):
    from fromfew.encoders.world import WorldEye
    from fromfew.io.tensors import write_tensors
    from fromfew.world.eye import Eye as Network

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Network().eval()
    write_tensors(tmp_path / "eye.safetensors", {name: value.half() for name, value in network.state_dict().items()})
    eye = WorldEye(weights=tmp_path / "eye.safetensors")
    images = torch.rand(2, 3, 128, 160, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert eye.pooled(images).shape == (2, eye.width)
    assert eye.patches(images).shape == (2, 64, eye.patch_width)
    small = torch.nn.functional.adaptive_avg_pool2d(images[..., 16:144], 64)
    with torch.no_grad():
        assert torch.allclose(eye.pooled(images), network(small).pooled, atol=0.05)
    with pytest.raises(FromfewError, match="missing"):
        WorldEye(weights=tmp_path / "nowhere")


def test_squares_are_grey_outside_a_photos_mask():
    seen = squares(few_photos(1, masks=True), 40)
    assert abs(float(seen[0, :, 0, 0].mean())) < 0.01
    assert not torch.equal(seen, squares(few_photos(1), 40))
