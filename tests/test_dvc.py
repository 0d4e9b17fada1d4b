"""DVC's memory, whole: `make record` after a run, three kinds of remote, a push from one clone and a pull in another.

The outputs are placeholders that Snakemake believes in; sshd and an S3 server run on loopback. (`make test-faults`)
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_workflow import SCALE, TOP, summary

BIN = Path(sys.executable).parent
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1"}
IDENTITY = {f"GIT_{who}_{what}": "nobody" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ENV = {**os.environ, **KEYS, **IDENTITY, "PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONDONTWRITEBYTECODE": "1"}

pytestmark = pytest.mark.faults


def run(folder: Path, *command: str | Path, fails: bool = False) -> str:
    """A command's words; it must end well, or badly where it `fails`."""
    done = subprocess.run(command, cwd=folder, env=ENV, capture_output=True, text=True, timeout=300)
    assert (done.returncode != 0) == fails, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert time.monotonic() < deadline, f"nothing listens on {port}"
        time.sleep(0.1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A clone of these sources in which the smoke chain has run, as far as Snakemake can tell; DVC knows nothing."""
    folder = tmp_path_factory.mktemp("dvc") / "first"
    for name in run(TOP, "git", "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
        if (TOP / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(TOP / name, folder / name)
    (folder / "dvc.lock").unlink(missing_ok=True)
    run(folder, "git", "init", "-q")
    run(folder, BIN / "snakemake", "--profile", "local", "pins")
    for row in summary(folder):
        path = folder / row["output_file"]
        if row["rule"] == "pin":
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{row['output_file']}, a placeholder\n")
    run(folder, "make", "-o", "env", "-o", ".venv/installed", f"BIN={BIN}", "restore")
    return folder


def record(folder: Path, fails: bool = False) -> str:
    return run(folder, sys.executable, "workflow/record.py", fails=fails)


def test_only_stages_that_are_current_are_recorded(clone):
    params = clone / "params.yaml"
    before = params.read_text()
    row = "moalign: {target: motion, loss: soft_trd, lam: 0.5, tau: 10.0}"
    assert row in before
    params.write_text(before.replace(row, row.replace("10.0", "5.0")))
    said = record(clone)
    params.write_text(before)
    [recorded] = [line for line in said.splitlines() if line.startswith("recorded in dvc.lock: ")]
    left = {line.split(":")[0] for line in said.splitlines() if ": not recorded; " in line}
    assert left == {"pins", "align", "sample", "bench", "report"}
    assert {"flow", "encode", "teacher", "targets"} <= set(recorded.removeprefix("recorded in dvc.lock: ").split(", "))
    assert "align:" not in (clone / "dvc.lock").read_text()

    assert "not recorded" not in record(clone)
    assert "up to date" in run(clone, BIN / "dvc", "status")


def test_a_second_dvc_at_the_same_time_is_told_so(clone):
    holder = "from dvc.repo import Repo\nwith Repo().lock:\n print('held', flush=True)\n import time; time.sleep(60)\n"
    with subprocess.Popen(
        [sys.executable, "-c", holder], cwd=clone, env=ENV, stdout=subprocess.PIPE, text=True
    ) as held:
        assert held.stdout.readline() == "held\n"
        said = record(clone, fails=True)
        held.kill()
    assert "another dvc is at work here" in said


@pytest.fixture(scope="module")
def sshd(tmp_path_factory):
    """A real sshd on loopback, with keys of its own; DVC's options for it."""
    if os.geteuid() != 0 or not Path("/usr/sbin/sshd").exists():
        pytest.skip("needs root and Debian's openssh-server")
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    for name in ("host", "user"):
        run(folder, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name)
    lines = [f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {folder}/host", f"PidFile {folder}/pid"]
    lines += [f"AuthorizedKeysFile {folder}/user.pub", "PermitRootLogin prohibit-password", "StrictModes no"]
    (folder / "config").write_text("\n".join([*lines, "UsePAM no", "Subsystem sftp internal-sftp"]) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", folder / "config"], stderr=log)
    wait_for(port)
    yield f"ssh://root@127.0.0.1:{port}{folder}/store", {"keyfile": str(folder / "user")}
    server.kill()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """A server that speaks S3, with a bucket; DVC's options for it."""
    server = shutil.which("moto_server", path=ENV["PATH"])
    if server is None:
        pytest.skip("needs moto_server (pip install 'moto[server]')")
    import botocore.session

    port = free_port()
    with open(tmp_path_factory.mktemp("s3") / "log", "w") as log:
        process = subprocess.Popen([server, "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log)
    wait_for(port)
    url = f"http://127.0.0.1:{port}"
    client = botocore.session.get_session().create_client(
        "s3",
        endpoint_url=url,
        region_name=KEYS["AWS_DEFAULT_REGION"],
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket="moalign")
    yield "s3://moalign/store", {"endpointurl": url}
    process.kill()


@pytest.fixture
def remote(request, tmp_path):
    """URL and options of a remote of the given kind."""
    return (str(tmp_path / "store"), {}) if request.param == "local" else request.getfixturevalue(request.param)


def add(folder: Path, url: str, options: dict[str, str]) -> None:
    """As the README has it: the remote's address in git, keys and ports in the clone alone."""
    run(folder, BIN / "dvc", "remote", "add", "--local", "--force", "-d", "store", url)
    for key, value in options.items():
        run(folder, BIN / "dvc", "remote", "modify", "--local", "store", key, value)


@pytest.mark.parametrize("remote", ["local", "sshd", "s3"], indirect=True)
def test_what_one_clone_pushes_a_fresh_one_pulls(clone, remote, tmp_path):
    record(clone)
    run(clone, "git", "add", "-A")
    run(clone, "git", "commit", "-q", "--allow-empty", "-m", "a run")
    add(clone, *remote)
    run(clone, BIN / "dvc", "push")
    assert "in sync" in run(clone, BIN / "dvc", "status", "-c")

    fresh = tmp_path / "second"
    run(tmp_path, "git", "clone", "-q", str(clone), str(fresh))
    add(fresh, *remote)
    run(fresh, BIN / "dvc", "pull")
    assert "up to date" in run(fresh, BIN / "dvc", "status")
    assert "in sync" in run(fresh, BIN / "dvc", "status", "-c")
    for path in (clone / f"results/{SCALE}").rglob("*.jsonl"):
        if "logs" not in path.parts:
            assert (fresh / path.relative_to(clone)).read_bytes() == path.read_bytes()
    if "://" not in remote[0]:  # once
        run(fresh, "make", "-o", "env", "-o", ".venv/installed", f"BIN={BIN}", "restore")
        said = run(fresh, BIN / "snakemake", "--profile", "local", "-n", "all")
        assert "Nothing to be done" in said
