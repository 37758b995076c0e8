"""What the documentation says is so: its Python runs and asserts, its commands exist, its site has a page for every source."""

from __future__ import annotations

import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fxsolve.cli.main import parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TARGETS = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def blocks(page: Path, *languages: str) -> list[tuple[int, str]]:
    """(line before the first, text) of each fenced block of these languages."""
    text = page.read_text(encoding="utf-8")
    found = [(text.count("\n", 0, m.start(2)), m[2]) for m in FENCE.finditer(text) if m[1] in languages]
    assert len(FENCE.findall(text)) * 2 == len(re.findall(r"^\s*```", text, re.MULTILINE)), "a block that is not seen"
    return found


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def namespace(request: pytest.FixtureRequest) -> Iterator[dict]:
    """An empty module, which dataclasses and the like can look up."""
    module = types.ModuleType("documentation_page")
    sys.modules[module.__name__] = module
    yield module.__dict__
    del sys.modules[module.__name__]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=named)
def test_the_python_of_a_page_runs_from_top_to_bottom(page: Path, namespace: dict, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found = blocks(page, "python")
    for line, text in found:
        exec(compile("\n" * line + text, str(page), "exec"), namespace)
    if page.name != "README.md":
        assert any("assert " in text for _, text in found), "the page checks nothing of what it shows"


def commands() -> list[tuple[str, str]]:
    """(page, line) of every shell command, comments left out."""
    return [
        (named(page), line.split("#")[0].strip())
        for page in PAGES
        for _, text in blocks(page, "sh")
        for line in text.splitlines()
        if line.split("#")[0].strip()
    ]


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda part: part)
def test_shell_commands_name_what_there_is(page: str, line: str) -> None:
    words = shlex.split(line)
    if words[0] == "make":
        assert all(word in TARGETS or "=" in word for word in words[1:])
    elif words[:3] == ["python", "-m", "fxsolve"]:
        options = parser().parse_args([word for word in words[3:] if word != "--help"] or ["demo"])
        if options.command == "demo" and options.name is not None:
            flags_are_known(ROOT / "examples" / options.name / "run.py", options.rest)
    elif words[:2] == ["python", "-m"]:
        flags_are_known(ROOT / (words[2].replace(".", "/") + ".py"), words[3:])
    elif words[0] == "python":
        flags_are_known(ROOT / words[1], words[2:])
    elif words[:3] == ["pip", "install", "-e"]:
        extras = re.findall(r"\w+", words[3].partition("[")[2])
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)
    else:
        pytest.fail(f"{page}: nobody checks {line!r}")


def flags_are_known(script: Path, words: list[str]) -> None:
    text = script.read_text(encoding="utf-8")
    assert all(f'"{word}"' in text for word in words if word.startswith("--"))


def test_no_page_needs_the_network_and_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in PAGES[1:]:
        assert str(page.relative_to(ROOT / "docs")) in navigation
        assert not re.search(r"!\[[^]]*\]\(http|<script|<iframe|<img", page.read_text(encoding="utf-8"))


def test_the_benchmark_page_holds_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mkdocs")
    import importlib.util
    import json

    spec = importlib.util.spec_from_file_location("documentation_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    hooks = importlib.util.module_from_spec(spec)
    monkeypatch.setattr(sys, "path", [*sys.path])
    spec.loader.exec_module(hooks)
    page = hooks.benchmark_page()
    cases = json.loads((ROOT / "benchmarks" / "results" / "cpu.json").read_text())["cases"]
    assert all(f"\n| {name} | " in page for name in cases)
