"""VBench and VBench-2.0: their dimensions, the names that videos must have, and the totals.

The evaluators themselves run in environments of their own; nothing of theirs is imported. `preflight` looks at the
videos before, `vbench_results` reads what came out. Facts are those of Vchitect/VBench at 45e79ec. A score is a
fraction everywhere; the papers print percent.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from moalign.bench.scores import Key
from moalign.errors import Problem

ROUND_OFF = 1e-5  # a float32 cosine of two equal frames may exceed 1 by as much
NAME_BYTES = 255  # of one file name on the usual file systems
FLICKER_VIDEOS = 25  # sampled for a prompt of temporal_flickering where the static filter then keeps up to 5
LONG_SECONDS = 5.0  # from here on the official rule asks for VBench-Long
MODES = ("standard", "long")


@dataclass(frozen=True, slots=True)
class Dimension:
    """One dimension of a suite. min, max: where its normalised score is 0 and 1; neither bounds the score itself."""

    name: str
    group: str
    prompts: int
    videos: int  # per prompt that the evaluator reads
    min: float = 0.0
    max: float = 1.0
    weight: float = 1.0
    lowest: float = 0.0  # possible score: -1 for a bare cosine
    unit: float = 1.0  # what a video's value is divided by to be a fraction
    excludes: bool = False  # -1 says that a video was not judged, by rule
    omits: bool = False  # such a video is left out of the file instead
    per_prompt: bool = False  # one value for all videos of a prompt, under the name of the first


@dataclass(frozen=True)
class Suite:
    """A benchmark: its dimensions in the order of its own tables, its groups with their weights in the total."""

    name: str
    title: str
    groups: dict[str, float]
    dimensions: dict[str, Dimension]
    cut: int | None  # characters of the prompt in a file's name
    folders: bool  # one per dimension


@dataclass(frozen=True, slots=True)
class Wanted:
    """A video that a dimension reads; one video may be wanted by several."""

    dimension: str
    path: str  # below the folder of videos
    prompt_id: int
    index: int

    @property
    def key(self) -> Key:
        """Which video it is."""
        return self.prompt_id, self.index


@dataclass(frozen=True)
class Totals:
    """What a suite makes of the dimensions' means: a group or a total with a part missing is None."""

    groups: dict[str, float | None]
    total: float | None
    missing: tuple[str, ...]  # dimensions


def _suite(
    name: str, title: str, groups: dict[str, float], rows: Iterable[Dimension], cut: int | None, folders: bool
) -> Suite:
    return Suite(name, title, groups, {row.name: row for row in rows}, cut, folders)


VBENCH = _suite(
    "vbench",
    "VBench",
    {"quality": 4.0, "semantic": 1.0},
    [
        Dimension("subject_consistency", "quality", 72, 5, min=0.1462),
        Dimension("background_consistency", "quality", 86, 5, min=0.2615),
        Dimension("temporal_flickering", "quality", 75, 5, min=0.6293),
        Dimension("motion_smoothness", "quality", 72, 5, min=0.706, max=0.9975),
        Dimension("dynamic_degree", "quality", 72, 5, weight=0.5),
        Dimension("aesthetic_quality", "quality", 93, 5),
        Dimension("imaging_quality", "quality", 93, 5, unit=100.0),  # MUSIQ's scale for a video, a fraction for all
        Dimension("object_class", "semantic", 79, 5),
        Dimension("multiple_objects", "semantic", 82, 5),
        Dimension("human_action", "semantic", 100, 5),
        Dimension("color", "semantic", 85, 5, omits=True),  # a video in which the object was not found
        Dimension("spatial_relationship", "semantic", 84, 5),
        Dimension("scene", "semantic", 86, 5, max=0.8222),
        Dimension("appearance_style", "semantic", 90, 5, min=0.0009, max=0.2855, lowest=-1.0),
        Dimension("temporal_style", "semantic", 100, 5, max=0.364, lowest=-1.0),
        Dimension("overall_consistency", "semantic", 93, 5, max=0.364, lowest=-1.0),
    ],
    cut=None,
    folders=False,
)

VBENCH2 = _suite(
    "vbench2",
    "VBench-2.0",
    dict.fromkeys(("Creativity", "Commonsense", "Controllability", "Human Fidelity", "Physics"), 1.0),
    [
        Dimension("Composition", "Creativity", 53, 3),
        Dimension("Diversity", "Creativity", 10, 20, per_prompt=True),
        Dimension("Instance_Preservation", "Commonsense", 57, 3),
        Dimension("Motion_Rationality", "Commonsense", 58, 3),
        Dimension("Camera_Motion", "Controllability", 108, 3),
        Dimension("Complex_Landscape", "Controllability", 30, 3),
        Dimension("Complex_Plot", "Controllability", 60, 3),
        Dimension("Dynamic_Attribute", "Controllability", 91, 3),
        Dimension("Dynamic_Spatial_Relationship", "Controllability", 69, 3),
        Dimension("Human_Interaction", "Controllability", 100, 3),
        Dimension("Motion_Order_Understanding", "Controllability", 99, 3, excludes=True),
        Dimension("Human_Anatomy", "Human Fidelity", 120, 3),
        Dimension("Human_Clothes", "Human Fidelity", 75, 3, excludes=True),
        Dimension("Human_Identity", "Human Fidelity", 46, 3, excludes=True),
        Dimension("Material", "Physics", 50, 3, excludes=True),
        Dimension("Mechanics", "Physics", 57, 3, excludes=True),
        Dimension("Multi-View_Consistency", "Physics", 97, 3, excludes=True),
        Dimension("Thermotics", "Physics", 50, 3, excludes=True),
    ],
    cut=180,
    folders=True,
)

SUITES = {suite.name: suite for suite in (VBENCH, VBENCH2)}


def dimension_of(suite: Suite, name: str) -> Dimension | None:
    """The dimension of a name, however it joins its words: hyphen, underscore or blank; None for an unknown one."""
    return {_joined(known): dimension for known, dimension in suite.dimensions.items()}.get(_joined(name))


def _joined(name: str) -> str:
    return name.strip().lower().replace("-", "_").replace(" ", "_")


# --- names ------------------------------------------------------------------------------------------------------------


def file_name(suite: Suite, prompt: str, index: int) -> str:
    """The name that the evaluator looks for, from the short prompt even where a longer one was sampled.

    Problem for a prompt that no file can be named after.
    """
    where = f"{suite.title}: prompt {prompt[:60]!r}"
    if not prompt.strip():
        raise Problem(f"{where}: it is empty; remove its line from the prompt list")
    bad = sorted({letter for letter in prompt if letter == "/" or ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000})
    if bad:
        raise Problem(f"{where}: {', '.join(map(repr, bad))} cannot stand in a file's name; reword the prompt")
    if index < 0:
        raise Problem(f"{where}: index {index}; videos of a prompt count from 0")
    name = f"{prompt[: suite.cut]}-{index}.mp4"
    size = len(name.encode())
    if size > NAME_BYTES:
        raise Problem(f"{where}: its file's name has {size} bytes, {NAME_BYTES} is the most; shorten the prompt")
    return name


def path_of(suite: Suite, dimension: str, prompt: str, index: int) -> str:
    """Path of a video below the folder that the evaluator is given: in its dimension's own folder for VBench-2.0."""
    name = file_name(suite, prompt, index)
    return f"{_known(suite, dimension).name}/{name}" if suite.folders else name


def _known(suite: Suite, name: str) -> Dimension:
    dimension = dimension_of(suite, name)
    if dimension is None:
        raise Problem(f"{suite.title}: {name!r} is none of its dimensions: {', '.join(suite.dimensions)}")
    return dimension


def wanted(
    suite: Suite, prompts: Mapping[str, Sequence[tuple[int, str]]], videos: Mapping[str, int] | None = None
) -> list[Wanted]:
    """Every video that the dimensions of `prompts` read. prompts: dimension -> (prompt_id, prompt).

    A prompt has one prompt_id, in whichever dimensions it occurs. videos: dimension -> number per prompt, where it is
    not the evaluator's own. Problem where two prompts would share a file, or a number.
    """
    counts = {_known(suite, name).name: count for name, count in (videos or {}).items()}
    rows, named = [], {}
    for name, given in prompts.items():
        dimension = _known(suite, name)
        for prompt_id, prompt in given:
            if named.setdefault(prompt_id, prompt) != prompt:
                raise Problem(f"{suite.title}: {named[prompt_id]!r} and {prompt!r} both have number {prompt_id}")
            for index in range(counts.get(dimension.name, dimension.videos)):
                path = path_of(suite, dimension.name, prompt, index)
                rows.append(Wanted(dimension.name, path, prompt_id, index))
    for one, other in collisions(rows):
        raise Problem(
            f"{suite.title}: {one.path!r} is wanted for prompts {one.prompt_id} and {other.prompt_id};"
            " give equal prompts one number, and prompts that are cut to one name other words"
        )
    return rows


def collisions(rows: Iterable[Wanted], ignore_case: bool = False) -> list[tuple[Wanted, Wanted]]:
    """Pairs of different videos that want one file; with `ignore_case`, on a disk that does not tell a from A.

    VBench has such a prompt ("a fantasy landscape"): its videos need a disk that does.
    """
    first: dict[str, Wanted] = {}
    pairs = {}
    for row in rows:
        name = row.path.casefold() if ignore_case else row.path
        other = first.setdefault(name, row)
        if (row.path, row.key) != (other.path, other.key):
            pairs.setdefault((other.path, other.key, row.path, row.key), (other, row))
    return list(pairs.values())


def mode_of(seconds: float) -> str:
    """Which evaluator VBench's own rule takes for clips of this length; VBench-2.0 has one for all.

    The leaderboard follows it. The paper's cells are multiples of 1/360 and 1/500, as the standard evaluator gives for
    5 videos a prompt, so its clips of 6.1 s were very probably scored by that: compare like with like.
    """
    return "long" if seconds >= LONG_SECONDS else "standard"


# --- totals -----------------------------------------------------------------------------------------------------------


def check(suite: Suite, dimension: Dimension, score: float) -> float:
    """The score, known to be possible; Problem for NaN, percent, and what else no evaluator gives."""
    if not dimension.lowest - ROUND_OFF <= score <= 1 + ROUND_OFF:  # false of NaN
        raise Problem(
            f"{suite.title}: {dimension.name}: {score!r} is no score from {dimension.lowest:g} to 1;"
            " give fractions, not percent, and rate again what is not a number"
        )
    return score


def normalised(dimension: Dimension, score: float) -> float:
    """(score - min) / (max - min), not clipped: a score beyond the usual range counts as it is."""
    return (score - dimension.min) / (dimension.max - dimension.min)


def totals(suite: Suite, means: Mapping[str, float | None]) -> Totals:
    """Groups and total from the dimensions' means; what is missing (or None) is named and never counts as 0.

    A group is the weighted mean of its normalised dimensions, the total the weighted mean of the groups.
    """
    found: dict[str, float] = {}
    for name, mean in means.items():
        dimension = _known(suite, name)
        if dimension.name in found:
            raise Problem(f"{suite.title}: {dimension.name} is given twice, once as {name!r}; keep one")
        if mean is not None:
            found[dimension.name] = check(suite, dimension, mean)
    groups = {group: _group(suite, group, found) for group in suite.groups}
    missing = tuple(name for name in suite.dimensions if name not in found)
    if missing:
        return Totals(groups, None, missing)
    weighted = math.fsum(weight * groups[group] for group, weight in suite.groups.items())
    return Totals(groups, weighted / math.fsum(suite.groups.values()), ())


def _group(suite: Suite, group: str, found: dict[str, float]) -> float | None:
    parts = [dimension for dimension in suite.dimensions.values() if dimension.group == group]
    if any(part.name not in found for part in parts):
        return None
    weighted = math.fsum(part.weight * normalised(part, found[part.name]) for part in parts)
    return weighted / math.fsum(part.weight for part in parts)
