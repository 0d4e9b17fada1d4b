"""Who sees what, where: all of it decided, hashed and written down before the first vote.

A *trial* shows one prompt's videos of two runs side by side. Every pair (comparison, prompt) gets the same number of
votes; sides are balanced within each pair and within each rater, the difference being one at most; a rater meets a pair
once, but for planned repeats with the sides swapped. Catch trials, a clip beside itself with its frames in random
order, tell who is not looking.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from scipy.stats import norm

from moalign import manifest
from moalign.errors import Problem

QUESTION = "Which video moves more like the real world?"
SHUFFLED = "shuffled:"  # before a run's name: its clip with the frames in random order
APART = 6  # trials at least between a pair and its repeat
CORRELATION = 0.2  # of two votes on one prompt, for the number of votes that a power needs
EXCLUDE = 0.75  # a rater who passes less than this share of the catch trials is left out, by the plan


@dataclass(frozen=True)
class Trial:
    """What a rater is shown once."""

    rater: int
    kind: str  # pair | repeat | catch
    prompt: int
    left: str  # run
    right: str

    @property
    def id(self) -> str:
        """Names the trial within the plan."""
        return f"{self.rater}-{self.kind}-{self.prompt}-{self.left}-{self.right}"

    @property
    def pair(self) -> tuple[int, tuple[str, str]]:
        """Prompt and runs, whichever stands where."""
        return self.prompt, tuple(sorted((self.left, self.right)))


@dataclass(frozen=True)
class Plan:
    """A study, as it will be."""

    question: str
    seed: int
    prompts: dict[int, str]
    comparisons: list[tuple[str, str]]  # ours, base
    votes: int  # on each pair
    exclude: float  # least share of catch trials that a rater must pass
    trials: list[Trial]  # by rater, in the order in which they are planned
    samples: dict[str, str] = field(default_factory=dict)  # manifest of the videos -> its sha256

    def dump(self) -> str:
        """As the text of its file: a line per trial, the hash of all the rest first."""
        rows = [json.dumps(asdict(trial)) for trial in self.trials]
        head = {name: value for name, value in asdict(self).items() if name != "trials"}
        body = "\n".join([json.dumps(head, ensure_ascii=False), *rows]) + "\n"
        return json.dumps({"study": digest(body)}) + "\n" + body

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """A plan from its file; Problem where it was edited since."""
        try:
            first, _, body = Path(path).read_text(encoding="utf-8").partition("\n")
            lines = body.splitlines()
            head = json.loads(lines[0])
            told = json.loads(first)["study"]
        except (OSError, ValueError, KeyError, IndexError) as error:
            raise Problem(f"{path}: no plan of a study ({error}); make it with `moalign study plan`") from None
        if told != digest(body):
            raise Problem(f"{path}: edited since it was made; a study keeps to its plan, so make a new one")
        prompts = {int(number): text for number, text in head.pop("prompts").items()}
        pairs = [tuple(pair) for pair in head.pop("comparisons")]
        return cls(**head, prompts=prompts, comparisons=pairs, trials=[Trial(**json.loads(line)) for line in lines[1:]])

    @property
    def raters(self) -> int:
        """How many people it needs."""
        return 1 + max(trial.rater for trial in self.trials)


def digest(text: str) -> str:
    """sha256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()


def make(
    prompts: dict[int, str],
    comparisons: Sequence[tuple[str, str]],
    votes: int,
    raters: int,
    repeat: float = 0.1,
    catch: float = 0.1,
    seed: int = 0,
) -> Plan:
    """A plan for `raters` people with `votes` on each pair; shares of a rater's trials that repeat and that catch."""
    if votes > raters:
        raise Problem(f"--votes: {votes} on a pair need as many raters, and there are {raters}; a rater meets it once")
    rng = np.random.default_rng(seed)
    pairs = [(number, tuple(pair)) for pair in comparisons for number in prompts]
    shared = [pairs[at] for at in rng.permutation(len(pairs))]
    seats = [(rater, pair) for at, pair in enumerate(shared) for rater in turns(at, votes, raters)]
    first = oriented(seats)
    trials: list[Trial] = []
    for rater in range(raters):
        mine = [pair for who, pair in seats if who == rater]
        mine = [mine[at] for at in rng.permutation(len(mine))]
        shown = [Trial(rater, "pair", number, *sided(pair, first[rater, (number, pair)])) for number, pair in mine]
        trials += with_extras(shown, repeat, catch, rng)
    return Plan(QUESTION, seed, prompts, [tuple(pair) for pair in comparisons], votes, EXCLUDE, trials)


def turns(at: int, votes: int, raters: int) -> list[int]:
    """Raters of the pair number `at`: the next `votes` in turn, so that loads differ by one at most."""
    return [(at * votes + k) % raters for k in range(votes)]


Pair = tuple[int, tuple[str, str]]


def oriented(seats: list[tuple[int, Pair]]) -> dict[tuple[int, Pair], bool]:
    """Whether a rater sees a pair's first run on the left: balanced to one within every pair and every rater.

    Raters and pairs are the nodes of a graph, a seat is an edge. Nodes of odd degree are joined to one more node; along
    an Euler circuit every node is left as often as it is entered, and the direction of an edge is its side.
    """
    edges = [(("rater", rater), ("pair", pair)) for rater, pair in seats]
    degree: dict[tuple, int] = defaultdict(int)
    for a, b in edges:
        degree[a] += 1
        degree[b] += 1
    edges += [(node, ("odd", 0)) for node, count in degree.items() if count % 2]
    near: dict[tuple, list[int]] = defaultdict(list)
    for at, (a, b) in enumerate(edges):
        near[a].append(at)
        near[b].append(at)
    used, first = [False] * len(edges), {}
    for start in near:
        while near[start]:
            node = start
            while near[node]:  # degrees are even, so a walk ends where it began
                at = near[node].pop()
                if used[at]:
                    continue
                used[at] = True
                a, b = edges[at]
                if at < len(seats):
                    first[seats[at]] = node == a  # from rater to pair: the first run is on the left
                node = b if node == a else a
    return first


def sided(pair: tuple[str, str], first: bool) -> tuple[str, str]:
    """Left and right."""
    return pair if first else pair[::-1]


def with_extras(shown: list[Trial], repeat: float, catch: float, rng: np.random.Generator) -> list[Trial]:
    """A rater's trials with swapped repeats, APART from the first time, and catch trials strewn in."""
    trials = list(shown)
    again = min(math.ceil(repeat * len(shown)), max(0, len(shown) - APART))
    for trial in shown[:again]:
        late = Trial(trial.rater, "repeat", trial.prompt, trial.right, trial.left)
        trials.insert(int(rng.integers(trials.index(trial) + APART, len(trials) + 1)), late)
    for number in range(math.ceil(catch * len(shown))):
        of = shown[int(rng.integers(len(shown)))]
        run = (of.left, of.right)[number % 2]
        ends = (run, SHUFFLED + run)
        caught = Trial(of.rater, "catch", of.prompt, *sided(ends, number % 2 == 0))
        if caught not in trials:
            trials.insert(int(rng.integers(1, len(trials) + 1)), caught)
    return trials


def votes_needed(win: float, power: float, per_prompt: float, correlation: float = CORRELATION) -> int:
    """Votes on one comparison that find a win share `win` against one half, two-sided at 5 %, with this power.

    Votes on one prompt resemble each other, so they count less: 1 + (votes per prompt - 1) x correlation.
    """
    z = norm.ppf(0.975) * 0.5 + norm.ppf(power) * math.sqrt(win * (1 - win))
    alone = (z / (win - 0.5)) ** 2
    return math.ceil(alone * (1 + (per_prompt - 1) * correlation))


def sampled(manifests: Iterable[str | Path]) -> dict[int, tuple[str, Path]]:
    """Prompt -> its text, and the first video of it, from a run's sample manifests."""
    found = {}
    for path in manifests:
        given = manifest.read(path, manifest.Sample)
        found |= {row.prompt_id: (row.prompt, given.locate(row.file)) for row in given.rows if row.index == 0}
    return found
