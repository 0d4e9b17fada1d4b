"""Scores in git: what is frozen makes the same tables; the committed experiment's; and what its statistics can find."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from moalign import config, manifest
from moalign.bench import frozen, scores, statistics
from moalign.errors import Problem
from moalign.manifest import Rated, Sample, Score
from moalign.stages import freeze, plan

TOP = Path(__file__).parents[1]
EXPERIMENT = TOP / "docs/results"
VIDEOS = 9
RATED = ("cog-base", "cog-static", "cog-ft", "cog-videorepa", "cog-moalign")  # rows of table1
NO_SOFT = "cog-no_soft"  # a row of table4


@pytest.fixture
def results(tmp_path):
    """A miniature of which five rows are rated; the motion of one video of one training has no number."""
    params = config.load(TOP / "params.yaml", scale="miniature")
    top = tmp_path / "results/miniature"
    manifest.write_text(top / "pins/report.yaml", config.dump(config.pin(params, "report")))
    rng = np.random.default_rng(0)
    for run, bench, seed in params.rows():
        if run not in (*RATED, NO_SOFT):
            continue
        pin = tmp_path / "pin.yaml"
        pin.write_text(config.dump(config.pin(params, "bench", run=run, seed=seed, bench=bench)))
        for shard, path in enumerate(params.samples(run, bench, seed)):
            with manifest.making(top / path, Sample, pin=pin) as made:
                for prompt in range(shard, VIDEOS, 4):
                    made.files[f"{prompt}.mp4"] = {"sha256": f"{run}{seed}{prompt}", "bytes": 1}
                    made.rows.append(Sample(prompt, "a", "a", 0, prompt, f"{prompt}.mp4", 8.0, 17))
        with manifest.making(top / f"scores/{run}/s{seed}/{bench}.jsonl", Score, pin=pin) as made:
            for prompt in range(VIDEOS):
                for metric in ("SA", "PC", "SA_other", "laws_broken"):
                    value = float(rng.integers(3, 6)) - 2 * (metric != "SA")  # a base that passes its gate
                    made.rows.append(Score(prompt, 0, prompt, metric, value, "physics", f"rule of {metric}"))
                if (run, seed, prompt) != ("cog-ft", 1, 3):
                    made.rows.append(Score(prompt, 0, prompt, "motion", rng.uniform(), "motion", "px"))
            made.notes["reference"] = {"real": 4.9, "static": 5.0, "shuffled": 1.1}
    return top


def test_frozen_scores_make_the_same_tables(results, tmp_path):
    freeze.freeze(str(results), str(tmp_path / "frozen"))
    params = config.ReportPin.load(tmp_path / "frozen/report.yaml").params
    assert params.tables["table1"].rows == RATED and list(params.tables) == ["table1", "table4"]
    assert NO_SOFT in params.tables["table4"].rows  # the other tables have no row of their own
    made = {path.name: path.read_bytes() for path in (tmp_path / "frozen/tables").iterdir()}
    assert len(made) == 6 and made["contrasts-table1.svg"].startswith(b"<svg")
    assert b"| `cog-no_soft` | SA (1-5) | s0 |" in made["table4.md"], "what is not in table 1"
    assert b"| `cog-ft` | SA (1-5) | s0 |" not in made["table4.md"], "what is"
    for name, text in tables_of(results, params).items():
        assert made[f"{name}.md"].decode() == text
    assert b"`cog-repa` | not run | 0" in made["table4.md"]
    assert b"Training by training" in made["table1.md"] and b"cog-ft is incomplete" in made["table1.md"]
    assert made["table1.md"].count(b"| `cog-videorepa` | Laws broken (%) |") == 4  # three trainings, and all of them
    assert b"| `cog-videorepa` | Joint at matched motion (%) | all |" in made["table1.md"]
    shutil.rmtree(results)
    freeze.tables(str(tmp_path / "frozen"), str(tmp_path / "again"))
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == made


def tables_of(results, params):
    """Markdown of all tables, from a results folder."""
    found = freeze.published.make_tables(results, params)
    return {table.name: freeze.bench_tables.markdown(table, params) for table in found}


def test_a_frozen_line_is_a_video(results, tmp_path):
    freeze.freeze(str(results), str(tmp_path / "frozen"))
    path = tmp_path / "frozen/scores/cog-ft/s1/physics.jsonl"
    rows = manifest.read(path, Rated).rows
    assert sorted(row.prompt_id for row in rows) == list(range(VIDEOS))
    [row] = [row for row in rows if row.prompt_id == 3]
    assert row.sha256 == "cog-ft13" and "motion" not in row.values and row.values["SA"] >= 1
    given, keys = frozen.thaw(path)
    assert keys == {(prompt, 0) for prompt in range(VIDEOS)} and len(given.rows) == 5 * VIDEOS - 1
    assert given.header.notes == {"reference": {"real": 4.9, "static": 5.0, "shuffled": 1.1}}


def test_what_cannot_be_frozen_is_said(results, tmp_path):
    freeze.freeze(str(results), str(tmp_path / "frozen"))
    path = tmp_path / "frozen/scores/cog-ft/s1/physics.jsonl"
    path.write_text(path.read_text().replace('"SA": [', '"other": ['))
    with pytest.raises(Problem, match="no note says what SA is"):
        frozen.thaw(path)
    shutil.rmtree(results / "scores/cog-videorepa/s2")
    freeze.freeze(str(results), str(tmp_path / "fewer"))
    assert config.ReportPin.load(tmp_path / "fewer/report.yaml").params.primary is None
    assert "Primary contrast" not in (tmp_path / "fewer/tables/table1.md").read_text()
    shutil.rmtree(results / "scores")
    with pytest.raises(Problem, match="no table has two rows"):
        freeze.freeze(str(results), str(tmp_path / "none"))
    with pytest.raises(Problem, match="takes a folder that `moalign freeze` wrote"):
        freeze.tables(str(tmp_path), str(tmp_path / "none"))
    with pytest.raises(Problem, match="takes results/SCALE"):
        freeze.freeze(str(tmp_path), str(tmp_path / "none"))


# --- the experiment in docs/results -----------------------------------------------------------------------------------


def test_the_experiment_s_tables_are_made_again(tmp_path):
    freeze.tables(str(EXPERIMENT), str(tmp_path))
    made, kept = (
        {path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path, EXPERIMENT / "tables")
    )
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == []


def test_the_experiment_is_as_it_was_planned():
    """512 prompts, three trainings of each method, all videos rated, the primary comparison among them."""
    params = config.ReportPin.load(EXPERIMENT / "report.yaml").params
    assert params.primary.base == "cog-videorepa" and params.table_of_primary() == "table1"
    assert config.load(TOP / "params.yaml", scale="miniature").align == params.align
    for run, bench, seed in params.rows():
        given = manifest.read(EXPERIMENT / f"scores/{run}/s{seed}/{bench}.jsonl", Rated)
        assert len({(row.prompt_id, row.index) for row in given.rows}) == 512
        assert all(len(row.values) == 8 and len(row.sha256) == 64 for row in given.rows)
    assert all(len(params.seeds_of(run)) == 3 for run in ("cog-ft", "cog-videorepa", "cog-moalign"))


def test_numbers_in_its_text_are_those_of_its_tables():
    kept = "".join(path.read_text() for path in (EXPERIMENT / "tables").glob("*.md")).splitlines()
    quoted = [line for line in (TOP / "docs/results.md").read_text().splitlines() if line.startswith("| `cog-")]
    assert len(quoted) > 10 and [line for line in quoted if line not in kept] == []


def test_numbers_in_its_prose_are_those_of_its_scores():
    text = " ".join((TOP / "docs/results.md").read_text().split())
    params = config.ReportPin.load(EXPERIMENT / "report.yaml").params
    runs = {run: params.seeds_of(run) for run, *_ in params.rows() if params.runs[run].method}

    def values(run, seed):
        return [row.values for row in manifest.read(EXPERIMENT / f"scores/{run}/s{seed}/physics.jsonl", Rated).rows]

    def passes(rows):
        return sum(row["SA"] >= scores.PASS and row["PC"] >= scores.PASS for row in rows)

    def moves(rows):
        return np.mean([row["motion"] for row in rows])

    base = values("cog-base", 0)
    assert f"the base passes on {passes(base)} of 512 prompts" in text
    joint = {run: [passes(values(run, seed)) for seed in seeds] for run, seeds in runs.items()}
    each = sorted(itertools.chain(*joint.values()))
    assert (
        f"each training of a method on {each[0]} to {each[-1]}," in text and "same number in each of the three" in text
    )
    assert joint["cog-moalign"] == joint["cog-videorepa"]
    for run, seeds in runs.items():
        first, second, third = (f"{100 * (1 - moves(values(run, seed)) / moves(base)):.0f}" for seed in seeds)
        assert f"{first}, {second} and {third} % with `{run.removeprefix('cog-')}`" in text
    chances = [statistics.power_of_all(512, plan.GAIN, plan.DISCORDANT, trainings) for trainings in (1, 3)]
    assert f"prompts finds {100 * chances[0]:.0f} %, three find {100 * chances[1]:.0f} % for all" in text


def test_numbers_of_its_probe_are_those_that_were_read():
    rows = [line for line in (TOP / "docs/results.md").read_text().splitlines() if re.match(r"\| (S|M|block)\b", line)]
    found = json.loads((EXPERIMENT / "probe.json").read_text())["R2"].values()
    for line, of in zip(rows, found, strict=True):
        shown = [text.strip() for text in line.split("|")[2:4]]
        for (mean, low, high), text in zip((of["velocity"], of["appearance"]), shown, strict=True):
            assert text == f"{mean:.2f} [{low:.2f}, {high:.2f}]".replace("-", "−").replace("−0.00", "0.00")


# --- what the experiment's statistics can find ------------------------------------------------------------------------


def simulated(rng, n, trainings, gain, discordant):
    """Joint of two methods on n prompts: a fifth passes with both, and one alone as often as asked."""
    cut = np.cumsum([(discordant + gain) / 2, (discordant - gain) / 2, 0.2])
    which = np.searchsorted(cut, rng.uniform(size=(trainings, n)))
    return [
        {seed: {(prompt, 0): float(of[prompt] in passes) for prompt in range(n)} for seed, of in enumerate(which)}
        for passes in ((0, 2), (1, 2))
    ]


@pytest.mark.parametrize("trainings", [1, 3])
def test_a_planted_gain_is_found_as_often_as_the_plan_says_and_none_hardly_ever(trainings):
    """512 prompts, as the miniature has: 5 points more pass, or none, on top of noise that the plan supposes."""
    rng, trials, keys = np.random.default_rng(0), 150, [(prompt, 0) for prompt in range(512)]
    for gain in (plan.GAIN, 0.0):
        made = (simulated(rng, 512, trainings, gain, plan.DISCORDANT) for _ in range(trials))
        found = [scores.difference("Joint", *pair, keys) for pair in made]
        significant = sum(one.p <= 0.05 for one in found)
        expected = statistics.power_of_all(512, gain, plan.DISCORDANT, trainings)
        assert stats.binomtest(significant, trials, expected).pvalue > 0.01
        decided = sum(statistics.verdict((one.low, one.high), 0.019) != "undecided" for one in found)
        assert abs(decided - significant) <= 0.05 * trials, "the interval decides as the test does"
        assert 0.5 < expected < 0.9 if gain else expected <= 0.05
