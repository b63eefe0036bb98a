"""The world draws what its captions say, the same every time, and knows where everything is."""

import json

import numpy as np
import pytest

from fromfew.errors import FromfewError
from fromfew.world import faces
from fromfew.world.cli import export, noun_of, run
from fromfew.world.reference import references, views
from fromfew.world.scenes import CATEGORY, Item, Scene, article, caption, draw, random_scene, scene_at, words_for
from fromfew.world.sprites import colours_of, recolour, sprite
from fromfew.world.vocabulary import CONTEXTS, CORE, HELD_OUT, HELD_OUT_STYLES, SETS, STYLES, WIDE, names


def test_every_object_has_a_sprite_in_every_set():
    for name in CATEGORY:
        for style in SETS:
            picture = sprite(name, style)
            assert picture.size == (96, 96)
            assert np.asarray(picture)[..., 3].max() > 200


def test_held_out_objects_are_in_no_other_group():
    groups = [set(names(g)) for g in (CORE, WIDE, HELD_OUT)]
    assert sum(map(len, groups)) == len(CATEGORY)
    assert len(names(CORE)) + len(names(WIDE)) >= 300


def test_the_stream_never_shows_what_is_held_out():
    held = set(names(HELD_OUT))
    for k in range(3000):
        scene = random_scene(np.random.default_rng([5, k]))
        assert not held & {item.name for item in scene.items}
        assert scene.style in STYLES
        assert all(item.who < faces.HELD_OUT_FROM for item in scene.items)


def test_a_scene_is_the_same_whenever_it_is_drawn():
    first, again, other = scene_at(3, 17), scene_at(3, 17), scene_at(4, 17)
    assert np.array_equal(np.asarray(first.picture), np.asarray(again.picture))
    assert not np.array_equal(np.asarray(first.picture), np.asarray(other.picture))


@pytest.mark.parametrize("style", [*STYLES, *HELD_OUT_STYLES])
@pytest.mark.parametrize("context", list(CONTEXTS))
def test_every_context_can_be_drawn_in_every_style(context, style):
    scene = Scene((Item("red-apple"),), context, style)
    drawn = draw(scene, np.random.default_rng(0))
    assert drawn.picture.size == (128, 128)
    assert np.asarray(drawn.picture).std() > 1


def test_styles_change_the_picture_and_nothing_else():
    plain = draw(Scene((Item("cat-face"),), "beach"), np.random.default_rng(1))
    for style in (*STYLES, *HELD_OUT_STYLES):
        other = draw(Scene((Item("cat-face"),), "beach", style), np.random.default_rng(1))
        assert np.array_equal(other.alphas[0], plain.alphas[0])
        same = np.array_equal(np.asarray(other.picture), np.asarray(plain.picture))
        assert same == (style == "plain")


def test_masks_and_boxes_lie_where_the_thing_is():
    scene = Scene((Item("red-apple"), Item("banana")), "white", relation="left")
    drawn = draw(scene, np.random.default_rng(2))
    (l1, _, r1, _), (l2, _, r2, _) = drawn.boxes
    assert (l1 + r1) / 2 < (l2 + r2) / 2
    apple = np.asarray(drawn.picture)[np.asarray(drawn.mask(0)) > 0].mean(0)
    assert apple[0] > apple[2] + 60  # red where the apple is


def test_relations_are_what_the_caption_says():
    for relation, axis, sign in (("left", 0, -1), ("right", 0, 1), ("above", 1, -1)):
        for seed in range(5):
            scene = Scene((Item("red-apple"), Item("banana")), "white", relation=relation)
            a, b = draw(scene, np.random.default_rng(seed)).boxes
            assert sign * ((a[axis] + a[axis + 2]) - (b[axis] + b[axis + 2])) > 0


def test_captions_say_what_is_there():
    scene = Scene((Item("red-apple", colour="blue"), Item("owl")), "snow", "neon", "above")
    assert caption(scene) == "a blue apple above an owl in the snow in neon style"
    wide = Scene((Item("tangerine"),), "beach")
    assert caption(wide) == "a fruit on the beach"


def test_recoloured_sprites_have_the_colour():
    blue = np.asarray(recolour(sprite("red-apple"), "blue"), dtype=float)
    inside = blue[blue[..., 3] > 200][:, :3].mean(0)
    assert inside[2] > inside[0] + 50
    assert "red" in colours_of("red-apple")


def test_a_person_stays_the_same_person():
    who = faces.identity(12)
    assert who == faces.identity(12)
    assert len({faces.identity(k) for k in range(50)}) == 50
    smile, plain = (faces.face(who, faces.Look(expression=e)) for e in ("smiling", "neutral"))
    changed = np.abs(np.asarray(smile, dtype=float) - np.asarray(plain, dtype=float)).max(2) > 8
    assert 0 < changed.mean() < 0.1  # only the mouth moves


def test_references_of_a_subject_come_in_different_scenes():
    drawn = views("peacock", n=6)
    assert len({one.scene.context for one in drawn}) == 6
    refs = references("peacock", n=4, masks=True)
    assert refs.noun == "bird"
    assert len(refs.photos) == 4
    assert refs.photos[0].mask.size == (128, 128)


def test_under_pictures_of_a_style_stands_what_they_show():
    drawn, refs = views("blueprint", n=3), references("blueprint", n=3)
    for one, photo in zip(drawn, refs.photos, strict=True):
        assert photo.caption == f"{article(words_for(one.scene.items[0]))} {CONTEXTS[one.scene.context]}"
        assert "style" not in photo.caption


def test_export_writes_pictures_and_masks(tmp_path, capsys):
    assert export("mate", tmp_path / "mate", n=3) == "drink"
    found = sorted(p.name for p in (tmp_path / "mate").iterdir())
    assert found == [f"0{k}{end}" for k in range(3) for end in (".mask.png", ".png", ".txt")]
    assert (tmp_path / "mate" / "00.txt").read_text().startswith("a drink ")
    assert run(["list", "--json"]) == 0
    assert "peacock" in json.loads(capsys.readouterr().out)["held-out objects"]


def test_unknown_subjects_are_answered_with_the_nearest():
    with pytest.raises(FromfewError, match="peacock"):
        noun_of("peacok")
    with pytest.raises(FromfewError, match="1 to 14"):
        views("peacock", n=15)
