"""VBench's and VBench-2.0's own evaluators: which videos they read under which names, and how they are started.

One dimension is one task, so a dimension is what a kill costs. VBench's temporal flickering has two: its static filter
first, then the dimension on the copies that the filter kept.
"""

import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from moalign.bench import prompts, vbench
from moalign.bench.external import Task
from moalign.bench.scores import Key
from moalign.bench.vbench import VBENCH, Suite, Wanted
from moalign.bench.vbench_results import FLICKER, Rated
from moalign.config import Asked, Rater
from moalign.errors import Problem
from moalign.manifest import Sample

START = "from vbench.cli.vbench import main; main()"  # what its console script does, in the interpreter that is named
FILTER = "static"
KEPT = f"{FILTER}/filtered_videos"  # where the static filter copies what stands still
ANSWER = "*_eval_results.json"


def asked(bench: Asked, only: Iterable[str] | None = None) -> list[Wanted]:
    """Every video that a dimension reads, as many of a prompt as the bench samples. only: some of its dimensions."""
    suite = vbench.SUITES[bench.suite]
    by_dimension = defaultdict(list)
    for number, prompt in enumerate(prompts.load(bench)):
        for name in prompt.dimensions:
            by_dimension[name].append((number, prompt.name))
    if only is not None:
        if unknown := set(only) - by_dimension.keys():
            raise Problem(
                f"raters.{suite.name}.dimensions: {', '.join(sorted(unknown))}: no prompt of {bench.prompts} is rated"
                f" on that; there are {', '.join(by_dimension)}"
            )
        by_dimension = {name: by_dimension[name] for name in only}
    return vbench.wanted(suite, by_dimension, {name: bench.more.get(name, bench.videos) for name in by_dimension})


def link(folder: Path, wanted: Iterable[Wanted], videos: Iterable[tuple[Path, Sample]]) -> int:
    """Links below `folder` to the videos that are wanted, under the names that the evaluator looks for; how many."""
    places = defaultdict(list)
    for video in wanted:
        places[video.key].append(video.path)
    linked = 0
    for path, sample in videos:
        for name in dict.fromkeys(places.get((sample.prompt_id, sample.index), ())):
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.unlink(missing_ok=True)
            os.symlink(path.resolve(), place)
            linked += 1
    return linked


def tasks(suite: Suite, rater: Rater, videos: Path, folder: Path, dimensions: Iterable[str]) -> list[Task]:
    """What is run for the videos that lie, named, in `videos`. `folder` is where `ask` will run it."""
    python, here, videos = str(Path(rater.python).absolute()), folder.absolute(), videos.absolute()
    code = Path(rater.code).absolute() if rater.code else None
    found = []
    for name in dimensions:
        given, out = ("--dimension", name), ("--output_path", str(here / name))
        if suite is not VBENCH:  # its script is run from its checkout
            command = [python, "evaluate.py", "--videos_path", str(videos / name), *given, *out]
            found.append(Task(name, command, ANSWER, code))
            continue
        source = videos
        if name == FLICKER:
            source, place = here / KEPT, str(here / FILTER)
            command = [python, "-c", START, "static_filter", "--videos_path", str(videos), "--result_path", place]
            found.append(Task(FILTER, command, "filtered_static_video.json", code))
        command = [python, "-c", START, "evaluate", "--videos_path", str(source), *given, *out]
        found.append(Task(name, [*command, "--load_ckpt_from_local", "True"], ANSWER, code))
    return found


def due(suite: Suite, rated: Rated, wanted: Iterable[Wanted]) -> list[Key]:
    """Videos that a dimension's mean is over, whether or not they have a number: without what its rules leave out."""
    dimension = suite.dimensions[rated.dimension]
    read = 1 if dimension.per_prompt else dimension.videos
    gone, valued = {*rated.excluded, *rated.omitted}, {(value.prompt_id, value.index) for value in rated.values}
    return [
        row.key
        for row in wanted
        if row.dimension == dimension.name
        and Path(row.path).name not in gone
        and (row.index < read or row.key in valued or Path(row.path).name in rated.missing)
    ]


def rule(suite: Suite, name: str) -> str:
    """How a dimension is rated, for its scores: the evaluator is part of it, since another gives other numbers."""
    evaluator = "standard evaluator" if suite is VBENCH else "evaluator"
    return f"{suite.title} {name}, {evaluator}, a fraction"
