"""The judge of the miniature world (`moalign.bench.physics`): take its measures from true clips, then judge the judge.

    moalign judge rules --clips 3000 --seed 2000003 --out resources/judge.json
    moalign judge check --rules resources/judge.json --clips 300 --out docs/judge.md

Both see clips as the rater does, through H.264. `rules` knows right physics alone; `check` uses clips of another
collection, each beside its wrong twins, its first frame repeated, and its frames in random order.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np

from moalign import manifest, video
from moalign.bench import physics as judge
from moalign.bench import statistics
from moalign.bench.physics import Rules
from moalign.progress import say, track
from moalign.world import captions, corrupt, physics, render
from moalign.world.physics import FPS, Attributes, Simulation

matplotlib.use("Agg")
from matplotlib import pyplot

CHECKED = 2000029  # collection of the clips that `check` asks about; no scale uses it, nor the one behind the rules
PERCENTILE = 99
CORE = 0.7  # of an object's radius: what is farther out may be its rim, or be mixed with what is behind it
CONTROLS = ("static", "shuffled")
MUST = {"teleport": 0.95, "vanish": 0.95, "jitter": 0.95, "pass": 0.95, "float": 0.95, "drift": 0.85}  # least AUC
JOINT = 0.05  # most of a control's
OFF = 0.2  # px, most of the mean error of a centre
NAMES = {"pass": "pass-through", "drift": "shape drift", "reverse": "reversed gravity"}
METADATA = {"Software": None}  # no version in the picture: equal clips give equal bytes


# --- clips ---------------------------------------------------------------------------------------------------------


def filmed(simulation: Simulation) -> bytes:
    """A clip as the world's collections store it."""
    return video.encode(render.draw(simulation), FPS)


def frames_of(film: bytes) -> np.ndarray:
    """uint8 [F, 64, 64, 3] of such a clip."""
    return video.read(film, list(range(physics.FRAMES)))


def chosen(collection: int, clips: int) -> list[tuple[str, int]]:
    """(scene, seed) of the first clips of a collection."""
    return [physics.choose(collection, index) for index in range(clips)]


def control(kind: str, frames: np.ndarray, seed: int) -> np.ndarray:
    """The first frame repeated, or all frames in a random order."""
    if kind == "static":
        return np.repeat(frames[:1], len(frames), axis=0)
    return np.random.default_rng(seed).permutation(frames)


# --- rules ---------------------------------------------------------------------------------------------------------


def rules(clips: int, seed: int, out: str) -> None:
    """Measure `clips` true clips of collection `seed`; write the rules to `out`."""
    what, films, colours = [], [], defaultdict(list)
    for scene, clip in track(chosen(seed, clips), "draw"):
        simulation = physics.simulate(scene, clip)
        what.append((simulation.attributes, clip))
        films.append(filmed(simulation))
        for colour, rgb in core_colours(simulation, video.read(films[-1], [0])[0]):
            colours[colour].append(rgb)
    palette = {colour: shorter(np.mean(colours[colour], axis=0)) for colour in sorted(colours)}

    broken: dict[str, list[dict[str, float]]] = {"real": [], **{kind: [] for kind in CONTROLS}}
    readings = defaultdict(lambda: defaultdict(list))
    for (attributes, clip), film in track(list(zip(what, films, strict=True)), "measure"):
        frames = frames_of(film)
        seen = judge.watch(frames, palette)
        broken["real"].append(judge.laws(seen))
        for rows in judge.look_for(seen, attributes).readings.values():
            for name, value, number in rows:
                readings[name][value].append(number)
        for kind in CONTROLS:
            broken[kind].append(judge.laws(judge.watch(control(kind, frames, clip), palette)))
    thresholds = {law: threshold(law, [row[law] for row in broken["real"]]) for law in judge.LAWS}
    made = Rules(
        made_by=f"moalign judge rules --clips {clips} --seed {seed} --out {out}",
        clips=clips,
        palette=palette,
        thresholds=thresholds,
        bins={
            name: {value: shorter(np.nanmedian(numbers)) for value, numbers in sorted(rows.items())}
            for name, rows in sorted(readings.items())
        },
        reference={
            kind: shorter(np.mean([judge.commonsense(row, thresholds) for row in rows]))
            for kind, rows in broken.items()
        },
    )
    manifest.write_text(out, made.dump())
    Rules.load(out)  # too few clips leave a bin without a number
    say(f"{out}: rules of {clips} clips")


def core_colours(simulation: Simulation, frame: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Each object's colour and the mean RGB of what a frame, the first, shows of its inner part."""
    y, x = np.mgrid[: physics.SIDE, : physics.SIDE] + 0.5
    whose = render.owner(simulation, 0, x, y)
    for index, thing in enumerate(simulation.setup.things):
        inside = (whose == index) & (render.edge(thing, *render.to_body(simulation, 0, index, x, y)) <= CORE)
        if inside.any():
            yield thing.look.colour, frame[inside].mean(axis=0)


def threshold(law: str, values: list[float]) -> float:
    """The 99th percentile of a law's measure, or its floor."""
    return shorter(max(np.percentile(values, PERCENTILE), judge.FLOORS.get(law, 0.0)))


def mean_pc(broken: list[dict[str, float]], thresholds: dict[str, float]) -> float:
    """Mean PC of clips, from their broken laws."""
    return shorter(np.mean([judge.commonsense(row, thresholds) for row in broken]))


def shorter(values: float | np.ndarray) -> float | list[float]:
    """Five significant digits."""
    return [shorter(value) for value in values] if np.ndim(values) else float(f"{values:.5g}")


# --- check ---------------------------------------------------------------------------------------------------------


@dataclass
class Verdicts:
    """What the judge says of many clips of one kind."""

    ratio: list[float] = field(default_factory=list)  # of the worst law to its threshold
    SA: list[int] = field(default_factory=list)
    PC: list[int] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)  # of the clips

    def add(self, frames: np.ndarray, prompt: Attributes, seed: int, rules: Rules) -> None:
        """Judge one more, as the rater does."""
        seen = judge.see(frames, rules)
        broken = judge.laws(seen) if seen else dict.fromkeys(judge.LAWS, np.inf)
        self.ratio.append(judge.worst_ratio(broken, rules.thresholds))
        self.SA.append(judge.semantic(seen, prompt, rules))
        self.PC.append(judge.commonsense(broken, rules.thresholds))
        self.seeds.append(seed)

    @property
    def joint(self) -> float:
        """Share with SA and PC of at least 4."""
        return float(np.mean(np.minimum(self.SA, self.PC) >= 4))


@dataclass
class Checked:
    """All that `check` has found."""

    clips: int
    verdicts: dict[str, Verdicts] = field(default_factory=lambda: defaultdict(Verdicts))  # real, controls, twins
    off: list[float] = field(default_factory=list)  # px, of each centre in each frame of true clips
    held: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # what a prompt names -> right?

    def auc(self, kind: str) -> float:
        """Chance that a twin breaks its worst law more than a true clip does, over the clips that have this twin."""
        real, twins = self.verdicts["real"], self.verdicts[kind]
        there = np.isin(real.seeds, twins.seeds)
        return statistics.auc(twins.ratio, np.array(real.ratio)[there])

    def misses(self) -> list[str]:
        """What a judge must do and this one does not."""
        found = [
            f"AUC of {kind} is {self.auc(kind):.3f}, below {least}"
            for kind, least in MUST.items()
            if self.auc(kind) < least
        ]
        found += [
            f"Joint of {kind} clips is {self.verdicts[kind].joint:.3f}, above {JOINT}"
            for kind in CONTROLS
            if self.verdicts[kind].joint > JOINT
        ]
        if np.mean(self.verdicts["static"].PC) < 4:
            found.append(f"PC of static clips is {np.mean(self.verdicts['static'].PC):.2f}, below 4")
        if np.mean(self.off) > OFF:
            found.append(f"centres are off by {np.mean(self.off):.3f} px, above {OFF}")
        return found


def check(rules: str, clips: int, out: str) -> int:
    """Judge true clips, twins and controls by the rules; write the page `out` and its picture. Status 1 on a miss."""
    path = Path(out)
    judged = examine(Rules.load(rules), track(chosen(CHECKED, clips), "check"), clips)
    command = f"moalign judge check --rules {rules} --clips {clips} --out {out}"
    figure = plot(judged)
    with manifest.disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path.with_suffix(".png"), metadata=METADATA, dpi=110)
    pyplot.close(figure)
    manifest.write_text(path, page(judged, Rules.load(rules), command, path.with_suffix(".png").name))
    for miss in judged.misses():
        say(f"judge check: {miss}")
    return int(bool(judged.misses()))


def examine(rules: Rules, todo: Iterable[tuple[str, int]], clips: int) -> Checked:
    """Judge each clip, its controls and its twins."""
    found = Checked(clips)
    for scene, seed in todo:
        simulation = physics.simulate(scene, seed)
        prompt = captions.named(captions.caption(simulation.attributes, seed))
        frames = frames_of(filmed(simulation))
        found.verdicts["real"].add(frames, prompt, seed, rules)
        seen = judge.watch(frames, rules.palette)
        found.off += centre_errors(seen, simulation)
        for kind, share in judge.adherence(judge.look_for(seen, prompt), rules.bins).items():
            found.held[kind].append(share)
            if kind == "event":
                found.held[f"event, {scene}"].append(share)
        for kind in CONTROLS:
            found.verdicts[kind].add(control(kind, frames, seed), prompt, seed, rules)
        for kind in corrupt.kinds(simulation):
            wrong = frames_of(filmed(corrupt.twin(scene, seed, kind)))
            found.verdicts[kind].add(wrong, prompt, seed, rules)
    return found


def centre_errors(seen: judge.Seen, simulation: Simulation) -> list[float]:
    """px between an object's centre as tracked and as simulated, in every frame in which it is seen."""
    by_colour = {item.colour: item for item in seen.tracks}
    errors = [
        judge.distance(by_colour[look.colour].at, simulation.states[:, index, :2])
        for index, look in enumerate(simulation.attributes.objects)
        if look.colour in by_colour
    ]
    return [float(error) for row in errors for error in row[np.isfinite(row)]]


def page(judged: Checked, rules: Rules, command: str, picture: str) -> str:
    """docs/judge.md."""
    far = np.percentile(judged.off, 99)
    lines = [
        "# The judge, judged",
        "",
        "`bench/physics.py` rates videos of the miniature world without a learned part. Its numbers (colours, bins,",
        f"the {PERCENTILE}th percentile of each law) come from {rules.clips} true clips, before any method was scored:",
        "",
        f"    {rules.made_by}",
        "",
        f"Here it is asked about {judged.clips} clips of another collection. This page and its picture are written by",
        "",
        f"    {command}",
        "",
        "AUC: chance that a clip's wrong twin breaks its worst law more than a true clip does (0.5 is guessing).",
        "",
        "| clips | n | AUC | must be | mean SA | mean PC | Joint |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind, verdicts in judged.verdicts.items():
        least = MUST.get(kind)
        must = f"≥ {least:.2f}" if least else f"Joint ≤ {JOINT}" if kind in CONTROLS else ""
        twin = kind in corrupt.KINDS
        cells = [
            NAMES.get(kind, kind),
            str(len(verdicts.PC)),
            f"{judged.auc(kind):.3f}" if twin else "",
            must,
            f"{np.mean(verdicts.SA):.2f}",
            f"{np.mean(verdicts.PC):.2f}",
            f"{verdicts.joint:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"![Worst law of true clips and of their twins]({picture})",
        "",
        "Of a prompt's attributes these are found right in true clips:",
        "",
        "| attribute | n | right |",
        "| --- | --- | --- |",
        *(f"| {kind} | {len(rows)} | {np.mean(rows):.3f} |" for kind, rows in sorted(judged.held.items())),
        "",
        f"Centres are off by {np.mean(judged.off):.3f} px on average, {far:.2f} px at the 99th",
        f"percentile; {OFF} px are allowed on average. Of each law 99 % of real clips stay below the threshold:",
        "",
        "| law | threshold | measured |",
        "| --- | --- | --- |",
        *(f"| {law} | {rules.thresholds[law]:g} | {text} |" for law, text in judge.LAWS.items()),
        "",
        *([f"- Not as it must be: {miss}." for miss in judged.misses()] or ["All of this is as it must be."]),
    ]
    return "\n".join(lines) + "\n"


def plot(judged: Checked) -> pyplot.Figure:
    """Per kind, the share of clips whose worst law is broken by at most so much; grey: true clips."""
    kinds = [kind for kind in judged.verdicts if kind != "real"]
    figure, axes = pyplot.subplots(3, 3, figsize=(9, 7), sharex=True, sharey=True, layout="constrained")
    for axis, kind in zip(axes.flat, kinds, strict=False):
        for name, colour in (("real", "0.55"), (kind, "#b3402f")):
            ratios = np.sort(np.clip(judged.verdicts[name].ratio, 0.1, 40))
            axis.step(ratios, np.arange(1, len(ratios) + 1) / len(ratios), where="post", color=colour, linewidth=1.6)
        for limit in judge.PASS_RATIOS:
            axis.axvline(limit, color="0.8", linewidth=0.8, zorder=0)
        title = f"AUC {judged.auc(kind):.3f}" if kind in corrupt.KINDS else f"Joint {judged.verdicts[kind].joint:.3f}"
        axis.set_title(f"{NAMES.get(kind, kind)}, {title}", fontsize=10)
        axis.set_xscale("log")
    for axis in axes.flat[len(kinds) :]:
        axis.set_axis_off()
    figure.supxlabel("worst law, of its threshold (lines: where PC falls to 4, 3, 2, 1)")
    figure.supylabel("share of clips up to there; grey: true clips")
    return figure
