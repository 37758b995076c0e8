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
import operator
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from fxsolve import prims
from fxsolve.doors import watched_doors
from fxsolve.errors import CaptureError
from fxsolve.ir import TensorType
from fxsolve.literals import literal_lists
from fxsolve.op_plan import VIEWS_IN_PLACE, OpPlan, refusal_of_call
from fxsolve.tape import Cell, Leaf, Mark, Output, Tape
from fxsolve.watch import ATOMS

aten = torch.ops.aten
TORCH_DIRECTORY = str(Path(torch.__file__).parent)
OWN_DIRECTORY = str(Path(__file__).parent)
OPS_FILE = torch._ops.__file__

INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
NUMBERS = (int, float, bool)
SWEEP_AFTER = 64  # storages
READABLE = 1 << 16  # elements of a tensor whose contents may be guarded

PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, torch.nn.Buffer})


@dataclass(frozen=True)
class Recording:
    """A recorded run: the tape, the call's own result, and what it takes to run it again."""

    tape: Tape
    result: Any
    spec: pytree.TreeSpec
    statics: tuple[Any, ...]  # the flat results; Mark.TENSOR where a tensor stands
    before: dict[int, torch.Tensor]  # leaf index -> its content before the run wrote to it
    read_out: dict[str, torch.Tensor]  # tensors of the function, by name, out of which Python read numbers
    parts: dict[str, torch.Tensor]  # tensors of the function that are parts of one memory, which is read as a whole
    refusal: str | None = None
    other_mode: str | None = None  # where gradients were on or off, in spite of how the call began


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
        self.handles: dict[tuple[int, int, int, bool], int] = {}  # (cell, offset, type, requires gradients) -> value
        self.place = self.tape.place
        self.before: dict[int, torch.Tensor] = {}
        self.origins: dict[int, tuple[str, str, torch.Tensor, int]] = {}
        self.python_tensors: set[int] = set()
        self.read_out: dict[str, torch.Tensor] = {}
        self.held: dict[int, dict[str, torch.Tensor]] = {}  # the tensors of the function, by storage and name
        self.parts: dict[str, torch.Tensor] = {}
        self.shared: dict[int, str] = {}  # storages of two inputs, and of which
        self.plans: dict[int, OpPlan] = {}  # id of an operator, which its plan keeps alive
        self.lines: dict[tuple[int, int], int] = {}  # (id of a code object, instruction) -> source; -1: not the user's
        self.codes: dict[int, CodeType] = {}  # keeps their ids taken
        self.thread = threading.get_ident()
        self.gradients = torch.is_grad_enabled()
        self.followed = False  # whether autograd follows the call that is recorded now
        self.other_mode: str | None = None
        for name, tensor in self.known.items():
            self._origin("attribute", name, tensor)
            if tensor.layout is torch.strided:
                self.held.setdefault(tensor.untyped_storage()._cdata, {})[name] = tensor
        for position, tensor in self.arguments:
            self._origin("argument", f"argument {position}", tensor, position)

    def _origin(self, kind: str, name: str, tensor: torch.Tensor, position: int = -1) -> None:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return  # refused where it is used
        storage = tensor.untyped_storage()._cdata
        other = self.origins.get(storage)
        if other is None or (kind == other[0] == "attribute" and other[2].numel() < tensor.numel()):
            self.origins[storage] = (kind, name, tensor, position)
        elif kind == "argument" and not (other[0] == kind and same_region(other[2], tensor)):
            self.shared[storage] = f"{name} shares memory with {other[1]}"

    def hears(self) -> bool:
        """Whether this thread's calls are recorded: it is the one that began, or runs the backward for it."""
        return threading.get_ident() == self.thread or recording()

    def replaced(self) -> list[str]:
        """The inputs that have another storage now (nobody tells of `x.data = y`)."""
        now = [(old, name, t.untyped_storage()._cdata) for old, (_, name, t, _) in self.origins.items()]
        return [name for old, name, storage in now if storage != old]

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
        plan = self.plans.get(id(func))
        if plan is None:
            plan = self.plans[id(func)] = OpPlan.of(func)
        if plan.decompose:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        written: list[int] = []
        recorded, given = func, args
        try:
            if types and not PLAIN.issuperset(types):
                raise CaptureError(f"a tensor of class {odd_class(types)} is used at {self.where()}")
            if plan.mutated:
                written = self._before_write(plan, args, kwargs)
            elif plan.name in VIEWS_IN_PLACE:
                recorded, given = self._as_view(func, args)
        except CaptureError as error:
            self.refusal = str(error)
        result = func(*args, **kwargs)
        if self.refusal is not None:
            return result
        try:
            if plan.resizes:
                before, after = [self.tape.value_type[v] for v in written], map(self._type, plan.written(args, kwargs))
                if before != list(after):
                    raise CaptureError(f"{plan.name} gives another shape to the tensor that it writes at {self.where()}")
            self._record(recorded, plan, given, kwargs, result)
        except CaptureError as error:
            self.refusal = str(error)
        except Exception as error:  # tensors of a kind that the recorder does not know
            what = odd_tensor((args, kwargs, result)) or f"{plan.name} ({error})"
            self.refusal = f"{what} at {self.where()} cannot be recorded"
        return result

    def one_call(self, op: torch._ops.OpOverload, args: tuple[Any, ...], result: Any) -> None:
        """Takes down a call that the dispatcher did not see."""
        if self.refusal is None:
            try:
                with torch._C._DisableTorchDispatch():  # what the taking down itself calls
                    self._record(op, OpPlan.of(op), args, {}, result)
            except CaptureError as error:
                self.refusal = str(error)

    def _as_view(self, func: torch._ops.OpOverload, args: tuple[Any, ...]) -> tuple[torch._ops.OpOverload, tuple[Any, ...]]:
        """`x.transpose_(0, 1)` shows the same storage in another way: the call of the view that it makes."""
        self.value(args[0])
        if any(leaf.tensor is args[0] for leaf in self.tape.leaves):
            raise CaptureError(f"{func} changes the shape of an input in place at {self.where()}")
        packet = getattr(aten, func._schema.name.split("::")[-1].removesuffix("_"))
        names = [a.name for a in func._schema.arguments]
        overloads = [getattr(packet, name) for name in packet.overloads()]
        view = next(op for op in overloads if [a.name for a in op._schema.arguments] == names)
        before = args[0].as_strided(args[0].shape, args[0].stride(), args[0].storage_offset())
        return view, (before, *args[1:])

    def _record(
        self, func: torch._ops.OpOverload, plan: OpPlan, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any
    ) -> None:
        if plan.refuse is not None:
            raise CaptureError(f"{plan.refuse} at {self.where()}")
        if plan.depends and (reason := refusal_of_call(plan, args)) is not None:
            raise CaptureError(f"{reason} at {self.where()}")
        if plan.scalar:
            self._left_torch(args[0], result)
            return
        if plan.name == "lift_fresh":
            self._lift(result)
            return
        if plan.name == "as_strided":
            return  # addresses the storage: who uses the result reads that region
        if torch.is_grad_enabled() is not self.gradients and self.other_mode is None:
            self.other_mode = self.where()
        if func in INDEXING:
            self._take_literals(args[1])
        self.followed = False
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
        followed = self.followed and func is not aten.detach.default
        for out, type_id, value in zip(outputs, types, values, strict=True):
            if out is not None:
                self._place_result(out, type_id, value, followed and out.is_floating_point())

    def _place_result(self, out: torch.Tensor, type_id: int, value: int, followed: bool) -> None:
        storage = out.untyped_storage()
        offset: int = out.storage_offset()  # type: ignore[assignment]
        cell = self.cell_of.get(storage._cdata)
        if cell is None:
            cell = self._new_cell(storage, Cell(value, offset, -1))
        self.place[value] = (cell, offset)
        self.handles[(cell, offset, type_id, followed)] = value

    def _new_cell(self, storage: torch.UntypedStorage, cell: Cell) -> int:
        if len(self.watched) >= self.next_sweep:
            self._forget_dead_storages()
        self.watched[storage._cdata] = StorageWeakRef(storage)
        self.cell_of[storage._cdata] = len(self.cells)
        self.cells.append(cell)
        return len(self.cells) - 1

    def _forget_dead_storages(self) -> None:
        """Lets go of storages that are gone: kept headers, many and small, would fragment the heap."""
        expired = torch.Storage._expired  # type: ignore[attr-defined]
        for address in [a for a, weak in self.watched.items() if expired(weak.cdata)]:
            del self.watched[address]
            self.cell_of.pop(address, None)
            self.python_tensors.discard(address)
        self.next_sweep = 4 * len(self.watched) + SWEEP_AFTER

    def _type(self, tensor: torch.Tensor) -> int:
        types = self.tape.types
        key = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        number = types.index.get(key)
        if number is None:
            if tensor.is_quantized:
                raise CaptureError(f"a quantized tensor at {self.where()}; only dense tensors are compiled")
            if tensor.is_meta:
                raise CaptureError(f"a tensor on the meta device at {self.where()}, which holds no values to compute with")
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
            self.followed = self.followed or self.gradients and arg.requires_grad
            return Mark.TENSOR
        if kind is list or kind is tuple:  # of numbers, or of tensors some of which may be None
            if not arg or type(arg[0]) in NUMBERS or not any(isinstance(a, torch.Tensor) for a in arg):
                return tuple(arg)
            return tuple([self._flatten(a, tensors, numbers) for a in arg])
        if kind is torch.Generator:
            raise CaptureError(f"a draw from a generator of its own at {self.where()}; only the default one is followed")
        return arg

    # -- values -----------------------------------------------------------------------------------

    def value(self, tensor: torch.Tensor) -> int:
        """The value that a tensor shows, by storage and region; a new view of a known storage becomes a read."""
        type_id = self._type(tensor)
        offset: int = tensor.storage_offset()  # type: ignore[assignment]
        storage = tensor.untyped_storage()
        cell = self.cell_of.get(storage._cdata)
        if cell is None:
            cell = self._new_leaf(tensor, storage)
        followed = self.gradients and tensor.requires_grad
        value = self.handles.get((cell, offset, type_id, followed))
        if value is None:
            value = self.handles.get((cell, offset, type_id, not followed))
        if value is None:
            value = self._new_view(tensor, cell, offset, type_id)
        return value

    def _new_leaf(self, tensor: torch.Tensor, storage: torch.UntypedStorage) -> int:
        origin = self.origins.get(storage._cdata)
        if storage._cdata in self.shared:
            shared = self.shared[storage._cdata]
            raise CaptureError(f"{shared}, which later calls need not do (used at {self.where()}); pass a copy")
        if tensor.is_conj() or tensor.is_neg():
            raise CaptureError(f"a lazily conjugated or negated tensor is used at {self.where()}; call resolve_conj() first")
        if origin is None:
            if tensor.dim() == 0 and storage._cdata not in self.python_tensors and self._lift(tensor):
                return self.cell_of[storage._cdata]
            if storage._cdata not in self.python_tensors:
                raise CaptureError(
                    f"a tensor that did not come from an argument, a module, a closure or a torch function "
                    f"(an array? a list as an index? torch.Tensor(list)?) is used at {self.where()}; "
                    f"pass it as an argument, or make it with torch.tensor"
                )
            origin = ("constant", f"constant {len(self.tape.leaves)}", whole_storage(tensor), -1)
        kind, name, root, position = origin
        if kind == "attribute":
            root = self._whole(root, self.held[storage._cdata])
        type_id = self._type(root)
        value = self.tape.new_value(type_id)
        leaf = len(self.tape.leaves)
        self.tape.leaves.append(Leaf(value, kind, name, root, position))
        offset: int = root.storage_offset()  # type: ignore[assignment]
        cell = self._new_cell(storage, Cell(value, offset, leaf))
        self.place[value] = (cell, offset)
        self.handles[(cell, offset, type_id, self.gradients and root.requires_grad)] = value
        return cell

    def _whole(self, root: torch.Tensor, parts: dict[str, torch.Tensor]) -> torch.Tensor:
        """What all tensors in one memory are views of: one of them, or the memory, as with cuDNN's flattened weights."""
        first: int = root.storage_offset()  # type: ignore[assignment]
        last = first + TensorType.of(root).span
        if all(first <= t.storage_offset() and t.storage_offset() + TensorType.of(t).span <= last for t in parts.values()):
            return root
        if self.gradients and any(t.requires_grad for t in parts.values()):
            raise CaptureError(
                f"{', '.join(list(parts)[:2])} and others are parts of one memory (as cuDNN's flattened weights are), and "
                f"gradients are asked for"
            )
        self.parts |= parts
        return torch.empty(0, dtype=root.dtype, device=root.device).set_(root.untyped_storage())  # type: ignore[call-overload]

    def _new_view(self, tensor: torch.Tensor, cell: int, offset: int, type_id: int) -> int:
        home = self.cells[cell]
        kind, root = self.tape.types.items[type_id], self.tape.type_of(home.root)
        if kind.dtype != root.dtype:
            raise CaptureError(f"a storage is seen with two dtypes at {self.where()}")
        if offset < home.offset or offset + kind.span > home.offset + root.span:
            raise CaptureError(f"a view reaches beyond the tensor that it was made of at {self.where()}")
        args = (Mark.TENSOR, tuple(tensor.shape), tuple(tensor.stride()), Mark.INT)
        value = self.tape.call(prims.read, args, type_id, (home.root,), (offset - home.offset,), self._source())
        self.place[value] = (cell, offset)
        self.handles[(cell, offset, type_id, self.gradients and tensor.requires_grad)] = value
        return value

    def _lift(self, result: torch.Tensor) -> bool:
        """A tensor made from Python data. A number is written into the tape, so that it may differ between iterations."""
        if result.dim() > 0 or result.device.type != "cpu" or result.is_complex():
            return False
        with torch._C._DisableTorchDispatch():
            number = result.item()
        type_id = self._type(result)
        mark = Mark.FLOAT if isinstance(number, float) else Mark.INT
        named = (("dtype", result.dtype), ("device", result.device))
        value = self.tape.call(aten.scalar_tensor.default, (mark,), type_id, (), (number,), self._source(), named)
        self._place_result(result, type_id, value, False)
        return True

    def made_from_numbers(self, tensor: torch.Tensor) -> None:
        """Takes note of a tensor made from Python numbers: a constant of the program."""
        storage = tensor.untyped_storage()
        self.python_tensors.add(storage._cdata)
        self.watched[storage._cdata] = StorageWeakRef(storage)

    def _take_literals(self, indices: Sequence[torch.Tensor | None]) -> None:
        """`x[:, [-1]]`: torch makes a tensor of the list, of which nobody tells; the source line does."""
        storages = [(t, t.untyped_storage()._cdata) for t in indices if t is not None]
        known = (self.cell_of, self.origins, self.python_tensors)
        unknown = [t for t, storage in storages if not any(storage in each for each in known)]
        if unknown:
            with torch._C._DisableTorchDispatch():
                lists = [torch._C.TensorBase.tolist(t) for t in unknown]
            if lists == literal_lists(self._frame()):
                for tensor in unknown:
                    self.made_from_numbers(tensor)

    def _left_torch(self, tensor: torch.Tensor, number: Any) -> None:
        """A value that Python sees: torch's own validations become guards, anything else is refused."""
        if isinstance(number, bool) and self._asked_by_torch():
            truth = self.tape.types(TensorType((), (), torch.bool, tensor.device))
            args = (Mark.TENSOR, number)
            value = self.tape.call(prims.guard, args, truth, (self.value(tensor),), (), self._source())
            self.tape.guards.append((value, True))
        elif not self._is_held(tensor):
            raise CaptureError(
                f"a value leaves torch ({type(number).__name__} of a tensor) at {self.where()}: what Python does with it "
                f"cannot be recorded; use tensor operations (torch.where, index_select) instead"
            )

    def numbers_leave(self, tensor: torch.Tensor, what: str) -> None:
        if not self._is_held(tensor):
            self.refuse(what)

    def _is_held(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor belongs to the function and is small and not written: then its contents are guarded."""
        kind, name, root, _ = self.origins.get(tensor.untyped_storage()._cdata, ("", "", tensor, -1))
        if kind != "attribute" or root.numel() > READABLE:
            return False
        self.read_out[name] = root
        return True

    def read_and_written(self) -> list[str]:
        """The tensors that Python read numbers out of, and that the program writes."""
        cells = {name: self.cell_of.get(root.untyped_storage()._cdata) for name, root in self.read_out.items()}
        return [name for name, cell in cells.items() if cell is not None and self.cells[cell].written]

    def _asked_by_torch(self) -> bool:
        """Whether the code that makes the call which is recorded now is torch's own."""
        frame: Any = sys._getframe(3)
        while frame.f_code.co_filename.startswith(OWN_DIRECTORY) or frame.f_code.co_filename == OPS_FILE:
            frame = frame.f_back
        return frame.f_code.co_filename.startswith(TORCH_DIRECTORY)

    def _before_write(self, plan: OpPlan, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """Keeps the content of outside tensors before their first write (trials run on it), and marks their storages."""
        values = []
        for tensor in plan.written(args, kwargs):
            values.append(self.value(tensor))
            cell = self.cells[self.place[values[-1]][0]]
            if cell.leaf >= 0 and cell.leaf not in self.before:
                with torch._C._DisableTorchDispatch():
                    self.before[cell.leaf] = self.tape.leaves[cell.leaf].tensor.detach().clone()
            cell.written = True
        return values

    # -- the user's source ------------------------------------------------------------------------

    def _source(self) -> int:
        frame: FrameType | None = sys._getframe(1)  # a GPU's backward runs on a thread that has no frame but ours
        while frame is not None:
            code = frame.f_code
            key = (id(code), frame.f_lasti)
            known = self.lines.get(key)
            if known is None:
                self.codes[id(code)] = code
                name = code.co_filename
                own = name.startswith(TORCH_DIRECTORY) or name.startswith(OWN_DIRECTORY)
                known = -1 if own else self.tape.sources(f"{name}:{frame.f_lineno}")
                self.lines[key] = known
            if known >= 0:
                return known
            frame = frame.f_back
        return self.tape.sources("")

    def _frame(self) -> FrameType:
        """The user's frame that is running now."""
        frame: Any = sys._getframe(2)
        while frame.f_code.co_filename.startswith((OWN_DIRECTORY, TORCH_DIRECTORY)):
            frame = frame.f_back
        return frame

    def where(self) -> str:
        """The user's file:line that is running now."""
        return self.tape.sources.items[self._source()] or "an unknown line"

    def refuse(self, what: str) -> None:
        if self.refusal is None:
            self.refusal = f"{what} at {self.where()}"


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
    flat, structure = pytree.tree_flatten((args, kwargs))
    arguments = [(i, a) for i, a in enumerate(flat) if isinstance(a, torch.Tensor)]
    recorder = Recorder(arguments, known)
    outside = other_random_states()
    autocast = any(torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    if autocast:
        torch.clear_autocast_cache()
    with no_garbage_collection(), watched_doors(recorder), recorder:
        result = fn(*args, **kwargs)
    if other_random_states() != outside:
        recorder.refusal = recorder.refusal or "the call draws from Python's or NumPy's random numbers; use torch's"
    if replaced := recorder.replaced():
        recorder.refusal = recorder.refusal or f"the call gives {replaced[0]} other storage (an assignment to .data)"
    if written := recorder.read_and_written():
        recorder.refusal = recorder.refusal or f"Python reads numbers out of {written[0]}, which the call writes"
    now, structure_now = pytree.tree_flatten((args, kwargs))
    if structure_now != structure or not all(map(operator.is_, now, flat)):
        changes = "the call changes a list or dict among its arguments, which a replay would not repeat"
        recorder.refusal = recorder.refusal or changes
    leaves, spec = pytree.tree_flatten(result)
    if (odd := next((x for x in leaves if not isinstance(x, (torch.Tensor, type, *ATOMS))), None)) is not None:
        recorder.refusal = recorder.refusal or (
            f"the result holds a {type(odd).__name__}, which a replay would not make anew: return tensors in tuples, lists or "
            f"dicts, or tell torch how the class is taken apart (torch.export.register_dataclass)"
        )
    statics = tuple(Mark.TENSOR if isinstance(x, torch.Tensor) else x for x in leaves)
    results = [x for x in leaves if isinstance(x, torch.Tensor)]
    if recorder.refusal is None:
        try:
            recorder.tape.outputs = [recorder_output(recorder, x) for x in results]
        except CaptureError as error:
            recorder.refusal = str(error)
        except Exception as error:
            recorder.refusal = f"{odd_tensor(results) or error} is returned, which cannot be recorded"
    found = (recorder.before, recorder.read_out, recorder.parts, recorder.refusal, recorder.other_mode)
    return Recording(recorder.tape, result, spec, statics, *found)


def recorder_output(recorder: Recorder, tensor: torch.Tensor) -> Output:
    """A result, and of which leaf it is a view, if any."""
    if type(tensor) not in PLAIN:
        raise CaptureError(f"a result is of class {type(tensor).__name__}; only plain tensors are compiled")
    value = recorder.value(tensor)
    cell = recorder.cells[recorder.place[value][0]]
    if cell.leaf < 0:
        return Output(value)
    offset = tensor.storage_offset() - cell.offset
    return Output(value, cell.leaf, (tuple(tensor.shape), tuple(tensor.stride()), int(offset)))


def other_random_states() -> Any:
    """Where Python's and NumPy's own random numbers stand."""
    name, key, *position = np.random.get_state()  # type: ignore[misc]
    return random.getstate(), name, key.tobytes(), position  # type: ignore[union-attr]


def same_region(a: torch.Tensor, b: torch.Tensor) -> bool:
    return (a.shape, a.stride(), a.storage_offset(), a.dtype) == (b.shape, b.stride(), b.storage_offset(), b.dtype)


def whole_storage(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of what a tensor's storage holds: of the tensor, if that is all."""
    storage = tensor.untyped_storage()
    if tensor.is_contiguous() and tensor.numel() * tensor.element_size() == storage.nbytes():
        return tensor.detach().clone()
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(storage).clone()  # type: ignore[call-overload]


def odd_class(types: Sequence[type]) -> str:
    return next(kind.__name__ for kind in types if kind not in PLAIN)


def odd_tensor(tree: Any) -> str | None:
    """What is unusual about the first unusual tensor."""
    for tensor in pytree.tree_leaves(tree):
        if isinstance(tensor, torch.Tensor) and (tensor.layout is not torch.strided or type(tensor) not in PLAIN):
            return f"a tensor of layout {tensor.layout} and class {type(tensor).__name__}"
    return None
