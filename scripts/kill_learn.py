"""Kill ``fromfew learn`` at random moments and see that every resumed run ends in the same bits.

    python scripts/kill_learn.py --kills 100 --seed 0

Prints, for every case, how many processes were killed, what they left on the disk, and what differed from a run that
was left alone. Ends with status 1 if anything differed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from fromfew.testing.kills import CASES, torment


def main() -> int:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="processes to kill over all cases")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--case", choices=CASES, action="append", help="only this case; may be given several times")
    found = parser.parse_args()
    cases = found.case or list(CASES)
    shares = [len(range(i, found.kills, len(cases))) for i in range(len(cases))]
    wrong, total, seconds = [], 0, 0.0
    for case, share in zip(cases, shares, strict=True):
        with tempfile.TemporaryDirectory() as folder:
            told = torment(case, Path(folder), share, found.seed)
        where = ", ".join(f"{place} {count}" for place, count in told.where.most_common())
        print(f"{case}: {told.kills} kills in {told.runs} runs, {told.seconds:.0f} s; {where}", flush=True)
        wrong, total, seconds = wrong + told.wrong, total + told.kills, seconds + told.seconds
    for one in wrong:
        print(f"DIFFERS: {one}")
    print(f"{total} kills, {len(wrong)} differences, {seconds / max(total, 1):.1f} s a kill")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
