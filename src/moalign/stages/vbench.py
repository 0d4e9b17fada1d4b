"""VBench and VBench-2.0 around their evaluators, for those who run them by hand; `moalign bench` does it by itself.

    moalign vbench videos --bench vbench --samples results/paper/samples/cog-base/s0/vbench/*.jsonl --out FOLDER
    moalign vbench totals --bench vbench --results FOLDER

`videos` gives a run's videos the names that the evaluator looks for, as links, and looks at them before it does.
`totals` reads what it left, video by video, and computes the groups and the total, or says why there is none.
"""

from pathlib import Path

from moalign import config, manifest
from moalign.bench import vbench, vbench_rater, vbench_results
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
    wanted, folder = vbench_rater.asked(row), Path(out)
    read = [manifest.read(path, Sample) for path in samples]
    videos = [(given.locate(sample.file), sample) for given in read for sample in given.rows]
    linked = vbench_rater.link(folder, wanted, videos)
    frames = max((sample.frames for _, sample in videos), default=1)
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
    found = vbench_results.read(results, suite, vbench_rater.asked(row))
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
