import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch

from fromfew.data import photo_batches
from fromfew.errors import FromfewError
from fromfew.fit import Fall, fit, generator, look
from fromfew.losses import anchored, denoise, masked, only
from fromfew.method import find
from fromfew.parts.low_rank import LowRank
from fromfew.parts.word import Word
from fromfew.ports.part import Parts
from fromfew.stage import Stage
from fromfew.testing.contract import few_photos
from fromfew.testing.tiny import tiny


def thin(bb, seed=0):
    return Parts(maps=LowRank.of(bb.select("attention"), 2, 2.0, generator(seed)))


def stage(bb, parts, **how):
    batches = photo_batches(few_photos(), size=bb.default_size, batch=2, variants=2)
    given = {
        "steps": 5,
        "batches": batches,
        "terms": [(1.0, denoise)],
        "train": dict.fromkeys(parts, 0.01),
    }
    return Stage(**{**given, **how})


SETTINGS = {"steps": 6, "batch": 2, "lr": 1e-2, "rank": 2, "modifier": "word", "encoder_lr": 1e-2}


def numbers(parts):
    return torch.cat([value.flatten() for value in parts.state_dict().values()])


def test_the_loss_at_fixed_noise_falls_and_looking_changes_nothing():
    bb = tiny("sd15")
    parts = thin(bb)
    plan = stage(bb, parts, steps=20)
    start, began = look(bb, parts, plan, seed=3), numbers(parts)
    assert look(bb, parts, plan, seed=3) == start
    assert torch.equal(numbers(parts), began)
    fit(bb, parts, plan, rng=generator(0))
    assert look(bb, parts, plan, seed=3) < start


def test_one_seed_gives_one_result_and_global_chance_is_left_alone():
    bb = tiny("sd15")
    before = torch.get_rng_state()
    results = []
    for seed in (0, 0, 1):
        parts = thin(bb)
        fit(bb, parts, stage(bb, parts), rng=generator(seed))
        results.append(numbers(parts))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_watch_hears_of_every_step():
    bb = tiny("sd15")
    parts = thin(bb)
    heard = []
    history = fit(bb, parts, stage(bb, parts), rng=generator(0), watch=lambda *what: heard.append(what))
    assert [(done, total) for done, total, _ in heard] == [(i + 1, 5) for i in range(5)]
    assert heard[0][2].startswith("loss ")
    assert len(history.losses) == 5
    assert history.seconds > 0


def test_watch_can_end_a_stage_and_the_end_is_kept(tmp_path):
    bb = tiny("sd15")
    parts, kept = thin(bb), tmp_path / "stage.safetensors"
    history = fit(
        bb, parts, stage(bb, parts), rng=generator(0), watch=lambda done, *_: "stop" if done == 2 else None, resume=kept
    )
    assert len(history.losses) == 2
    fresh, heard = thin(bb), []
    again = fit(bb, fresh, stage(bb, fresh), rng=generator(0), watch=lambda *what: heard.append(what), resume=kept)
    assert heard == [], "a stage that was ended early is ended"
    assert (again.losses, again.seconds) == (history.losses, history.seconds)
    assert torch.equal(numbers(fresh), numbers(parts))


@pytest.mark.parametrize("at", [1, 3, 5])
def test_a_run_stopped_at_any_step_goes_on_with_the_same_bits(at, tmp_path):
    bb = tiny("sd15")
    whole, torn = (Parts(word=Word.learned(bb, "<v>", "cat", 1, generator(0)), maps=thin(bb).maps) for _ in range(2))
    history = fit(bb, whole, stage(bb, whole, schedule="cosine"), rng=generator(0))

    def stop(done, total, note):
        if done == at:
            raise KeyboardInterrupt

    kept = tmp_path / "stage.safetensors"
    with pytest.raises(KeyboardInterrupt):
        fit(bb, torn, stage(bb, torn, schedule="cosine"), rng=generator(0), watch=stop, resume=kept)
    fresh = Parts(word=Word.learned(bb, "<v>", "cat", 1, generator(0)), maps=thin(bb).maps)
    again = fit(bb, fresh, stage(bb, fresh, schedule="cosine"), rng=generator(0), resume=kept)
    assert again.resumed == at
    assert again.losses == history.losses
    assert torch.equal(numbers(fresh), numbers(whole))


def test_a_process_killed_without_warning_resumes_with_the_same_bits(tmp_path):
    script = textwrap.dedent(f"""
        import os, signal
        from functools import partial
        from pathlib import Path
        import fromfew.fit as fitting
        from fromfew.method import find
        from fromfew.testing.contract import few_photos
        from fromfew.testing.tiny import tiny

        fitting.fit = partial(fitting.fit, every=0.0)
        def kill(done, total, note=""):
            if done == 4:
                os.kill(os.getpid(), signal.SIGKILL)
        method = find("lora")(**{SETTINGS})
        method.learn(tiny("sd15"), few_photos(), watch=kill, work=Path({str(tmp_path)!r}))
        """)
    end = subprocess.run([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert end.returncode == -signal.SIGKILL
    bb, method, seen = tiny("sd15"), find("lora")(**SETTINGS), []
    live = method.learn(bb, few_photos(), work=tmp_path, watch=lambda done, total, note="": seen.append(done))
    assert seen == [4, 5, 6], "the fourth step was not yet written when the process died"
    assert torch.equal(numbers(live.parts), numbers(method.learn(bb, few_photos()).parts))


def test_an_interrupt_in_the_middle_of_an_update_does_not_keep_a_torn_state(tmp_path, monkeypatch):
    bb, kept = tiny("sd15"), tmp_path / "stage.safetensors"
    whole, torn, fresh = thin(bb), thin(bb), thin(bb)
    fit(bb, whole, stage(bb, whole), rng=generator(0))
    real, calls = torch.optim.AdamW.step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            next(iter(torn.parameters())).data.add_(1)
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fit(bb, torn, stage(bb, torn), rng=generator(0), resume=kept, every=0.0)
    history = fit(bb, fresh, stage(bb, fresh), rng=generator(0), resume=kept)
    assert history.resumed == 2
    assert torch.equal(numbers(fresh), numbers(whole))


def test_the_state_of_another_run_is_refused(tmp_path):
    bb = tiny("sd15")
    parts = thin(bb)
    kept = tmp_path / "stage.safetensors"
    fit(bb, parts, stage(bb, parts), rng=generator(0), resume=kept)
    with pytest.raises(FromfewError, match="another run"):
        fit(bb, thin(bb), stage(bb, parts), rng=generator(1), resume=kept)


def test_a_run_that_had_ended_is_not_run_again(tmp_path):
    bb = tiny("sd15")
    parts = thin(bb)
    kept = tmp_path / "stage.safetensors"
    fit(bb, parts, stage(bb, parts), rng=generator(0), resume=kept)
    fresh, heard = thin(bb), []
    fit(bb, fresh, stage(bb, fresh), rng=generator(0), resume=kept, watch=lambda *what: heard.append(what))
    assert heard == []
    assert torch.equal(numbers(fresh), numbers(parts))


def test_a_loss_that_is_no_number_stops_with_advice_and_keeps_the_last_good_state(tmp_path):
    bb = tiny("sd15")
    parts = thin(bb)
    calls = []

    def breaks(step):
        calls.append(1)
        return denoise(step) * (float("nan") if len(calls) == 4 else 1)

    kept = tmp_path / "stage.safetensors"
    with pytest.raises(FromfewError, match=r"after step 3 of 5.*learning rate too high.*kept at"):
        fit(bb, parts, stage(bb, parts, terms=[(1.0, breaks)]), rng=generator(0), resume=kept)
    assert bool(torch.isfinite(numbers(parts)).all())
    assert kept.exists()
    assert bb.attached == []


def test_what_is_not_named_stays_still():
    bb = tiny("sd15")
    parts = Parts(word=Word.learned(bb, "<v>", "cat", 1, generator(0)), maps=thin(bb).maps)
    word = numbers(Parts(word=parts.word)).clone()
    fit(bb, parts, stage(bb, parts, train={parts.maps: 1e-2}), rng=generator(0))
    assert torch.equal(numbers(Parts(word=parts.word)), word)


def test_times_can_be_chosen_and_attention_recorded():
    bb = tiny("sd15")
    parts = thin(bb)
    seen = []

    def look_at(step):
        seen.append((step.t, step.maps["cat"]))
        return denoise(step)

    plan = stage(
        bb,
        parts,
        steps=1,
        terms=[(1.0, look_at)],
        record=("cat",),
        times=lambda n, rng: torch.full((n,), 0.9),
    )
    fit(bb, parts, plan, rng=generator(0))
    assert bool((seen[0][0] == 0.9).all())
    assert seen[0][1].dim() == 3


def test_a_masked_loss_sends_no_gradient_outside_the_mask():
    bb = tiny("sd15")
    refs = few_photos(masks=True)
    batch = photo_batches(refs, size=bb.default_size, batch=2)(generator(0))
    assert batch.masks is not None
    step = _step(batch, pred=torch.randn(2, 4, 8, 8, generator=generator(1)).requires_grad_())
    masked(step).sum().backward()
    inside = torch.nn.functional.adaptive_avg_pool2d(batch.masks, 8).expand(-1, 4, -1, -1) > 0
    assert not bool(step.pred.grad[~inside].any())
    assert bool(step.pred.grad[inside].any())


def test_a_mask_of_everything_is_no_mask():
    bb = tiny("sd15")
    batch = photo_batches(few_photos(), size=bb.default_size, batch=2)(generator(0))
    whole = replace(batch, masks=torch.ones(2, 1, bb.default_size, bb.default_size))
    pred = torch.randn(2, 4, 8, 8, generator=generator(1))
    assert torch.allclose(masked(_step(whole, pred)), denoise(_step(batch, pred)))


def test_only_takes_the_mean_over_its_own_rows():
    bb = tiny("sd15")
    batch = photo_batches(few_photos(), size=bb.default_size, batch=3)(generator(0))
    batch = replace(batch, of=["photo", "class", "photo"])
    step = _step(batch, torch.randn(3, 4, 8, 8, generator=generator(1)))
    each = denoise(step)
    assert torch.allclose(only("photo", denoise)(step).mean(), (each[0] + each[2]) / 2)
    assert torch.allclose(only("class", denoise)(step).mean(), each[1])


def test_the_anchor_is_the_squared_way_from_the_start():
    bb = tiny("sd15")
    word = Word.learned(bb, "<v>", "cat", 1, generator(0)).requires_grad_(False)
    pull = anchored(word)
    word.vectors["one"] += 2
    batch = photo_batches(few_photos(), size=bb.default_size, batch=2)(generator(0))
    assert torch.allclose(pull(_step(batch, torch.zeros(2, 4, 8, 8))), torch.tensor(4.0 * word.vectors["one"].numel()))


def test_every_tuned_method_draws_class_pictures_of_the_untouched_base(tmp_path, monkeypatch):
    monkeypatch.setenv("FROMFEW_CACHE", str(tmp_path))
    bb = tiny("sd15")
    find("lora")(steps=1, batch=1, lr=1e-3, rank=2, prior=1.0, class_images=2).learn(bb, few_photos())
    drawn = list(tmp_path.rglob("*.png"))
    assert len(drawn) >= 2
    times = {path: path.stat().st_mtime_ns for path in drawn}
    find("lora")(steps=1, batch=1, lr=1e-3, rank=2, prior=1.0, class_images=2).learn(bb, few_photos())
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.png")} == times, "they were drawn twice"


def test_what_follows_an_update_sees_its_step_and_may_change_what_learned():
    bb, seen = tiny("sd15"), []
    word = Word.learned(bb, "<v>", "cat", 1, generator(0))
    batches = photo_batches(few_photos(), size=bb.default_size, batch=2)

    def after(step):
        assert not torch.is_grad_enabled()
        seen.append(step.batch.captions)
        word.vectors["one"].fill_(3.0)

    fit(bb, Parts(word=word), Stage(3, batches, [(1.0, denoise)], {word: 1e-2}, after=after), rng=generator(0))
    assert len(seen) == 3
    assert bool((word.vectors["one"] == 3).all())


def test_a_running_mean_in_a_buffer_of_what_learns_goes_on_after_a_kill(tmp_path):
    bb, batches = tiny("sd15"), photo_batches(few_photos(), size=32, batch=1)

    def learned(**how):
        word = Word.learned(bb, "<v>", "cat", 1, generator(0))
        word.register_buffer("mean", torch.zeros(4))

        def after(step):
            word.mean.mul_(0.9).add_(0.1 * step.x0.mean((0, 2, 3)))

        stage = Stage(4, batches, [(1.0, denoise)], {word: 1e-2}, after=after)
        fit(bb, Parts(word=word), stage, rng=generator(0), **how)
        return word.state_dict()

    def stop(done, total, note=""):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learned(resume=tmp_path / "state.safetensors", watch=stop)
    whole, again = learned(), learned(resume=tmp_path / "state.safetensors")
    assert whole.keys() == again.keys() == {"vectors.one", "mean"}
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_plain_descent_adds_up_gradients():
    bb = tiny("sd15")
    batches = photo_batches(few_photos(), size=bb.default_size, batch=2)
    word = Word.learned(bb, "<v>", "cat", 1, generator(0))
    before, wanted = word.vectors["one"].detach().clone(), []

    def after(step):
        wanted.append(word.vectors["one"].grad.clone())

    stage = Stage(
        3, batches, [(1.0, denoise)], {word: 0.5}, optimiser="sgd", clip=float("inf"), after=after,
    )  # fmt: skip
    fit(bb, Parts(word=word), stage, rng=generator(0))
    assert torch.allclose(word.vectors["one"], before - 0.5 * torch.stack(wanted).sum(0), atol=1e-6)
    assert bool(torch.stack(wanted).any())


def _step(batch, pred):
    from fromfew.rows import Rows
    from fromfew.stage import Step

    n = len(batch)
    zero = torch.zeros_like(pred)
    t = torch.full((n,), 0.5)
    return Step(zero, zero, t, zero, pred, zero, None, Rows.plain(n, t), batch)


def test_a_watch_lets_the_rates_fall_over_the_last_steps_and_a_killed_run_falls_on(tmp_path):
    bb = tiny("sd15")

    def run(name, dies=0):
        parts, places = thin(bb), []
        one = next(parts.parameters())

        def watch(done, total, note):
            places.append((done, total, float(one.detach().sum())))
            if done == dies:
                raise KeyboardInterrupt
            return Fall(3) if done == 2 else None

        # The gradient is the same at every step, so that what moves is the rate.
        even = [(1.0, lambda step: one.sum() * torch.ones(len(step.x0)))]
        whole = stage(bb, parts, steps=20, terms=even, optimiser="sgd")
        try:
            fit(bb, parts, whole, rng=generator(0), watch=watch, resume=tmp_path / name, every=0.0)
        except KeyboardInterrupt:
            return places + run(name)
        return places

    places = run("whole")
    assert [(done, total) for done, total, _ in places] == [(1, 20), (2, 20), (3, 5), (4, 5), (5, 5)]
    at = torch.tensor([where for *_, where in places])
    assert torch.allclose((at[1:] - at[:-1]) / (at[1] - at[0]), torch.tensor([1.0, 0.75, 0.5, 0.25]), atol=1e-3)
    for dies in (1, 3, 4):
        assert run(f"torn {dies}", dies) == places, dies
