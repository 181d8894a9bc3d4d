"""What a fit tries, and how it compares: the estimator's parameters, checked and in one place."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Shaped

from spin_native.classifier.tasks import Metric, Task
from spin_native.classifier.tasks.base import Array
from spin_native.probes.importance import Cut

Scaling = Literal["standard", "none"]
HeadName = Literal["refit", "frozen", "weighted"]
Mixing = Literal["apart", "together", "best"]
PhaseTwo = Literal["seen", "unseen", "both"]
FinalRows = Literal["all", "training"]
Source = tuple[str, str]  # (site, pooling)

ETAS = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0)  # where the caller gives no etas, top_k or top_share


@dataclass(frozen=True)
class Settings:
    """What a fit tries, and how it compares. See SpinClassifier for each."""

    task: Task
    sites: tuple[str, ...]
    poolings: tuple[str, ...]
    mixing: Mixing
    head: HeadName
    ranker: str
    cuts: tuple[Cut, ...]
    Cs: tuple[float, ...] | None
    head_Cs: tuple[float, ...] | None
    scaling: Scaling
    final_rows: FinalRows
    metric: Metric
    seed: int

    @property
    def sources(self) -> list[Source]:
        """Each (site, pooling)."""
        return [(site, pooling) for site in self.sites for pooling in self.poolings]

    @property
    def views(self) -> list[list[Source]]:
        """What one head may read of a layer: one source, or all of them."""
        apart = [[source] for source in self.sources]
        together = [self.sources] if len(self.sources) > 1 or self.mixing == "together" else []
        return {"apart": apart, "together": together, "best": apart + together}[self.mixing]

    def score(self, truth: Shaped[Array, "row *label"], predicted: Shaped[Array, "row *label"]) -> float:
        """The metric of encoded predictions."""
        return self.task.score(self.metric, truth, predicted)

    def worth(self, score: float) -> float:
        """A score such that more is better."""
        return self.task.worth(self.metric, score)
