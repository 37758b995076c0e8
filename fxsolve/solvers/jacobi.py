"""Jacobi: all equations at once, from the last sweep's values."""

from __future__ import annotations

from dataclasses import dataclass

from fxsolve.solvers.contract import Solver


@dataclass(frozen=True)
class Jacobi(Solver):
    """`s_t^{k+1} = h_t(s_{<t}^k)` for all t at once: at most T sweeps, often far fewer (Song et al. 2021, algorithm 1)."""

    def block_of(self, equations: int) -> int:
        return 1
