"""What a run needs of a machine or a cluster, before it is started: one line for each, ok or problem, with its cure.

    moalign doctor                                  as `snakemake --profile local all` would find it
    moalign doctor --profile slurm                  from the login node
    srun -p gpu-h100 --gpus=h100:4 moalign doctor   on a GPU node: its GPUs, driver and NCCL

Exit status 0 where nothing is a problem. Nothing is queued, nothing is changed but a probe file that is removed again.
"""

import fcntl
import math
import netrc
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from moalign import config, sizes
from moalign.bench import prompts
from moalign.bench.external import OFFLINE
from moalign.config import Params
from moalign.errors import Problem
from moalign.progress import say

SHARED = re.compile("nfs|lustre|gpfs|beegfs|ceph|wekafs|gluster|pvfs|orangefs|panfs|9p|afs|fuse|virtiofs|cifs|smb")
PATIENCE = 60  # seconds that a command may take
IMPORTS = 600  # and the imports of a rater, gigabytes that a cold disk gives slowly
MIN_JOB_AGE = 240  # seconds; Snakemake asks for the state of a job every 3 minutes at the latest
KEPT = 3  # checkpoints of a training that runs: two, and the best

Finding = tuple[bool, str, str]  # all right?, what was found, what to do where it is not


@dataclass(frozen=True)
class Site:
    """What is looked at: the repo's folder, its parameters, and the profile that jobs would go by."""

    top: Path
    params: Params
    profile: dict
    name: str

    @property
    def slurm(self) -> bool:
        return self.profile.get("executor") == "slurm"


def run(profile: str = "local", params: str = "params.yaml", scale: str | None = None, raters: bool = False) -> int:
    """Print a line for each need; 0 where all are met, else 1. `raters`: of the benchmarks' own raters alone."""
    path = Path(params)
    try:
        loaded = config.load(path, **({"scale": scale} if scale else {}))
        settings = config.read_yaml(path.parent / profile / "config.yaml")
    except Problem as problem:
        show("params", (False, str(problem), "correct it; the other checks depend on it"))
        return 1
    site = Site(path.parent, loaded, settings, profile)
    trainings = len(loaded.trainings())
    show("params", (True, f"{path} at scale {loaded.scale}: {trainings} trainings, {len(loaded.rows())} rows", ""))
    problems = 0
    for name, check in ({"raters": ask_raters} if raters else CHECKS).items():
        for finding in check(site):
            problems += not finding[0]
            show(name, finding)
    print(f"{problems} problem{'s' * (problems != 1)}" if problems else "nothing stands in the way")
    return int(problems > 0)


def show(name: str, finding: Finding) -> None:
    """One line, and one for the cure."""
    right, found, cure = finding
    print(f"{'ok' if right else 'problem':8} {name:12} {found}", flush=True)
    if cure and not right:
        print(f"{'':8} {'':12} cure: {cure}", flush=True)


# --- the scheduler -------------------------------------------------------------------------------------------------


def scheduler(site: Site) -> Iterator[Finding]:
    """SLURM answers, and forgets no finished job before Snakemake has asked for it."""
    if not site.slurm:
        yield True, f"none needed: {site.name}/config.yaml runs jobs on this machine", ""
        return
    if shutil.which("sbatch") is None:
        yield False, "sbatch is not on the PATH", "log in to a node from which jobs are submitted, or load its module"
        return
    found = ask("scontrol", "ping")
    if found.returncode or " UP" not in found.stdout:
        yield False, said(found) or "SLURM's controller does not answer", "ask the site; `sinfo` should list partitions"
        return
    yield True, f"{ask('sinfo', '--version').stdout.strip()}, {' '.join(found.stdout.split())}", ""
    age = re.search(r"MinJobAge\s*=\s*(\d+)", ask("scontrol", "show", "config").stdout)
    if site.profile.get("slurm-status-command") == "squeue" and age and int(age[1]) < MIN_JOB_AGE:
        yield (
            False,
            f"squeue forgets a finished job after {age[1]} s, and Snakemake may ask only after {MIN_JOB_AGE}",
            f"set slurm-status-command: sacct in {site.name}/config.yaml",
        )


def partitions(site: Site) -> Iterator[Finding]:
    """Every request that the profile makes would be taken: partition, account, GPUs, memory, hours of the last try."""
    if not site.slurm or shutil.which("sbatch") is None:
        return
    requests: dict[tuple[str, ...], list[str]] = {}
    default, rows = site.profile.get("default-resources", {}), site.profile.get("set-resources", {})
    for rule, row in {"other rules": {}, **rows}.items():
        requests.setdefault(request({**default, **row}, site.profile.get("retries", 0) + 1), []).append(rule)
    for flags, rules in requests.items():
        found = ask("sbatch", "--test-only", *flags, "--wrap", "true")
        what = f"{' '.join(flags)} ({', '.join(rules)})"
        if found.returncode:
            cure = (
                f"edit the block at the top of {site.name}/config.yaml; `sinfo -o '%P %G %l %m %c'` lists what there is"
            )
            yield False, f"{what}: {said(found)}", cure
        else:
            yield True, what, ""


def request(resources: dict, attempt: int) -> tuple[str, ...]:
    """Options of sbatch for a row of a profile, at the given try."""
    values = {key: at(value, attempt) for key, value in resources.items()}
    names = {"slurm_partition": "partition", "slurm_account": "account", "qos": "qos", "constraint": "constraint"}
    names |= {"nodes": "nodes", "cpus_per_task": "cpus-per-task", "mem_mb": "mem", "runtime": "time"}
    flags = [f"--{flag}={values[key]}" for key, flag in names.items() if values.get(key)]
    if values.get("gpu"):
        flags.append(
            f"--gpus={values['gpu_model']}:{values['gpu']}" if "gpu_model" in values else f"--gpus={values['gpu']}"
        )
    return tuple(flags)


def at(value: object, attempt: int) -> object:
    """A number or a text of a profile; a product with `attempt` at that try."""
    terms = str(value).replace(" ", "").split("*")
    if "attempt" not in terms:
        return value
    try:
        return math.prod(attempt if term == "attempt" else int(term) for term in terms)
    except ValueError:
        raise Problem(f"set-resources: {value!r} is neither a value nor a product with `attempt`") from None


# --- the machine ---------------------------------------------------------------------------------------------------


def gpus(site: Site) -> Iterator[Finding]:
    """This machine's GPUs: as many as one training has ranks, seen by torch, and in touch with each other."""
    wanted = site.params.machine.processes
    if site.params.machine.device == "cpu":
        yield True, "none needed: machine.device is cpu", ""
        return
    if site.slurm and "SLURM_JOB_ID" not in os.environ:
        row = site.profile.get("set-resources", {}).get("align_run", {})
        asked = " ".join(request({**site.profile.get("default-resources", {}), **row}, 1))
        yield True, f"not looked at from here; on a GPU node: srun {asked} moalign doctor", ""
        return
    if shutil.which("nvidia-smi") is None:
        cure = "run on a GPU node, or set machine.device: cpu at a small scale"
        yield False, "nvidia-smi is not on the PATH, and machine.device is cuda", cure
        return
    found = ask("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    if found.returncode:
        yield False, f"nvidia-smi: {said(found)}", "the driver does not answer; ask whoever runs this machine"
        return
    import torch

    cards, version = torch.cuda.device_count(), f"driver {found.stdout.split()[0]}, torch's CUDA {torch.version.cuda}"
    if not cards:
        yield False, f"{version}: torch sees no GPU", "CUDA_VISIBLE_DEVICES hides them, or the driver is too old"
        return
    names = ", ".join(dict.fromkeys(torch.cuda.get_device_name(card) for card in range(cards)))
    cure = f"ask for {wanted}, or set machine.processes to what there is (a training then takes longer)"
    yield cards >= wanted, f"{cards} ({names}), and a training has {wanted} ranks; {version}", cure
    yield torch.cuda.is_bf16_supported(), "they have bf16", "set align.precision and teacher.precision: fp32"
    yield from nccl(min(wanted, cards))


def nccl(ranks: int) -> Iterator[Finding]:
    """The ranks of a training can add numbers up, started as a training is."""
    torchrun = str(Path(sys.executable).parent / "torchrun")
    found = ask(torchrun, "--standalone", "--nproc-per-node", str(ranks), __file__, "add_up")
    version = re.search(r"NCCL \S+", found.stdout)
    if found.returncode or version is None:
        cure = "NCCL_DEBUG=INFO says more; NCCL_SOCKET_IFNAME and NCCL_P2P_DISABLE=1 are the usual cures"
        yield False, f"NCCL between {ranks} ranks: {said(found)}", cure
    else:
        yield True, f"{version[0]} adds up between {ranks} ranks", ""


def add_up() -> None:
    """One rank of `nccl`: raises where the sum over all ranks is wrong."""
    import torch
    from torch import distributed

    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.cuda.set_device(rank)
    distributed.init_process_group("nccl")
    total = torch.full((1 << 20,), float(rank), device="cuda")
    distributed.all_reduce(total)
    assert total.eq(ranks * (ranks - 1) / 2).all(), "the ranks' sum is wrong"
    if rank == 0:
        print("NCCL " + ".".join(map(str, torch.cuda.nccl.version())))
    distributed.destroy_process_group()


# --- files ---------------------------------------------------------------------------------------------------------


def folders(site: Site) -> Iterator[Finding]:
    """results/ and work/ can be written and locked, and the other nodes see them."""
    for name in ("results", "work"):
        folder = standing(site.top / name)
        kind = file_system(folder)
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".doctor") as probe:
                probe.write(b"0" * 4096)
                probe.flush()
                os.fsync(probe.fileno())
                fcntl.flock(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            cure = "clone where there is room, the right to write and file locks (of Lustre: mounted with flock)"
            yield False, f"{name}: {kind}: {error.strerror}", cure
            continue
        alone = not site.slurm or shutil.which("sinfo") is None or others() == 0
        where = (
            "this machine alone uses it" if alone else "nodes see it" if SHARED.search(kind) else "a disk of this node"
        )
        cure = "clone onto a file system that all nodes share; `work` may be a link to another"
        yield alone or bool(SHARED.search(kind)), f"{name}: {kind}, can be written and locked; {where}", cure


def others() -> int:
    """Nodes of the cluster beside this one."""
    names = set(ask("sinfo", "--noheader", "--Node", "--format=%N").stdout.split())
    return len(names - {socket.gethostname().split(".")[0]})


def standing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.resolve()
    while not path.exists():
        path = path.parent
    return path


def file_system(path: Path) -> str:
    """Type of the file system that a path lies on."""
    mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    inside = [(len(at), kind) for at, kind in mounts if path.is_relative_to(at.replace("\\040", " "))]
    return max(inside)[1] if inside else "unknown file system"


def space(site: Site) -> Iterator[Finding]:
    """Room for what the scale still lacks."""
    needs, there = bytes_needed(site.params, site.top), 0
    for name in ("results", "work"):
        found = (site.top / name / site.params.scale).rglob("*")
        there += sum(path.lstat().st_size for path in found if path.is_file())
    free = shutil.disk_usage(standing(site.top / "results")).free
    need = sum(needs.values())
    largest = ", ".join(f"{name} {size(needs[name])}" for name in sorted(needs, key=needs.get, reverse=True)[:4])
    found = f"about {size(need)} ({largest}), {size(there)} of them there; {size(free)} free"
    cure = "clone where there is room (`work` may be a link to elsewhere), or set fewer runs, backbones or clips"
    yield free >= need - there, found, cure


def bytes_needed(params: Params, top: Path = Path()) -> dict[str, int]:
    """Artifact -> bytes at its largest, all trainings at once: from the sizes in params.yaml, good to a third or so."""
    clips = {"real": params.subset.clips, "synth": params.synth.clips}
    total = sum(clips.values())
    needs = {"clips": total * sizes.clip(params), "flow": total * sizes.flow(params)}
    drawn = params.align.steps * params.align.batch * len(params.seeds)
    trained = min(drawn, sum(clips[kind] for kind in params.align.train_on))
    for name in dict.fromkeys(params.runs[run].backbone for run, _ in params.trainings()):
        needs[f"latents of {name}"] = trained * (sizes.latent(params, name) + sizes.prompt(params.backbones[name]))
    for name, target in params.targets():
        needs[f"targets {target} of {name}"] = trained * sizes.target(params, name, target)
    models = [4 * sizes.weights(params.backbones[params.runs[run].backbone]) for run, _ in params.trainings()]
    needs["runs"] = sum(models)
    needs["checkpoints"] = sum(models) * 3 * KEPT  # weights and Adam's two moments
    needs["samples"] = 0
    for run, bench, _ in params.rows():
        row = params.backbones[params.runs[run].backbone]
        needs["samples"] += videos_of(params.benches[bench], top) * sizes.video(row)
    return {name: int(need) for name, need in needs.items()}


def videos_of(bench: config.Bench, top: Path) -> int:
    """How many videos a bench asks of a run; none where its prompts are not here yet."""
    paths = {name: str(top / path) for name in ("prompts", "extended") if (path := getattr(bench, name))}
    if not all(Path(path).is_file() for path in paths.values()):
        return 0
    return len(prompts.plan(prompts.load(bench.model_copy(update=paths))))


def weights(site: Site) -> Iterator[Finding]:
    """`moalign weights check`, in brief; it hashes what it finds."""
    say("doctor: weights are hashed, which takes as long as reading them")
    command = ["-m", "moalign", "weights", "check", "--params", str(site.top / "params.yaml")]
    found = subprocess.run([sys.executable, *command, "--scale", site.params.scale], stdout=subprocess.PIPE, text=True)
    last = found.stdout.strip().splitlines()[-1:] or ["the check ended without a word"]
    wrong = re.findall(r"^(?:missing|different) +(\S+)", found.stdout, re.MULTILINE)
    cure = f"`moalign weights check --scale {site.params.scale}` says how to fetch them"
    yield found.returncode == 0, "; ".join([*last, *wrong]), cure


# --- the rest ------------------------------------------------------------------------------------------------------


def remotes(site: Site) -> Iterator[Finding]:
    """DVC's remotes can be reached."""
    listed = ask(sys.executable, "-m", "dvc", "config", "--list", cwd=site.top)
    if listed.returncode:
        yield False, f"dvc: {said(listed)}", "this folder should be a clone; `dvc status` says more"
        return
    urls = dict(re.findall(r"^remote\.(.+)\.url=(.+)$", listed.stdout, re.MULTILINE))  # the clone's own come last
    if not urls:
        yield True, "none: artifacts stay in this clone (README, With DVC)", ""
    for name, url in urls.items():
        found = ask(sys.executable, __file__, "reach", name, cwd=site.top)
        yield (
            found.returncode == 0,
            f"{name}: {url}{'' if found.returncode == 0 else f': {said(found)}'}",
            f"`dvc remote modify --local {name} ...` sets keys and addresses; `dvc push -r {name}` is what must work",
        )


def reach(name: str) -> None:
    """Raises, in a process that can be given up, where a remote cannot be reached."""
    from dvc.repo import Repo

    remote = Repo().cloud.get_remote(name)
    files, path = remote.fs, remote.path
    if files.protocol in ("s3", "gs", "azure"):
        path = path.split("/")[0]
        if not files.exists(path):
            raise Problem(f"no bucket {path}")
        return
    while not files.exists(path) and files.parent(path) != path:  # the first push makes the folder
        path = files.parent(path)
    if files.protocol == "local" and not os.access(path, os.W_OK):
        raise Problem(f"{path} cannot be written")


def wandb(site: Site) -> Iterator[Finding]:
    """The mode, and for `online` a key and a server that answers."""
    mode = os.environ.get("WANDB_MODE", site.params.wandb.mode)
    if mode != "online":
        yield True, f"{mode}{', curves below work/ until `wandb sync`' if mode == 'offline' else ''}", ""
        return
    url = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    try:
        key = os.environ.get("WANDB_API_KEY") or netrc.netrc().authenticators(url.hostname)
    except (OSError, netrc.NetrcParseError):
        key = None
    if not key:
        yield False, "online, and no key is set", "`wandb login`, or set wandb.mode: offline"
        return
    try:
        socket.create_connection((url.hostname, url.port or 443), timeout=10).close()
        yield True, f"online, {url.hostname} answers", ""
    except OSError as error:
        yield False, f"online, and {url.hostname} does not answer: {error}", "set wandb.mode: offline; sync later"


# --- the benchmarks' own raters ---------------------------------------------------------------------------------------

DETECTRON2 = "detectron2, which no package index has: build it there, or leave the dimension out"
VBENCH = {  # dimension -> what else it needs, and terms of what it loads that are not Apache's or MIT's
    "subject_consistency": "",
    "background_consistency": "",
    "temporal_flickering": "",
    "motion_smoothness": "AMT is CC BY-NC",
    "dynamic_degree": "",
    "aesthetic_quality": "",
    "imaging_quality": "pyiqa is CC BY-NC-SA",
    "object_class": DETECTRON2,
    "multiple_objects": DETECTRON2,
    "human_action": "",
    "color": DETECTRON2,
    "spatial_relationship": DETECTRON2,
    "scene": "",
    "appearance_style": "",
    "temporal_style": "asks the network for a vocabulary when it is imported",
    "overall_consistency": "asks the network for a vocabulary when it is imported",
}
VBENCH2 = "import flash_attn, mmcv, mmdet, torch, transformers"  # what stops most of its dimensions where it lacks
VIDEOPHY = (  # what their inference scripts import, peft and transformers in versions that go together
    "import accelerate, decord, einops, h5py, icecream, pandas, sentencepiece, torch;"
    " from peft import LoraConfig, get_peft_model;"
    " from transformers.models.llama.tokenization_llama import LlamaTokenizer;"
    " from transformers.models.clip.image_processing_clip import CLIPImageProcessor"
)


def ask_raters(site: Site) -> Iterator[Finding]:
    """Each rater's environment imports what it needs; checkouts and checkpoints are there."""
    if not site.params.raters:
        yield True, f"none is asked at scale {site.params.scale}", ""
    for name, row in site.params.raters.items():
        python = str(site.top / row.python)
        if shutil.which(python) is None:
            made = "make it by docs/raters.md" if name == "vbench2" else f"make rater-{name.removesuffix('2')}"
            yield False, f"{name}: {row.python}: no such interpreter", f"{made}, or name yours in raters.{name}.python"
            continue
        for kind, path in (("code", row.code), ("weights", row.weights)):
            if path and not (site.top / path).is_dir():
                yield (
                    False,
                    f"{name}: {path}: no such folder",
                    f"docs/raters.md says what to put there (raters.{name}.{kind})",
                )
        wanted = {"": VBENCH2 if name == "vbench2" else VIDEOPHY}
        if name == "vbench":
            wanted = {dimension: f"import vbench.{dimension}" for dimension in VBENCH}
        for dimension, code in wanted.items():
            offline = (f"{key}={value}" for key, value in OFFLINE.items())
            found = ask("env", *offline, python, "-W", "ignore", "-c", code, patience=IMPORTS)
            what, remark = f"{name} {dimension}".rstrip(), VBENCH.get(dimension, "")
            if found.returncode == 0:
                yield True, f"{what}{f' ({remark})' if remark and remark != DETECTRON2 else ''}", ""
            else:
                cure = remark if remark and "CC BY" not in remark else f"install it in that environment ({row.python})"
                yield False, f"{what}: {said(found)}", cure


CHECKS: dict[str, Callable[[Site], Iterator[Finding]]] = {
    "scheduler": scheduler,
    "partitions": partitions,
    "GPUs": gpus,
    "folders": folders,
    "space": space,
    "weights": weights,
    "remotes": remotes,
    "wandb": wandb,
}


def ask(*command: str, cwd: Path | None = None, patience: int = PATIENCE) -> subprocess.CompletedProcess:
    """A command that must end soon; its words, whatever came of it."""
    try:
        return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=patience)
    except (OSError, subprocess.TimeoutExpired) as error:
        late = isinstance(error, subprocess.TimeoutExpired)
        return subprocess.CompletedProcess(command, 1, "", f"no answer in {patience} s" if late else str(error))


def said(found: subprocess.CompletedProcess) -> str:
    """The last line that a command had to say, of an error where one is named."""
    lines = [line.strip() for line in (found.stderr or found.stdout).splitlines() if line.strip()]
    lines = [line for line in lines if "rror" in line] or lines
    return lines[-1] if lines else f"ended with status {found.returncode}"


def size(count: float) -> str:
    """Bytes, readable."""
    for unit, limit in (("TB", 1e12), ("GB", 1e9)):
        if count >= limit:
            return f"{count / limit:.1f} {unit}"
    return f"{count / 1e6:.0f} MB"


if __name__ == "__main__":  # in processes of their own
    {"add_up": add_up, "reach": reach}[sys.argv[1]](*sys.argv[2:])
