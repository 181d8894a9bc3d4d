"""The rows of a fit's curves, and the scores of its controls. Saved files and baselines name them, so they import no head."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from spin_native.classifier.heads import Head


class CurveRow(NamedTuple):
    """One depth of the depth curve, one layer of the layer curve, or the baseline.

    depth: layers run (in the layer curve: the layer's index + 1). validation: the score that chose, of a fit on training rows
    alone. test: the score of the final fit (see final_rows); None if no test rows were given. n_neurons: features that are
    read. pooling, eta, C: chosen by validation (eta: the share, or the number, of the cut; None where nothing is cut). site:
    what is read. Where several are read together, their names with a + between.
    """

    depth: int
    validation: float
    test: float | None
    n_neurons: int
    pooling: str
    eta: float | int | None
    C: float | None
    site: str

    @classmethod
    def of_head(cls, depth: int, validation: float, test: float | None, head: "Head") -> "CurveRow":
        """The row of a head."""
        n_neurons, pooling, site = head.n_neurons, head.names("pooling"), head.names("site")
        return cls(depth, validation, test, n_neurons, pooling, head.cut.amount, head.C, site)


class Controls(NamedTuple):
    """What the salient neurons are worth: validation scores of new L2 regressions.

    salient: on the salient neurons. random, bottom: on as many random neurons of each layer, and on as many of the least
    important ones. shuffled: on the salient neurons with shuffled labels. selectivity: salient - shuffled.
    """

    salient: float
    random: float
    bottom: float
    shuffled: float
    selectivity: float
