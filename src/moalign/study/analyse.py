"""What the votes say; intervals know that votes on one prompt, or of one rater, resemble each other."""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import krippendorff
import numpy as np
from scipy.stats import binomtest

from moalign.study.plan import SHUFFLED, Plan, Trial

DRAWS = 4000
Vote = tuple[int, str, str]  # rater, trial, choice


@dataclass(frozen=True)
class Counted:
    """A vote for one of two videos, with its trial."""

    trial: Trial
    chosen: str  # run
    left: bool  # the left one was chosen


def counted(plan: Plan, votes: Iterable[Vote]) -> list[Counted]:
    """Votes that choose; those that say that a video did not play are left out."""
    by_id = {trial.id: trial for trial in plan.trials}
    return [
        Counted(by_id[trial], getattr(by_id[trial], choice), choice == "left")
        for _, trial, choice in votes
        if choice in ("left", "right")
    ]


def excluded(plan: Plan, votes: Sequence[Counted]) -> dict[int, float]:
    """Raters that the plan's rule leaves out, with the share of catch trials that they passed."""
    passed: dict[int, list[bool]] = defaultdict(list)
    for vote in votes:
        if vote.trial.kind == "catch":
            passed[vote.trial.rater].append(not vote.chosen.startswith(SHUFFLED))
    shares = {rater: float(np.mean(of)) for rater, of in passed.items()}
    return {rater: share for rater, share in sorted(shares.items()) if share < plan.exclude}


def wins(votes: Sequence[Counted], ours: str, base: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(won by ours, prompt, rater) of the votes on one comparison, repeats left out."""
    rows = [
        (vote.chosen == ours, vote.trial.prompt, vote.trial.rater)
        for vote in votes
        if vote.trial.kind == "pair" and {vote.trial.left, vote.trial.right} == {ours, base}
    ]
    won, prompt, rater = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(won, dtype=float), np.array(prompt), np.array(rater)


def clustered(won: np.ndarray, prompt: np.ndarray, rater: np.ndarray, draws: int = DRAWS) -> tuple[float, float]:
    """95 % interval of the win share: prompts and raters are both drawn again, and a vote counts as often as both are.

    Basic shares of the resampled votes; the noise of single votes enters twice, so it is wide rather than narrow.
    """
    rng = np.random.default_rng(0)
    prompts, at_prompt = np.unique(prompt, return_inverse=True)
    raters, at_rater = np.unique(rater, return_inverse=True)
    times_p = rng.multinomial(len(prompts), np.full(len(prompts), 1 / len(prompts)), draws)
    times_r = rng.multinomial(len(raters), np.full(len(raters), 1 / len(raters)), draws)
    weight = times_p[:, at_prompt] * times_r[:, at_rater]  # [draws, votes]
    total = weight.sum(1)
    shares = (weight @ won)[total > 0] / total[total > 0]
    return tuple(float(end) for end in np.percentile(shares, [2.5, 97.5]))


def analyse(plan: Plan, votes: Sequence[Vote]) -> dict[str, Any]:
    """Everything that the report says, with all raters and with those that the plan's rule keeps."""
    every = counted(plan, votes)
    out = excluded(plan, every)
    kept = [vote for vote in every if vote.trial.rater not in out]
    broken = Counter(choice for *_, choice in votes)["broken"]
    return {
        "votes": len(every),
        "wanted": sum(trial.kind == "pair" for trial in plan.trials),
        "did not play": broken,
        "raters": len({vote.trial.rater for vote in every}),
        "excluded": {str(rater): share for rater, share in out.items()},
        "all": part(plan, every),
        "kept": part(plan, kept),
    }


def part(plan: Plan, votes: Sequence[Counted]) -> dict[str, Any]:
    """The numbers of some of the votes."""
    left = sum(vote.left for vote in votes if vote.trial.kind != "catch")
    free = sum(vote.trial.kind != "catch" for vote in votes)
    catches = [not vote.chosen.startswith(SHUFFLED) for vote in votes if vote.trial.kind == "catch"]
    return {
        "comparisons": [comparison(votes, *pair) for pair in plan.comparisons],
        "left": {"share": left / free, "n": free, "p": float(binomtest(left, free).pvalue)} if free else None,
        "catch": {"passed": float(np.mean(catches)), "n": len(catches)} if catches else None,
        "repeats": consistency(votes),
        "alpha": agreement(plan, votes),
        "strength": strengths(votes),
    }


def comparison(votes: Sequence[Counted], ours: str, base: str) -> dict[str, Any]:
    """Wins of one run over another."""
    won, prompt, rater = wins(votes, ours, base)
    found: dict[str, Any] = {"ours": ours, "base": base, "n": len(won)}
    if not len(won):
        return found
    majorities = [np.sign(won[prompt == one].mean() - 0.5) for one in np.unique(prompt)]
    above, below = majorities.count(1.0), majorities.count(-1.0)
    return found | {
        "share": float(won.mean()),
        "interval": clustered(won, prompt, rater),
        "binomial p": float(binomtest(int(won.sum()), len(won)).pvalue),
        "prompts won": above,
        "prompts lost": below,
        "sign p": float(binomtest(above, above + below).pvalue) if above + below else 1.0,
    }


def consistency(votes: Sequence[Counted]) -> dict[str, float] | None:
    """How often a rater chose the same video again, when the sides were swapped."""
    first = {(vote.trial.rater, vote.trial.pair): vote.chosen for vote in votes if vote.trial.kind == "pair"}
    again = [
        first[vote.trial.rater, vote.trial.pair] == vote.chosen
        for vote in votes
        if vote.trial.kind == "repeat" and (vote.trial.rater, vote.trial.pair) in first
    ]
    return {"same": float(np.mean(again)), "n": len(again)} if again else None


def agreement(plan: Plan, votes: Sequence[Counted]) -> float | None:
    """Krippendorff's alpha over pairs, nominal; None where no pair has two votes, or all votes are alike."""
    units = {
        pair: at for at, pair in enumerate(sorted({vote.trial.pair for vote in votes if vote.trial.kind == "pair"}))
    }
    if not units:
        return None
    data = np.full((plan.raters, len(units)), np.nan)
    for vote in votes:
        if vote.trial.kind == "pair":
            data[vote.trial.rater, units[vote.trial.pair]] = vote.chosen == vote.trial.pair[1][0]
    if len(np.unique(data[~np.isnan(data)])) < 2 or (~np.isnan(data)).sum(0).max() < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(krippendorff.alpha(reliability_data=data, level_of_measurement="nominal"))


def strengths(votes: Sequence[Counted]) -> dict[str, float] | None:
    """Bradley-Terry strengths, adding to 1, of three runs or more; None where the votes do not connect all of them.

    Connected: from each run a chain of wins leads to every other, so that no strength is endless (Ford, 1957).
    """
    beats: dict[tuple[str, str], int] = Counter()
    for vote in votes:
        if vote.trial.kind == "pair":
            other = vote.trial.right if vote.left else vote.trial.left
            beats[vote.chosen, other] += 1
    runs = sorted({run for pair in beats for run in pair})
    if len(runs) < 3 or not all(len(reached(run, beats)) == len(runs) for run in runs):
        return None
    strength = dict.fromkeys(runs, 1 / len(runs))
    for _ in range(2000):  # minorise and maximise (Hunter, 2004)
        new = {}
        for run in runs:
            won = sum(count for (winner, _), count in beats.items() if winner == run)
            met = sum(
                (beats[run, other] + beats[other, run]) / (strength[run] + strength[other])
                for other in runs
                if other != run
            )
            new[run] = won / met
        total = sum(new.values())
        strength = {run: value / total for run, value in new.items()}
    return strength


def reached(start: str, beats: dict[tuple[str, str], int]) -> set[str]:
    """Runs to which a chain of wins leads."""
    found, todo = {start}, [start]
    while todo:
        run = todo.pop()
        fresh = {loser for (winner, loser), count in beats.items() if winner == run and count} - found
        found |= fresh
        todo += fresh
    return found
