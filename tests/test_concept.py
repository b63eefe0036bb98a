import json

import pytest
import torch

from fromfew.commands.concepts import check_prompts, peek
from fromfew.concept import Card, Concept, kinds, load
from fromfew.errors import FromfewError
from fromfew.fit import generator
from fromfew.method import find
from fromfew.parts.low_rank import LowRank
from fromfew.parts.word import Word
from fromfew.ports.part import Parts
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny


def concept():
    bb = tiny("sd15")
    parts = Parts(
        word=Word.learned(bb, "<v>", "cat", 2, generator(0)),
        maps=LowRank.of(bb.select("attention"), 2, 2.0, generator(0)),
    )
    card = Card(method="lora", settings={}, base={"name": "tiny-sd15", "family": "unet", "fingerprint": "x"})
    return Concept("rex", "<v>", "cat", parts.requires_grad_(False), card)


def edit(folder, change):
    about = json.loads((folder / "concept.json").read_text())
    change(about)
    (folder / "concept.json").write_text(json.dumps(about))


def test_a_concept_comes_back_whole(tmp_path):
    one = concept().scaled(0.5)
    two = load(one.save(tmp_path / "c"))
    assert (two.name, two.placeholder, two.noun, two.strength) == ("rex", "<v>", "cat", 0.5)
    assert two.card == one.card
    assert repr(two.parts) == repr(one.parts)
    for name, value in one.parts.state_dict().items():
        assert torch.equal(two.parts.state_dict()[name], value)


def test_saving_twice_gives_the_same_bytes(tmp_path):
    one = concept()
    files = [sorted(p.read_bytes() for p in one.save(tmp_path / name).iterdir()) for name in ("a", "b")]
    assert files[0] == files[1]


def test_a_folder_without_a_concept_says_so(tmp_path):
    with pytest.raises(FromfewError, match="no concept"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["os", "..word", "/etc/passwd", "word.learned", "", "ports.part", "__init__", 3, None])
def test_only_parts_of_the_allow_list_are_built(kind, tmp_path):
    folder = concept().save(tmp_path / "c")
    edit(folder, lambda about: about["parts"][0].update(kind=kind))
    with pytest.raises(FromfewError, match="Unknown part"):
        load(folder)
    assert "__init__" not in kinds()


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.pop("parts"),
        lambda about: about.update(parts="x"),
        lambda about: about.update(parts=about["parts"] * 50),
        lambda about: about.update(schema="1"),
        lambda about: about.update(name=3),
        lambda about: about.pop("card"),
        lambda about: about["card"].pop("method"),
        lambda about: about["parts"][0].update(name="a.b"),
        lambda about: about["parts"][0].update(config=[]),
        lambda about: about["parts"][0]["config"].update(count=99),
        lambda about: about["parts"][0]["config"].update(surprise=1),
        lambda about: about["parts"][1]["config"].update(rank=10**9),
        lambda about: about["parts"][1]["config"]["shapes"].update({"denoiser.x": [10**12, 10**12]}),
    ],
)
def test_a_damaged_description_is_refused(change, tmp_path):
    folder = concept().save(tmp_path / "c")
    edit(folder, change)
    with pytest.raises(FromfewError):
        load(folder)


def test_text_that_is_no_json_is_refused(tmp_path):
    folder = concept().save(tmp_path / "c")
    for text in ("", "[]", "{", "\x00", "[" * 100000):
        (folder / "concept.json").write_text(text)
        with pytest.raises(FromfewError):
            load(folder)


def test_numbers_that_are_cut_short_missing_or_not_finite_are_refused(tmp_path):
    folder = concept().save(tmp_path / "c")
    whole = (folder / "concept.safetensors").read_bytes()
    (folder / "concept.safetensors").write_bytes(whole[:-10])
    with pytest.raises(FromfewError):
        load(folder)
    one = concept()
    one.parts.word.vectors["one"][0, 0] = float("nan")
    with pytest.raises(FromfewError, match="not finite"):
        load(one.save(tmp_path / "d"))


def test_a_newer_schema_asks_for_an_upgrade(tmp_path):
    folder = concept().save(tmp_path / "c")
    edit(folder, lambda about: about.update(schema=99))
    with pytest.raises(FromfewError, match="newer fromfew"):
        load(folder)


def test_a_base_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(FromfewError, match=r"'rex' was learned on 'tiny-sd15' \(unet\).*'tiny-flux'"):
        concept().check(tiny("flux"))
    concept().check(tiny("sd15"))


def test_the_card_tells_where_a_concept_comes_from():
    bb, refs = tiny("sd15"), few_photos()
    one = find("textual-inversion")(steps=2, batch=1, lr=1e-2).learn(bb, refs, seed=4)
    card = one.card
    assert (card.method, card.seed, card.steps) == ("textual-inversion", 4, 2)
    assert card.photos == refs.hashes
    assert card.base["fingerprint"] == bb.fingerprint()
    assert card.versions.keys() >= {"fromfew", "torch", "diffusers"}
    assert card.learned == 32
    assert card.bytes == 128
    assert one.same_base(bb)
    assert not one.same_base(tiny("sd21"))


def test_a_concept_may_answer_to_several_placeholders(tmp_path):
    from dataclasses import replace

    one = replace(concept(), also={"<w>": "dog", "<s>": None})
    assert load(one.save(tmp_path / "c")).answers == {"<v>": "cat", "<w>": "dog", "<s>": None}
    assert peek(tmp_path / "c").words == "<v> cat and a <w> dog and a <s>"
    assert check_prompts(["a <v> cat and a <w> dog in <s> style"], [peek(tmp_path / "c")]) == []
    [missing] = check_prompts(["a <v> cat in <s> style"], [peek(tmp_path / "c")])
    assert "<w> dog" in missing
    with pytest.raises(FromfewError, match="answers twice to <v>"):
        replace(concept(), also={"<v>": "dog"})
    edit(tmp_path / "c", lambda about: about.update(also={"<w>": 3}))
    with pytest.raises(FromfewError, match="damaged"):
        load(tmp_path / "c")
    with pytest.raises(FromfewError, match="damaged"):
        peek(tmp_path / "c")
