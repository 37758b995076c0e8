"""What `module:name` and `path/to/file.py:name` on the command line mean."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any


class UsageError(Exception):
    """The command line asks for something that is not there; the text says what to write instead."""


def load(target: str) -> Callable[..., Any]:
    """The callable that a target names: `module:name` or `file.py:name`, the name dotted where it is inside something.

    A class on the way is instantiated, without arguments: `models:Made.sample` is a method of a new Made().
    Raises UsageError for what is not there or cannot be called; what the user's code raises goes through.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise UsageError(f"{target!r} does not name a program; write module:name or path/to/file.py:name")
    found: Any = module_at(place)
    at = place
    for part in name.split("."):
        found = instance(attribute(found, part, at), f"{at}:{part}" if at == place else f"{at}.{part}")
        at = f"{at}:{part}" if at == place else f"{at}.{part}"
    if not callable(found):
        raise UsageError(f"{target} is of type {type(found).__name__}; name a module, a function or a bound method")
    return found


def module_at(place: str) -> ModuleType:
    """Imports a module, or runs a Python file as one; its neighbours can be imported as if it had been started itself."""
    if place.endswith(".py"):
        return module_of_file(Path(place))
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise  # a module that the user's own module imports
        hint = f"; for the file, write {place}.py" if Path(f"{place}.py").is_file() else ""
        raise UsageError(
            f"there is no module {error.name!r} here or among the installed ones{hint}. Run this in the folder that holds it, "
            f"or name a file: path/to/file.py:name"
        ) from None


def module_of_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"there is no file {path} (looked in {Path.cwd()})")
    sys.path.insert(0, str(path.resolve().parent))
    name = f"file_{path.stem}"  # not the stem alone: a user's random.py must not stand in for Python's
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def attribute(owner: Any, name: str, at: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError:
        public = [n for n in dir(owner) if not n.startswith("_")]
        near = difflib.get_close_matches(name, public, n=3, cutoff=0.5)
        if not near and isinstance(owner, ModuleType):  # what the file itself makes
            near = [n for n in public if getattr(getattr(owner, n), "__module__", None) == owner.__name__]
        said = f"; there is {', '.join(near)}" if near else ""
        raise UsageError(f"{at} has no {name!r}{said}") from None


def instance(found: Any, at: str) -> Any:
    """An object of a class that can be made without arguments; anything else as it is."""
    if not isinstance(found, type):
        return found
    try:
        inspect.signature(found).bind()
    except TypeError as error:
        raise UsageError(
            f"{at} is a class that takes arguments ({error}); make an instance in the file (model = {found.__name__}(..)) "
            f"and name that"
        ) from None
    except ValueError:  # a class of C code, without a signature
        pass
    return found()
