"""The signature of a call: what compiled code is cached by.

Two calls with equal signatures run the same compiled code as long as the guards (`fxsolve.guards`) hold. A signature
covers the arguments and the global state of torch that decides which kernels run:

- tensors by class, shape, strides, dtype, device, requires_grad, inference, conjugate and negative bits;
- which tensor arguments are one object or share memory (`f(a, a)` is not `f(a, b)`);
- every other leaf of the arguments by type and value (1, 1.0 and True differ; 0.0 and -0.0 differ; NaN equals NaN);
- grad, inference and autocast modes, default dtype and device, determinism, TF32 settings, number of threads.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from fxsolve.errors import CaptureError

# Arguments of these types are leaves: when all are, nothing needs to be flattened.
ATOMS = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)
FLAT = frozenset({torch.Tensor, torch.nn.Parameter, *ATOMS})
AUTOCAST = ("cpu", "cuda")
PRECISION = (("cuda", "matmul"), ("cuda", "conv"), ("cuda", "rnn"), ("mkldnn", "matmul"), ("mkldnn", "conv"))


def signature(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable:
    """The key of the call `fn(*args, **kwargs)`; a `CaptureError` names an argument that cannot be part of a key."""
    structure, leaves = None, args
    if kwargs or not all(type(value) in FLAT for value in args):
        leaves, structure = pytree.tree_flatten((tuple(args), dict(kwargs)))
    try:
        keys = tuple([leaf_key(value) for value in leaves])
    except (TypeError, RuntimeError, ValueError):
        raise _refusal(args, kwargs) from None
    return keys, structure, _alias_pattern(leaves), global_state()


def leaf_key(value: Any) -> Hashable:
    """One leaf of the arguments as a key. Raises TypeError, RuntimeError or ValueError where there is none."""
    if isinstance(value, torch.Tensor):
        return _tensor_key(value)
    kind = type(value)
    if kind is float:
        return kind, value.hex()
    if kind is complex:
        return kind, value.real.hex(), value.imag.hex()
    if kind is slice:  # not hashable before Python 3.12
        return kind, leaf_key(value.start), leaf_key(value.stop), leaf_key(value.step)
    if isinstance(value, np.generic):
        return kind, value.tobytes()
    hash(value)
    return kind, value


def global_state() -> Hashable:
    """The process and thread state of torch on which results depend."""
    modes = torch._C._len_torch_function_stack()  # a default device is such a mode; asking for it takes microseconds
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *[torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) for device in AUTOCAST],
        torch.get_default_dtype(),
        torch.get_default_device() if modes else None,
        torch.are_deterministic_algorithms_enabled(),
        # The public getters raise when old and new style settings were mixed; this one always answers.
        *[torch._C._get_fp32_precision_getter(backend, op) for backend, op in PRECISION],
        torch.get_num_threads(),
    )


def _tensor_key(value: torch.Tensor) -> Hashable:
    if value.layout is not torch.strided:
        raise TypeError(f"its layout is {value.layout}")
    return (
        type(value),
        value.shape,
        value.stride(),
        value.dtype,
        value.device,
        value.requires_grad,
        value.is_inference(),
        value.is_conj(),
        value.is_neg(),
    )


def _alias_pattern(leaves: Sequence[Any]) -> Hashable:
    """() when no two tensors share memory; else for each its first occurrence, its memory's group and place there.

    Memory is compared by address, so arrays that entered through `from_numpy` twice are seen to be one.
    """
    tensors = [value for value in leaves if isinstance(value, torch.Tensor)]
    if len(tensors) < 2:
        return ()
    spans = []
    for position, value in enumerate(tensors):
        storage = value.untyped_storage()
        start = storage.data_ptr()
        spans.append((start, start + storage.nbytes(), position))
    spans.sort()
    shared = any(after[0] < before[1] for before, after in zip(spans, spans[1:]))
    if not shared and len({id(value) for value in tensors}) == len(tensors):
        return ()
    return _groups(spans, tensors)


def _groups(spans: list[tuple[int, int, int]], tensors: list[torch.Tensor]) -> Hashable:
    first: dict[int, int] = {}
    for position, value in enumerate(tensors):
        first.setdefault(id(value), position)
    pattern: list[Hashable] = [None] * len(tensors)
    group, group_start, group_end = -1, 0, -1
    for start, end, position in spans:
        if start >= group_end:
            group, group_start, group_end = group + 1, start, end
        group_end = max(group_end, end)
        value = tensors[position]
        place = start - group_start + value.storage_offset() * value.element_size()
        pattern[position] = (first[id(value)], group, place)
    return _renumbered(pattern)


def _renumbered(pattern: list[Any]) -> Hashable:
    """Groups counted in the order of the arguments, so that the pattern does not depend on where memory lies."""
    numbers: dict[int, int] = {}
    return tuple([(first, numbers.setdefault(group, len(numbers)), place) for first, group, place in pattern])


def _refusal(args: Sequence[Any], kwargs: Mapping[str, Any]) -> CaptureError:
    leaves, _ = pytree.tree_flatten_with_path((tuple(args), dict(kwargs)))
    for path, value in leaves:
        try:
            leaf_key(value)
        except (TypeError, RuntimeError, ValueError) as reason:
            name = _argument_name(path)
            return CaptureError(
                f"{name} is a {type(value).__name__}, which cannot be part of a call's signature ({reason}). "
                "Pass it as a dense tensor or a hashable value, or close over it."
            )
    return CaptureError("an argument changed while the call's signature was taken")


def _argument_name(path: Sequence[Any]) -> str:
    """`argument 0`, `argument h0`, `argument 1['mask']`."""
    inner = pytree.keystr(tuple(path[2:]))
    key = path[1]
    return f"argument {getattr(key, 'idx', getattr(key, 'key', key))}{inner}"


def described(key: Any) -> dict[str, str]:
    """A signature for people: each argument, then the settings of torch that are part of it."""
    keys, structure, aliases, state = key
    grad, inference, *casts, dtype, device, deterministic = state[: -1 - len(PRECISION)]
    names = [f"argument {i}" for i in range(len(keys))]
    if structure is not None:
        places = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(len(keys))), structure))[0]
        names = [_argument_name(path) for path, _ in places]
    said = {name: _described_leaf(leaf) for name, leaf in zip(names, keys, strict=True)}
    if aliases:
        said["memory"] = "some arguments share memory"
    autocast = [f"{name} {kind}" for name, kind in zip(AUTOCAST, casts, strict=True) if kind]
    settings = [f"gradients {'on' if grad else 'off'}", f"default dtype {dtype}".replace("torch.", "")]
    settings += ["inference mode"] * bool(inference) + [f"autocast {', '.join(autocast)}"] * bool(autocast)
    settings += [f"default device {device}"] * (device is not None) + ["deterministic algorithms"] * bool(deterministic)
    return said | {"settings": ", ".join(settings)}


def _described_leaf(leaf: Sequence[Any]) -> str:
    kind, *rest = leaf
    if not issubclass(kind, torch.Tensor):
        value = float.fromhex(rest[0]) if kind is float else rest[0] if len(rest) == 1 else tuple(rest)
        return f"{kind.__name__} {value!r}"
    shape, _, dtype, device, requires_grad, *_ = rest
    text = f"{str(dtype).removeprefix('torch.')}[{','.join(map(str, shape))}] on {device}"
    name = "" if kind is torch.Tensor else f" ({kind.__name__})"
    return text + name + ", requires gradients" * requires_grad
