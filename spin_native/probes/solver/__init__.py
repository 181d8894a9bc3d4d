"""Solvers for the linear models behind the probes. A duality gap bounds how far each solution is from the optimum."""

from spin_native.probes.solver.design import Design
from spin_native.probes.solver.losses import Logistic, Loss, Softmax, Squared
from spin_native.probes.solver.objective import Solution
from spin_native.probes.solver.ridge import ridge_path
from spin_native.probes.solver.sparse import sparse_path

__all__ = ["Design", "Logistic", "Loss", "Softmax", "Solution", "Squared", "ridge_path", "sparse_path"]
