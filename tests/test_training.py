"""Gradients through compiled calls are eager's: cells, modules, random recurrences, and what goes on around a block."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxsolve
from fxsolve import GaussSeidel, JacobiGS
from tests.checking import assert_same_bits, quiet
from tests.test_random_programs import loop_program

T, N, D = 40, 3, 5
BLOCKS = JacobiGS(8, 5)
Function = Callable[..., Any]


def looped(cell: nn.Module, double: bool = False) -> Function:
    """A cell in a loop; `double`: its state is a pair."""

    def run(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out, c = [], h * 0.5
        for t in range(x.shape[0]):
            if double:
                h, c = cell(x[t], (h, c))
            else:
                h = cell(x[t], h)
            out.append(h)
        return torch.stack(out), h + c

    return run


def arguments(dtype: torch.dtype = torch.float64, steps: int = T) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(s, generator=generator, dtype=dtype) for s in ((steps, N, D), (N, D)))  # type: ignore[return-value]


def backward(fn: Function, inputs: Sequence[Tensor], held: Sequence[Tensor] = (), seed: int = 0) -> tuple[list, list]:
    """(results, gradients of inputs and held tensors) of a call, for fixed random cotangents."""
    given = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    torch.manual_seed(seed)
    results = [r for r in pytree.tree_leaves(fn(*given)) if isinstance(r, Tensor)]
    private = torch.Generator().manual_seed(2)
    outputs = [r for r in results if r.requires_grad]
    cotangents = [torch.randn(r.shape, generator=private, dtype=r.dtype) for r in outputs]
    return results, list(torch.autograd.grad(outputs, [*given, *held], cotangents, allow_unused=True))


def agree(compiled: Function, fn: Function, inputs: Sequence[Tensor], held: Sequence[Tensor] = (), seed: int = 0) -> None:
    """Results and gradients agree: to 1e-12 of the largest in float64."""
    ours, theirs = backward(compiled, inputs, held, seed), backward(fn, inputs, held, seed)
    bound = 1e-12 if inputs[0].dtype == torch.float64 else 2e-5
    for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.shape == b.shape and a.requires_grad == b.requires_grad
            a, b = a.detach(), b.detach()
            atol = bound * max(1.0, float(b.abs().max()))
            assert torch.allclose(a, b, rtol=0, atol=atol, equal_nan=True), float((a - b).abs().max())


def solved(compiled: Any) -> None:
    assert compiled.solution.fallback is None, compiled.solution
    assert "backward:" in compiled.explain()


CELLS: dict[str, tuple[Callable[[], nn.Module], bool]] = {
    "RNN": (lambda: nn.RNNCell(D, D), False),
    "relu": (lambda: nn.RNNCell(D, D, nonlinearity="relu"), False),
    "GRU": (lambda: nn.GRUCell(D, D), False),
    "LSTM": (lambda: nn.LSTMCell(D, D), True),
}


@pytest.mark.parametrize("solver", [BLOCKS, GaussSeidel(), GaussSeidel(4)], ids=str)
@pytest.mark.parametrize("name", CELLS)
def test_cells(name: str, solver: Any) -> None:
    torch.manual_seed(0)
    make, double = CELLS[name]
    cell = make().double()
    fn = looped(cell, double)
    compiled = fxsolve.compile(fn, solver=solver)
    for _ in range(3):
        agree(compiled, fn, arguments(), list(cell.parameters()))
        solved(compiled)
        with torch.no_grad():
            for p in cell.parameters():
                p.add_(0.01 * torch.randn_like(p))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "RNN": lambda: nn.RNN(D, D),
    "GRU": lambda: nn.GRU(D, D),
    "two layers": lambda: nn.GRU(D, D, num_layers=2),
    "both ways": lambda: nn.RNN(D, D, bidirectional=True),
    "dropout": lambda: nn.GRU(D, D, num_layers=2, dropout=0.3),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules(name: str) -> None:
    """In training mode: dropout between layers takes eager's masks."""
    torch.manual_seed(0)
    module = MODULES[name]().double()
    compiled = fxsolve.compile(module, solver=BLOCKS)
    for seed in range(3):
        agree(compiled, module, arguments()[:1], list(module.parameters()), seed)
        solved(compiled)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    compiled = fxsolve.compile(looped(nn.GRUCell(D, D).double()), solver=BLOCKS)
    x, h = (a.requires_grad_() for a in arguments(steps=32))
    assert torch.autograd.gradcheck(compiled, (x, h))


def test_a_training_run() -> None:
    """Several losses, clipping, a foreach optimizer, accumulation, a frozen parameter, states handed on detached."""

    def trained(compile_it: bool) -> list[float]:
        torch.manual_seed(0)
        cell, readout = nn.LSTMCell(D, D).double(), nn.Linear(D, 2).double()
        cell.bias_hh.requires_grad_(False)

        def chunk(x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            out = []
            for t in range(x.shape[0]):
                h, c = cell(x[t], (h, c))
                out.append(readout(nn.functional.dropout(h, 0.2)))
            return torch.stack(out), h, c

        run = fxsolve.compile(chunk, solver=BLOCKS) if compile_it else chunk
        parameters = [p for m in (cell, readout) for p in m.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=0.02, foreach=True)
        h = c = torch.zeros(N, D, dtype=torch.float64)
        losses = []
        for step in range(12):
            x = torch.randn(T, N, D, dtype=torch.float64)
            y, h, c = run(x, h.detach(), c.detach())
            first, second = y[..., 0].sub(x[..., 0].roll(1, 0)).square().mean(), y[..., 1].abs().mean()
            first.backward(retain_graph=True)
            (second + 0.1 * c.square().mean()).backward()
            losses.append(float((first + second).detach()))
            if step % 2:
                torch.nn.utils.clip_grad_norm_(parameters, 0.5)
                optimizer.step()
                optimizer.zero_grad()
        if compile_it:
            solved(run)
        assert cell.bias_hh.grad is None
        return losses

    ours, theirs = trained(True), trained(False)
    assert ours == pytest.approx(theirs, rel=1e-9)
    assert min(theirs[6:]) < min(theirs[:3])


def masked(x: Tensor, h: Tensor) -> Tensor:
    keep = nn.functional.dropout(torch.ones_like(h), 0.25)
    for t in range(x.shape[0]):
        h = torch.tanh(0.5 * nn.functional.dropout(h, 0.3) * keep + x[t])
    return h


def truncated(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The state is detached in every step; its own gradients end there."""
    out = []
    for t in range(x.shape[0]):
        h = torch.tanh(0.5 * h.detach() + x[t].sin())
        out.append(h * 2)
    return torch.stack(out), h


def partly_detached(x: Tensor, h: Tensor) -> Tensor:
    for t in range(x.shape[0]):
        y = torch.tanh(0.5 * h + x[t]) + x[t]
        y.mul_(0.9)
        h = y + 0.3 * y.detach().sin() + 0.1 * y.detach()[:, :1]
    return h


def into_a_buffer(x: Tensor, h: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    for t in range(1, x.shape[0]):
        out[t] = torch.sigmoid(out[t - 1] * 0.7 - x[t] + h)
    return out


def counted(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """A float state beside a whole one that has no gradient."""
    n = torch.zeros(N, 1, dtype=torch.long)
    for t in range(x.shape[0]):
        n = (n + 1) % 3
        h = torch.tanh(0.4 * h + x[t] * n)
    return h, n


def checkpointed(x: Tensor, h: Tensor) -> Tensor:
    from torch.utils.checkpoint import checkpoint

    for t in range(x.shape[0]):
        h = checkpoint(lambda a, b: torch.tanh(0.5 * a + b), h, x[t], use_reentrant=False)  # type: ignore[assignment]
    return h


PROGRAMS_AROUND = [masked, truncated, partly_detached, into_a_buffer, counted, checkpointed]


@pytest.mark.parametrize("fn", PROGRAMS_AROUND, ids=lambda f: f.__name__)
def test_programs(fn: Function) -> None:
    for solver in (BLOCKS, GaussSeidel(), GaussSeidel(4), "auto"):
        compiled = fxsolve.compile(fn, solver=solver)
        for seed in range(3):
            quiet(lambda: agree(compiled, fn, arguments(), seed=seed))  # noqa: B023


@pytest.mark.parametrize("fn", [masked, truncated, partly_detached, into_a_buffer], ids=lambda f: f.__name__)
def test_are_compiled(fn: Function) -> None:
    compiled = fxsolve.compile(fn, solver=BLOCKS)
    agree(compiled, fn, arguments())
    agree(compiled, fn, arguments())
    solved(compiled)


def test_gradients_on_and_off() -> None:
    cell = nn.RNNCell(D, D).double()
    fn = looped(cell)
    compiled = fxsolve.compile(fn, solver=BLOCKS)
    for _ in range(2):
        with torch.no_grad():
            assert not compiled(*arguments())[0].requires_grad
        agree(compiled, fn, arguments(), list(cell.parameters()))
    cell.weight_ih.requires_grad_(False)
    agree(compiled, fn, arguments(), [p for p in cell.parameters() if p.requires_grad])
    compiled(*arguments())[0].sum().backward()
    assert cell.weight_ih.grad is None and cell.weight_hh.grad is not None


def test_autocast() -> None:
    """Parameters in float32, products in bfloat16: eager rounds the sum of a weight's gradients at every step."""
    torch.manual_seed(0)
    readout, cell = nn.Linear(D, 2), nn.RNNCell(D, D)
    fn = looped(cell)
    held = [*cell.parameters(), *readout.parameters()]

    def run(x: Tensor, h: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return readout(fn(x, h)[0])

    compiled = fxsolve.compile(run, solver=BLOCKS)
    for _ in range(2):
        (ours, theirs) = (backward(f, arguments(torch.float32), held) for f in (compiled, run))
        for a, b in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True):
            assert a.dtype == b.dtype and float((a - b).detach().abs().max()) <= 0.05 * float(b.detach().abs().max())
    solved(compiled)


def test_gradients_of_gradients() -> None:
    cell = nn.RNNCell(D, D).double()
    fn = looped(cell)
    compiled = fxsolve.compile(fn, solver=BLOCKS)
    x, h = (a.requires_grad_() for a in arguments())
    wanted = [x, h, *cell.parameters()]

    def second(run: Callable[..., Any]) -> list[Tensor]:
        first = torch.autograd.grad(run(x, h)[0].pow(2).sum(), wanted, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), wanted)]

    compiled(x, h)
    for ours, theirs in zip(second(compiled), second(fn), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    solved(compiled)
    assert torch.autograd.gradgradcheck(compiled, (x[:20].detach().requires_grad_(), h))


def test_batched_and_zero_cotangents() -> None:
    fn = looped(nn.RNNCell(D, D).double())
    compiled = fxsolve.compile(fn, solver=BLOCKS)
    x, h = (a.requires_grad_() for a in arguments())
    compiled(x, h)
    many = torch.eye(D, dtype=torch.float64)
    ours, theirs = (
        torch.autograd.grad(run(x, h)[0][-1].sum(0), (x, h), many, is_grads_batched=True) for run in (compiled, fn)
    )
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == (D, *b.shape[1:]) and torch.allclose(a, b, rtol=1e-9, atol=1e-12)
    result = compiled(x, h)[0]
    for gradient in torch.autograd.grad(result, (x, h), torch.zeros_like(result)):
        assert not gradient.any()
    solved(compiled)


def custom(x: Tensor, h: Tensor) -> Tensor:
    with torch.no_grad():
        shift = h.sin()
    for t in range(x.shape[0]):
        h = torch.tanh(0.5 * h + x[t] + shift)
    return h


def written(x: Tensor, h: Tensor) -> Tensor:
    h = h.detach()
    for t in range(x.shape[0]):
        h.mul_(0.5).add_(x[t].detach())
    return h + x[0]


@pytest.mark.parametrize("fn, reason", [(custom, "switched off"), (written, "writes into its inputs")])
def test_refused_by_name(fn: Function, reason: str) -> None:
    compiled = fxsolve.compile(fn)
    with pytest.warns(fxsolve.FallbackWarning, match=reason):
        backward(compiled, arguments())
    agree(compiled, fn, arguments())


def test_automatic_choice_in_float32() -> None:
    torch.manual_seed(0)
    cell = nn.GRUCell(16, 16)
    fn = looped(cell)
    x, h = torch.randn(600, 1, 16), torch.zeros(1, 16)
    compiled = fxsolve.compile(fn)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            agree(compiled, fn, (x, h), list(cell.parameters()))


def test_a_plan_of_another_size_is_held_against_the_original_with_its_gradients() -> None:
    """Later calls do not see what a backward takes, so the first one of each size has to."""
    torch.manual_seed(0)
    cell = nn.RNNCell(16, 16)
    with torch.no_grad():
        cell.weight_hh *= 0.3
    compiled, fn = fxsolve.compile(looped(cell)), looped(cell)
    for batch in (1, 64):
        agree(compiled, fn, (torch.randn(600, batch, 16), torch.zeros(batch, 16)), list(cell.parameters()))
        timings = compiled._compiler.last.timings
        assert timings["original"] > 0 and timings["compiled"] > 0


def test_a_state_that_does_not_forget_runs_in_order() -> None:
    weight = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64)).Q.requires_grad_()

    def fn(x: Tensor, h: Tensor) -> Tensor:
        for t in range(x.shape[0]):
            h = h @ weight + 0.1 * x[t]
        return h

    compiled = fxsolve.compile(fn)
    for _ in range(2):
        quiet(lambda: agree(compiled, fn, arguments(steps=400), [weight]))


PROGRAMS, CHUNK = 240, 30


@pytest.mark.parametrize("chunk", range(PROGRAMS // CHUNK))
def test_random_recurrences(chunk: int) -> None:
    """Random bodies, orders, buffers and results in float64; at least half of them are solved in blocks."""
    compiled_ones = 0
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        fn, args = loop_program(seed)
        inputs = [a.double() for a in args]
        try:
            backward(fn, inputs)
        except RuntimeError:  # eager itself refuses: a leaf is written, or nothing has a gradient
            continue
        solver = random.Random(seed).choice([JacobiGS(3, 2), JacobiGS(2, 2), GaussSeidel(), GaussSeidel(2)])
        compiled = fxsolve.compile(fn, solver=solver, verify="never")
        try:
            for again in (inputs, [inputs[0].flip(0), *inputs[1:]]):
                quiet(lambda: agree(compiled, fn, again))  # noqa: B023
        except fxsolve.ScheduleError:
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}, {solver}: {error}") from error
        compiled_ones += compiled.solution is not None and compiled.solution.fallback is None
    assert compiled_ones >= CHUNK // 3


def test_torch_compile_backend_trains() -> None:
    """The same script with one word more."""

    def losses(wrap: Callable[[nn.Module], Any]) -> list[float]:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(D, D), Scan()).double()
        run = wrap(module)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        found = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = run(arguments()[0]).square().mean()
            loss.backward()
            optimizer.step()
            found.append(loss.item())
        return found

    torch.compiler.reset()
    ours = losses(lambda module: torch.compile(module, backend="fxsolve"))
    assert ours == pytest.approx(losses(lambda module: module), rel=1e-10)


class Scan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(D, D)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[0]), []
        for row in x:
            h = self.cell(row, h)
            out.append(h)
        return torch.stack(out)


def test_results_may_be_written() -> None:
    """As eager's stacks may: nothing that the backward needs is handed out."""
    cell = nn.GRUCell(D, D).double()
    fn = looped(cell)
    compiled = fxsolve.compile(fn, solver=BLOCKS)
    for _ in range(3):
        found = []
        for run in (compiled, fn):
            cell.zero_grad()
            y, h = run(*arguments())
            y.mul_(2.0)
            h.add_(1.0).sin_()
            (y.square().sum() + h.sum()).backward()
            found.append(torch.cat([p.grad.flatten() for p in cell.parameters()]))  # type: ignore[union-attr]
        assert torch.allclose(*found, rtol=1e-10)
    solved(compiled)


@pytest.fixture
def forgetting(monkeypatch: pytest.MonkeyPatch) -> tuple[nn.RNNCell, Function, Tensor, Tensor]:
    """A cell that forgets within blocks of 16 steps, the only ones that are tried; its loop, and what that reads."""
    monkeypatch.setattr("fxsolve.trials.BLOCKS", (16,))
    monkeypatch.setattr("fxsolve.trials.CHECKS", ())
    torch.manual_seed(0)
    cell = nn.RNNCell(16, 16)
    with torch.no_grad():
        cell.weight_hh.mul_(0.3)
    return cell, looped(cell), torch.randn(800, 1, 16), torch.zeros(1, 16)


def test_a_plan_is_made_anew_as_the_step_forgets_less(forgetting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks that were long enough at first are too short later; the compiled call finds longer ones."""
    cell, fn, x, h = forgetting
    compiled = fxsolve.compile(fn)
    with torch.no_grad():
        for _ in range(6):
            compiled(x, h)
        before = compiled.solution.blocks[0].solver
        cell.weight_hh.mul_(4.5)
        monkeypatch.setattr("fxsolve.trials.BLOCKS", (64, 128))
        for _ in range(4):
            assert torch.allclose(compiled(x, h)[0], fn(x, h)[0], atol=1e-5)
        assert compiled.solution.fallback is None
        assert compiled.solution.blocks[0].solver != before


def test_what_was_not_solved_any_more_has_another_chance(forgetting) -> None:
    """Training may take a step through weights under which it does not forget; later calls are compiled again."""
    cell, fn, x, h = forgetting
    compiled = fxsolve.compile(fn)

    def step() -> str | None:
        found = []
        for run in (compiled, fn):
            cell.zero_grad()
            y = run(x, h)[0]
            y.square().sum().backward()
            found.append(torch.cat([y.detach().flatten(), *(p.grad.flatten() for p in cell.parameters())]))  # type: ignore[union-attr]
        assert torch.allclose(*found, rtol=1e-4, atol=1e-4 * float(found[1].abs().max()))
        return compiled.solution.fallback

    assert [step() for _ in range(2)][-1] is None
    entry = compiled._compiler.last
    entry.rest = 6
    with torch.no_grad():
        cell.weight_hh.mul_(4.5)
    told = [step() for _ in range(5)]
    assert told[2] is None and "no schedule is certified" in str(told[3]) and entry.rest == 12, "two misses, and trials"
    with torch.no_grad():
        cell.weight_hh.div_(4.5)
    assert [step() is None for _ in range(8)] == [False] * 4 + [True] * 4, "six calls of the original, two of them above"
    assert compiled.solution.blocks[0].kind == "Recurrence" and entry.rest == 12


def test_what_does_not_forget_at_its_next_chance_rests_for_twice_as_long(forgetting) -> None:
    cell, fn, x, h = forgetting
    compiled = fxsolve.compile(fn)
    with torch.no_grad():
        compiled(x, h), compiled(x, h)
        entry = compiled._compiler.last
        entry.rest = 3
        cell.weight_hh.mul_(4.5)
        eager = fn(x, h)
        rests = []
        for _ in range(14):
            ours = compiled(x, h)
            assert_same_bits(ours, eager)
            rests.append(entry.rest)
    assert rests == [3, 3, *[6] * 4, *[12] * 7, 24], "two misses, trials, three calls of the original, trials, six, trials"
    assert "the original runs, in order: no schedule is certified" in compiled.explain()
