"""The container recipe, as far as it can be checked without Apptainer: what it copies, and what its script would do."""

import re
import subprocess
from pathlib import Path

TOP = Path(__file__).parents[1]
SECTIONS = dict(re.findall(r"^%(\w+)\n((?:    .*\n)+)", (TOP / "envs/moalign.def").read_text(), re.MULTILINE))


def test_what_it_copies_is_there_and_is_what_it_installs():
    copied = {}
    for line in SECTIONS["files"].splitlines():
        *names, folder = line.split()
        copied |= {folder + name: TOP / name for name in names}
    assert all(path.exists() for path in copied.values())
    for path in re.findall(r"/opt/moalign/\S+", SECTIONS["post"]):
        assert path in copied
    project = (TOP / "pyproject.toml").read_text()
    for name in re.findall(r'^(?:readme|license-files) = \[?"(\S+?)"', project, re.MULTILINE):  # the build reads them
        assert f"/opt/moalign/{name}" in copied


def test_it_installs_from_the_lock_alone():
    installs = re.findall("pip install (.*)", SECTIONS["post"])
    assert all("--require-hashes" in line or "--no-deps" in line for line in installs)
    lock = (TOP / "requirements.lock").read_text()
    needed = re.findall(r'^build-backend|^requires = \["(\w+)', (TOP / "pyproject.toml").read_text(), re.MULTILINE)
    assert all(re.search(rf"^{name}==", lock, re.MULTILINE) for name in filter(None, needed))  # no build isolation


def test_its_scripts_parse():
    for name in ("post", "environment", "test", "runscript"):
        subprocess.run(["sh", "-n"], input=SECTIONS[name], text=True, check=True)
