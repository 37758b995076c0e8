"""Calls inside of transforms, tracers, modes and checkpoints: the original's operations, as if nothing were compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import fxsolve
from tests.checking import assert_close, assert_same_bits

X = torch.randn(96, 3, 4, generator=torch.Generator().manual_seed(0))
BLOCKS = fxsolve.JacobiGS(16)


def leaky(x: Tensor) -> Tensor:
    h, out = x[0], []
    for t in range(1, x.shape[0]):
        h = torch.tanh(0.5 * h + x[t])
        out.append(h)
    return torch.stack(out)


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return leaky(self.layer(x))


torch.manual_seed(0)
MODELS = [Cell() for _ in range(3)]
PARAMETERS = {name: 0.5 * p.detach() for name, p in MODELS[0].named_parameters()}


def dual(fn: Any) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(fn(forward_ad.make_dual(X, torch.ones_like(X)))).tangent


def ensemble(fn: Any) -> Tensor:
    parameters, _ = torch.func.stack_module_state(MODELS)  # pyright: ignore[reportArgumentType]
    return torch.vmap(lambda p: torch.func.functional_call(fn, p, (X,)))(parameters)


def fake(fn: Any) -> Any:
    with FakeTensorMode() as mode:
        return fn(mode.from_tensor(X)).shape


def flops(fn: Any) -> int:
    with FlopCounterMode(display=False) as counter:
        fn(X)
    return counter.get_total_flops()


def checkpointed(fn: Any) -> Any:
    x = X.clone().requires_grad_()
    return torch.autograd.grad(checkpoint(fn, x, use_reentrant=False).sum(), x)  # type: ignore[union-attr]


CASES: dict[str, tuple[Callable[[Any], Any], str, Any]] = {
    "vmap": (lambda fn: torch.vmap(fn, in_dims=1, out_dims=1)(X), "torch.func.vmap", leaky),
    "grad": (lambda fn: torch.func.grad(lambda x: fn(x).sum())(X), "torch.func.grad", leaky),
    "jvp": (lambda fn: torch.func.jvp(fn, (X,), (torch.ones_like(X),)), "torch.func.jvp", leaky),
    "jacrev": (lambda fn: torch.func.jacrev(lambda x: fn(x)[-1, 0])(X[:9]), "torch.func.grad", leaky),
    "hessian": (lambda fn: torch.func.hessian(lambda x: fn(x).sum())(X[:40, :1]), "torch.func.", leaky),
    "ensemble": (ensemble, "torch.func.vmap", MODELS[0]),
    "forward_ad": (dual, "forward derivatives", leaky),
    "fake tensors": (fake, "FakeTensorMode", leaky),
    "make_fx": (lambda fn: [str(n.target) for n in make_fx(fn)(X).graph.nodes], "ProxyTorchDispatchMode", leaky),
    "counting mode": (flops, "FlopCounterMode", MODELS[0]),
    "jit.trace": (lambda fn: torch.jit.trace(fn, (X,))(X + 1), "torch.jit.trace", leaky),
    "checkpoint": (checkpointed, "torch.utils.checkpoint", leaky),
}


@pytest.mark.filterwarnings("ignore:`torch.jit")  # torch's own
@pytest.mark.parametrize("known", [False, True], ids=["at first", "once compiled"])
@pytest.mark.parametrize("case", CASES)
def test_the_original_runs_and_says_so(case: str, known: bool) -> None:
    run, said, fn = CASES[case]
    compiled = fxsolve.compile(fn, solver=BLOCKS)
    if known:
        for x in (X, X[:9], X[:40, :1], X[:, 0], X.clone().requires_grad_()):
            compiled(x)
            compiled(x)
    with pytest.warns(fxsolve.FallbackWarning, match="it is called inside of|forward derivatives") as caught:
        ours = run(compiled)
    ours_only = [str(w.message) for w in caught if issubclass(w.category, fxsolve.FallbackWarning)]
    assert len(ours_only) in (1, 2) and said in ours_only[0]
    theirs = run(fn)
    if torch.utils._pytree.tree_any(lambda leaf: isinstance(leaf, Tensor), theirs):
        assert_same_bits(ours, theirs)
    else:
        assert ours == theirs
    compiled(X)  # and nothing of it is left
    compiled(X)
    assert compiled.solution.fallback is None
    assert_close(compiled(X), fn(X))


def test_it_is_an_error_without_fallback() -> None:
    compiled = fxsolve.compile(leaky, solver=BLOCKS, fallback=False)
    with pytest.raises(fxsolve.CaptureError, match="inside of torch.func.vmap"):
        torch.vmap(compiled, in_dims=1, out_dims=1)(X)
    assert compiled(X).shape == leaky(X).shape


@pytest.mark.parametrize("known", [False, True])
def test_dynamo_reads_the_original(known: bool) -> None:
    compiled = fxsolve.compile(MODELS[0], solver=BLOCKS)
    if known:
        compiled(X[:5])
        compiled(X[:5])
    with warnings.catch_warnings():
        warnings.simplefilter("error", fxsolve.FallbackWarning)
        assert_close(torch.compile(compiled, backend="eager", fullgraph=True)(X[:5]), MODELS[0](X[:5]))
        exported = [torch.export.export(module, (X[:5],)).graph for module in (compiled, MODELS[0])]
    ours, theirs = ([n.target for n in graph.nodes if n.op == "call_function"] for graph in exported)
    assert ours == theirs and len(theirs) > 10


def test_functional_call_with_other_parameters() -> None:
    compiled = fxsolve.compile(MODELS[0], solver=BLOCKS)
    expected = torch.func.functional_call(MODELS[0], PARAMETERS, (X,))
    for _ in range(3):
        assert_close(torch.func.functional_call(compiled, PARAMETERS, (X,)), expected)
        assert_close(compiled(X), MODELS[0](X))


def test_other_hooks_of_saved_tensors_do_not_matter() -> None:
    compiled = fxsolve.compile(leaky, solver=BLOCKS)
    x = X.clone().requires_grad_()
    for _ in range(3):
        with torch.autograd.graph.save_on_cpu():
            ours = compiled(x)
        (gradient,) = torch.autograd.grad(ours.sum(), x)
        (expected,) = torch.autograd.grad(leaky(x).sum(), x)
        assert_close(gradient, expected)
    assert compiled.solution.fallback is None


def test_jacobians_of_autograd() -> None:
    compiled, x = fxsolve.compile(leaky, solver=BLOCKS), X.clone().requires_grad_()
    compiled(x)
    last = [lambda y, fn=fn: fn(y)[-1, 0] for fn in (compiled, leaky)]  # type: ignore[misc]
    for vectorize in (False, True):
        ours, theirs = (torch.autograd.functional.jacobian(fn, X, vectorize=vectorize) for fn in last)
        assert torch.allclose(ours, theirs, atol=1e-6)
    hessians = [torch.autograd.functional.hessian(lambda y, fn=fn: fn(y).pow(2).sum(), X[:4, :1]) for fn in (compiled, leaky)]  # type: ignore[misc]
    assert torch.allclose(*hessians, atol=1e-5)


def test_a_compiled_callable_inside_of_another_says_nothing() -> None:
    """Neither while the outer one is recorded, nor while its memory is counted."""
    inner = fxsolve.compile(leaky)
    x = torch.randn(600, 1, 4)
    for _ in range(3):
        inner(x)

    def outer(x: Tensor) -> Tensor:
        h = inner(x)[-1]
        for t in range(600):
            h = torch.tanh(0.5 * h + x[t])
        return h

    compiled = fxsolve.compile(outer)
    for _ in range(3):
        assert_close(compiled(x), outer(x))
    assert "held at a time: original " in compiled.explain()
