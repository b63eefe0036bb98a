"""Learn a subject from five pictures and draw it in new scenes, on the embedded base."""

import argparse
from pathlib import Path

import fromfew
from fromfew.sheet import contact_sheet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--photos", type=Path, default=Path(__file__).parent / "photos" / "peacock")
parser.add_argument("--noun", default="bird")
parser.add_argument("--method", default="lora")
parser.add_argument("--steps", type=int, help="optimiser steps (default: the method's own)")
parser.add_argument("--out", type=Path, default=Path("out/learn_and_make"))
args = parser.parse_args()

bb = fromfew.open_backbone("world")
settings = {} if args.steps is None else {"steps": args.steps}
concept = fromfew.learn(args.photos, noun=args.noun, placeholder="<sub>", method=args.method, base=bb, **settings)
concept.save(args.out / "concept")

scenes = ("on the beach", "in the snow", "at night", "in the city", "on pink fabric", "on a wooden floor")
prompts = [f"a <sub> {args.noun} {scene}" for scene in scenes]
images = fromfew.make(bb, prompts, [concept], seed=1)
contact_sheet(images.pil, prompts).save(args.out / "sheet.png")
print(f"{len(images)} pictures on {args.out / 'sheet.png'}")
