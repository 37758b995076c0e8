"""Gradients through samplers that are solved as fixed points are eager's: reparametrised draws, log-probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxsolve
from fxsolve import GSJacobi, Jacobi, JacobiGS
from fxsolve.fixed_point_gradient import AdjointProblem
from tests.checking import quiet
from tests.passes.random_causal import LENGTH, Network
from tests.test_training import agree, backward

T, N, HIDDEN = 14, 3, 20
Function = Callable[..., Any]


def solved(compiled: Any) -> None:
    """The last call and its backward were solved as fixed points."""
    assert compiled.solution.fallback is None, compiled.solution
    assert [b.kind for b in compiled.solution.blocks] == ["FixedPoint"]
    assert "evaluated with all that it hangs on final" in compiled.explain()


def normal(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Masked(nn.Module):
    """A two-layer MLP that says mean and log of the spread of each x_t given those before; masked in each call, or once."""

    def __init__(self, masked_once: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        degree = torch.arange(HIDDEN) % (T - 1)
        self.register_buffer("first", (degree[:, None] >= torch.arange(T)).double())
        self.register_buffer("last", (torch.arange(T)[:, None] > degree).double().repeat(2, 1))
        self.inner, self.outer = nn.Linear(T, HIDDEN).double(), nn.Linear(HIDDEN, 2 * T).double()
        self.masked_once = masked_once
        if masked_once:
            self.inner.weight.data *= self.first
            self.outer.weight.data *= self.last

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self.inner.weight, self.outer.weight
        if not self.masked_once:
            first, last = first * self.first, last * self.last
        out = F.linear(torch.tanh(F.linear(x, first, self.inner.bias)), last, self.outer.bias)
        mean, spread = out.chunk(2, -1)
        return mean, torch.tanh(spread)

    def sample(self, noise: Tensor) -> Tensor:
        x = torch.zeros_like(noise)
        for t in range(T):
            mean, spread = self(x)
            x = x.clone()
            x[:, t] = mean[:, t] + torch.exp(spread[:, t]) * noise[:, t]
        return x

    def with_density(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The sample and the log-determinant of noise -> sample, step by step."""
        x, steps = torch.zeros_like(noise), []
        for t in range(T):
            mean, spread = self(x)
            x = x.clone()
            x[:, t] = mean[:, t] + torch.exp(spread[:, t]) * noise[:, t]
            steps.append(spread[:, t])
        return x, torch.stack(steps, 1).sum(1)

    def completed(self, given: Tensor, noise: Tensor) -> Tensor:
        """The first few of x are given."""
        x = given
        for t in range(4, T):
            mean, spread = self(x)
            x = x.clone()
            x[:, t] = mean[:, t] + torch.exp(spread[:, t]) * noise[:, t - 4]
        return x


class Wave(nn.Module):
    """Dilated causal convolutions."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Conv1d(1 if d == 1 else 4, 4, 2, dilation=d) for d in (1, 2, 4)])
        self.out = nn.Conv1d(4, 2, 1)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = F.pad(x, (1, -1))
        for layer in self.layers:
            h = torch.tanh(layer(F.pad(h, (layer.dilation[0], 0))))
        return self.out(h)

    def sample(self, noise: Tensor) -> Tensor:
        x = torch.zeros_like(noise)
        for t in range(T):
            out = self(x)
            x = x.clone()
            x[:, 0, t] = out[:, 0, t] + F.softplus(out[:, 1, t]) * noise[:, 0, t]
        return x


SAMPLERS: dict[str, tuple[Callable[[], nn.Module], str, tuple[tuple[int, ...], ...]]] = {
    "masked": (Masked, "sample", ((N, T),)),
    "log-determinants": (Masked, "with_density", ((N, T),)),
    "completed": (Masked, "completed", ((N, T), (N, T - 4))),
    "convolutions": (Wave, "sample", ((N, 1, T),)),
}


def made(name: str) -> tuple[nn.Module, Function, list[Tensor]]:
    make, method, shapes = SAMPLERS[name]
    module = make()
    return module, getattr(module, method), [normal(*shape, seed=i) for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights move from call to call, as an optimizer moves them; what is masked stays proved."""
    module, fn, inputs = made(name)
    proofs: list[Any] = []
    prove = fxsolve.schedule.prove  # type: ignore[attr-defined]
    monkeypatch.setattr("fxsolve.schedule.prove", lambda *args: proofs.append(prove(*args)) or proofs[-1])
    compiled = fxsolve.compile(fn, solver=Jacobi(), exactness="rounding" if name == "convolutions" else "auto")
    for _ in range(4):
        agree(compiled, fn, inputs, list(module.parameters()))
        solved(compiled)
        with torch.no_grad():
            for p in module.parameters():
                p.add_(0.05 * torch.randn_like(p))
    assert len(proofs) == 1


@pytest.mark.parametrize("solver", [GSJacobi(4), JacobiGS(3)], ids=str)
def test_other_solvers_of_the_forward(solver: Any) -> None:
    module, fn, inputs = made("log-determinants")
    compiled = fxsolve.compile(fn, solver=solver)
    for _ in range(2):
        agree(compiled, fn, inputs, list(module.parameters()))
        solved(compiled)


def test_values_are_eagers_bits_in_float32() -> None:
    module, fn, inputs = made("log-determinants")
    module.float()
    inputs = [x.float() for x in inputs]
    compiled = fxsolve.compile(fn, solver=Jacobi())
    for _ in range(3):
        agree(compiled, fn, inputs, list(module.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(compiled(*inputs), fn(*inputs), strict=True))
        solved(compiled)


def test_gradcheck() -> None:
    """By noise, weights, and an initial buffer of which the first three are given."""
    mask = torch.ones(T, T, dtype=torch.float64).tril(-1)

    def sample(given: Tensor, noise: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        x, steps = given, []
        for t in range(3, T):
            mean = torch.sin(F.linear(x, weight * mask, bias))
            x = x.clone()
            x[:, t] = mean[:, t] + torch.exp(0.5 * mean[:, t]) * noise[:, t]
            steps.append(0.5 * mean[:, t])
        return x, torch.stack(steps).sum(0)

    compiled = fxsolve.compile(sample, solver=Jacobi())
    shapes = ((2, T), (2, T), (T, T), (T,))
    assert torch.autograd.gradcheck(compiled, tuple(normal(*s, seed=i).requires_grad_() for i, s in enumerate(shapes)))
    solved(compiled)


def test_masked_entries_of_a_weight_have_no_gradient() -> None:
    module, fn, inputs = made("masked")
    compiled = fxsolve.compile(fn, solver=Jacobi())
    for _ in range(2):
        _, (_, weight) = backward(compiled, inputs, [module.inner.weight])
        assert torch.equal(weight[module.first == 0], torch.zeros(int((module.first == 0).sum())).double())


# -- zeros that were put into the weights --------------------------------------------------------------


def test_zeros_in_weights_that_are_frozen() -> None:
    module = Masked(masked_once=True)
    for layer in (module.inner, module.outer):
        layer.weight.requires_grad_(False)
    compiled = fxsolve.compile(module.sample, solver=Jacobi())
    for _ in range(2):
        agree(compiled, module.sample, [normal(N, T)], [module.inner.bias, module.outer.bias])
        solved(compiled)


def test_zeros_in_weights_whose_gradients_are_masked() -> None:
    module = Masked(masked_once=True)
    module.inner.weight.register_hook(lambda g: g * module.first)
    module.outer.weight.register_hook(lambda g: g * module.last)
    compiled = fxsolve.compile(module.sample, solver=Jacobi())
    for _ in range(2):
        agree(compiled, module.sample, [normal(N, T)], list(module.parameters()))
        solved(compiled)


@pytest.mark.parametrize("verify", ["first", "never"])
def test_zeros_that_are_trained_run_the_original(verify: Any) -> None:
    """In order, step t multiplies a zero by what the later slots held at first: that is a part of the zero's gradient."""
    module = Masked(masked_once=True)
    compiled = fxsolve.compile(module.sample, solver=Jacobi(), verify=verify)
    with pytest.warns(fxsolve.FallbackWarning, match="zeros that are trained, not masked"):
        backward(compiled, [normal(N, T)])
    agree(compiled, module.sample, [normal(N, T)], list(module.parameters()))


def test_a_last_layer_that_starts_at_zero() -> None:
    """The proof of the first call may not rest on zeros that the mask does not keep."""
    module, fn, inputs = made("log-determinants")
    with torch.no_grad():
        module.outer.weight.zero_()
    compiled = fxsolve.compile(fn, solver=Jacobi())
    for _ in range(3):
        agree(compiled, fn, inputs, list(module.parameters()))
        solved(compiled)
        with torch.no_grad():
            module.outer.weight.add_(0.1 * torch.randn_like(module.outer.weight))


# -- what does not collapse ----------------------------------------------------------------------------


def test_a_leak_runs_the_original() -> None:
    module, fn, inputs = made("masked")
    with torch.no_grad():
        module.first[3, 9] = 1.0  # type: ignore[index]
    compiled = fxsolve.compile(fn)
    with pytest.warns(fxsolve.FallbackWarning, match="runs in order: not causal.*entry"):
        agree(compiled, fn, inputs, list(module.parameters()))
    agree(compiled, fn, inputs, list(module.parameters()))
    assert "not causal" in str(compiled.solution)


def test_a_mask_that_comes_to_leak_is_seen() -> None:
    module, fn, inputs = made("masked")
    compiled = fxsolve.compile(fn)
    quiet(lambda: agree(compiled, fn, inputs, list(module.parameters())))
    with torch.no_grad():
        module.first[3, 9] = 1.0  # type: ignore[index]
    for _ in range(3):
        quiet(lambda: agree(compiled, fn, inputs, list(module.parameters())))
    assert compiled.solution.fallback is not None


def test_gradients_of_gradients() -> None:
    module, fn, (noise,) = made("masked")
    compiled = fxsolve.compile(fn, solver=Jacobi())
    wanted = [noise.requires_grad_(), *module.parameters()]

    def second(run: Callable[..., Any]) -> list[Tensor]:
        first = torch.autograd.grad(run(noise).pow(2).sum(), wanted, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.pow(2).sum() for g in first), wanted)]

    compiled(noise)
    for ours, theirs in zip(second(compiled), second(fn), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    assert compiled.solution.fallback is None


# -- what goes on around -------------------------------------------------------------------------------


def test_gradients_on_and_off() -> None:
    module, fn, inputs = made("log-determinants")
    compiled = fxsolve.compile(fn, solver=Jacobi())
    for _ in range(2):
        with torch.no_grad():
            assert not any(r.requires_grad for r in compiled(*inputs))
        agree(compiled, fn, inputs, list(module.parameters()))
    module.inner.weight.requires_grad_(False)
    for _ in range(2):
        agree(compiled, fn, inputs, [p for p in module.parameters() if p.requires_grad])
        solved(compiled)
    module.requires_grad_(False)
    for _ in range(2):
        agree(compiled, fn, inputs)
        solved(compiled)


def agree_after(backward: Callable[[Tensor, Tensor], None]) -> None:
    """The parameters' gradients after something is done with samples and log-determinants, eagerly and compiled."""
    module, fn, inputs = made("log-determinants")
    compiled = fxsolve.compile(fn, solver=Jacobi())
    for _ in range(2):
        found = []
        for run in (compiled, fn):
            module.zero_grad()
            backward(*run(*inputs))
            found.append(torch.cat([p.grad.flatten() for p in module.parameters()]))  # type: ignore[union-attr]
        assert torch.allclose(*found, rtol=1e-12, atol=1e-12)
    solved(compiled)


def test_several_backwards() -> None:
    def several(x: Tensor, density: Tensor) -> None:
        x.sin().sum().backward(retain_graph=True)
        (x.square().mean() + density.mean()).backward(retain_graph=True)
        density.sum().backward()

    agree_after(several)


def test_results_may_be_written() -> None:
    def written(x: Tensor, density: Tensor) -> None:
        x.mul_(2.0)
        density.add_(1.0).sin_()
        (x.square().sum() + density.sum()).backward()

    agree_after(written)


def chosen_by_sign(module: Masked, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Draws without gradients; those of their log-probabilities go through the steps all the same (REINFORCE)."""
    x, steps = torch.zeros_like(noise), []
    for t in range(T):
        logit = module(x)[0][:, t]
        spin = torch.where(noise[:, t] < logit, 1.0, -1.0).double()
        x = x.clone()
        x[:, t] = spin
        steps.append(F.logsigmoid(spin * logit))
    return x, torch.stack(steps).sum(0)


def drawn_tokens(module: Masked, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The same with a buffer of integers."""
    x, steps = torch.zeros(noise.shape, dtype=torch.long), []
    for t in range(T):
        logit = module(x.double())[0][:, t]
        spin = noise[:, t] < logit
        x = x.clone()
        x[:, t] = spin
        steps.append(F.logsigmoid(torch.where(spin, logit, -logit)))
    return x, torch.stack(steps).sum(0)


def partly_detached(module: Masked, noise: Tensor) -> tuple[Tensor, Tensor]:
    x, steps = torch.zeros_like(noise), []
    for t in range(T):
        mean, spread = module(x)
        x = x.clone()
        x[:, t] = mean[:, t].detach() + torch.exp(spread[:, t]) * noise[:, t]
        steps.append(mean[:, t].detach())
    return x, torch.stack(steps)


def two_buffers(module: Masked, noise: Tensor) -> tuple[Tensor, Tensor]:
    x, y = torch.zeros_like(noise), torch.zeros_like(noise)
    for t in range(T):
        mean, spread = module(x - 0.5 * y)
        x, y = x.clone(), y.clone()
        x[:, t] = mean[:, t] + noise[:, t]
        y[:, t] = torch.sin(spread[:, t]) * noise[:, t]
    return x * y, y


PROGRAMS = [chosen_by_sign, drawn_tokens, partly_detached, two_buffers]


@pytest.mark.parametrize("fn", PROGRAMS, ids=lambda f: f.__name__)
def test_programs(fn: Function) -> None:
    module = Masked()
    compiled = fxsolve.compile(lambda noise: fn(module, noise), solver=Jacobi())
    for seed in range(3):
        agree(compiled, lambda noise: fn(module, noise), [normal(N, T, seed=seed)], list(module.parameters()))
        solved(compiled)


def test_in_place() -> None:
    """Where no weight has a gradient, autograd keeps nothing that is written over."""
    module = Masked().requires_grad_(False)

    def sample(noise: Tensor) -> Tensor:
        x = torch.zeros_like(noise)
        for t in range(T):
            mean, spread = module(x)
            x[:, t] = mean[:, t] + torch.exp(spread[:, t]) * noise[:, t]
        return x

    compiled = fxsolve.compile(sample, solver=Jacobi())
    for seed in range(3):
        agree(compiled, sample, [normal(N, T, seed=seed)])
        solved(compiled)


def test_drawn_noise() -> None:
    module = Masked()

    def sample(shift: Tensor) -> Tensor:
        return module.sample(torch.randn(N, T, dtype=torch.float64) + shift)

    compiled = fxsolve.compile(sample, solver=Jacobi())
    for seed in range(3):
        agree(compiled, sample, [normal(N, T)], list(module.parameters()), seed)
        solved(compiled)


def test_guesses_that_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """x_t = eps_t - (x_1 + .. + x_{t-1}) is tame, but sweeps towards it go through binomial coefficients."""
    length = 150
    weight = -torch.ones(length, length).tril(-1)

    def sample(noise: Tensor) -> Tensor:
        x = torch.zeros_like(noise)
        for t in range(length):
            mean = x @ weight.t()
            x = x.clone()
            x[:, t] = mean[:, t] + noise[:, t]
        return x

    alone: list[int] = []
    commit_one = AdjointProblem.commit_one
    monkeypatch.setattr(AdjointProblem, "commit_one", lambda problem: alone.append(commit_one(problem)) or alone[-1])
    compiled = fxsolve.compile(sample, solver=Jacobi(), exactness="rounding")
    for _ in range(2):
        agree(compiled, sample, [normal(2, length, dtype=torch.float32)])
        solved(compiled)
    assert alone


@pytest.mark.parametrize("chunk", range(4))
def test_random_networks(chunk: int) -> None:
    """Random causal networks; those that are not causal run as the original."""
    count = 0
    for seed in range(25 * chunk, 25 * (chunk + 1)):
        network = Network(seed, depth=3)
        if "batch_norm" in network.names:  # takes statistics that have no gradient
            continue
        trained = [t for t in network.tensors if t.is_floating_point() and bool((t != 0).all() & t.isfinite().all())]
        for tensor in trained:
            tensor.requires_grad_()

        def sample(start: Tensor, noise: Tensor, network: Network = network) -> tuple[Tensor, Tensor]:
            x, steps = start, []
            for t in range(LENGTH):
                out = network(x, *network.tensors)
                mean, spread = out[:, 0, t].tanh(), out[:, 1, t].tanh()
                x = x.clone()
                x[:, t] = mean + spread.exp() * noise[:, t]
                steps.append(spread)
            return x, torch.stack(steps).sum(0)

        compiled = fxsolve.compile(sample, solver=Jacobi())
        try:
            for again in range(2):
                agree(compiled, sample, [normal(2, LENGTH, seed=seed + again), normal(2, LENGTH, seed=again)], trained)
        except fxsolve.ScheduleError as error:
            assert "not causal" in str(error) or "bits" in str(error)
            continue
        except Exception as error:
            raise AssertionError(f"seed {seed}, {network.names}: {error}") from error
        solved(compiled)
        count += 1
    assert count >= 8


def test_a_training_run() -> None:
    """Reverse KL between a masked autoregressive flow and a ring of correlated normals, by Adam."""

    def trained(compile_it: bool) -> tuple[list[float], Any]:
        module = Masked()
        fn = fxsolve.compile(module.with_density, solver=Jacobi()) if compile_it else module.with_density
        optimizer = torch.optim.Adam(module.parameters(), lr=0.02)
        losses = []
        for step in range(20):
            noise = normal(16, T, seed=step)
            x, density = fn(noise)
            energy = 0.5 * (x - 0.7 * x.roll(1, 1)).square().sum(1)
            loss = (energy - density).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return losses, fn

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, compiled = trained(True)
    theirs, _ = trained(False)
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert min(theirs[15:]) < theirs[0]
    solved(compiled)


def test_automatic_choice() -> None:
    """Whether it pays or not, the gradients are eager's."""
    module, fn, inputs = made("log-determinants")
    compiled = fxsolve.compile(fn)
    for _ in range(3):
        agree(compiled, fn, inputs, list(module.parameters()))
    assert "FixedPoint" in compiled.explain()
