"""How good the shipped base is: the table of the held-in grammar, each figure beside that of real scenes."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fromfew.io.files import write_atomic
from fromfew.pretrain.autoencoder import psnr
from fromfew.pretrain.data import COLOUR_NAMES, CONTEXT_NAMES, OBJECTS, STYLE_NAMES, half, to_tensor
from fromfew.world.evaluators import evaluator, side_views
from fromfew.world.scenes import COLOURLESS, Item, Scene, caption, draw
from fromfew.world.vocabulary import COLOURS, CONTEXTS, CORE, STYLES, names

SEED = 900


def scenes(n: int) -> list[Scene]:
    """``n`` scenes of the held-in grammar: one core object each, every style and context, a quarter recoloured."""
    found = []
    for i in range(n):
        rng = np.random.default_rng([SEED, i])
        style = list(STYLES)[i % len(STYLES)]
        name = str(rng.choice(list(names(CORE))))
        colour = str(rng.choice(COLOURS)) if style not in COLOURLESS and rng.random() < 0.35 else None
        scene = Scene((Item(name, colour=colour),), list(CONTEXTS)[i % len(CONTEXTS)], style)
        found.append(replace(scene, caption=caption(scene)))
    return found


def plain(n: int) -> list[Scene]:
    """``n`` scenes with one core object, every object in turn, in its own colours and no style."""
    objects, contexts = list(names(CORE)), list(CONTEXTS)
    found = [Scene((Item(objects[i % len(objects)]),), contexts[i * 5 % len(contexts)], "plain") for i in range(n)]
    return [replace(scene, caption=caption(scene)) for scene in found]


def pairs(n: int) -> list[Scene]:
    """``n`` scenes with two different core objects side by side."""
    found = []
    for i in range(n):
        rng = np.random.default_rng([SEED + 1, i])
        first, second = rng.choice(list(names(CORE)), 2, replace=False)
        scene = Scene((Item(str(first)), Item(str(second))), list(CONTEXTS)[i % len(CONTEXTS)], "plain", "left")
        found.append(replace(scene, caption=caption(scene)))
    return found


def judged(pictures: Tensor, wanted: Sequence[Scene]) -> dict[str, float]:
    """Accuracies in percent of what the judge sees in pictures [N, 3, 128, 128] against what was asked for."""
    judge = evaluator("judge")
    with torch.no_grad():
        told = [judge(half(part)) for part in pictures.split(64)]
    seen = {name: torch.cat([t[name] for t in told]) for name in told[0]}
    truth = torch.tensor([OBJECTS.index(s.items[0].name) for s in wanted])
    top = seen["object"].topk(5, dim=1).indices
    found = {
        "object": top[:, 0] == truth,
        "object, top five": (top == truth[:, None]).any(1),
        "context": seen["context"].argmax(1) == torch.tensor([CONTEXT_NAMES.index(s.context) for s in wanted]),
        "style": seen["style"].argmax(1) == torch.tensor([STYLE_NAMES.index(s.style) for s in wanted]),
    }
    tinted = [i for i, s in enumerate(wanted) if s.items[0].colour]
    if tinted:
        asked = torch.tensor([COLOUR_NAMES.index(str(wanted[i].items[0].colour)) for i in tinted])
        found["colour"] = seen["colour"][tinted].argmax(1) == asked
    if len(wanted[0].items) == 2:  # each thing is looked for on its side
        halves = torch.stack([side_views(picture, s.relation) for picture, s in zip(pictures, wanted, strict=True)])
        with torch.no_grad():
            first, second = (judge(half(halves[:, k]))["object"].topk(5, dim=1).indices for k in (0, 1))
        other = torch.tensor([OBJECTS.index(s.items[1].name) for s in wanted])
        found["object"], found["object, top five"] = first[:, 0] == truth, (first == truth[:, None]).any(1)
        found["second object"] = second[:, 0] == other
        found["both objects"] = found["object"] & found["second object"]
    return {name: round(100 * float(right.float().mean()), 1) for name, right in found.items()}


def real(wanted: Sequence[Scene]) -> Tensor:
    """The scenes themselves, drawn by the renderer, [N, 3, 128, 128]."""
    drawn = [draw(s, np.random.default_rng([SEED + 2, i])).picture for i, s in enumerate(wanted)]
    return to_tensor(np.stack([np.asarray(p) for p in drawn]))


def distance(first: Tensor, second: Tensor) -> float:
    """Frechet distance (arXiv 1706.08500) between two sets of the judge's embeddings, times 100."""
    judge = evaluator("judge")
    with torch.no_grad():
        a, b = (torch.cat([judge.embedding(half(p)) for p in x.split(64)]).double() for x in (first, second))
    # The trace of (C1 C2)^(1/2) is the sum of the roots of C1 C2's eigenvalues.
    roots = torch.linalg.eigvals(a.T.cov() @ b.T.cov()).real.clamp(min=0).sqrt().sum()
    return 100 * float((a.mean(0) - b.mean(0)).square().sum() + a.T.cov().trace() + b.T.cov().trace() - 2 * roots)


def report(out: Path, *, n: int = 200, base: str = "world") -> str:
    """Draw, judge, and write ``report.json``, ``report.md`` and ``sheet.png``; returns the table as Markdown.

    Args:
        out: folder for the results.
        n: prompts with one object; half as many with one object and no style, a fifth as many with two.
        base: the base to measure.
    """
    from fromfew.backbones.open import open_backbone
    from fromfew.make import make
    from fromfew.sheet import contact_sheet

    out.mkdir(parents=True, exist_ok=True)
    bb = open_backbone(base)
    single, bare, double = scenes(n), plain(max(len(names(CORE)), n // 2)), pairs(max(8, n // 5))
    made = make(bb, [s.caption for s in single], seed=SEED)
    unstyled = make(bb, [s.caption for s in bare], seed=SEED + 2)
    both = make(bb, [s.caption for s in double], seed=SEED + 1)
    truth, truth_both = real(single), real(double)
    with torch.no_grad():
        back = torch.cat([bb.decode(bb.encode(part)) for part in truth.split(16)]).clamp(-1, 1)
    table = {
        "one object": (judged(made.tensor, single), judged(truth, single)),
        "one object, no style": (judged(unstyled.tensor, bare), judged(real(bare), bare)),
        "two objects": (judged(both.tensor, double), judged(truth_both, double)),
        "distance": (
            {"Frechet, x 100": round(distance(made.tensor, truth), 2)},
            {"Frechet, x 100": round(distance(real(scenes(2 * n)[n:]), truth), 2)},
        ),
        "autoencoder": ({"PSNR (dB)": round(float(psnr(back - truth)), 2)}, {}),
    }
    write_atomic(out / "report.json", json.dumps({"n": n, "fingerprint": bb.fingerprint(), "table": table}, indent=2))
    counts = f"{n} prompts with one object, {len(bare)} more without a style, {len(double)} with two"
    lines = [f"{counts}, judged by a network that did not train the base.\n"]
    lines += ["| | measure | base | real scenes |", "|---|---|---|---|"]
    for group, (ours, ceiling) in table.items():
        lines += [f"| {group} | {name} | {value} | {ceiling.get(name, '')} |" for name, value in ours.items()]
    text = "\n".join(lines) + "\n"
    write_atomic(out / "report.md", text)
    said = [s.caption for s in (*bare[:24], *single[:20], *double[:4])]
    shown = [*unstyled.pil[:24], *made.pil[:20], *both.pil[:4]]
    contact_sheet(shown, said, columns=8, cell=128).save(out / "sheet.png")
    return text
