"""Where a program was compiled, and for which calls: versions, machine, threads, devices, signature."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Hashable
from importlib import metadata
from pathlib import Path

import torch

from fxsolve.codegen import Executable
from fxsolve.signature import described
from fxsolve.visualize.amounts import count_of
from fxsolve.visualize.markup import Content, Markup, element, facts, joined


def environment(executable: Executable | None, signature: Hashable | None) -> Markup:
    rows: list[tuple[str, Content]] = [
        ("fxsolve", metadata.version("fxsolve")),
        ("torch", torch.__version__),
        ("Python", platform.python_version()),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("processor", f"{processor()}, {count_of(os.cpu_count() or 1, 'core')}"),
        ("threads", str(torch.get_num_threads())),
        ("devices", devices(executable)),
    ]
    parts = [facts(rows, "said")]
    if signature is not None:
        parts += [element("h3", "Signature of the last call"), facts(described(signature).items(), "said")]
    return joined(parts)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or "unknown processor"


def devices(executable: Executable | None) -> str:
    leaves = executable.program.leaves if executable is not None else ()
    return ", ".join(device_name(d) for d in dict.fromkeys(leaf.tensor.device for leaf in leaves)) or "cpu"


def device_name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)
