"""Scores for git, and tables from them: what a result rests on when videos and checkpoints are gone.

    moalign freeze --results results/S --out FOLDER     # FOLDER/scores, report.yaml and tables/*.md
    moalign tables --frozen FOLDER --out FOLDER/tables   # the same tables again, byte for byte, in seconds

Of every table the rows whose trainings are all rated; what is left out is said. An experiment may so be kept while the
rest of it still runs. Nothing is trained, sampled or rated here.
"""

import json
from pathlib import Path

from moalign import config, manifest
from moalign.bench import frozen, latex, published
from moalign.bench import tables as bench_tables
from moalign.config import Params, ReportPin
from moalign.errors import Problem
from moalign.progress import say
from moalign.report import plots

PIN, PROBE = "report.yaml", "probe.json"


def freeze(results: str, out: str) -> None:
    """Write the frozen scores of a scale's finished rows, the parameters that name them, and their tables."""
    top, folder = Path(results), Path(out)
    if not (top / "pins" / PIN).exists():
        raise Problem(f"{results}: no pins/{PIN}; --results takes results/SCALE of a run of the workflow")
    params = ReportPin.load(top / "pins" / PIN).params
    done = finished(top, params)
    cells = dict.fromkeys([*done.rows(), *bases(done)])
    for run, bench, seed in cells:
        path = folder / f"scores/{run}/s{seed}/{bench}.jsonl"
        manifest.write_text(path, frozen.freeze(top, done, run, bench, seed))
    manifest.write_text(folder / PIN, config.dump(config.pin(done, "report")))
    if (top / "report" / PROBE).exists():
        manifest.write_text(folder / PROBE, (top / "report" / PROBE).read_text(encoding="utf-8"))
    tables(str(folder), str(folder / "tables"))
    say(f"{folder}: {len(cells)} trainings' scores; left out, not rated: {left_out(params, done)}")


def tables(frozen: str, out: str) -> None:
    """Make every table from frozen scores, as Markdown and as LaTeX, and the plots of the contrasts and the probe."""
    folder = Path(frozen)
    if not (folder / PIN).exists():
        raise Problem(f"{frozen}: no {PIN}; --frozen takes a folder that `moalign freeze` wrote")
    params = ReportPin.load(folder / PIN).params
    for table in published.make_tables(folder, params):
        manifest.write_text(Path(out) / f"{table.name}.md", bench_tables.markdown(table, params))
        manifest.write_text(Path(out) / f"{table.name}.tex", latex.latex(table, params))
        if table.against:
            name = f"contrasts-{table.name}"
            svg = plots.forest(name, *bench_tables.panels(table), f"{table.against[0].ours} minus")
            manifest.write_text(Path(out) / f"{name}.svg", plots.standalone(svg, plots.PAPER_COLOURS))
    if (folder / PROBE).exists():
        svg = plots.probe(json.loads((folder / PROBE).read_text(encoding="utf-8"))["R2"])
        manifest.write_text(Path(out) / "probe.svg", plots.standalone(svg, plots.PAPER_COLOURS))
    say(f"{out}: {len(params.tables)} tables")


def finished(results: Path, params: Params) -> Params:
    """Parameters whose tables hold the rows that are rated, all their trainings; Problem where there is none.

    A table is left out where those before it hold all of its rows on the same bench. The primary comparison is dropped
    with either of its runs.
    """

    def is_rated(run: str, bench: str) -> bool:
        return all((results / f"scores/{run}/s{seed}/{bench}.jsonl").exists() for seed in params.seeds_of(run))

    kept = {}
    for name, table in params.tables.items():
        rows = tuple(run for run in table.rows if is_rated(run, table.bench))
        known = {run for earlier in kept.values() if earlier.bench == table.bench for run in earlier.rows}
        if len(rows) > 1 and not set(rows) <= known:
            kept[name] = table.model_copy(update={"rows": rows})
    if not kept:
        raise Problem(f"{results}: no table has two rows whose trainings are all rated; run `snakemake bench` first")
    done = params.model_copy(update={"tables": kept})
    return done if done.table_of_primary() else done.model_copy(update={"primary": None})


def bases(params: Params) -> list[tuple[str, str, int]]:
    """(run, bench, seed) of the bases that tables are set beside, rows of them or not."""
    found = [(bench_tables.base_of(params, name), table.bench) for name, table in params.tables.items()]
    return [(run, bench, 0) for run, bench in found if run]


def left_out(params: Params, done: Params) -> str:
    """Rows of any table that are not frozen, in words."""
    kept = {run for table in done.tables.values() for run in table.rows}
    return ", ".join(dict.fromkeys(run for run, *_ in params.rows() if run not in kept)) or "nothing"
