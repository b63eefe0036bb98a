"""What a piece of work costs: seconds and the most memory that was in use meanwhile."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Meter"]


class Meter:
    """Seconds by name, and the peak of memory since it was made."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak begins anew
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        """Add the time spent inside to a name."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - began, 3)

    def peak(self) -> dict[str, int]:
        """Most bytes in use: of the process, and of the GPU if there is one."""
        found = {"process": _resident()}
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            found["gpu"] = int(torch.cuda.max_memory_allocated())
        return found


def _resident() -> int:
    status = Path("/proc/self/status")
    if status.exists():
        match = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if match:
            return int(match[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
