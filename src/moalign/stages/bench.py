"""Rate the videos of one run on one bench (Sec. 5.1): one Score row per video and metric.

    moalign bench --config PIN --samples samples/RUN/sSEED/BENCH/*.jsonl --work FOLDER --out BENCH.jsonl

A benchmark's own script averages whatever it finds. Here a video that is missing, broken, doubled or of another length
stops the rating with a list of them all; a video that no rater can judge (one frame) is listed in the manifest's notes.
The judge of physics leaves none out: where it finds nothing, that is its verdict, and counted.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from moalign import device, manifest, shards, video
from moalign.bench import (
    codec,
    external,
    motion,
    physics,
    prompts,
    scores,
    vbench,
    vbench_rater,
    vbench_results,
    videophy,
)
from moalign.bench.preflight import preflight
from moalign.bench.scores import Key
from moalign.config import BenchPin
from moalign.errors import Problem
from moalign.manifest import Making, Sample, Score
from moalign.mirror import Mirror
from moalign.progress import track
from moalign.teacher import raft
from moalign.world import captions

SHOWN = 20  # faults that a message lists one by one

Rater = Callable[[Sample, np.ndarray], list[Score]]  # frames uint8 [F, H, W, 3]


@dataclass(frozen=True)
class Given:
    """The videos of one run on one bench."""

    videos: list[tuple[Path, Sample]]  # all shards, in order
    asked: list[prompts.Prompt]
    where: str  # how a message calls them


def motion_rater(pin: BenchPin, given: Given, made: Making[Score]) -> Rater:
    """Rater "motion", with the project's own flow network."""
    place = device.use(pin.machine)
    network = raft.load(pin.flow).to(place)

    def flow_on(frames: Tensor) -> Tensor:
        return raft.flow_on(network, frames.to(place), pin.flow.updates)

    return lambda sample, frames: motion.rate(sample, frames, flow_on, pin.flow.size)


def physics_rater(pin: BenchPin, given: Given, made: Making[Score]) -> Rater:
    """Rater "physics": each video against its own prompt and against the next one; what real clips get is noted."""
    rules = physics.Rules.load(pin.bench.rules)
    named = names_in(pin, given.asked, rules)
    others = [*named[1:], *named[:1]]
    made.notes["reference"] = rules.reference
    made.count("nothing found", 0)

    def rate(sample: Sample, frames: np.ndarray) -> list[Score]:
        seen = physics.see(frames, rules)
        made.count("nothing found", int(seen is None))
        return physics.rate(sample, seen, named[sample.prompt_id], others[sample.prompt_id], rules)

    return rate


def codec_rater(pin: BenchPin, given: Given, made: Making[Score]) -> Rater:
    """Rater "codec", which looks at a video alone."""
    return codec.rate


def names_in(pin: BenchPin, asked: list[prompts.Prompt], rules: physics.Rules) -> list[captions.Attributes]:
    """What each prompt names; Problem where the judge does not know one, or where there is but one."""
    named = [captions.named(prompt.name) for prompt in asked]
    faults = [
        f"line {number}: {prompt.name!r}: {fault}"
        for number, (prompt, attributes) in enumerate(zip(asked, named, strict=True), 1)
        if (fault := physics.unknown(attributes, rules.bins))
    ]
    if len(named) < 2:
        faults.append("a video is rated against another prompt too: two are needed")
    if faults:
        raise Problem(f"{pin.bench.prompts}: not for the rater 'physics'; reword, or leave it out:\n  {listed(faults)}")
    return named


RATERS: dict[str, Callable[[BenchPin, Given, Making[Score]], Rater]] = {
    "motion": motion_rater,
    "physics": physics_rater,
    "codec": codec_rater,
}


def ask_videophy(name: str, pin: BenchPin, given: Given, folder: Path, made: Making[Score]) -> list[Score]:
    """Scores by VideoPhy's or VideoPhy2's own rater."""
    asked = {path.absolute(): (row.prompt_id, row.index) for path, row in given.videos}
    captions = {path.absolute(): row.prompt for path, row in given.videos}
    laws = videophy.read_laws(Path(pin.bench.rules), captions.values()) if asks_rules(name, pin) else {}
    tasks = videophy.tasks(name, pin.raters[name], captions, folder, laws)
    left = external.ask(tasks, folder)
    values: dict[str, dict[Key, float]] = {}
    for question, task in videophy.QUESTIONS.items():
        values[question], odd = videophy.read(name, left[task], asked)
        for what, count in odd.items():
            made.count(f"{name} {question}: {what}", count)
    made.notes.setdefault("raters", {})[name] = {
        "commands": [task.command for task in tasks],
        "versions": external.versions(pin.raters[name].python, "torch", "transformers", "peft"),
    }
    found = videophy.metrics(name, values)
    if laws:
        of_video = {path: laws[caption] for path, caption in captions.items()}
        broken, odd = videophy.read_broken(left[videophy.RULE], asked, of_video)
        found["rules_broken"] = videophy.RULES["rules_broken"], broken
        for what, count in odd.items():
            made.count(f"{name} rule: {what}", count)
    made.notes["groups"] = prompts.by_state(given.asked)
    seeds = seeds_of(given)
    return [
        Score(*key, seeds[key], metric, value, rater=external.called(name, pin.raters[name].code), rule=rule)
        for metric, (rule, of_key) in found.items()
        for key, value in of_key.items()
    ]


def asks_rules(name: str, pin: BenchPin) -> bool:
    """Whether VideoPhy2's rater is asked about single rules; with the judge of physics, `rules` are the judge's."""
    return name == "videophy2" and pin.bench.rules is not None and "physics" not in pin.bench.raters


def ask_vbench(name: str, pin: BenchPin, given: Given, folder: Path, made: Making[Score]) -> list[Score]:
    """Scores by VBench's or VBench-2.0's own evaluator, one metric for each dimension.

    What a dimension's rules leave out has no score and is not due; the notes say which videos of a dimension are.
    """
    suite, rater = vbench.SUITES[name], pin.raters[name]
    wanted, videos = vbench_rater.asked(pin.bench, rater.dimensions), folder / "videos"
    vbench_rater.link(videos, wanted, given.videos)
    frames = max(row.frames for _, row in given.videos)
    found = preflight(videos, wanted, frames, "standard" if suite is vbench.VBENCH else None)
    refuse([f"{fault.kind}: {fault.path}: {fault.detail}" for fault in found.faults], given)
    dimensions = list(dict.fromkeys(row.dimension for row in wanted))
    tasks = vbench_rater.tasks(suite, rater, videos, folder, dimensions)
    external.ask(tasks, folder)
    results = vbench_results.read(folder, suite, wanted)
    made.notes["due"] = {one.dimension: vbench_rater.due(suite, one, wanted) for one in results.rated.values()}
    packages = ("torch", "vbench") if suite is vbench.VBENCH else ("torch",)
    made.notes.setdefault("raters", {})[name] = {
        "commands": [task.command for task in tasks],
        "versions": external.versions(rater.python, *packages),
        "remarks": [*found.remarks, *results.remarks],
    }
    seeds, called = seeds_of(given), external.called(name, rater.code)
    return [
        Score(*key, seeds[key], one.dimension, row.value, rater=called, rule=vbench_rater.rule(suite, one.dimension))
        for one in results.rated.values()
        for row in one.values
        for key in [(row.prompt_id, row.index)]
    ]


def seeds_of(given: Given) -> dict[Key, int]:
    """The noise of each video."""
    return {(row.prompt_id, row.index): row.seed for _, row in given.videos}


# raters of their own, in their own environments
BENCHMARKS = {"videophy": ask_videophy, "videophy2": ask_videophy, "vbench": ask_vbench, "vbench2": ask_vbench}


def run(config: str | Path, samples: list[str | Path], work: str | Path, out: str | Path) -> None:
    """Write the Score manifest `out` from the Sample manifests of all shards."""
    pin = BenchPin.load(config)
    read = [manifest.read(path, Sample) for path in samples]
    videos = [(shard.locate(row.file), row) for shard in read for row in shard.rows]
    given = Given(videos, prompts.load(pin.bench), str(Path(samples[0]).parent))
    refuse(faults_of(given), given)
    inputs = [*samples, *filter(None, [pin.bench.prompts, pin.bench.extended, pin.bench.rules])]
    with manifest.making(out, Score, pin=config, inputs=inputs) as made:
        key = "".join(manifest.sha256(path) for path in (config, *inputs))
        for rater in filter(BENCHMARKS.get, pin.bench.raters):
            folder = shards.resumable(Path(work) / "rated" / Path(out).stem / rater, key)
            made.rows += BENCHMARKS[rater](rater, pin, given, folder, made)
        raters = {rater: RATERS[rater](pin, given, made) for rater in pin.bench.raters if rater in RATERS}
        faults: list[str] = []
        without: dict[str, list] = {rater: [] for rater in raters}
        for path, sample in track(given.videos, f"rate {pin.run} s{pin.seed}"):
            try:
                frames = video.read(path, list(range(sample.frames)))
            except video.BadVideo as error:
                faults.append(f"{name(sample)}: {error}")
                continue
            for rater, rate in raters.items():
                found = rate(sample, frames)
                made.rows.extend(found)
                if not found:
                    without[rater].append([sample.prompt_id, sample.index])
        refuse(faults, given)
        made.count("videos", len(given.videos))
        made.count("without a number", sum(map(len, without.values())))
        made.notes["without_number"] = without
        mirror_means(pin, made, Path(work) / f"{Path(out).stem}-scores")


def mirror_means(pin: BenchPin, made: Making[Score], place: Path) -> None:
    """Send wandb the mean of every metric."""
    values: dict[str, list[float]] = {}
    for row in made.rows + scores.joint(made.rows):
        values.setdefault(row.metric, []).append(row.value)
    mirror = Mirror(place, pin.model_dump(mode="json"), f"{pin.run}-s{pin.seed}-{place.name}")
    mirror.log({metric: float(np.mean(of)) for metric, of in values.items()})
    mirror.finish()


def faults_of(given: Given) -> list[str]:
    """What is wrong with a set of samples, found before any is rated: one line per fault."""
    faults, keys, wanted = [], set(), set(prompts.plan(given.asked))
    for path, sample in given.videos:
        key = (sample.prompt_id, sample.index)
        if key in keys:
            faults.append(f"{name(sample)}: listed twice")
        elif key not in wanted:
            faults.append(f"{name(sample)}: not asked for")
        elif (sample.prompt, sample.text) != (given.asked[key[0]].name, given.asked[key[0]].text):
            faults.append(f"{name(sample)}: sampled for another prompt, {sample.prompt!r}")
        keys.add(key)
        try:
            frames = video.probe(path).frames
        except video.BadVideo as error:
            faults.append(f"{name(sample)}: {error}")
            continue
        if frames != sample.frames:
            faults.append(f"{name(sample)}: {sample.file} holds {frames} frames, {sample.frames} were sampled")
    return faults + [f"prompt {prompt}, video {index}: not sampled" for prompt, index in sorted(wanted - keys)]


def name(sample: Sample) -> str:
    """How a message calls a video."""
    return f"prompt {sample.prompt_id}, video {sample.index}"


def refuse(faults: list[str], given: Given) -> None:
    """Problem that lists the faults, if any."""
    if faults:
        raise Problem(f"{given.where}: {len(faults)} faults, nothing rated; sample this run again:\n  {listed(faults)}")


def listed(faults: list[str]) -> str:
    """Faults one to a line, not too many."""
    more = [f"and {len(faults) - SHOWN} more"] if len(faults) > SHOWN else []
    return "\n  ".join([*faults[:SHOWN], *more])
