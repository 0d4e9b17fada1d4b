"""Intervals and tests for paired videos: the same prompts and the same noise for every run of a table.

Values are flat, [N], beside the prompt and the training (seed) of each. Videos of one prompt are not independent, nor
are those of one training: both are random effects. For a difference, pass the paired differences. All is a function of
the arguments alone; neither the order of the rows nor how prompts and trainings are numbered matters.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom, mannwhitneyu, norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from moalign.errors import Problem

LEVEL = 0.95
DRAWS = 4000
Part = tuple[float, int]  # of the variance of a mean, and its degrees of freedom


def interval(values: np.ndarray, prompts: Sequence[int], trainings: Sequence[int]) -> tuple[float, float]:
    """Interval of the mean of values [N].

    One training: `bootstrap` over prompts. It holds for that training alone; how another would differ, nothing tells.
    Several: the mean -+ `reach`. To resample the trainings as well looks honest and is not: where they differ, it
    covers down to 73 % with 2 of them, 83 % with 3, 87 % with 5.
    """
    if len(set(trainings)) == 1:
        return bootstrap(values, prompts)
    mean, half = float(np.mean(values)), reach(variances(values, prompts, trainings))
    return mean - half, mean + half


def variances(values: np.ndarray, prompts: Sequence[int], trainings: Sequence[int]) -> list[list[Part]]:
    """The variance of the mean of values [N] in independent parts, in each way that it may be read.

    Moments of the crossed model, value = mean + training + prompt + rest. With trainings at random: a part of the
    prompts, and one of the trainings, whose mean square holds the rest. Of these trainings alone: one of the prompts.
    Where cells differ in their number of videos, the mean is a ratio, taken to first order.
    """
    values = np.asarray(values, dtype=np.float64)
    (labels, prompt), (seeds, training) = (np.unique(of, return_inverse=True) for of in (prompts, trainings))
    P, S = len(labels), len(seeds)
    if P == 1:
        return [[(math.inf, 1)]]
    cell = training * P + prompt
    apart = np.bincount(cell, weights=values - values.mean(), minlength=S * P).reshape(S, P) * S * P / len(values)
    of_prompt, of_training = apart.mean(axis=0), apart.mean(axis=1)
    by_prompt = S * np.sum(of_prompt**2) / (P - 1)
    if S == 1:
        return [[(by_prompt / P, P - 1)]]
    by_training = P * np.sum(of_training**2) / (S - 1)
    rest = np.sum((apart - of_prompt - of_training[:, None]) ** 2) / ((S - 1) * (P - 1))
    at_random = [(max(by_prompt - rest, 0.0) / (S * P), P - 1), (by_training / (S * P), S - 1)]
    return [at_random, [(by_prompt / (S * P), P - 1)]]


def reach(readings: Sequence[Sequence[Part]], level: float = LEVEL) -> float:
    """Half an interval: each part of the variance times the square of its own t, added up; of the wider reading.

    Banerjee's bound, which covers at least at its level whatever the parts of a normal model are. Satterthwaite's
    degrees of freedom make shorter intervals, but where trainings differ much they cover 90 % with 2 of them, 93 % with
    3. Few trainings may agree by chance: it is never less than what the prompts leave open for these trainings alone.
    """
    return max(math.sqrt(sum(part * t.isf((1 - level) / 2, df) ** 2 for part, df in variance)) for variance in readings)


def bootstrap(values: np.ndarray, prompts: Sequence[int], seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Interval of the mean of values [N], prompts resampled with replacement, the videos of one together.

    The quantiles are those of Hesterberg's expanded percentile interval, as the plain one is too narrow where
    prompts are few; one alone bounds nothing.
    """
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    count = np.bincount(group).astype(np.float64)  # videos of each prompt
    total = np.bincount(group, weights=np.asarray(values, dtype=np.float64))
    order = np.lexsort((total, count))  # which prompt a draw takes then does not hang on its number
    count, total, P = count[order], total[order], len(count)
    if P == 1:
        return -math.inf, math.inf
    times = np.random.default_rng(seed).multinomial(P, np.full(P, 1 / P), size=draws)  # how often a draw has each
    means = (times @ total) / (times @ count)
    tail = norm.cdf(t.ppf((1 - LEVEL) / 2, P - 1) * math.sqrt(P / (P - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def share(passes: np.ndarray, prompts: Sequence[int], trainings: Sequence[int]) -> tuple[float, float]:
    """Interval of the share of passes [N] of 0 and 1, or of these times weights of mean 1: Wilson's, of `worth`."""
    n = worth(passes, prompts, trainings)
    return wilson(min(float(np.mean(passes)), 1.0) * n, n)


def share_apart(apart: np.ndarray, prompts: Sequence[int], trainings: Sequence[int]) -> tuple[float, float]:
    """Interval of the difference of two shares, from paired passes' differences [N]: Tango's, of `worth`.

    -1, 0 and 1, or the differences of weighted passes. Resampled pairs of which hardly any differ bound too little, and
    nothing where none does.
    """
    n = worth(apart, prompts, trainings)
    return tango(n * float(np.mean(np.maximum(apart, 0))), n * float(np.mean(np.maximum(np.negative(apart), 0))), n)


def worth(values: np.ndarray, prompts: Sequence[int], trainings: Sequence[int]) -> float:
    """How many independent videos would tell as much of the mean of values [N]; N at most.

    That is N for a -1, 0 or 1 of one video per prompt of one training. Otherwise it follows from `reach`; where all are
    alike, it is the number of prompts, so that none of many is not a certain 0.
    """
    values = np.asarray(values, dtype=np.float64)
    N, P = len(values), len(set(prompts))
    if len(set(trainings)) == 1 and P == N and np.isin(values, (-1, 0, 1)).all():
        return N
    half = reach(variances(values, prompts, trainings))
    n = norm.isf((1 - LEVEL) / 2) ** 2 * values.var() / half**2 if half else P
    return min(max(float(n), 1e-9), N)


def tango(ours: float, base: float, n: float) -> tuple[float, float]:
    """Tango's score interval of the difference of shares of n pairs: one passes alone in `ours`, the other in `base`.

    Where |z| of the test of a difference d reaches the normal quantile; at d = 0 that is McNemar's without correction.
    """
    mean, z2 = (ours - base) / n, norm.isf((1 - LEVEL) / 2) ** 2

    def beyond(d: float) -> float:
        B, C = (2 * n - ours + base) * d - ours - base, -base * d * (1 - d)
        q = (math.sqrt(max(B * B - 8 * n * C, 0.0)) - B) / (4 * n)  # share of pairs of `base`'s kind, were d true
        return (n * (mean - d)) ** 2 - z2 * n * (2 * q + d * (1 - d))

    step = 1e-9  # off the mean itself, a root where no pair differs
    low = brentq(beyond, -1, mean - step) if mean - step > -1 else -1.0
    high = brentq(beyond, mean + step, 1) if mean + step < 1 else 1.0
    return low, high


def wilson(successes: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share of n independent videos."""
    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def p_of_mean(values: np.ndarray, prompts: Sequence[int], trainings: Sequence[int]) -> float:
    """Two-sided p of no mean difference: 1 minus the level at which mean -+ `reach` just meets 0; below 1e-12, 0."""
    mean, readings = abs(float(np.mean(values))), variances(values, prompts, trainings)
    if mean == 0 or math.isinf(reach(readings)):
        return 1.0
    if reach(readings, 1 - 1e-12) < mean:
        return 0.0
    return math.exp(brentq(lambda p: reach(readings, 1 - math.exp(p)) - mean, math.log(1e-12), 0.0))


def p_of_shares(apart: np.ndarray, prompts: Sequence[int], trainings: Sequence[int]) -> float:
    """Two-sided p of no difference of shares, from paired passes' differences [N], weighted or not.

    That of the mean, and no less than McNemar's of N independent pairs with Edwards' correction: where two differ,
    the former says more than two pairs can.
    """
    apart = np.asarray(apart, dtype=np.float64)
    if not apart.any():
        return 1.0
    beyond = max(abs(apart.sum()) - np.abs(apart).max(), 0.0)
    mcnemar_p = 2 * norm.sf(beyond / math.sqrt(np.sum(apart**2)))
    return max(p_of_mean(apart, prompts, trainings), float(mcnemar_p))


def verdict(ends: tuple[float, float], expected: float) -> Literal["agrees", "differs", "undecided"]:
    """Our interval of a difference beside the paper's difference, of which only the sign counts.

    An interval that leaves out 0 agrees on the paper's side and differs on the other. A published tie (0) can be
    contradicted and never confirmed: an interval around 0 does not show that there is no difference.
    """
    low, high = ends
    ours = (low > 0) - (high < 0)
    if not ours:
        return "undecided"
    return "agrees" if ours == (expected > 0) - (expected < 0) else "differs"


def mcnemar_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p of McNemar's test on paired passes a, b [K] of 0 and 1."""
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    return float(mcnemar(table, exact=True).pvalue)


def power(n: int, gain: float, discordant: float) -> float:
    """Chance that exact McNemar on n prompts of one training gives p <= 0.05, summed over the number that differ.

    gain: true difference of the shares of passes. discordant: share of pairs of which one passes, at least |gain|.
    The test's power hangs on these two alone, and a table shows both; shares p, q whose passes correlate by r have
    discordant = p (1 - q) + q (1 - p) - 2 r sqrt(p (1 - p) q (1 - q)).
    """
    discordant = max(discordant, abs(gain))
    if discordant == 0:
        return 0.0
    D = np.arange(n + 1)
    last = binom.ppf((1 - LEVEL) / 2, D, 0.5) - 1  # of the fewer kind, as many as are still significant
    ours = (1 + gain / discordant) / 2
    found = binom.cdf(last, D, ours) + binom.cdf(last, D, 1 - ours)
    return float(binom.pmf(D, n, discordant) @ found)


def power_of_all(n: int, gain: float, discordant: float, trainings: int, draws: int = 20_000) -> float:
    """Chance that `reach` of paired passes of several trainings leaves out 0; of one, `power`.

    Trainings differ by their videos' chance alone and no prompt is harder than another: how much they do differ beyond
    that, nobody knows before they ran, and it takes power away. From draws of the mean squares, the same each time.
    """
    if trainings == 1:
        return power(n, gain, discordant)
    S, P, rng = trainings, n, np.random.default_rng(0)
    variance = max(discordant, abs(gain)) - gain**2
    mean = rng.normal(gain, math.sqrt(variance / (S * P)), draws)
    training, prompt, rest = (variance * rng.chisquare(df, draws) / df for df in (S - 1, P - 1, (S - 1) * (P - 1)))
    of_training, of_prompt = (t.isf((1 - LEVEL) / 2, df) ** 2 for df in (S - 1, P - 1))
    at_random = np.maximum(prompt - rest, 0) * of_prompt + training * of_training
    return float(np.mean(mean**2 > np.maximum(at_random, prompt * of_prompt) / (S * P)))


def prompts_needed(gain: float, discordant: float, wanted: float = 0.8) -> int:
    """Prompts with which `power` reaches `wanted`, by bisection."""
    if not gain or not 0 < wanted < 1:
        raise Problem(f"power: no number of prompts shows a gain of {gain} with power {wanted}; change them")
    low, high = 0, 1
    while power(high, gain, discordant) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, gain, discordant) >= wanted else (middle, high)
    return high


def auc(above: Sequence[float], below: Sequence[float]) -> float:
    """Chance that one of `above` is the larger of a pair with one of `below`; a tie counts half."""
    return float(mannwhitneyu(above, below).statistic / (len(above) * len(below)))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: the k-th smallest of n times n - k + 1, no less than the last."""
    ps = np.asarray(ps, dtype=np.float64)  # by hand: statsmodels' collects garbage at each call, a second beside torch
    order = np.argsort(ps, kind="stable")
    adjusted = np.empty_like(ps)
    adjusted[order] = np.minimum(np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1)), 1.0)
    return adjusted.tolist()
