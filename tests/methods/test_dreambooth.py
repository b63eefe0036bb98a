import pytest
import torch

from fromfew.data import class_batches, joined, photo_batches
from fromfew.fit import _Loop, generator
from fromfew.losses import denoise, only
from fromfew.method import find
from fromfew.parts.full import FullDelta
from fromfew.ports.part import Parts
from fromfew.stage import Stage
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

QUICK = {"steps": 3, "batch": 1, "lr": 1e-3, "encoder_lr": 1e-3, "prior": 0.0}


def test_convolutions_norms_and_attention_all_change():
    bb = tiny("sd15")
    deltas = find("dreambooth")(**QUICK).learn(bb, few_photos()).parts.denoiser.deltas
    moved = {name for name, value in deltas.items() if bool(value.any())}
    for piece in ("conv1/weight", "norm1/weight", "attn1/to_q/weight", "attn2/to_k/weight", "conv_in/weight"):
        assert any(name.endswith(piece) for name in moved), piece


def test_every_parameter_of_the_denoiser_has_a_difference():
    bb = tiny("flux")
    part = FullDelta.of(bb, "denoiser")
    assert sum(p.numel() for p in part.parameters()) == sum(p.numel() for p in bb.denoiser.parameters())


@pytest.mark.parametrize("prior", [1.0, 0.3])
def test_the_class_half_gives_the_gradient_of_a_class_batch_alone(prior):
    bb, refs = tiny("sd15"), few_photos()
    photos = photo_batches(refs, size=bb.default_size, batch=1, variants=1)
    plain = class_batches([p.image for p in refs.photos], noun="cat", size=bb.default_size, batch=1)
    both = _gradient(bb, joined(photos, plain), [(0.0, only("photo", denoise)), (prior, only("class", denoise))])
    alone = _gradient(bb, lambda rng: plain(_after(photos, rng)), [(prior, denoise)], rows=(1, 2))
    assert torch.allclose(both, alone, rtol=1e-3, atol=1e-7)
    assert bool(both.any())


def _after(source, rng):
    source(rng)
    return rng


def _gradient(bb, source, terms, rows=None):
    """Gradient of one step; ``rows`` picks the noise and times that these rows have in a batch of two."""
    parts = Parts(all=FullDelta.of(bb, "denoiser.mid_block"))
    loop = _Loop(bb, parts, Stage(steps=1, batches=source, terms=terms, train={parts.all: 1e-3}), seed=0)
    if rows is not None:
        loop = _SecondRow(bb, parts, loop.stage, 0)
    with loop, bb.attach(parts):
        loop.loss(0).backward()
    return torch.cat([p.grad.flatten() for p in parts.parameters()])


class _SecondRow(_Loop):
    """A batch of one, with the noise and the time of the second row of a batch of two."""

    def loss(self, step):
        rng = generator(self.seed, step)
        batch = self.stage.batches(rng)
        x0 = self._encode(batch)
        noise = torch.randn((2, *x0.shape[1:]), generator=rng)[1:]
        t = self.bb.path.draw(2, rng)[1:]
        pred = self.bb.predict(self.bb.path.mix(x0, noise, t), t, self._embed(batch.captions, t))
        weight, _ = self.stage.terms[0]
        return weight * (pred - self.bb.path.target(x0, noise, t)).square().mean()


def test_the_text_encoder_learns_only_when_asked():
    bb = tiny("sd15")
    assert "encoder" not in find("dreambooth")(**QUICK).learn(bb, few_photos()).parts
    with_it = find("dreambooth")(**QUICK, encoder=True).learn(bb, few_photos()).parts.encoder
    assert any(bool(value.any()) for value in with_it.deltas.values())


@pytest.mark.parametrize(
    ("modifier", "text", "alias"), [("rare", None, "x"), ("rare", "ktn", "ktn"), ("text", "red", "red")]
)
def test_the_modifier_is_what_the_user_chooses(modifier, text, alias):
    bb = tiny("sd15")
    word = find("dreambooth")(**QUICK, modifier=modifier, text=text).learn(bb, few_photos()).parts.word
    assert word.alias == alias or text is None


def test_a_learned_modifier_learns_beside_the_denoiser():
    bb = tiny("sd15")
    concept = find("dreambooth")(**QUICK, modifier="word", text="cat").learn(bb, few_photos())
    word = concept.parts.word
    table, tokens = bb.text_encoders["one"].embedding.weight, word.carriers(bb.text_encoders["one"].tokenizer)
    assert not torch.equal(word.vectors["one"][0], table[tokens[0]])


def test_a_description_takes_the_nouns_place_in_prompts_and_leaves_class_pictures_alone():
    from dataclasses import replace

    bb, refs = tiny("sd15"), few_photos()
    own = (replace(refs.photos[0], caption="a red cat on a table"), *refs.photos[1:])
    refs = replace(refs, photos=own)
    method = find("dreambooth")(**QUICK, described="clay toy in a hat")
    said = {caption for step in range(12) for caption in method.photos(bb, refs)(generator(0, step)).captions}
    assert said == {"a red <v> clay toy in a hat on a table", "a photo of a <v> clay toy in a hat"}
    assert refs.noun == "cat"


def test_one_description_for_two_subjects_is_refused():
    from dataclasses import replace

    from fromfew.errors import FromfewError

    two = replace(few_photos(), also=(replace(few_photos(2, noun="dog"), placeholder="<w>"),))
    with pytest.raises(FromfewError, match="One description"):
        find("dreambooth")(**QUICK, described="toy").learn(tiny("sd15"), two)
