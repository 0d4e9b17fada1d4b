"""The blind user study (Sec. 5.1, Tab. 6): `moalign study plan`, `prepare`, `serve`, `simulate`, `report`."""

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import uvicorn

from moalign import manifest
from moalign.bench import statistics
from moalign.errors import Problem
from moalign.progress import say
from moalign.study import plan as planning
from moalign.study import server, table
from moalign.study.analyse import analyse
from moalign.study.plan import Plan
from moalign.study.prepare import prepare as prepare_clips
from moalign.study.simulate import Raters
from moalign.study.simulate import simulate as simulated_votes

PLAN = "plan.jsonl"
SIMULATED = "simulated"  # beside votes that no person gave
PAPER = {"cog-base": (68.0, 32.0), "cog-videorepa": (78.0, 22.0)}  # Tab. 6: MoAlign against these, per cent
WIN, POWER = 0.6, 0.8  # what the plan says a study of its size can find


def plan(
    samples: list[str],
    study: str,
    prompts: int | None = None,
    votes: int = 7,
    raters: int | None = None,
    seed: int = 0,
) -> None:
    """Write the plan of a study over the runs of `samples`, the first of which is compared with each of the others.

    samples: RUN=MANIFEST of every shard of every run.
    """
    of_runs = by_run(samples)
    ours, *bases = of_runs
    if not bases:
        raise Problem("--samples: one run alone; name those that it is compared with, too: RUN=MANIFEST")
    shared = sorted(set.intersection(*(set(of) for of in of_runs.values())))
    if not shared:
        raise Problem("--samples: the runs have no prompt in common")
    count = min(prompts or 50, len(shared))
    chosen = [shared[round(at * (len(shared) - 1) / max(1, count - 1))] for at in range(count)]
    texts = {number: of_runs[ours][number][0] for number in dict.fromkeys(chosen)}
    each = raters or max(votes, -(-len(texts) * len(bases) * votes // 40))  # forty pairs are a quarter of an hour
    made = planning.make(texts, [(ours, base) for base in bases], votes, each, seed=seed)
    path = Path(study) / PLAN
    if (Path(study) / "votes.sqlite").exists():
        raise Problem(f"{path}: this study has votes; a new plan needs a new folder")
    hashed = {path: manifest.sha256(path) for _, _, path in (given.partition("=") for given in samples)}
    manifest.write_text(path, replace(made, samples=hashed).dump())
    per = len(texts) * votes
    needed = planning.votes_needed(WIN, POWER, votes)
    say(
        f"{path}: {len(made.trials)} trials for {made.raters} raters, {per} votes on each of {len(bases)} comparisons;"
        f" {needed} would find {100 * WIN:.0f} against {100 - 100 * WIN:.0f} with a power of {100 * POWER:.0f} %"
    )


def by_run(samples: list[str]) -> dict[str, dict[int, tuple[str, Path]]]:
    """Run -> prompt -> text and video, in the order of the command line."""
    paths: dict[str, list[str]] = {}
    for given in samples:
        run, equals, path = given.partition("=")
        if not equals:
            raise Problem(f"--samples: {given!r} is not RUN=MANIFEST")
        paths.setdefault(run, []).append(path)
    return {run: planning.sampled(of) for run, of in paths.items()}


def prepare(study: str, samples: list[str]) -> None:
    """Write the clips as raters get them, and invites.csv, a link's secret part for each rater."""
    made = Plan.load(Path(study) / PLAN)
    if (Path(study) / "votes.sqlite").exists():
        raise Problem(f"{study}: this study has votes; its clips and tokens stay as they are")
    videos = {run: {number: path for number, (_, path) in of.items()} for run, of in by_run(samples).items()}
    tokens = prepare_clips(made, Path(study), videos)
    lines = ["rater,link", *(f"{number},#{token}" for number, token in enumerate(tokens))]
    manifest.write_text(Path(study) / "invites.csv", "\n".join(lines) + "\n")
    (Path(study) / "invites.csv").chmod(0o600)
    say(f"{study}: ready; `moalign study serve --study {study}`, and send each rater ADDRESS/#TOKEN from invites.csv")


def serve(study: str, host: str = "127.0.0.1", port: int = 8000) -> None:
    """Serve the study until Ctrl-C: on this machine alone, unless `host` says otherwise."""
    app = server.application(study)
    say(f"http://{host}:{port}/ serves {study}; Ctrl-C stops it, and no vote is lost")
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False, access_log=False)


def simulate(study: str, win: str = "0.6", clickers: str = "0.0", seed: int = 0) -> None:
    """Let simulated raters vote on everything; the report then says that no person did."""
    opened = server.Study(study)
    if opened.store.votes() and not (opened.folder / SIMULATED).exists():
        raise Problem(f"{study}: people have voted here; simulate in a folder of its own")
    manifest.write_text(opened.folder / SIMULATED, "no person voted here\n")
    made = simulated_votes(opened.plan, Raters(win=float(win), clickers=float(clickers), raters=0.3, prompts=0.3), seed)
    with opened.store.write() as db:
        rows = [(rater, trial, choice, 5.0, time.time()) for rater, trial, choice in made]
        db.executemany("insert or ignore into vote values (?, ?, ?, ?, ?)", rows)
    say(f"{study}: {len(rows)} simulated votes")


def report(study: str, out: str, export: str | None = None) -> int:
    """Write Table 6 as Markdown to `out`, its numbers as JSON beside it; 1 while votes are missing."""
    opened = server.Study(study)
    votes = opened.store.votes()
    if export:
        write_votes(Path(export), opened.plan, votes)
    found = analyse(opened.plan, [vote[:3] for vote in votes])
    given = {trial for _, trial, *_ in votes}
    have = sum(trial.kind == "pair" and trial.id in given for trial in opened.plan.trials)
    simulated = (opened.folder / SIMULATED).exists()
    found |= {"simulated": simulated, "have": have, "all": finished(found["all"]), "kept": finished(found["kept"])}
    manifest.write_text(Path(out).with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    manifest.write_text(out, table.markdown(found))
    if have < found["wanted"]:
        say(f"{study}: waiting for votes, {have} of {found['wanted']}")
        return 1
    return 0


def write_votes(path: Path, plan: Plan, votes: list[tuple]) -> None:
    """Every vote as it came, a line each."""
    by_id = {trial.id: trial for trial in plan.trials}
    with manifest.disk(path), open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("rater", "kind", "prompt_id", "left", "right", "choice", "seconds", "at"))
        for rater, trial, choice, seconds, at in votes:
            of = by_id[trial]
            table.writerow((rater, of.kind, of.prompt, of.left, of.right, choice, seconds, round(at, 3)))


def finished(part: dict) -> dict:
    """A part of the numbers with what needs all its comparisons at once, and with the paper's."""
    rows = [row for row in part["comparisons"] if row["n"]]
    for row, p in zip(rows, statistics.holm([row["binomial p"] for row in rows]), strict=True):
        row["binomial p, Holm"] = p
        row["wilson"] = statistics.wilson(row["share"] * row["n"], row["n"])
        row["paper"] = PAPER.get(row["base"]) if row["ours"] == "cog-moalign" else None
    return part
