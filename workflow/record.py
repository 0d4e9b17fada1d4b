"""After a run of Snakemake: tell DVC what lies there, stage by stage, and only of stages whose every output is current.

    make record

`dvc commit` alone would bless whatever lies there. A stage that Snakemake would run again is left as it is, and named.
"""

import csv
import io
import subprocess
import sys

import yaml

SNAKEMAKE = (sys.executable, "-m", "snakemake", "--profile", "local", "--quiet", "all")
DVC = (sys.executable, "-m", "dvc")


def main() -> int:
    """Commit what is current; status 1 where nothing could be, or DVC refused."""
    with open("params.yaml", encoding="utf-8") as file:
        scale = yaml.safe_load(file)["scale"]
    with open("dvc.yaml", encoding="utf-8") as file:
        stages = {name: outs(stage, scale) for name, stage in yaml.safe_load(file)["stages"].items()}
    plans = plan()
    current, left = [], {}
    for name, folders in stages.items():
        mine = {path: what for path, what in plans.items() if below(path, folders)}
        stale = [path for path, what in mine.items() if what != "no update"]
        if stale or not mine:
            left[name] = stale
        else:
            current.append(name)
    for name, stale in left.items():
        print(
            f"{name}: not recorded; {len(stale)} outputs to make, {stale[0]} first" if stale else f"{name}: no output"
        )
    if not current:
        print("nothing is current: run `snakemake --profile local all` first")
        return 1
    status = subprocess.run([*DVC, "commit", "--force", *current]).returncode
    if status:
        print("dvc did not record; where it says `busy`, another dvc is at work here: wait for it", file=sys.stderr)
    else:
        print(f"recorded in dvc.lock: {', '.join(current)}")
    return int(status != 0)


def outs(stage: dict, scale: str) -> list[str]:
    """Paths that a DVC stage makes."""
    rows = [*stage["outs"], *stage.get("metrics", [])]
    return [(next(iter(row)) if isinstance(row, dict) else row).replace("${scale}", scale) for row in rows]


def below(path: str, folders: list[str]) -> bool:
    """Whether a path is one of the folders (or files), or inside one."""
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def plan() -> dict[str, str]:
    """Output -> what Snakemake would do about it: `no update`, `update pending` ..."""
    done = subprocess.run([*SNAKEMAKE, "--summary"], capture_output=True, text=True)
    if done.returncode or "output_file" not in done.stdout:
        raise SystemExit(f"snakemake --summary: {done.stderr.strip() or done.stdout.strip()}")
    table = done.stdout[done.stdout.index("output_file") :]
    return {row["output_file"]: row["plan"] for row in csv.DictReader(io.StringIO(table), delimiter="\t")}


if __name__ == "__main__":
    sys.exit(main())
