"""Rate the videos of one run on one bench (Sec. 5.1): one Score row per video and metric.

    moalign bench --config PIN --samples samples/RUN/sSEED/BENCH.jsonl --out scores/RUN/sSEED/BENCH.jsonl

A benchmark's own script averages whatever it finds. Here a video that is missing, broken, doubled or of another length
stops the rating with a list of them all; a video that no rater can judge (one frame) is listed in the manifest's notes.
The judge of physics leaves none out: where it finds nothing, that is its verdict, and counted.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from moalign import device, manifest, video
from moalign.bench import motion, physics
from moalign.config import BenchPin
from moalign.errors import Problem
from moalign.manifest import Making, Manifest, Sample, Score
from moalign.progress import track
from moalign.teacher import raft
from moalign.world import captions

SHOWN = 20  # faults that a message lists one by one

Rater = Callable[[Sample, np.ndarray], list[Score]]  # frames uint8 [F, H, W, 3]


def motion_rater(pin: BenchPin, given: Manifest[Sample], made: Making[Score]) -> Rater:
    """Rater "motion", with the project's own flow network."""
    place = device.use(pin.machine)
    network = raft.load(pin.flow).to(place)

    def pair_flow(a: Tensor, b: Tensor) -> Tensor:
        return raft.pair_flow(network, a.to(place), b.to(place), pin.flow.updates)

    return lambda sample, frames: motion.rate(sample, frames, pair_flow, pin.flow.size)


def physics_rater(pin: BenchPin, given: Manifest[Sample], made: Making[Score]) -> Rater:
    """Rater "physics": each video against its own prompt and against the next one; what real clips get is noted."""
    rules = physics.Rules.load(pin.bench.rules)
    prompts = read_prompts(pin, given, rules)
    others = dict(zip(prompts, [*list(prompts)[1:], *list(prompts)[:1]], strict=True))
    made.notes["reference"] = rules.reference
    made.count("nothing found", 0)

    def rate(sample: Sample, frames: np.ndarray) -> list[Score]:
        seen = physics.see(frames, rules)
        made.count("nothing found", int(seen is None))
        return physics.rate(sample, seen, prompts[sample.prompt_id], prompts[others[sample.prompt_id]], rules)

    return rate


def read_prompts(pin: BenchPin, given: Manifest[Sample], rules: physics.Rules) -> dict[int, captions.Attributes]:
    """What each prompt names, in their order; Problem where the judge does not know one, or where there is but one."""
    texts = {sample.prompt_id: sample.prompt for sample in given.rows}
    prompts = {number: captions.named(texts[number]) for number in sorted(texts)}
    faults = [
        f"line {number + 1}: {texts[number]!r}: {fault}"
        for number, prompt in prompts.items()
        if (fault := physics.unknown(prompt, rules.bins))
    ]
    if len(prompts) < 2:
        faults.append("a video is rated against another prompt too: two are needed")
    if faults:
        raise Problem(f"{pin.bench.prompts}: not for the rater 'physics'; reword, or leave it out:\n  {listed(faults)}")
    return prompts


RATERS: dict[str, Callable[[BenchPin, Manifest[Sample], Making[Score]], Rater]] = {
    "motion": motion_rater,
    "physics": physics_rater,
}


def run(config: str | Path, samples: str | Path, out: str | Path) -> None:
    """Write the Score manifest `out` from the Sample manifest `samples`."""
    pin = BenchPin.load(config)
    given = manifest.read(samples, Sample)
    refuse(faults_of(given, pin.bench.videos), given)
    inputs = [samples, *filter(None, [pin.bench.rules])]
    with manifest.making(out, Score, pin=config, inputs=inputs) as made:
        raters = {rater: RATERS[rater](pin, given, made) for rater in pin.bench.raters}
        faults: list[str] = []
        without: dict[str, list] = {rater: [] for rater in raters}
        for sample in track(given.rows, f"rate {pin.run} s{pin.seed}"):
            try:
                frames = video.read(given.locate(sample.file), list(range(sample.frames)))
            except video.BadVideo as error:
                faults.append(f"{name(sample)}: {error}")
                continue
            for rater, rate in raters.items():
                found = rate(sample, frames)
                made.rows.extend(found)
                if not found:
                    without[rater].append([sample.prompt_id, sample.index])
        refuse(faults, given)
        made.count("videos", len(given.rows))
        made.count("without a number", sum(map(len, without.values())))
        made.notes["without_number"] = without


def faults_of(given: Manifest[Sample], videos: int) -> list[str]:
    """What is wrong with a set of samples, found before any is rated: one line per fault."""
    faults, keys = [], set()
    for sample in given.rows:
        if (sample.prompt_id, sample.index) in keys:
            faults.append(f"{name(sample)}: listed twice")
        keys.add((sample.prompt_id, sample.index))
        try:
            frames = video.probe(given.locate(sample.file)).frames
        except video.BadVideo as error:
            faults.append(f"{name(sample)}: {error}")
            continue
        if frames != sample.frames:
            faults.append(f"{name(sample)}: {sample.file} holds {frames} frames, {sample.frames} were sampled")
    prompts = range(max(1 + max((prompt for prompt, _ in keys), default=-1), given.header.counts.get("prompts", 0)))
    wanted = {(prompt, index) for prompt in prompts for index in range(videos)}
    faults += [f"prompt {prompt}, video {index}: not sampled" for prompt, index in sorted(wanted - keys)]
    faults += [f"prompt {prompt}, video {index}: more than benches.videos" for prompt, index in sorted(keys - wanted)]
    return faults or ([] if keys else ["no videos at all"])


def name(sample: Sample) -> str:
    """How a message calls a video."""
    return f"prompt {sample.prompt_id}, video {sample.index}"


def refuse(faults: list[str], given: Manifest[Sample]) -> None:
    """Problem that lists the faults, if any."""
    if faults:
        raise Problem(f"{given.path}: {len(faults)} faults, nothing rated; sample this run again:\n  {listed(faults)}")


def listed(faults: list[str]) -> str:
    """Faults one to a line, not too many."""
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return "\n  ".join([*faults[:SHOWN], *more])
