"""One text, everything inside the model that reads it: attention, neurons, and what its head would say at every layer."""

from spin_native.inspection.inspected import InspectedLayer, Inspection, LogitLens, inspect
from spin_native.inspection.standout import NeuronScore

__all__ = ["InspectedLayer", "Inspection", "LogitLens", "NeuronScore", "inspect"]
