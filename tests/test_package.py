"""What the package promises as a whole: light import, imports that run downwards, a true README tree."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "rims"

# What each room may import from; `nn` and `tasks` know nobody.
MAY_IMPORT = {
    "nn": set(),
    "errors": set(),
    "tasks": {"errors"},
    "cores": {"nn", "errors"},
    "vision": {"tasks", "nn"},
    "models": {"vision", "cores", "tasks", "nn"},
    "analysis": {"nn"},
    "bench": {"models", "tasks", "cores", "nn"},
    "train": {"models", "cores", "tasks", "nn", "errors"},
    "experiments": {"report", "train", "models", "cores", "tasks", "nn", "errors"},
    "report": {"train", "analysis", "models", "vision", "cores", "tasks", "nn", "errors"},
}


def imports(path: Path) -> set[str]:
    """First-level rims modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
        found |= {n.split(".")[1] for n in names if n.startswith("rims.")}
    return found


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_imports_run_downwards(room: str) -> None:
    files = (
        [SOURCE / f"{room}.py"] if (SOURCE / f"{room}.py").exists() else sorted((SOURCE / room).rglob("*.py"))
    )
    assert files
    for file in files:
        assert imports(file) <= MAY_IMPORT[room] | {room}, file


def test_the_layer_needs_torch_and_jaxtyping_alone() -> None:
    code = "import sys, rims; print(*sorted({m.split('.')[0] for m in sys.modules}))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert "torch" in loaded
    assert not {"lightning", "matplotlib", "tyro", "rich", "jinja2", "tensorboard", "beartype"} & set(loaded)


def test_the_readme_tree_names_every_file() -> None:
    tree = re.search(r"```\n(src/rims/.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert tree is not None, "the README has no annotated tree"
    named = set(re.findall(r"^\s*([\w.]+(?:\.py|\.html|/))\s", tree[1], re.M))
    files = {p.name for p in SOURCE.rglob("*") if p.suffix in (".py", ".html") and p.name != "__init__.py"}
    folders = {p.name + "/" for p in SOURCE.iterdir() if p.is_dir() and p.name != "__pycache__"}
    assert files | folders <= named, f"not in the README's tree: {sorted((files | folders) - named)}"
    gone = {n for n in named if not n.endswith("/")} - files
    assert not gone, f"in the README's tree, but gone: {sorted(gone)}"
