"""Which prompts the benches ask: `moalign prompts` counts them, `moalign prompts --help-fetch` says what to get."""

from collections import Counter
from pathlib import Path

from moalign import config, manifest
from moalign.bench import prompts
from moalign.config import Bench
from moalign.errors import Problem

# suite -> (what it is called and where it lies, its longer texts)
SOURCES = {
    "videophy": (
        "videophy_test_public.csv of the dataset videophysics/videophy_test_public",
        "inference/videophy_detailed.txt of aHapBean/VideoREPA, with evaluation/videophy/videophy.txt as `prompts`",
    ),
    "videophy2": (
        "prompt-upsampled-test.csv of the dataset videophysics/videophy2_upsampled_prompts",
        "a column of the same file",
    ),
    "vbench": (
        "vbench/VBench_full_info.json of Vchitect/VBench",
        "prompts/augmented_prompts/gpt_enhanced_prompts/all_dimension_longer.txt there (the leaderboard's CogVideoX)",
    ),
    "vbench2": (
        "VBench-2.0/vbench2/VBench2_full_info.json of Vchitect/VBench",
        "VBench-2.0/prompts/prompt_aug/ there, where its lines are as many as the entries",
    ),
}


def run(params: str = "params.yaml", scale: str | None = None, help_fetch: bool = False) -> None:
    """Print prompts, videos and dimensions of every bench, or what to fetch; Problem where a file is not here."""
    found = config.load(params, **({"scale": scale} if scale else {}))
    if help_fetch:
        for name, bench in found.benches.items():
            print("\n".join(fetch(name, bench)))
        return
    missing = []
    for name, bench in found.benches.items():
        try:
            print("\n".join(count(name, bench)))
        except Problem as error:
            missing.append(str(error))
    if missing:
        raise Problem("\n".join(missing))


def fetch(name: str, bench: Bench) -> list[str]:
    """What a bench needs, where it comes from, and whether it is there."""
    if bench.suite == "lines":
        return [f"{name}: {state(bench.prompts)}, a text file of yours with one prompt to a line"]
    source, longer = SOURCES[bench.suite]
    lines = [f"{name}: {state(bench.prompts)}", f"  from {source}"]
    if bench.variant == "extended" and bench.extended:
        lines += [f"  and {state(bench.extended)}", f"  from {longer}"]
    elif bench.variant == "short":
        lines.append(f"  longer texts, if you want them (`variant: extended`): {longer}")
    return lines


def state(path: str) -> str:
    """A path, and whether it is there."""
    return f"{path} ({'here' if Path(path).is_file() else 'missing'})"


def count(name: str, bench: Bench) -> list[str]:
    """A bench's prompts in numbers."""
    asked = prompts.load(bench)
    plan = prompts.plan(asked)
    text = f"{name}: {len(asked)} prompts, {len(plan)} videos of each run in {bench.shards} jobs, {bench.variant} texts"
    lines = [text, f"  {bench.prompts}, sha256 {manifest.sha256(bench.prompts)[:16]}"]
    if bench.extended:
        lines.append(f"  {bench.extended}, sha256 {manifest.sha256(bench.extended)[:16]}")
    for kind, names in (
        ("on", Counter(dimension for prompt in asked for dimension in prompt.dimensions)),
        ("of", Counter(prompt.state for prompt in asked if prompt.state)),
    ):
        lines += [f"  {number} {kind} {what}" for what, number in names.items()]
    folded = Counter(prompt.name.casefold() for prompt in asked)
    alike = [prompt.name for prompt in asked if folded[prompt.name.casefold()] > 1]
    if alike:
        lines.append(f"  differ by capitals alone, so their videos need a file system that minds them: {alike}")
    return lines
