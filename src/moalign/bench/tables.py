"""The tables: Score rows of each run of a table, summarised, compared with its first row, and written as Markdown."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from moalign import manifest
from moalign.bench import scores, statistics
from moalign.bench.gate import Gate, judge_base
from moalign.bench.scores import Difference, Key, Summary
from moalign.config import Params
from moalign.errors import Problem
from moalign.manifest import Manifest, Sample, Score

Published = Mapping[str, Mapping[str, float | None]]  # run -> metric -> number of the paper, in the unit of `Metric`
SHOWN = 12  # missing videos that a table lists one by one


@dataclass(frozen=True)
class Metric:
    """How a metric is called and written."""

    label: str
    unit: str = ""
    factor: float = 1.0
    digits: int = 2

    def text(self, value: float, sign: bool = False) -> str:
        """A value of the metric, with a true minus sign."""
        if not math.isfinite(value):
            return "−∞" if value < 0 else "∞"
        text = f"{value * self.factor:{'+' if sign else ''}.{self.digits}f}"
        if not text.strip("+-0."):
            text = text.lstrip("+-")  # no signed zero
        return text.replace("-", "−")

    def interval(self, found: Summary | Difference, sign: bool = False) -> str:
        """[low, high]."""
        return f"[{self.text(found.low, sign)}, {self.text(found.high, sign)}]"


METRICS = {  # in the order of a table's columns
    "SA": Metric("SA", "1-5"),
    "SA_other": Metric("SA, other prompt", "1-5"),
    "PC": Metric("PC", "1-5"),
    "SA_raw": Metric("SA, mean p(Yes)", "%", 100, 1),
    "PC_raw": Metric("PC, mean p(Yes)", "%", 100, 1),
    "SA_pass": Metric("SA passes", "%", 100, 1),
    "PC_pass": Metric("PC passes", "%", 100, 1),
    "Joint": Metric("Joint", "%", 100, 1),
    "flicker": Metric("Temporal flickering", "%", 100, 2),
    "dynamic": Metric("Dynamic degree", "%", 100, 1),
    "motion": Metric("Mean motion", "px", 1, 2),
    "still": Metric("Near still", "%", 100, 1),
    "codec_motion": Metric("Codec motion (diagnostic)", "px", 1, 2),
    "codec_moving": Metric("Codec moving area (diagnostic)", "%", 100, 1),
    "codec_jerk": Metric("Codec jerk (diagnostic)", "px", 1, 3),
}
BINS = ("slow", "middle", "fast")  # terciles of the base run's mean motion


@dataclass(frozen=True)
class Cell:
    """One metric of one row of a table."""

    summary: Summary
    difference: Difference | None  # from the table's first row
    holm: float | None  # the difference's p, adjusted over the table's rows
    verdict: str | None = None  # beside the order of the same two rows in the paper, where it has both


@dataclass(frozen=True)
class Contrast:
    """The primary contrast: one metric of a run minus that of another, planned before any run."""

    metric: str
    ours: str
    base: str
    difference: Difference | None  # None where a video of either has no number
    published: float | None  # the paper's difference, in the unit of `Metric`


@dataclass(frozen=True)
class Matched:
    """Joint at matched motion: a run that moves less breaks fewer laws, so videos that move alike are compared."""

    base: str  # whose terciles of mean motion the bins are
    edges: tuple[float, ...]
    rows: dict[str, list[Summary]]  # run -> each bin's, then that of the mean over the bins


@dataclass(frozen=True)
class Table:
    """A table of the paper, filled."""

    name: str
    title: str
    bench: str
    videos: int  # of one training
    rules: dict[str, str]  # metric -> how it is defined
    rows: dict[str, dict[str, Cell]]  # run -> metric -> cell
    pins: dict[str, str]  # run -> short hashes of what was rated with, one per training
    code: str  # version and commit that rated
    gate: Gate | None = None  # of the base, where physics is rated
    matched: Matched | None = None  # where physics and motion are
    primary: Contrast | None = None  # in the first table that holds both its runs


def make_table(results: Path, params: Params, name: str, published: Published | None = None) -> Table:
    """Read the scores of a table's rows and summarise them; `published` are the paper's numbers of the same rows."""
    published = published or {}
    row = params.tables[name]
    rated: dict[str, dict[int, list[Score]]] = {}  # run -> seed -> rows
    keys: set[Key] = set()
    pins, codes = {}, set()
    for run in row.rows:
        rated[run] = {}
        for seed in params.seeds_of(run):
            for path in params.samples(run, row.bench, seed):
                keys |= {(video.prompt_id, video.index) for video in manifest.read(results / path, Sample).rows}
            given = manifest.read(results / f"scores/{run}/s{seed}/{row.bench}.jsonl", Score)
            refuse_stand_ins(given)
            rated[run][seed] = given.rows + scores.joint(given.rows)
            pins[run] = " ".join([*pins.get(run, "").split(), given.header.pin[:10]])
            codes.add(given.header.code)
    rules = {score.metric: score.rule for seeds in rated.values() for rows in seeds.values() for score in rows}
    rules = {metric: rules[metric] for metric in dict.fromkeys([*METRICS, *rules]) if metric in rules}
    values = {
        metric: {run: {seed: scores.by_key(rows, metric) for seed, rows in rated[run].items()} for run in row.rows}
        for metric in rules
    }
    cells: dict[str, dict[str, Cell]] = {run: {} for run in row.rows}
    for metric in rules:
        for run, cell in zip(row.rows, cells_of(metric, values[metric], keys, published), strict=True):
            cells[run][metric] = cell
    gate, matched = beside_base(results, params, name, keys, values)
    primary = primary_of(params, values, keys, published) if name == params.table_of_primary() else None
    code = ", ".join(sorted(codes))
    return Table(name, row.title, row.bench, len(keys), rules, cells, pins, code, gate, matched, primary)


def refuse_stand_ins(given: Manifest[Score]) -> None:
    """No table takes the numbers of a stand-in."""
    if found := {row.rater for row in given.rows if row.rater.startswith("stand-in")}:
        raise Problem(
            f"{given.path}: rated by a {found.pop()}, whose numbers mean nothing; correct `raters`, rate again"
        )


def primary_of(
    params: Params, values: dict[str, dict[str, dict[int, dict[Key, float]]]], keys: set[Key], published: Published
) -> Contrast:
    """The primary contrast, from values by metric, run, seed and key."""
    plan = params.primary
    ours, base = (values.get(plan.metric, {}).get(run, {}) for run in (plan.ours, plan.base))
    whole = plan.metric in values and all(
        key in of_seed for run in (ours, base) for of_seed in run.values() for key in keys
    )
    difference = scores.difference(plan.metric, ours, base, keys) if whole else None
    paper = paper_difference(published, plan.metric, plan.ours, plan.base)
    return Contrast(plan.metric, plan.ours, plan.base, difference, paper)


def paper_difference(published: Published, metric: str, ours: str, base: str) -> float | None:
    """The paper's difference of two rows; None where it has not both."""
    a, b = (published.get(run, {}).get(metric) for run in (ours, base))
    return None if a is None or b is None else round(a - b, 6)  # a tie must be 0 exactly


def base_of(params: Params, name: str) -> str | None:
    """The base of a table: the weights as they came, of its first row's backbone, where the same bench has them."""
    row = params.tables[name]
    there = {run for run, bench, _ in params.rows() if bench == row.bench}
    for run, found in params.runs.items():
        own = found.method is None and found.still_of is None
        if own and run in there and found.backbone == params.runs[row.rows[0]].backbone:
            return run
    return None


def beside_base(
    results: Path, params: Params, name: str, keys: set[Key], values: dict[str, dict[str, dict[int, dict[Key, float]]]]
) -> tuple[Gate | None, Matched | None]:
    """The gate of a table's base, and Joint in bins of its motion. values: metric -> run -> seed -> key."""
    base, bench = base_of(params, name), params.tables[name].bench
    if base is None:
        return None, None
    given = manifest.read(results / f"scores/{base}/s0/{bench}.jsonl", Score)
    motion = list(scores.by_key(given.rows, "motion").values())
    matched = None
    if "Joint" in values and "motion" in values and motion:
        edges = tuple(np.quantile(motion, np.arange(1, len(BINS)) / len(BINS)).tolist())
        rows = {run: scores.at_motion(values["Joint"][run], values["motion"][run], edges) for run in values["Joint"]}
        matched = Matched(base, edges, rows)
    return judge_base(bench, base, given.rows, keys, given.header.notes.get("reference")), matched


def cells_of(
    metric: str, values: dict[str, dict[int, dict[Key, float]]], keys: Iterable[Key], published: Published
) -> list[Cell]:
    """One metric of a table's rows, in order; differences are from the first, where nothing is missing in either."""
    summaries = {run: scores.summarise(metric, of_run, keys) for run, of_run in values.items()}
    first, *others = values
    whole = [run for run in others if summaries[run].mean is not None and summaries[first].mean is not None]
    differences = {run: scores.difference(metric, values[run], values[first], keys) for run in whole}
    tested = [run for run in whole if differences[run].p is not None]
    adjusted = dict(zip(tested, statistics.holm([differences[run].p for run in tested]), strict=True))
    verdicts = {
        run: verdict_on(found, paper_difference(published, metric, run, first)) for run, found in differences.items()
    }
    return [Cell(summaries[run], differences.get(run), adjusted.get(run), verdicts.get(run)) for run in values]


def verdict_on(found: Difference, published: float | None) -> str | None:
    """Our difference beside the paper's; None where the paper has none."""
    return None if published is None else statistics.verdict((found.low, found.high), published)


def markdown(table: Table, params: Params) -> str:
    """A table as Markdown: the means, then the differences, then what the columns mean."""
    metrics = {metric: metric_of(metric) for metric in table.rules}
    heads = [f"{shown.label} ({shown.unit})" if shown.unit else shown.label for shown in metrics.values()]
    first = next(iter(table.rows))
    rows = rows_shown(table, params)
    lines = [f"# {table.title}", ""]
    lines += [f"Scale `{params.scale}`, bench `{table.bench}`, {table.videos} videos per training."]
    lines += ["95 % intervals in brackets.", *([f"**{meaningless(params)}**"] if params.scale == "smoke" else []), ""]
    lines += [f"{table.gate.text()}.", ""] if table.gate else []
    lines += [f"**{remark}**", ""] if (remark := gate_remark(table, params)) else []
    lines += [line("run", "what it is", "n", *heads, "pin"), line(*["---"] * (len(heads) + 4))]
    for run, cells in rows.items():
        shown = [mean_text(metrics[metric], cell.summary) for metric, cell in cells.items()]
        n = min((cell.summary.n for cell in cells.values()), default=0)
        lines.append(line(f"`{run}`", describe(params, run), str(n), *shown, f"`{table.pins[run]}`"))
    lines += ["", f"Paired difference from `{first}`: the same prompts and the same noise."]
    lines += [tests_text(table), ""]
    lines += [line("run", *heads), line(*["---"] * (len(heads) + 1))]
    for run, cells in rows.items():
        if run != first:
            lines.append(line(f"`{run}`", *[difference_text(metrics[metric], cell) for metric, cell in cells.items()]))
    lines += ["", text] if (text := primary_text(table, params)) else []
    if table.matched:
        shown = {run: found for run, found in table.matched.rows.items() if run in rows}
        lines += ["", matched_text(table.matched), "", line("run", *BINS, "mean of the three")]
        lines += [line(*["---"] * (len(BINS) + 2))]
        lines += [line(f"`{run}`", *map(matched_cell, found)) for run, found in shown.items()]
    lines += ["", *[f"- {metrics[metric].label}: {rule}" for metric, rule in table.rules.items()]]
    lines.append(f"- Rated by {table.code}, with the pins named above.")
    gone = missing_lines(table)
    lines += ["", *[f"- {text}" for text in gone]] if gone else []
    return "\n".join(lines) + "\n"


def rows_shown(table: Table, params: Params) -> dict[str, dict[str, Cell]]:
    """Rows that a reader gets: while the base fails its gate no methods, but at the smoke scale, which is no result."""
    if table.gate is None or table.gate.passed or params.scale == "smoke":
        return table.rows
    return {run: cells for run, cells in table.rows.items() if params.runs[run].method is None}


def gate_remark(table: Table, params: Params) -> str | None:
    """What a failed gate means for a table."""
    if table.gate is None or table.gate.passed:
        return None
    if params.scale == "smoke":
        return "The base did not pass its gate: the rows of methods carry no meaning."
    return "The base did not pass its gate: the rows of methods are left out, their numbers are in metrics.json."


def tests_text(table: Table) -> str:
    """What p is, and a verdict."""
    judged = any(cell.verdict for cells in table.rows.values() for cell in cells.values())
    return (
        "p: exact McNemar, or that of the mean where a run has several trainings or a prompt several videos; adjusted"
        f" over the rows by Holm.{' Agrees, differs, undecided: with the order in the paper.' if judged else ''}"
    )


def primary_text(table: Table, params: Params) -> str | None:
    """The primary contrast in words; None where the table does not hold it, or the gate hides its runs."""
    found = table.primary
    if found is None or not {found.ours, found.base} <= set(rows_shown(table, params)):
        return None
    metric = metric_of(found.metric)
    name = f"{metric.label}{f' ({metric.unit})' if metric.unit else ''} of {found.ours} minus {found.base}"
    text, ours = f"Primary contrast, planned before any run: {name}: ", found.difference
    if ours is None:
        return f"{text}{'incomplete' if found.metric in table.rules else 'not rated'}."
    text += f"{metric.text(ours.mean, sign=True)} {metric.interval(ours, sign=True)}"
    text += f", {p_text(ours.p)}, not adjusted." if ours.p is not None else "."
    if len(params.seeds_of(found.ours)) == 1:
        text += " The interval is of this one training: how another would differ, nothing tells."
    if found.published is None:
        return text
    text += f" The paper has {metric.text(found.published / metric.factor, sign=True)}:"
    text += f" {verdict_on(ours, found.published)}.{power_text(table, params)}"
    return text


def power_text(table: Table, params: Params) -> str:
    """How likely this many prompts show a gain as large as the paper's; at its scale alone, and with McNemar's p."""
    found = table.primary
    gain, discordant = found.published / metric_of(found.metric).factor, found.difference.discordant
    if params.scale != "paper" or discordant is None or gain == 0:
        return ""
    chance = statistics.power(table.videos, gain, discordant)
    return (
        f" With {table.videos} prompts, of which {100 * discordant:.1f} % pass in one run alone, such a difference has"
        f" a chance of {100 * chance:.0f} % to be significant; 80 % takes"
        f" {statistics.prompts_needed(gain, discordant):,} prompts."
    )


def matched_text(matched: Matched) -> str:
    """What the bins of matched motion are."""
    low, high = (METRICS["motion"].text(edge) for edge in matched.edges)
    return (
        f"Joint (%) at matched motion: the bins are the terciles of {matched.base}'s mean motion, up to {low} px, up to"
        f" {high} px, and above; each with its number of videos. The mean of the three is what Joint would be if the"
        " run moved as the base does; there is none where a bin is empty."
    )


def matched_cell(found: Summary) -> str:
    """Joint in one bin."""
    return "-" if found.mean is None else f"{mean_text(METRICS['Joint'], found)} n = {found.n}"


def line(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def mean_text(metric: Metric, summary: Summary) -> str:
    """Mean and interval, or that there is none."""
    return "incomplete" if summary.mean is None else f"{metric.text(summary.mean)} {metric.interval(summary)}"


def difference_text(metric: Metric, cell: Cell) -> str:
    """Difference, interval and p, or that there is none."""
    found = cell.difference
    if found is None:
        return "incomplete"
    p = "" if cell.holm is None else f", {p_text(cell.holm)}"
    verdict = "" if cell.verdict is None else f", {cell.verdict}"
    return f"{metric.text(found.mean, sign=True)} {metric.interval(found, sign=True)}{p}{verdict}"


def p_text(p: float) -> str:
    """A p value."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def missing_lines(table: Table) -> list[str]:
    """What has no number, run by run."""
    lines = []
    for run, cells in table.rows.items():
        gone = dict.fromkeys(item for cell in cells.values() for item in cell.summary.missing)
        if gone:
            listed = [f"s{seed} prompt {prompt} video {index}" for seed, (prompt, index) in list(gone)[:SHOWN]]
            more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
            lines.append(f"{run} is incomplete, without a number: {', '.join(listed)}{more}")
    return lines


def metric_of(metric: str) -> Metric:
    """How a metric is written; one without an entry goes by its own name."""
    return METRICS.get(metric, Metric(metric))


def describe(params: Params, run: str) -> str:
    """What is done to a run's backbone, in a few words."""
    row = params.runs[run]
    if row.still_of:
        return f"first frame of {row.still_of}, repeated"
    if row.method is None:
        return "the weights as they came"
    method = params.methods[row.method]
    if method.target == "none":
        return "fine-tuned, no alignment"
    if method.target == "flow_video":
        return f"paints optical flow beside the video, λ {method.lam:g}, inner guidance {method.inner_guidance:g}"
    target = {"tokens": "encoder tokens S", "motion": "motion M"}[method.target]
    loss = {"crepa": "CREPA", "trd": "TRD", "soft_trd": "soft TRD"}.get(method.loss, method.loss)
    parts = [f"{loss} to {target}", f"λ {method.lam:g}"]
    if method.tau is not None:
        parts.append("τ ∞" if math.isinf(method.tau) else f"τ {method.tau:g}")
    if method.denominator != "all":
        parts.append("off-diagonal mean")
    layers = params.layers(run)
    return ", ".join([*parts, f"block{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"])


def meaningless(params: Params) -> str:
    """The line that a page of the smoke scale must carry."""
    return (
        f"This is the {params.scale} scale: every stage ran, in {params.align.steps} steps of fine-tuning."
        " Its numbers carry no meaning."
    )
