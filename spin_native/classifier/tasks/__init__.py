"""What labels mean: classes, sets of labels, or values. No other room asks which of them it is.

A task checks and encodes labels, splits and samples rows, names the loss, the metrics and the outputs, and turns what a head
gives into answers. Another task is another class here, a line in TASKS, its names in `base.py`, and an estimator.
"""

from spin_native.classifier.tasks.base import Metric, Probe, Task, TaskName
from spin_native.classifier.tasks.classes import Classes
from spin_native.classifier.tasks.label_sets import LabelSets
from spin_native.classifier.tasks.thresholds import best_thresholds
from spin_native.classifier.tasks.values import Values

TASKS: dict[str, type[Task]] = {task.name: task for task in (Classes, LabelSets, Values)}

__all__ = ["TASKS", "Classes", "LabelSets", "Metric", "Probe", "Task", "TaskName", "Values", "best_thresholds"]
