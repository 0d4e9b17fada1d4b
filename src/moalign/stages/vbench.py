"""VBench and VBench-2.0 around their evaluators, which are run by hand (docs/raters.md).

    moalign vbench videos --bench vbench --samples results/paper/samples/cog-base/s0/vbench/*.jsonl --out FOLDER
    moalign vbench totals --bench vbench --results FOLDER

`videos` gives a run's videos the names that the evaluator looks for, as links, and looks at them before it does.
`totals` reads what it left, video by video, and computes the groups and the total, or says why there is none.
"""

import os
from collections import defaultdict
from pathlib import Path

from moalign import config, manifest
from moalign.bench import prompts, vbench, vbench_results
from moalign.bench.preflight import preflight
from moalign.config import Bench
from moalign.errors import Problem
from moalign.manifest import Sample

SHOWN = 20  # faults that are printed one by one


def videos(
    bench: str, samples: list[str], out: str, params: str = "params.yaml", scale: str = "paper", mode: str = "standard"
) -> int:
    """Link the videos below `out`, compare with what the evaluator will look for; 0 where nothing is wrong, else 1."""
    row, suite = find(bench, params, scale)
    wanted = asked(row, suite)
    places = defaultdict(list)
    for video in wanted:
        places[video.key].append(video.path)
    folder, linked, frames = Path(out), 0, 1
    for path in samples:
        given = manifest.read(path, Sample)
        for sample in given.rows:
            frames = max(frames, sample.frames)
            for name in dict.fromkeys(places.get((sample.prompt_id, sample.index), ())):
                link = folder / name
                link.parent.mkdir(parents=True, exist_ok=True)
                link.unlink(missing_ok=True)
                os.symlink(given.locate(sample.file).resolve(), link)
                linked += 1
    found = preflight(folder, wanted, frames, mode if suite is vbench.VBENCH else None)
    print(f"{out}: {linked} links, {found.ready} of {found.videos} videos are ready for {suite.title}")
    for fault in found.faults[:SHOWN]:
        print(f"{fault.kind:10} {fault.path}: {fault.detail}")
    if len(found.faults) > SHOWN:
        print(f"and {len(found.faults) - SHOWN} more")
    for remark in found.remarks:
        print(f"remark     {remark}")
    return int(bool(found.faults))


def totals(bench: str, results: str, params: str = "params.yaml", scale: str = "paper") -> int:
    """Print the dimensions' means, the groups and the total; 0 where there is a total, else 1."""
    row, suite = find(bench, params, scale)
    found = vbench_results.read(results, suite, asked(row, suite))
    made = vbench.totals(suite, found.means)
    for name, dimension in suite.dimensions.items():
        rated = found.rated.get(name)
        mean = "-" if rated is None or rated.mean is None else f"{100 * rated.mean:.2f}"
        print(f"{name:28} {dimension.group:16} {mean:>7} %  of {len(rated.values) if rated else 0} videos")
    for group, value in made.groups.items():
        print(f"{group:45} {'-' if value is None else f'{100 * value:.2f}':>7} %")
    print(f"{'total':45} {'-' if made.total is None else f'{100 * made.total:.2f}':>7} %")
    for remark in found.remarks:
        print(f"remark     {remark}")
    if made.total is None:
        print(f"no total: {', '.join(made.missing)} without a mean")
    return int(made.total is None)


def find(bench: str, params: str, scale: str) -> tuple[Bench, vbench.Suite]:
    """A bench of params.yaml and its suite."""
    benches = config.load(params, scale=scale).benches
    if bench not in benches or benches[bench].suite not in vbench.SUITES:
        known = [name for name, row in benches.items() if row.suite in vbench.SUITES]
        raise Problem(
            f"--bench: {bench} is no bench of VBench at scale {scale}; there are: {', '.join(known) or 'none'}"
        )
    return benches[bench], vbench.SUITES[benches[bench].suite]


def asked(bench: Bench, suite: vbench.Suite) -> list[vbench.Wanted]:
    """Every video that a dimension reads, as many of a prompt as the bench samples."""
    by_dimension = defaultdict(list)
    for number, prompt in enumerate(prompts.load(bench)):
        for dimension in prompt.dimensions:
            by_dimension[dimension].append((number, prompt.name))
    return vbench.wanted(suite, by_dimension, {name: bench.more.get(name, bench.videos) for name in by_dimension})
