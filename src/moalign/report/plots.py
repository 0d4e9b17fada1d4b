"""Line plots and histograms as SVG text for the page: its colours and letters, equal bytes for equal data.

matplotlib draws; what it writes is then freed of fonts, dates and addresses, and its colours become the page's
variables, so that a plot follows the page into the dark.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK, MUTED, RULE = "#000001", "#000002", "#000003"  # placeholders, replaced by the page's variables
VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule"}
VARIABLES |= {f"#0000{16 + index:02x}": f"--series-{index}" for index in range(8)}
SERIES = [colour for colour, name in VARIABLES.items() if name.startswith("--series")]

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "moalign",
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "lines.solid_capstyle": "round",
    "path.simplify": False,
}
WIDTH = 3.5  # inches of a plot; the page scales it
APART = 0.11  # of a plot's height, between two names
POINTS = 160  # of a curve; a longer one is averaged down to this
PAPER_COLOURS = {  # of page.css by day, for plots as files
    "--ink": "#1e1c19",
    "--muted": "#6d675d",
    "--rule": "#ddd7ca",
    "--series-0": "#35618f",
    "--series-1": "#b4532a",
    "--series-2": "#4f7d4b",
    "--series-3": "#87629a",
    "--series-4": "#a88420",
    "--series-5": "#3f8a8c",
    "--series-6": "#a04a62",
    "--series-7": "#6d675d",
}


@dataclass(frozen=True)
class Curve:
    """A line of a plot."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0  # of SERIES
    dots: bool = False  # a value at each point: validation
    dashed: bool = False  # a level to compare with


def panels(name: str, rows: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """Plots above each other that share their steps, each a title and its curves."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.6 + len(rows) * 1.3 + (len(rows) - 1) * 0.3))
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False, gridspec_kw={"hspace": 0.3 / 1.3})[:, 0]
        place(figure, right=0.68)
        for axis, (title, curves) in zip(axes, rows, strict=True):
            axis.set_title(title, loc="left")
            for curve in curves:
                draw(axis, curve)
            axis.margins(x=0.02)
            name_curves(axis, [curve for curve in curves if curve.label])
            axis.yaxis.set_major_locator(MaxNLocator(4))
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes[-1].set_xlabel("step")
        return to_svg(figure, name)


def place(figure: Figure, right: float, left: float = 0.45) -> None:
    """Margins, in inches: `right` leaves room for the names of curves. Fixed, so that panels side by side line up."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left / width, 0.38 / height, 1 - right / width, 1 - 0.22 / height)


def draw(axis: Axes, curve: Curve) -> None:
    """One curve."""
    x, y = thinned(np.asarray(curve.x, float), np.asarray(curve.y, float))
    mark = "o" if curve.dots or len(x) == 1 else None
    line = {"linestyle": (0, (3, 2)), "linewidth": 0.9} if curve.dashed else {}
    axis.plot(x, y, color=SERIES[curve.colour], marker=mark, markersize=2.8, **line)


def name_curves(axis: Axes, curves: Sequence[Curve]) -> None:
    """Each curve's name beside its end, pushed apart where ends are close."""
    low, high = axis.get_ylim()
    ends = sorted(((curve.y[-1] - low) / (high - low), at) for at, curve in enumerate(curves))
    places: list[float] = []
    for end, _ in ends:
        places.append(max(end, places[-1] + APART) if places else end)
    over = max(0.0, places[-1] - 1.0) if places else 0.0
    for place, (_, at) in zip(places, ends, strict=True):
        style = {"color": SERIES[curves[at].colour], "fontsize": 8, "va": "center"}
        axis.annotate(curves[at].label, (1.0, place - over), (4, 0), "axes fraction", "offset points", **style)


def thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A long curve as means over equal stretches."""
    if len(x) <= POINTS:
        return x, y
    edges = np.linspace(0, len(x), POINTS + 1).astype(int)
    stretches = [slice(*edge) for edge in pairwise(edges)]
    return np.array([x[part].mean() for part in stretches]), np.array([y[part].mean() for part in stretches])


def histogram(name: str, values: Sequence[float], x_label: str, title: str) -> str:
    """How values are spread."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 1.9))
        axis = figure.subplots()
        place(figure, right=0.1)
        axis.hist(values, bins=min(40, max(8, len(values) // 4)), color=SERIES[0], rwidth=0.86)
        axis.set_title(title, loc="left")
        axis.set_xlabel(x_label)
        axis.set_ylabel("clips")
        axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        return to_svg(figure, name)


def to_svg(figure: Figure, name: str) -> str:
    """A figure as an <svg> element whose ids start with `name`; colours and letters are left to the page."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
    text = re.sub(r' (xmlns(:\w+)?|version)="[^"]*"', "", text)
    text = re.sub(r'<svg width="[^"]*" height="[^"]*"', '<svg focusable="false" aria-hidden="true"', text)
    text = re.sub(r" font-family: [^;\"]*;", "", text)
    text = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", text).replace("xlink:href", "href")
    for colour, variable in VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text).strip()


@dataclass(frozen=True)
class Point:
    """A run in a plot: its name, and mean, low and high of one or two metrics."""

    label: str
    y: tuple[float, float, float]
    x: tuple[float, float, float] = (0.0, 0.0, 0.0)


def sweep(name: str, points: Sequence[Point], y_label: str, title: str) -> str:
    """One metric of several runs in their order, with intervals: Tab. 5's layers."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.3))
        axis = figure.subplots()
        place(figure, right=0.1)
        whiskers(axis, [replace(point, x=(at, at, at)) for at, point in enumerate(points)])
        axis.set_xticks(range(len(points)), [point.label for point in points])
        axis.margins(x=0.08)
        axis.set_title(title, loc="left")
        axis.set_ylabel(y_label)
        axis.yaxis.set_major_locator(MaxNLocator(5))
        return to_svg(figure, name)


def scatter(name: str, points: Sequence[Point], x_label: str, y_label: str, title: str) -> str:
    """Two metrics of several runs against each other, both with intervals; names stand beside the points."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.6))
        axis = figure.subplots()
        place(figure, right=1.05, left=0.55)
        whiskers(axis, points)
        low, high = axis.get_ylim()
        places: list[float] = []
        for point in sorted(points, key=lambda point: point.y[0]):
            at = (point.y[0] - low) / (high - low)
            places.append(max(at, places[-1] + 0.055) if places else at)
            arrow = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.4, "shrinkA": 0, "shrinkB": 3}
            name_at = {"xytext": (1.03, places[-1]), "textcoords": "axes fraction", "fontsize": 7.5, "va": "center"}
            axis.annotate(point.label, (point.x[0], point.y[0]), **name_at, arrowprops=arrow)
        axis.set_title(title, loc="left")
        axis.set_xlabel(x_label)
        axis.set_ylabel(y_label)
        return to_svg(figure, name)


def probe(R2: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> str:
    """What `moalign probe` read from tokens: velocity against appearance."""
    points = [
        Point(name.replace(", cog-", ", ").replace(", wan-", ", "), of["velocity"], of["appearance"])
        for name, of in R2.items()
    ]
    return scatter("probe", points, "appearance, R²", "velocity, R²", "Read from a token by a linear map")


Line = tuple[str, str, bool]  # of `forest`: a difference's name, its group, whether it is the one to look at
Ends = tuple[float, float, float]  # mean, low, high


def forest(name: str, lines: Sequence[Line], panels: Sequence[tuple[str, Sequence[Ends | None]]], title: str) -> str:
    """Differences with their intervals, a line each in every panel, beside a rule at 0; groups stand apart."""
    of_line = [group for _, group, _ in lines]
    groups = list(dict.fromkeys(of_line))
    heights = [at + 1.4 * groups.index(group) for at, group in enumerate(of_line)]
    with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
        figure = Figure(figsize=(2 * WIDTH, 0.75 + 0.17 * (heights[-1] + 2)))
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False, gridspec_kw={"wspace": 0.2})[0]
        place(figure, right=0.1, left=1.25)
        for axis, (metric, found) in zip(axes, panels, strict=True):
            axis.axvline(0, color=MUTED, linewidth=0.8)
            for at, (_, _, main), ends in zip(heights, lines, found, strict=True):
                if ends is not None:
                    colour, wide = (SERIES[1], 1.4) if main else (MUTED, 0.9)
                    axis.plot(ends[1:], (at, at), color=colour, linewidth=wide)
                    axis.plot(ends[0], at, "o", color=colour, markersize=4 if main else 3)
            axis.set_title(metric, loc="left")
            axis.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
            axis.spines["left"].set_visible(False)
            axis.tick_params(axis="y", length=0)
        heads = [heights[of_line.index(group)] - 1 for group in groups]
        ticks = sorted([*zip(heights, [label for label, *_ in lines], strict=True), *zip(heads, groups, strict=True)])
        axes[0].set_yticks([at for at, _ in ticks], [text for _, text in ticks])
        axes[0].set_ylim(heights[-1] + 0.8, -1.8)
        axes[0].annotate(title, (0, 1), (-1.2 * 72, 5), "axes fraction", "offset points", color=MUTED, fontsize=8)
        return to_svg(figure, name)


def whiskers(axis: Axes, points: Sequence[Point]) -> None:
    """Points with their intervals both ways; one without width shows none."""
    for point in points:
        x, y = point.x, point.y
        axis.plot(x[1:], (y[0], y[0]), color=MUTED, linewidth=0.9)
        axis.plot((x[0], x[0]), y[1:], color=MUTED, linewidth=0.9)
        axis.plot(x[0], y[0], "o", color=SERIES[1], markersize=4)


def standalone(svg: str, colours: dict[str, str]) -> str:
    """A plot of the page as a file of its own: `colours` in place of the page's variables."""
    for variable, colour in colours.items():
        svg = svg.replace(f"var({variable})", colour)
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="Palatino, Georgia, serif"'
    return svg.replace("<svg", head, 1) + "\n"
