import json

import pytest
import torch

from fromfew.commands.concepts import check_prompts, peek
from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.method import find
from fromfew.testing.contract import few_photos, predict
from fromfew.testing.tiny import tiny

QUICK = {"steps": 8, "batch": 2, "lr": 1e-2, "word_lr": 2e-2, "views": 2, "prior": 0.0}


def batches(refs, count=60, **settings):
    source = find("detex")(**{**QUICK, "batch": 1, **settings}).photos(tiny("sd15"), refs)
    return [source(generator(0, step)) for step in range(count)]


def test_every_photo_has_words_of_its_own_and_prompts_name_no_others():
    for batch in batches(few_photos(3)):
        number = batch.numbers[0] + 1
        said = batch.captions[0]
        assert "<v> cat" in said
        for other in {1, 2, 3} - {number}:
            assert f"<v-pose-{other}>" not in said
            assert f"<v-scene-{other}>" not in said
        assert ("pose" in said) == (f"<v-pose-{number}> pose" in said)
        assert ("background" in said) == (f"<v-scene-{number}> background" in said)


def test_pose_and_background_are_dropped_each_by_itself_as_often_as_asked():
    seen = batches(few_photos(1), 400, drop=0.25)
    poses, scenes = (["pose" in b.captions[0] for b in seen], ["background" in b.captions[0] for b in seen])
    assert abs(sum(poses) / 400 - 0.75) < 0.07
    assert abs(sum(scenes) / 400 - 0.75) < 0.07
    both = sum(p and s for p, s in zip(poses, scenes, strict=True)) / 400
    assert abs(both - 0.75**2) < 0.08
    assert all("pose" in b.captions[0] and "background" in b.captions[0] for b in batches(few_photos(1), drop=0.0))


def test_where_the_background_is_named_all_counts_and_else_only_the_subject():
    for batch in batches(few_photos(2, masks=True)):
        whole = bool(batch.masks.all())
        assert whole == ("background" in batch.captions[0])


def test_the_subjects_word_alone_is_answered_and_the_others_may_be_called(tmp_path):
    bb = tiny("sd15")
    concept = find("detex")(**QUICK).learn(bb, few_photos(2))
    assert concept.answers == {"<v>": "cat"}
    folder = concept.save(tmp_path / "c")
    known = peek(folder)
    assert known.aside == ["<v-pose-1>", "<v-scene-1>", "<v-pose-2>", "<v-scene-2>"]
    assert check_prompts(["a <v> cat, <v-scene-2> background"], [known]) == []
    with pytest.raises(FromfewError, match="<v-scene-3>"):
        check_prompts(["a <v> cat, <v-scene-3> background"], [known])
    with bb.attach(concept):
        one, two = (predict(bb, prompt=f"a <v> cat, <v-scene-{i}> background") for i in (1, 2))
    assert not torch.equal(one, two)
    assert json.loads((folder / "concept.json").read_text())["placeholder"] == "<v>"


def test_the_file_holds_the_maps_and_one_and_two_a_photo_words():
    bb = tiny("sd15")
    concept = find("detex")(**QUICK).learn(bb, few_photos(2))
    width = bb.text_encoders["one"].width
    maps = sum(m.weight.numel() for m in bb.select("text.key", "text.value").values())
    assert concept.card.learned == maps + 5 * width


def test_all_words_learn():
    bb, refs = tiny("sd15"), few_photos(2)
    began = find("detex")(**QUICK).parts(bb, refs, generator(0)).state_dict()
    ended = find("detex")(**QUICK, drop=0.0).learn(bb, refs).parts.state_dict()
    assert all(not torch.equal(began[name], ended[name]) for name in began)


@pytest.mark.parametrize("settings", [{"modifier": "rare"}, {"drop": 0.95}, {"drop": -0.1}])
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(FromfewError, match=next(iter(settings))):
        find("detex")(**settings)
