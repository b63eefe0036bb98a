"""A bench small enough for a test: a tiny base, seeded evaluators, two subjects, two prompts."""

import torch

from fromfew.bench.contestants import contestant
from fromfew.bench.run import Plan
from fromfew.bench.task import open_task
from fromfew.metrics.networks import WorldFace, WorldJudge, WorldPair
from fromfew.metrics.suites import world_of
from fromfew.testing.tiny import tiny
from fromfew.world.evaluators import FaceId, Judge, Pair


def small_suite():
    """The world's metrics over seeded, untrained networks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = [net.eval().requires_grad_(False) for net in (Pair(["a", "animal", "beach"]), Judge(), FaceId())]
    return world_of(WorldPair(nets[0]), WorldJudge(nets[1]), WorldFace(nets[2]))


def small_plan(
    bb, suite, methods=("base", "paste", "textual-inversion"), task="world/objects", seeds=1, subjects=2, prompts=2
):
    """A plan of seconds."""
    options = {"steps": 2, "guidance": 2.0}
    usual = {"steps": 2, "batch": 1, "lr": 0.01}
    quick = {"textual-inversion": usual, "break-a-scene": usual | {"prior": 0.0, "encoder": False, "low_rank": 2}}
    who = [contestant(name, quick, options) for name in methods]
    tasks = [open_task(task).only(subjects, prompts)]
    return Plan(bb, tasks, who, range(seeds), {"world": suite}, options)


def fresh_plan():
    """The same in any process."""
    return small_plan(tiny("sd15"), small_suite())
