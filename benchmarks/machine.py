"""Where results are kept, and the machine that they are of."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def machine(device: str) -> dict:
    """What a reader must know about where the numbers come from."""
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    described = {"cpu": model, "cores": os.cpu_count(), "threads": torch.get_num_threads()}
    described["vectors"] = torch.backends.cpu.get_cpu_capability()
    described |= {"torch": torch.__version__, "python": platform.python_version(), "system": platform.system()}
    if device == "cuda":
        described["gpu"] = torch.cuda.get_device_name()
    return described
