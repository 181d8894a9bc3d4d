"""What an estimator learns, set at once; and what pickle, deepcopy and joblib hand over of it.

A copy is the content of a saved classifier, and the place of its base model. The base model is not copied: its weights may lie
in an order that only this processor knows, and they are on disk already. The copy loads them when it first needs them, from the
same folder or the same commit of a Hub repository, and refuses other weights or another tokenizer.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, TypeVar

import numpy as np
from jaxtyping import UInt64
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from spin_native.checkpoints import Checkpoint, Location
from spin_native.classifier import options, saved
from spin_native.classifier.deployed import Deployed
from spin_native.classifier.exits import Exit
from spin_native.classifier.heads import Head
from spin_native.classifier.options import DTYPES
from spin_native.classifier.risk import AnyPromise
from spin_native.classifier.shift import Reference, ShiftWatch
from spin_native.classifier.tasks import TASKS, Task, TaskName
from spin_native.classifier.training import Fitted
from spin_native.errors import InputError

Array = np.ndarray
Copied = TypeVar("Copied", bound="Learnt")

# The learnt attributes that a saved classifier does not hold, or that users change after the fit.
APART = ("exit_", "promise_", "seconds_")
LEARNT = tuple(f"{field.name}_" for field in fields(Fitted))
IN_CONTENT = tuple(name for name in LEARNT if name not in APART)


@dataclass(frozen=True)
class Place:
    """Where a base model is, and how it runs. windows: (size, stride) of the windows that long texts are read in, or None."""

    name: str
    revision: str | None
    allow_pickle: bool
    dtype: str
    device: Any
    windows: tuple[int, int] | None = None  # in earlier pickles there is none

    @classmethod
    def of(cls, checkpoint: Checkpoint, dtype: str, device: Any, windows: tuple[int, int] | None) -> "Place":
        """That of a checkpoint: a folder by its whole path, a Hub model by its commit."""
        location = checkpoint.location
        name = location.name if location.folder is None else str(location.folder.resolve())
        return cls(name, checkpoint.revision, checkpoint.allow_pickle, dtype, device, windows)

    def deploy(self, heads: Mapping[int, Head], checkpoint: Checkpoint, reads_pairs: bool) -> Deployed:
        """The layers that other heads need, loaded in the same way."""
        return Deployed(checkpoint, heads, DTYPES[self.dtype], self.device, self.windows, reads_pairs)


@dataclass(frozen=True)
class Content:
    """The two files of a saved classifier, as bytes."""

    description: bytes
    tensors: bytes

    @classmethod
    def of(cls, fitted: Fitted, metric: str, parameters: Mapping[str, Any], checkpoint: Checkpoint) -> "Content":
        return cls(*saved.pack(fitted, metric, parameters, checkpoint))

    def read(self) -> saved.Saved:
        return saved.unpack("a pickled classifier", self.description, self.tensors)

    def deploy(self, heads: Mapping[int, Head], place: Place, reads_pairs: bool) -> Deployed:
        """Load the base model again; InputError, in one sentence, if it is gone or has changed."""
        try:
            checkpoint = Checkpoint(Location(place.name, place.revision), place.allow_pickle)
            saved.check_base_model(self.read(), checkpoint)
            return place.deploy(heads, checkpoint, reads_pairs)
        except InputError as error:
            raise InputError(
                f"a copy of a fitted classifier loads its base model from where the first one found it: {error}; or load a "
                "saved classifier with from_pretrained(..., base_model=...)"
            ) from error


class Learnt(BaseEstimator):
    """The part of an estimator that a fit sets. What users read, and the base model at work (_deployed), change together."""

    task: ClassVar[TaskName]
    dtype: str
    device: str
    depth_: int
    promise_: AnyPromise | None
    shift_reference_: Reference | None
    pairs_: bool
    _heads: dict[int, Head]
    _place: Place  # of the base model
    _content: Content | None  # of a copy that was unpickled; None once its heads are others
    _seen: UInt64[Array, "_"] | None  # digests of the texts that fit saw; None: not known
    _n_truncated: int  # of a copy, before it loaded the base model
    _fitted_with: dict[str, Any]  # parameters

    @property
    def n_truncated_(self) -> int:
        """How many of the texts read so far were longer than the base model holds, and were cut."""
        check_is_fitted(self, "heads_")
        return self._deployed.extractor.n_truncated if "_deployed" in self.__dict__ else self._n_truncated

    def __getstate__(self) -> dict[str, Any]:
        """For pickle, deepcopy and joblib: of a fitted estimator a saved classifier's content, without the base model."""
        state = super().__getstate__()
        if "_heads" not in state:
            return state
        content = state.get("_content") or Content.of(*self._learnt(), self._deployed.checkpoint)
        left_out = (*IN_CONTENT, "_heads", "_deployed")
        kept = {name: value for name, value in state.items() if name not in left_out}
        return {**kept, "_content": content, "_n_truncated": self.n_truncated_}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if (content := state.get("_content")) is not None:
            fitted = saved.restored(content.read())
            learnt = {name: getattr(fitted, name[:-1]) for name in IN_CONTENT if name not in ("task_", "heads_")}
            self.__dict__.update(learnt, _heads=fitted.heads)

    def __copy__(self: Copied) -> Copied:
        """A shallow copy shares the base model."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    @cached_property
    def _deployed(self) -> Deployed:
        """Set by a fit; a copy that was unpickled loads the base model here."""
        check_is_fitted(self, "heads_")
        assert self._content is not None  # what sets it to None sets _deployed, too
        deployed = self._content.deploy(self._heads, self._place, self.pairs_)
        deployed.extractor.n_truncated = self._n_truncated
        self.promise_ = self.promise_ and self.promise_.in_dtype(deployed.dtype)
        return deployed

    @property
    def heads_(self) -> dict[int, Head]:
        """{depth: head}. Assigned heads predict from then on, to their deepest one, and classes_ and the like are theirs."""
        if "_heads" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} is not fitted")
        return self._heads

    @heads_.setter
    def heads_(self, heads: Mapping[int, Head]) -> None:
        if not isinstance(heads, Mapping) or not heads or not all(isinstance(head, Head) for head in heads.values()):
            raise InputError(f"heads_ is a {type(heads).__name__}; expected one head or more by depth, {{depth: head}}")
        if others := {head.task.name for head in heads.values()} - {self.task}:
            raise InputError(f"heads_ holds heads of a {min(others)}; expected those of a {self.task}")
        deployed = self._place.deploy(heads, self._deployed.checkpoint, self.pairs_)
        changed = {"_heads": deployed.heads, "depth_": deployed.depth, "exit_": Exit("fixed", deployed.depth)}
        changed |= {"promise_": None, "shift_reference_": None}
        self.__dict__.update(changed, _deployed=deployed, _content=None)

    @property
    def head_(self) -> Head:
        """The head at depth_."""
        check_is_fitted(self, "heads_")
        return self.heads_[self.depth_]

    @property
    def task_(self) -> Task:
        """What the labels mean."""
        return self.head_.task

    def shift_watch(self) -> ShiftWatch | None:
        """What compares the texts that are read with those of the fit; None where the classifier does not know these."""
        check_is_fitted(self, "heads_")
        reference = self.shift_reference_
        if reference is None:
            return None
        places = self.heads_[min(self.heads_)].places
        return ShiftWatch(reference, [places[column] for column in reference.columns.tolist()])

    def _learnt(self) -> tuple[Fitted, str, dict[str, Any]]:
        """All that a fit learnt, what its scores are, and the parameters of that fit."""
        values = {name[:-1]: getattr(self, name) for name in LEARNT}
        fitted = Fitted(**{**values, "exit": Exit.of(values["exit"])})
        return fitted, options.metric_of(self._fitted_with, TASKS[self.task]), self._fitted_with
