import pytest
import torch

from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.io.tensors import read_tensors
from fromfew.make import make
from fromfew.method import find
from fromfew.ports.place import Place
from fromfew.ports.sampler import SamplerPart
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

QUICK = {"steps": 4, "batch": 2, "lr": 2e-2}


def test_the_file_holds_a_vector_for_every_stage(tmp_path):
    bb = tiny("sdxl")
    concept = find("prospect")(**QUICK, spans=7).learn(bb, few_photos())
    held = read_tensors(concept.save(tmp_path / "c") / "concept.safetensors")
    assert sum(value.numel() for value in held.values()) == 7 * sum(e.width for e in bb.text_encoders.values())


def test_ten_stages_get_five_of_fifty_steps_each():
    bb = tiny("sd15")
    word = find("prospect")(**QUICK).learn(bb, few_photos()).parts.word
    times = bb.sampler("ddim", 50, bb.latent_shape()).times[:-1].tolist()
    rows = [word.row(Place(None, t)) for t in times]
    assert rows == [stage for stage in range(9, -1, -1) for _ in range(5)]


def test_every_stage_that_was_drawn_in_learns_and_no_other():
    bb, refs = tiny("sd15"), few_photos()
    method = find("prospect")(**{**QUICK, "steps": 2, "batch": 1})
    began = method.parts(bb, refs, torch.Generator().manual_seed(0)).word.vectors["one"]
    moved = (method.learn(bb, refs).parts.word.vectors["one"] != began).any(-1)[0]
    assert 1 <= int(moved.sum()) <= 2


class Note(SamplerPart):
    """Keeps the latents of every step."""

    kind = "note"

    def __init__(self):
        super().__init__()
        self.seen = []

    def config(self):
        return {}

    def after(self, moment):
        self.seen.append(moment.x.clone())
        return moment.x


def test_other_words_at_late_times_change_only_the_late_steps():
    bb = tiny("sd15")
    word = find("prospect")(**QUICK).learn(bb, few_photos()).parts.word
    loud = word.build(word.config()).requires_grad_(False)
    for key in loud.vectors:
        loud.vectors[key].copy_(word.vectors[key] + torch.randn(word.vectors[key].shape, generator=generator(2)))

    def far(rows):
        runs = []
        for part in (word, word.mixed(loud, rows)):
            note = Note()
            make(bb, "a <v> cat", [part, note], steps=10, sampler="ddim")
            runs.append(torch.stack(note.seen))
        return [bool((a != b).any()) for a, b in zip(*runs, strict=True)]

    assert far([0, 1, 2]) == [False] * 7 + [True] * 3
    assert far([9]) == [True] * 10


def test_bad_settings_are_refused():
    for how, why in (({"spans": 0}, "spans is 1"), ({"vectors": 17}, "vectors is 1"), ({"modifier": "rare"}, "modif")):
        with pytest.raises(FromfewError, match=why):
            find("prospect")(**how)
