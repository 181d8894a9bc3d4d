"""Solvers for the linear models behind the probes. A duality gap bounds how far each solution is from the optimum."""

from spin_native.probes.solver.design import Design
from spin_native.probes.solver.dual import DualFits, dual_fits
from spin_native.probes.solver.gram import Gram, GramFactors, GramMatrix, Grams, GramSum, times_transposed
from spin_native.probes.solver.losses import Logistic, Loss, Softmax, Squared
from spin_native.probes.solver.objective import Solution
from spin_native.probes.solver.ridge import ridge_path
from spin_native.probes.solver.sparse import sparse_path

__all__ = [
    "Design",
    "DualFits",
    "Gram",
    "GramFactors",
    "GramMatrix",
    "GramSum",
    "Grams",
    "Logistic",
    "Loss",
    "Softmax",
    "Solution",
    "Squared",
    "dual_fits",
    "ridge_path",
    "sparse_path",
    "times_transposed",
]
