"""Raters made of numbers, to test a study before people give it their time."""

from dataclasses import dataclass

import numpy as np

from moalign.study.analyse import Vote
from moalign.study.plan import SHUFFLED, Plan


@dataclass(frozen=True)
class Raters:
    """How simulated raters choose."""

    win: float = 0.6  # chance that the first run of a comparison is preferred
    prompts: float = 0.0  # standard deviation of that chance's logit over prompts
    raters: float = 0.0  # and over raters
    left: float = 0.0  # how much more likely the left one is chosen, whatever it shows
    clickers: float = 0.0  # share of raters who choose at random
    attention: float = 0.98  # chance that a catch trial is seen through


def simulate(plan: Plan, how: Raters, seed: int = 0) -> list[Vote]:
    """A vote on every trial of the plan."""
    rng = np.random.default_rng(seed)
    logit = np.log(how.win / (1 - how.win))
    of_prompt = {number: rng.normal(0, how.prompts) for number in plan.prompts}
    of_rater = rng.normal(0, how.raters, plan.raters)
    clicks = rng.random(plan.raters) < how.clickers
    ours = {ours for ours, _ in plan.comparisons}
    votes = []
    for trial in plan.trials:
        if clicks[trial.rater]:
            left = 0.5
        elif trial.kind == "catch":
            left = how.attention if trial.right.startswith(SHUFFLED) else 1 - how.attention
        else:
            win = 1 / (1 + np.exp(-(logit + of_prompt[trial.prompt] + of_rater[trial.rater])))
            left = win if trial.left in ours else 1 - win
        left = float(np.clip(left + how.left, 0, 1)) if trial.kind != "catch" else left
        votes.append((trial.rater, trial.id, "left" if rng.random() < left else "right"))
    return votes
