"""Over Ray: the table equals the serial one, also when a worker is killed in the middle."""

import os
import sys
from pathlib import Path

import pytest

from fromfew.bench.records import read
from fromfew.bench.run import bench
from fromfew.bench.tables import leaderboard


def build_plan():
    """A plan of its own in every process, of controls and a tiny base."""
    import torch

    from fromfew.bench.contestants import contestant
    from fromfew.bench.run import Plan
    from fromfew.bench.task import open_task
    from fromfew.metrics.networks import WorldFace, WorldJudge, WorldPair
    from fromfew.metrics.suites import world_of
    from fromfew.testing.tiny import tiny
    from fromfew.world.evaluators import FaceId, Judge, Pair

    torch.manual_seed(0)
    nets = [net.eval().requires_grad_(False) for net in (Pair(["a", "animal"]), Judge(), FaceId())]
    suite = world_of(WorldPair(nets[0]), WorldJudge(nets[1]), WorldFace(nets[2]))
    options = {"steps": 1}
    who = [contestant(name, {}, options) for name in ("base", "paste")]
    return Plan(tiny("sd15"), [open_task("world/objects").only(2, 2)], who, range(1), {"world": suite}, options)


def means(out: Path):
    return [(row.method, row.means, row.sets) for row in leaderboard(read(out))]


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_changes_nothing_in_the_table(tmp_path):
    # Workers cannot import this file, so what is in it travels along.
    pytest.importorskip("ray.cloudpickle").register_pickle_by_value(sys.modules[__name__])
    from fromfew.bench.cluster import over

    mark = tmp_path / "killed"

    def build():
        from fromfew.bench import run

        if not mark.exists():
            real = run.append

            def dies(out, record):
                real(out, record)
                mark.write_text("once")
                os._exit(9)

            run.append = dies
        return build_plan()

    with_ray, serial = tmp_path / "ray", tmp_path / "serial"
    over(build, with_ray, workers=2)
    assert mark.exists()
    bench(build_plan(), serial)
    assert means(with_ray) == means(serial)
