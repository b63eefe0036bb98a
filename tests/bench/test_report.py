"""The report: intervals, orders, fronts, and a page that needs nothing but itself."""

import csv
import re

import pytest

from fromfew.bench.charts import scatter
from fromfew.bench.records import append, prepare
from fromfew.bench.report import report
from fromfew.bench.run import bench
from fromfew.bench.tables import breakdown, front, interval, leaderboard, published
from fromfew.errors import FromfewError


def cell(method, subject, score, *, copied=0.0, seed=0):
    return {
        "key": f"{method}{subject}{seed}", "kind": "cell", "method": method, "task": "t v1", "subject": subject,
        "seed": seed, "prompts": ["a cat", "a dog"], "images": 1, "bytes": 1000, "learned": 5,
        "scores": {"dino-i": [score, score], "clip-t": [0.5, None], "copy-rate": [copied, copied]},
        "metrics": {"dino-i": "v1 | somewhere"}, "seconds": {"learn": 1.0, "draw": 2.0, "score": 0.1},
        "memory": {"process": 10**9}, "pictures": "none", "machine": "cpu", "versions": {"fromfew": "0"},
        "base": {"name": "world", "fingerprint": "f" * 20},
    }  # fmt: skip


def test_the_mean_is_over_subjects_not_over_pictures():
    mean, low, high = interval([[1.0] * 20, [0.0, 0.0]])
    assert mean == 0.5
    assert low <= 0 + 1e-9
    assert high >= 1 - 1e-9


def test_intervals_are_the_same_every_time_and_narrow_when_subjects_agree():
    assert interval([[0.4], [0.6], [0.5]]) == interval([[0.4], [0.6], [0.5]])
    assert interval([[0.5]] * 4) == (0.5, 0.5, 0.5)


def test_the_leaderboard_puts_the_better_method_first_and_flags_copies():
    records = [cell(m, s, v) for m, v in (("poor", 0.2), ("good", 0.8)) for s in ("x", "y")]
    records += [cell("paste", s, 0.9, copied=1.0) for s in ("x", "y")]
    rows = leaderboard(records)
    assert [row.method for row in rows] == ["paste", "good", "poor"]
    assert [row.copied for row in rows] == [True, False, False]
    assert rows[1].means["dino-i"][0] == pytest.approx(0.8)
    assert rows[1].cost["draw"] == 1.0
    assert rows[1].pictures == 4


def test_a_cell_scored_again_with_newer_metrics_counts_once_and_as_the_newer():
    old, new = cell("a", "x", 0.1), {**cell("a", "x", 0.9), "key": "newer"}
    rows = leaderboard([old, new])
    assert rows[0].means["dino-i"][0] == pytest.approx(0.9)
    assert rows[0].pictures == 2


def test_missing_numbers_count_for_nothing():
    assert breakdown([cell("a", "x", 0.3)], "t v1", "clip-t", "prompt") == {"a cat": {"a": 0.5}}


def test_the_front_holds_what_no_other_beats_on_both_axes():
    points = {"a": (0.1, 0.9), "b": (0.5, 0.5), "c": (0.4, 0.4), "d": (0.9, 0.1), "e": (0.5, 0.5)}
    assert front(points) == ["a", "b", "e", "d"]


def test_a_chart_names_every_point_and_escapes_names():
    drawn = scatter({"a<b": (1.0, 2.0), "base": (2.0, 1.0)}, ("x", "y"), pareto=True)
    assert "a&lt;b" in drawn
    assert "polyline" in drawn
    assert scatter({}, ("x", "y")) == ""


@pytest.mark.parametrize("count", [9, 30])
def test_names_in_a_chart_lie_on_no_other_name_and_axes_have_round_numbers(count):
    crowd = {f"some-method-{i}": (0.5 + i * 1e-3, 0.5) for i in range(count)}
    drawn = scatter(crowd | {"base": (0.0, 0.0), "real": (1.0, 1.0)}, ("x", "y"))
    boxes = []
    for x, y, name in re.findall(r'<text x="([\d.]+)" y="([\d.]+)">([\w-]+)</text>', drawn):
        box = float(x), float(y) - 10, float(x) + 6 * len(name), float(y) + 2
        assert not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes), name
        boxes.append(box)
    assert len(boxes) == count + 2
    assert "leader" in drawn
    assert ('class="chart large"' in drawn) == (count > 16)
    assert re.findall(r'text-anchor="end">([^<]+)<', drawn) == ["0", "0.5", "1"]
    logs = scatter({"a": (0.02, 0.1), "b": (300.0, 0.2)}, ("x", "y"), log=True)
    assert re.findall(r'class="tick" text-anchor="middle">([^<]+)<', logs) == ["0.01", "0.1", "1", "10", "100"]


def test_published_numbers_all_name_their_source_and_none_is_unverified():
    rows = published()
    assert len(rows) > 400
    assert all(row["source"] and row["method"] and row["value"] for row in rows)
    assert not [row for row in rows if "UNVERIFIED" in row["source"]]


def test_the_page_needs_no_network_and_shows_pictures_failures_and_published_numbers(plan, tmp_path):
    bench(plan(methods=("base", "paste")), tmp_path)
    append(tmp_path, {"key": "f", "kind": "failed", "method": "broken", "task": "world/objects v1", "why": "no luck"})
    written = report(tmp_path)
    page = written.html.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert "<script" not in page
    assert page.count("data:image/webp;base64") >= 8
    assert "no luck" in page
    assert "not comparable" in page
    assert "copies photos" in page
    assert "<svg" in page
    text = written.markdown.read_text()
    assert "| *paste* (copies photos) |" in text
    rows = list(csv.DictReader(written.csv.read_text().splitlines()))
    assert {row["method"] for row in rows} == {"base", "paste"}
    assert {"dino-i", "fid", "learn"} <= {row["measure"] for row in rows}
    kept = [p for p in tmp_path.iterdir() if p.is_file() and p.name != "report.html"]
    assert sum(path.stat().st_size for path in kept) < 300_000
    assert written.sheet is not None


def test_a_folder_without_records_says_what_to_run(tmp_path):
    prepare(tmp_path)
    with pytest.raises(FromfewError, match="fromfew bench --out"):
        report(tmp_path)


def test_rows_that_rest_on_fewer_pictures_are_named(tmp_path):
    prepare(tmp_path)
    for one in [cell("whole", "x", 0.5), cell("whole", "y", 0.5), cell("part", "x", 0.9)]:
        append(tmp_path, one)
    written = report(tmp_path)
    said = "Not comparable with the rest, which rests on 2 subjects and 4 pictures: part (1 subjects, 2 pictures)."
    assert said in written.markdown.read_text()
    assert said in written.html.read_text()
    append(tmp_path, cell("part", "y", 0.9))
    assert "Not comparable" not in report(tmp_path).markdown.read_text()
