"""The world's own evaluators (their weights come with the package): obvious cases come out in the obvious order."""

import pytest
import torch

from fromfew.bench.contestants import Drawing
from fromfew.bench.controls import Real
from fromfew.bench.task import open_task
from fromfew.metrics.base import Case, score
from fromfew.metrics.suites import world
from fromfew.views import pictures_of


class Side:
    """All that the renderer asks of a base."""

    default_size = 128


def real(task: str, number: int, *, seed: int = 0) -> Case:
    """A case whose pictures are the world's own renderings of a subject's prompts."""
    subject = open_task(task).subjects[number]
    ready = Real({}).learn(Side(), subject, seed=seed, folder=None, watch=None)
    images = ready.draw([Drawing(subject, n, n, seed) for n in range(len(subject.prompts))])
    sets = [pictures_of(part.load("<v>"), 128) for part in subject.parts]
    return Case(
        images,
        tuple(prompt.without(subject.nouns) for prompt in subject.prompts),
        torch.cat([photos for photos, _ in sets]),
        masks=torch.cat([masks for _, masks in sets]),
        wants=tuple(prompt.want for prompt in subject.prompts),
        role=open_task(task).role,
    )


def mean(values):
    return sum(v for v in values if v is not None) / sum(v is not None for v in values)


@pytest.fixture(scope="module")
def objects():
    return [real("world/objects", number) for number in range(4)]


def test_the_judge_sees_most_of_what_the_world_really_drew(objects):
    found = [score(case, world().metrics) for case in objects]
    assert mean([mean(one["context-drawn"]) for one in found]) > 0.8
    assert mean([mean(one["style-drawn"]) for one in found]) > 0.8
    assert mean([mean(one["object-drawn"]) for one in found]) > 0.6
    assert mean([mean(one["all-drawn"]) for one in found]) > 0.5


def test_pictures_of_a_subject_are_more_like_its_photos_than_those_of_another(objects):
    suite = world()
    for name in ("dino-i", "subject-masked"):
        metric = next(one for one in suite.metrics if one.name == name)
        own = [float(metric(case).mean()) for case in objects]
        other = [
            float(metric(Case(a.images, a.prompts, b.photos, masks=b.masks)).mean())
            for a, b in zip(objects, [*objects[1:], objects[0]], strict=True)
        ]
        assert sum(own) > sum(other), name


def test_a_picture_fits_its_own_prompt_better_than_a_shuffled_one(objects):
    metric = next(one for one in world().metrics if one.name == "clip-t")
    for case in objects:
        shuffled = Case(case.images, case.prompts[1:] + case.prompts[:1], case.photos)
        assert float(metric(case).mean()) > float(metric(shuffled).mean())


def test_pasted_photos_are_flagged_and_real_scenes_are_not(objects):
    metric = next(one for one in world().metrics if one.name == "copy-rate")
    for case in objects:
        assert float(metric(Case(case.photos, ("",) * len(case.photos), case.photos)).mean()) == 1
    # A thing stands on a grid, at few sizes: some of its patches are the same in every scene.
    rates = [float(metric(case).mean()) for case in objects]
    assert sum(rates) / len(rates) < 0.35
    assert max(rates) < 0.5


def test_relations_are_seen_where_they_were_drawn_and_not_where_they_were_turned_round():
    case = real("world/pairs", 0)
    metric = next(one for one in world().metrics if one.name == "rfs")
    ordered = [i for i, want in enumerate(case.wants) if want.relation in ("left", "right")]
    right = metric(case)[ordered].mean()
    turned = metric(Case(case.images.flip(-1), case.prompts, case.photos, wants=case.wants))[ordered].mean()
    assert float(right) > float(turned)


def test_both_of_two_things_are_found_in_most_scenes_that_show_both():
    found = [score(real("world/pairs", number), world().metrics) for number in range(2)]
    both = [v for one in found for name in ("object-drawn", "second-drawn") for v in one[name]]
    assert mean(both) > 0.6
    assert mean([v for one in found for v in one["relation-drawn"]]) > 0.6


def test_a_person_is_more_like_themselves_than_like_another():
    cases = [real("world/faces", number) for number in range(4)]
    for name in ("face-id", "ips", "sis", "aps"):
        metric = next(one for one in world().metrics if one.name == name)
        own = sum(float(metric(case).mean()) for case in cases)
        others = sum(
            float(metric(Case(a.images, a.prompts, b.photos, role="face")).mean())
            for a, b in zip(cases, [*cases[1:], cases[0]], strict=True)
        )
        assert own > others, name
