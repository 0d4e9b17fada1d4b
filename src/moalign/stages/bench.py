"""Rate the videos of one run on one bench (Sec. 5.1): one Score row per video and metric.

    moalign bench --config PIN --samples samples/RUN/sSEED/BENCH.jsonl --out scores/RUN/sSEED/BENCH.jsonl

A benchmark's own script averages whatever it finds. Here a video that is missing, broken, doubled or of another length
stops the rating with a list of them all; a video that no rater can judge (one frame) is listed in the manifest's notes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor

from moalign import device, manifest, video
from moalign.bench import motion
from moalign.config import BenchPin
from moalign.errors import Problem
from moalign.manifest import Manifest, Sample, Score
from moalign.progress import track
from moalign.teacher import raft

SHOWN = 20  # faults that a message lists one by one

Rater = Callable[[Sample, np.ndarray], list[Score]]  # frames uint8 [F, H, W, 3]


def motion_rater(pin: BenchPin) -> Rater:
    """Rater "motion", with the project's own flow network."""
    place = device.use(pin.machine)
    network = raft.load(pin.flow).to(place)

    def pair_flow(a: Tensor, b: Tensor) -> Tensor:
        return raft.pair_flow(network, a.to(place), b.to(place), pin.flow.updates)

    return lambda sample, frames: motion.rate(sample, frames, pair_flow, pin.flow.size)


RATERS: dict[str, Callable[[BenchPin], Rater]] = {"motion": motion_rater}


def run(config: str | Path, samples: str | Path, out: str | Path) -> None:
    """Write the Score manifest `out` from the Sample manifest `samples`."""
    pin = BenchPin.load(config)
    given = manifest.read(samples, Sample)
    refuse(faults_of(given, pin.bench.videos), given)
    raters = {rater: RATERS[rater](pin) for rater in pin.bench.raters}
    with manifest.making(out, Score, pin=config, inputs=[samples]) as made:
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
        more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
        listed = "\n  ".join([*faults[:SHOWN], *more])
        raise Problem(f"{given.path}: {len(faults)} faults, nothing rated; sample this run again:\n  {listed}")
