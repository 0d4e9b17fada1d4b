"""slurm/config.yaml on a real SLURM of one node (slurm/cluster.py), with a small chain under the real rules' names.

The first test is short; the others break the chain in every way that a cluster has, and are marked `faults`.
"""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import same_metrics
import yaml

from moalign import config
from moalign.stages import doctor

TOP = Path(__file__).parents[1]
HERE = TOP / "tests/slurm"
PATIENCE = 400  # seconds that a chain may take
PROFILE = yaml.safe_load((TOP / "slurm/config.yaml").read_text())

spec = importlib.util.spec_from_file_location("cluster", HERE / "cluster.py")
cluster = importlib.util.module_from_spec(spec)
spec.loader.exec_module(cluster)


@pytest.fixture(scope="module")
def slurm():
    """A cluster that is up; one that `make slurm-up` started stays."""
    if why := cluster.refusal() or cluster.install():
        pytest.skip(why)
    found = cluster.running()
    cluster.up()
    yield
    if not found:
        cluster.down()


@pytest.fixture
def chain(slurm, tmp_path):
    made = Chain(tmp_path)
    yield made
    made.stop()
    subprocess.run(["scancel", "--partition=gpu-h100,cpu,preempt,urgent"], capture_output=True)


class Chain:
    """The small chain in a folder, its shards there already, and a process of Snakemake upon it."""

    def __init__(self, folder: Path):
        self.folder, self.work, self.log = folder, folder / "work/run", folder / "output.log"
        self.work.mkdir(parents=True)
        (folder / "shards").mkdir()
        for index in range(3):
            (folder / f"shards/{index}.txt").write_text(f"{index}\n")
        self.process = None
        (folder / "slurm").symlink_to(TOP / "slurm")

    def tell(self, **files: float) -> None:
        for name, value in files.items():
            (self.work / name).write_text(str(value))

    def edit(self, **resources: object) -> None:
        """The profile, with other resources for the training."""
        if (self.folder / "slurm").is_symlink():
            (self.folder / "slurm").unlink()
            (self.folder / "slurm").mkdir()
        rows = {**PROFILE["set-resources"], "align_run": {**PROFILE["set-resources"]["align_run"], **resources}}
        (self.folder / "slurm/config.yaml").write_text(yaml.safe_dump({**PROFILE, "set-resources": rows}))

    def start(self, *targets: str) -> None:
        command = [sys.executable, "-m", "snakemake", "-s", HERE / "Snakefile", "--profile", "slurm", *targets]
        command += ["--slurm-init-seconds-before-status-checks", "2", "--latency-wait", "5"]
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        """SIGKILL, as a login node that goes down."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def end(self) -> int:
        """Wait for the end; its status."""
        try:
            return self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.stop()
            raise AssertionError(self.said()[-3000:]) from None

    def finish(self, *targets: str) -> dict:
        """Run to the end; what the training made."""
        self.start(*(targets or ("run/weights.json",)))
        assert self.end() == 0, self.said()[-3000:]
        return self.made()

    def made(self) -> dict:
        return json.loads((self.folder / "run/weights.json").read_text())

    def said(self) -> str:
        return self.log.read_text()

    def jobs(self) -> list[str]:
        """SLURM's numbers of the training's jobs, in the order of their submission."""
        return re.findall(r"submitted with SLURM jobid (\d+) \(log: \S*align_run", self.said())

    def starts(self) -> list[int]:
        """The step at which each start of the training began."""
        path = self.work / "started"
        return [int(line.split()[0]) for line in path.read_text().splitlines()] if path.exists() else []

    def step(self) -> int:
        path = self.work / "state.json"
        return json.loads(path.read_text())["step"] if path.exists() else 0

    def until(self, what) -> None:
        deadline = time.monotonic() + PATIENCE
        while not what():
            assert self.process.poll() is None, self.said()[-3000:]
            assert time.monotonic() < deadline, self.said()[-3000:]
            time.sleep(0.2)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict:
    """What the training makes where nothing goes wrong, without SLURM."""
    folder = tmp_path_factory.mktemp("expected")
    for index in range(3):
        (folder / f"{index}.txt").write_text(f"{index}\n")
    command = [sys.executable, HERE / "train.py", "work", "out.json", *(f"{index}.txt" for index in range(3))]
    subprocess.run(command, cwd=folder, check=True)
    return json.loads((folder / "out.json").read_text())


def control(job: str) -> str:
    """What SLURM knows of a job."""
    return subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True).stdout


def test_the_profile_as_it_stands_on_a_cluster(chain, expected):
    """An array of shards, a training with four GPUs in one task, a report; `moalign doctor` agrees."""
    for index in range(2):
        (chain.folder / f"shards/{index}.txt").unlink()
    chain.start("run/weights.json")
    chain.until(chain.jobs)
    found = control(chain.jobs()[0])
    assert "TresPerJob=gres:gpu:h100:4" in found
    assert re.search(r"NumNodes=1(-1)? NumCPUs=32 NumTasks=1 CPUs/Task=32", found)
    assert "Requeue=1" in found
    assert "Partition=gpu-h100" in found
    assert re.search(r"JobName=moalign_\S+", found)
    assert chain.end() == 0, chain.said()[-3000:]
    assert chain.made() == expected
    assert (chain.work / "started").read_text() == "0 0,1,2,3\n"
    assert re.search(r"Submitted array job .* The individual task IDs are 1-2", chain.said())

    site = doctor.Site(TOP, config.load(TOP / "params.yaml", scale="paper"), PROFILE, "slurm")
    assert all(right for right, *_ in doctor.scheduler(site))
    assert all(right for right, *_ in doctor.partitions(site))
    wrong = {**PROFILE, "set-resources": {"align_run": {"slurm_partition": "nope"}, "teacher": {"gpu": 9}}}
    found = {right: line for right, line, _ in doctor.partitions(doctor.Site(TOP, site.params, wrong, "slurm"))}
    assert "nope" in str([line for right, line, _ in doctor.partitions(doctor.Site(TOP, site.params, wrong, "slurm"))])
    assert set(found) == {True, False}


def test_an_array_is_never_left_waiting_for_members_that_may_not_come():
    """An array is submitted when all of its ready shards were handed over, of which there may be `jobs` at a time."""
    params = config.load(TOP / "params.yaml", scale="paper")
    backbones = {params.runs[run].backbone for run, _ in params.trainings()}
    shards = params.subset.shards + params.synth.shards
    assert PROFILE["jobs"] >= shards * max(len(backbones), len(params.targets()))
    rules = re.findall(r"^rule (\w+_shard):", (TOP / "workflow/rules/data.smk").read_text(), re.MULTILINE)
    assert set(rules) <= set(PROFILE["slurm-array-jobs"].split(","))


@pytest.mark.faults
def test_more_shards_than_run_at_a_time(chain):
    for path in (chain.folder / "shards").iterdir():
        path.unlink()
    chain.start("run/weights.json", "--config", "shards=20")
    assert chain.end() == 0, chain.said()[-3000:]
    assert len(re.findall("Submitted array job", chain.said())) == 1


@pytest.mark.faults
def test_a_job_that_is_cancelled_is_submitted_again_and_goes_on(chain, expected):
    chain.tell(pace=0.3)
    chain.start("run/weights.json")
    chain.until(lambda: chain.step() > 3)
    subprocess.run(["scancel", chain.jobs()[0]], check=True)
    assert chain.end() == 0, chain.said()[-3000:]
    assert chain.made() == expected
    assert len(chain.jobs()) == 2
    first, second = chain.starts()
    assert first == 0
    assert second > 3


@pytest.mark.faults
def test_a_training_told_to_stop_has_time_for_its_checkpoint(chain, expected):
    """The job stays until the training has ended: between SLURM and it no shell dies first."""
    chain.tell(pace=0.3, linger=5)
    chain.start("run/weights.json")
    chain.until(lambda: chain.step() > 3)
    [job] = chain.jobs()
    subprocess.run(["scancel", "--signal=TERM", job], check=True)
    chain.until(lambda: "JobState=RUNNING" not in control(job))
    assert "stopped after step" in (chain.folder / "logs/align.log").read_text()
    chain.tell(pace=0.01)
    assert chain.end() == 0, chain.said()[-3000:]
    assert chain.made() == expected


@pytest.mark.faults
def test_a_preempted_job_is_requeued_and_goes_on(chain, expected):
    """The same job, not another: it waits two minutes in the queue, as SLURM has it."""
    chain.edit(slurm_partition="preempt")
    chain.tell(pace=0.3)
    chain.start("run/weights.json")
    chain.until(lambda: chain.step() > 3)
    urgent = ["sbatch", "--partition=urgent", "--gpus=8", "--time=1", "--output=/dev/null", "--wrap", "sleep 5"]
    subprocess.run(urgent, check=True, capture_output=True)
    assert chain.end() == 0, chain.said()[-3000:]
    assert chain.made() == expected
    [job] = chain.jobs()
    assert re.search("Restarts=1", control(job))
    assert len(chain.starts()) == 2
    assert chain.starts()[1] > 3


@pytest.mark.faults
def test_a_wall_time_that_is_too_short_grows(chain, expected):
    chain.edit(runtime="1 * attempt", slurm_extra="'--signal=TERM@15 --open-mode=append'")
    chain.tell(pace=2)
    chain.start("run/weights.json")
    chain.until(lambda: len(chain.jobs()) == 2)
    assert "TimeLimit=00:01:00" in control(chain.jobs()[0])
    assert "TimeLimit=00:02:00" in control(chain.jobs()[1])
    chain.until(lambda: len(chain.starts()) == 2)
    chain.tell(pace=0.01)
    assert chain.end() == 0, chain.said()[-3000:]
    assert chain.made() == expected
    assert chain.starts()[1] > 0


@pytest.mark.faults
def test_a_job_that_fails_twice_is_tried_a_third_time_and_no_fourth(chain, expected):
    chain.tell(fail=2)
    assert chain.finish() == expected
    assert len(chain.jobs()) == len(chain.starts()) == 3
    (chain.folder / "run/weights.json").unlink()
    (chain.work / "started").unlink()
    chain.tell(fail=9)
    chain.start("run/weights.json")
    assert chain.end() != 0
    assert len(chain.starts()) == 3
    assert "train: told to fail" in chain.said()


@pytest.mark.faults
def test_a_killed_snakemake_leaves_jobs_that_are_found_by_name_and_a_second_start_ends(chain, expected):
    chain.tell(pace=0.3)
    chain.start("run/weights.json")
    chain.until(lambda: chain.step() > 3)
    chain.stop()
    time.sleep(1)
    orphans = subprocess.run(["sh", "-c", ORPHANS], capture_output=True, text=True, check=True).stdout.split()
    assert orphans == chain.jobs()
    subprocess.run(["sh", "-c", f"{ORPHANS} | xargs -r scancel"], check=True)
    chain.tell(pace=0.01)
    assert chain.finish() == expected
    assert len(chain.starts()) == 2
    assert chain.starts()[1] > 3


ORPHANS = re.search(r"^(squeue .*?) \| xargs -r scancel", (TOP / "docs/cluster.md").read_text(), re.MULTILINE)[1]


@pytest.mark.faults
def test_a_partition_that_slurm_refuses_is_said_in_its_words_and_cured_in_the_profile(chain, expected):
    chain.edit(slurm_partition="nope")
    chain.start("run/weights.json")
    assert chain.end() != 0
    assert "invalid partition specified: nope" in chain.said()
    assert not chain.starts()
    chain.edit()
    assert chain.finish() == expected


def chain_here(folder: Path, profile: dict, *arguments: str) -> str:
    """The real chain in a folder, through a profile; what Snakemake said."""
    shutil.copy(TOP / "params.yaml", folder)
    shutil.copytree(TOP / "scales", folder / "scales", dirs_exist_ok=True)
    (folder / "resources").symlink_to(TOP / "resources")
    (folder / "slurm").mkdir()
    (folder / "slurm/config.yaml").write_text(yaml.safe_dump(profile))
    command = [sys.executable, "-m", "snakemake", "-s", TOP / "Snakefile", "--profile", "slurm", *arguments]
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "WANDB_MODE": "disabled"}
    ended = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-3000:]
    return ended.stdout + ended.stderr


@pytest.mark.faults
def test_the_smoke_chain_ends_with_the_metrics_in_git(slurm, tmp_path):
    """Every rule, as docs/cluster.md has it; two cores at a time."""
    subprocess.run(["scontrol", "update", "PartitionName=cpu", "MaxCPUsPerNode=2"], check=True)
    arguments = ("--config", "scale=smoke", "--set-resources", "align_run:runtime=60", "--", "all")
    said = chain_here(tmp_path, PROFILE, *arguments)
    subprocess.run(["scontrol", "update", "PartitionName=cpu", "MaxCPUsPerNode=UNLIMITED"], check=True)
    assert len(re.findall(r"submitted with SLURM jobid|Submitted array job", said)) > 20
    found, expected = (json.loads((top / "results/smoke/metrics.json").read_text()) for top in (tmp_path, TOP))
    assert same_metrics.differences(expected, found) == []


@pytest.fixture
def two_nodes():
    if why := cluster.refusal() or cluster.install():
        pytest.skip(why)
    found = cluster.running()
    cluster.down()
    cluster.up(nodes=2)
    yield
    cluster.down()
    if found:
        cluster.up()


@pytest.mark.faults
def test_a_training_on_two_nodes(two_nodes, tmp_path):
    """With the row of docs/cluster.md, one torchrun on each; stage 1 ends as in one process."""
    row = re.search(r"align_run: {<<: \*four, (.*)}", (TOP / "docs/cluster.md").read_text())[1]
    rows = PROFILE["set-resources"]
    rows = {**rows, "teacher": {**rows["teacher"], **yaml.safe_load(f"{{{row}}}")}}
    (tmp_path / "scales").mkdir()
    (tmp_path / "scales/pair.yaml").write_text("base: smoke\nmachine: {processes: 2}\n")
    said = chain_here(tmp_path, {**PROFILE, "set-resources": rows}, "--config", "scale=pair", "--", "teacher")
    job = re.search(r"submitted with SLURM jobid (\d+) \(log: \S*teacher", said)[1]
    assert re.search("NumNodes=2 .*NumTasks=2", control(job))
    header = json.loads((tmp_path / "results/pair/teacher/manifest.jsonl").read_text().splitlines()[0])
    assert header["notes"]["processes"] == 2
    expected = json.loads((TOP / "results/smoke/metrics.json").read_text())["teacher"]["validation"]
    assert header["notes"]["validation"] == pytest.approx(expected, rel=0.01)
