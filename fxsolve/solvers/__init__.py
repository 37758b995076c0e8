"""Orders in which a triangular system is swept: one algorithm a file, one contract, one driver."""

from fxsolve.solvers.contract import Problem, Solver, drive
from fxsolve.solvers.gauss_seidel import GaussSeidel
from fxsolve.solvers.gs_jacobi import GSJacobi
from fxsolve.solvers.jacobi import Jacobi
from fxsolve.solvers.jacobi_gs import JacobiGS

__all__ = ["GSJacobi", "GaussSeidel", "Jacobi", "JacobiGS", "Problem", "Solver", "drive"]
