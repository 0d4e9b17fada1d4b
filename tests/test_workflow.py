"""The two graphs: what Snakemake would run, what an edit reruns, and that dvc.yaml says the same.

The graph is tested on a folder whose outputs are all there, as placeholders that `--touch` has declared current.
"""

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moalign import config, manifest
from moalign.stages import cost

TOP = Path(__file__).parents[1]
SCALE = "smoke"
BROUGHT = {"data/annotations", "data/prompts"}  # a user's; at the smaller scales no rule reads them


def snakemake(folder: Path, *options: str, first: Path | None = None) -> subprocess.CompletedProcess:
    """Snakemake on the repo's Snakefile, in a folder with parameters of its own; programs are looked for in `first`."""
    path = ":".join([*([str(first)] if first else []), str(Path(sys.executable).parent), os.environ["PATH"]])
    profile = ["--profile", str(TOP / "local"), "-s", str(TOP / "Snakefile")]
    env = {**os.environ, "PATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "snakemake", *profile, *options]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)


def summary(folder: Path) -> list[dict]:
    """Every output with its rule, inputs and plan."""
    done = snakemake(folder, "--detailed-summary", "all")
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout[done.stdout.index("output_file") :]), delimiter="\t"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder in which the smoke chain has run, as far as Snakemake can tell."""
    folder = tmp_path_factory.mktemp("workflow")
    shutil.copy(TOP / "params.yaml", folder)
    shutil.copytree(TOP / "scales", folder / "scales")
    (folder / "resources").symlink_to(TOP / "resources")
    pinned = snakemake(folder, "pins")  # in earnest: their text decides what is current
    assert pinned.returncode == 0, pinned.stderr
    for row in summary(folder):
        path = folder / row["output_file"]
        if row["rule"] == "pin":
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a placeholder\n")
    done = snakemake(folder, "--touch", "--forceall", "all")
    assert done.returncode == 0, done.stderr
    return folder


def planned(folder: Path, section: str = "", old: str = "", new: str = "") -> dict[str, set[str]]:
    """Rule -> what it would make again, after one edit in a section of params.yaml (undone afterwards)."""
    params = folder / "params.yaml"
    before = params.read_text()
    if section:
        head, mark, rest = before.partition(f"\n{section}:")
        assert old in rest, (section, old)
        params.write_text(head + mark + rest.replace(old, new, 1))
    try:
        done = snakemake(folder, "-n", "all")
    finally:
        params.write_text(before)
    assert done.returncode == 0, done.stdout + done.stderr
    jobs: dict[str, set[str]] = {}
    for rule, rest in re.findall(
        r"^(?:local)?(?:rule|checkpoint) (\w+):\n((?:    .*\n)*)", done.stdout + done.stderr, re.MULTILINE
    ):
        made = re.search(r"^    output: (.*)$", rest, re.MULTILINE)
        jobs.setdefault(rule, set()).update(made.group(1).split(", ") if made else [])
    return jobs


def runs(paths: set[str]) -> set[str]:
    return {path.split("/")[3] for path in paths}


def test_nothing_is_left_to_do(finished):
    assert planned(finished) == {}


def test_one_methods_tau_reruns_the_runs_that_use_it_and_their_tables(finished):
    row = "moalign: {target: motion, loss: soft_trd, lam: 0.5, tau: 10.0}"
    jobs = planned(finished, "methods", row, row.replace("10.0", "5.0"))
    assert set(jobs) == {"pin", "plan", "probe", "align_run", "sample_run", "bench_run", "report", "all"}
    for rule in ("align_run", "sample_run", "bench_run"):
        assert runs(jobs[rule]) == {"cog-moalign"}
    pins = {path.removeprefix(f"results/{SCALE}/pins/") for path in jobs["pin"]}
    assert pins == {"align/cog-moalign-s0.yaml", "report.yaml"}


def test_an_edit_is_seen_where_snakemake_has_no_memory(finished, tmp_path):
    """In a folder that DVC has filled, whatever the order of its dates."""
    folder = tmp_path / "home"
    shutil.copytree(finished, folder, symlinks=True)
    pins = sorted((folder / f"results/{SCALE}/pins").rglob("*.yaml"))
    row = "moalign: {target: motion, loss: soft_trd, lam: 0.5, tau: 10.0}"
    for touched in (False, True):
        shutil.rmtree(folder / ".snakemake")
        if touched:
            assert snakemake(folder, "--touch", "--forceall", "all").returncode == 0
        else:
            for path in [*(folder / "results").rglob("*.*"), *pins]:
                os.utime(path)  # the pins last, so that nothing else is newer
        jobs = planned(folder, "methods", row, row.replace("10.0", "5.0"))
        made = {path.removeprefix(f"results/{SCALE}/pins/") for path in jobs["pin"]}
        assert made == {"align/cog-moalign-s0.yaml", "report.yaml"}, touched
    assert runs(jobs["align_run"]) == {"cog-moalign"}


def test_what_dvc_brings_is_current_and_an_edit_made_before_is_seen(finished, tmp_path):
    """As in the folder of `dvc exp run --queue`: parameters first, then the outs of HEAD, then the stages."""
    folder = tmp_path / "home"
    shutil.copytree(finished, folder, symlinks=True)
    shutil.rmtree(folder / ".snakemake")
    shutil.rmtree(folder / "work")
    for name in ("Snakefile", "workflow", "local"):
        (folder / name).symlink_to(TOP / name)
    for path in (folder / "results").rglob("*.*"):
        os.utime(path)
    row = "moalign: {target: motion, loss: soft_trd, lam: 0.5, tau: 10.0}"
    params = folder / "params.yaml"
    params.write_text(params.read_text().replace(row, row.replace("10.0", "5.0")))
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    stage = ["sh", "workflow/stage.sh", "pins", "pin"]
    done = subprocess.run(stage, cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tau: 5.0" in (folder / f"results/{SCALE}/pins/align/cog-moalign-s0.yaml").read_text()
    jobs = planned(folder)
    assert set(jobs) == {"align_run", "sample_run", "bench_run", "plan", "probe", "report", "all"}
    assert runs(jobs["align_run"]) == {"cog-moalign"}


def test_the_subsets_seed_reruns_everything_behind_it(finished):
    jobs = planned(finished, "subset", "  seed: 0\n", "  seed: 7\n")
    everything = {row["rule"] for row in summary(finished)} | {"all"}
    assert set(jobs) == everything - {"collection", "collect"}


def test_the_teachers_rate_spares_runs_without_a_motion_target(finished):
    jobs = planned(finished, "teacher", "lr: 1.0e-4", "lr: 3.0e-4")
    assert runs(jobs["align_run"]) == {"cog-no_soft", "cog-moalign"}
    assert "flow_shard" not in jobs
    assert "encode_shard" not in jobs


STUB = """#!{python}
# Stands in for `moalign`: only `draw` does its work, the others note that they were called.
import sys
from pathlib import Path
from moalign import cli
if sys.argv[1] == "draw":
    sys.exit(cli.main())
given = dict(zip(sys.argv[2::2], sys.argv[3::2]))
with open("called.txt", "a") as called:
    called.write(f"{{sys.argv[1]}} {{given['--clips']}}\\n")
Path(given["--out"]).write_text("made of " + Path(given["--drawn"]).read_text())
"""


def test_a_shard_is_encoded_again_where_its_list_changed_and_nowhere_else(finished, tmp_path):
    """In one call of Snakemake: `draw` runs, and only then is it known which lists are new."""
    folder = tmp_path / "home"
    shutil.copytree(finished, folder, symlinks=True)
    smoke = folder / "scales/smoke.yaml"
    stub, pin = folder / "bin/moalign", tmp_path / "pin.yaml"
    manifest.write_text(stub, STUB.format(python=sys.executable))
    stub.chmod(0o755)
    for number, shard in enumerate(("real/0000", "real/0001", "synth/0000")):
        path, kind = f"results/{SCALE}/clips/{shard}.jsonl", shard.split("/")[0]
        manifest.write_text(pin, config.dump(config.pin(config.load(TOP / "params.yaml"), "subset")))
        with manifest.making(folder / path, manifest.Clip, pin=pin) as made:
            keys = [f"{kind}-{number}{letter}" for letter in "abcdefgh"]
            made.rows += [manifest.Clip(key, "train", kind, "", "", "", 0, 0, 17, 8.0, 64, 64) for key in keys]

    def called(old: str, new: str) -> set[str]:
        assert old in smoke.read_text()
        smoke.write_text(smoke.read_text().replace(old, new))
        (folder / "called.txt").unlink(missing_ok=True)
        done = snakemake(folder, "encode", first=stub.parent)
        assert done.returncode == 0, done.stdout + done.stderr
        lines = (folder / "called.txt").read_text().splitlines() if (folder / "called.txt").exists() else []
        return {line.removeprefix(f"encode results/{SCALE}/clips/").removesuffix(".jsonl") for line in lines}

    def lists() -> dict[str, str]:
        drawn = folder / f"results/{SCALE}/drawn"
        return {f"{path.parent.name}/{path.stem}": path.read_text() for path in drawn.glob("*/*.txt")}

    assert called("steps: 12, batch: 4", "steps: 4, batch: 2") == {"real/0000", "real/0001", "synth/0000"}
    before = lists()
    assert sum(len(text.split()) for text in before.values()) == 8
    changed = called("steps: 4, batch: 2", "steps: 9, batch: 1")
    after = lists()
    assert changed == {shard for shard in after if after[shard] != before[shard]}
    assert len(changed) == 1

    done = snakemake(folder, "--touch", "--forceall", "all")
    assert done.returncode == 0, done.stderr
    smoke.write_text(smoke.read_text().replace("seeds: [0]", "seeds: [0, 1]"))
    jobs = planned(folder)
    assert "encode_shard" in jobs, "one more seed draws more clips"
    assert {path.split("/")[4] for path in jobs["align_run"]} == {"s1"}, "those of the first seed are as they were"


def test_flow_as_a_video_waits_for_raft_and_the_vae_and_for_no_teacher(rows):
    read = {row["output_file"].split("/")[4]: row["input-file(s)"] for row in rows if row["rule"] == "targets_shard"}
    models = {target: set(re.findall(r"miniature/(\w+)/|/(teacher)/", paths)) for target, paths in read.items()}
    assert models["flow_video"] == {("raft", ""), ("cogvideox", "")}
    assert models["tokens"] == {("videomae", "")}
    assert models["motion"] == {("videomae", ""), ("", "teacher")}


def test_switching_wandb_reruns_the_report_alone(finished):
    assert set(planned(finished, "wandb", "mode: offline", "mode: disabled")) == {"pin", "plan", "report", "all"}


def test_the_number_of_ranks_reruns_the_report_alone(finished):
    scale = finished / "scales/miniature.yaml"
    before = scale.read_text()
    assert "processes: 1" in before
    scale.write_text(before.replace("processes: 1", "processes: 2"))
    try:
        assert set(planned(finished)) == {"pin", "plan", "report", "all"}
    finally:
        scale.write_text(before)


def test_a_mistake_in_the_parameters_stops_at_once(finished, tmp_path):
    folder = tmp_path
    (folder / "scales").symlink_to(TOP / "scales")
    (folder / "params.yaml").write_text(
        (TOP / "params.yaml").read_text().replace("lam: 0.5, tau: 10.0", "lam: 0.5, taw: 10.0")
    )
    done = snakemake(folder, "-n", "all")
    assert done.returncode != 0
    assert "methods.moalign.taw: unknown key; did you mean 'tau'?" in done.stdout + done.stderr


def test_a_waiting_job_does_not_see_an_edit(finished):
    """A job on another node reads the Snakefile again, and params.yaml may be another by then, or broken."""
    params = finished / "params.yaml"
    before = params.read_text()
    frozen = max((finished / "work/pins/params").glob("*.yaml"))
    target = f"results/{SCALE}/flow/real/0000.jsonl"
    params.write_text("scale: [broken")
    try:
        plain = snakemake(finished, "-n", target)
        options = ["--mode", "subprocess", "-n", "--nolock", target]
        job = subprocess.run(
            [sys.executable, "-m", "snakemake", "-s", str(TOP / "Snakefile"), "--cores", "1", *options],
            cwd=finished,
            env={**os.environ, "MOALIGN_PARAMS": str(frozen)},
            capture_output=True,
            text=True,
        )
    finally:
        params.write_text(before)
    assert "params.yaml: not valid YAML" in plain.stdout + plain.stderr
    assert job.returncode == 0, job.stdout + job.stderr


# --- dvc.yaml ----------------------------------------------------------------------------------------------------


def dvc_stages() -> dict[str, dict]:
    """Stage -> its rules, deps and outs, with the scale filled in."""
    stages = {}
    for name, stage in yaml.safe_load((TOP / "dvc.yaml").read_text())["stages"].items():
        words = stage["cmd"].split()
        assert words[:2] == ["sh", "workflow/stage.sh"]
        outs = [next(iter(out)) if isinstance(out, dict) else out for out in stage["outs"] + stage.get("metrics", [])]
        stages[name] = {
            "rules": set(words[2:]),
            "deps": {dep.replace("${scale}", SCALE) for dep in stage["deps"]},
            "outs": {out.replace("${scale}", SCALE) for out in outs},
        }
    return stages


def below(path: str, folders: set[str]) -> bool:
    """Whether a path is one of the folders (or files), or inside one."""
    return any(path == folder or path.startswith(folder + "/") for folder in folders)


def partings(stages: dict[str, dict], rows: list[dict]) -> list[str]:
    """Where the two graphs differ, in words."""
    found = []
    stage_of = {rule: name for name, stage in stages.items() for rule in stage["rules"]}
    read: dict[str, set[str]] = {name: set() for name in stages}
    for row in rows:
        output, stage = row["output_file"], stage_of.get(row["rule"])
        if stage is None:
            found.append(f"rule {row['rule']} belongs to no DVC stage")
            continue
        owners = [name for name, other in stages.items() if below(output, other["outs"])]
        if owners != [stage]:
            found.append(f"{output}: made by {stage}, an out of {owners}")
        for path in filter(None, row["input-file(s)"].split(",")):
            if not below(path, {*stages[stage]["outs"], "work"}):
                read[stage].add(path)
    for name, stage in stages.items():
        found += [
            f"{name} reads {path}, which is no dep" for path in sorted(read[name]) if not below(path, stage["deps"])
        ]
        idle = {dep for dep in stage["deps"] if not any(below(path, {dep}) for path in read[name])}
        found += [f"{name} has a dep that no rule reads: {dep}" for dep in sorted(idle - BROUGHT) if name != "pins"]
        made = {row["output_file"] for row in rows if stage_of.get(row["rule"]) == name}
        found += [
            f"{name}: nothing makes {out}" for out in sorted(stage["outs"]) if not any(below(m, {out}) for m in made)
        ]
    return found


@pytest.fixture(scope="module")
def rows(finished) -> list[dict]:
    return summary(finished)


def test_dvc_and_snakemake_draw_the_same_graph(rows):
    assert partings(dvc_stages(), rows) == []


def test_the_plan_has_the_jobs_that_snakemake_has(rows):
    planned = {f"results/smoke/{job.path}" for job in cost.jobs(config.load(TOP / "params.yaml", scale="smoke"))}
    made = {row["output_file"] for row in rows if row["rule"] not in ("pin", "collection", "plan", "probe", "report")}
    assert planned == {path for path in made if path.endswith(".jsonl")}


def test_removing_any_dep_or_out_is_seen(rows):
    for name, stage in dvc_stages().items():
        for kind in ("deps", "outs"):
            for path in stage[kind]:
                if path in BROUGHT or (name == "pins" and kind == "deps"):
                    continue  # Snakemake has them as parameters: test_the_pins_stage_depends_on_all_that_is_parsed
                stages = dvc_stages()
                stages[name][kind] = stages[name][kind] - {path}
                assert partings(stages, rows), f"{name} without its {kind[:-1]} {path} went unseen"


def test_removing_any_input_or_output_of_a_rule_is_seen(rows):
    stages = dvc_stages()
    for name, stage in stages.items():
        for out in stage["outs"]:
            fewer = [row for row in rows if not below(row["output_file"], {out})]
            assert partings(stages, fewer), f"{name}: rules that no longer make {out} went unseen"
        for dep in stage["deps"] - BROUGHT - (stage["deps"] if name == "pins" else set()):
            fewer = []
            for row in rows:
                paths = row["input-file(s)"].split(",")
                if row["rule"] in stage["rules"]:
                    paths = [path for path in paths if not below(path, {dep})]
                fewer.append({**row, "input-file(s)": ",".join(paths)})
            assert partings(stages, fewer), f"{name}: rules that no longer read {dep} went unseen"


def test_the_pins_stage_depends_on_all_that_is_parsed():
    parsed = {"params.yaml", "scales", "src/moalign/config.py", "workflow/rules/common.smk", "workflow/stage.sh"}
    assert dvc_stages()["pins"]["deps"] == parsed


def test_parameters_reach_a_job_through_its_pin_alone():
    """So dvc.yaml needs none: no stage has `params`, and no rule's parameter is a value of params.yaml."""
    assert all("params" not in stage for stage in yaml.safe_load((TOP / "dvc.yaml").read_text())["stages"].values())
    allowed = {"sources", "shard", "work", "launch", "teacher", "targets", "run", "still", "results"}
    allowed |= {"config", "out", "models"}  # of the miniature's models, which DVC has as files
    allowed |= {"study", "samples", "voters"}  # of the user study, which waits for people and is no stage of DVC's
    found = set()
    for path in (TOP / "workflow/rules").glob("*.smk"):
        for block in re.findall(r"^    params:\n((?:        .*\n)+)", path.read_text(), re.MULTILINE):
            found |= set(re.findall(r"^        (\w+)=", block, re.MULTILINE))
    assert found == allowed


def test_what_a_user_brings_is_a_dep_of_the_stage_that_reads_it():
    stages = dvc_stages()
    params = config.load(TOP / "params.yaml", scale="paper")
    for source in params.sources.values():
        assert below(source.annotations, stages["collect"]["deps"])
    for bench in params.benches.values():
        assert below(bench.prompts, stages["sample"]["deps"])


def test_every_shard_output_persists():
    """DVC deletes outs before a stage runs; Snakemake then could not keep finished shards."""
    for name, stage in yaml.safe_load((TOP / "dvc.yaml").read_text())["stages"].items():
        for out in stage["outs"] + stage.get("metrics", []):
            assert next(iter(out.values()))["persist"] is True, name


def test_profiles_name_rules_that_exist():
    known = set(
        re.findall(r"^rule (\w+):", "".join(p.read_text() for p in (TOP / "workflow/rules").glob("*.smk")), re.M)
    )
    for profile in (TOP / "local", TOP / "slurm"):
        if (profile / "config.yaml").exists():
            settings = yaml.safe_load((profile / "config.yaml").read_text())
            for key in ("set-resources", "set-threads"):
                assert set(settings.get(key, {})) <= known, f"{profile.name}: {key}"


@pytest.mark.parametrize("scale", ["miniature", "paper"])
def test_every_scale_has_a_graph(tmp_path, scale):
    shutil.copy(TOP / "params.yaml", tmp_path)
    for name in ("scales", "resources"):
        (tmp_path / name).symlink_to(TOP / name)
    if scale == "paper":  # stand-ins for what a user brings
        params = config.load(TOP / "params.yaml", scale=scale)
        brought = [row.annotations for row in params.sources.values()]
        for path in [*brought, *(bench.prompts for bench in params.benches.values())]:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_text("[]\n")
    done = snakemake(tmp_path, "-n", "--quiet", "rules", "--config", f"scale={scale}", "--", "all")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_shipped_models_are_what_their_sums_say():
    """The chain keys on these files: a model changed without them would rerun nothing."""
    folders = sorted((TOP / "resources/miniature").iterdir())
    assert len(folders) == 4
    for folder in folders:
        for line in (folder / "SHA256SUMS").read_text().splitlines():
            digest, name = line.split("  ")
            assert manifest.sha256(folder / name) == digest, f"{folder / name}: run `miniature_models` again"
    assert sum(path.stat().st_size for path in (TOP / "resources/miniature").rglob("*") if path.is_file()) < 40e6
