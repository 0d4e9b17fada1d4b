"""A SLURM cluster on loopback whose GPUs are names only, 8 on each node: `make slurm-up`, `make slurm-down`.

Debian's slurm-wlm and munge, started without systemd; root is needed. What it promises (64 CPUs, 1 TB, 8 H100) is
bookkeeping: jobs share the cores that there are. Memory is not enforced, for there are no cgroups.
"""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

STATE = Path("/var/lib/moalign-slurm")
SYSTEM = Path("/etc/slurm")  # where SLURM looks: SLURM_CONF does not reach Snakemake's inner srun
PACKAGES = ("slurm-wlm", "munge")
GPUS = 8
DAEMONS = ("slurmd", "slurmctld", "munged")  # in the order in which they are stopped
CONF = """\
ClusterName=moalign
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=16817
AuthType=auth/munge
AuthInfo=socket={state}/run/munged.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={state}/ctld
SlurmdSpoolDir={state}/d/%n
SlurmctldPidFile={state}/run/slurmctld.pid
SlurmdPidFile={state}/run/slurmd-%n.pid
SlurmctldLogFile={state}/log/slurmctld.log
SlurmdLogFile={state}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MinJobAge=600
JobRequeue=1
KillWait=10
EnforcePartLimits=ALL
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,requeue_delay=1
AccountingStorageType=accounting_storage/none
{nodes}
PartitionName=gpu-h100 Nodes=ALL MaxTime=4-0 State=UP PriorityTier=10
PartitionName=cpu Nodes=ALL Default=YES MaxTime=2-0 State=UP PriorityTier=10
PartitionName=preempt Nodes=ALL MaxTime=1-0 State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=1-0 State=UP PriorityTier=20
"""
NODE = """NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=64 Boards=1 SocketsPerBoard=1 \
CoresPerSocket=64 ThreadsPerCore=1 RealMemory=1000000 Gres=gpu:h100:{gpus} State=UNKNOWN"""


def refusal() -> str | None:
    """Why a cluster cannot be started here, or None."""
    if os.geteuid() != 0:
        return "starting SLURM needs root"
    ours = (SYSTEM / "slurm.conf").is_symlink() and (SYSTEM / "slurm.conf").readlink() == STATE / "slurm.conf"
    if (SYSTEM / "slurm.conf").exists() and not ours:
        return f"this machine has a SLURM of its own ({SYSTEM}/slurm.conf)"
    if not installed() and shutil.which("apt-get") is None:
        return f"{' and '.join(PACKAGES)} are not installed, and there is no apt-get"
    return None


def installed() -> bool:
    return all(shutil.which(name) for name in (*DAEMONS, "sbatch", "srun", "mknod"))


def install() -> str | None:
    """Debian's packages, where they are missing; what went wrong, or None."""
    if installed():
        return None
    quiet = {"env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, "capture_output": True, "text": True}
    subprocess.run(["apt-get", "update", "-qq"], **quiet, check=False)
    done = subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], **quiet)
    return None if done.returncode == 0 else f"apt-get could not install {', '.join(PACKAGES)}: {done.stderr[-300:]}"


def up(nodes: int = 1) -> None:
    """Start the daemons, one slurmd for each node, and wait until the nodes are idle."""
    if running():
        return
    down()
    host = socket.gethostname().split(".")[0]
    for name in ("run", "log", "ctld", "d"):
        (STATE / name).mkdir(parents=True, exist_ok=True)
    names = [f"node{index}" for index in range(nodes)]
    lines = [NODE.format(name=name, host=host, port=16818 + index, gpus=GPUS) for index, name in enumerate(names)]
    (STATE / "slurm.conf").write_text(CONF.format(host=host, state=STATE, nodes="\n".join(lines)))
    devices = f"{STATE}/run/gpu[0-{GPUS - 1}]"
    gres = f"NodeName={','.join(names)} Name=gpu Type=h100 File={devices} Flags=nvidia_gpu_env\n"
    (STATE / "gres.conf").write_text(gres)
    for index in range(GPUS):  # plain files are refused; these are /dev/null under other names
        subprocess.run(["mknod", STATE / f"run/gpu{index}", "c", "1", "3"], check=True)
    key = STATE / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    SYSTEM.mkdir(exist_ok=True)
    for name in ("slurm.conf", "gres.conf"):
        (SYSTEM / name).unlink(missing_ok=True)
        (SYSTEM / name).symlink_to(STATE / name)
    places = {"key-file": key, "socket": STATE / "run/munged.sock", "pid-file": STATE / "run/munged.pid"}
    places |= {"log-file": STATE / "log/munged.log", "seed-file": STATE / "munge.seed"}
    start("munged", "--force", *(f"--{name}={path}" for name, path in places.items()))
    start("slurmctld")
    for name in names:
        start("slurmd", "-N", name)
    deadline = time.monotonic() + 30
    while shell("sinfo", "--noheader", "--format=%T %D", "--partition=cpu") != f"idle {nodes}":
        if time.monotonic() > deadline:
            raise SystemExit(f"the nodes do not come up; see {STATE}/log\n{shell('sinfo', '--list-reasons')}")
        time.sleep(0.2)


def start(*command: str | Path) -> None:
    """Start a daemon, which goes into the background by itself."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command[0]} does not start: {done.stderr.strip() or done.stdout.strip()}")


def down() -> None:
    """Cancel what runs, stop the daemons, remove their files."""
    if running():
        shell("scancel", "--full", "--state=RUNNING", "--signal=KILL", f"--user={os.environ.get('USER', 'root')}")
        shell("scancel", f"--user={os.environ.get('USER', 'root')}")
    for name in DAEMONS:
        for process in pids(name):
            os.kill(process, signal.SIGTERM)
        deadline = time.monotonic() + 15
        while pids(name) and time.monotonic() < deadline:
            time.sleep(0.1)
    for name in ("slurm.conf", "gres.conf"):
        if (SYSTEM / name).is_symlink() and (SYSTEM / name).readlink().parent == STATE:
            (SYSTEM / name).unlink()
    shutil.rmtree(STATE, ignore_errors=True)


def pids(name: str) -> list[int]:
    """Processes of one of our daemons that are running."""
    found = []
    for path in (STATE / "run").glob(f"{name}*.pid"):
        with contextlib.suppress(OSError, ValueError):
            number = int(path.read_text())
            if (Path("/proc") / str(number) / "comm").read_text().strip() == name:
                found.append(number)
    return found


def running() -> bool:
    return all(pids(name) for name in DAEMONS)


def shell(*command: str) -> str:
    """What a command of SLURM says."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    if sys.argv[1:] not in (["up"], ["down"]):
        raise SystemExit("python tests/slurm/cluster.py up | down")
    if why := refusal() or (install() if sys.argv[1] == "up" else None):
        raise SystemExit(why)
    {"up": up, "down": down}[sys.argv[1]]()
    print(shell("sinfo") if sys.argv[1] == "up" else "SLURM is down")
