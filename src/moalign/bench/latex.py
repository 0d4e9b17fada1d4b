"""A table as LaTeX, with booktabs: mean, interval, the paper's number, difference from the first row in every cell."""

from moalign.bench import tables
from moalign.bench.tables import Cell, Metric, Table
from moalign.config import Params

NEEDS = "% needs \\usepackage{booktabs,graphicx}"
ESCAPED = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "−": r"$-$",
    "×": r"$\times$",
    "≥": r"$\geq$",
    "∞": r"$\infty$",
    "λ": r"$\lambda$",
    "τ": r"$\tau$",
    "’": "'",
}


def latex(table: Table, params: Params) -> str:
    """A `table` environment; no wider than the line, whatever its columns."""
    shown = {name: tables.metric_of(name) for name in table.rules if name not in table.dimensions}
    rows = tables.rows_shown(table, params)
    heads = ["run", *(stacked(metric.label, *[metric.unit] * bool(metric.unit)) for metric in shown.values()), "$n$"]
    lines = [
        NEEDS,
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escape(caption(table, params))}}}",
        rf"\label{{tab:{table.name}}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        row(heads),
        r"\midrule",
    ]
    for number, (run, cells) in enumerate(rows.items()):
        lines += [r"\addlinespace"] * (number > 0)
        made = [cell_text(metric, cells[name], table, run, name) for name, metric in shown.items()]
        n = min((cell.summary.n for cell in cells.values()), default=0)
        lines.append(row([escape(run), *made, str(n)]))
    for run in table.not_run:
        papers = [escape(tables.paper_text(table, run, name).strip(" ()")) for name in shown]
        lines.append(row([rf"{escape(run)} {{\scriptsize {tables.NOT_RUN}}}", *papers, "0"]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}}", r"\end{table}"]) + "\n"


def caption(table: Table, params: Params) -> str:
    """The title and what the cells hold."""
    text = f"{table.title}. Mean, 95 % interval"
    if table.published:
        text += ", the paper's number"
    if len(tables.rows_shown(table, params)) > 1:
        text += f", and paired difference from {next(iter(table.rows))}"
    text += f"; {table.videos} videos per training."
    remarks = [params.scale == "smoke" and tables.meaningless(params), tables.gate_remark(table, params)]
    return " ".join([text, *filter(None, remarks)])


def cell_text(metric: Metric, cell: Cell, table: Table, run: str, name: str) -> str:
    """What the page shows of a cell, in lines above each other."""
    found, paper = cell.summary, tables.paper_text(table, run, name).strip(" ()")
    if found.mean is None:
        return stacked("incomplete", *[paper] * bool(paper))
    lines = [metric.interval(found), *[paper] * bool(paper)]
    if cell.difference is not None:
        lines.append(tables.difference_text(metric, cell))
    return stacked(metric.text(found.mean), *lines)


def stacked(first: str, *small: str) -> str:
    """Lines above each other, all but the first in small letters."""
    lines = r" \\ ".join([escape(first), *(rf"{{\scriptsize {escape(line)}}}" for line in small)])
    return rf"\begin{{tabular}}[t]{{@{{}}r@{{}}}}{lines}\end{{tabular}}"


def row(cells: list[str]) -> str:
    """A line of the table."""
    return " & ".join(cells) + r" \\"


def escape(text: str) -> str:
    """Text as LaTeX prints it."""
    return "".join(ESCAPED.get(sign, sign) for sign in text)
