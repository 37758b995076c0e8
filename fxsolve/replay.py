"""A function of tensors on a GPU, recorded once as a CUDA graph: a call then launches all of its kernels at once.

The kernels are those that the function launches by itself, on the same shapes: the same bits. What it saves is the launches
one by one, which take longer than the work of a small kernel. Python runs while the graph is recorded, and never again.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fxsolve.capture import no_garbage_collection

Tensors = Sequence[torch.Tensor]
MOVES = 3  # times that a graph is recorded anew because the program's own tensors have moved


class NotReplayable(Exception):
    """The function waits for its results or does what a CUDA graph cannot hold."""


class Replay:
    """The function's CUDA graph, for inputs of one kind.

    Inputs in the memory of `own` storages (parameters, buffers: what the program holds) are read where they are, so that what
    is written to them in place is seen. All others are copied to where the graph reads them.
    """

    def __init__(self, function: Callable[..., Any], inputs: Tensors, own: Collection[int]) -> None:
        """Runs the function once to warm up, and once to record it. Raises NotReplayable."""
        self.function = function
        self.reads = [i for i, x in enumerate(inputs) if x.untyped_storage().data_ptr() in own]
        self.copies = [i for i in range(len(inputs)) if i not in set(self.reads)]
        self.record(inputs)
        self.moves = 0

    def record(self, inputs: Tensors) -> None:
        with torch.no_grad():
            held = [x.clone() if i in self.copies else x for i, x in enumerate(inputs)]
        self.targets = [held[i] for i in self.copies]
        self.places = [held[i].data_ptr() for i in self.reads]
        self.graph, self.results = recorded(self.function, held)

    def __call__(self, *inputs: torch.Tensor) -> Any:
        """The function's results; the next call writes over them."""
        if [inputs[i].data_ptr() for i in self.reads] != self.places:
            self.moved(inputs)
        if self.targets:
            with torch.no_grad():
                torch._foreach_copy_(self.targets, [inputs[i] for i in self.copies])  # pyright: ignore[reportPrivateImportUsage]
        self.graph.replay()
        return self.results

    def moved(self, inputs: Tensors) -> None:
        """The program's own tensors are elsewhere now; if that goes on, they are copied like all others."""
        self.moves += 1
        if self.moves > MOVES:
            self.reads, self.copies = [], list(range(len(inputs)))
        self.record(inputs)


def warmed_up(function: Callable[..., Any], inputs: Tensors) -> None:
    """Runs a function once aside, so that libraries are set up. Raises NotReplayable where it waits for the GPU.

    (A recording that fails leaves torch's allocator and generators in disorder: what would end it is to be found before.)
    """
    before, stream = torch.cuda.get_sync_debug_mode(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    try:
        sync_debug_mode("error")
        with torch.cuda.stream(stream):
            function(*inputs)
    except RuntimeError as error:
        raise NotReplayable(first_line(error)) from error
    finally:
        sync_debug_mode(before)
    torch.cuda.current_stream().wait_stream(stream)


def sync_debug_mode(mode: int | str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a prototype, torch says, that may overlook something
        torch.cuda.set_sync_debug_mode(mode)


def recorded(function: Callable[..., Any], inputs: Tensors) -> tuple[torch.cuda.CUDAGraph, Any]:
    """The graph, and the results as they will be in the same place after each replay. Raises NotReplayable."""
    with torch.cuda.device(inputs[0].device), no_garbage_collection():  # a graph that is let go of would end the recording
        warmed_up(function, inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                return graph, function(*inputs)
        except RuntimeError as error:
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())  # it would go on as if it were being recorded
            raise NotReplayable(first_line(error)) from error


def first_line(error: RuntimeError) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def replayable(inputs: Tensors) -> bool:
    """Whether a function of these inputs can be recorded: they are on one GPU, and nothing is being recorded there already."""
    devices = {x.device for x in inputs}
    return len(devices) == 1 and next(iter(devices)).type == "cuda" and not torch.cuda.is_current_stream_capturing()


def kept(results: Any) -> Any:
    """Results of a replay that outlive the next one."""
    return pytree.tree_map_only(torch.Tensor, torch.clone, results)
