"""The bench over several processes of this machine: helpers do what the run itself does, on the same folder."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__all__ = ["helped", "leave_with_parent"]


@contextmanager
def helped(argv: Sequence[str], jobs: int) -> Iterator[None]:
    """While the block runs, ``jobs`` - 1 further processes work on it, and all share this one's threads.

    A helper that dies is not missed: its cell is free again, and done by another or by the run itself.

    Args:
        argv: words behind ``fromfew bench``.
        jobs: processes in all.
    """
    import torch

    before = torch.get_num_threads()  # what the environment, or the run that this one helps, has said
    threads = max(1, before // jobs)
    command = [sys.executable, "-m", "fromfew", "bench", *argv, "--helper"]
    env, nowhere = {**os.environ, "OMP_NUM_THREADS": str(threads)}, subprocess.DEVNULL
    helpers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=nowhere, stderr=nowhere, env=env)
        for _ in range(jobs - 1)
    ]
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        for one in helpers:
            one.kill()
            one.communicate()


def leave_with_parent() -> None:
    """In a helper: end when the run that began it ends, however it ends (its end of the pipe is closed then)."""

    def wait() -> None:
        # Not through sys.stdin: a thread that holds its lock does not let Python end.
        while os.read(0, 1):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
