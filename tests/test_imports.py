"""Which way imports point: cli -> stages -> wings -> base. Wings do not know one another, stages neither."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "moalign"
WINGS = {"world", "teacher", "backbones", "align", "train", "bench", "report", "study"}
BASE = {
    "interfaces",
    "grid",
    "config",
    "manifest",
    "shards",
    "video",
    "clips",
    "errors",
    "progress",
    "device",
    "mirror",
    "sizes",
}
LIGHT = {"grid", "config", "manifest", "errors", "sizes"}  # the Snakefile reads these; a rater's environment too
MEASURED = {  # a stage as it is, so what measures or plans it imports it
    "stages/throughput.py": "stages.align",
    "stages/card.py": "stages.miniature",
    "stages/cost.py": "stages.throughput",
    "stages/plan.py": ("stages.cost", "stages.doctor", "stages.throughput"),
}
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    """The wing, `stages`, or the module at the top."""
    parts = path.relative_to(SOURCE).parts
    return parts[0].removesuffix(".py")


def imported(path: Path) -> list[str]:
    """Modules of ours that a file names, without `moalign.`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.removeprefix("moalign.") for name in found if name.startswith("moalign.")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_imports_point_forward(path):
    here = room(path)
    for name in imported(path):
        there = name.split(".")[0]
        if there in {"__version__", here} and here != "stages":
            continue
        if name.startswith(MEASURED.get(path.relative_to(SOURCE).as_posix(), "no stage")):
            continue
        if here == "stages":
            assert there in WINGS | BASE | {"__version__"}, f"a stage imports {name}"
        elif here in WINGS:
            assert there in BASE, f"the wing {here} imports {name}"
        elif here in BASE:
            assert there in BASE, f"{here} imports {name}"
            if here in LIGHT:
                assert there in LIGHT, f"{here} must stay light and imports {name}"


def test_every_room_is_known():
    rooms = {room(path) for path in FILES}
    assert rooms - WINGS - BASE == {"__init__", "__main__", "cli", "stages"}


def test_the_light_modules_load_no_heavy_package():
    code = "import sys; from moalign import cli, config, grid, manifest; print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for heavy in ("torch", "numpy", "cv2", "diffusers", "transformers", "wandb", "matplotlib"):
        assert f"'{heavy}'" not in loaded
