"""What the end-to-end tests share: running a compiled callable beside the original, and judging the difference."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import fxsolve
from fxsolve.bits import same_bits

EPS = 2.0**-23
FLOOR = 4.0  # rounding errors of float32, relative to the largest result: below this nothing is judged


def clones(args: Sequence[Any]) -> list[Any]:
    """Copies of the tensors among the arguments, so that no call sees what another one wrote."""
    return [a.clone() if isinstance(a, Tensor) else a for a in args]


def tensors(result: Any) -> list[Tensor]:
    return [x for x in pytree.tree_leaves(result) if isinstance(x, Tensor)]


def doubled(value: Any) -> Any:
    """The same in float64: modules are not touched, tensors are."""
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def later_call(compiled: Any, args: Sequence[Any], first: Sequence[Any] | None = None) -> Any:
    """The result of a second call: the first one answers with the recorded run, this one with the compiled program."""
    with torch.no_grad():
        compiled(*clones(first if first is not None else args))
        return compiled(*clones(args))


def assert_same_bits(ours: Any, theirs: Any) -> None:
    """Same structure, and every tensor equal bit for bit."""
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert same_bits(a.contiguous(), b.contiguous()), f"{int((a != b).sum())} of {a.numel()} elements differ"


def assert_to_rounding(ours: Any, theirs: Any, exact: Any) -> None:
    """No tensor is farther from a float64 run than twice eager's own distance, plus a tiny floor."""
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for a, b, c in zip(tensors(ours), tensors(theirs), tensors(exact), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if not a.numel():
            continue
        if not b.is_floating_point():
            assert torch.equal(a, b)
            continue
        finite = b.isfinite()
        if not bool(finite.all()):
            assert torch.equal(a.isfinite(), finite) and same_bits(a[~finite], b[~finite])
            a, b, c = a[finite], b[finite], c[finite]
            c = torch.where(c.isfinite(), c, b.double())
            if not a.numel():
                continue
        scale = float(c.abs().max())
        floor = FLOOR * torch.finfo(b.dtype).eps * scale
        eager = float((b.double() - c).abs().max())
        mine = float((a.double() - c).abs().max())
        assert mine <= 2 * eager + floor, f"off by {mine:.3g}, eager by {eager:.3g}, results up to {scale:.3g}"


def assert_close(ours: Any, theirs: Any, units: float = 64.0) -> None:
    """Within some rounding errors of the largest element: for programs that forget, where no float64 run is at hand."""
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for a, b in zip(tensors(ours), tensors(theirs), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        if not b.is_floating_point():
            assert torch.equal(a, b)
        elif b.numel():
            allowed = units * torch.finfo(b.dtype).eps * float(b.detach().abs().max().clamp(min=1e-30))
            assert float((a - b).detach().abs().max()) <= allowed


def assert_certified(compiled: Any, solver: Any = None) -> None:
    """The last call was solved by the compiled program, and every block says how far its equations hold."""
    solution = compiled.solution
    assert solution is not None and solution.fallback is None, str(solution)
    assert solution.blocks, "nothing was solved"
    for block in solution.blocks:
        assert block.frontier[-1] == block.equations or block.equations == 0
        assert list(block.frontier) == sorted(block.frontier)
        assert block.sweeps == len(block.frontier) or block.solver.startswith("GaussSeidel")
        assert 0.0 <= block.residual <= 8.0
        assert block.certificate
        if solver is not None:
            assert block.solver == str(solver)
        if block.residual > 0.0:
            assert block.contraction is not None and block.contraction < 0.5


def quiet(function: Callable[[], Any]) -> Any:
    """The result of a call that may fall back to the original: that is right, if not quick."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", fxsolve.FallbackWarning)
        return function()
