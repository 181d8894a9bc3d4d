"""SPIN's head: a new L2 regression on the salient neurons (arXiv 2311.15983, section 3.3)."""

from dataclasses import dataclass

from spin_native.classifier.fitting import HEAD_C_TIMES, Rows, best_probe
from spin_native.classifier.heads.base import OF_SELECTION, SelectedLinearHead
from spin_native.classifier.settings import Settings
from spin_native.classifier.sparsify import Selection
from spin_native.classifier.tasks import Probe


@dataclass(frozen=True)
class RefitHead(SelectedLinearHead):
    """A new L2 regression on the salient neurons themselves."""

    kind = saved_kind = "refit"
    label = "refit (SPIN)"
    options = ("head_Cs", "final_rows", *OF_SELECTION)

    @classmethod
    def fit(cls, selection: Selection, train: Rows, validation: Rows, settings: Settings) -> tuple["RefitHead", float]:
        probe, score = refit(train, validation, settings)
        return cls(settings.task, selection.cut, selection.neurons, selection.standardizer, probe), score


def refit(train: Rows, validation: Rows, settings: Settings) -> tuple[Probe, float]:
    """An L2 regression on standardised features, and its validation score."""
    width = train.features.shape[1]
    return best_probe(train, validation, settings.head_Cs or [times / width for times in HEAD_C_TIMES], 0.0, settings)
