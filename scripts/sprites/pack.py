"""Render the world's sprites with npm packages and pack them into one safetensors file.

Run from the repository root, once, with node and npm at hand: ``python scripts/sprites/pack.py``.
"""

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from fromfew.world.vocabulary import CORE, HELD_OUT, SETS, WIDE, names

HERE = Path(__file__).parent


def main() -> None:
    """Render every name of every set and write ``fromfew/world/data/sprites.safetensors``."""
    subprocess.run(["npm", "install", "--silent", "--prefix", str(HERE)], check=True)
    wanted = [*names(CORE), *names(WIDE), *names(HELD_OUT)]
    with tempfile.TemporaryDirectory() as out:
        subprocess.run(["node", str(HERE / "render.mjs"), out], input=json.dumps(wanted), text=True, check=True)
        files = [(f"{s}/{n}", (Path(out) / s / f"{n}.webp").read_bytes()) for s in SETS for n in wanted]
    ends = np.cumsum([len(data) for _, data in files])
    index = {key: [int(end) - len(data), int(end)] for (key, data), end in zip(files, ends, strict=True)}
    target = Path("fromfew/world/data/sprites.safetensors")
    blob = np.frombuffer(b"".join(data for _, data in files), dtype=np.uint8)
    save_file({"webp": blob}, target, metadata={"index": json.dumps(index)})
    print(f"{target}: {len(files)} sprites, {target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
