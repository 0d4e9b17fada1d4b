"""The cost of a run, before it starts: against hand calculation, against Snakemake, and against what jobs took."""

import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

from moalign import config
from moalign.errors import Problem
from moalign.stages import cost, doctor, plan

TOP = Path(__file__).parents[1]
PEAK = 989e12


@pytest.fixture(scope="module")
def paper() -> config.Params:
    return config.load(TOP / "params.yaml", scale="paper")


@pytest.fixture(scope="module")
def smoke() -> config.Params:
    params = config.load(TOP / "params.yaml", scale="smoke")
    rows = {
        name: row.model_copy(update={"prompts": str(TOP / row.prompts), "rules": str(TOP / row.rules)})
        for name, row in params.benches.items()
    }
    return params.model_copy(update={"benches": rows})


def test_what_the_paper_asks_by_hand(paper):
    jobs = cost.jobs(paper)
    count = defaultdict(int)
    for job in jobs:
        count[job.stage] += 1
    assert count["flow"] == 350 + 160 and count["synth"] == 160 and count["align"] == 17 and count["teacher"] == 1
    videos = {bench: cost.count_videos(paper, bench) for bench in paper.benches}
    assert videos["vbench"] + videos["vbench2"] == 10_400
    of_one = [job for job in jobs if job.stage == "sample" and job.run == "cog-moalign"]
    assert sum(job.units for job in of_one) == pytest.approx(10_400 + 591 + 344)
    clips = sum(job.units for job in jobs if job.stage == "encode" and job.kind == "cogvideox")
    assert clips == pytest.approx(128_000)  # 4000 steps of 32, each clip once


def test_operations_by_hand(paper):
    cogvideox = paper.backbones["cogvideox"]
    encode, decode = cost.vae_flops(cogvideox)
    assert encode == pytest.approx(149e12, rel=0.01) and decode > encode
    assert cost.forward_flops(cogvideox.model_dump_json()) == pytest.approx(120e12, rel=0.02)
    assert cost.sampling_flops(paper, cogvideox) == pytest.approx(50 * 2 * 120e12 + decode, rel=0.02)
    assert cost.encoder_flops(paper) == pytest.approx(1.10e12, rel=0.05)
    work, _ = cost.of_align(paper, "cogvideox motion")
    assert work == pytest.approx(32 * 444e12, rel=0.01)  # keep_attention, docs/performance.md
    hours = 4000 * cost.counted(paper, "align", "cogvideox motion", PEAK).seconds / 3600 / 4
    assert hours == pytest.approx(11.1, abs=0.2)


def test_sizes_by_hand(paper):
    assert cost.of_targets(paper, "cogvideox motion")[1] == 2 * 64 * 3600
    assert cost.of_targets(paper, "cogvideox tokens")[1] == 2 * 768 * 3600
    assert cost.of_encode(paper, "cogvideox")[1] == pytest.approx(2 * 16 * 13 * 60 * 90 + 4 * 226 * 4096, rel=0.05)
    assert cost.of_encode(paper, "wan")[1] == pytest.approx(2 * 16 * 13 * 60 * 104 + 4 * 100 * 4096, rel=0.15)
    assert cost.of_flow(paper, "raft_large")[1] == pytest.approx(23 * 2 * 128 * 192 * 2 * 0.35)


def test_what_the_plan_and_the_doctor_call_a_byte_is_one(paper):
    jobs = cost.jobs(paper)
    priced = cost.prices(paper, [job for job in jobs if job.stage in ("flow", "encode", "targets")], {}, PEAK)
    stored = sum(job.units * priced[job.stage, job.kind].bytes for job in jobs if (job.stage, job.kind) in priced)
    needs = doctor.bytes_needed(paper, TOP)
    kept = sum(need for name, need in needs.items() if name == "flow" or name.startswith(("latents", "targets")))
    assert stored == pytest.approx(kept, rel=0.01)


def test_memory_is_that_which_was_measured(paper):
    for checkpointing, measured in (("none", 82.9), ("keep_attention", 27.9)):
        align = paper.align.model_copy(update={"checkpointing": checkpointing})
        params = paper.model_copy(update={"align": align})
        assert cost.memory(params, "cogvideox") == pytest.approx(measured, rel=0.05)


def test_the_longest_jobs_fit_the_profile_s_hours(paper, tmp_path):
    jobs = cost.jobs(paper)
    stages = plan.by_stage(paper, jobs, cost.prices(paper, jobs, {}, PEAK), 4)
    assert plan.hours_fit(stages, TOP / plan.PROFILE) == []
    assert plan.hours_fit(stages, tmp_path / "no profile") == []
    (tmp_path / "config.yaml").write_text("retries: 1\nset-resources: {synth_shard: {runtime: 60 * attempt}}\n")
    [line] = plan.hours_fit(stages, tmp_path / "config.yaml")
    assert (
        line.startswith("does not fit: a job of synth takes 12 hours") and "gives synth_shard 2 in its last try" in line
    )


def test_what_cannot_fit_says_what_would(paper, capsys):
    align = paper.align.model_copy(update={"checkpointing": "none"})
    lines = plan.fits(paper.model_copy(update={"align": align}), "H100", 4)
    [line] = [line for line in lines if "cogvideox" in line]
    assert line.startswith("does not fit") and "align.checkpointing: keep_attention" in line
    assert any("machine.processes: 2" in line for line in plan.fits(paper, "H100", 2))
    assert all(line.startswith("fits") for line in plan.fits(paper, "H100", 4) if line)
    with pytest.raises(Problem, match="--card"):
        plan.run(params=str(TOP / "params.yaml"), scale="smoke", card="V100")


def headers(params: config.Params, jobs: list[cost.Job], pace: dict[str, float]) -> dict[str, dict]:
    """Manifests' first lines, of jobs that took `pace` seconds a unit."""
    return {
        job.path: {
            "seconds": pace[job.stage] * job.units / cost.workers(params, job.stage),
            "files": {"a": {"bytes": 10 * job.units}},
        }
        for job in jobs
    }


def test_jobs_that_ran_tell_what_the_others_cost(smoke):
    jobs = cost.jobs(smoke)
    pace = {stage: 0.1 * (number + 1) for number, stage in enumerate(dict.fromkeys(job.stage for job in jobs))}
    half = headers(smoke, jobs[::2], pace)
    priced = cost.prices(smoke, jobs, half, cost.CORE)
    measured = {(job.stage, job.kind) for job in jobs[::2]}
    for job in jobs:
        if (job.stage, job.kind) in measured:
            price = priced[job.stage, job.kind]
            assert price.known == "measured" and price.bytes == pytest.approx(10)
            assert job.units * price.seconds == pytest.approx(pace[job.stage] * job.units)
    others = {key: price for key, price in priced.items() if key not in measured}
    assert all("pace" in price.known or price.known.startswith(("counted", "assumed")) for price in others.values())


def test_stills_tell_no_pace(smoke):
    """They take seconds and count no operation."""
    jobs = cost.jobs(smoke)
    stills = [job for job in jobs if job.kind.startswith("still")]
    pace = dict.fromkeys((job.stage for job in jobs), 1.0)
    bare = cost.prices(smoke, jobs, {}, cost.CORE)
    priced = cost.prices(smoke, jobs, headers(smoke, stills, pace), cost.CORE)
    assert {key for key in priced if priced[key] != bare[key]} == {("sample", stills[0].kind)}
    more = [*stills, next(job for job in jobs if job.stage == "sample" and job not in stills)]
    assert cost.prices(smoke, jobs, headers(smoke, more, pace), cost.CORE)["sample", more[-1].kind].known == "measured"


def test_the_plan_prints_and_writes_its_totals(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(TOP)
    assert plan.run(scale="smoke", results=str(tmp_path), out=str(tmp_path / "plan.json")) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "plan.json").read_text())
    hours = sum(row["hours"] for row in found["stages"].values())
    total = re.search(r"^all +[\d,]+ +([\d.,]+)", said, re.MULTILINE)
    assert float(total[1].replace(",", "")) == pytest.approx(hours, abs=0.01)
    assert "table1" in said and "physics" in said
