"""VBench's and VBench-2.0's own evaluators through `moalign bench`, and what tables make of their answers.

Stand-ins that speak their file protocols are started (tests/standin): they need a GPU and weights.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from moalign import config, manifest, video
from moalign.bench import external, published, scores, suite_scores, tables, vbench
from moalign.errors import Problem
from moalign.manifest import Sample, Score
from moalign.stages import bench

TOP = Path(__file__).parents[1]
STANDIN = Path(__file__).parent / "standin"
RUNS = ("cog-base", "cog-ft", "cog-videorepa", "cog-moalign")
FLICKER = "temporal_flickering"


class Home:
    """A results folder with some runs' videos on one suite, each dimension with two prompts."""

    def __init__(self, folder: Path, name: str, monkeypatch):
        self.folder, self.name, self.monkeypatch = folder, name, monkeypatch
        self.suite = vbench.SUITES[name]
        self.registry = [
            {"prompt_en": f"{dimension} {number}", "dimension": [dimension]}
            for dimension in self.suite.dimensions
            for number in range(2)
        ]
        if name == "vbench":
            self.registry[0]["dimension"].append("motion_smoothness")  # a video that two dimensions read
        (folder / "registry.json").write_text(json.dumps(self.registry))
        monkeypatch.setenv("STARTS", str(folder / "starts"))
        monkeypatch.setenv("VBENCH_REGISTRY", str(folder / "registry.json"))
        monkeypatch.setattr(external, "versions", lambda *given: {"asked": list(given[1:])})
        self.params = config.load(TOP / "params.yaml", scale="paper")
        code = STANDIN if name == "vbench" else STANDIN / "VBench2"
        rater = self.params.raters[name].model_copy(update={"python": sys.executable, "code": str(code)})
        more = {FLICKER: 7} if name == "vbench" else {"Diversity": 4}
        row = self.params.benches[name].model_copy(
            update={"prompts": str(folder / "registry.json"), "more": more, "raters": (name,), "shards": 1}
        )
        self.params = self.params.model_copy(
            update={"benches": self.params.benches | {name: row}, "raters": self.params.raters | {name: rater}}
        )

    def sample(self, run: str) -> None:
        row = self.params.benches[self.name]
        place = self.folder / f"samples/{run}/s0/{self.name}"
        (self.folder / "pins").mkdir(exist_ok=True)
        pin = config.pin(self.params, "bench", run=run, seed=0, bench=self.name)
        (self.folder / f"pins/{run}.yaml").write_text(config.dump(pin))
        with manifest.making(place / "0000.jsonl", Sample, pin=self.folder / f"pins/{run}.yaml") as made:
            video.write(place / "one.mp4", np.zeros((17, 32, 32, 3), np.uint8), 8)
            same = (place / "one.mp4").read_bytes()
            for number, entry in enumerate(self.registry):
                count = max(row.more.get(name, row.videos) for name in entry["dimension"])
                for index in range(count):
                    other = b"\0\0\0\x10free" + number.to_bytes(4) + index.to_bytes(4)  # equal bytes are a fault
                    (place / f"{number}-{index}.mp4").write_bytes(same + other)
                    text = entry["prompt_en"]
                    made.rows.append(Sample(number, text, text, index, 99, f"{number}-{index}.mp4", 8.0, 17))
            (place / "one.mp4").unlink()

    def rate(self, run: str, odd: str = "", die: int = -1) -> manifest.Manifest[Score]:
        self.monkeypatch.setenv("ODD", odd)
        self.monkeypatch.setenv("DIE", str(die))
        out = self.folder / f"scores/{run}/s0/{self.name}.jsonl"
        given = [self.folder / f"samples/{run}/s0/{self.name}/0000.jsonl"]
        bench.run(self.folder / f"pins/{run}.yaml", given, self.folder / "work" / run, out)
        return manifest.read(out, Score)

    def starts(self) -> list[str]:
        return (self.folder / "starts").read_text().split()

    def table(self, monkeypatch, name: str | None = None, paper=None) -> tables.Table:
        monkeypatch.setattr(tables, "refuse_stand_ins", lambda given: None)  # to see what a table would be
        return tables.make_table(self.folder, self.params, f"table3-{self.name}", paper)


@pytest.fixture(params=["vbench", "vbench2"])
def home(request, tmp_path, monkeypatch):
    return Home(tmp_path, request.param, monkeypatch)


def test_each_dimension_is_asked_once_and_a_killed_one_again(home):
    home.sample("cog-base")
    with pytest.raises(Problem, match="ended with status -9"):
        home.rate("cog-base", die=5)  # in the first dimension that has as many videos
    before = home.starts()
    made = home.rate("cog-base")
    again = home.starts()[len(before) :]
    assert again[0] == before[-1]
    assert len(again) == len(home.suite.dimensions) + (home.name == "vbench") - len(before) + 1
    assert {row.metric for row in made.rows} == set(home.suite.dimensions)
    assert {row.rater for row in made.rows} == {f"stand-in for {home.name}"}
    assert all(0 <= row.value <= 1 for row in made.rows)
    assert "evaluator" in made.rows[0].rule
    home.rate("cog-base")
    assert len(home.starts()) == len(before) + len(again)  # nothing is asked twice


def test_totals_are_those_of_the_suite_and_pair_by_prompt(home, monkeypatch):
    for run in RUNS:
        home.sample(run)
        home.rate(run, odd="shuffled excluded")
    table = home.table(monkeypatch)
    for run in RUNS:
        made = manifest.read(home.folder / f"scores/{run}/s0/{home.name}.jsonl", Score)
        means = {name: float(np.mean(list(scores.by_key(made.rows, name).values()))) for name in home.suite.dimensions}
        wanted = vbench.totals(home.suite, means)
        cells = table.rows[run]
        assert cells["total"].summary.mean == pytest.approx(wanted.total, abs=1e-12)
        for group, value in wanted.groups.items():
            assert cells[group].summary.mean == pytest.approx(value, abs=1e-12)
        for name, value in means.items():
            assert cells[name].summary.mean == pytest.approx(value, abs=1e-12)
        assert cells["total"].summary.low < wanted.total < cells["total"].summary.high
    assert table.rows["cog-moalign"]["total"].difference.mean == 0  # the stand-in's numbers hang on names alone
    text = tables.markdown(table, home.params)
    assert "| Total (%)" in text and "**Dimensions.**" in text
    assert text.count("\n| `") == len(RUNS) * 2 - 1 + len(home.suite.dimensions)


def test_what_a_rule_leaves_out_is_not_due_and_what_lacks_is(home, monkeypatch):
    for run in RUNS:
        home.sample(run)
        home.rate(run, odd="excluded" if run != "cog-ft" else "excluded short")
    made = manifest.read(home.folder / f"scores/cog-base/s0/{home.name}.jsonl", Score)
    name = FLICKER if home.name == "vbench" else "Material"
    due = {tuple(key) for key in made.header.notes["due"][name]}
    assert due == scores.by_key(made.rows, name).keys()
    assert 0 < len(due) < 2 * home.params.benches[home.name].more.get(name, 3)
    table = home.table(monkeypatch)
    assert table.rows["cog-ft"]["total"].summary.mean is None
    assert table.rows["cog-base"]["total"].summary.mean is not None
    assert any("cog-ft has no mean of" in line and "Total" in line for line in tables.missing_lines(table))


def test_a_missing_video_stops_the_rating_before_it_starts(home):
    home.sample("cog-base")
    next((home.folder / "samples").rglob("0-0.mp4")).unlink()
    with pytest.raises(Problem, match="prompt 0, video 0"):
        home.rate("cog-base")
    assert not (home.folder / "starts").exists()


def test_stand_ins_reach_no_table(home):
    for run in RUNS:
        home.sample(run)
        home.rate(run)
    with pytest.raises(Problem, match="stand-in"):
        tables.make_table(home.folder, home.params, f"table3-{home.name}")


def test_some_dimensions_alone_have_no_total(home, monkeypatch):
    name = next(iter(home.suite.dimensions))
    rater = home.params.raters[home.name].model_copy(update={"dimensions": (name,)})
    home.params = home.params.model_copy(update={"raters": home.params.raters | {home.name: rater}})
    for run in RUNS:
        home.sample(run)
        home.rate(run)
    assert set(home.starts()) == {name}
    cells = home.table(monkeypatch).rows["cog-moalign"]
    assert cells[name].summary.mean is not None and cells["total"].summary.mean is None


def test_rows_of_a_table_are_rated_in_one_way(home, monkeypatch):
    for run in RUNS:
        home.sample(run)
        home.rate(run)
    path = home.folder / f"scores/cog-moalign/s0/{home.name}.jsonl"
    path.write_text(path.read_text().replace("evaluator", "long evaluator"))
    with pytest.raises(Problem, match="rate all rows of a table in one way"):
        home.table(monkeypatch)


def test_the_paper_stands_beside_at_its_own_scale_alone(home, monkeypatch):
    for run in RUNS:
        home.sample(run)
        home.rate(run)
    paper = published.of_table(f"table3-{home.name}", TOP / published.FILE)
    assert set(paper) == set(RUNS)
    assert set(paper["cog-moalign"]) == {"total", *home.suite.groups, *home.suite.dimensions}
    table = home.table(monkeypatch, paper=paper)
    assert table.rows["cog-moalign"]["total"].verdict == "undecided"
    number = paper["cog-moalign"]["total"]
    assert f"(paper {number:g})" in tables.markdown(table, home.params)
    home.params = home.params.model_copy(update={"scale": "miniature"})
    assert "(paper" not in tables.markdown(home.table(monkeypatch, paper=paper), home.params)


def test_every_name_of_the_paper_is_known():
    params = config.load(TOP / "params.yaml", scale="paper")
    for name, table in params.tables.items():
        paper = published.of_table(name, TOP / published.FILE)
        if name != "others":
            missing = {"cog-videorepa_code", "cog-moalign-multi"}
            assert set(table.rows) - missing <= set(paper) | {"cog-ft"}, name
        assert all(paper.values()), name


def test_intervals_of_a_total_cover():
    rng = np.random.default_rng(0)
    suite = vbench.VBENCH2
    inside = []
    for _ in range(200):
        values, truth = {}, {}
        first = 0
        for name in suite.dimensions:
            truth[name] = 0.5
            level = rng.normal(0.5, 0.1, 12)
            values[name] = {(first + p, i): level[p] + rng.normal(0, 0.05) for p in range(12) for i in range(3)}
            first += 12
        total = suite_scores.estimates(suite, values)[suite_scores.TOTAL]
        prompts = range(first)
        found = scores.summarise("total", {0: suite_scores.by_prompt(total, prompts)}, [(p, 0) for p in prompts])
        inside.append(found.low <= vbench.totals(suite, truth).total <= found.high)
    assert 0.9 <= np.mean(inside) <= 0.99
