"""The bench over many machines, through Ray: every worker works on the same folder, cell by cell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fromfew.errors import FromfewError

if TYPE_CHECKING:
    from fromfew.bench.run import Plan, Summary

__all__ = ["over"]

_RETRIES = 20


def over(
    build: Callable[[], Plan],
    out: Path,
    *,
    address: str = "auto",
    workers: int = 2,
    budget: float | None = None,
    retry: bool = False,
) -> Summary:
    """Let workers share a run; a worker that dies is replaced, and its cell is done again.

    The cells are shared out by the claims in the folder, so machines must see it under one path; nothing else
    passes between them, and the records are those of a run on one machine.

    Args:
        build: makes the plan, in every worker.
        out: folder of the records, on a disk that all machines share.
        address: of a cluster; "auto" joins one that runs here, or else starts one on this machine.
        workers: how many.
        budget: minutes after which no further cell is begun.
        retry: whether to do failed cells once more.

    Raises:
        FromfewError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as error:
        raise FromfewError("--ray needs Ray: pip install 'fromfew[ray]'") from error
    _join(ray, address)
    try:
        task = ray.remote(max_retries=_RETRIES)(_share)
        refs = [task.remote(build, str(out.absolute()), budget, retry) for _ in range(workers)]
        return _sum(ray.get(refs))
    finally:
        ray.shutdown()


def _join(ray: Any, address: str) -> None:
    quiet = {"log_to_driver": False, "configure_logging": False, "include_dashboard": False}
    if address != "auto":
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise FromfewError(f"There is no Ray cluster at '{address}': {str(error).splitlines()[0]}") from error
        return
    try:
        ray.init(address="auto", log_to_driver=False)
    except ConnectionError:
        ray.init(**quiet)


def _share(build: Callable[[], Plan], out: str, budget: float | None, retry: bool) -> Summary:
    """What one worker does: whatever no other has claimed."""
    from fromfew.bench.run import bench

    return bench(build(), Path(out), budget=budget, retry=retry)


def _sum(parts: list[Summary]) -> Summary:
    from fromfew.bench.run import Summary

    return Summary(
        done=sum(part.done for part in parts),
        before=min(part.before for part in parts),
        failed=sum(part.failed for part in parts),
        refused=sum(part.refused for part in parts),
        left=min(part.left for part in parts),
    )
