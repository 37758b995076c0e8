"""The default for an op without a rule: `torch.func.vmap` of that op where it proves right, else a loop over n."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten

from fxsolve import prims
from fxsolve.errors import FxsolveError
from fxsolve.passes.batcher import Batcher
from fxsolve.passes.batching import LEAD, Call, Index, Value, plain

PROBES = 3  # elements of the random batch on which vmap is compared with the loop


@dataclass(frozen=True)
class Each:
    """`op` once for each n: argument k of the flattened arguments is `argument[n]` for k in `mapped`, else the same.

    `ints` says which of the mapped arguments the op takes as Python ints. Results are stacked.
    """

    op: str
    mapped: tuple[int, ...]
    ints: tuple[int, ...]
    vectorized: bool

    @property
    def __name__(self) -> str:
        kind = "vmap" if self.vectorized else "loop"
        where = "_".join(map(str, self.mapped + (("i", *self.ints) if self.ints else ())))
        return f"{kind}_{self.op.replace('::', '_').replace('.', '_')}_{where}"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        flat, spec = tree_flatten((args, kwargs))

        def one(*elements: Any) -> Any:
            inner = list(flat)
            for k, element in zip(self.mapped, elements, strict=True):
                inner[k] = int(element) if k in self.ints else element
            inner_args, inner_kwargs = tree_unflatten(inner, spec)
            return resolve(self.op)(*inner_args, **inner_kwargs)

        batched = [flat[k] for k in self.mapped]
        if self.vectorized:
            return torch.func.vmap(one)(*batched)
        # Each element in storage of its own: an op may address storage, as as_strided does.
        return _stack([one(*(e.clone() for e in elements)) for elements in zip(*batched, strict=True)])


@functools.cache
def resolve(name: str) -> Any:
    """The overload `aten::mm.default`, or the function `prims::take`, by its name."""
    namespace, _, rest = name.partition("::")
    if namespace == "prims":
        return getattr(prims, rest)
    packet, _, overload = rest.partition(".")
    return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


@functools.cache
def each(op: str, mapped: tuple[int, ...], ints: tuple[int, ...], vectorized: bool) -> Each:
    """One object for equal calls: generated code binds a name to one object."""
    return Each(op, mapped, ints, vectorized)


def _stack(results: list[Any]) -> Any:
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results)
    return tuple(None if parts[0] is None else torch.stack(parts) for parts in zip(*results, strict=True))


def default(b: Batcher, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The call for each n, behind the lead."""
    if call.type is None:
        raise FxsolveError(f"{call.target} gives no tensor: a step with it cannot be batched")
    flat, spec = tree_flatten((args, kwargs))
    mapped = tuple(k for k, a in enumerate(flat) if isinstance(a, Index) or isinstance(a, Value) and not a.fixed)
    ints = tuple(k for k in mapped if isinstance(flat[k], Index))
    op = f"{getattr(call.target, 'namespace', 'prims')}::{call.target.__name__}"
    in_lead = [b.lead(a) if k in mapped and isinstance(a, Value) else plain(a) for k, a in enumerate(flat)]
    target = each(op, mapped, ints, not ints and _vmap_is_right(op, mapped, flat, spec))
    new_args, new_kwargs = tree_unflatten(in_lead, spec)
    return b.finish(b.emit_lead(target, new_args, new_kwargs, call.type), call.type, LEAD)


def _vmap_is_right(op: str, mapped: tuple[int, ...], flat: list[Any], spec: Any) -> bool:
    """Whether vmap knows the op (and would not loop itself) and gives what the loop gives on random values."""
    samples = [_sample(a, k in mapped) for k, a in enumerate(flat)]
    args, kwargs = tree_unflatten(samples, spec)
    try:
        with torch.no_grad():
            wanted = each(op, mapped, (), False)(*args, **kwargs)
            with _no_fallback():
                found = each(op, mapped, (), True)(*args, **kwargs)
            torch.testing.assert_close(found, wanted, equal_nan=True)
    except Exception:  # whatever vmap or the op has against it, the loop is the answer
        return False
    return True


@contextlib.contextmanager
def _no_fallback() -> Iterator[None]:
    """Makes vmap raise for an op that it has no rule for, where it else warns and loops."""
    switch: Any = torch._C
    before = switch._functorch._is_vmap_fallback_enabled()
    switch._functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        switch._functorch._set_vmap_fallback_enabled(before)


def _sample(argument: Any, batched: bool) -> Any:
    """Random values for a tensor argument; integers are 0 or 1, which as indices are nearly always in range."""
    if not isinstance(argument, Value):
        return argument
    type = argument.type
    shape = (PROBES, *type.shape) if batched else type.shape
    generator = torch.Generator(type.device).manual_seed(0)
    if type.dtype.is_floating_point or type.dtype.is_complex:
        return torch.randn(shape, dtype=type.dtype, device=type.device, generator=generator)
    return torch.randint(0, 2, shape, device=type.device, generator=generator).to(type.dtype)
