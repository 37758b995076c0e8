"""The command line: what it prints, what it writes, its exit codes and what it says where something is wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxsolve.cli import demo
from fxsolve.cli.bench import difference, quartiles
from fxsolve.cli.main import main

SOURCE = '''
import torch
from torch import nn

def running(x):
    h, out = torch.zeros_like(x[0]), []
    for t in range(x.shape[0]):
        h = torch.tanh(0.5 * h + x[t])
        out.append(h)
    return torch.stack(out)

def pair(x, y):
    return running(x) + y

def asks(x):
    return running(x) if bool(x.sum() > 0) else x

class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.RNNCell(4, 4)

    def forward(self, x):
        h, out = x.new_zeros(4), []
        for t in range(x.shape[0]):
            h = self.cell(x[t], h)
            out.append(h)
        return torch.stack(out)

    def both(self, x):
        assert not self.training
        return self(x) * 2

class Wide(nn.Module):
    def __init__(self, width):
        super().__init__()

model = Reader()
limit = 3
'''
SOLVED = ["--inputs", "torch.randn(64, 4)", "--solver", "JacobiGS(block=16)"]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with a user's file, in which the command is given; what is imported there is forgotten afterwards."""
    (tmp_path / "user_models.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield tmp_path
    own = ("user_models", "file_user_models", "broken", "file_broken", "examples")
    for name in [n for n in sys.modules if n.split(".")[0] in own]:
        del sys.modules[name]


@pytest.mark.parametrize("name", ["running", "model", "Reader", "model.both", "Reader.both"])
@pytest.mark.parametrize("place", ["user_models", "./user_models.py"])
def test_explain_prints_the_plan_and_the_last_call(user: Path, capsys, place: str, name: str) -> None:
    assert main(["explain", f"{place}:{name}", *SOLVED]) == 0
    said = capsys.readouterr().out
    assert "block0: Recurrence of 64 equations at" in said and "user_models.py:" in said
    assert "solver: JacobiGS(block=16, warmup=None)" in said
    assert "every equation holds to" in said.split("last call:\n")[-1]


def test_a_tuple_gives_several_arguments_and_devices_are_simulated(user: Path, capsys) -> None:
    inputs = ["--inputs", "(torch.randn(64, 4), torch.ones(4))", "--solver", "JacobiGS(block=16)"]
    assert main(["explain", "user_models:pair", *inputs, "--devices", "4"]) == 0
    assert "simulated on 4 devices" in capsys.readouterr().out


def test_with_gradients_the_plan_has_a_backward_part(user: Path, capsys) -> None:
    assert main(["explain", "user_models:model", *SOLVED, "--grad"]) == 0
    assert "\n  backward:\n" in capsys.readouterr().out


def test_draw_and_report_write_where_they_say(user: Path, capsys) -> None:
    if shutil.which("dot"):
        assert main(["draw", "user_models:running", *SOLVED]) == 0
        assert capsys.readouterr().out == "running.svg\n"
        assert Path("running.svg").read_text().startswith("<svg")
    assert main(["draw", "user_models:running", *SOLVED, "-o", "graph.dot"]) == 0
    assert "digraph" in Path("graph.dot").read_text()
    assert main(["report", "user_models:running", *SOLVED, "--output", "page.html"]) == 0
    assert "fxsolve: running</h1>" in Path("page.html").read_text()


def test_bench_prints_a_table_and_writes_json(user: Path, capsys) -> None:
    assert main(["bench", "user_models:running", *SOLVED, "--runs", "4", "--json", "times.json"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("user_models:running, forward; ")
    assert [line.split(",")[0].split(" ")[0] for line in said[2:6]] == ["", "original", "compiled", "ratio"]
    found = json.loads(Path("times.json").read_text())
    assert found["original_seconds"]["runs"] == found["compiled_seconds"]["runs"] == 4
    assert 0.0 < found["compiled_seconds"]["q1"] <= found["compiled_seconds"]["median"] <= found["compiled_seconds"]["q3"]
    assert found["max_difference"] < 1e-5
    assert "JacobiGS(block=16" in found["solution"]


def test_bench_goes_backward_too_and_stops_in_time(user: Path, capsys) -> None:
    assert main(["bench", "user_models:model", *SOLVED, "--grad", "--seconds", "0", "--json", "times.json"]) == 0
    assert "forward and backward" in capsys.readouterr().out
    found = json.loads(Path("times.json").read_text())
    assert found["original_seconds"]["runs"] == 3
    assert found["max_difference"] < 1e-3  # sums over 64 steps


def test_differences_of_results() -> None:
    import torch

    nan, inf = float("nan"), float("inf")
    one, other = torch.tensor([1.0, nan, inf]), torch.tensor([1.5, nan, inf])
    assert difference([one, 3], [other, 3]) == 0.5
    assert difference([one], [one.clone()]) == 0.0
    assert difference([torch.tensor([nan])], [torch.tensor([1.0])]) == inf
    assert difference([3], [4]) == inf
    assert difference([torch.tensor([0.0])], [torch.tensor([-0.0])]) == 0.0
    assert quartiles([2.0]) == {"q1": 2.0, "median": 2.0, "q3": 2.0, "runs": 1}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["explain", "user_models"], "write module:name or path/to/file.py:name"),
        (["explain", "user_model:running"], "there is no module 'user_model'"),
        (["explain", "no_such.package:running"], "there is no module 'no_such'"),
        (["explain", "other.py:running"], "there is no file other.py"),
        (["explain", "user_models:runing"], "user_models has no 'runing'; there is running"),
        (["explain", "user_models:qqqq"], "there is Reader, Wide"),
        (["explain", "user_models:Reader.forwrd"], "user_models:Reader has no 'forwrd'; there is forward"),
        (["explain", "user_models:Wide"], "make an instance in the file (model = Wide(..))"),
        (["explain", "user_models:limit"], "is of type int; name a module"),
        (["explain", "user_models:model", "--inputs", "torch.randn("], "could not be evaluated: SyntaxError"),
        (["explain", "user_models:model", "--inputs", "torch.ones(2) @ torch.ones(3)"], "could not be evaluated: RuntimeError"),
        (["explain", "user_models:model", *SOLVED[:2], "--solver", "Jacob()"], "Solvers are GaussSeidel, GSJacobi, Jacobi"),
        (["explain", "user_models:model", *SOLVED[:2], "--solver", "JacobiGS(block=0)"], "block must be at least 1"),
        (["explain", "user_models:model", *SOLVED[:2], "--solver", "3"], "is no solver"),
        (["explain", "user_models:running", *SOLVED[:2], "--grad"], "nothing in the result requires a gradient"),
        (["explain", "user_models:model", "--devices", "0"], "0 is less than 1"),
        (["explain", "user_models:model", "--exactness", "loose"], "invalid choice: 'loose'"),
        (["draw", "user_models:model", "-o", "graph.jpg"], "the name must end in .svg, .png"),
        (["report", "user_models:model", "-o", "nowhere/page.html"], "there is no folder nowhere"),
        (["bench", "user_models:model", "--json", "nowhere/times.json"], "there is no folder nowhere"),
        (["demo", "no such"], "there is no demo 'no such'"),
        (["explode"], "invalid choice: 'explode'"),
        ([], "required"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_wrong_command_line_is_answered_in_one_message(user: Path, capsys, line: list[str], said: str) -> None:
    assert main(line) == 2
    printed = capsys.readouterr()
    assert said in printed.err and "Traceback" not in printed.err
    assert printed.out == ""


def test_what_cannot_be_compiled_runs_as_the_original_or_is_an_error(user: Path, capsys) -> None:
    line = ["explain", "user_models:asks", "--inputs", "torch.ones(64, 4)"]
    assert main(line) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("the original runs: a value leaves torch")
    assert printed.err.startswith("fxsolve: runs the original: a value leaves torch")
    assert main([*line, "--no-fallback"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("fxsolve: a value leaves torch") and printed.err.count("\n") == 1
    assert printed.out == ""


def test_what_the_program_raises_is_shown_with_its_own_traceback(user: Path, capsys) -> None:
    assert main(["explain", "user_models:model", "--inputs", "torch.randn(64, 5)"]) == 1
    said = capsys.readouterr().err
    assert "h = self.cell(x[t], h)" in said and "got 5" in said
    assert "/cli/" not in said and "capture.py" not in said
    assert said.endswith("fxsolve: this was raised by the program itself, with these inputs\n")


def test_a_file_that_cannot_be_imported_shows_why(user: Path, capsys) -> None:
    Path("broken.py").write_text("import no_such_package_of_ours\n")
    for place in ("broken", "broken.py"):
        assert main(["explain", f"{place}:model"]) == 1
        said = capsys.readouterr().err
        assert "No module named 'no_such_package_of_ours'" in said and "broken.py" in said and "/cli/" not in said


def test_demos_are_what_the_examples_folder_holds(user: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "CHECKOUT", user)
    assert main(["demo"]) == 2
    assert "Get the repository" in capsys.readouterr().err
    (user / "pyproject.toml").write_text("")
    (user / "examples" / "tiny").mkdir(parents=True)
    for package in ("examples", "examples/tiny"):
        (user / package / "__init__.py").write_text("")
    script = user / "examples" / "tiny" / "run.py"
    script.write_text('"""Says what it is given."""\nimport sys\nprint(sys.argv[1:], __name__)\n')
    for name in [n for n in sys.modules if n.split(".")[0] == "examples"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "argv", sys.argv)
    assert main(["demo"]) == 0
    assert capsys.readouterr().out == "tiny         Says what it is given.\n"
    assert main(["demo", "tiny", "--small", "--device", "cpu"]) == 0
    assert capsys.readouterr().out == "['--small', '--device', 'cpu'] __main__\n"
    script.write_text("import no_such_package_of_ours\n")
    assert main(["demo", "tiny"]) == 2
    assert "the demo needs no_such_package_of_ours, which is not installed" in capsys.readouterr().err


def test_the_examples_of_this_repository_are_found() -> None:
    assert {"rnn", "made", "pixelcnnpp", "densenet"} <= set(demo.demos(demo.CHECKOUT))


def test_python_m_fxsolve_is_this_command(user: Path) -> None:
    line = [sys.executable, "-m", "fxsolve", "explain", "user_models.py:running", *SOLVED]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "block0: Recurrence of 64 equations" in done.stdout
    assert subprocess.run([*line[:3], "explain", "nothing"], capture_output=True, timeout=120).returncode == 2
