"""Learn two subjects apart and put both into one picture, each in its place, on the embedded base."""

import argparse
from pathlib import Path

import fromfew
from fromfew.sheet import contact_sheet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, help="optimiser steps (default: the method's own)")
parser.add_argument("--out", type=Path, default=Path("out/two_subjects"))
args = parser.parse_args()

bb = fromfew.open_backbone("world")
settings = {} if args.steps is None else {"steps": args.steps}
photos = Path(__file__).parent / "photos"
learning = {"method": "lora", "base": bb, **settings}
taxi = fromfew.learn(photos / "auto-rickshaw", noun="vehicle", placeholder="<taxi>", **learning)
gouda = fromfew.learn(photos / "cheese-wedge", noun="food", placeholder="<gouda>", **learning)

# As wide as two of the base's pictures: every region is drawn at the size the base knows, with its own concept alone.
side = bb.default_size
images, prompts = [], []
for scene in ("on the beach", "in the snow", "at night", "on pink fabric"):
    prompts.append(f"a <taxi> vehicle to the left of a <gouda> food {scene}")
    regions = {f"a <taxi> vehicle {scene}": (0, 0, 0.5, 1), f"a <gouda> food {scene}": (0.5, 0, 1, 1)}
    drawing = {"size": (side, 2 * side), "regions": regions, "region_method": "noise"}
    images += fromfew.make(bb, prompts[-1], [taxi, gouda], seed=1, **drawing).pil
args.out.mkdir(parents=True, exist_ok=True)
contact_sheet(images, prompts, cell=256).save(args.out / "sheet.png")
print(f"{len(images)} pictures on {args.out / 'sheet.png'}")
