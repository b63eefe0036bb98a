"""Two things in one picture: learned once a method, joined, kept in regions, and scored apart."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fromfew.bench.contestants import Drawing, contestant
from fromfew.bench.controls import Paste, Real
from fromfew.bench.records import read
from fromfew.bench.report import report
from fromfew.bench.run import bench, case_of
from fromfew.bench.task import open_task
from fromfew.concept import Concept
from fromfew.metrics.base import Case
from fromfew.metrics.subject import Each
from fromfew.metrics.truth import Bleeding
from fromfew.views import pictures_of

QUICK = {"steps": 2, "batch": 2, "lr": 0.01, "prior": 0.0}


def test_prompts_say_where_each_thing_is_to_be():
    task = open_task("world/pairs")
    boxes = {}
    for prompt in task.subjects[0].prompts:
        boxes[prompt.want.relation] = prompt.regions(["<v1> animal", "<v2> yarn"])
        assert all(said.removeprefix("a ").startswith(("<v1>", "<v2>")) for said in boxes[prompt.want.relation])
    left, right, above = (list(boxes[name].values()) for name in ("left", "right", "above"))
    assert left == right[::-1] == list(boxes["and"].values())
    assert left[0] == (0, 0, 0.5, 1)
    assert above == [(0, 0, 1, 0.5), (0, 0.5, 1, 1)]
    assert "a <v2> yarn in the snow" in task.subjects[0].prompts[1].regions(["<v1> animal", "<v2> yarn"])


def test_objects_in_styles_are_a_task_of_their_own():
    subject = open_task("world/object-style").subjects[0]
    assert [part.role for part in subject.parts] == [None, "style"]
    want = subject.prompts[0].want
    assert (want.object, want.style, want.second) == ("raccoon", "blueprint", None)
    assert subject.prompts[0].without(subject.nouns) == f"{'an' if subject.nouns[0][0] in 'aeiou' else 'a'} " + (
        f"{subject.nouns[0]} on the beach"
    )
    assert subject.parts[1].load("<v2>").role == "style"


def test_each_thing_is_learned_once_and_comes_together_in_every_way(plan, tmp_path, monkeypatch):
    ways = ["custom-diffusion", "custom-diffusion+weighted", "custom-diffusion+custom-diffusion@attention",
            "custom-diffusion@layout", "custom-diffusion@noise", "custom-diffusion+joint"]  # fmt: skip
    order = plan(methods=("real",), task="world/pairs", subjects=1, prompts=1)
    who = [contestant(name, {"custom-diffusion": QUICK}, order.options) for name in ways]
    order = replace(order, contestants=[*who, *order.contestants])
    learned = []
    kind = type(who[0].learner(0))
    real = kind.learn
    monkeypatch.setattr(kind, "learn", lambda self, *a, **k: learned.append(1) or real(self, *a, **k))
    summary = bench(order, tmp_path)
    records = [one for one in read(tmp_path) if one["kind"] != "set"]
    assert (summary.failed, summary.refused, summary.done) == (0, 0, 7), [one.get("why") for one in records]
    assert len(learned) == 3  # two apart, one together
    for one in records:
        assert all(value is not None for value in one["scores"]["bleeding"])
        assert {"each-own", "each-other", "object-drawn", "second-drawn", "relation-drawn"} <= set(one["scores"])
    pictures = {one["method"].partition(" ")[0]: one["pictures"] for one in records}
    assert len(set(pictures.values())) == 7


def test_what_is_about_one_thing_has_nothing_to_join(plan, tmp_path):
    order = plan(methods=("textual-inversion+weighted", "textual-inversion+joint"), subjects=1, prompts=1)
    assert bench(order, tmp_path).refused == 2
    why = {one["method"].partition(" ")[0]: one["why"] for one in read(tmp_path)}
    assert "nothing to join" in why["textual-inversion+weighted"]
    assert "one thing at a time" in why["textual-inversion+joint"]


def test_objects_and_styles_come_together(plan, tmp_path):
    order = plan(methods=("real",), task="world/object-style", subjects=1, prompts=1)
    pair = contestant("custom-diffusion+weighted", {"custom-diffusion": QUICK}, order.options)
    face = contestant("custom-diffusion@noise", {"custom-diffusion": QUICK}, order.options)
    assert bench(replace(order, contestants=[pair, face, *order.contestants]), tmp_path).failed == 0
    records = {one["method"].partition(" ")[0]: one for one in read(tmp_path) if one["kind"] != "set"}
    assert "no region" in records["custom-diffusion@noise"]["why"]
    assert records["custom-diffusion+weighted"]["scores"]["style-drawn"][0] is not None
    assert "bleeding" not in records["custom-diffusion+weighted"]["scores"]


def test_a_thing_and_a_style_may_be_learned_by_methods_of_their_own(plan, tmp_path):
    order = plan(methods=("real",), task="world/object-style", subjects=1, prompts=2)
    both = contestant("custom-diffusion/style-aligned", {"custom-diffusion": QUICK}, order.options)
    three = contestant("lora/lora/lora", {}, order.options)
    joint = contestant("custom-diffusion/custom-diffusion+joint", {}, order.options)
    assert bench(replace(order, contestants=[both, three, joint]), tmp_path).failed == 0
    records = {one["method"].partition(" ")[0]: one for one in read(tmp_path) if one["kind"] != "set"}
    mixed = records["custom-diffusion/style-aligned"]
    assert mixed["settings"]["custom-diffusion.steps"] == QUICK["steps"]
    assert "style-aligned.shift" in mixed["settings"]
    assert mixed["scores"]["style-drawn"][0] is not None
    methods = {Concept.load(file.parent).card.method for file in tmp_path.glob("concepts/*/*/concept.json")}
    assert methods == {"custom-diffusion", "style-aligned"}
    assert "3 methods" in records["lora/lora/lora"]["why"]
    assert "one method" in records["custom-diffusion/custom-diffusion+joint"]["why"]


def test_two_rare_words_are_two(bb, tmp_path):
    subject = open_task("world/pairs").subjects[0]
    who = contestant("lora", {"lora": {**QUICK, "rank": 1}}, {"steps": 1})
    ready = who.learn(bb, subject, seed=0, folder=tmp_path, watch=None)
    aliases = [one.parts.word.alias for one in ready.concepts]
    assert aliases[0] != aliases[1]


class Side:
    """All that the renderer asks of a base."""

    default_size = 128


@pytest.fixture(scope="module")
def drawn():
    """The world's own renderings of a pair, and the case they make."""
    subject = open_task("world/pairs").subjects[0]
    ready = Real({}).learn(Side(), subject, seed=0, folder=None, watch=None)
    wanted = range(len(subject.prompts))
    images = ready.draw([Drawing(subject, n, n, 0) for n in wanted])
    things = tuple(pictures_of(part.load("<v>"), 128)[0] for part in subject.parts)
    wants = tuple(prompt.want for prompt in subject.prompts)
    return Case(images, ("",) * len(images), torch.cat(things), wants=wants, things=things)


def test_wide_pictures_show_each_thing_as_it_stands_alone():
    from fromfew.metrics.suites import world

    task = open_task("world/wide-pairs")
    assert task.size == (128, 256)
    subject = task.subjects[1]
    orders = [Drawing(subject, n, n, 0, task.size) for n in range(len(subject.prompts))]
    things = tuple(pictures_of(part.load("<v>"), 128)[0] for part in subject.parts)
    images = Real({}).learn(Side(), subject, seed=0, folder=None, watch=None).draw(orders)
    assert images.shape == (8, 3, 128, 256)
    pasted = Paste({}).learn(Side(), subject, seed=0, folder=None, watch=None).draw(orders)
    assert torch.equal(pasted[0], torch.cat([photos[0] for photos in things], -1))
    suite = {metric.name: metric for metric in world().metrics}
    wants = tuple(prompt.want for prompt in subject.prompts)
    real, fake = (Case(x, ("",) * 8, torch.cat(things), wants=wants, things=things) for x in (images, pasted))
    assert float(suite["all-drawn"](real).mean()) >= 7 / 8
    turned = Case(images.roll(128, -1), ("",) * 8, real.photos, wants=wants, things=things)
    ordered = torch.tensor([want.relation != "and" for want in wants])
    assert float(suite["relation-drawn"](real).mean()) == 1
    assert float(suite["relation-drawn"](turned)[ordered].mean()) == 0
    assert float(suite["copy-rate"](fake).mean()) > 0.8 > float(suite["copy-rate"](real).mean())


def test_a_task_of_wide_pictures_runs(plan, tmp_path):
    order = plan(methods=("base", "paste", "real"), task="world/wide-pairs", subjects=1, prompts=1)
    who = [contestant("custom-diffusion@noise", {"custom-diffusion": QUICK}, order.options), *order.contestants]
    summary = bench(replace(order, contestants=who), tmp_path)
    records = [one for one in read(tmp_path) if one["kind"] != "set"]
    assert (summary.failed, summary.refused, summary.done) == (0, 0, 4), [one.get("why") for one in records]
    for one in records:
        with Image.open(tmp_path / "pictures" / one["pictures"] / "00000.webp") as picture:
            assert picture.size == (256, 128)
    assert report(tmp_path).html.exists()


def swapped(case):
    """The same with its sides exchanged: each thing where the other belongs."""
    images = torch.stack([
        image.roll(image.shape[1] // 2, 1) if want.relation == "above" else image.roll(image.shape[2] // 2, 2)
        for image, want in zip(case.images, case.wants, strict=True)
    ])  # fmt: skip
    return replace(case, images=images, cache={})


def test_what_is_on_the_wrong_side_bleeds_and_is_less_like_its_own(drawn):
    from fromfew.metrics.suites import world

    suite = {metric.name: metric for metric in world().metrics}
    ordered = torch.tensor([want.relation != "and" for want in drawn.wants])
    bleeding, own, other = suite["bleeding"], suite["each-own"], suite["each-other"]
    assert isinstance(bleeding, Bleeding)
    assert isinstance(own, Each)
    right, wrong = drawn, swapped(drawn)
    assert float(bleeding(right)[ordered].mean()) < float(bleeding(wrong)[ordered].mean())
    assert float(own(right)[ordered].mean()) > float(own(wrong)[ordered].mean())
    assert float(other(right)[ordered].mean()) < float(other(wrong)[ordered].mean())
    # Either order will do where the prompt says "and".
    assert torch.allclose(own(right)[~ordered], own(wrong)[~ordered], atol=0.1)


def test_things_seen_in_the_same_photos_are_told_apart_by_masks_and_scored_by_photos_of_each_alone(plan, tmp_path):
    subject = open_task("world/together").subjects[0]
    one, two = (part.load("<v>") for part in subject.parts)
    assert one.hashes == two.hashes
    assert len(one) == 3
    for mine, other in zip(one.photos, two.photos, strict=True):
        masks = [np.asarray(photo.mask) > 127 for photo in (mine, other)]
        assert all(0.02 < mask.mean() < 0.3 for mask in masks)
        assert not (masks[0] & masks[1]).any()
        assert mine.caption.startswith("an animal to the ")
    order = plan(methods=("break-a-scene+joint",), task="world/together", subjects=1, prompts=1)
    bench(order, tmp_path)
    cells = [row for row in read(tmp_path) if row["kind"] == "cell"]
    assert len(cells) == 1, read(tmp_path)
    assert len(cells[0]["scores"]["each-own"]) == 1
    (cell,) = order.cells()
    case = case_of(cell, torch.zeros(1, 3, 128, 128))
    alone = pictures_of(subject.parts[1].held(), 128)[0]
    assert torch.equal(case.things[1], alone)


def test_a_method_that_needs_masks_gets_them_and_others_do_not():
    part = open_task("world/objects").subjects[0].parts[0]
    given = {name: contestant(name, {}, {}).refs(part, "<v>") for name in ("break-a-scene", "lora")}
    assert all(photo.mask is not None for photo in given["break-a-scene"].photos)
    assert all(photo.mask is None for photo in given["lora"].photos)


def test_a_combiner_with_other_settings_is_another_contestant(plan, monkeypatch):
    def keys():
        order = plan(methods=("textual-inversion", "lora+gradient-fusion"), task="world/pairs", subjects=1, prompts=1)
        return {cell.contestant.name: cell.key for cell in order.cells()}

    before = keys()
    usual = contestant("lora+gradient-fusion", {}, {}).combiner
    assert usual.ridge == 0.01
    monkeypatch.setattr(type(usual), "settings", lambda self: {"ridge": 0.5})
    after = keys()
    assert before["textual-inversion"] == after["textual-inversion"]
    assert before["lora+gradient-fusion"] != after["lora+gradient-fusion"]
