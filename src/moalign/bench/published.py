"""The paper's own numbers of a table's rows, from resources/paper_scores.json, under our names of runs and metrics."""

import json
from collections.abc import Mapping
from pathlib import Path

from moalign.bench import tables
from moalign.bench.vbench import SUITES, dimension_of
from moalign.config import Params

FILE = "resources/paper_scores.json"
TABLES = {  # ours -> the paper's that print of its rows
    "table1": ("table1",),
    "table2": ("table2",),
    "table3-vbench": ("table3", "tableA1", "tableA2"),
    "table3-vbench2": ("table3", "tableA3", "tableA4", "tableA5"),
    "table4": ("table4",),
    "table5": ("table5",),
    "tableA6": ("tableA6",),
}
RUNS = {
    "CogVideoX-2B": "cog-base",
    "Static baseline": "cog-static",
    "CogVideoX-2B (FT)": "cog-ft",
    "CogVideoX (FT)": "cog-ft",
    "VideoREPA": "cog-videorepa",
    "VideoREPA-2B": "cog-videorepa",
    "VideoREPA-2B (reimpl.)": "cog-videorepa",  # its row "(paper)" repeats another paper's numbers
    "REPA loss": "cog-repa",
    "MoAlign w/o motion features": "cog-no_motion",
    "MoAlign w/o soft-TRD loss": "cog-no_soft",
    "MoAlign": "cog-moalign",
    "MoAlign (ours)": "cog-moalign",
    "MoAlign-2B (ours)": "cog-moalign",
    "18": "cog-moalign",
    **{layer: f"cog-moalign-l{layer}" for layer in ("10", "12", "14", "16", "20", "22")},
    "Wan-1.3B": "wan-base",
    "Wan-1.3B + MoAlign": "wan-moalign",
}


def make_tables(results: Path, params: Params) -> list[tables.Table]:
    """Every table of a scale from its score rows, beside the paper's; the smoke scale stands beside nothing."""
    paper = {} if params.scale == "smoke" else {name: of_table(name) for name in params.tables}
    return [
        tables.make_table(results, params, name, paper.get(name), beside(params, name, paper)) for name in params.tables
    ]


def beside(params: Params, name: str, paper: Mapping[str, tables.Published]) -> Mapping[str, float | None]:
    """The paper's numbers of a table's base, from the first table of the same bench that prints them."""
    base, bench = tables.base_of(params, name), params.tables[name].bench
    found = (paper[other].get(base) for other, row in params.tables.items() if row.bench == bench and other in paper)
    return next(filter(None, found), {})


def of_table(name: str, file: str | Path = FILE) -> dict[str, dict[str, float | None]]:
    """Run -> metric -> the paper's number, per cent; nothing of a table that the paper has not."""
    paper = json.loads(Path(file).read_text(encoding="utf-8"))
    found: dict[str, dict[str, float | None]] = {}
    for source in TABLES.get(name, ()):
        for row, numbers in paper[source]["rows"].items():
            for column, number in zip(paper[source]["columns"], numbers, strict=True):
                metric = metric_of(name, column)
                if row in RUNS and metric is not None:
                    found.setdefault(RUNS[row], {})[metric] = number
    return found


def metric_of(table: str, column: str) -> str | None:
    """Our name of a column; None for what the table does not show."""
    if table.startswith("table3-"):
        suite = SUITES[table.removeprefix("table3-")]
        if column.startswith("VBench"):
            title, _, name = column.partition(" ")
            if title != suite.title:
                return None
            column = f"{name} Score"
        if column.endswith(" Score"):
            name = column.removesuffix(" Score")
            return {"Total": "total", **{group.title(): group for group in suite.groups}}.get(name)
        dimension = dimension_of(suite, column)
        return dimension.name if dimension else None
    metric = {"SA": "SA_pass", "PC": "PC_pass", "Joint": "Joint"}
    return metric.get(column.removeprefix("overall "))
