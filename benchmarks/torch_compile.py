"""torch.compile on one case, in a process of its own that may be stopped: it unrolls loops, which can take minutes.

Of a sampler the network is compiled, and called from the eager loop.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys

TIMED = 15.0  # seconds of later calls


def measure(name: str, device: str, small: bool, threads: int, limit: float) -> dict:
    """{"first": seconds, "median": seconds}, or {"failed": why} after `limit` seconds or an error."""
    command = [sys.executable, "-m", "benchmarks.torch_compile", name, "--device", device, "--threads", str(threads)]
    command += ["--small"] if small else []
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as child:
        try:
            printed, errors = child.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            return {"failed": f"nothing within {limit:.0f} s"}
    if child.returncode:
        return {"failed": (errors.strip().splitlines() or [f"exit {child.returncode}"])[-1][:200]}
    return json.loads(printed.strip().splitlines()[-1])


def main() -> None:
    import torch

    from benchmarks.cases import cases
    from examples.report import once

    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_default_device(options.device)
    torch.backends.cudnn.allow_tf32 = False  # as in the runner
    subject = {case.name: case for case in cases(options.small)}[options.name].make()
    mode = "reduce-overhead" if options.device == "cuda" else None  # CUDA graphs
    program = torch.compile(subject.program, mode=mode) if subject.network is None else subject.program
    if subject.network is not None:
        subject.network.forward = torch.compile(subject.network.forward, mode=mode)

    def call() -> object:
        return subject.run(program, subject.arguments)

    first = once(call, options.device)
    seconds = [once(call, options.device)]
    while len(seconds) < 7 and sum(seconds) < TIMED:
        seconds.append(once(call, options.device))
    print(json.dumps({"first": first, "median": statistics.median(seconds)}))


if __name__ == "__main__":
    main()
