"""Feed bad input to what reads other people's files, for so many minutes.

    python scripts/fuzz.py                       every target, one minute each
    python scripts/fuzz.py concept --minutes 10

Memory is capped at 2 GiB above what the program needs itself. Ends with status 1 if anything but a result or a
`FromfewError` came out; the number of the input makes it again (``--only N``).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from fromfew.testing.fuzz import TARGETS, capped, fuzz


def main() -> int:
    """Run the targets that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=TARGETS, help="default: all")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="N", help="feed input N and show what comes of it")
    found = parser.parse_args()
    bad = 0
    for target in [found.target] if found.target else TARGETS:
        with tempfile.TemporaryDirectory() as folder:
            if found.only is not None:
                TARGETS[target](random.Random(f"{found.seed} {target} {found.only}"), Path(folder))
                continue
            fuzz(target, Path(folder), count=1, seed=-1)  # what is imported and made once is not counted
            with capped():
                told = fuzz(target, Path(folder), seconds=60 * found.minutes, seed=found.seed)
        print(f"{target}: {told.inputs} inputs, {told.refused} refused, slowest {told.slowest:.2f} s", flush=True)
        for one in told.findings:
            print(f"FOUND {one.target} {one.number} (seed {found.seed}):\n{one.what}", flush=True)
        bad += len(told.findings)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
