"""Capture: record a program while it runs for real.

A dispatch mode writes every ATen call of the user's first call onto a tape (fxsolve.tape). Tensors are told apart by the
storage and the region of it that they show, so views, in-place writes and tensors that torch rewraps are followed.
Values that leave torch are caught at every door: `_local_scalar_dense` and its like by their dispatch tags, `tolist`,
`numpy`, dlpack by standing in their way, tensors made from Python data by their missing origin.
A refusal never disturbs the run: recording stops, the user's call goes on as eager, and the caller learns why.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from fxsolve import prims
from fxsolve.errors import CaptureError
from fxsolve.ir import TensorType
from fxsolve.tape import Cell, Leaf, Mark, Output, Tape

aten = torch.ops.aten
TORCH_DIRECTORY = str(Path(torch.__file__).parent)
OWN_DIRECTORY = str(Path(__file__).parent)

SWEEP_AFTER = 64  # storages

VIEWS_IN_PLACE = frozenset({"transpose_", "t_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_"})

# Their schemas say that they mutate nothing, but in training they update running statistics.
HIDDEN_MUTATORS = {"native_batch_norm": 5, "cudnn_batch_norm": 5, "miopen_batch_norm": 5}


@dataclass(frozen=True)
class Recording:
    """A recorded run: the tape, the call's own result, and what it takes to run it again."""

    tape: Tape
    result: Any
    spec: pytree.TreeSpec
    statics: tuple[Any, ...]  # the flat results; Mark.TENSOR where a tensor stands
    before: dict[int, torch.Tensor]  # leaf index -> its content before the run wrote to it
    refusal: str | None = None


@dataclass
class Recorder(TorchDispatchMode):
    """The dispatch mode. `known` names the tensors that the function can reach, by readable path."""

    arguments: list[tuple[int, torch.Tensor]]
    known: dict[str, torch.Tensor]
    tape: Tape = field(default_factory=Tape)
    refusal: str | None = None

    def __post_init__(self) -> None:
        super().__init__()
        self.cells = self.tape.cells
        self.cell_of: dict[int, int] = {}
        self.watched: dict[int, StorageWeakRef] = {}  # an address is not reused while its weak reference lives
        self.next_sweep = SWEEP_AFTER
        self.handles: dict[tuple[int, int, int], int] = {}  # (cell, offset, type) -> value
        self.place = self.tape.place
        self.before: dict[int, torch.Tensor] = {}
        self.origins: dict[int, tuple[str, str, torch.Tensor, int]] = {}
        self.python_tensors: set[int] = set()
        self.plans: dict[Any, OpPlan] = {}
        self.lines: dict[tuple[Any, int], int] = {}
        for name, tensor in self.known.items():
            self._origin("attribute", name, tensor)
        for position, tensor in self.arguments:
            self._origin("argument", f"argument {position}", tensor, position)

    def _origin(self, kind: str, name: str, tensor: torch.Tensor, position: int = -1) -> None:
        if tensor.layout is torch.strided and not tensor.is_quantized:
            self.origins[tensor.untyped_storage()._cdata] = (kind, name, tensor, position)

    # -- the mode ---------------------------------------------------------------------------------

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled by dynamo; the wrapper would cost an import and time at every op

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.refusal is not None:
            return func(*args, **kwargs)
        plan = self.plans.get(func)
        if plan is None:
            plan = self.plans[func] = OpPlan.of(func)
        if plan.decompose:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if plan.mutated:
            self._save_before_write(func, plan, args, kwargs)
        if plan.name in VIEWS_IN_PLACE:
            return self._view_in_place(func, args, kwargs)
        result = func(*args, **kwargs)
        try:
            self._record(func, plan, args, kwargs, result)
        except CaptureError as error:
            self.refusal = str(error)
        return result

    def _view_in_place(self, func: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """`x.transpose_(0, 1)` shows the same storage in another way: recorded as the view that it makes."""
        try:
            plan = OpPlan.of(func)
            packet = getattr(aten, plan.name.removesuffix("_"))
            names = [a.name for a in func._schema.arguments]
            overloads = [getattr(packet, name) for name in packet.overloads()]
            view = next(op for op in overloads if [a.name for a in op._schema.arguments] == names)
            before = args[0].as_strided(args[0].shape, args[0].stride(), args[0].storage_offset())
            self.value(args[0])
            result = func(*args, **kwargs)
            self._record(view, OpPlan.of(view), (before, *args[1:]), kwargs, result)
        except CaptureError as error:
            self.refusal = str(error)
            return func(*args, **kwargs)
        return result

    def _record(
        self, func: torch._ops.OpOverload, plan: OpPlan, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        if plan.refuse is not None:
            raise CaptureError(f"{plan.refuse} at {self.where()}")
        if plan.hidden >= 0 and args[plan.hidden]:
            raise CaptureError(f"{plan.name} in training mode updates its running statistics at {self.where()}; call .eval()")
        if plan.scalar:
            self._left_torch(args[0], result)
            return
        if plan.name == "lift_fresh":
            self._lift(result)
            return
        tensors: list[int] = []
        numbers: list[float | int] = []
        template = tuple([self._flatten(a, tensors, numbers) for a in args])
        named = tuple([(k, self._flatten(a, tensors, numbers)) for k, a in kwargs.items()]) if kwargs else ()
        tape = self.tape
        value_type = tape.value_type
        inputs = tuple([value_type[v] for v in tensors])
        source = self._source()
        if plan.mutated:
            # Results of a mutating call are the mutated arguments; who reads them later finds the storage's new content.
            symbol = tape.intern(func, template, named, inputs, (), False)
            tape.append(symbol, tuple(tensors), tuple(numbers), source)
            return
        listed = isinstance(result, (tuple, list))
        outputs = result if listed else (result,)
        types = []
        for out in outputs:
            if out is None:
                types.append(-1)
            elif isinstance(out, torch.Tensor):
                types.append(self._type(out))
            else:
                raise CaptureError(f"{plan.name} gives a {type(out).__name__} to Python at {self.where()}")
        symbol = tape.intern(func, template, named, inputs, tuple(types), listed)
        values = tape.append(symbol, tuple(tensors), tuple(numbers), source)
        for out, type_id, value in zip(outputs, types, values, strict=True):
            self._place_result(out, type_id, value)

    def _place_result(self, out: torch.Tensor | None, type_id: int, value: int) -> None:
        if out is None:
            return
        storage = out.untyped_storage()
        offset = out.storage_offset()
        cell = self.cell_of.get(storage._cdata)
        if cell is None:
            cell = self._new_cell(storage, Cell(value, offset, -1))
        self.place[value] = (cell, offset)
        self.handles[(cell, offset, type_id)] = value

    def _new_cell(self, storage: torch.UntypedStorage, cell: Cell) -> int:
        if len(self.watched) >= self.next_sweep:
            self._forget_dead_storages()
        self.watched[storage._cdata] = StorageWeakRef(storage)
        self.cell_of[storage._cdata] = len(self.cells)
        self.cells.append(cell)
        return len(self.cells) - 1

    def _forget_dead_storages(self) -> None:
        """Lets go of storages that are gone: kept headers, many and small, would fragment the heap."""
        for address in [a for a, weak in self.watched.items() if weak.expired()]:
            del self.watched[address]
            self.cell_of.pop(address, None)
            self.python_tensors.discard(address)
        self.next_sweep = 2 * len(self.watched) + SWEEP_AFTER

    def _type(self, tensor: torch.Tensor) -> int:
        types = self.tape.types
        key = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        number = types.index.get(key)
        if number is None:
            number = types(TensorType.of(tensor))
            types.index[key] = number
        return number

    def _flatten(self, arg: Any, tensors: list[int], numbers: list[float | int]) -> Any:
        kind = type(arg)
        if kind is int:
            numbers.append(arg)
            return Mark.INT
        if kind is float:
            numbers.append(arg)
            return Mark.FLOAT
        if isinstance(arg, torch.Tensor):
            tensors.append(self.value(arg))
            return Mark.TENSOR
        if kind is list or kind is tuple:
            if any(isinstance(a, torch.Tensor) for a in arg):
                return tuple([self._flatten(a, tensors, numbers) for a in arg])
            return tuple(arg)
        return arg

    # -- values -----------------------------------------------------------------------------------

    def value(self, tensor: torch.Tensor) -> int:
        """The value that a tensor shows, by storage and region; a new view of a known storage becomes a read."""
        type_id = self._type(tensor)
        offset = tensor.storage_offset()
        storage = tensor.untyped_storage()
        cell = self.cell_of.get(storage._cdata)
        if cell is None:
            cell = self._new_leaf(tensor, storage)
        value = self.handles.get((cell, offset, type_id))
        if value is None:
            value = self._new_view(tensor, cell, offset, type_id)
        return value

    def _new_leaf(self, tensor: torch.Tensor, storage: torch.UntypedStorage) -> int:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise CaptureError(f"a tensor of layout {tensor.layout} at {self.where()}; only strided tensors are compiled")
        origin = self.origins.get(storage._cdata)
        if origin is None:
            if storage._cdata not in self.python_tensors and tensor.dim() > 0:
                raise CaptureError(
                    f"a tensor that did not come from an argument, a module, a closure or a torch call "
                    f"(numpy? a list of tensors?) is used at {self.where()}; pass it as an argument"
                )
            origin = ("constant", f"constant {len(self.tape.leaves)}", tensor.detach().clone(), -1)
        kind, name, root, position = origin
        type_id = self._type(root)
        value = self.tape.new_value(type_id)
        leaf = len(self.tape.leaves)
        self.tape.leaves.append(Leaf(value, kind, name, root, position))
        offset = root.storage_offset() if kind != "constant" else tensor.storage_offset()
        cell = self._new_cell(storage, Cell(value, offset, leaf))
        self.place[value] = (cell, offset)
        self.handles[(cell, offset, type_id)] = value
        return cell

    def _new_view(self, tensor: torch.Tensor, cell: int, offset: int, type_id: int) -> int:
        home = self.cells[cell]
        if tensor.dtype != self.tape.type_of(home.root).dtype:
            raise CaptureError(f"a storage is seen with two dtypes at {self.where()}")
        args = (Mark.TENSOR, tuple(tensor.shape), tuple(tensor.stride()), Mark.INT)
        value = self.tape.call(prims.read, args, type_id, (home.root,), (offset - home.offset,), self._source())
        self.place[value] = (cell, offset)
        self.handles[(cell, offset, type_id)] = value
        return value

    def _lift(self, result: torch.Tensor) -> None:
        """A tensor made from Python data. A number is written into the tape, so that it may differ between iterations."""
        if result.dim() == 0 and result.device.type == "cpu" and not result.is_complex():
            with torch._C._DisableTorchDispatch():
                number = result.item()
            type_id = self._type(result)
            mark = Mark.FLOAT if isinstance(number, float) else Mark.INT
            named = (("dtype", result.dtype), ("device", result.device))
            value = self.tape.call(aten.scalar_tensor.default, (mark,), type_id, (), (number,), self._source(), named)
            self._place_result(result, type_id, value)

    def _left_torch(self, tensor: torch.Tensor, number: Any) -> None:
        """A value that Python sees: torch's own validations become guards, anything else is refused."""
        if isinstance(number, bool) and sys._getframe(4).f_code.co_filename.startswith(TORCH_DIRECTORY):
            self.tape.guards.append((self.value(tensor), number))
            return
        raise CaptureError(
            f"a value leaves torch ({type(number).__name__} of a tensor) at {self.where()}: what Python does with it "
            f"cannot be recorded; use tensor operations (torch.where, index_select) instead"
        )

    def _save_before_write(self, func: Any, plan: OpPlan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps the content of an outside tensor before its first write (trials run on it), and marks the storage."""
        for name, position in plan.mutated:
            tensor = args[position] if position < len(args) else kwargs.get(name)
            if not isinstance(tensor, torch.Tensor):
                continue
            try:
                cell = self.cells[self.place[self.value(tensor)][0]]
            except CaptureError as error:
                self.refusal = str(error)
                return
            if cell.leaf >= 0 and cell.leaf not in self.before:
                with torch._C._DisableTorchDispatch():
                    self.before[cell.leaf] = self.tape.leaves[cell.leaf].tensor.detach().clone()
            cell.written = True

    # -- the user's source ------------------------------------------------------------------------

    def _source(self) -> int:
        frame = sys._getframe(3)
        while frame is not None:
            code = frame.f_code
            key = (code, frame.f_lineno)
            known = self.lines.get(key)
            if known is None:
                name = code.co_filename
                own = name.startswith(TORCH_DIRECTORY) or name.startswith(OWN_DIRECTORY)
                known = -1 if own else self.tape.sources(f"{name}:{frame.f_lineno}")
                self.lines[key] = known
            if known >= 0:
                return known
            frame = frame.f_back
        return self.tape.sources("")

    def where(self) -> str:
        """The user's file:line that is running now."""
        return self.tape.sources.items[self._source()] or "an unknown line"

    def refuse(self, what: str) -> None:
        if self.refusal is None:
            self.refusal = f"{what} at {self.where()}"


@dataclass(frozen=True)
class OpPlan:
    """What the recorder has to know of an operator, worked out once."""

    name: str
    mutated: tuple[tuple[str, int], ...]
    scalar: bool
    decompose: bool
    hidden: int
    refuse: str | None

    @staticmethod
    def of(func: torch._ops.OpOverload) -> OpPlan:
        name = func._schema.name.split("::")[-1]
        mutated = tuple(
            (a.name, i) for i, a in enumerate(func._schema.arguments) if a.alias_info is not None and a.alias_info.is_write
        )
        scalar = name == "_local_scalar_dense"
        refuse = None
        if torch.Tag.dynamic_output_shape in func.tags:
            refuse = f"{name} has a result whose shape depends on values"
        elif name in VIEWS_IN_PLACE:
            mutated = ()
        elif torch.Tag.inplace_view in func.tags or name in ("set_", "resize_"):
            refuse = f"{name} changes a tensor's shape or storage in place"
        elif name == "equal":
            refuse = f"{name} gives a truth value to Python"
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")
        return OpPlan(name, mutated, scalar, composite and not mutated, HIDDEN_MUTATORS.get(name, -1), refuse)


DOORS: tuple[tuple[Any, str], ...] = (
    (torch.Tensor, "tolist"),
    (torch.Tensor, "numpy"),
    (torch.Tensor, "__array__"),
    (torch.Tensor, "__dlpack__"),
    (torch.utils.dlpack, "to_dlpack"),
    (torch.Tensor, "backward"),
    (torch.autograd, "grad"),
)
MAKERS: tuple[tuple[Any, str], ...] = ((torch, "tensor"), (torch, "as_tensor"), (torch, "asarray"))


@contextlib.contextmanager
def watched_doors(recorder: Recorder) -> Iterator[None]:
    """Stands in the way of what the dispatcher does not see, for the time of a recording."""
    saved = [(owner, name, getattr(owner, name)) for owner, name in DOORS + MAKERS]
    own = {name: vars(owner).get(name) for owner, name in DOORS if owner is torch.Tensor}

    def door(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def leave(*args: Any, **kwargs: Any) -> Any:
            recorder.refuse(f"a value leaves torch through {name}()")
            return original(*args, **kwargs)

        return leave

    def maker(name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def make(data: Any, *args: Any, **kwargs: Any) -> Any:
            made = original(data, *args, **kwargs)
            if isinstance(data, torch.Tensor):
                return made
            if plain_numbers(data):
                recorder.python_tensors.add(made.untyped_storage()._cdata)
                recorder.watched[made.untyped_storage()._cdata] = StorageWeakRef(made.untyped_storage())
            elif isinstance(data, (list, tuple)):
                recorder.refuse(f"torch.{name}() of a list that holds tensors or arrays (use torch.stack)")
            return made

        return make

    try:
        for owner, name, original in saved:
            setattr(owner, name, (maker if (owner, name) in MAKERS else door)(name, original))
        yield
    finally:
        for owner, name, original in saved:
            if owner is torch.Tensor and own[name] is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def plain_numbers(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return all(plain_numbers(d) for d in data)
    return isinstance(data, (bool, int, float, complex))


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """The tape makes many small long-lived objects; the collector would walk them again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def recording() -> bool:
    """Whether a recording is under way on this thread."""
    return any(isinstance(mode, Recorder) for mode in _get_current_dispatch_mode_stack())


def record(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], known: dict[str, torch.Tensor]) -> Recording:
    """Runs `fn(*args, **kwargs)` once, for real, and returns its result with the tape of what it did."""
    flat, _ = pytree.tree_flatten((args, kwargs))
    arguments = [(i, a) for i, a in enumerate(flat) if isinstance(a, torch.Tensor)]
    recorder = Recorder(arguments, known)
    python_state, numpy_state = random.getstate(), np.random.get_state()[1].tobytes()  # type: ignore[union-attr]
    autocast = any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    if autocast:
        torch.clear_autocast_cache()
    with no_garbage_collection(), watched_doors(recorder), recorder:
        result = fn(*args, **kwargs)
    if random.getstate() != python_state or np.random.get_state()[1].tobytes() != numpy_state:  # type: ignore[union-attr]
        recorder.refusal = recorder.refusal or "the call draws from Python's or NumPy's random numbers; use torch's"
    leaves, spec = pytree.tree_flatten(result)
    statics = tuple(Mark.TENSOR if isinstance(x, torch.Tensor) else x for x in leaves)
    if recorder.refusal is None:
        try:
            recorder.tape.outputs = [recorder_output(recorder, x) for x in leaves if isinstance(x, torch.Tensor)]
        except CaptureError as error:
            recorder.refusal = str(error)
    return Recording(recorder.tape, result, spec, statics, recorder.before, recorder.refusal)


def recorder_output(recorder: Recorder, tensor: torch.Tensor) -> Output:
    """A result, and of which leaf it is a view, if any."""
    value = recorder.value(tensor)
    cell = recorder.cells[recorder.place[value][0]]
    if cell.leaf < 0:
        return Output(value)
    offset = tensor.storage_offset() - cell.offset
    return Output(value, cell.leaf, (tuple(tensor.shape), tuple(tensor.stride()), offset))
