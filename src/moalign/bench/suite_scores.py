"""Intervals for what VBench and VBench-2.0 print: a dimension's mean, the groups and the total over dimensions.

Each is a sum over prompts, so how far a prompt moves it is known (its influence), whichever of its videos a rule left
out. With P prompts, "value + P * influence" is a number for each prompt whose mean is the value itself, and whose
spread is its uncertainty (the jackknife's pseudo-values, to first order). Runs pair by prompt; the rest is `scores`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from moalign.bench.scores import Key
from moalign.bench.vbench import Dimension, Suite, normalised

TOTAL = "total"


@dataclass(frozen=True)
class Estimate:
    """A value, and what each prompt adds to it beyond its share; the influences' sum is 0."""

    value: float
    influence: Mapping[int, float]


def mean_of(values: Mapping[Key, float]) -> Estimate:
    """Mean of a dimension over its videos."""
    mean, n = math.fsum(values.values()) / len(values), len(values)
    influence: dict[int, float] = {}
    for (prompt, _), value in sorted(values.items()):  # equal answers in another order give equal bits
        influence[prompt] = influence.get(prompt, 0.0) + (value - mean) / n
    return Estimate(mean, influence)


def weighted(parts: Iterable[tuple[float, Estimate]]) -> Estimate:
    """Weighted mean of estimates."""
    parts = list(parts)
    whole = math.fsum(weight for weight, _ in parts)
    influence: dict[int, float] = {}
    for weight, part in parts:
        for prompt, moved in part.influence.items():
            influence[prompt] = influence.get(prompt, 0.0) + weight / whole * moved
    return Estimate(math.fsum(weight * part.value for weight, part in parts) / whole, influence)


def scaled(dimension: Dimension, estimate: Estimate) -> Estimate:
    """A dimension's normalised mean."""
    width = dimension.max - dimension.min
    influence = {prompt: moved / width for prompt, moved in estimate.influence.items()}
    return Estimate(normalised(dimension, estimate.value), influence)


def estimates(suite: Suite, values: Mapping[str, Mapping[Key, float]]) -> dict[str, Estimate]:
    """Dimensions, then the groups and the total that all their parts are there for. values: dimension -> by key."""
    means = {name: mean_of(of_key) for name, of_key in values.items() if of_key}
    groups = {}
    for group in suite.groups:
        parts = [dimension for dimension in suite.dimensions.values() if dimension.group == group]
        if all(part.name in means for part in parts):
            groups[group] = weighted((part.weight, scaled(part, means[part.name])) for part in parts)
    total = {}
    if groups.keys() == suite.groups.keys():
        total[TOTAL] = weighted((weight, groups[group]) for group, weight in suite.groups.items())
    return total | groups | means


def by_prompt(estimate: Estimate, prompts: Iterable[int]) -> dict[Key, float]:
    """A number for each prompt, whose mean is the value."""
    prompts = list(prompts)
    moved = [len(prompts) * estimate.influence.get(prompt, 0.0) for prompt in prompts]
    return {(prompt, 0): estimate.value + one for prompt, one in zip(prompts, moved, strict=True)}
