"""Tables, metrics.json and the page of one scale, from the manifests of every stage.

    moalign report --config PIN --results results/S --out results/S/report/index.html

Writes tables/*.md and *.tex, tables/curves.csv (`dvc plots`) and metrics.json below the results folder, then the page:
one file that carries its videos, plots and style inside, and whose bytes depend on the manifests and their files alone.
Beside it, in figures/, lie its plots as SVG, frames of each shown prompt over time as PNG, and its videos side by side.
metrics.json holds what another run on the same machine must find again: no seconds, no paths, no hashes.
"""

import csv
import io
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
from markupsafe import Markup

from moalign import clips, manifest, shards, video
from moalign.bench import latex, published, tables
from moalign.bench.gate import Gate
from moalign.bench.tables import Cell, Metric, Table
from moalign.config import Params, ReportPin, make_grid
from moalign.errors import Problem
from moalign.manifest import Choice, Clip, Drawn, Flow, Header, Latent, Manifest, Sample, Score, Target, Weights
from moalign.progress import say
from moalign.report import pictures, plots
from moalign.report.plots import Curve, Point
from moalign.study import table as table6
from moalign.teacher import raft

STUDY = "study/table6.json"  # what raters said, once they did
PROBE = "report/probe.json"  # what `moalign probe` read from tokens
PLAN = "report/plan.json"  # what `moalign plan` said before
HOUR = 3600.0
SHOWN = 12  # missing manifests that a message lists one by one
TEACHER = "teacher/manifest.jsonl"
FLOWS = {"validation": "teacher", "mean_flow": "mean flow", "zero_flow": "zero flow"}  # notes of the teacher
ERRORS = {"l1": "L1", "epe": "end-point error", "epe_moving": "end-point error, moving"}
FLOW_CLIPS = (0.25, 0.6, 0.95)  # whose flow is shown: quantiles of mean motion in the first shard
FLOW_FRAMES = 6  # of each
TERMS = {"denoise": "denoising loss", "align": "alignment loss"}  # of Eq. 9, as a log names them
PLAUSIBLE = ("PC", "PC_pass")  # what runs are compared by beside their motion
GRID_SIDE, GRID_FRAMES, GRID_COLUMNS = 128, 6, 3  # of videos side by side
NOT_LOSSES = ("step", "lr", "grad_norm")  # numbers of a training's log that are no loss


def run(config: str | Path, results: str | Path, out: str | Path) -> None:
    """Write tables/*, metrics.json below `results`, and the page `out`."""
    started = time.monotonic()
    params = ReportPin.load(config).params
    results = Path(results)
    wanted = expected(params)
    check_all_there(results, wanted)
    found = survey(results, wanted)
    logs = read_logs(results, params)
    filled = published.make_tables(results, params)
    for table in filled:
        manifest.write_text(results / "tables" / f"{table.name}.md", tables.markdown(table, params))
        manifest.write_text(results / "tables" / f"{table.name}.tex", latex.latex(table, params))
    manifest.write_text(results / "tables/curves.csv", curves(params, logs))
    numbers = json.dumps(metrics(params, found, logs, filled), indent=1, sort_keys=True, allow_nan=False)
    manifest.write_text(results / "metrics.json", f"{numbers}\n")
    figures = Figures(Path(out).parent / "figures")
    manifest.write_text(out, page(results, params, found, logs, filled, figures))
    count = sum(map(len, wanted.values()))
    say(f"{out}: {len(filled)} tables from {count} manifests in {time.monotonic() - started:.1f} s")


# --- what should be there ---------------------------------------------------------------------------------------------


def expected(params: Params) -> dict[str, list[tuple[str, type]]]:
    """Stage -> (path below results/S, kind of row) of each manifest that the page needs."""
    counts = {"real": params.subset.shards, "synth": params.synth.shards}

    def sharded(folder: str, kind: type, names: Iterable[str] = tuple(counts)) -> list[tuple[str, type]]:
        return [(f"{folder}/{name}/{shard:04d}.jsonl", kind) for name in names for shard in range(counts[name])]

    rows = params.rows()
    backbones = dict.fromkeys(params.runs[name].backbone for name, _ in params.trainings())
    return {
        "subset": [("clips/selection.jsonl", Choice), *sharded("clips", Clip, ["real"])],
        "synth": sharded("clips", Clip, ["synth"]),
        "flow": sharded("flow", Flow),
        "draw": [("drawn/manifest.jsonl", Drawn)],
        "encode": [item for name in backbones for item in sharded(f"latents/{name}", Latent, params.align.train_on)],
        "teacher": [(TEACHER, Weights)],
        "targets": [
            item
            for backbone, target in params.targets()
            for item in sharded(f"targets/{backbone}/{target}", Target, params.align.train_on)
        ],
        "align": [(f"runs/{name}/s{seed}/manifest.jsonl", Weights) for name, seed in params.trainings()],
        "sample": [(path, Sample) for row in rows for path in params.samples(*row)],
        "bench": [(f"scores/{name}/s{seed}/{bench}.jsonl", Score) for name, bench, seed in rows],
    }


def check_all_there(results: Path, wanted: dict[str, list[tuple[str, type]]]) -> None:
    """Problem that lists the manifests that are not there, by stage."""
    paths = [(stage, path) for stage, rows in wanted.items() for path, _ in rows]
    missing = [f"{stage}: {path}" for stage, path in paths if not (results / path).exists()]
    if missing:
        more = [f"and {len(missing) - SHOWN} more"] if len(missing) > SHOWN else []
        listed = "\n  ".join([*missing[:SHOWN], *more])
        raise Problem(f"{results}: no report without these manifests; run their stages first:\n  {listed}")


# --- what was found ---------------------------------------------------------------------------------------------------


@dataclass
class Found:
    """What the page counts, as read from all manifests: small, whatever the scale."""

    headers: dict[str, list[Header]] = field(default_factory=dict)  # by stage
    rows: Counter = field(default_factory=Counter)  # by stage
    clips: Counter = field(default_factory=Counter)  # (source, split) -> clips
    motion: list[float] = field(default_factory=list)  # of every clip


def survey(results: Path, wanted: dict[str, list[tuple[str, type]]]) -> Found:
    """Read every manifest once, keeping headers and counts."""
    found = Found()
    for stage, items in wanted.items():
        found.headers[stage] = []
        for path, kind in items:
            given = manifest.read(results / path, kind)
            found.headers[stage].append(given.header)
            found.rows[stage] += len(given.rows)
            if kind is Clip:
                found.clips.update((row.source, row.split) for row in given.rows)
            elif kind is Flow:
                found.motion += [row.motion for row in given.rows]
    return found


def counts_of(headers: Iterable[Header]) -> dict[str, int]:
    """Counts of several manifests, added."""
    total: Counter = Counter()
    for header in headers:
        total.update(header.counts)
    return dict(sorted(total.items()))


def read_logs(results: Path, params: Params) -> dict[str, list[dict]]:
    """Lines of the log of every training, by name: the teacher's, then those of the runs."""
    paths = {"teacher": TEACHER}
    paths |= {f"{name} s{seed}": f"runs/{name}/s{seed}/manifest.jsonl" for name, seed in params.trainings()}
    return {name: read_log(manifest.read(results / path, Weights)) for name, path in paths.items()}


def read_log(given: Manifest[Weights]) -> list[dict]:
    """The lines of a training's log."""
    row = next((row for row in given.rows if row.name == "log"), None)
    if row is None:
        raise Problem(f"{given.path}: lists no log; run its training again")
    return [json.loads(line) for line in given.locate(row.file).read_text(encoding="utf-8").splitlines()]


def series(log: list[dict], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one number of a log."""
    pairs = [(line["step"], line[name]) for line in log if line.get(name) is not None]
    return [step for step, _ in pairs], [value for _, value in pairs]


def last(log: list[dict]) -> dict[str, float]:
    """The last value of every loss of a log, held-out ones (`val_`) too."""
    names = dict.fromkeys(name for line in log for name in line if name not in NOT_LOSSES)
    return {name: values[-1] for name in names if (values := series(log, name)[1])}


def curves(params: Params, logs: dict[str, list[dict]]) -> str:
    """Held-out losses of every training of stage 2 as CSV, a line per validation."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("training", "step", *TERMS))
    for name, seed in params.trainings():
        training = f"{name} s{seed}"
        for line in logs[training]:
            if "val_denoise" in line:
                table.writerow((training, line["step"], *(line.get(f"val_{term}") for term in TERMS)))
    return text.getvalue()


# --- metrics.json -----------------------------------------------------------------------------------------------------


def metrics(params: Params, found: Found, logs: dict[str, list[dict]], filled: list[Table]) -> dict[str, Any]:
    """What another run on the same machine must find again, six digits a number."""
    notes = found.headers["teacher"][0].notes
    return {
        "scale": params.scale,
        "clips": {f"{source} {split}": count for (source, split), count in found.clips.items()},
        "counts": {stage: counts_of(headers) for stage, headers in found.headers.items()},
        "flow": {"motion": tables.rounded(np.mean(found.motion)), "n": len(found.motion)},
        "teacher": {name: rounded_all(notes[name]) for name in FLOWS if notes.get(name)},
        "last": {name: rounded_all(last(log)) for name, log in logs.items()},
        "tables": {table.name: tables.numbers(table) for table in filled},
        "base gate": {f"{gate.bench} {gate.base}": rounded_all(gate.numbers()) for gate in gates(filled)},
        "primary": {table.name: primary_numbers(table.primary) for table in filled if table.primary},
        "matched": {table.name: matched_numbers(table.matched) for table in filled if table.matched},
    }


def gates(filled: list[Table]) -> list[Gate]:
    """The gate of each base, once."""
    return list({(table.gate.bench, table.gate.base): table.gate for table in filled if table.gate}.values())


def primary_numbers(found: tables.Contrast) -> dict[str, Any]:
    """The primary contrast: difference, interval and p; null where a video of either has no number."""
    apart = found.difference
    named = {"metric": found.metric, "ours": found.ours, "base": found.base}
    if apart is None:
        return named | {"difference": None}
    numbers = {"mean": apart.mean, "low": apart.low, "high": apart.high}
    return named | {"difference": rounded_all(numbers), "p": None if apart.p is None else tables.rounded(apart.p)}


def matched_numbers(matched: tables.Matched) -> dict[str, Any]:
    """Joint in each bin of motion and their mean, of every row."""
    rows = {
        run: {name: tables.summary_numbers(it) for name, it in zip((*tables.BINS, "mean"), found, strict=True)}
        for run, found in matched.rows["Joint"].items()
    }
    return {"base": matched.base, "edges": [tables.rounded(edge) for edge in matched.edges], "rows": rows}


def rounded_all(values: dict[str, Any]) -> dict[str, Any]:
    """`rounded`, number by number; None where one is not finite, an interval's end say."""
    found = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found[name] = rounded_all(value)
        else:
            found[name] = value if isinstance(value, bool) else tables.rounded(value) if np.isfinite(value) else None
    return found


# --- the page ---------------------------------------------------------------------------------------------------------


class Figures:
    """What the page draws, kept as files for other uses: `folder` is emptied first."""

    def __init__(self, folder: Path):
        self.folder = folder
        shutil.rmtree(folder, ignore_errors=True)
        with manifest.disk(folder):
            folder.mkdir(parents=True)

    def plot(self, name: str, svg: str) -> Markup:
        """Keep a plot as SVG in the colours of paper; give it back for the page."""
        manifest.write_text(self.folder / f"{name}.svg", plots.standalone(svg, plots.PAPER_COLOURS))
        return Markup(svg)

    def prompt(self, name: str, videos: dict[str, np.ndarray], fps: float) -> None:
        """A prompt's videos by run (Fig. 3, A.1): frames over time as PNG, and side by side as mp4."""
        side = max(video.shape[1] for video in videos.values())
        scale = max(1, round(GRID_SIDE / side))
        large = [pictures.labelled(frames.repeat(scale, 1).repeat(scale, 2), run) for run, frames in videos.items()]
        with manifest.disk(self.folder), manifest.replacing(self.folder / f"{name}.png") as temporary:
            _, data = cv2.imencode(".png", pictures.sheet(large, GRID_FRAMES)[..., ::-1])
            temporary.write_bytes(data.tobytes())
        video.write(self.folder / f"{name}.mp4", pictures.mosaic(large, GRID_COLUMNS), fps)


def page(
    results: Path,
    params: Params,
    found: Found,
    logs: dict[str, list[dict]],
    filled: list[Table],
    figures: Figures,
) -> str:
    """The page as text."""
    loader = jinja2.PackageLoader("moalign", "report")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rules = {metric: rule for table in filled for metric, rule in table.rules.items()}
    return environment.get_template("page.html.j2").render(
        css=Markup(loader.get_source(environment, "page.css")[0]),
        js=Markup(loader.get_source(environment, "page.js")[0]),
        scale=params.scale,
        notice=tables.meaningless(params) if params.scale == "smoke" else None,
        figures=key_figures(params, found),
        benches=[
            video_wall(results, params, bench, figures) for bench in dict.fromkeys(table.bench for table in filled)
        ],
        summary=summary(params, filled),
        costs=cost_view(results, found),
        code=listed({header.code for headers in found.headers.values() for header in headers}),
        tables=[table_view(table, params) | {"trail": trail_view(results, params, table)} for table in filled],
        pins={f"{table.bench} {run}": pin for table in filled for run, pin in table.pins.items()},
        study=study_view(results),
        rules=[(tables.metric_of(metric).label, rule) for metric, rule in rules.items()],
        data=data_view(found),
        flow=flow_view(results, params, found, figures),
        teacher=teacher_view(manifest.read(results / TEACHER, Weights), logs["teacher"], figures),
        relations=relations_view(results, params),
        probe=probe_view(results, figures),
        contrasts=contrasts_view(params, filled, figures),
        compared=compared_view(params, filled, figures),
        align=align_view(params, logs, figures),
        provenance=provenance(found),
    )


def key_figures(params: Params, found: Found) -> list[tuple[str, str]]:
    """The few numbers at the top."""
    return [
        (f"{sum(found.clips.values()):,}", "clips"),
        (f"{params.teacher.steps:,}", "steps of the motion teacher"),
        (f"{len(params.trainings())} × {params.align.steps:,}", "fine-tunings × steps"),
        (f"{found.rows['sample']:,}", "sampled videos"),
    ]


def summary(params: Params, filled: list[Table]) -> list[str]:
    """What a reader wants first: can the numbers be trusted, what came of the plan, how they sit beside the paper's."""
    lines = [f"{gate.text()}." for gate in gates(filled)]
    lines += dict.fromkeys(f"{table.anchor.text()}." for table in filled if table.anchor)
    lines += [text for table in filled if (text := tables.primary_text(table, params))]
    for table in filled:
        verdicts = Counter(cell.verdict for cells in table.rows.values() for cell in cells.values() if cell.verdict)
        if verdicts:
            counted = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
            lines.append(f"{table.title}: differences from the first row beside the paper's: {counted}.")
    return lines


def cost_view(results: Path, found: Found) -> list[tuple[str, str, str]]:
    """Device hours of each stage: as `moalign plan` had them before anything ran, where that was kept; as spent."""
    path = results / PLAN
    plan = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"stages": {}}
    planned = {stage: row["hours"] for stage, row in plan["stages"].items()}
    spent = {
        stage: sum(header.seconds * header.notes.get("processes", 1) for header in headers) / HOUR
        for stage, headers in found.headers.items()
    }
    total = ("all", sum(planned.values()) if planned else None, sum(spent.values()))
    rows = [*((stage, planned.get(stage), hours) for stage, hours in spent.items()), total]
    return [(stage, hours_text(before), hours_text(after)) for stage, before, after in rows]


def hours_text(hours: float | None) -> str:
    """Hours, or minutes where that is less than two of them."""
    if hours is None:
        return ""
    return f"{60 * hours:.1f} min" if hours < 2 else f"{hours:,.0f} h"


def study_view(results: Path) -> dict[str, Any] | None:
    """Table 6, without the raters that its plan leaves out; None before there are votes."""
    path = results / STUDY
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [[cell.replace("`", "") for cell in row] for row in table6.rows(found["kept"])]
    words = [line.replace("`", "").replace("**", "") for line in table6.remarks(found["kept"])]
    return {"heads": table6.HEADS, "rows": rows, "notices": table6.notices(found), "remarks": words}


# --- videos


def video_wall(results: Path, params: Params, bench: str, figures: Figures) -> dict[str, Any]:
    """A bench's sampled videos: some prompts, evenly spaced over the list, and each run's first video of them."""
    runs = list(dict.fromkeys(run for table in params.tables.values() if table.bench == bench for run in table.rows))
    sampled = {run: first_videos(results, params, run, bench) for run in runs}
    prompts = {number: row.prompt for rows in sampled.values() for number, (_, row) in rows.items()}
    for number in evenly(sorted(prompts), params.report.prompts):
        there = {run: rows[number] for run, rows in sampled.items() if number in rows}
        videos = {run: video.read(path, list(range(row.frames))) for run, (path, row) in there.items()}
        figures.prompt(f"videos-{bench}-{number:05d}", videos, next(iter(there.values()))[1].fps)
    return {
        "name": bench,
        "of": len(prompts),
        "runs": [{"name": run, "what": tables.describe(params, run)} for run in runs],
        "rows": [
            {"prompt": prompts[number], "cells": [video_cell(run, sampled[run].get(number)) for run in runs]}
            for number in evenly(sorted(prompts), params.report.prompts)
        ],
    }


def first_videos(results: Path, params: Params, run: str, bench: str) -> dict[int, tuple[Path, Sample]]:
    """Prompt -> where the first video of a run's first training lies."""
    shards = [manifest.read(results / path, Sample) for path in params.samples(run, bench, params.seeds_of(run)[0])]
    return {row.prompt_id: (given.locate(row.file), row) for given in shards for row in given.rows if row.index == 0}


def evenly(items: list, count: int) -> list:
    """`count` of the items, evenly spaced from the first to the last."""
    if len(items) <= count:
        return items
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, count)]


def video_cell(run: str, found: tuple[Path, Sample] | None) -> dict[str, Any]:
    """One video of the wall; without a source where it was not sampled."""
    if found is None:
        return {"run": run, "src": None}
    look = video.probe(found[0])
    return {"run": run, "src": pictures.embedded_video(found[0]), "height": look.height, "width": look.width}


# --- tables


def table_view(table: Table, params: Params) -> dict[str, Any]:
    """A table for the template: texts, and where its whiskers lie."""
    shown = {name: tables.metric_of(name) for name in table.rules if name not in table.dimensions}
    spans = {name: span([cells[name] for cells in table.rows.values()]) for name in shown}
    return {
        "name": table.name,
        "title": table.title,
        "bench": table.bench,
        "videos": table.videos,
        "metrics": list(shown.values()),
        "missing": tables.missing_lines(table),
        "remark": tables.gate_remark(table, params),
        "primary": tables.primary_text(table, params),
        "not_run": [(run, [tables.paper_text(table, run, name).strip() for name in shown]) for run in table.not_run],
        "parts": tables.parts(table, params),
        "rows": [
            {
                "run": run,
                "what": tables.describe(params, run),
                "n": min((cell.summary.n for cell in cells.values()), default=0),
                "cells": [cell_view(shown[name], cell, spans[name]) for name, cell in cells.items() if name in shown],
            }
            for run, cells in tables.rows_shown(table, params).items()
        ],
    }


def trail_view(results: Path, params: Params, table: Table) -> list[dict[str, str]]:
    """What each row of a table rests on, a line per training: hashes of scores, videos and checkpoint, job, time."""
    lines = []
    trainings = [(run, seed) for run in tables.rows_shown(table, params) for seed in params.seeds_of(run)]
    for run, seed in trainings:
        scored = results / f"scores/{run}/s{seed}/{table.bench}.jsonl"
        sampled = [results / path for path in params.samples(run, table.bench, seed)]
        heads = [manifest.read(scored, Score).header, *(manifest.read(path, Sample).header for path in sampled)]
        trained = results / f"runs/{run}/s{seed}/manifest.jsonl"
        own = params.runs[run].method is not None
        lines.append(
            {
                "run": run,
                "seed": str(seed) if own else "",
                "scores": manifest.sha256(scored)[:10],
                "videos": ", ".join(manifest.sha256(path)[:10] for path in sampled[:SHOWN]),
                "training": manifest.sha256(trained)[:10] if own else "",
                "job": listed({head.job for head in heads}),
                "code": listed({head.code for head in heads}),
            }
        )
    return lines


def span(cells: list[Cell]) -> tuple[float, float]:
    """The common range of a column's whiskers."""
    ends = [end for cell in cells if cell.summary.mean is not None for end in (cell.summary.low, cell.summary.high)]
    ends = [end for end in ends if np.isfinite(end)]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def cell_view(metric: Metric, cell: Cell, limits: tuple[float, float]) -> dict[str, Any]:
    """One cell: mean, interval, whisker in per cent of its column's span, difference from the first row."""
    found, apart = cell.summary, cell.difference
    view: dict[str, Any] = {"metric": metric, "n": found.n, "mean": None, "whisker": None, "apart": None}
    if found.mean is None:
        return view
    view |= {"mean": metric.text(found.mean), "interval": metric.interval(found)}
    if np.isfinite([found.low, found.high]).all():
        places = np.array([found.low, found.mean, found.high])
        view["whisker"] = (100 * (places - limits[0]) / (limits[1] - limits[0])).tolist()
    if apart is not None:
        view["apart"] = {
            "mean": metric.text(apart.mean, sign=True),
            "interval": metric.interval(apart, sign=True),
            "p": None if cell.holm is None else tables.p_text(cell.holm),
            "verdict": cell.verdict,
            "sure": apart.low > 0 or apart.high < 0,
        }
    return view


# --- runs compared


def contrasts_view(params: Params, filled: list[Table], figures: Figures) -> list[tuple[Markup, str]]:
    """Our run minus each other that is trained, training by training, a plot for each table that has such lines."""
    drawn = []
    for table in filled:
        if table.against and table.against[0].ours in tables.rows_shown(table, params):
            name, ours = f"contrasts-{table.name}", table.against[0].ours
            plot = figures.plot(name, plots.forest(name, *tables.panels(table), f"{ours} minus"))
            drawn.append((plot, f"{ours} minus other trained runs, with 95 % intervals: {table.title}."))
    return drawn


def compared_view(params: Params, filled: list[Table], figures: Figures) -> list[tuple[Markup, str]]:
    """Layer against score for a table of one method at several layers (Tab. 5); plausibility against motion."""
    drawn, seen = [], set()
    for table in filled:
        rows = tables.rows_shown(table, params)
        metric = next((name for name in PLAUSIBLE if name in table.rules), None)
        if metric is None:
            continue
        shown, points = tables.metric_of(metric), {run: point_of(run, cells, metric) for run, cells in rows.items()}
        points = {run: point for run, point in points.items() if point is not None}
        title = f"{shown.label}{f' ({shown.unit})' if shown.unit else ''}"
        if len({(params.runs[run].method, params.runs[run].backbone) for run in points}) == 1 and len(points) > 2:
            layers = [replace(point, label=", ".join(map(str, params.layers(run)))) for run, point in points.items()]
            name = f"layers-{table.name}"
            plot = figures.plot(name, plots.sweep(name, layers, title, "Layer of alignment"))
            drawn.append((plot, f"{title} by aligned layer, with 95 % intervals: {table.title}."))
        if "motion" in table.rules and (table.bench, *points) not in seen:
            seen.add((table.bench, *points))
            both = {run: point_of(run, rows[run], metric, "motion") for run in points}
            name = f"motion-{table.name}"
            svg = plots.scatter(
                name, [*filter(None, both.values())], "mean motion, px", title, f"{shown.label} and motion"
            )
            drawn.append((figures.plot(name, svg), f"{title} against mean motion of each run: {table.title}."))
    return drawn


def point_of(run: str, cells: dict[str, Cell], y: str, x: str | None = None) -> Point | None:
    """A run's means with their intervals, in the metrics' own units; None where a number is missing."""
    ends = []
    for name in filter(None, (y, x)):
        found, factor = cells[name].summary, tables.metric_of(name).factor
        if found.mean is None or not np.isfinite([found.low, found.high]).all():
            return None
        ends.append((found.mean * factor, found.low * factor, found.high * factor))
    return Point(run, *ends)


# --- clips and flow


def data_view(found: Found) -> dict[str, Any]:
    """Where the clips come from, and why others were left out."""
    counts, prefix = counts_of(found.headers["subset"]), "rejected: "
    draw = counts_of(found.headers["draw"])
    reasons = {name.removeprefix(prefix): count for name, count in counts.items() if name.startswith(prefix)}
    sources = sorted({source for source, _ in found.clips})
    return {
        "sources": [(source, found.clips[source, "train"], found.clips[source, "heldout"]) for source in sources],
        "annotated": counts.get("rows"),
        "reasons": sorted(reasons.items(), key=lambda item: (-item[1], item[0])),
        "drawn": (draw["drawn"], draw["clips"]),
        "encoded": found.rows["encode"],
    }


def flow_view(results: Path, params: Params, found: Found, figures: Figures) -> dict[str, Any]:
    """How much the clips move, and the flow of three of them."""
    height, width = params.flow.size
    low, middle, high = np.quantile(found.motion, [0.1, 0.5, 0.9])
    text = (
        f"Half of the clips move less than {middle:.2f} pixels per transition, at {height} × {width};"
        f" a tenth less than {low:.2f}, a tenth more than {high:.2f}."
    )
    plot = plots.histogram("flow-motion", found.motion, "mean |O| per transition, px", "Motion of the clips")
    return {
        "plot": (figures.plot("flow-motion", plot), f"Histogram of the clips’ mean flow. {text}"),
        "text": text,
        "clips": flow_strips(results, params),
        "wheel": pictures.wheel(),
    }


def flow_strips(results: Path, params: Params) -> list[dict[str, Any]]:
    """Frames and flow of a calm, a middling and a lively clip of the first shard."""
    given = manifest.read(results / "clips/real/0000.jsonl", Clip)
    flows = manifest.read(results / "flow/real/0000.jsonl", Flow)
    by_key = {clip.key: clip for clip in given.rows}
    ranked = sorted(flows.rows, key=lambda row: (row.motion, row.key))
    chosen = dict.fromkeys(ranked[round(share * (len(ranked) - 1))] for share in FLOW_CLIPS) if ranked else []
    return [
        flow_strip(params, given.path.parent, by_key[row.key], flows, row, motion_tokens(results, params, row.key))
        for row in chosen
    ]


def flow_strip(
    params: Params, folder: Path, clip: Clip, flows: Manifest[Flow], row: Flow, M: np.ndarray | None
) -> dict[str, Any]:
    """A clip's frames where some of its flows begin, these flows, and M there, its principal components as colours."""
    backbone = params.backbones[params.teacher.backbone]
    grid = make_grid(backbone, params.encoder)
    O = raft.unpack(shards.TensorShard(flows.locate(row.file)).ragged("flow", row.index), params.flow.size)
    x0 = clips.load_clip(folder, clip, backbone.frames, backbone.fps, backbone.size)
    seen = raft.view(x0[None], grid, params.flow.size)[0]  # [3, F-1, h, w]
    steps = raft.transitions(params.flow.reading, grid.flows, grid.teacher_tubelet)
    shown = evenly(list(range(grid.flows)), FLOW_FRAMES)
    frames = clips.to_frames(seen[:, [steps[k][0][0] for k in shown]] / 2 + 0.5)
    return {
        "caption": clip.caption,
        "motion": f"{row.motion:.2f}",
        "frames": pictures.strip(frames),
        "flow": pictures.strip(pictures.flow_pictures(O[shown].numpy())),
        "motion_tokens": None if M is None else pictures.strip(pictures.components(M, frames.shape[1])[shown]),
    }


def motion_tokens(results: Path, params: Params, key: str) -> np.ndarray | None:
    """M [Fm, Hm, Wm, D_m] of a clip of the first shard; None where stage 2 does not read it."""
    path = results / f"targets/{params.teacher.backbone}/motion/real/0000.jsonl"
    if not path.exists():
        return None
    given = manifest.read(path, Target)
    row = next((row for row in given.rows if row.key == key), None)
    if row is None:
        return None
    return shards.TensorShard(given.locate(row.file)).row("target", row.index).float().numpy()


def relations_view(results: Path, params: Params) -> dict[str, Any]:
    """What stage 2 holds on to: similarities of a held-out clip's tokens, the target's, our run's before and after; W.

    Ours is that of the primary comparison, or else the first that is aligned. The matrices are those that its training
    kept; none under `sharding: full`.
    """
    tokens = ("tokens", "motion")
    aligned = [run for run, _ in params.trainings() if params.methods[params.runs[run].method].target in tokens]
    primary = [params.primary.ours] if params.primary else []
    ours = next((run for run in (*primary, *aligned) if run in aligned), None)
    if ours is None:
        return {"weights": None, "matrices": []}
    tau = params.methods[params.runs[ours].method].tau
    frames = np.arange(make_grid(params.backbones[params.runs[ours].backbone], params.encoder).motion[0])
    apart = np.abs(np.subtract.outer(frames, frames))
    view = {
        "run": ours,
        "frames": len(frames),
        "tau": None if tau is None else f"{tau:g}",
        "weights": pictures.matrix(np.where(apart == 0, 0.0, np.exp(-apart / tau)), 0.0, 1.0) if tau else None,
        "matrices": [],
    }
    given = manifest.read(results / f"runs/{ours}/s{params.seeds_of(ours)[0]}/manifest.jsonl", Weights)
    row = next((row for row in given.rows if row.name == "relations"), None)
    if row is None:
        return view
    held = shards.TensorShard(given.locate(row.file))
    found = {name: held[name][:].float().numpy() for name in ("teacher", "before", "after")}
    least = float(min(np.percentile(of, 1) for of in found.values()))
    away = {name: f"{np.abs(of - found['teacher']).mean():.3f}" for name, of in found.items()}
    matrices = [(name, pictures.matrix(of, least, 1.0), away[name]) for name, of in found.items()]
    return view | {"step": row.step, "least": f"{least:.2f}", "matrices": matrices}


def probe_view(results: Path, figures: Figures) -> dict[str, Any] | None:
    """What a linear map reads from tokens: the plot, and its numbers."""
    path = results / PROBE
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        (name, ["{:.3f} [{:.3f}, {:.3f}]".format(*of[what]) for what in ("velocity", "appearance")])
        for name, of in found["R2"].items()
    ]
    return {"plot": figures.plot("probe", plots.probe(found["R2"])), "rows": rows, "clips": found["clips"]}


# --- trainings


def teacher_view(given: Manifest[Weights], log: list[dict], figures: Figures) -> dict[str, Any]:
    """Stage 1: its curves, and its errors beside those of flows that know nothing."""
    notes = {name: given.header.notes.get(name) or {} for name in FLOWS}
    l1 = [Curve("training", *series(log, "loss")), *held_out(log, "l1"), *levels(log, notes, "l1")]
    epe = [*held_out(log, "epe"), *levels(log, notes, "epe")]
    drawn = {"L1 of the predicted flow, px": l1, "End-point error, px": epe}
    return {
        "plots": [
            (
                figures.plot(f"teacher-{at}", plots.panels(f"teacher-{at}", [(title, curves)])),
                f"{title}, by step: {names(curves)}.",
            )
            for at, (title, curves) in enumerate(drawn.items())
            if curves
        ],
        "errors": list(ERRORS.values()),
        "flows": [
            (FLOWS[name], [f"{found[error]:.3f}" if error in found else "" for error in ERRORS])
            for name, found in notes.items()
            if found
        ],
        "step": given.rows[0].step,
    }


def held_out(log: list[dict], name: str) -> list[Curve]:
    """The curve of a number over the held-out clips, if the log has it."""
    steps, values = series(log, f"val_{name}")
    return [Curve("held out", steps, values, colour=1, dots=True)] if values else []


def levels(log: list[dict], notes: dict[str, dict[str, float]], error: str) -> list[Curve]:
    """Dashed levels: what flows that know nothing score."""
    ends = [log[0]["step"], log[-1]["step"]]
    flows = [name for name in ("mean_flow", "zero_flow") if error in notes[name]]
    return [Curve(FLOWS[name], ends, [notes[name][error]] * 2, colour=7, dashed=True) for name in flows]


def names(curves: list[Curve]) -> str:
    """The labels of curves, for a listener."""
    return ", ".join(curve.label for curve in curves if curve.label)


def align_view(params: Params, logs: dict[str, list[dict]], figures: Figures) -> list[dict[str, Any]]:
    """Stage 2: a panel per run, its trainings in one plot."""
    runs = dict.fromkeys(run for run, _ in params.trainings())
    return [
        {"run": run, "what": tables.describe(params, run)}
        | align_panel(run, [logs[f"{run} s{seed}"] for seed in params.seeds_of(run)], figures)
        for run in runs
    ]


def align_panel(run: str, of_run: list[list[dict]], figures: Figures) -> dict[str, Any]:
    """Both terms of Eq. 9, each with its held-out value; a term that stays zero (plain fine-tuning's) is left out."""
    terms = {name: label for name, label in TERMS.items() if any(any(series(log, name)[1]) for log in of_run)}
    rows = []
    for name, label in terms.items():
        curves = [Curve("training", *series(log, name)) for log in of_run]
        rows.append((label, once([*curves, *[curve for log in of_run for curve in held_out(log, name)]])))
    ends = [last(log) for log in of_run]
    held = {label: [end[f"val_{name}"] for end in ends if f"val_{name}" in end] for name, label in terms.items()}
    return {
        "plot": (
            figures.plot(f"align-{run}", plots.panels(f"align-{run}", rows)),
            f"{' and '.join(terms.values())} of {run}, by step.",
        ),
        "ends": [f"{label.split()[0]} {np.mean(values):#.3g}" for label, values in held.items() if values],
    }


def once(curves: list[Curve]) -> list[Curve]:
    """The curves, each label on the first that has it: the trainings of a run share a line of the legend."""
    first = {curve.label: at for at, curve in reversed(list(enumerate(curves)))}
    return [curve if first[curve.label] == at else replace(curve, label="") for at, curve in enumerate(curves)]


# --- provenance


def provenance(found: Found) -> list[dict[str, Any]]:
    """What made each stage's manifests: revision, code, pins."""
    return [
        {
            "stage": stage,
            "manifests": len(headers),
            "rows": found.rows[stage],
            "revision": listed({str(header.revision) for header in headers}),
            "code": listed({header.code for header in headers}),
            "pins": listed({header.pin[:10] for header in headers}),
        }
        for stage, headers in found.headers.items()
        if headers
    ]


def listed(items: set[str]) -> str:
    """A few names, or how many there are."""
    return ", ".join(sorted(items)) if len(items) <= 2 else f"{len(items)} different"
