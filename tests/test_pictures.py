"""Pictures of convergence, dependence and schedules: what is drawn, and that files are well formed."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsolve
from fxsolve import visualize
from fxsolve.iterates import NOTES
from fxsolve.visualize.compare import curves
from fxsolve.visualize.convergence import heat
from fxsolve.visualize.dependence import ALLOWED, FORBIDDEN, dependences
from fxsolve.visualize.figure import shrunk
from fxsolve.visualize.heat_svg import png
from fxsolve.visualize.record import gap
from fxsolve.visualize.timeline import OUTSIDE, planned

PIXELS = 12


class Made(nn.Module):
    """A sampler of images of 3 x 4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        degrees = torch.arange(24) % (PIXELS - 1)
        self.register_buffer("first", (degrees[:, None] >= torch.arange(PIXELS)).float())
        self.register_buffer("second", (torch.arange(PIXELS)[:, None] > degrees).float())
        self.up, self.down = nn.Linear(PIXELS, 24), nn.Linear(24, PIXELS)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(F.linear(x, self.up.weight * self.first, self.up.bias))
        return F.linear(h, self.down.weight * self.second, self.down.bias)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, PIXELS)
        for i in range(PIXELS):
            x[:, i] = 2 * self(x)[:, i] + torch.randn(n)
        return x


class Local(nn.Module):
    """A causal convolution: each value reads the three before it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(1, 1, 3)

    @torch.no_grad()
    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, 1, 16)
        for t in range(16):
            x[:, :, t] = torch.tanh(self.conv(F.pad(x, (3, 0)))[:, :, t]) + torch.randn(n, 1)
        return x


class Dense(nn.Module):
    """Layers that skip connections join."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(4 * (k + 1), 4) for k in range(8))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, torch.tanh(layer(x))], 1)
        return x


def loop(x: Tensor) -> Tensor:
    h, outs = torch.zeros(2, 4), []
    for t in range(x.shape[0]):
        h = torch.tanh(0.3 * h + x[t])
        outs.append(h)
    return torch.stack(outs)


def tokens(n: int) -> Tensor:
    mask = torch.tril(torch.ones(9, 9), -1)
    x = torch.zeros(n, 9, dtype=torch.long)
    for i in range(9):
        x[:, i] = torch.bernoulli(torch.sigmoid(2 - 2 * (x.float() @ mask.T)[:, i])).long()
    return x


def leaking(n: int) -> Tensor:
    mask = torch.tril(torch.ones(10, 10), -1)
    mask[3, 7] = 1
    x = torch.zeros(n, 10)
    for i in range(10):
        x[:, i] = torch.tanh(x @ mask.T)[:, i] + torch.randn(n)
    return x


STEPS = torch.randn(64, 2, 4, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(1, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def made():
    return fxsolve.compile(Made().sample, solver=fxsolve.Jacobi())


@pytest.fixture(scope="module")
def seen(made):
    torch.manual_seed(3)
    return visualize.record(made, 3)


@pytest.fixture(scope="module")
def chain():
    with torch.no_grad():
        return fxsolve.compile(Dense(), solver=fxsolve.Jacobi(), exactness="bitwise", example_inputs=[IMAGE])


def test_distances_end_at_zero_and_the_frontier_is_the_solutions(made, seen) -> None:
    found = seen.block()
    torch.manual_seed(3)
    final = made(3)
    (solution,) = made.solution.blocks
    assert found.frontier == (0, *solution.frontier) and found.solution.samples == solution.samples
    assert list(found.frontier) == sorted(found.frontier) and found.frontier[-1] == PIXELS
    assert found.distances.shape == (solution.sweeps + 1, PIXELS, 3)
    assert bool((found.distances[-1] == 0).all())
    assert torch.equal(found.distances[0], final.abs().double().T), "the buffer holds zeros at first"
    for k, done in enumerate(found.frontier):
        assert bool((found.distances[k, :done] == 0).all())
        assert bool((found.sample_frontiers[k] >= done).all())
    assert [each.steps for each in found.iterates] == list(range(1, solution.sweeps + 1))


def test_residuals_are_those_of_the_equations(seen) -> None:
    found = seen.block()
    model = Made()
    noise = found.states[-1][0][:, :, 0].T - 2 * model(found.states[-1][0][:, :, 0].T)
    for k in range(len(found.iterates)):
        x = found.states[k][0][:, :, 0].T
        expected = (2 * model(x) + noise - x).abs().double().T
        torch.testing.assert_close(found.residuals[k], expected, atol=1e-5, rtol=1e-5)
    assert bool((found.residuals[-1] == 0).all())
    assert heat(seen, of="residual").what.startswith("residual")


def test_recording_leaves_the_generator_alone_and_keeps_nothing_else(made) -> None:
    torch.manual_seed(5)
    expected = made(3)
    torch.manual_seed(5)
    found = visualize.record(made, 3).block()
    assert torch.equal(made(3), expected), "the record drew the same numbers and put them back"
    assert torch.equal(found.iterates[-1].state[0], expected)
    assert NOTES.get() is None


def test_a_recurrence_is_recorded_step_by_step() -> None:
    compiled = fxsolve.compile(loop, solver=fxsolve.JacobiGS(16))
    found = visualize.record(compiled, STEPS).block()
    states = loop(STEPS)
    assert found.distances.shape == (len(found.iterates) + 1, 64, 1)
    assert bool((found.distances[-1] == 0).all())
    torch.testing.assert_close(found.states[-1][0].reshape(64, 2, 4), states, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.distances[0, :, 0], states.abs().amax((1, 2)).double(), atol=1e-6, rtol=0)
    assert bool((found.distances[1, :16] == 0).all()), "the first block starts from its true state"
    with pytest.raises(fxsolve.FxsolveError, match="residual of block0 after each sweep is not known"):
        heat(visualize.record(compiled, STEPS), of="residual")


def test_windows_of_a_recurrence_leave_the_others_as_they_were() -> None:
    compiled = fxsolve.compile(loop, solver=fxsolve.GSJacobi(32))
    found = visualize.record(compiled, STEPS).block()
    assert bool((found.distances[-1] == 0).all())
    outside = found.distances[1, 32:, 0]
    assert torch.equal(outside, found.distances[0, 32:, 0])


def test_a_chain_is_recorded_layer_by_layer(chain) -> None:
    with torch.no_grad():
        found = visualize.record(chain, IMAGE).block()
    length = found.solution.equations
    assert found.distances.shape == (found.solution.sweeps + 1, length, 1)
    assert bool((found.distances[-1] == 0).all()) and bool((found.distances[0] == 1).all()), "relative; zeros at first"
    assert found.frontier == (0, *found.solution.frontier) and found.frontier[-1] == length


def test_discrete_values_differ_or_not() -> None:
    assert gap(torch.tensor([1, 2, 3]), torch.tensor([1, 5, 3])).tolist() == [0.0, 1.0, 0.0]
    ours = torch.tensor([1.0, torch.nan, torch.inf, torch.nan])
    assert gap(ours, torch.tensor([1.5, torch.nan, torch.inf, 0.0])).tolist() == [0.5, 0.0, 0.0, torch.inf]


def test_of_discrete_values_the_share_that_differs_is_drawn() -> None:
    torch.manual_seed(1)
    seen = visualize.record(fxsolve.compile(tokens, solver=fxsolve.Jacobi()), 4)
    found, shown = seen.block(), heat(seen)
    final = found.states[-1][0][:, :, 0]
    for k, (values,) in enumerate(found.states):
        assert shown.cells[k].tolist() == (values[:, :, 0] != final).double().mean(1).tolist()
    assert shown.share and shown.what == "share of samples whose value is not the final one" and bool(shown.cells.any())


def test_cells_are_the_largest_of_those_that_they_stand_for() -> None:
    matrix = torch.arange(70.0).reshape(10, 7)
    small = shrunk(matrix, 5, 3)
    assert small.shape == (5, 3)
    assert small[0].tolist() == [8.0, 10.0, 13.0] and small[-1, -1] == 69.0
    assert shrunk(matrix, 10, 7) is matrix


# ---------------------------------------------------------------- dependence


def brute_force(sample_network, slots: int) -> Tensor:
    """Which slots each slot depends on, by autograd at random points: (slots, slots)."""
    found = torch.zeros(slots, slots, dtype=torch.bool)
    for _ in range(4):
        x = torch.randn(1, slots)
        found |= torch.autograd.functional.jacobian(sample_network, x).reshape(slots, slots) != 0
    return found


@pytest.mark.parametrize("kind", ["made", "local"])
def test_the_dependence_matrix_is_triangular_and_covers_autograds(kind: str) -> None:
    model = Made() if kind == "made" else Local()
    slots = PIXELS if kind == "made" else 16
    network = model if kind == "made" else lambda x: model.conv(F.pad(x[:, None], (3, 0)))[:, 0, :16]
    found = dependences(fxsolve.compile(model.sample, solver=fxsolve.Jacobi()), [2])
    truth = brute_force(network, slots)
    assert found.holds and "proved causal" in found.verdict
    assert torch.equal(found.reached, found.reached.tril(-1))
    assert bool((found.reached | ~truth).all()), "a superset of what autograd sees"
    assert torch.equal(found.reached, truth), "and no more than that, for these networks"


def test_groups_of_slots(made) -> None:
    single, grouped = dependences(made, [2]), dependences(made, [2], groups=4)
    assert grouped.starts == (0, 3, 6, 9, 12)
    columns = [single.reached[:, a:b].any(1) for a, b in zip(grouped.starts, grouped.starts[1:], strict=False)]
    assert torch.equal(grouped.reached, torch.stack(columns, 1))
    assert not bool((grouped.cells == FORBIDDEN).any())


def test_what_breaks_a_proof_is_seen() -> None:
    found = dependences(fxsolve.compile(leaking), [2])
    assert not found.holds and "slot 3 depends on slot 7" in found.verdict
    assert (found.cells == FORBIDDEN).nonzero().tolist() == [[3, 7]]
    assert torch.equal(found.cells == ALLOWED, torch.ones(10, 10).tril(-1).bool())


def test_recurrences_and_chains(chain) -> None:
    found = dependences(fxsolve.compile(loop, solver=fxsolve.JacobiGS(16)), [STEPS])
    assert torch.equal(found.reached, torch.diag(torch.ones(63), -1).bool())
    with torch.no_grad():
        layers = dependences(chain, [IMAGE])
    assert torch.equal(layers.reached, layers.reached.tril(-1)) and bool(layers.reached.any())
    with torch.no_grad(), pytest.raises(fxsolve.FxsolveError, match="there is no block 'x'; there are block0"):
        dependences(chain, [IMAGE], block="x")


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("devices", [1, 3, 64])
@pytest.mark.parametrize("kind", ["made", "loop", "chain", "ordered"])
def test_the_timeline_ends_when_predict_says(kind: str, devices: int, made, chain) -> None:
    compiled, args = {
        "made": lambda: (made, [2]),
        "loop": lambda: (fxsolve.compile(loop, solver=fxsolve.JacobiGS(16)), [STEPS]),
        "chain": lambda: (chain, [IMAGE]),
        "ordered": lambda: (fxsolve.compile(leaking), [2]),
    }[kind]()
    with torch.no_grad():
        compiled(*args)
        compiled(*args)
    found = planned(compiled, devices)
    assert found.total == compiled.predict(devices)
    assert max(bar.end for bar in found.bars) == pytest.approx(found.total)
    assert max(bar.device for bar in found.bars) < devices
    for device in {bar.device for bar in found.bars}:
        mine = sorted((bar for bar in found.bars if bar.device == device), key=lambda bar: bar.start)
        assert all(a.end <= b.start + 1e-9 for a, b in zip(mine, mine[1:], strict=False)), "a device does one thing at a time"
    if devices == 1:
        busy = sum(bar.end - bar.start for bar in found.bars)
        assert busy == pytest.approx(found.total), "one device is never idle"
    blocks = {bar.block for bar in found.bars} - {OUTSIDE}
    assert blocks == {"block0"}


def test_what_a_first_call_compiles_is_not_in_the_timeline() -> None:
    compiled = fxsolve.compile(loop, solver=fxsolve.JacobiGS(16))
    compiled(STEPS)
    assert compiled.solution.first
    found = planned(compiled, 1)
    assert OUTSIDE not in {bar.block for bar in found.bars} and found.total < compiled.solution.seconds
    compiled(STEPS)
    assert not compiled.solution.first


# ---------------------------------------------------------------- solvers side by side


def test_every_solver_ends_at_the_solution() -> None:
    torch.manual_seed(0)
    found, what = curves(Made().sample, [3])
    assert [c.solver.split("(")[0] for c in found] == ["GaussSeidel", "Jacobi", "JacobiGS", "GSJacobi"]
    assert what == "distance to the solution, largest component"
    ordered, jacobi = found[:2]
    assert ordered.steps[-1] == PIXELS > jacobi.steps[-1]
    for curve in found:
        assert curve.error[-1] == 0.0 and curve.error[0] == pytest.approx(ordered.error[0])
        assert list(curve.steps) == sorted(curve.steps) and list(curve.seconds) == sorted(curve.seconds)
    assert list(ordered.error) == sorted(ordered.error, reverse=True), "each step only makes another equation final"


def test_chosen_solvers_only() -> None:
    found, _ = curves(loop, [STEPS], [fxsolve.JacobiGS(16)])
    assert [c.solver for c in found] == ["JacobiGS(block=16, warmup=None)"]
    found, _ = curves(loop, [STEPS], [fxsolve.GaussSeidel(8)])
    assert [(c.solver, c.steps[-1], len(c.steps)) for c in found] == [("GaussSeidel(check=8)", 64, 65)]
    with pytest.raises(fxsolve.FxsolveError, match="none of these solvers sweeps block0: no other is given"):
        curves(loop, [STEPS], [fxsolve.GaussSeidel()])


# ---------------------------------------------------------------- files

WRITERS = {
    "heat_map": lambda made, seen, path: visualize.heat_map(seen, path),
    "images": lambda made, seen, path: visualize.images(seen, path, shape=(3, 4), samples=(0, 2)),
    "compare": lambda made, seen, path: visualize.compare(Made().sample, [2], path, [fxsolve.Jacobi()]),
    "dependence": lambda made, seen, path: visualize.dependence(made, [2], path),
    "timeline": lambda made, seen, path: visualize.timeline(made, path, devices=4),
}


def well_formed(path: Path) -> None:
    content = path.read_bytes()
    if path.suffix == ".svg":
        root = ElementTree.fromstring(content)
        assert root.tag.endswith("svg") and len(list(root.iter())) > 50
    else:
        assert content.startswith({".png": b"\x89PNG\r\n", ".pdf": b"%PDF"}[path.suffix]) and len(content) > 5000


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf"])
def test_files(name: str, suffix: str, made, seen, tmp_path: Path) -> None:
    made(2)
    path = tmp_path / "deep" / f"picture{suffix}"
    assert WRITERS[name](made, seen, path) == path
    well_formed(path)
    with pytest.raises(fxsolve.FxsolveError, match="must end in .svg, .png, .pdf"):
        WRITERS[name](made, seen, tmp_path / "picture.bmp")


def test_the_svg_for_a_page(seen) -> None:
    element = visualize.heat_svg(seen)
    root = ElementTree.fromstring(element)
    assert root.tag == "svg" and root.findtext("title") == heat(seen).title
    assert not re.search(r"https?:|//|url\(", element)
    assert len(root.findall("image")) == 2 and len(element) < 20_000
    corners = root.find("polyline").get("points").split()
    assert len(corners) == 2 * len(seen.block().frontier)


def test_the_png_holds_the_colours(tmp_path: Path) -> None:
    from matplotlib import colormaps, image

    path = tmp_path / "cells.png"
    path.write_bytes(png(torch.tensor([[0, 1, 255], [128, 64, 200]])))
    pixels = torch.from_numpy(image.imread(path))
    assert pixels.shape == (2, 3, 4) and pixels[0, 0, 3] == 0
    for (row, column), level in {(0, 1): 0.0, (0, 2): 1.0, (1, 0): 127 / 254, (1, 1): 63 / 254, (1, 2): 199 / 254}.items():
        assert pixels[row, column, :3].tolist() == pytest.approx(colormaps["viridis"](level)[:3], abs=0.02)


# ---------------------------------------------------------------- errors


def test_matplotlib_is_imported_when_something_is_drawn() -> None:
    code = "import sys, fxsolve, fxsolve.visualize; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib(seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(fxsolve.FxsolveError, match=r"pip install fxsolve\[viz\]"):
        visualize.heat_map(seen, tmp_path / "heat.png")
    assert visualize.heat_svg(seen).startswith("<svg")


def test_what_cannot_be_recorded(seen, tmp_path: Path) -> None:
    with pytest.raises(fxsolve.FxsolveError, match="function is not compiled"):
        visualize.record(loop, STEPS)
    with pytest.raises(fxsolve.FxsolveError, match="there is no compiled program"):
        visualize.record(fxsolve.compile(torch.relu, verify="never"), torch.ones(2)).block()
    with pytest.raises(fxsolve.FxsolveError, match=r"nothing was swept \(block0 by GaussSeidel\(\)\)"):
        visualize.record(fxsolve.compile(leaking), 2).block()
    with pytest.raises(fxsolve.FxsolveError, match="no block 'x' was swept; there are block0"):
        seen.block("x")
    with pytest.raises(ValueError, match="of is 'distance' or 'residual'"):
        visualize.heat_map(seen, tmp_path / "heat.png", of="colour")
    with pytest.raises(fxsolve.FxsolveError, match=r"\(12,\) is no image of shape \(5, 5\)"):
        visualize.images(seen, tmp_path / "images.png", shape=(5, 5))
    with pytest.raises(fxsolve.FxsolveError, match="there is no sample 9: the batch has 3"):
        visualize.images(seen, tmp_path / "images.png", shape=(3, 4), samples=[9])
    with pytest.raises(fxsolve.FxsolveError, match="call it once first"):
        visualize.timeline(fxsolve.compile(loop), tmp_path / "time.png")
