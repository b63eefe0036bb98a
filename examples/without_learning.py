"""Two methods that tune nothing: IP-Adapter reads pictures once, StyleAligned lets pictures share a style."""

import argparse
from pathlib import Path

import fromfew
from fromfew.sheet import contact_sheet

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=20, help="sampling steps")
parser.add_argument("--out", type=Path, default=Path("out/without_learning"))
args = parser.parse_args()
args.out.mkdir(parents=True, exist_ok=True)
bb = fromfew.open_backbone("world")

photos = Path(__file__).parent / "photos" / "roller-skate"
skate = fromfew.learn(photos, noun="shoe", placeholder="<skate>", method="ip-adapter", base=bb)
prompts = [f"a <skate> shoe {scene}" for scene in ("on the beach", "at night", "in the forest", "in space")]
images = fromfew.make(bb, prompts, [skate], seed=1, steps=args.steps)
contact_sheet(images.pil, prompts).save(args.out / "ip-adapter.png")

style = fromfew.learn(None, method="style-aligned", base=bb)
prompts = ["a cat in the city in neon style", "a lamp", "a boat", "a house"]
images = fromfew.make(bb, prompts, [style], seed=1, steps=args.steps)
contact_sheet(images.pil, prompts).save(args.out / "style-aligned.png")
print(f"two sheets in {args.out}")
