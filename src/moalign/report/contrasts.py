"""The planned contrasts as a picture: our run minus each other trained run, training by training."""

from moalign.bench.tables import Table, metric_of
from moalign.report import plots
from moalign.report.plots import Apart

SHOWN = ("Joint", "SA", "PC", "PC_pass", "laws_broken", "motion")  # metrics, a panel each


def picture(table: Table) -> str:
    """An <svg> of the contrasts below a table, for the page; as a file by `plots.standalone`."""
    lines = list(dict.fromkeys((one.base, one.seed) for one in table.against))
    panels = []
    for metric in (name for name in SHOWN if any(one.metric == name for one in table.against)):
        shown = metric_of(metric)
        found = {(one.base, one.seed): one.difference for one in table.against if one.metric == metric}
        ends = {
            line: tuple(shown.factor * end for end in (apart.mean, apart.low, apart.high))
            for line, apart in found.items()
        }
        unit = f", {shown.unit}" if shown.unit else ""
        panels.append((f"{shown.label}{unit}", [ends.get(line) for line in lines]))
    several = any(seed is None for _, seed in lines)
    labels = [
        Apart(f"{'all' if seed is None else f's{seed}'}", base, seed is None or not several) for base, seed in lines
    ]
    return plots.forest(f"contrasts-{table.name}", labels, panels, f"{table.primary.ours} minus")
