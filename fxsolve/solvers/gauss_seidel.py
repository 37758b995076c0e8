"""Gauss-Seidel: the original order, one equation after the other. Always right, the fallback of everything."""

from __future__ import annotations

from dataclasses import dataclass

from fxsolve.solvers.contract import Solver


@dataclass(frozen=True)
class GaussSeidel(Solver):
    """`s_t = h_t(s_{<t})` for t = 1..T in order: T sequential steps."""

    def block_of(self, equations: int) -> int:
        return equations
