"""A shift alarm: whether the neurons of the texts that a classifier reads have the values of those it was fitted on."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Float32, Int
from scipy.stats import betabinom

from spin_native.classifier.heads import Head
from spin_native.classifier.heads.weighted import WeightedHead
from spin_native.classifier.parts import Part
from spin_native.errors import ShiftWarning
from spin_native.features.store import FeatureKey

Array = np.ndarray
Tensors = Mapping[str, Array]

LEVELS = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
MAX_NEURONS = 256
# So many different texts are judged together; fewer than MIN_TEXTS are not judged.
BLOCK_TEXTS, MIN_TEXTS = 10_000, 100
FALSE_ALARMS = 0.01  # per block, whatever the neurons' dependence
# Below these a difference is too small to matter, however certain it is: the population stability index of a neuron, and the
# share of the neurons that differ. The official test rows of a data set differ from its training rows in a few neurons.
MIN_INDEX, MIN_SHARE = 0.1, 0.05
PREFIX = "shift."


def salient_columns(head: Head, n: int = MAX_NEURONS) -> Int[Array, "_"]:
    """The `n` columns of a head, ascending, whose features move its scores most: the largest |weight| times spread.

    A weight on the standardised feature is the weight on the raw one times its spread. Of several scores the largest one
    counts; of a perceptron, the length of the neuron's weights to the first layer.
    """
    if isinstance(head, WeightedHead):
        moves = np.linalg.norm(head.model.weights[0], axis=1)
    else:
        moves = np.abs(head.weights).max(0)
    return np.sort(np.argsort(-moves, kind="stable")[:n])


@dataclass(frozen=True)
class Reference:
    """Quantiles of some neurons' raw features over the rows of a fit.

    columns: of the head at the smallest depth, which every text reaches, ascending. quantiles: [neuron, level]; the k-th one is
    the `ranks[k]`-th smallest of the `n_rows` values. shares: of these values between the quantiles, [neuron, level + 1]; the
    k-th holds the values above quantile k - 1 and at most quantile k.
    """

    columns: Int[Array, "neuron"]
    quantiles: Float32[Array, "neuron level"]
    ranks: Int[Array, "level"]
    n_rows: int
    shares: Float[Array, "neuron bin"]

    @classmethod
    def of(cls, features: Float32[Array, "row neuron"], columns: Int[Array, "neuron"]) -> "Reference":
        """The reference of one row or more. features: of these columns alone."""
        n_rows = len(features)
        ranks = np.clip(np.round(np.array(LEVELS) * (n_rows + 1)).astype(np.int64), 1, n_rows)
        quantiles = np.ascontiguousarray(np.sort(features, axis=0)[ranks - 1].T)
        at_most = np.stack([(features <= quantiles[:, level]).mean(0) for level in range(len(ranks))], 1)
        return cls(columns, quantiles, ranks, n_rows, _shares(at_most))

    @classmethod
    def of_heads(cls, heads: Mapping[int, Head], part: Part) -> "Reference | None":
        """That of the head at the smallest depth over training rows; None if it reads no neuron."""
        head = heads[min(heads)]
        if not head.n_neurons:
            return None
        columns = salient_columns(head)
        return cls.of(head.read_columns(part, columns), columns)

    def tensors(self) -> dict[str, Array]:
        """As they are saved."""
        arrays = {"columns": self.columns, "quantiles": self.quantiles, "ranks": self.ranks, "shares": self.shares}
        return {f"{PREFIX}{name}": array for name, array in arrays.items()} | {f"{PREFIX}rows": np.array([self.n_rows])}

    @classmethod
    def from_tensors(cls, tensors: Tensors, n_columns: int) -> "Reference | None":
        """The saved reference of a head with so many columns, None if there is none; ValueError for a forged one."""
        of_shift = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items() if name.startswith(PREFIX)}
        if not of_shift:
            return None
        columns, ranks, rows = (_whole(of_shift, name) for name in ("columns", "ranks", "rows"))
        quantiles, shares = of_shift["quantiles"], of_shift["shares"]
        if not len(columns) or (np.diff(columns) <= 0).any() or columns[0] < 0 or columns[-1] >= n_columns:
            raise ValueError(f"{PREFIX}columns are not ascending numbers of the {n_columns} columns of the first head")
        n_rows = int(rows[0]) if len(rows) == 1 else 0
        if not len(ranks) or (np.diff(ranks) < 0).any() or not 1 <= ranks[0] <= ranks[-1] <= n_rows:
            raise ValueError(f"{PREFIX}ranks are not ascending numbers from 1 to the number of rows, {PREFIX}rows")
        is_ascending = quantiles.shape == (len(columns), len(ranks)) and (np.diff(quantiles, axis=1) >= 0).all()
        if not is_ascending or quantiles.dtype != np.float32 or not np.isfinite(quantiles).all():
            raise ValueError(f"{PREFIX}quantiles are not {len(columns)} times {len(ranks)} ascending float32 numbers")
        if shares.shape != (len(columns), len(ranks) + 1) or shares.dtype != np.float64 or not (shares >= 0).all():
            raise ValueError(f"{PREFIX}shares are not {len(columns)} times {len(ranks) + 1} float64 numbers from 0")
        if not np.allclose(shares.sum(1), 1):
            raise ValueError(f"{PREFIX}shares do not add up to 1")
        if more := of_shift.keys() - {"columns", "quantiles", "ranks", "rows", "shares"}:
            raise ValueError(f"no shift alarm reads its tensor {PREFIX}{min(more)}")
        return cls(columns, quantiles, ranks, n_rows, shares)


@dataclass(frozen=True)
class Shift:
    """Texts whose neurons have other values than those of the fit.

    first_text, n_texts: which texts, counted from 0 over all that were read. n_different, n_neurons: how many of the neurons
    differ. worst: the one that differs most, a column of the reference; quantile, share, expected: the share of its values that
    are at most this quantile, where it differs most, and that share of the rows of the fit.
    """

    first_text: int
    n_texts: int
    n_different: int
    n_neurons: int
    worst: int
    quantile: float
    share: float
    expected: float


class ShiftWatch:
    """Counts the features of the texts that a classifier reads, and judges them in blocks of about BLOCK_TEXTS.

    A block differs if MIN_SHARE of the neurons do (see `different`).

    places: (feature, neuron) of each column of the reference. After `finish`: shifts, one Shift per block that differs.
    """

    def __init__(self, reference: Reference, places: Sequence[tuple[FeatureKey, int]]) -> None:
        self.reference, self.places = reference, places
        self.shifts: list[Shift] = []
        self.n_texts = 0
        self._first_text = 0  # of the block that is not judged yet
        self._features: list[Float32[Array, "_ neuron"]] = []
        self._clear()

    def _clear(self) -> None:
        self._n_rows, self._at_most = 0, np.zeros(self.reference.quantiles.shape, dtype=np.int64)
        self._below = self._at_most.copy()

    def add(self, features: Float32[Array, "row neuron"]) -> None:
        """More rows: the features of the reference's columns. Equal texts that run together are one row."""
        self._features.append(features)

    def end_block(self, n_texts: int) -> None:
        """The rows added so far are `n_texts` more texts."""
        self.n_texts += n_texts
        if self._features:
            features = np.concatenate(self._features)
            self._features = []
            self._n_rows += len(features)
            for level, quantile in enumerate(self.reference.quantiles.T):
                self._at_most[:, level] += np.count_nonzero(features <= quantile, axis=0)
                self._below[:, level] += np.count_nonzero(features < quantile, axis=0)
        if self._n_rows >= BLOCK_TEXTS:
            self._judge()

    def finish(self) -> None:
        """Judge the last texts, if they are enough; one ShiftWarning if any texts differ."""
        if self._n_rows >= MIN_TEXTS:
            self._judge()
        if self.shifts:
            warnings.warn(self._message(), ShiftWarning, stacklevel=3)

    @property
    def n_shifted(self) -> int:
        """How many texts are in blocks that differ."""
        return sum(shift.n_texts for shift in self.shifts)

    def _judge(self) -> None:
        """Compare the texts that were counted, and count anew."""
        reference = self.reference
        is_different = different(reference, self._at_most, self._below, self._n_rows)
        if is_different.sum() >= max(1, MIN_SHARE * len(is_different)):
            shares, expected = self._at_most / self._n_rows, np.cumsum(reference.shares, axis=1)[:, :-1]
            distance = np.where(is_different[:, None], np.abs(shares - expected), -1)
            worst, level = (int(index) for index in np.unravel_index(distance.argmax(), distance.shape))
            self.shifts.append(
                Shift(
                    self._first_text,
                    self.n_texts - self._first_text,
                    int(is_different.sum()),
                    len(is_different),
                    worst,
                    float(reference.quantiles[worst, level]),
                    float(shares[worst, level]),
                    float(expected[worst, level]),
                )
            )
        self._first_text = self.n_texts
        self._clear()

    def _message(self) -> str:
        shift = max(self.shifts, key=lambda shift: shift.n_different)
        feature, neuron = self.places[shift.worst]
        others = "" if len(self.shifts) == 1 else f" (the most different of {len(self.shifts)} such blocks)"
        return (
            f"{self.n_shifted} of {self.n_texts} texts differ from those that it was fitted on: in texts "
            f"{shift.first_text} to {shift.first_text + shift.n_texts - 1}{others}, {shift.n_different} of {shift.n_neurons} "
            f"neurons have other values; most of all neuron {neuron} ({feature.site}, {feature.pooling}) of layer "
            f"{feature.layer}: {shift.share:.1%} of its values are at most {shift.quantile:.3g}, in the fit "
            f"{shift.expected:.1%} were; the classifier's scores and promises may not hold for such texts: evaluate it on "
            "labelled ones, or fit it on them"
        )


def different(
    reference: Reference, at_most: Int[Array, "neuron level"], below: Int[Array, "neuron level"], n_rows: int
) -> Bool[Array, "neuron"]:
    """Which neurons' values differ, certainly and by enough to matter.

    at_most, below: how many of the `n_rows` values are at most, or below, each quantile. Certainly: if rows of the fit and new
    rows are draws of one continuous distribution, the number of new values up to the r-th smallest of n old ones is
    beta-binomial, whatever that distribution is; equal values move `at_most` up and `below` down, which only makes an alarm
    rarer. The limits hold for all neurons and quantiles together (Bonferroni), so that at most FALSE_ALARMS of blocks alarm
    wrongly. By enough: the population stability index is at least MIN_INDEX.
    """
    fewest, most = _limits(tuple(reference.ranks.tolist()), reference.n_rows, n_rows, len(at_most))
    is_certain = ((at_most < fewest) | (below > most)).any(1)
    return is_certain & (_stability_index(reference.shares, reference.n_rows, _shares(at_most / n_rows), n_rows) >= MIN_INDEX)


@lru_cache(maxsize=16)
def _limits(ranks: tuple[int, ...], n_old: int, n_new: int, n_neurons: int) -> tuple[Int[Array, "level"], Int[Array, "level"]]:
    """For each quantile the smallest and the largest number of new values up to it that is no alarm."""
    allowed = FALSE_ALARMS / (2 * len(ranks) * n_neurons)
    fewest, most = np.empty(len(ranks), np.int64), np.empty(len(ranks), np.int64)
    for level, rank in enumerate(ranks):
        shares = betabinom.pmf(np.arange(n_new + 1), n_new, rank, n_old - rank + 1)
        fewest[level] = np.count_nonzero(np.cumsum(shares) <= allowed)
        most[level] = n_new - np.count_nonzero(np.cumsum(shares[::-1]) <= allowed)
    return fewest, most


def _shares(at_most: Float[Array, "neuron level"]) -> Float[Array, "neuron bin"]:
    """The share of values in each bin, from the shares up to each quantile."""
    return np.diff(at_most, axis=1, prepend=0.0, append=1.0)


def _stability_index(
    old: Float[Array, "neuron bin"], n_old: int, new: Float[Array, "neuron bin"], n_new: int
) -> Float[Array, "neuron"]:
    """The population stability index, sum (new - old) log(new / old) over bins; half a row is added to each bin."""
    old, new = ((shares * n + 0.5) / (n + 0.5 * shares.shape[1]) for shares, n in ((old, n_old), (new, n_new)))
    return ((new - old) * np.log(new / old)).sum(1)


def _whole(tensors: Tensors, name: str) -> Int[Array, "_"]:
    """A list of int64 numbers; ValueError for anything else."""
    tensor = tensors[name]
    if tensor.ndim != 1 or tensor.dtype != np.int64:
        raise ValueError(f"{PREFIX}{name} is {tensor.dtype} {tensor.shape}, expected a list of int64 numbers")
    return tensor
