"""What a built wheel holds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAPPED = {"fxsolve": "fxsolve", "passes": "fxsolve/passes", "visualize": "fxsolve/visualize"}  # folder -> package
KINDS = (".py", ".css", ".js")


def test_the_wheel_holds_every_file(tmp_path: Path) -> None:
    """All modules of the three folders under their packages, and what reports are made of; nothing at the top level else."""
    pytest.importorskip("setuptools", minversion="77")
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in MAPPED:
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source / file)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    target.mkdir()
    subprocess.run([sys.executable, "-c", build, str(target)], cwd=source, check=True, capture_output=True)
    (wheel,) = target.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {
        f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
        for folder, package in MAPPED.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in KINDS
    }
    assert held == expected
    assert {"fxsolve/visualize/report.css", "fxsolve/visualize/report.js"} <= held
