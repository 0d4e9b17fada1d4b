"""From Score rows to a run's numbers: means with their n, what is missing, Joint, differences.

Joined by key, never by order. A key is (prompt_id, index): which video. An incomplete run has no mean: half a benchmark
is another benchmark.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from moalign.bench import statistics
from moalign.errors import Problem
from moalign.manifest import Score

Key = tuple[int, int]  # prompt_id, index
BINARY = ("dynamic", "still", "Joint", "SA_pass", "PC_pass")  # metrics that are 1 or 0 for a video
MATCHED = {"Joint": "Joint_matched", "laws_broken": "laws_matched"}  # metric -> its name once `weighted`
WEIGHTED = tuple(name for metric, name in MATCHED.items() if metric in BINARY)
PASS = 4  # VideoPhy2: semantic adherence and physical commonsense are 1-5, a pass is both >= 4


@dataclass(frozen=True)
class Summary:
    """One metric of one run, over its trainings."""

    mean: float | None  # None where a video has no number
    low: float | None
    high: float | None
    n: int  # numbers found, over all trainings
    missing: tuple[tuple[int, Key], ...]  # (seed of the training, key)


@dataclass(frozen=True)
class Difference:
    """A run minus another, over the same videos."""

    mean: float
    low: float
    high: float
    p: float | None  # for a metric of BINARY or WEIGHTED
    discordant: float | None  # share of pairs of which one passes, where p is exact McNemar's


def by_key(rows: Iterable[Score], metric: str, where: str = "scores") -> dict[Key, float]:
    """Values of one metric by key; Problem where one video has two."""
    values: dict[Key, float] = {}
    for row in rows:
        if row.metric != metric:
            continue
        key = (row.prompt_id, row.index)
        if key in values:
            raise Problem(
                f"{where}: {metric} of prompt {key[0]}, video {key[1]} is there twice; rate the samples again"
            )
        values[key] = float(row.value)
    return values


def joint(rows: Sequence[Score], semantic: str = "SA", physical: str = "PC") -> list[Score]:
    """Joint of VideoPhy2: 1 where both scores are at least 4. A video with one of them only has none."""
    one, other = by_key(rows, semantic), by_key(rows, physical)
    rule = f"1 where {semantic} >= {PASS} and {physical} >= {PASS}"
    return [
        replace(row, metric="Joint", value=float(min(row.value, other[row.prompt_id, row.index]) >= PASS), rule=rule)
        for row in rows
        if row.metric == semantic and (row.prompt_id, row.index) in one.keys() & other.keys()
    ]


def summarise(metric: str, trainings: dict[int, dict[Key, float]], keys: Iterable[Key]) -> Summary:
    """Mean and 95 % interval of a metric, from its values by key for each training's seed; `keys` must all be there."""
    keys = sorted(keys)
    missing = tuple((seed, key) for seed in sorted(trainings) for key in keys if key not in trainings[seed])
    n = len(trainings) * len(keys) - len(missing)
    if missing or not n:
        return Summary(None, None, None, n, missing)
    values, prompts, seeds = flat(stack(trainings, keys), keys)
    return summary(values, prompts, seeds, metric in BINARY)


def summary(values: Sequence[float], prompts: Sequence[int], seeds: Sequence[int], binary: bool) -> Summary:
    """Mean and 95 % interval of values [N], beside the prompt and the training of each; none of no values."""
    if not len(values):
        return Summary(None, None, None, 0, ())
    low, high = (statistics.share if binary else statistics.interval)(values, prompts, seeds)
    return Summary(float(np.mean(values)), low, high, len(values), ())


def at_motion(
    values: dict[int, dict[Key, float]],
    motion: dict[int, dict[Key, float]],
    edges: Sequence[float],
    binary: bool = True,
) -> list[Summary]:
    """Means in each bin of motion, then the mean of these means: what would be if the bins were equally full.

    values, motion: by key for each training's seed. Bin i holds motion up to edges[i], the last what is above them all.
    A bin without a video has no mean, and then there is no mean of means. binary: values are 1 or 0.
    """
    bins: list[list[tuple[float, int, int]]] = [[] for _ in range(len(edges) + 1)]
    for seed, of_seed in bins_of(values, motion, edges).items():
        for key, number in of_seed.items():
            bins[number].append((values[seed][key], key[0], seed))
    summaries = [summary(*(zip(*rows, strict=True) if rows else ((), (), ())), binary) for rows in bins]
    if not all(bins):
        return [*summaries, Summary(None, None, None, sum(map(len, bins)), ())]
    rows = [(key[0], seed, value) for seed, of in weighted(values, motion, edges).items() for key, value in of.items()]
    prompts, seeds, found = zip(*rows, strict=True)
    return [*summaries, summary(found, prompts, seeds, binary)]


def weighted(
    values: dict[int, dict[Key, float]], motion: dict[int, dict[Key, float]], edges: Sequence[float]
) -> dict[int, dict[Key, float]]:
    """Values whose mean is the mean of the bins' means (`at_motion`), so that two runs can be paired at matched motion.

    Each times its bin's weight, the same over all trainings; nothing where a bin is empty.
    """
    bins = bins_of(values, motion, edges)
    count = np.bincount([number for of_seed in bins.values() for number in of_seed.values()], minlength=len(edges) + 1)
    if not count.all():
        return {seed: {} for seed in bins}
    share = count.sum() / len(count) / count
    return {
        seed: {key: values[seed][key] * share[number] for key, number in of_seed.items()}
        for seed, of_seed in bins.items()
    }


def bins_of(
    values: dict[int, dict[Key, float]], motion: dict[int, dict[Key, float]], edges: Sequence[float]
) -> dict[int, dict[Key, int]]:
    """The bin of each video that has a value and a motion, by seed and key, in order."""
    return {
        seed: {key: int(np.searchsorted(edges, motion[seed][key])) for key in sorted(of_seed) if key in motion[seed]}
        for seed, of_seed in sorted(values.items())
    }


def difference(
    metric: str, ours: dict[int, dict[Key, float]], base: dict[int, dict[Key, float]], keys: Iterable[Key]
) -> Difference:
    """Paired difference of the means, a run minus a base, with its 95 % interval; nothing may be missing.

    p is exact McNemar's for one training on either side and one video per prompt. Videos of one prompt are no
    independent pairs, nor are those of one training; p is then `statistics.p_of_shares`, with both as random effects.
    Trainings pair by seed; a run without a training meets each training of the other.
    """
    keys = sorted(keys)
    if len(ours) > 1 and len(base) > 1 and sorted(ours) != sorted(base):
        raise Problem(f"scores: trainings with seeds {sorted(ours)} cannot be paired with seeds {sorted(base)}")
    a, b = stack(ours, keys), stack(base, keys)
    apart, prompts, seeds = flat(a - b, keys)
    passes, p, discordant = metric in (*BINARY, *WEIGHTED), None, None
    low, high = (statistics.share_apart if passes else statistics.interval)(apart, prompts, seeds)
    if metric in BINARY and len(a) == len(b) == 1 and len(set(prompts)) == len(keys):
        p, discordant = statistics.mcnemar_exact(a[0], b[0]), float(np.mean(a != b))
    elif passes:
        p = statistics.p_of_shares(apart, prompts, seeds)
    return Difference(float(apart.mean()), low, high, p, discordant)


def stack(trainings: dict[int, dict[Key, float]], keys: Sequence[Key]) -> np.ndarray:
    """Values [S, K], trainings by seed, videos in the order of `keys`."""
    return np.array([[trainings[seed][key] for key in keys] for seed in sorted(trainings)])


def flat(values: np.ndarray, keys: Sequence[Key]) -> tuple[np.ndarray, list[int], list[int]]:
    """Values [S, K] as [N], with the prompt and the place of the training of each."""
    S, K = values.shape
    return values.ravel(), [prompt for prompt, _ in keys] * S, np.repeat(np.arange(S), K).tolist()
