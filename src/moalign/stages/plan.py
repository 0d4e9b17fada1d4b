"""`moalign plan`: what a run will cost, before any GPU is asked for.

    moalign plan --scale paper --nodes 2

Jobs, hours of GPU, wall time, disk and files of each stage; what each table costs by itself; where the hours go; what
fewer videos would save, and what interval they would leave; the memory of a rank, beside the card's, and the longest
jobs, beside the hours of slurm/config.yaml. Where jobs have run, the plan is theirs. The exit status is 1 where
something cannot fit, with the change that would make it fit.
"""

import json
import math
from collections import defaultdict
from pathlib import Path

from moalign import config, manifest
from moalign.bench import statistics
from moalign.config import Params
from moalign.errors import Problem
from moalign.stages import cost, doctor, throughput
from moalign.stages.cost import Job, Price

HOUR = 3600.0
DISCORDANT = 0.2  # share of prompts of which one of two runs alone passes, for the interval of their difference
GAIN = 0.05  # in the share of passes, whose chance to be found is told
PROFILE = "slurm/config.yaml"
RULES = {  # stage -> the rule of its longest jobs
    **{stage: f"{stage}_shard" for stage in ("subset", "synth", "flow", "encode", "targets")},
    **{stage: f"{stage}_run" for stage in ("align", "sample", "bench")},
    "teacher": "teacher",
}
Priced = dict[tuple[str, str], Price]


def run(
    params: str = "params.yaml",
    scale: str | None = None,
    nodes: int = 1,
    gpus: int = 4,
    card: str = "H100",
    results: str | None = None,
    out: str | None = None,
) -> int:
    """Print the plan; 1 where something does not fit, else 0. results: of a run that calibrates it."""
    settings = config.load(Path(params), **({"scale": scale} if scale else {}))
    if card not in cost.CARDS:
        raise Problem(f"--card: {card!r}; allowed: {', '.join(cost.CARDS)}")
    for name, value in (("nodes", nodes), ("gpus", gpus)):
        if value < 1:
            raise Problem(f"--{name}: {value}; at least 1")
    on_gpu = settings.machine.device == "cuda"
    peak = throughput.PEAK[card] if on_gpu else cost.CORE
    all_jobs = cost.jobs(settings)
    headers = read_headers(Path(results or f"results/{settings.scale}"), all_jobs)
    priced = cost.prices(settings, all_jobs, headers, peak)
    devices = nodes * gpus if on_gpu else settings.machine.threads
    unit = f"{card}-hours" if on_gpu else "core-hours"
    print(
        f"Plan of scale {settings.scale}: {nodes} node{'s' * (nodes > 1)} of {gpus} {card}"
        if on_gpu
        else f"Plan of scale {settings.scale}: one machine, a job at a time, on {settings.machine.threads} of its cores"
    )
    stages = by_stage(settings, all_jobs, priced, devices)
    print_stages(stages, unit)
    print_tables(settings, all_jobs, priced, unit)
    print_subsets(settings, all_jobs, priced, unit)
    faults = [*fits(settings, card, gpus * nodes), *hours_fit(stages, Path(params).parent / PROFILE)] if on_gpu else []
    for line in faults:
        print(line)
    if out:
        found = {"scale": settings.scale, "card": card, "devices": devices, "stages": stages}
        manifest.write_text(out, json.dumps(found, indent=1) + "\n")
    return int(any(line.startswith("does not fit") for line in faults))


def read_headers(results: Path, all_jobs: list[Job]) -> dict[str, dict]:
    """Path -> first line, of the manifests that are there."""
    found = {}
    for job in all_jobs:
        if (path := results / job.path).exists():
            with open(path, encoding="utf-8") as file:
                found[job.path] = json.loads(file.readline())
    return found


def seconds_of(job: Job, priced: Priced) -> float:
    """Seconds of all devices of a job together."""
    return job.units * priced[job.stage, job.kind].seconds


def by_stage(params: Params, all_jobs: list[Job], priced: Priced, devices: int) -> dict[str, dict]:
    """Stage -> jobs, hours, the longest job's, wall time, disk and files. devices: GPUs, or cores where there are none.

    Beside each GPU runs one job of the stages that ask for none.
    """
    found: dict[str, dict] = {}
    for job in all_jobs:
        price, workers = priced[job.stage, job.kind], cost.workers(params, job.stage)
        row = found.setdefault(
            job.stage, {"jobs": 0, "hours": 0.0, "longest": 0.0, "wall": 0.0, "GB": 0.0, "files": 0, "known": []}
        )
        hours = seconds_of(job, priced) / HOUR
        row["jobs"] += 1
        row["hours"] += hours
        row["longest"] = max(row["longest"], hours / workers)
        row["GB"] += job.units * price.bytes / 1e9
        row["files"] += 1 + (round(job.units) if job.stage == "sample" else price.bytes > 0)
        if price.known not in row["known"]:
            row["known"].append(price.known)
    for stage, row in found.items():
        workers = cost.workers(params, stage)
        beside = stage in cost.ON_CPU and params.machine.device == "cuda"
        at_once = devices if beside else max(1, devices // workers)
        row["wall"] = max(row["longest"], row["hours"] / workers / at_once)
    return found


def print_stages(stages: dict[str, dict], unit: str) -> None:
    """The table of stages, its sum, and where most of it goes."""
    print(f"\n{'stage':9} {'jobs':>6} {unit:>11} {'longest h':>10} {'wall h':>9} {'disk GB':>9} {'files':>8}", end="")
    print("  how it is known")
    for stage, row in stages.items():
        on_cores = " of a core" if stage in cost.ON_CPU and not unit.startswith("core") else ""
        print(f"{stage_line(stage, row)}  {'; '.join(row['known'])}{on_cores}")
    counted = {stage: row for stage, row in stages.items() if stage not in cost.ON_CPU or unit.startswith("core")}
    whole = {name: sum(row[name] for row in stages.values()) for name in ("jobs", "wall", "GB", "files")}
    whole["hours"] = sum(row["hours"] for row in counted.values())
    whole["longest"] = max(row["longest"] for row in stages.values())
    print(stage_line("all", whole))
    first = max(counted, key=lambda stage: counted[stage]["hours"])
    print(
        f"\nMost of it, {100 * counted[first]['hours'] / whole['hours']:.0f} %, is {first}. The wall time supposes that"
    )
    print("each stage waits for the one before; in truth they overlap.")


def stage_line(name: str, row: dict) -> str:
    """A line of the table of stages."""
    return (
        f"{name:9} {row['jobs']:6,} {row['hours']:11,.2f} {row['longest']:10,.2f} {row['wall']:9,.2f}"
        f" {row['GB']:9,.2f} {row['files']:8,}"
    )


def print_tables(params: Params, all_jobs: list[Job], priced: Priced, unit: str) -> None:
    """What each table's runs cost, and what is theirs alone."""
    owners: dict[tuple[str, str], set[str]] = defaultdict(set)  # (run, bench) -> tables
    for name, table in params.tables.items():
        for run_name in table.rows:
            owners[run_name, table.bench].add(name)
            owners[run_name, ""].add(name)
    print(f"\n{'table':16} {'rows':>5} {unit:>11} {'of it alone':>12}   trainings, videos and ratings of its rows")
    for name, table in params.tables.items():
        whole = alone = 0.0
        for job in all_jobs:
            bench = "" if job.stage == "align" else job.kind.split(" ")[-1]
            mine = owners.get((job.run, bench), set()) if job.run else set()
            if name in mine:
                hours = seconds_of(job, priced) / HOUR
                whole += hours
                alone += hours if len(mine) == 1 else 0.0
        print(f"{name:16} {len(table.rows):5} {whole:11,.2f} {alone:12,.2f}")
    without = cost.ON_CPU if params.machine.device == "cuda" else ()
    shared = sum(seconds_of(job, priced) for job in all_jobs if job.run is None and job.stage not in without) / HOUR
    print(f"{'shared':16} {'':5} {shared:11,.2f} {'':12}   clips, flow, stage 1, what stage 2 reads")


def print_subsets(params: Params, all_jobs: list[Job], priced: Priced, unit: str) -> None:
    """What a bench costs with fewer prompts; how wide the interval of a difference is then, what chance a gain has."""
    trainings = max(len(params.seeds_of(run)) for run in params.runs)
    heads = [f"by {n} training{'s' * (n > 1)}" for n in sorted({1, trainings})]
    print(
        f"\n{'bench':10} {'videos':>7} {unit:>11}   {'± points':>8}   {100 * GAIN:.0f} points found {', '.join(heads)}"
    )
    for bench in dict.fromkeys(table.bench for table in params.tables.values()):
        videos = cost.count_videos(params, bench)
        hours = sum(
            seconds_of(job, priced)
            for job in all_jobs
            if job.stage in ("sample", "bench") and job.kind.split(" ")[-1] == bench
        )
        for part in (1, 2, 4):
            n = max(1, videos // part)
            half = 196 * math.sqrt(DISCORDANT / n)
            found = [100 * statistics.power_of_all(n, GAIN, DISCORDANT, count) for count in sorted({1, trainings})]
            name = bench if part == 1 else ""
            chances = ", ".join(f"{chance:.0f} %" for chance in found)
            print(f"{name:10} {n:7,} {hours / HOUR / part:11,.2f}   {half:8.1f}   {chances:>11}")
    print(
        "± points: half the 95 % interval of a difference of passes, where one of two runs alone passes on"
        f" {100 * DISCORDANT:.0f} % of the videos;\nfound: a true gain of {100 * GAIN:.0f} points, at p <= 0.05; videos"
        " taken as independent. Several trainings speak for others too: where these differ, less often."
    )


def hours_fit(stages: dict[str, dict], path: Path) -> list[str]:
    """The longest jobs beside the hours of their last try in a profile of SLURM; what does not fit with its cure."""
    if not path.exists():
        return []
    profile, lines = config.read_yaml(path), []
    for stage, rule in RULES.items():
        row = {**profile.get("default-resources", {}), **profile.get("set-resources", {}).get(rule, {})}
        given = float(doctor.at(row.get("runtime", math.inf), profile.get("retries", 0) + 1)) / 60
        if stage in stages and stages[stage]["longest"] > given:
            lines.append(
                f"does not fit: a job of {stage} takes {stages[stage]['longest']:.0f} hours, and {path} gives {rule}"
                f" {given:.0f} in its last try; raise its runtime, or give a job less: a smaller shard, more shards"
            )
    return lines


def fits(params: Params, card: str, devices: int) -> list[str]:
    """Memory of a rank beside the card's, and devices beside those asked for; what does not fit with its cure."""
    lines, most = [""], cost.CARDS[card] * 1e9 / 2**30
    need = params.machine.processes
    if need > devices:
        lines.append(
            f"does not fit: a training asks {need} GPUs and there are {devices}; set machine.processes: {devices}"
        )
    for backbone in dict.fromkeys(params.runs[name].backbone for name, _ in params.trainings()):
        used = cost.memory(params, backbone)
        what = f"{used:.0f} GiB per rank for {backbone}, checkpointing {params.align.checkpointing}, of {most:.0f} GiB"
        if used <= most:
            lines.append(f"fits: {what}")
            continue
        cures = []
        for change in ({"checkpointing": "keep_attention"}, {"sharding": "full"}, {"micro_batch": 1}):
            other = params.model_copy(update={"align": params.align.model_copy(update=change)})
            if cost.memory(other, backbone) <= most:
                cures += [f"align.{key}: {value}" for key, value in change.items()]
        lines.append(f"does not fit: {what}; set {' or '.join(cures) or 'a larger card'}")
    return lines
