"""Scores kept in git: a line per video instead of one per number, a hundredth of a megabyte for a hundred videos.

A frozen file lies where the Score manifest did, and all tables are made from either. It also takes the place of the
videos' manifests: a line for each video that was sampled, rated or not, with the hash that a rerun must find again.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path

from moalign import manifest
from moalign.bench.scores import Key, by_key
from moalign.config import Params
from moalign.errors import Problem
from moalign.manifest import Manifest, Rated, Sample, Score

METRICS = "metrics"  # note of the header: metric -> [rater, rule]


def rated(results: Path, params: Params, run: str, bench: str, seed: int) -> tuple[Manifest[Score], set[Key]]:
    """Score rows of a run's training on a bench, and the videos that are due, frozen or not."""
    path = results / f"scores/{run}/s{seed}/{bench}.jsonl"
    if manifest.kind(path) == Rated.__name__:
        return thaw(path)
    samples = [manifest.read(results / name, Sample) for name in params.samples(run, bench, seed)]
    return manifest.read(path, Score), {(video.prompt_id, video.index) for given in samples for video in given.rows}


def thaw(path: Path) -> tuple[Manifest[Score], set[Key]]:
    """Score rows of a frozen file, and its videos."""
    given = manifest.read(path, Rated)
    metrics = given.header.notes.get(METRICS, {})
    unknown = {name for row in given.rows for name in row.values} - metrics.keys()
    if unknown:
        raise Problem(f"{path}: no note says what {', '.join(sorted(unknown))} is; freeze the scores again")
    rows = [
        Score(row.prompt_id, row.index, row.seed, name, row.values[name], *metrics[name])
        for row in given.rows
        for name in metrics
        if name in row.values
    ]
    notes = {name: note for name, note in given.header.notes.items() if name != METRICS}
    header = replace(given.header, manifest=Score.__name__, rows=len(rows), notes=notes)
    return Manifest(path, header, rows), {(row.prompt_id, row.index) for row in given.rows}


def freeze(results: Path, params: Params, run: str, bench: str, seed: int) -> str:
    """The text of a frozen file."""
    samples = [manifest.read(results / name, Sample) for name in params.samples(run, bench, seed)]
    given = manifest.read(results / f"scores/{run}/s{seed}/{bench}.jsonl", Score)
    metrics = {row.metric: [row.rater, row.rule] for row in given.rows}
    values = {name: by_key(given.rows, name, str(given.path)) for name in metrics}
    rows = []
    for made in samples:
        for video in made.rows:
            key = (video.prompt_id, video.index)
            found = {name: of_key[key] for name, of_key in values.items() if key in of_key}
            rows.append(Rated(*key, video.seed, made.header.files[video.file]["sha256"], found))
    notes = given.header.notes | {METRICS: metrics}
    header = replace(given.header, manifest=Rated.__name__, rows=len(rows), files={}, notes=notes)
    return "".join(json.dumps(asdict(line), ensure_ascii=False) + "\n" for line in (header, *rows))
