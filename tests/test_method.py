import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from PIL import Image

import fromfew
from fromfew.commands.settings import settings_of
from fromfew.errors import FromfewError
from fromfew.method import Free, Learner, Tuned, cards, find, names
from fromfew.recipes import RECIPES, recipe
from fromfew.references import References
from fromfew.registry import COMBINERS, GROUP, METHODS
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

SIX = {"custom-diffusion", "dreambooth", "ip-adapter", "lora", "style-aligned", "textual-inversion"}


def test_the_six_methods_of_three_kinds_are_there():
    assert set(names()) >= SIX
    assert {card["kind"] for card in cards().values()} == {"tuned", "encoded", "free"}


@pytest.mark.parametrize("name", sorted(SIX))
def test_a_method_is_found_by_its_name(name):
    method = find(name)
    assert issubclass(method, Learner)
    assert method.name() == name
    assert method is find(name.replace("-", "_"))
    assert dict(method.card()) == cards()[name]


def test_an_unknown_name_answers_with_the_nearest():
    with pytest.raises(FromfewError, match="'style-aligned'"):
        find("style-align")


def test_listing_methods_imports_no_torch():
    code = "import sys; from fromfew.registry import cards; cards(); print('torch' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "False"
    code = "import sys; from fromfew.method import find; find('lora'); print('torch' in sys.modules)"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == "False"


def test_methods_of_other_packages_are_found_and_cannot_replace_ours(tmp_path, monkeypatch):
    (tmp_path / "outside.py").write_text(
        textwrap.dedent('''
        from dataclasses import dataclass
        from fromfew.method import Free
        CARD = {"title": "Nothing", "kind": "free", "photos": (0, 1), "ports": ()}

        @dataclass(frozen=True, kw_only=True)
        class Nothing(Free):
            """Adds nothing."""

            def parts(self, bb, refs):
                from fromfew.ports.part import Parts
                return Parts()
        ''')
    )
    info = tmp_path / "outside-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nnothing = outside\nlora = outside\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert "nothing" in names()
    assert cards()["nothing"]["title"] == "Nothing"
    assert issubclass(find("nothing"), Free)
    assert find("lora").__module__ == "fromfew.methods.lora"


@pytest.mark.parametrize(
    "settings",
    [
        {"steps": 0},
        {"lr": -1.0},
        {"batch": 0},
        {"prior": -0.5},
        {"modifier": "letters"},
        {"schedule": "steep"},
        {"modifier": "text"},
        {"rank": 0},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings):
    with pytest.raises(FromfewError):
        find("lora")(**settings)


@pytest.mark.parametrize(("shelf", "name"), [(shelf, name) for shelf in (METHODS, COMBINERS) for name in shelf.names()])
def test_every_choice_that_is_none_is_refused_with_the_nearest(shelf, name):
    for one in settings_of(name, shelf):
        for choice in one.choices:
            with pytest.raises(FromfewError, match=f"Unknown {one.name} '{choice}x'. Did you mean .*'{choice}'"):
                shelf.find(name).of({one.name: f"{choice}x"})


def test_an_unknown_setting_answers_with_the_nearest():
    with pytest.raises(FromfewError, match="'rank'"):
        find("lora").of({"ranks": 3})


def test_open_settings_are_filled_in_by_the_base_and_given_ones_kept():
    bb = tiny("sd15")
    method = find("lora")(lr=0.5).resolved(bb)
    assert method.lr == 0.5
    assert method.steps == recipe("lora", bb.name)["steps"]
    assert recipe("lora", "world")["steps"] == RECIPES["world"]["lora"]["steps"]


@pytest.mark.parametrize("name", names())
def test_what_is_chosen_for_the_base_has_a_recipe_on_every_base(name):
    chosen = {one.name for one in settings_of(name) if one.default is None and "chosen" in one.about} - {"text"}
    if cards()[name]["kind"] == "tuned":
        assert chosen >= {"steps", "batch", "lr"}
    for base in ("some-base", "world"):
        assert sorted(chosen - set(recipe(name, base))) == [], base


@pytest.mark.parametrize("name", ["dreambooth", "break-a-scene", "cones2", "attn-dreambooth"])
def test_what_needs_a_noun_says_so_before_any_work(name):
    refs, said = few_photos(masks=True), []
    bare = replace(refs, noun=None, photos=tuple(replace(photo, caption="a <v> thing") for photo in refs.photos))
    with pytest.raises(FromfewError, match=r"cannot learn this .*--noun"):
        find(name)(steps=2, batch=1, lr=1e-3).learn(tiny("sd15"), bare, watch=lambda *told: said.append(told))
    assert said == []
    assert find("dreambooth")(prior=0.0).reasons(tiny("sd15"), bare) == []


def test_no_photos_are_refused_before_any_work():
    for name in ("lora", "ip-adapter"):
        with pytest.raises(FromfewError, match="photos"):
            find(name)().learn(tiny("sd15"), None)


def test_learn_takes_a_name_or_a_method():
    bb, refs = tiny("sd15"), few_photos()
    one = fromfew.learn(refs, method="textual-inversion", base=bb, steps=1, batch=1, lr=1e-2)
    two = fromfew.learn(refs, method=find("textual-inversion")(steps=1, batch=1, lr=1e-2), base=bb)
    assert one.card.settings == two.card.settings
    with pytest.raises(FromfewError, match="Unknown setting"):
        fromfew.learn(refs, method="lora", base=bb, step=3)
    with pytest.raises(FromfewError, match="settings"):
        fromfew.learn(refs, method=find("lora")(), base=bb, steps=3)


def test_methods_import_no_methods_and_ask_no_family():
    from pathlib import Path

    folder = Path(fromfew.__file__).parent / "methods"
    for file in folder.glob("*.py"):
        text = file.read_text()
        assert "fromfew.methods" not in text, file.name
        assert ".family" not in text, file.name
        assert len(text.splitlines()) <= 120, file.name


def test_every_setting_of_every_method_has_help():
    import ast
    import inspect

    for name in names():
        method = find(name)
        for cls in method.__mro__:
            if cls.__module__.startswith("fromfew") and cls is not Learner:
                body = ast.parse(inspect.getsource(cls)).body[0].body
                for here, after in zip(body, [*body[1:], None], strict=True):
                    if isinstance(here, ast.AnnAssign):
                        told = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                        assert told, f"{name}.{here.target.id}"
    assert issubclass(find("lora"), Tuned)


@pytest.mark.parametrize("name", [name for name, card in cards().items() if card["kind"] == "tuned"])
def test_views_are_mirrored_only_if_asked_for_and_never_those_of_faces(name):
    bb = tiny("sd15")
    picture = Image.new("RGB", (60, 60), "red")
    picture.paste("blue", (30, 0, 60, 60))
    masks = [Image.new("L", picture.size, 255)]

    def sides(flip, role="subject"):
        refs = References.of(picture, noun="cat", role=role, masks=masks)
        source = find(name).of({"flip": flip, "batch": 1}).resolved(bb).photos(bb, refs)
        views = [source(torch.Generator().manual_seed(seed)).images[0] for seed in range(24)]
        where = [[(view[channel] > 0.5).nonzero()[:, 1].float().mean() for channel in (0, 2)] for view in views]
        return {bool(red < blue) for red, blue in where}

    assert sides(False) == sides(True, "face") == {True}
    assert sides(True) == {True, False}
