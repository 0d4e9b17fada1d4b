"""The tables: Score rows of each run of a table, summarised, compared with its first row, and written as Markdown."""

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from moalign.bench import frozen, scores, statistics, suite_scores
from moalign.bench.gate import Anchor, Gate, judge_base
from moalign.bench.scores import MATCHED, Difference, Key, Summary
from moalign.bench.vbench import SUITES, Suite
from moalign.config import Params
from moalign.errors import Problem
from moalign.manifest import Manifest, Score

Values = dict[str, dict[int, dict[Key, float]]]  # of one metric: run -> seed of the training -> video
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
    "rules_broken": Metric("Rules broken", "%", 100, 1),
    "laws_broken": Metric("Laws broken", "%", 100, 1),
    "Joint_matched": Metric("Joint at matched motion", "%", 100, 1),
    "laws_matched": Metric("Laws broken at matched motion", "%", 100, 1),
    "flicker": Metric("Temporal flickering", "%", 100, 2),
    "dynamic": Metric("Dynamic degree", "%", 100, 1),
    "motion": Metric("Mean motion", "px", 1, 2),
    "still": Metric("Near still", "%", 100, 1),
    "codec_motion": Metric("Codec motion (diagnostic)", "px", 1, 2),
    "codec_moving": Metric("Codec moving area (diagnostic)", "%", 100, 1),
    "codec_jerk": Metric("Codec jerk (diagnostic)", "px", 1, 3),
}
SUITE_METRICS = {
    name: Metric(name.replace("_", " ").capitalize() if suite.name == "vbench" else name.replace("_", " "), "%", 100, 1)
    for suite in SUITES.values()
    for name in (*suite.groups, *suite.dimensions)
} | {suite_scores.TOTAL: Metric("Total", "%", 100, 1)}
STATE_METRICS = ("SA_raw", "PC_raw", "SA_pass", "PC_pass")
HEADLINES = ("Joint", suite_scores.TOTAL, "PC_pass")  # by one of these a base is set beside the paper's
AGAINST = ("Joint", "SA", "PC", "SA_pass", "PC_pass", "laws_broken", "motion", *MATCHED.values())  # contrasts shown
NOT_COMPARABLE, NOT_RUN = "not comparable", "not run"
AGAINST_TEXT = (
    "Paired by prompt, noise and training. p: exact McNemar for shares of one training, else that of the mean; not"
    " adjusted. An interval of one training is of that training alone; one of all holds how trainings differ. At"
    " matched motion each video is weighted by its bin, the bins filled by the trainings of that line."
)
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
class Against:
    """One metric of our run minus that of another trained one, in one training or over all of them."""

    metric: str
    ours: str
    base: str
    seed: int | None  # of both trainings; None: all
    difference: Difference
    p: float  # not adjusted


@dataclass(frozen=True)
class Matched:
    """Metrics at matched motion: a run that moves less breaks fewer laws, so videos that move alike are compared."""

    base: str  # whose terciles of mean motion the bins are
    edges: tuple[float, ...]
    rows: dict[str, dict[str, list[Summary]]]  # metric of MATCHED -> run -> bins, then their mean


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
    against: tuple[Against, ...] = ()  # its run minus each other that is trained, training by training
    dimensions: tuple[str, ...] = ()  # metrics that stand in a table of their own, a line each
    states: dict[str, dict[str, dict[str, Summary]]] = field(default_factory=dict)  # run -> state of matter -> metric
    published: Published = field(default_factory=dict)  # the paper's, where they may be set beside these
    not_run: tuple[str, ...] = ()  # rows of the paper that this table lacks
    anchor: Anchor | None = None  # the base beside the paper's, at the paper's scale


def make_table(
    results: Path,
    params: Params,
    name: str,
    published: Published | None = None,
    of_base: Mapping[str, float | None] | None = None,
) -> Table:
    """Read the scores of a table's rows and summarise them.

    `published` are the paper's numbers of the same rows, `of_base` those of its base on the same bench.
    """
    published = published or {}
    row = params.tables[name]
    rated: dict[str, dict[int, list[Score]]] = {}  # run -> seed -> rows
    notes: dict[str, dict[int, dict]] = {}
    keys: set[Key] = set()
    pins, codes = {}, set()
    for run in row.rows:
        rated[run], notes[run] = {}, {}
        for seed in params.seeds_of(run):
            given, due = frozen.rated(results, params, run, row.bench, seed)
            refuse_stand_ins(given)
            keys |= due
            rated[run][seed] = given.rows + scores.joint(given.rows)
            notes[run][seed] = given.header.notes
            pins[run] = " ".join([*pins.get(run, "").split(), given.header.pin[:10]])
            codes.add(given.header.code)
    rules = rules_of(name, rated)
    values = {
        metric: {run: {seed: scores.by_key(rows, metric) for seed, rows in rated[run].items()} for run in row.rows}
        for metric in rules
    }
    suite = SUITES.get(params.benches[row.bench].suite)
    dimensions = tuple(metric for metric in rules if suite and metric in suite.dimensions)
    cells: dict[str, dict[str, Cell]] = {run: {} for run in row.rows}
    if dimensions:
        values = suite_values(suite, {metric: values[metric] for metric in dimensions}, notes) | {
            metric: of_runs for metric, of_runs in values.items() if metric not in dimensions
        }
        rules = {metric: rules.get(metric, suite_rule(suite, metric)) for metric in values}
    for metric in rules:
        due = set().union(*(of.keys() for seeds in values[metric].values() for of in seeds.values()))
        due = due if metric in dimensions or metric not in METRICS else keys
        for run, cell in zip(row.rows, cells_of(metric, values[metric], due, published), strict=True):
            cells[run][metric] = cell
    gate, matched = beside_base(results, params, name, keys, values)
    anchor = anchor_of(results, params, name, cells, keys, of_base or {}) if params.scale == "paper" else None
    if anchor and not anchor.holds:
        cells = {
            run: {metric: replace(cell, verdict=cell.verdict and NOT_COMPARABLE) for metric, cell in of.items()}
            for run, of in cells.items()
        }
    primary = primary_of(params, values, keys, published) if name == params.table_of_primary() else None
    against = tuple(all_against(params, name, values, keys, matched))
    code = ", ".join(sorted(codes))
    states = {run: states_of(values, run, notes[run], keys) for run in row.rows}
    beside = published if params.scale == "paper" else {}  # below it orders alone may be compared
    not_run = tuple(run for run in published if run not in row.rows)
    shown = (pins, code, gate, matched, primary, against, dimensions, states, beside, not_run, anchor)
    return Table(name, row.title, row.bench, len(keys), rules, cells, *shown)


def rules_of(name: str, rated: dict[str, dict[int, list[Score]]]) -> dict[str, str]:
    """Metric -> how it is defined, in the order of columns; Problem where two rows of a table mean different things."""
    rules: dict[str, str] = {}
    for run, seeds in rated.items():
        for score in (score for rows in seeds.values() for score in rows):
            if rules.setdefault(score.metric, score.rule) != score.rule:
                raise Problem(
                    f"tables.{name}: {score.metric} of {run} is {score.rule!r}, that of another row"
                    f" {rules[score.metric]!r}; rate all rows of a table in one way"
                )
    return {metric: rules[metric] for metric in dict.fromkeys([*METRICS, *rules]) if metric in rules}


def suite_values(suite: Suite, values: dict[str, Values], notes: dict[str, dict[int, dict]]) -> dict[str, Values]:
    """Total, groups and dimensions of a suite by prompt (`suite_scores`); no value where a video that is due has none.

    values: dimension -> run -> seed -> video.
    """
    asked: dict[str, set[int]] = {}  # metric -> prompts of any run, so that runs pair
    found: dict[tuple[str, int], dict[str, suite_scores.Estimate]] = {}
    for run, seeds in notes.items():
        for seed, note in seeds.items():
            whole = {}
            for name, videos in note["due"].items():
                due = {tuple(key) for key in videos}
                asked.setdefault(name, set()).update(prompt for prompt, _ in due)
                of_key = values.get(name, {}).get(run, {}).get(seed, {})
                if due <= of_key.keys():
                    whole[name] = of_key
            found[run, seed] = suite_scores.estimates(suite, whole)
    for group in suite.groups:
        parts = [asked.get(one.name, set()) for one in suite.dimensions.values() if one.group == group]
        asked[group] = set().union(*parts)
    asked[suite_scores.TOTAL] = set().union(*asked.values())
    order = [suite_scores.TOTAL, *suite.groups, *(name for name in suite.dimensions if name in values)]
    return {
        metric: {
            run: {
                seed: suite_scores.by_prompt(found[run, seed][metric], sorted(asked[metric]))
                if metric in found[run, seed]
                else {}
                for seed in seeds
            }
            for run, seeds in notes.items()
        }
        for metric in order
    }


def suite_rule(suite: Suite, metric: str) -> str:
    """What a group or the total is."""
    of = "the groups" if metric == suite_scores.TOTAL else f"its normalised dimensions of group {metric}"
    return f"{suite.title}'s weighted mean of {of}"


def states_of(
    values: dict[str, Values], run: str, notes: dict[int, dict], keys: set[Key]
) -> dict[str, dict[str, Summary]]:
    """A run's means by state of matter, where its prompts have one."""
    found: dict[str, dict[str, Summary]] = {}
    for state, prompts in next(iter(notes.values())).get("groups", {}).items():
        due = {key for key in keys if key[0] in set(prompts)}
        found[state] = {
            metric: scores.summarise(metric, values[metric][run], due)
            if metric in values
            else scores.summary((), (), (), False)
            for metric in STATE_METRICS
        }
    return found


def refuse_stand_ins(given: Manifest[Score]) -> None:
    """No table takes the numbers of a stand-in."""
    if found := {row.rater for row in given.rows if row.rater.startswith("stand-in")}:
        raise Problem(
            f"{given.path}: rated by a {found.pop()}, whose numbers mean nothing; correct `raters`, rate again"
        )


def primary_of(params: Params, values: dict[str, Values], keys: set[Key], published: Published) -> Contrast:
    """The primary contrast, from values by metric, run, seed and key."""
    plan = params.primary
    ours, base = (values.get(plan.metric, {}).get(run, {}) for run in (plan.ours, plan.base))
    whole = plan.metric in values and all(
        key in of_seed for run in (ours, base) for of_seed in run.values() for key in keys
    )
    difference = scores.difference(plan.metric, ours, base, keys) if whole else None
    paper = paper_difference(published, plan.metric, plan.ours, plan.base)
    return Contrast(plan.metric, plan.ours, plan.base, difference, paper)


def all_against(
    params: Params, name: str, values: dict[str, Values], keys: set[Key], matched: Matched | None
) -> Iterable[Against]:
    """The planned run minus each other trained run of a table of its bench, on metrics that both have whole.

    The primary pair comes first; what stands in its table is not said again in another.
    """
    plan, table = params.primary, params.tables[name]
    if plan is None or plan.bench != table.bench or plan.ours not in table.rows:
        return
    first, ordered = params.table_of_primary(), sorted(keys)
    said = () if name == first else params.tables[first].rows
    bases = [run for run in table.rows if params.runs[run].method and run != plan.ours and run not in said]
    seeds = params.seeds_of(plan.ours)
    for base, metric in itertools.product(sorted(bases, key=lambda run: run != plan.base), AGAINST):
        for some in [*((seed,) for seed in seeds), seeds] if len(seeds) > 1 else [seeds]:
            theirs = some if set(some) <= set(params.seeds_of(base)) else params.seeds_of(base)
            a = of_trainings(metric, plan.ours, some, values, matched)
            b = of_trainings(metric, base, theirs, values, matched)
            if not all(key in of_seed for of_run in (a, b) for of_seed in of_run.values() for key in keys):
                continue
            found = scores.difference(metric, a, b, keys)
            p = found.p
            if p is None:
                p = statistics.p_of_mean(*scores.flat(scores.stack(a, ordered) - scores.stack(b, ordered), ordered))
            yield Against(metric, plan.ours, base, some[0] if len(some) == 1 else None, found, p)


def of_trainings(
    metric: str, run: str, seeds: Iterable[int], values: dict[str, Values], matched: Matched | None
) -> dict[int, dict[Key, float]]:
    """One metric of some trainings of a run by key, weighted by these trainings' bins where it is one of MATCHED's."""
    raw = next((name for name, weighted in MATCHED.items() if weighted == metric), metric)
    if raw not in values or (raw != metric and matched is None):
        return {seed: {} for seed in seeds}
    found = {seed: values[raw][run][seed] for seed in seeds}
    if raw == metric:
        return found
    return scores.weighted(found, {seed: values["motion"][run][seed] for seed in seeds}, matched.edges)


def paper_difference(published: Published, metric: str, ours: str, base: str) -> float | None:
    """The paper's difference of two rows; None where it has not both."""
    a, b = (published.get(run, {}).get(metric) for run in (ours, base))
    return None if a is None or b is None else round(a - b, 6)  # a tie must be 0 exactly


def anchor_of(
    results: Path,
    params: Params,
    name: str,
    cells: dict[str, dict[str, Cell]],
    keys: set[Key],
    of_base: Mapping[str, float | None],
) -> Anchor | None:
    """The table's base beside the paper's, by the first of HEADLINES that both have; it need not be one of the rows."""
    base, bench = base_of(params, name), params.tables[name].bench
    if base is None:
        return None
    found = {metric: cell.summary for metric, cell in cells.get(base, {}).items()}
    if not found:
        rows = frozen.rated(results, params, base, bench, 0)[0].rows
        rows += scores.joint(rows)
        of_key = {metric: scores.by_key(rows, metric) for metric in HEADLINES}
        found = {metric: scores.summarise(metric, {0: of}, keys) for metric, of in of_key.items() if of}
    for metric in HEADLINES:
        paper, ours = of_base.get(metric), found.get(metric)
        if paper is not None and ours is not None and ours.mean is not None:
            shown = metric_of(metric)
            return Anchor(base, shown.label, *(x * shown.factor for x in (ours.mean, ours.low, ours.high)), paper)
    return None


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
    results: Path, params: Params, name: str, keys: set[Key], values: dict[str, Values]
) -> tuple[Gate | None, Matched | None]:
    """The gate of a table's base, and the metrics of MATCHED in bins of its motion."""
    base, bench = base_of(params, name), params.tables[name].bench
    if base is None:
        return None, None
    given, _ = frozen.rated(results, params, base, bench, 0)
    motion = list(scores.by_key(given.rows, "motion").values())
    matched = None
    if "Joint" in values and "motion" in values and motion:
        edges = tuple(np.quantile(motion, np.arange(1, len(BINS)) / len(BINS)).tolist())
        rows = {
            metric: {
                run: scores.at_motion(of_run, values["motion"][run], edges, metric in scores.BINARY)
                for run, of_run in values[metric].items()
            }
            for metric in MATCHED
            if metric in values
        }
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
    metrics = {metric: metric_of(metric) for metric in table.rules if metric not in table.dimensions}
    heads = [f"{shown.label} ({shown.unit})" if shown.unit else shown.label for shown in metrics.values()]
    first = next(iter(table.rows))
    rows = rows_shown(table, params)
    lines = [f"# {table.title}", ""]
    lines += [f"Scale `{params.scale}`, bench `{table.bench}`, {table.videos} videos per training."]
    lines += ["95 % intervals in brackets.", *([f"**{meaningless(params)}**"] if params.scale == "smoke" else []), ""]
    lines += [f"{table.gate.text()}.", ""] if table.gate else []
    lines += [f"{table.anchor.text()}.", ""] if table.anchor else []
    lines += [f"**{remark}**", ""] if (remark := gate_remark(table, params)) else []
    lines += [line("run", "what it is", "n", *heads, "pin"), line(*["---"] * (len(heads) + 4))]
    for run, cells in rows.items():
        shown = [
            mean_text(metrics[metric], cells[metric].summary) + paper_text(table, run, metric) for metric in metrics
        ]
        n = min((cell.summary.n for cell in cells.values()), default=0)
        lines.append(line(f"`{run}`", describe(params, run), str(n), *shown, f"`{table.pins[run]}`"))
    for run in table.not_run:
        papers = [paper_text(table, run, metric).strip() for metric in metrics]
        lines.append(line(f"`{run}`", NOT_RUN, "0", *papers, ""))
    lines += ["", f"Paired difference from `{first}`: the same prompts and the same noise."]
    lines += [tests_text(table), ""]
    lines += [line("run", *heads), line(*["---"] * (len(heads) + 1))]
    for run, cells in rows.items():
        if run != first:
            lines.append(line(f"`{run}`", *[difference_text(shown, cells[name]) for name, shown in metrics.items()]))
    lines += ["", text] if (text := primary_text(table, params)) else []
    for part in parts(table, params):
        lines += ["", f"**{part.title}.** {part.note}", "", line(*part.heads), line(*["---"] * len(part.heads))]
        lines += [line(f"`{name}`", *cells) for name, cells in part.rows]
    lines += ["", *[f"- {metric_of(metric).label}: {rule}" for metric, rule in table.rules.items()]]
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
    verdict = verdict_on(ours, found.published) if table.anchor is None or table.anchor.holds else NOT_COMPARABLE
    text += f" The paper has {metric.text(found.published / metric.factor, sign=True)}: {verdict}."
    text += power_text(table, params)
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


def paper_text(table: Table, run: str, metric: str) -> str:
    """The paper's number beside ours, where it may stand there."""
    number = table.published.get(run, {}).get(metric)
    return "" if number is None else f" (paper {number:.1f})"


@dataclass(frozen=True)
class Part:
    """A smaller table below a table."""

    title: str
    note: str
    heads: list[str]
    rows: list[tuple[str, list[str]]]


def parts(table: Table, params: Params) -> list[Part]:
    """What stands below a table: dimensions of a suite, states of matter, matched motion, contrasts."""
    rows, found = rows_shown(table, params), []
    if table.dimensions:
        first, *others = rows
        heads = ["dimension", *rows, *(f"{run} − {first}" for run in others)]
        lines = []
        for name in table.dimensions:
            shown = metric_of(name)
            means = [f"{mean_text(shown, of[name].summary)}{paper_text(table, run, name)}" for run, of in rows.items()]
            lines.append((shown.label, [*means, *(difference_text(shown, rows[run][name]) for run in others)]))
        found.append(Part("Dimensions", "Means over videos (%), not normalised.", heads, lines))
    states = [(run, state, cells) for run in rows for state, cells in table.states.get(run, {}).items()]
    metrics = [name for name in STATE_METRICS if any(cells[name].n for *_, cells in states)]
    if metrics:
        lines = [(f"{run}, {state}", state_cells(cells, metrics)) for run, state, cells in states]
        heads = ["run, state of matter", "n", *(f"{METRICS[name].label} (%)" for name in metrics)]
        found.append(Part("By state of matter", "Means over the prompts of each state.", heads, lines))
    if table.matched:
        heads, note = ["run", *BINS, "mean of the three"], matched_text(table.matched)
        for metric, of_run in table.matched.rows.items():
            shown = metric_of(MATCHED[metric])
            lines = [(run, [matched_cell(shown, cell) for cell in of_run[run]]) for run in rows]
            found.append(Part(shown.label, f"In {shown.unit}; {note}", heads, lines))
            note = "bins as above."
    if table.against and table.against[0].ours in rows:
        lines = [(one.base, against_cells(one)) for one in table.against]
        heads = [f"{table.against[0].ours} minus", "metric", "training", "difference", "p"]
        found.append(Part("Training by training", AGAINST_TEXT, heads, lines))
    return found


def against_cells(found: Against) -> list[str]:
    """A contrast in one training, or over all."""
    shown, apart = metric_of(found.metric), found.difference
    unit = f" ({shown.unit})" if shown.unit else ""
    training = "all" if found.seed is None else f"s{found.seed}"
    value = f"{shown.text(apart.mean, sign=True)} {shown.interval(apart, sign=True)}"
    return [f"{shown.label}{unit}", training, value, p_text(found.p)]


def panels(table: Table) -> tuple[list[tuple[str, str, bool]], list[tuple[str, list[tuple | None]]]]:
    """The contrasts of a table for a plot: lines (training, base, whether it is the one to look at), which all panels
    share, and a panel for each metric with mean, low and high in its unit, None where there is none.
    """
    lines = list(dict.fromkeys((one.base, one.seed) for one in table.against))
    several = any(seed is None for _, seed in lines)
    found = []
    for metric in (name for name in AGAINST if name not in MATCHED.values()):
        shown = metric_of(metric)
        of_line = {(one.base, one.seed): one.difference for one in table.against if one.metric == metric}
        ends = [(apart.mean, apart.low, apart.high) if (apart := of_line.get(line)) else None for line in lines]
        if of_line:
            unit = f", {shown.unit}" if shown.unit else ""
            scaled = [end and tuple(shown.factor * value for value in end) for end in ends]
            found.append((f"{shown.label}{unit}", scaled))
    names = [("all" if seed is None else f"s{seed}", base, seed is None or not several) for base, seed in lines]
    return names, found


def state_cells(cells: dict[str, Summary], metrics: list[str]) -> list[str]:
    """A run's means in one state of matter, the number of them first."""
    n = min(cells[name].n for name in metrics)
    return [str(n), *(mean_text(METRICS[name], cells[name]) for name in metrics)]


def matched_text(matched: Matched) -> str:
    """What the bins of matched motion are."""
    low, high = (METRICS["motion"].text(edge) for edge in matched.edges)
    return (
        f"the bins are the terciles of {matched.base}'s mean motion, up to {low} px, up to {high} px, and above; each"
        " with its number of videos. The mean of the three gives the bins the same weight, as they have in the base;"
        " there is none where a bin is empty."
    )


def matched_cell(metric: Metric, found: Summary) -> str:
    """A metric in one bin."""
    return "-" if found.mean is None else f"{mean_text(metric, found)} n = {found.n}"


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
    suite = {*table.dimensions, *(metric for metric in table.rules if metric in SUITE_METRICS)}
    for run, cells in table.rows.items():
        if without := [metric_of(name).label for name in suite & cells.keys() if cells[name].summary.mean is None]:
            lines.append(f"{run} has no mean of {', '.join(sorted(without))}: the notes of its scores say why")
        gone = dict.fromkeys(item for name in cells.keys() - suite for item in cells[name].summary.missing)
        if gone:
            listed = [f"s{seed} prompt {prompt} video {index}" for seed, (prompt, index) in list(gone)[:SHOWN]]
            more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
            lines.append(f"{run} is incomplete, without a number: {', '.join(listed)}{more}")
    return lines


def metric_of(metric: str) -> Metric:
    """How a metric is written; one without an entry goes by its own name."""
    return METRICS.get(metric) or SUITE_METRICS.get(metric, Metric(metric))


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


# --- as numbers -------------------------------------------------------------------------------------------------------


def numbers(table: Table) -> dict[str, dict[str, dict[str, float | int | None]]]:
    """Run -> metric -> mean and n, as metrics.json has them."""
    return {
        run: {metric: summary_numbers(cell.summary) for metric, cell in cells.items()}
        for run, cells in table.rows.items()
    }


def summary_numbers(found: Summary) -> dict[str, float | int | None]:
    """Mean and n."""
    return {"mean": None if found.mean is None else rounded(found.mean), "n": found.n}


def rounded(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")
