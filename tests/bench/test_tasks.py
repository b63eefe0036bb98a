"""Tasks: shipped as data, filled rightly, and read from published folders with what is missing named."""

import json

import pytest
from PIL import Image

from fromfew.bench.task import Prompt, open_task, shipped
from fromfew.errors import FromfewError


def photo(path, colour=(200, 30, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(path)


@pytest.mark.parametrize("name", [n for n in shipped() if n.startswith("world/")])
def test_every_task_of_the_world_opens_and_asks_for_what_the_world_can_draw(name):
    from fromfew.world.scenes import CATEGORY
    from fromfew.world.vocabulary import COLOURS, CONTEXTS, HELD_OUT, HELD_OUT_STYLES, RELATIONS, STYLES, names

    task = open_task(name)
    assert task.version >= 1
    assert task.licence
    for subject in task.subjects:
        assert len(subject.prompts) == 8
        for part in subject.parts:
            assert part.name in names(HELD_OUT) or part.name in HELD_OUT_STYLES or part.name.startswith("face-")
        for prompt in subject.prompts:
            want = prompt.want
            assert want.known()
            assert {want.object, want.second} <= {None, *CATEGORY}
            assert want.context in {None, *CONTEXTS}
            assert want.style in {None, *STYLES, *HELD_OUT_STYLES}
            assert want.colour in {None, *COLOURS}
            assert want.relation in {None, *RELATIONS}


def test_a_prompt_is_filled_with_words_and_freed_of_them_with_the_right_article():
    prompt = Prompt("a {0} to the left of a {1} in the snow")
    assert prompt.filled(["<v1> animal", "<v2> toy"]) == "a <v1> animal to the left of a <v2> toy in the snow"
    assert prompt.without(["animal", "toy"]) == "an animal to the left of a toy in the snow"
    assert Prompt("a cat in {} style", plain="a cat").without(["style"]) == "a cat"


def test_photos_learned_from_are_not_those_held_back():
    part = open_task("world/objects").subjects[0].parts[0]
    assert not set(part.load("<v>").hashes) & set(part.held().hashes)
    assert all(one.mask is not None for one in part.load("<v>").photos)


def test_unknown_tasks_and_missing_folders_are_named(tmp_path):
    with pytest.raises(FromfewError, match="Did you mean 'world/objects'"):
        open_task("world/object")
    with pytest.raises(FromfewError, match="--data"):
        open_task("photos/dreambooth")
    with pytest.raises(FromfewError, match="does not hold 'photos/dreambooth'"):
        open_task("photos/dreambooth", tmp_path)


def test_dreambooth_is_read_as_published_and_missing_photos_are_named(tmp_path):
    for i in range(5):
        photo(tmp_path / "dataset" / "dog" / f"{i:02d}.jpg")
    photo(tmp_path / "dataset" / "can" / "00.jpg")
    task = open_task("photos/dreambooth", tmp_path)
    assert [subject.name for subject in task.subjects] == ["can", "dog"]
    assert [len(subject.prompts) for subject in task.subjects] == [25, 25]
    assert len(task.problems) == 29  # 28 subjects are not there, one lacks photos
    assert any(line.startswith("can: 1 of 6") for line in task.problems)
    dog = task.subjects[1]
    assert dog.prompts[10].without(dog.nouns) == "a dog wearing a red hat"
    refs = dog.parts[0].load("<v>")
    assert (len(refs), refs.noun) == (5, "dog")


def test_dreambench_v2_says_that_its_prompts_were_never_published(tmp_path):
    photo(tmp_path / "dog" / "00.jpg")
    with pytest.raises(FromfewError, match="never"):
        open_task("photos/dreambench-v2", tmp_path)
    (tmp_path / "prompts.json").write_text(json.dumps({"dog": ["a {} on the moon"]}))
    task = open_task("photos/dreambench-v2", tmp_path)
    assert task.subjects[0].prompts[0].without(["dog"]) == "a dog on the moon"
    assert any("1 of 220" in line for line in task.problems)


def concept(root, name, noun, number):
    photo(root / "benchmark_dataset" / name / "0.jpg")
    return {
        "instance_prompt": f"photo of a <new{number}> {noun}", "class_prompt": noun,
        "instance_data_dir": f"./benchmark_dataset/{name}", "prompt_filename": f"prompts/{noun}.txt",
    }  # fmt: skip


def test_customconcept101_and_its_pairs_are_read_from_its_tables(tmp_path):
    cat, chair = concept(tmp_path, "pet_cat1", "cat", 1), concept(tmp_path, "chair1", "chair", 2)
    gone = {**chair, "instance_data_dir": "./benchmark_dataset/lost"}
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "cat.txt").write_text("{} in the snow\n{} on the moon\n")
    (tmp_path / "prompts" / "both.txt").write_text("the {0} on the {1}\n")
    (tmp_path / "dataset.json").write_text(json.dumps([cat, gone]))
    pair = [cat, chair, {"prompt_filename_compose": "prompts/both.txt"}]
    (tmp_path / "dataset_multiconcept.json").write_text(json.dumps([pair]))
    single = open_task("photos/customconcept101", tmp_path)
    assert [s.name for s in single.subjects] == ["pet_cat1"]
    assert any("lost" in line for line in single.problems)
    both = open_task("photos/customconcept101-pairs", tmp_path).subjects[0]
    assert both.prompts[0].filled(["<v1> cat", "<v2> chair"]) == "the <v1> cat on the <v2> chair"


def test_custom_diffusion_gets_a_slot_where_its_prompts_name_the_thing(tmp_path):
    photo(tmp_path / "cat" / "0.jpg")
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "cat.txt").write_text("photo of a <new1> cat\nA cat in a boat\na rainy day\n")
    task = open_task("photos/custom-diffusion", tmp_path)
    assert [prompt.say for prompt in task.subjects[0].prompts] == ["photo of a {}", "A {} in a boat"]
    assert any("does not name" in line for line in task.problems)


def test_stellar_is_read_with_its_detectables(tmp_path):
    photo(tmp_path / "000" / "0.jpg")
    (tmp_path / "000" / "0_attributes.json").write_text(json.dumps({"attributes": {"Male": -1}}))
    said = {"prompts": ["{} next to a shark"], "detectables": [["shark"]]}
    (tmp_path / "000" / "prompt.json").write_text(json.dumps(said))
    task = open_task("photos/stellar", tmp_path)
    subject = task.subjects[0]
    assert (task.role, subject.nouns) == ("face", ("woman",))
    assert subject.prompts[0].want.things == ("shark",)
    assert task.problems == ("1 of 400 identities",)


def test_dreambench_plus_takes_noun_and_prompts_from_its_captions(tmp_path):
    photo(tmp_path / "images" / "animal" / "00.jpg")
    (tmp_path / "captions" / "animal").mkdir(parents=True)
    (tmp_path / "captions" / "animal" / "00.txt").write_text("Kitten\na kitten on a log\na Kitten as an astronaut\n")
    subject = open_task("photos/dreambench-plus", tmp_path).subjects[0]
    assert subject.nouns == ("kitten",)
    assert [prompt.say for prompt in subject.prompts] == ["a {} on a log", "a {} as an astronaut"]


def test_the_survey_set_is_read_from_its_table(tmp_path):
    photo(tmp_path / "subjects" / "cat2" / "0.jpg")
    photo(tmp_path / "face" / "01" / "face.jpg")
    info = {
        "subjects": {"subject_with_cls": {"cat2": "cat", "vase": "vase"}, "prompt_live": ["a {0} {1} in a hat"],
                     "prompt_object": ["a {0} {1} on a mirror"]},
        "face": {"id_with_gender": {"01": "man"}, "prompt_action": ["a {0} {1} cooking"], "prompt_style": []},
    }  # fmt: skip
    (tmp_path / "info.json").write_text(json.dumps(info))
    objects = open_task("photos/survey-objects", tmp_path)
    assert objects.subjects[0].prompts[0].without(["cat"]) == "a cat in a hat"
    assert any(line.startswith("vase") for line in objects.problems)
    assert open_task("photos/survey-faces", tmp_path).subjects[0].prompts[0].say == "a {} cooking"


def test_no_photo_and_no_non_commercial_prompt_is_shipped():
    from pathlib import Path

    import fromfew.bench

    home = Path(fromfew.bench.__file__).parent
    assert {path.suffix for path in home.rglob("*") if path.is_file()} <= {".py", ".toml", ".csv", ".pyc"}
    for path in home.glob("tasks/*.toml"):
        text = path.read_text()
        if "non-commercial" in text or "none stated" in text:
            assert "prompts = [" not in text
            assert "[prompts]" not in text
