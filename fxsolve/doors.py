"""The doors through which values leave torch, or enter it, unseen by the dispatcher.

While a call is recorded, wrappers stand in them: they tell the recorder, and let the call through.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
import torch.utils.dlpack as dlpack

from fxsolve.stand_ins import STAND_INS

GRADIENTS = "gradients are computed inside, by {}()"
LEAVES = "a value leaves torch through {}()"

DOORS: tuple[tuple[Any, str, str], ...] = (
    (torch.Tensor, "numpy", LEAVES),
    (torch.Tensor, "__array__", LEAVES),
    (torch.Tensor, "__dlpack__", LEAVES),
    (torch, "from_dlpack", "a value goes through {}()"),
    (dlpack, "to_dlpack", LEAVES),
    (torch.Tensor, "backward", GRADIENTS),
    (torch.autograd, "grad", GRADIENTS),
)
# Recurrent networks that cuDNN runs as one call, as nn.RNN and others call them; how many arguments such a call has, and
# where some of them stand.
FUSED = ("rnn_tanh", "rnn_relu", "gru", "lstm")
COUNT, WEIGHTS, DROPOUT, TRAINING = 9, 2, 5, 6
# Functions that make a tensor from Python data, and where the data stand among their arguments.
MAKERS: tuple[tuple[Any, str, int], ...] = (
    (torch, "tensor", 0),
    (torch, "as_tensor", 0),
    (torch, "asarray", 0),
    (torch, "from_numpy", 0),
    (torch.Tensor, "new_tensor", 1),
)


class Listener(Protocol):
    def hears(self) -> bool: ...

    def refuse(self, what: str) -> None: ...

    def numbers_leave(self, tensor: torch.Tensor, what: str) -> None: ...

    def made_from_numbers(self, tensor: torch.Tensor) -> None: ...

    def one_call(self, op: torch._ops.OpOverload, args: tuple[Any, ...], result: Any) -> None: ...


@contextlib.contextmanager
def watched_doors(listener: Listener) -> Iterator[None]:
    """Stands in the way of what the dispatcher does not see, for the time of a recording."""
    wrappers = [(owner, name, door(getattr(owner, name), text.format(name), listener)) for owner, name, text in DOORS]
    wrappers.append((torch.Tensor, "tolist", reader(torch.Tensor.tolist, LEAVES.format("tolist"), listener)))
    wrappers += [(owner, name, stand_in(getattr(owner, name), other)) for owner, name, other in STAND_INS]
    wrappers += [(owner, name, maker(getattr(owner, name), name, at, listener)) for owner, name, at in MAKERS]
    wrappers += [(torch._VF, name, fused(getattr(torch._VF, name), name, listener)) for name in FUSED]
    wrappers = [(owner, name, where_it_hears(wrapper, getattr(owner, name), listener)) for owner, name, wrapper in wrappers]
    own = [(owner, name, vars(owner).get(name)) for owner, name, _ in wrappers]
    try:
        for owner, name, wrapper in wrappers:
            setattr(owner, name, wrapper)
        yield
    finally:
        for owner, name, original in own:
            if original is None:  # inherited
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def where_it_hears(wrapper: Callable[..., Any], original: Callable[..., Any], listener: Listener) -> Callable[..., Any]:
    """Other threads find the original: what they do is no part of the recording."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return (wrapper if listener.hears() else original)(*args, **kwargs)

    return call


def door(original: Callable[..., Any], text: str, listener: Listener) -> Callable[..., Any]:
    def leave(*args: Any, **kwargs: Any) -> Any:
        listener.refuse(text)
        return original(*args, **kwargs)

    return leave


def reader(original: Callable[..., Any], text: str, listener: Listener) -> Callable[..., Any]:
    def read(tensor: torch.Tensor) -> Any:
        listener.numbers_leave(tensor, text)
        with torch._C._DisableTorchDispatch():
            return original(tensor)

    return read


def stand_in(original: Callable[..., Any], other: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._C._DisableTorchDispatch():
            original(*args, **kwargs)
        made = other(*args, **kwargs)
        return original(*args, **kwargs) if made is None else made

    return call


def fused(original: Callable[..., Any], name: str, listener: Listener) -> Callable[..., Any]:
    """On a GPU the call stays one call: no order of steps is as quick as cuDNN's kernel."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if len(args) != COUNT or not isinstance(args[WEIGHTS], list) or (args[DROPOUT] and args[TRAINING]):
            return original(*args, **kwargs)  # of packed sequences, or it draws random numbers
        if not acceptable(args[0]):
            return original(*args, **kwargs)
        with torch._C._DisableTorchDispatch():
            result = original(*args, **kwargs)
        listener.one_call(getattr(torch.ops.aten, name).input, args, result)
        return result

    return call


def acceptable(x: torch.Tensor) -> bool:
    return x.is_cuda and torch.backends.cudnn.is_acceptable(x)


def maker(original: Callable[..., Any], name: str, position: int, listener: Listener) -> Callable[..., Any]:
    def make(*args: Any, **kwargs: Any) -> Any:
        made = original(*args, **kwargs)
        data = args[position] if len(args) > position else kwargs.get("data", kwargs.get("obj"))
        if plain_numbers(data):
            listener.made_from_numbers(made)
        elif isinstance(data, np.ndarray):
            listener.refuse(f"an array enters through {name}(); pass it as a tensor argument, or keep it as a buffer")
        elif isinstance(data, (list, tuple)):
            listener.refuse(f"{name}() of a list that holds tensors or arrays (use torch.stack)")
        return made

    return make


def plain_numbers(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return all(plain_numbers(d) for d in data)
    return isinstance(data, (bool, int, float, complex))
