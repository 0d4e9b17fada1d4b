"""A stage whose code changed needs a new revision, or else old results would pass for new ones.

Compared is the syntax tree, without docstrings, of each stage and of all of ours that it imports. If a change cannot
alter results, record that with `make revisions`; if it can, bump the stage in config.REVISIONS, then `make revisions`.
"""

import ast
import hashlib
import json
from pathlib import Path

import pytest

from moalign import config

SOURCE = Path(__file__).parents[1] / "src" / "moalign"
RECORD = Path(__file__).parent / "revisions.json"
BESIDE = {
    "config",
    "manifest",
    "errors",
    "progress",
    "interfaces",
}  # seen in the pins, or in no result


def file_of(name: str) -> Path | None:
    """The file of a dotted module of ours, or None for a name inside one."""
    path = SOURCE / Path(*name.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.exists():
            return candidate
    return None


def imports(tree: ast.AST) -> set[Path]:
    """Files of ours that a module imports."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "moalign":
            inside = node.module.removeprefix("moalign").lstrip(".")
            names.add(inside)
            names |= {f"{inside}.{alias.name}".lstrip(".") for alias in node.names}
    names = {name for name in names if name and name.split(".")[0] not in BESIDE}
    return {path for path in map(file_of, names) if path}


def bare(tree: ast.AST) -> str:
    """The tree as text, without docstrings and positions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:] or [ast.Pass()]
    return ast.dump(tree)


def digest(stage: str) -> str:
    """Hash of a stage's code and of all that it imports."""
    queue, seen = [SOURCE / "stages" / f"{stage}.py"], {}
    while queue:
        path = queue.pop()
        if path not in seen:
            tree = ast.parse(path.read_text())
            queue += imports(tree)
            seen[path] = bare(tree)
    text = "".join(f"{path.relative_to(SOURCE)}\n{seen[path]}\n" for path in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def current() -> dict[str, dict]:
    """Revision and digest of every stage."""
    return {stage: {"revision": number, "code": digest(stage)} for stage, number in config.REVISIONS.items()}


@pytest.mark.parametrize("stage", config.REVISIONS)
def test_code_and_revision_move_together(stage):
    recorded, now = json.loads(RECORD.read_text()).get(stage), current()[stage]
    if now == recorded:
        return
    if recorded and now["revision"] == recorded["revision"]:
        pytest.fail(
            f"the code of stage {stage} changed and its revision did not: if results can change, bump REVISIONS"
            f"[{stage!r}] in config.py; then, or if they cannot, run `make revisions`"
        )
    pytest.fail(f"the revision of stage {stage} is not recorded: run `make revisions`")


def test_a_docstring_moves_nothing_and_a_number_does():
    plain = bare(ast.parse('def f(x):\n    """Old."""\n    return x + 1\n'))
    assert plain == bare(ast.parse('def f(x):\n    """New words."""\n\n    return x + 1  # a comment\n'))
    assert plain != bare(ast.parse('def f(x):\n    """Old."""\n    return x + 2\n'))


if __name__ == "__main__":
    RECORD.write_text(json.dumps(current(), indent=1) + "\n")
    print(f"recorded: {RECORD.name}")
