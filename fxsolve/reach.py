"""What a callable can read: a walk over modules, objects, containers and the user's functions.

The walk follows values, not executions: every attribute of a module or object counts as readable, and so does every
global that a function's code loads. Members of classes and of the user's Python modules count where the code that was
reached mentions their names (all of them, once `getattr` or `__dict__` is mentioned). Torch, the standard library and
installed packages are not walked, except for the package that the callable itself comes from.
"""

from __future__ import annotations

import array
import dis
import functools
import io
import os
import site
import sys
import sysconfig
import types
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch.nn.modules import module as torch_module

from fxsolve.hidden import HIDDEN
from fxsolve.watch import CLASS, CONTENTS, KEYS, METADATA, Watch, digest, is_plain, snapshot

OBJECT_DEPTH = 6  # of attributes of plain objects, counted from the nearest module or function
# Python reads these by itself, or torch does, so no code needs to mention them.
ENTRIES = frozenset({"forward", "backward", "setup_context", "jvp", "vmap"})
REFLECTION = frozenset({"getattr", "__dict__", "vars", "attrgetter", "methodcaller", "__getattribute__"})
MODULE_CHILDREN = frozenset({"_parameters", "_buffers", "_modules"})
MODULE_IGNORED = frozenset(
    {
        "_non_persistent_buffers_set",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
    }
)
INSTALLED = [*map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")), site.getusersitepackages()]
LIBRARY_PATHS = tuple([os.path.join(path, "") for path in INSTALLED])
GLOBAL_HOOKS = tuple(
    [
        (f"torch.nn{key.replace('_', ' ')}", hooks)
        for key, hooks in vars(torch_module).items()
        if key.startswith("_global_") and isinstance(hooks, dict)
    ]
)


# Class members that wrap a function, and the attribute that holds it.
DESCRIPTORS = (((classmethod, staticmethod), "__func__"), (property, "fget"), (functools.cached_property, "func"))


class Wrapper:
    """A callable that computes what another one computes, as compiled ones do: the other one is walked instead."""

    _compiler: Any


class Walk:
    """The watches and the named tensors of everything reached from the values that were visited."""

    def __init__(self, home: str = "") -> None:
        self.watches: list[Watch] = []
        self.tensors: dict[str, torch.Tensor] = {}
        self.hidden: list[tuple[str, Any]] = []  # objects whose state is in no attribute
        self._iterators: list[str] = []
        self._read: set[str] = set()  # attributes that code reads
        self._home = home
        self._seen: dict[int, Any] = {}
        self._globals: set[tuple[int, str]] = set()
        self._mentioned: set[str] = set(ENTRIES)
        self._members: list[_Members] = []

    def visit(self, value: Any, name: str, depth: int = 0) -> None:
        """Watch what can be read through `value`; the place that holds `value` itself is the caller's to watch."""
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        for kinds, rule in self.RULES:
            if isinstance(value, kinds):
                rule(self, value, name, depth)
                return

    def settle(self) -> None:
        """Visit members of classes and Python modules until no code that was reached mentions another one."""
        more = True
        while more:
            more = False
            for members in list(self._members):
                for key in members.take(self._mentioned):
                    self._member(members, key)
                    more = True

    def iterators(self) -> list[str]:
        """The names of iterators that the code may take from: nothing tells how far they are."""
        reflects = not REFLECTION.isdisjoint(self._mentioned)
        anyway = ("closure ", "argument ", "global ")
        return [name for name in self._iterators if reflects or name.startswith(anyway) or last_name(name) in self._read]

    def place(self, name: str, owner: Any, access: str, value: Any, depth: int = 0) -> None:
        """Watch a place that holds `value`, and what can be read through it."""
        if is_plain(value):
            self._watch(name, owner, access, snapshot(value), "value")
        else:
            self._watch(name, owner, access, value, "identity")
            self.visit(value, name, depth)

    def _watch(
        self,
        name: str,
        owner: Any,
        access: str,
        expected: Any,
        kind: Literal["value", "identity", "keys", "metadata", "contents"],
    ) -> None:
        self.watches.append(Watch(name, owner, access, expected, kind))

    def _tensor(self, value: torch.Tensor, name: str, depth: int) -> None:
        self.tensors[_unused(name, self.tensors)] = value
        if value.layout is torch.strided:
            metadata = (value.dtype, value.shape, value.stride(), value.device, value.requires_grad)
            self._watch(name, value, METADATA, metadata, "metadata")

    def _array(self, value: np.ndarray, name: str, depth: int) -> None:
        self._watch(name, value, CONTENTS, digest(value), "contents")

    def _mapping(self, value: Mapping[Any, Any], name: str, depth: int) -> None:
        watched = all(is_plain(key) for key in value)
        self._watch(name, value, KEYS if watched else "set(o)", frozenset(value), "keys")
        for key, item in value.items():
            if watched:
                self.place(f"{name}[{key!r}]", value, f"o[{key!r}]", item, depth)
            else:
                self.visit(item, f"{name}[..]", depth)

    def _sequence(self, value: list[Any] | tuple[Any, ...] | deque[Any], name: str, depth: int) -> None:
        self._watch(f"{name}'s length", value, "len(o)", len(value), "value")
        for position, item in enumerate(value):
            self.place(f"{name}[{position}]", value, f"o[{position}]", item, depth)

    def _module(self, value: torch.nn.Module, name: str, depth: int) -> None:
        for hooks_name, hooks in GLOBAL_HOOKS:
            self.visit(hooks, hooks_name)
        attributes = vars(value)
        self._attributes(value, name)
        for key, item in attributes.items():
            if key in MODULE_CHILDREN:
                self._children(item, name)
            elif "hooks" in key and isinstance(item, Mapping) and key not in MODULE_IGNORED:
                self._mapping(item, f"{name}.{key}", depth)
            elif key not in MODULE_IGNORED:
                self.place(f"{name}.{key}", attributes, f"o[{key!r}]", item)

    def _wrapper(self, value: Wrapper, name: str, depth: int) -> None:
        self.visit(value._compiler.fn, name, depth)

    def _script(self, value: torch.jit.ScriptModule, name: str, depth: int) -> None:
        self._watch(f"{name}.training", value, "o.training", value.training, "value")
        for key, tensor in [*value.named_parameters(), *value.named_buffers()]:
            self.visit(tensor, f"{name}.{key}")

    def _children(self, entries: Mapping[str, Any], name: str) -> None:
        self._watch(name, entries, KEYS, frozenset(entries), "keys")
        for key, item in entries.items():
            self.place(f"{name}.{key}", entries, f"o[{key!r}]", item)

    def _attributes(self, value: Any, name: str) -> None:
        """The class of an object, the names of its attributes, and the members of its class."""
        self._watch(f"{name}'s class", value, CLASS, type(value), "identity")
        if hasattr(value, "__dict__"):
            self._watch(name, vars(value), KEYS, frozenset(vars(value)), "keys")
        self._members_of(type(value), name)

    def _object(self, value: Any, name: str, depth: int) -> None:
        kind = type(value)
        if isinstance(wrapped := getattr(value, "__wrapped__", None), types.FunctionType):  # functools.cache
            self.visit(wrapped, name)
        if depth >= OBJECT_DEPTH or not (_has_state(kind) or self._is_user(kind.__module__)):
            return
        self._attributes(value, name)
        for key, item in getattr(value, "__dict__", {}).items():
            self.place(f"{name}.{key}", vars(value), f"o[{key!r}]", item, depth + 1)
        for key in _slots(kind):
            if hasattr(value, key):
                self.place(f"{name}.{key}", value, f"o.{key}", getattr(value, key), depth + 1)

    def _method(self, value: types.MethodType, name: str, depth: int) -> None:
        owner = value.__self__
        self.visit(owner, "model" if name == value.__name__ else f"{name}.__self__", depth)
        self.visit(value.__func__, name, depth)

    def _partial(self, value: functools.partial[Any], name: str, depth: int) -> None:
        self._watch(f"{name}'s function", value, "o.func", value.func, "identity")
        self.visit(value.func, name, depth)
        for position, item in enumerate(value.args):
            self.place(f"argument {position} of {name}", value, f"o.args[{position}]", item)
        self._watch(f"{name}'s keywords", value, "o.keywords.keys()", frozenset(value.keywords), "keys")
        for key, item in value.keywords.items():
            self.place(f"argument {key} of {name}", value, f"o.keywords[{key!r}]", item)

    def _class(self, value: type, name: str, depth: int) -> None:
        self._members_of(value, name)

    def _iterator(self, value: Iterator[Any], name: str, depth: int) -> None:
        if hasattr(value, "__dict__"):  # a user's own, which keeps what it knows in attributes
            self._object(value, name, depth)
        elif not isinstance(value, io.IOBase):
            self._iterators.append(name)

    def _bytes(self, value: bytearray | memoryview | array.array[Any], name: str, depth: int) -> None:
        self._watch(name, value, "bytes(o)", bytes(value), "contents")

    def _hidden(self, value: Any, name: str, depth: int) -> None:
        self.hidden.append((name, value))

    def _python_module(self, value: types.ModuleType, name: str, depth: int) -> None:
        if self._is_user(value.__name__):
            self._members.append(_Members(name, vars(value)))

    def _function(self, value: types.FunctionType, name: str, depth: int) -> None:
        self._cells(value)
        for key, item in vars(value).items():
            self.place(f"{name}.{key}", vars(value), f"o[{key!r}]", item)
        if not self._is_user(value.__globals__.get("__name__", "__main__")):
            return
        self._watch(name, vars(value), KEYS, frozenset(vars(value)), "keys")
        self._watch(f"{name}'s code", value, "o.__code__", value.__code__, "identity")
        self._defaults(value)
        for code in _codes(value.__code__):
            self._mentioned.update(code.co_names)
            self._loads(code, value.__globals__)

    def _cells(self, function: types.FunctionType) -> None:
        """What a function closes over. Of a library's function (a decorator's wrapper) only callables count."""
        everything = self._is_user(function.__globals__.get("__name__", "__main__"))
        for key, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            try:
                item = cell.cell_contents
            except ValueError:  # not bound yet
                continue
            if everything or callable(item):
                self.place(f"closure {key}", cell, "o.cell_contents", item)

    def _defaults(self, function: types.FunctionType) -> None:
        name, defaults = function.__qualname__, function.__defaults__ or ()
        self._watch(f"{name}'s defaults", function, "o.__defaults__", function.__defaults__, "identity")
        arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
        for position, (key, item) in enumerate(zip(reversed(arguments), reversed(defaults))):
            self.place(f"default {key} of {name}", defaults, f"o[{len(defaults) - 1 - position}]", item)
        for key, item in (function.__kwdefaults__ or {}).items():
            self.place(f"default {key} of {name}", function, f"o.__kwdefaults__[{key!r}]", item)

    def _loads(self, code: types.CodeType, scope: dict[str, Any]) -> None:
        """The globals that a code object loads, and the Python modules that it imports."""
        for instruction in dis.get_instructions(code):
            key = instruction.argval
            if instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                self._read.add(key)
            if instruction.opname == "IMPORT_NAME" and key in sys.modules:
                self.visit(sys.modules[key], key)
            loads = instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME") and key in scope
            if loads and (id(scope), key) not in self._globals:
                self._globals.add((id(scope), key))
                self.place(f"global {key}", scope, f"o[{key!r}]", scope[key])

    def _members_of(self, kind: type, name: str) -> None:
        for base in kind.__mro__:
            if self._is_user(base.__module__) and not any(members.owner is base for members in self._members):
                self._members.append(_Members(name, vars(base), base))

    def _member(self, members: _Members, key: str) -> None:
        value = members.scope[key]
        name = f"{members.name}.{key}"
        self.place(name, members.scope, f"o[{key!r}]", value)
        for kinds, part in DESCRIPTORS:
            if isinstance(value, kinds):
                self.visit(getattr(value, part), name)

    def _is_user(self, module: str) -> bool:
        return module.partition(".")[0] == self._home or is_user_module(module)

    RULES: ClassVar[tuple[tuple[Any, Callable[..., None]], ...]] = (
        (torch.Tensor, _tensor),
        (Wrapper, _wrapper),
        (torch.jit.ScriptModule, _script),
        (torch.nn.Module, _module),
        (types.FunctionType, _function),
        (types.MethodType, _method),
        (functools.partial, _partial),
        (np.ndarray, _array),
        (type, _class),
        (types.ModuleType, _python_module),
        (Mapping, _mapping),
        ((list, tuple, deque), _sequence),
        (Iterator, _iterator),
        ((bytearray, memoryview, array.array), _bytes),
        (HIDDEN, _hidden),
        (object, _object),
    )


class _Members:
    """The members of a class or Python module, taken as the code that is reached mentions them."""

    def __init__(self, name: str, scope: Mapping[str, Any], owner: type | None = None) -> None:
        self.name, self.scope, self.owner = name, scope, owner
        self._taken: set[str] = set()

    def take(self, mentioned: set[str]) -> Iterator[str]:
        everything = not REFLECTION.isdisjoint(mentioned)
        for key, value in list(self.scope.items()):
            special = key.startswith("__") and key.endswith("__")
            wanted = isinstance(value, types.FunctionType) and self.owner is not None if special else everything
            if key not in self._taken and (wanted or key in mentioned and not special):
                self._taken.add(key)
                yield key


@functools.cache
def is_user_module(name: str) -> bool:
    """Whether a Python module is the user's: neither torch, nor fxsolve, nor built in, nor installed."""
    top = name.partition(".")[0]
    if top in ("torch", "fxsolve") or top in sys.stdlib_module_names:
        return False
    path = getattr(sys.modules.get(name), "__file__", None)
    return path is None or not os.path.abspath(path).startswith(LIBRARY_PATHS)


def _has_state(kind: type) -> bool:
    """Whether instances of a class that is not the user's carry settings worth watching (loggers and locks do not)."""
    top = kind.__module__.partition(".")[0]
    return issubclass(kind, (Namespace, types.SimpleNamespace)) or top not in sys.stdlib_module_names


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        names = [slots] if isinstance(slots, str) else slots
        yield from (key for key in names if not key.startswith("__"))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A code object and those nested in it: inner functions, lambdas, comprehensions."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def last_name(name: str) -> str:
    """The attribute or global that a place is called by: `model.loader[0]` --> `loader`."""
    return name.split()[-1].rpartition(".")[2].partition("[")[0]


def _unused(name: str, taken: Mapping[str, Any]) -> str:
    if name not in taken:
        return name
    number = 2
    while f"{name} ({number})" in taken:
        number += 1
    return f"{name} ({number})"
