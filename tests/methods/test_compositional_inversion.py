import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.make import make
from fromfew.method import find
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 1, "lr": 5e-3}


def learned(bb, **how):
    return find("compositional-inversion")(**{**QUICK, **how}).learn(bb, few_photos()).parts


def test_attraction_alone_brings_a_random_word_to_the_noun():
    bb = tiny("sd15")
    encoder = bb.text_encoders["one"]
    noun = encoder.embedding.weight[encoder.tokenizer("cat", add_special_tokens=False).input_ids[0]]
    near = []
    for attract in (1.0, 0.0):
        vectors = learned(bb, attract=attract, begin="random", steps=50, lr=1e-2, schedule="cosine").word.vectors["one"]
        near.append(torch.cosine_similarity(vectors, noun[None]))
    assert near[0].min() > 0.99
    assert near[1].max() < 0.9


def test_attraction_keeps_the_norm_nearer_to_that_of_real_words():
    bb = tiny("sd15")
    usual = bb.text_encoders["one"].embedding.weight.norm(dim=1).mean()
    off = [
        (learned(bb, attract=attract, steps=15, lr=3e-2).word.vectors["one"].norm(dim=1) - usual).abs().mean()
        for attract in (0.95, 0.0)
    ]
    assert off[0] < off[1]


def test_the_box_is_the_concepts_own_and_moves_only_pictures_that_speak_of_it():
    bb = tiny("sd15")
    how = {"scale": 3000.0, "until": 1.0}
    parts = find("compositional-inversion")(**QUICK, **how, box=(0.0, 0.0, 0.3, 1.0)).learn(bb, few_photos()).parts
    assert parts.box.word == "<v>"
    prompts = ["a <v> cat", "a dog"]
    whole, word = (make(bb, prompts, concepts, steps=2).latents for concepts in (parts, parts.word))
    assert not torch.equal(whole[0], word[0])
    assert torch.equal(whole[1], word[1])
    assert "box" not in find("compositional-inversion")(**QUICK, box=None).learn(bb, few_photos()).parts


def test_bad_settings_are_refused():
    for how, why in (({"attract": 2.0}, "attract is"), ({"box": (0.5, 0, 0.2, 1)}, "box is"), ({"vectors": 0}, "vect")):
        with pytest.raises(FromfewError, match=why):
            find("compositional-inversion")(**how)
