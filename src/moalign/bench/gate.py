"""The base gate: is a base good enough for its fine-tunings to mean anything?

Its prompts must show, SA of a video with its own prompt above SA with another, and its motion must lie between that of
shuffled frames and that of real clips, so that there is room above it and something below.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from moalign.bench import scores
from moalign.bench.scores import Difference, Key
from moalign.errors import Problem
from moalign.manifest import Score


@dataclass(frozen=True)
class Gate:
    """A base run on one bench, beside what the judge gives to real, static and shuffled clips."""

    bench: str
    base: str
    SA: float
    SA_other: float
    apart: Difference  # SA - SA_other, paired
    PC: float
    reference: dict[str, float]  # kind of clips -> mean PC

    @property
    def passed(self) -> bool:
        """The interval of SA - SA_other is above 0, and PC lies between shuffled and real clips."""
        return self.apart.low > 0 and self.reference["shuffled"] < self.PC < self.reference["real"]

    def text(self) -> str:
        """One line with its figures."""
        kinds = ", ".join(f"{self.reference[kind]:.2f} of {kind} clips" for kind in ("shuffled", "real", "static"))
        return (
            f"Base gate: {'passed' if self.passed else 'not passed'} ({self.base} on {self.bench}: SA {self.SA:.2f},"
            f" with another prompt {self.SA_other:.2f}, difference {self.apart.mean:+.2f}"
            f" [{self.apart.low:+.2f}, {self.apart.high:+.2f}]; PC {self.PC:.2f}, beside {kinds})"
        )

    def numbers(self) -> dict:
        """As plain JSON."""
        apart = {name: getattr(self.apart, name) for name in ("mean", "low", "high")}
        numbers = {"SA": self.SA, "SA_other": self.SA_other, "SA - SA_other": apart, "PC": self.PC}
        return {"passed": self.passed, **numbers, "PC of": self.reference}


@dataclass(frozen=True)
class Anchor:
    """A base run beside the paper's base, in the paper's unit: only from the same start can methods be compared."""

    base: str
    label: str
    mean: float
    low: float
    high: float
    paper: float

    @property
    def holds(self) -> bool:
        """The paper's number lies in the interval of ours."""
        return self.low <= self.paper <= self.high

    def text(self) -> str:
        """One line with its figures."""
        verdict = "the methods can be compared" if self.holds else "the methods cannot be compared with the paper's"
        return (
            f"Base beside the paper's: {verdict} ({self.label} of {self.base} {self.mean:.1f}"
            f" [{self.low:.1f}, {self.high:.1f}], in the paper {self.paper:g})"
        )


def judge_base(
    bench: str, base: str, rows: Iterable[Score], keys: Iterable[Key], reference: dict[str, float] | None
) -> Gate | None:
    """The gate of a base run from its scores; None where no rater of physics was asked."""
    rows, keys = list(rows), sorted(keys)
    own, other, physical = (scores.by_key(rows, metric) for metric in ("SA", "SA_other", "PC"))
    if not other:
        return None
    if reference is None or any(key not in values for values in (own, other, physical) for key in keys):
        raise Problem(f"scores of {base} on {bench}: SA, SA_other or PC is missing; rate its videos again")
    return Gate(
        bench=bench,
        base=base,
        SA=float(np.mean([own[key] for key in keys])),
        SA_other=float(np.mean([other[key] for key in keys])),
        apart=scores.difference("SA", {0: own}, {0: other}, keys),
        PC=float(np.mean([physical[key] for key in keys])),
        reference=reference,
    )
