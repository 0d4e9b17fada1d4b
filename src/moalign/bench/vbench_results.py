"""Read what VBench and VBench-2.0 leave behind, video by video: `*_eval_results.json`.

A file says {dimension: [mean, [{"video_path", "video_results"}, ...]]}. The means are computed anew from the videos,
which pair with what was wanted by file name, never by order. What cannot be used is named: the suites' own scripts
count an absent dimension as 0, let the last of two files win, and spread NaN.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from moalign.bench.scores import Key
from moalign.bench.vbench import ROUND_OFF, Dimension, Suite, Wanted, dimension_of
from moalign.errors import Problem

EXCLUDED = -1  # VBench-2.0's value of a video that was not judged
VISIBLE = 5e-4  # a difference of means that a table of percents with one digit would show
ORDER = "Motion_Order_Understanding"
ORDER_EXCLUDED = 0.9  # above this share the evaluator calls the dimension 0
FLICKER = "temporal_flickering"
FLICKER_KEPT = 5  # per prompt, by the static filter


@dataclass(frozen=True, slots=True)
class Value:
    """One video's value, a fraction."""

    path: str  # as the evaluator wrote it
    prompt_id: int
    index: int
    value: float


@dataclass(frozen=True)
class Rated:
    """One dimension as it was rated. Without every wanted video, or with one number refused, it has no mean."""

    dimension: str
    mean: float | None
    values: tuple[Value, ...]
    stated: float | None  # the file's own mean, where it is a number
    listed: float | None  # the mean of all its rows, wanted or not
    file: str
    copies: int  # further files that say the same
    excluded: tuple[str, ...]  # not judged, by the benchmark's rule
    omitted: tuple[str, ...]  # wanted and left out by rule: object not found (color), not static (flicker)
    missing: tuple[str, ...]  # wanted and not there
    unexpected: tuple[str, ...]  # there and not wanted
    refused: dict[str, int]  # reason -> videos
    repeated: int  # videos listed again with the same value


@dataclass(frozen=True)
class Results:
    """All that a folder holds of one suite."""

    rated: dict[str, Rated]
    missing: tuple[str, ...]  # dimensions of the suite without a result
    unknown: tuple[str, ...]  # file: name, in a result file and none of the suite's dimensions
    skipped: tuple[str, ...]  # other JSON files
    remarks: tuple[str, ...]

    @property
    def means(self) -> dict[str, float | None]:
        """What `vbench.totals` takes."""
        return {name: rated.mean for name, rated in self.rated.items()}


@dataclass
class _Found:
    """What lies in a folder, by kind."""

    entries: dict[str, list[tuple[str, list]]] = field(default_factory=lambda: defaultdict(list))  # dimension -> files
    static: dict[str, list[str]] | None = None  # the static filter's file: prompt -> videos kept, in its order
    unknown: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


def read(folder: str | Path, suite: Suite, wanted: Sequence[Wanted]) -> Results:
    """The results below a folder, however deep. wanted: what should have been rated; its names give each video's key.

    Problem for a file that is not as documented, and where two files or two rows say different things.
    """
    folder = Path(folder)
    found = _collect(folder, suite)
    if not found.entries:
        raise Problem(f"{folder}: no results of {suite.title} in it; give the folder with its *_eval_results.json")
    keys: dict[str, dict[str, Key]] = defaultdict(dict)
    for row in wanted:
        keys[row.dimension][PurePosixPath(row.path).name] = row.key
    rated = {}
    for name, dimension in suite.dimensions.items():
        if name in found.entries:
            rated[name] = _rate(dimension, found.entries[name], keys[name], _copies(found.static))
    missing = tuple(name for name in suite.dimensions if name not in rated)
    remarks = [remark for one in rated.values() for remark in _remarks(one)]
    if FLICKER in rated:
        remarks += _filter_remarks(found.static)
    return Results(rated, missing, tuple(found.unknown), tuple(found.skipped), tuple(remarks))


# --- files ------------------------------------------------------------------------------------------------------------


def _collect(folder: Path, suite: Suite) -> _Found:
    """Sort the JSON files below a folder by what is in them."""
    found = _Found()
    if not folder.is_dir():
        raise Problem(f"{folder}: no such folder; run the evaluator, or correct the path")
    for path in sorted(folder.rglob("*.json")):
        inside = path.relative_to(folder)
        if any(part.startswith((".", "__")) for part in inside.parts):  # an archive's droppings
            found.skipped.append(inside.as_posix())
            continue
        data = _load(path)
        if _is_filter(data):
            static = _static(data, path)
            if found.static not in (None, static):
                raise Problem(f"{path}: another static filter's file says otherwise; keep the one that was used")
            found.static = static
        elif not _is_result(data, path, suite):
            found.skipped.append(inside.as_posix())
        else:
            for key, entry in data.items():
                if dimension := dimension_of(suite, key):
                    found.entries[dimension.name].append((str(path), _entry(entry, path, key)))
                else:
                    found.unknown.append(f"{inside.as_posix()}: {key}")
    return found


def _load(path: Path) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict:
        twice = [key for key, times in Counter(key for key, _ in pairs).items() if times > 1]
        if twice:
            raise Problem(f"{path}: {twice[0]!r} is there twice; rate again")
        return dict(pairs)

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: no JSON ({error}); it was cut short, rate again") from None


def _is_result(data: Any, path: Path, suite: Suite) -> bool:
    """Whether this is a result file: by its name, or by a dimension in it. The list of prompts beside it is none."""
    named = path.name.endswith("_eval_results.json")
    return isinstance(data, dict) and (named or any(dimension_of(suite, key) for key in data))


def _is_filter(data: Any) -> bool:
    """Whether this is the static filter's own file: prompt -> {static_count, static_path}."""
    parts = data.values() if isinstance(data, dict) else ()
    return bool(parts) and all(isinstance(part, dict) and "static_path" in part for part in parts)


def _entry(entry: Any, path: Path, key: str) -> list:
    """[mean, rows] of one dimension, its shape checked."""
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], list):
        raise Problem(f"{path}: {key}: no list of videos beside the mean; give the evaluator's own file, not a summary")
    for row in entry[1]:
        if not isinstance(row, dict) or not isinstance(row.get("video_path"), str) or "video_results" not in row:
            raise Problem(f"{path}: {key}: {str(row)[:80]}: a row needs video_path and video_results; rate again")
    return entry


# --- the static filter ------------------------------------------------------------------------------------------------


def _static(data: dict, path: Path) -> dict[str, list[str]]:
    """Videos that the filter kept of each prompt; the evaluator reads the first five."""
    for prompt, part in data.items():
        paths = part["static_path"]
        if not isinstance(paths, list) or not all(isinstance(old, str) for old in paths):
            raise Problem(f"{path}: {prompt[:60]!r}: static_path is no list of paths; run the static filter again")
    return {prompt: part["static_path"][:FLICKER_KEPT] for prompt, part in data.items()}


def _copies(static: dict[str, list[str]] | None) -> dict[str, str] | None:
    """Name under which the filter copied a video -> its path before. It numbers anew: 0.. among those kept."""
    if static is None:
        return None
    return {f"{prompt}-{number}.mp4": old for prompt, paths in static.items() for number, old in enumerate(paths)}


def _original(path: str, copies: dict[str, str] | None) -> str:
    """Name of the video that was sampled, for a path that may be the filter's copy of it, in a folder of copies."""
    here = PurePosixPath(path)
    old = PurePosixPath((copies or {}).get(here.name, path))
    return here.name if old.parent.name == here.parent.name else old.name


def _filter_remarks(static: dict[str, list[str]] | None) -> list[str]:
    if static is None:
        return [f"{FLICKER}: no static filter's file is here; the official protocol keeps still videos only"]
    few = [prompt for prompt, paths in static.items() if len(paths) < FLICKER_KEPT]
    if not few:
        return []
    return [f"{FLICKER}: {len(few)} of {len(static)} prompts have fewer than {FLICKER_KEPT} still videos: {_some(few)}"]


# --- a dimension ------------------------------------------------------------------------------------------------------


def _rate(
    dimension: Dimension, entries: list[tuple[str, list]], keys: dict[str, Key], copies: dict[str, str] | None
) -> Rated:
    """One dimension from the files that hold it, of which all must say the same."""
    (file, (stated, _)), *others = entries
    if dimension.name != FLICKER:
        copies = None
    rows, *more = [_by_name(entry[1], where, dimension.name, copies) for where, entry in entries]
    for (other, _), again in zip(others, more, strict=True):
        if not _agree(rows, again):
            raise Problem(f"{dimension.name}: {file} and {other} differ; remove the one that is not of these videos")
    accepted, excluded, refused = _sort(dimension, rows)
    values = tuple(Value(rows[name][0], *keys[name], value) for name, value in accepted.items() if name in keys)
    ours = tuple(name for name in excluded if name in keys)
    missing, omitted = _absent(dimension, rows.keys(), keys, copies)
    whole = not missing and not refused
    return Rated(
        dimension=dimension.name,
        mean=_mean(dimension, [row.value for row in values], len(ours)) if whole else None,
        values=values,
        stated=float(stated) if _is_number(stated) else None,
        listed=_mean(dimension, list(accepted.values()), len(excluded)),
        file=file,
        copies=len(others),
        excluded=ours,
        omitted=omitted,
        missing=missing,
        unexpected=tuple(sorted(rows.keys() - keys.keys())),
        refused=dict(refused),
        repeated=len(entries[0][1][1]) - len(rows),
    )


def _by_name(rows: list[dict], file: str, dimension: str, copies: dict[str, str] | None) -> dict[str, tuple[str, Any]]:
    """Rows by the sampled video's name: (path, value). A video may be there twice where both say the same."""
    found: dict[str, tuple[str, Any]] = {}
    for row in rows:
        name = _original(row["video_path"], copies)
        first = found.setdefault(name, (row["video_path"], row["video_results"]))
        if not _same(first[1], row["video_results"]):
            raise Problem(
                f"{file}: {dimension}: {name!r} is there with {first[1]} and {row['video_results']};"
                " results of two runs lie together, rate again"
            )
    return found


def _agree(rows: dict[str, tuple[str, Any]], others: dict[str, tuple[str, Any]]) -> bool:
    return rows.keys() == others.keys() and all(_same(rows[name][1], others[name][1]) for name in rows)


def _same(one: Any, other: Any) -> bool:
    return one == other or (one != one and other != other)  # NaN as well


def _sort(dimension: Dimension, rows: dict[str, tuple[str, Any]]) -> tuple[dict[str, float], list[str], Counter[str]]:
    """Values as fractions, the names of excluded videos, and how many rows are refused for each reason."""
    accepted, excluded, refused = {}, [], Counter()
    for name, (_, value) in rows.items():
        if not _is_number(value):
            refused["not a number"] += 1
        elif dimension.excludes and value == EXCLUDED:
            excluded.append(name)
        elif not dimension.lowest - ROUND_OFF <= value / dimension.unit <= 1 + ROUND_OFF:
            refused["out of range"] += 1
        else:
            accepted[name] = value / dimension.unit
    return accepted, excluded, refused


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float)) and math.isfinite(value)


def _absent(
    dimension: Dimension, there: Set[str], keys: dict[str, Key], copies: dict[str, str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Wanted videos without a row: those that should have one, and those left out by rule."""
    read = 1 if dimension.per_prompt else dimension.videos
    due = {name for name, (_, index) in keys.items() if index < read}
    by_rule = due if dimension.omits else set()
    if copies is not None:
        due = keys.keys() & {PurePosixPath(old).name for old in copies.values()}
        by_rule = keys.keys() - due
        due = due | by_rule
    absent = due - there
    return tuple(sorted(absent - by_rule)), tuple(sorted(absent & by_rule))


def _mean(dimension: Dimension, values: list[float], excluded: int) -> float | None:
    """Mean of what was judged; None of nothing. The one dimension with a rule of its own follows it."""
    if not values:
        return None
    if dimension.name == ORDER and excluded > ORDER_EXCLUDED * (excluded + len(values)):
        return 0.0
    return math.fsum(values) / len(values)


def _remarks(rated: Rated) -> list[str]:
    """What a reader of the mean must know, a line each."""
    judged, lines = len(rated.values), []
    if rated.excluded:
        of = judged + len(rated.excluded)
        lines.append(f"{len(rated.excluded)} of {of} videos are excluded by its rule" + ("" if judged else ": no mean"))
    for what, names in (("missing", rated.missing), ("not wanted", rated.unexpected), ("omitted", rated.omitted)):
        if names:
            lines.append(f"{len(names)} videos {what}: {_some(names)}")
    lines += [f"{count} videos refused: {reason}" for reason, count in sorted(rated.refused.items())]
    if rated.repeated:
        lines.append(f"{rated.repeated} rows repeat a video with the same value")
    if rated.copies:
        lines.append(f"{rated.copies} further files say the same")
    if rated.listed is not None and (rated.stated is None or abs(rated.stated - rated.listed) > VISIBLE):
        lines.append(f"the file says {rated.stated}, its videos {rated.listed:.6f}")
    return [f"{rated.dimension}: {line}" for line in lines]


def _some(names: Sequence[str], most: int = 3) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(repr(name) for name in names[:most]) + more
