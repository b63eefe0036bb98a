"""Regions: boxes, the three methods, and that what is outside a region is not touched."""

from dataclasses import replace

import pytest
import torch

from fromfew.cli import main
from fromfew.concept import Card, Concept
from fromfew.errors import FromfewError
from fromfew.make import make, noise_of
from fromfew.noise_blend import _around, _worn, to_middle
from fromfew.parts.layout import Layout
from fromfew.parts.low_rank import LowRank
from fromfew.parts.record import Record
from fromfew.parts.regions import RegionText
from fromfew.parts.word import Word
from fromfew.ports.attention import AttentionPart
from fromfew.ports.part import Parts
from fromfew.ports.sampler import SamplerPart
from fromfew.regions import cramped, generic, inside, read_regions
from fromfew.rows import Rows
from fromfew.testing.contract import check_part
from fromfew.testing.tiny import tiny

LEFT, RIGHT = (0, 0, 0.5, 1), (0.5, 0, 1, 1)
BOTH = "a <a> cat and a <b> dog"


@pytest.fixture(scope="module")
def bb():
    return tiny("sd15")


def concept(bb, placeholder, noun, seed):
    """A concept with a stirred word and maps that act."""
    rng = torch.Generator().manual_seed(seed)
    word = Word.learned(bb, placeholder, noun, 1, rng)
    maps = LowRank.of(bb.select("text.value", "self.value"), 2, 2.0, rng)
    with torch.no_grad():
        for vectors in word.vectors.values():
            vectors.add_(torch.randn(vectors.shape, generator=rng))
        for up in maps.up.values():
            up.copy_(torch.randn(up.shape, generator=rng) * 0.5)
    card = Card("lora", {}, {"name": bb.name, "family": bb.family, "fingerprint": bb.fingerprint()})
    return Concept(placeholder.strip("<>"), placeholder, noun, Parts(word=word, maps=maps).requires_grad_(False), card)


@pytest.fixture(scope="module")
def two(bb):
    return [concept(bb, "<a>", "cat", 1), concept(bb, "<b>", "dog", 2)]


def latents(bb, prompts, concepts, **how):
    return make(bb, prompts, concepts, **{"steps": 2, **how}).latents


def columns(x, share):
    """Left or right part of latents."""
    half = x.shape[-1] // 2
    return x[..., :half] if share == LEFT else x[..., half:]


def test_boxes_are_shares_or_px_and_errors_say_what_to_write():
    answers = {"<a>": "cat", "<b>": None}
    one, two = read_regions({"<a>": LEFT, "a <b> boat": (64, 0, 128, 128)}, answers, (128, 128), ["a <a> cat, <b>"])
    assert (one.prompt, one.words) == ("a <a> cat", ("<a>",))
    assert two.prompt == "a <b> boat"
    assert torch.equal(one.mask, 1 - two.mask)
    assert float(one.mask[:, :64].min()) == 1
    for wrong in ((0.5, 0, 0.2, 1), (0, 0, 1), (0, 0, 0.5, 300), (0, 0, float("nan"), 1)):
        with pytest.raises(FromfewError, match="region"):
            read_regions({"<a>": wrong}, answers, (128, 128), ["a <a> cat"])
    with pytest.raises(FromfewError, match="Unknown concept of a region '<c>'"):
        read_regions({"<c>": LEFT}, answers, (128, 128), ["a <a> cat"])
    with pytest.raises(FromfewError, match="does not call <b>"):
        read_regions({"<b>": LEFT}, answers, (128, 128), ["a <a> cat"])


def test_a_region_has_at_least_one_cell_on_every_grid():
    thin = read_regions({"<a>": (0.4, 0.4, 0.401, 0.401)}, {"<a>": "cat"}, (64, 64), ["<a>"])[0].mask
    for grid in ((2, 2), (4, 8), (16, 16), (7, 3)):
        assert int(inside(thin, grid).sum()) == 1
    half = read_regions({"<a>": LEFT}, {"<a>": "cat"}, (64, 64), ["<a>"])[0].mask
    assert inside(half, (4, 4))[:, :2].all()
    assert not inside(half, (4, 4))[:, 2:].any()


def test_prompts_without_words_keep_their_nouns():
    assert generic("a <a> cat and an <b>", {"<a>": "cat", "<b>": "owl"}) == "a cat and an owl"
    assert generic("a <a> owl", {"<a>": "owl"}) == "an owl"
    assert generic("a <a> catalogue", {"<a>": "cat"}) == "a cat catalogue"


class Tap(AttentionPart):
    """Keeps the output of the first site that reads text."""

    kind = "tap"

    def where(self, site):
        return site.reads_text

    def out(self, call, y):
        call.state.setdefault("first", (y[:, :, call.image].clone(), call.grid, call.rows.branch))
        return y

    def config(self):
        return {}


def first_output(bb, prompts):
    """What the first site reads for rows: cond, region 1 (left), region 2 (right)."""
    part = RegionText.of({"region 1": mask(LEFT), "region 2": mask(RIGHT)})
    rows = Rows.of(torch.tensor([0]), ("cond", "region 1", "region 2"), torch.tensor(0.6))
    x = noise_of(0, 0, bb.latent_shape()).repeat(3, 1, 1, 1)
    tap = Tap()
    with torch.no_grad(), bb.attach(part), bb.attach(tap) as there:
        bb.predict(x, rows.t, bb.embed(prompts), rows)
        y, grid, _ = there.entries[0].state["first"]
    return y[0].mean(0).view(*grid, -1)


def mask(box):
    return read_regions({"x": box}, {}, (128, 128), ["x"])[0].mask


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
def test_another_prompt_of_a_region_leaves_the_outside_to_the_bit(name):
    bb = tiny(name)
    one = first_output(bb, ["a photo", "a cat", "a dog"])
    two = first_output(bb, ["a photo", "a cat", "a lamp on the table"])
    half = one.shape[1] // 2
    assert torch.equal(one[:, :half], two[:, :half])
    assert not torch.equal(one[:, half:], two[:, half:])


def test_where_all_is_region_only_the_regions_are_read(bb):
    """The picture's own prompt has no say at any site that reads text."""
    one = first_output(bb, ["a photo", "a cat", "a dog"])
    assert torch.equal(one, first_output(bb, ["a boat in the forest", "a cat", "a dog"]))


def test_a_region_over_everything_is_the_picture_of_its_prompt(bb, two):
    whole = latents(bb, [BOTH], two, regions={"a <a> cat": (0, 0, 1, 1)})
    alone = latents(bb, ["a <a> cat"], two)
    assert torch.allclose(whole, alone, atol=2e-4)
    assert not torch.allclose(whole, latents(bb, [BOTH], two), atol=1e-2)


@pytest.mark.parametrize("method", ["attention", "layout", "noise"])
def test_swapping_two_regions_changes_the_picture_and_all_comes_off(bb, two, method):
    plain = latents(bb, ["a cat"], ())
    one = latents(bb, [BOTH], two, regions={"<a>": LEFT, "<b>": RIGHT}, region_method=method)
    other = latents(bb, [BOTH], two, regions={"<a>": RIGHT, "<b>": LEFT}, region_method=method)
    none = latents(bb, [BOTH], two)
    assert not torch.allclose(one, other, atol=1e-2)
    assert not torch.allclose(one, none, atol=1e-2)
    assert torch.equal(latents(bb, ["a cat"], ()), plain)
    assert bb.attached == []


@pytest.mark.parametrize("method", ["attention", "layout", "noise"])
def test_a_picture_with_regions_is_the_same_alone(bb, two, method):
    how = {"regions": {"<a>": LEFT, "<b>": RIGHT}, "region_method": method}
    whole = latents(bb, [BOTH, f"{BOTH} on the beach"], two, **how)
    alone = latents(bb, [f"{BOTH} on the beach"], two, first=1, **how)
    assert torch.allclose(whole[1:], alone, atol=2e-4)


def test_noise_leaves_the_base_where_no_region_is(bb, two):
    """Zero masks would be the base's picture; a region over everything is the concept's own."""
    prompt = "a <a> cat on the beach"
    whole = latents(bb, [prompt], two[:1], regions={"a <a> cat": (0, 0, 1, 1)}, region_method="noise")
    assert torch.allclose(whole, latents(bb, ["a <a> cat"], two[:1]), atol=2e-4)
    half = latents(bb, [BOTH], two, regions={"<a>": LEFT}, region_method="noise", steps=1)
    base = latents(bb, ["a cat and a <b> dog"], two[1:], steps=1)
    assert torch.allclose(columns(half, RIGHT), columns(base, RIGHT), atol=2e-4)
    assert not torch.allclose(columns(half, LEFT), columns(base, LEFT), atol=1e-2)


def test_noise_calls_the_model_once_a_region_and_step_more(bb, two, monkeypatch):
    seen = []
    real = type(bb).predict
    monkeypatch.setattr(type(bb), "predict", lambda self, *a, **k: seen.append(1) or real(self, *a, **k))
    latents(bb, [BOTH], two, steps=5, regions={"<a>": LEFT, "<b>": RIGHT}, region_method="noise")
    assert len(seen) == 5 + 2 * 5
    seen.clear()
    latents(bb, [BOTH], two, steps=10, regions={"<a>": "find", "<b>": "find"}, region_method="noise")
    assert len(seen) == 10 + 10 + 2 * 7  # the layout, the picture, and both regions after three tenths


def test_a_region_begins_in_the_middle_of_a_plain_ground():
    for box, move in ((LEFT, (0, 4)), (RIGHT, (0, -4)), ((0, 0, 1, 0.5), (4, 0)), ((0, 0, 1, 1), (0, 0))):
        cells = inside(mask(box), (16, 16))
        assert to_middle(cells) == move
        rolled = cells.roll(move, (0, 1))
        assert torch.equal(rolled, rolled.flip(0, 1))  # as far from either side
        assert int(rolled.sum()) == int(cells.sum())


def test_a_region_of_a_large_picture_is_looked_at_through_a_window_of_the_bases_size(bb, two, monkeypatch):
    """A half of a picture twice as wide is seen by a model that meets the size it knows, and nothing of the rest."""
    side = bb.default_size
    height, width = bb.latent_shape()[-2:]
    seen = []
    real = type(bb).predict

    def predict(self, x, *a, **k):
        seen.append(tuple(x.shape[-2:]))
        return real(self, x, *a, **k)

    monkeypatch.setattr(type(bb), "predict", predict)
    one, other = (torch.stack([noise_of(seed, 0, (bb.latent_channels, height, 2 * width))]) for seed in (0, 1))
    mixed = torch.cat([one[..., :width], other[..., width:]], -1)
    how = {"regions": {"<a>": LEFT, "<b>": RIGHT}, "region_method": "noise", "steps": 1, "size": (side, 2 * side)}
    drawn = [make(bb, BOTH, two, latents=noise, **how) for noise in (one, mixed)]
    assert seen == 2 * [(height, 2 * width), (height, width), (height, width)]
    assert drawn[0].tensor.shape[-2:] == (side, 2 * side)
    alone = make(bb, "a <a> cat", two[:1], latents=one[..., :width], steps=1).latents
    for picture in drawn:
        assert torch.allclose(columns(picture.latents, LEFT), alone, atol=2e-4)
    assert not torch.allclose(columns(drawn[0].latents, RIGHT), columns(drawn[1].latents, RIGHT), atol=1e-2)


def test_windows_lie_around_their_regions_within_the_picture():
    for cells, own, patch, found in (
        (range(16), 16, 1, (0, 16)), (range(16, 32), 16, 1, (16, 32)), (range(6, 10), 16, 1, (0, 16)),
        (range(20, 24), 16, 1, (14, 30)), (range(28, 32), 16, 1, (16, 32)), (range(3, 22), 16, 2, (2, 22)),
    ):  # fmt: skip
        window = _around(cells.start, cells.stop, own, 32, patch)
        assert (window.start, window.stop) == found
        assert set(cells) <= set(range(window.start, window.stop))


def test_seams_are_the_bases_and_edges_of_the_picture_are_not():
    left = inside(mask(LEFT), (16, 32))
    worn = _worn(left)
    assert bool(worn[:, :14].all())
    assert not bool(worn[:, 14:].any())
    everything = torch.ones(16, 16, dtype=torch.bool)
    assert torch.equal(_worn(everything), everything)
    speck = torch.zeros(16, 16, dtype=torch.bool)
    speck[3, 5] = True
    assert torch.equal(_worn(speck), speck)
    inner = inside(mask((0.25, 0.25, 0.75, 0.75)), (16, 16))
    assert int(inner.sum()) == 64
    assert int(_worn(inner).sum()) == 36


def test_what_is_outside_a_region_is_not_seen_at_first(bb, two):
    """What the other half of the noise is matters less to a region's first step than to that half's own."""
    size = bb.latent_shape()
    one, other = (torch.stack([noise_of(seed, 0, size)]) for seed in (0, 1))
    half = size[-1] // 2
    mixed = torch.cat([one[..., :half], other[..., half:]], -1)
    how = {"regions": {"<a>": LEFT, "<b>": RIGHT}, "region_method": "noise", "steps": 10, "guidance": 1.0}
    seen = []

    class Look(SamplerPart):
        kind = "look"

        def after(self, moment):
            seen.append(moment.x.clone())
            return moment.x

        def config(self):
            return {}

    for noise in (one, mixed):
        make(bb, BOTH, [*two, Look()], latents=noise, **how)
    first, second = seen[0], seen[10]
    assert torch.equal(columns(one, LEFT), columns(mixed, LEFT))
    assert float((columns(first, LEFT) - columns(second, LEFT)).abs().mean()) < float(
        (columns(first, RIGHT) - columns(second, RIGHT)).abs().mean()
    )


def test_concepts_in_a_region_act_nowhere_else_but_styles_do(bb, two):
    style = replace(concept(bb, "<s>", "cat", 3), noun=None)
    said = f"{BOTH} in <s> style"
    how = {"regions": {"<a>": LEFT}, "region_method": "noise", "steps": 1}
    with_style = latents(bb, [said], [two[0], two[1], style], **how)
    without = latents(bb, [f"{BOTH} in style"], two, **how)
    assert not torch.allclose(columns(with_style, RIGHT), columns(without, RIGHT), atol=1e-2)


def test_found_regions_need_nouns_that_differ(bb, two):
    drawn = make(bb, [BOTH, BOTH], two, steps=2, regions={"<a>": "find", "<b>": RIGHT}, region_method="attention")
    assert len(drawn) == 2
    assert drawn.provenance[1]["index"] == 1
    assert drawn.provenance[0]["regions"] == {"<a>": "find", "<b>": [0.5, 0.0, 1.0, 1.0]}
    twins = [two[0], replace(two[1], noun="cat")]
    with pytest.raises(FromfewError, match="a noun that no other has"):
        make(bb, BOTH, twins, steps=2, regions={"<a>": "find", "<b>": "find"})
    with pytest.raises(FromfewError, match="a box, a mask or 'find'"):
        make(bb, BOTH, two, steps=2, regions={"<a>": "left"})
    with pytest.raises(FromfewError, match="Unknown region method"):
        make(bb, BOTH, two, steps=2, regions={"<a>": LEFT}, region_method="magic")


def test_a_word_is_not_read_in_anothers_region_and_the_unguided_branch_is_untouched():
    bb = tiny("sd15")
    a, b = (concept(bb, f"<{name}>", noun, seed) for name, noun, seed in (("a", "cat", 1), ("b", "dog", 2)))
    layout = Layout.of({"<a>": mask(LEFT), "<b>": mask(RIGHT)}, [1, 1], scale=1.0)
    rows = Rows.of(torch.tensor([0]), ("uncond", "cond"), torch.tensor(0.9))
    x = noise_of(0, 0, bb.latent_shape()).repeat(2, 1, 1, 1)

    def maps(part):
        record = Record(("<a>", "<b>", "cat", "dog"))
        with torch.no_grad(), bb.attach(a), bb.attach(b), bb.attach(*part), bb.attach(record) as there:
            text = bb.embed([BOTH, BOTH])
            bb.predict(x, rows.t, text, rows)
            return record.read(there, text)

    guided, plain = maps([layout]), maps([])
    for word, noun, own, other in (("<a>", "cat", LEFT, RIGHT), ("<b>", "dog", RIGHT, LEFT)):
        for name in (word, noun):
            # The finest map is the mean over all grids; two columns beside the border mix with their neighbours.
            there = columns(guided[name][1], other)
            assert float((there[:, 2:] if other == RIGHT else there[:, :-2]).max()) < 1e-6
        assert float(columns(guided[word][1], own).mean()) > float(columns(plain[word][1], own).mean())
    assert torch.allclose(guided["<a>"][0], plain["<a>"][0], atol=1e-3)


def test_two_words_spelled_alike_are_refused_for_a_layout(bb, two):
    same = [replace(one, parts=Parts(word=Word.plain(str(one.placeholder), "toy"))) for one in two]
    with pytest.raises(FromfewError, match="Two regions are called 'toy'"):
        make(bb, BOTH, same, steps=1, regions={"<a>": LEFT, "<b>": RIGHT}, region_method="layout")


@pytest.mark.parametrize("part", [
    RegionText.of({"uncond": mask(LEFT)}),
    Layout.of({"cat": mask(LEFT), "<v>": mask(RIGHT)}, scale=1.0),
])  # fmt: skip
def test_the_parts_keep_what_parts_promise(bb, part):
    check_part(part, bb, acts=isinstance(part, Layout))


def test_the_command_line_takes_regions_and_repeats_them(bb, two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for one in two:
        one.save(tmp_path / one.name)
    words = ["make", BOTH, "--with", "a", "--with", "b", "--steps", "2", "-n", "1", "--out", "o"]
    boxes = ["--region", "<a>=0,0,16,32", "--region", "a <b> dog=0.5,0,1,1"]
    assert main([*words, *boxes, "--region-method", "noise"]) == 0
    [made] = (tmp_path / "o").glob("*.png")
    capsys.readouterr()
    assert main(["make", "--from", str(made), "--out", "p"]) == 0
    assert "Equal to the bit" in capsys.readouterr().out
    for wrong, said in (
        (["--region", "<a>"], "no region"), (["--region", "<c>=0,0,1,1"], "Unknown concept"),
        (["--region", "<a>=left"], "no box"), (["--region", "<a>=0.5,0,0.1,1"], "not inside"),
        (["--region", "<a>=0,0,1,1", "--region", "<a>=find"], "twice"),
    ):  # fmt: skip
        assert main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert main([*words[:1], "a <a> cat", *words[2:], "--region", "<b>=0,0,1,1"]) == 2
    assert "does not call <b>" in capsys.readouterr().err


def test_small_regions_are_spoken_of_with_a_size_that_gives_them_room(bb, two):
    side = bb.default_size
    how = {"regions": {"<a>": LEFT, "<b>": RIGHT}, "region_method": "noise", "steps": 1}
    told = make(bb, BOTH, two, **how).warnings
    assert sum(f"A picture of {2 * side}x{side}" in one for one in told) == 2
    assert not any("region" in one for one in make(bb, BOTH, two, size=(side, 2 * side), **how).warnings)
    quarter = {"<a>": (0, 0, 0.5, 0.5)}
    assert f"{2 * side}x{2 * side}" in cramped(quarter, (side, side), side)[0]
    assert cramped({"<a>": "find", "<b>": (0, 0, 1, 0.7)}, (side, side), side) == []
