"""``fromfew pretrain``: train the world's models, stage by stage, and measure them."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ORDER = ("autoencoder", "text", "eye", "denoiser", "ip-adapter", "judge", "pair", "face")
DEFAULT = Path("runs/pretrain")
"""Where states are kept unless ``--out`` says otherwise."""


def adapters() -> list[str]:
    """Methods that are trained beforehand, from their cards, without torch."""
    from fromfew.registry import cards

    return [name for name, card in cards().items() if card.get("needs_weights")]


def parser() -> argparse.ArgumentParser:
    """The options; nothing heavy is imported for them."""
    p = argparse.ArgumentParser(
        prog="fromfew pretrain",
        description="Train the embedded base model and its evaluators, stage by stage. Every stage saves its state "
        "each minute and goes on from there with the same bits when it is started again.",
    )
    stages = (*dict.fromkeys((*ORDER, *adapters())), "ship", "report")
    p.add_argument("stage", choices=stages, help="what to train; 'ship' writes the weights into the package, 'report' "
                   "measures the shipped base")  # fmt: skip
    p.add_argument("--out", type=Path, default=DEFAULT, help="folder of scenes, latents and states")
    p.add_argument("--steps", type=int, help="optimiser steps in all (default: the stage's own)")
    p.add_argument("--until", type=int, help="stop at this step; a later call goes on")
    p.add_argument("--device", default="cpu", help="cpu or cuda")
    p.add_argument("--batch", type=int, help="rows a step, a divisor of 1024 (default: the stage's own)")
    p.add_argument("--lr", type=float, help="learning rate (default: the stage's own)")
    p.add_argument("--amp", action="store_true", help="bfloat16 autocast, for GPUs")
    p.add_argument(
        "--start",
        help="begin from weights: those of a base ('world' or a diffusers folder) for denoiser and autoencoder, a "
        "method's own ('world' or a file) for a method",
    )
    p.add_argument("--plain-first", type=int, help="denoiser: steps at the start with one plain named thing a scene")
    p.add_argument(
        "--named-first",
        type=int,
        help="denoiser: steps at the start with named things only, of eight scenes one plain, three styled, four pairs",
    )
    p.add_argument("--workers", type=int, default=1, help="processes that draw the scenes beforehand")
    p.add_argument("--threads", type=int, default=2, help="CPU threads; the bits depend on it")
    p.add_argument(
        "--resume", action="store_true", help="go on from the state in --out (without it, a state there is refused)"
    )
    p.add_argument("--sheet-every", type=int, default=1000, help="steps between measurements and sample sheets")
    p.add_argument("--n", type=int, default=200, help="report: prompts to draw")
    return p


def run(argv: Sequence[str]) -> int:
    """Run ``fromfew pretrain`` with the arguments after the verb; returns the exit code."""
    args = parser().parse_args(list(argv))
    if args.stage == "ship":
        from fromfew.pretrain.ship import ship

        ship(args.out)
        return 0
    if args.stage == "report":
        from fromfew.pretrain.report import report

        sys.stdout.write(report(args.out / "report", n=args.n))
        return 0
    if args.stage in adapters():
        import torch

        from fromfew.pretrain.adapter import train_adapter

        torch.set_num_threads(args.threads)
        train_adapter(
            args.out, args.stage, steps=args.steps, device=args.device, batch=args.batch, lr=args.lr, until=args.until,
            start=args.start,
        )  # fmt: skip
        return 0
    train(args)
    return 0


def _adjust(stage: Any, args: argparse.Namespace) -> None:
    """Settings of the stage that were given on the command line."""
    from fromfew.errors import FromfewError

    if args.batch is not None and (args.batch < 1 or 1024 % args.batch):
        raise FromfewError(f"--batch is {args.batch}; it must divide 1024")
    given = dict(steps=args.steps, batch_size=args.batch, lr=args.lr, amp=args.amp or None)
    for name, value in given.items():
        if value is not None:
            setattr(stage, name, value)
    for name in ("plain_first", "named_first"):
        if (value := getattr(args, name)) is not None:
            if args.stage != "denoiser":
                raise FromfewError(f"--{name.replace('_', '-')} is for the denoiser, not for '{args.stage}'")
            setattr(stage, name, value)
    if args.workers > 1 and hasattr(stage, "scenes"):
        stage.scenes.prepare(args.workers)


def train(args: argparse.Namespace) -> None:
    """Train one stage with a progress line, sample sheets and a log of figures."""
    import json

    import torch

    from fromfew.errors import FromfewError
    from fromfew.pretrain.loop import Run
    from fromfew.pretrain.stages import STARTED, find_stage

    torch.set_num_threads(args.threads)
    state = args.out / args.stage / "state.safetensors"
    if state.exists() and not args.resume:
        raise FromfewError(f"{state} holds a state of this stage; add --resume to go on, or choose another --out")
    stage: Any
    if args.start is None:
        stage = find_stage(args.stage, args.out, args.device)
    elif args.stage in STARTED:
        stage = STARTED[args.stage](args.out, args.device, args.start)
    else:
        raise FromfewError(f"--start is for {', '.join(STARTED)} and methods; '{args.stage}' always begins anew")
    _adjust(stage, args)
    going = Run(stage, args.out, args.device)
    begun, first = time.monotonic(), going.step
    record = (args.out / stage.name / "log.jsonl").open("a")

    def log(figures: dict[str, Any]) -> None:
        step = figures["step"]
        if step % args.sheet_every == 0 or step == stage.steps:
            with going.averaged() as model:
                figures |= stage.measure(model)
                stage.sheet(model, args.out / stage.name / "sheet.png")
        left = (time.monotonic() - begun) / max(step - first, 1) * (stage.steps - step) / 60
        record.write(json.dumps(figures) + "\n")
        record.flush()
        sys.stderr.write(f"{stage.name} {figures} {left:.1f} min left\n")

    with record:
        going.train(log=log, until=args.until)
