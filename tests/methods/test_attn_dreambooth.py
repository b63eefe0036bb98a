import pytest
import torch

from fromfew.data import Batch
from fromfew.errors import FromfewError
from fromfew.fit import fit, generator
from fromfew.losses import alike
from fromfew.method import find
from fromfew.references import References
from fromfew.stage import Step
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny

QUICK = {
    "steps": 2, "batch": 2, "lr": 1e-3, "word_steps": 3, "word_lr": 1e-2, "attention_steps": 2, "attention_lr": 1e-3,
    "views": 2, "schedule": "constant",
}  # fmt: skip


@pytest.mark.parametrize("base", ["sd15", "flux"])
def test_each_stage_moves_what_it_should_and_nothing_else(base):
    bb, refs, method = tiny(base), few_photos(), find("attn-dreambooth")(**QUICK)
    parts, moved = method.parts(bb, refs, generator(0)), []
    for stage in method.stages(bb, refs, parts):
        before = {name: value.clone() for name, value in parts.state_dict().items()}
        fit(bb, parts, stage, rng=generator(1))
        after = parts.state_dict()
        moved.append({name.split(".")[0] for name in before if not torch.equal(before[name], after[name])})
    assert moved == [{"word"}, {"attention"}, {"attention", "rest"}]


def test_the_two_halves_are_the_denoiser_once_and_the_first_reads_text():
    bb = tiny("sd15")
    parts = find("attn-dreambooth")(**QUICK).parts(bb, few_photos(), generator(0))
    halves = [set(part.shapes()) for part in (parts.attention, parts.rest)]
    assert not halves[0] & halves[1]
    assert halves[0] | halves[1] == {f"denoiser.{name}" for name, _ in bb.denoiser.named_parameters()}
    assert all(".attn2." in path for path in halves[0])
    assert {path.split(".attn2.")[1].split(".")[0] for path in halves[0]} == {"to_q", "to_k", "to_v", "to_out"}


def test_the_three_stages_use_one_prompt_and_their_own_weights():
    bb, refs, method = tiny("sd15"), few_photos(), find("attn-dreambooth")(**QUICK)
    stages = list(method.stages(bb, refs, method.parts(bb, refs, generator(0))))
    assert [stage.steps for stage in stages] == [3, 2, 2]
    assert all(stage.record == ("<v>", "cat") for stage in stages)
    maps = {"<v>": torch.zeros(1, 2, 2), "cat": torch.zeros(1, 2, 2)}
    maps["<v>"][0, 0, 0], maps["cat"][0] = 0.4, 0.2
    seen = [pull(_step(maps)).item() for stage in stages for _, pull in stage.terms[-1:]]
    far = [8.0 * (0.1 - 0.2) ** 2, 20.0 * torch.tensor([0.4, 0, 0, 0]).var().item() ** 2]
    assert seen == pytest.approx([far[0] / 20, sum(far), sum(far)], rel=1e-4)


def _step(maps):
    batch = Batch(torch.zeros(1, 3, 4, 4), None, [""], ["photo"], [None])
    return Step(*[torch.zeros(1, 1)] * 6, text=None, rows=None, batch=batch, maps=maps)


def test_the_term_gives_nothing_where_a_word_is_missing_and_pulls_where_both_are():
    maps = {"<v>": torch.full((1, 2, 2), 0.3, requires_grad=True), "cat": torch.full((1, 2, 2), 0.1)}
    pull = alike("<v>", "cat", mean=1.0, variance=1.0)
    term = pull(_step(maps))
    assert term.item() == pytest.approx(0.04)
    term.backward()
    assert bool((maps["<v>"].grad > 0).all())
    assert pull(_step({"<v>": torch.full((1, 2, 2), 0.3), "cat": torch.zeros(1, 2, 2)})).item() == 0


def test_the_term_makes_both_words_read_alike():
    bb, refs = tiny("sd15"), few_photos()
    quick = QUICK | {"word_steps": 12, "word_lr": 0.1, "steps": 1, "attention_steps": 1}
    apart = []
    for weight in (0.0, 2e5):
        method = find("attn-dreambooth")(**quick, mean=weight, variance=0.0)
        parts = method.parts(bb, refs, generator(0))
        stage = next(iter(method.stages(bb, refs, parts)))
        fit(bb, parts, stage, rng=generator(1))
        apart.append(_means(bb, parts))
    assert apart[1] < apart[0]


def _means(bb, parts):
    from fromfew.parts.record import Record

    record = Record(("<v>", "cat"))
    xt = torch.randn(4, *bb.latent_shape(), generator=generator(2))
    with bb.attach(parts), bb.attach(record) as there, torch.no_grad():
        text = bb.embed(["a photo of a <v> cat"] * 4)
        bb.predict(xt, torch.full((4,), 0.5), text)
        seen = record.read(there, text)
    return float((seen["<v>"].mean() - seen["cat"].mean()).abs())


def test_photos_without_a_noun_are_refused():
    bare = References.of(*(p.image for p in few_photos().photos), captions=["a <v> thing"] * 3)
    with pytest.raises(FromfewError, match="--noun"):
        find("attn-dreambooth")(**QUICK).learn(tiny("sd15"), bare)
    with pytest.raises(FromfewError, match="modifier"):
        find("attn-dreambooth")(modifier="rare")
