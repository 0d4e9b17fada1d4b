"""Intervals and tests for paired videos: the same prompts and the same noise for every run of a table.

Values are arrays [S, K]: S trainings (seeds), K videos (prompt_id, index). Videos of one prompt are not independent,
nor are those of one training, so prompts and seeds are what is drawn anew. All is a function of the arguments alone.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import mannwhitneyu, norm, t
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
DRAWS = 4000


def bootstrap(values: np.ndarray, prompts: Sequence[int], seed: int = 0, draws: int = DRAWS) -> tuple[float, float]:
    """Interval of the mean of `values` [S, K], prompts and seeds resampled with replacement.

    prompts [K]: the prompt of each video; its videos stay together. For a difference, pass the paired differences.
    The quantiles are those of Hesterberg's expanded percentile interval, as the plain one is too narrow where
    prompts are few; one alone bounds nothing. Few seeds still tell little of their own spread.
    """
    values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    _, group = np.unique(np.asarray(prompts), return_inverse=True)
    count = np.bincount(group).astype(np.float64)  # videos of each prompt
    total = np.stack([np.bincount(group, weights=row) for row in values])  # [S, prompts]
    S, P = total.shape
    if P == 1:
        return -math.inf, math.inf
    rng = np.random.default_rng(seed)
    times = rng.multinomial(P, np.full(P, 1 / P), size=draws)  # how often each prompt is in a draw
    trainings = rng.multinomial(S, np.full(S, 1 / S), size=draws)
    means = ((trainings @ total) * times).sum(axis=1) / (S * (times @ count))
    tail = norm.cdf(t.ppf((1 - LEVEL) / 2, P - 1) * math.sqrt(P / (P - 1)))
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval of a share of n independent videos."""
    low, high = proportion_confint(successes, n, alpha=1 - LEVEL, method="wilson")
    return float(low), float(high)


def mcnemar_exact(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sided exact p of McNemar's test on paired passes a, b [K] of 0 and 1."""
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    return float(mcnemar(table, exact=True).pvalue)


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
