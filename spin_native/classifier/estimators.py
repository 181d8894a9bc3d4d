"""SpinClassifier, SpinRegressor: texts and labels in; out comes what runs the base model only as deep as it needs."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar, get_args

import huggingface_hub
import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from spin_native.checkpoints import Checkpoint, Dtype, Location
from spin_native.classifier.deployed import Deployed
from spin_native.classifier.exits import Exit, ExitBy, Promise, calibrate, rows_needed, shallowest_within
from spin_native.classifier.integration import (
    METRICS,
    Controls,
    CurveRow,
    FinalRows,
    Head,
    HeadKind,
    Metric,
    Mixing,
    PhaseTwo,
    Scaling,
    Settings,
    Task,
)
from spin_native.classifier.labels import checked_labels, checked_values, encoded
from spin_native.classifier.perceptron import Perceptron
from spin_native.classifier.rows import LabelledRows, TextsAndLabels, labelled_rows, valued_rows
from spin_native.classifier.saved import describe_head, head_tensors, read_classifier, read_head, write_classifier
from spin_native.classifier.training import Extraction, Training
from spin_native.errors import InputError
from spin_native.features.extract import Site, check_choices
from spin_native.features.pooling import Pooling
from spin_native.models import ModelConfig, checked_depth
from spin_native.probes.importance import RANKERS, WEIGHTINGS, Cut, CutBy
from spin_native.version import __version__

Array = np.ndarray
Fitted = TypeVar("Fitted", bound="_Spin")
DTYPES: dict[str, Dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}


# Settings that say where, not what: a saved classifier names its base model apart, and runs where it is loaded.
PLACE = ("model", "revision", "device", "allow_pickle")


class Contribution(NamedTuple):
    """What one neuron added to the predicted class's logit, or to the value."""

    layer: int
    neuron: int
    contribution: float
    site: str
    pooling: str


class _Spin(BaseEstimator):
    """Read the salient neurons of a language model's first layers (SPIN, arXiv 2311.15983).

    model, revision: the base model, a folder or a Hub name. dtype, device: how to run it.
    depth: how many layers it may run; None for all, "best" to let the validation rows choose among all.
    tolerance: with "best", take the shallowest depth whose validation score is at most this much below the best.
    sites, poolings: what is read of every layer. mixing: one (site, pooling) per head ("apart", as SPIN does), all of them in
        one head ("together", Sparsify-then-Classify), or what validation prefers of these ("best").
    head: "refit", a new regression on the salient neurons (SPIN); "frozen", the layers' own probes, pruned, under a dense
        layer (Liu, phase 2); "weighted", a small perceptron over neurons weighted by their layers' validation scores (SIREN).
    phase_two: the rows a frozen head learns from: those that the probes have "seen", as many "unseen" ones (half the training
        rows are kept from the probes), or "both".
    ranker: what makes a neuron important: its probe's weights, "squared" (SPIN), "l2" (Liu) or "absolute" (SIREN); or, without
        a probe, "class_mean_difference", "f_statistic", "mutual_information" or "predictivity" (skill neurons).
    etas: shares of the importance to keep, validation chooses; top_k: numbers of neurons per layer, or top_share: shares of
        each layer, instead.
    Cs: of the layers' L1 probes; None: 3, 10, 30 and 100 times the smallest C at which a probe has any weight. head_Cs: of the
        heads' L2 regressions; None: .3, 1, 3 and 10 over the number of neurons (frozen: .1 to 300 over the number of outputs
        below), so that the prior variance of a logit does not depend on it. A perceptron has none.
    scaling: "standard" gives every neuron mean 0 and variance 1 over the training rows before any probe sees it.
    final_rows: what linear heads and baseline are fitted on once validation has chosen: "training" rows only, as published, or
        "all", training and validation rows (whose scores then say nothing any more). None: "all" where the validation rows were
        split off the training rows (and phase_two is "seen"), "training" where they were given. C stays; a perceptron, too.
    metric: what validation compares: "accuracy" or "macro_f1"; for a regression "pearson", "spearman", "mse" or "mae". None:
        the first of them.
    validation_share: of the training rows, split off (by class) where no validation rows are given.
    sample: fit probes and selection on at most so many training (and validation) rows, and extract of all rows the salient
        neurons only: kilobytes for each row instead of megabytes. None: on all rows.
    exits: depths below depth_ that keep a head of their own, for rows that leave early: "all", a sequence, or None.
    baseline: also fit what people do today, a regression on the pooled final hidden state.
    seed: of every random choice.

    After fit: depth_, salient_neurons_ {layer: sorted indices}, head_, heads_ {depth: head}, depth_curve_ (a CurveRow per
    depth), layer_curve_ (one per single layer), baseline_ (a CurveRow or None), controls_ (None with `sample`), unconverged_
    (linear models whose solver gave up), exit_ (when a row stops), promise_ (what calibrate found, or None), seconds_ {phase:
    seconds}.
    """

    task: ClassVar[Task]

    def __init__(
        self,
        model: str = "roberta-base",
        *,
        revision: str | None = None,
        depth: int | Literal["best"] | None = "best",
        tolerance: float = 0.0,
        sites: Sequence[Site] = ("activation",),
        poolings: Sequence[Pooling] = ("mean", "max"),
        mixing: Mixing = "best",
        head: HeadKind = "refit",
        phase_two: PhaseTwo = "seen",
        ranker: str = "squared",
        etas: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0),
        top_k: Sequence[int] | None = None,
        top_share: Sequence[float] | None = None,
        Cs: Sequence[float] | None = None,
        head_Cs: Sequence[float] | None = None,
        scaling: Scaling = "standard",
        final_rows: FinalRows | None = None,
        metric: Metric | None = None,
        validation_share: float = 0.2,
        sample: int | None = None,
        exits: Sequence[int] | Literal["all"] | None = None,
        baseline: bool = True,
        dtype: str = "float32",
        device: str = "cpu",
        allow_pickle: bool = False,
        seed: int = 0,
    ) -> None:
        self.model = model
        self.revision = revision
        self.depth = depth
        self.tolerance = tolerance
        self.sites = sites
        self.poolings = poolings
        self.mixing = mixing
        self.head = head
        self.phase_two = phase_two
        self.ranker = ranker
        self.etas = etas
        self.top_k = top_k
        self.top_share = top_share
        self.Cs = Cs
        self.head_Cs = head_Cs
        self.scaling = scaling
        self.final_rows = final_rows
        self.metric = metric
        self.validation_share = validation_share
        self.sample = sample
        self.exits = exits
        self.baseline = baseline
        self.dtype = dtype
        self.device = device
        self.allow_pickle = allow_pickle
        self.seed = seed

    @property
    def metric_(self) -> Metric:
        """The metric that is compared."""
        return next(iter(METRICS[self.task])) if self.metric is None else self.metric

    def fit(
        self: Fitted,
        texts: Iterable[str],
        labels: Iterable[Any],
        *,
        validation: TextsAndLabels | None = None,
        test: TextsAndLabels | None = None,
        store: str | Path | None = None,
        progress: bool | None = None,
    ) -> Fitted:
        """Extract the features of all texts, probe every layer, integrate a head for every depth, and choose a depth.

        texts, labels: one text (str) and one label (all str, or all int; for a regression numbers) per row, in lists, arrays
            or Series.
        validation, test: (texts, labels) of other rows. Validation chooses everything, and is learnt from in the end if
            final_rows is "all"; test is scored once per depth.
        store: a folder that keeps the features on disk: a fit that was interrupted goes on where it was.
        progress: bars on stderr (None: if that is a terminal).

        Raises InputError for unusable settings, texts, labels or checkpoints. LeakWarning if texts stand in two of the parts.
        """
        settings = self._settings()
        if self.final_rows is None and validation is None and self.phase_two == "seen":
            settings = replace(settings, final_rows="all")
        parts = self._rows((texts, labels), validation, test)
        checkpoint = Checkpoint(Location(self.model, self.revision), self.allow_pickle)
        max_depth = checked_depth(None if self.depth == "best" else self.depth, checkpoint.config.n_layers)
        self._exit_depths(max_depth)
        widths = {"activation": checkpoint.config.d_ffn, "hidden": checkpoint.config.d_model}
        for cut in settings.cuts:
            cut.check_width(min(widths[site] for site in settings.sites))
        where = None if store is None else Path(store)
        trained = Training(
            Extraction(checkpoint, DTYPES[self.dtype], self.device, where, progress),
            settings,
            max_depth,
            self.depth == "best",
            self.tolerance,
            self.sample,
            self.phase_two,
            self.baseline,
            progress,
        ).run(parts)
        self.depth_, self.depth_curve_, self.layer_curve_ = trained.depth, trained.curve, trained.layer_curve
        self.baseline_, self.controls_, self.unconverged_ = trained.baseline, trained.controls, trained.unconverged
        kept = {*self._exit_depths(self.depth_), self.depth_}
        self.heads_ = {depth: head for depth, head in sorted(trained.heads.items()) if depth in kept}
        if self.unconverged_:
            warnings.warn(
                f"{len(self.unconverged_)} linear models did not converge: {', '.join(self.unconverged_[:3])}"
                + (", ..." if len(self.unconverged_) > 3 else ""),
                ConvergenceWarning,
                stacklevel=2,
            )
        self.exit_, self.seconds_ = Exit("fixed", self.depth_), trained.seconds
        self.promise_: Promise | None = None
        self._deployed = Deployed(checkpoint, self.heads_, DTYPES[self.dtype], self.device)
        return self

    def _rows(
        self, training: TextsAndLabels, validation: TextsAndLabels | None, test: TextsAndLabels | None
    ) -> dict[str, LabelledRows]:
        """The parts of the data, checked; what is learnt of the labels is kept."""
        raise NotImplementedError

    def _settings(self) -> Settings:
        """The sweep's settings, checked."""
        for name, given, choices in (
            ("metric", self.metric_, tuple(METRICS[self.task])),
            ("scaling", self.scaling, get_args(Scaling)),
            ("final_rows", self.final_rows, (*get_args(FinalRows), None)),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("mixing", self.mixing, get_args(Mixing)),
            ("head", self.head, get_args(HeadKind)),
            ("phase_two", self.phase_two, get_args(PhaseTwo)),
            ("ranker", self.ranker, (*WEIGHTINGS, *RANKERS)),
        ):
            if given not in choices:
                raise InputError(f"{name} is {given!r}; expected one of {', '.join(map(str, choices))}")
        if self.task == "regression" and self.ranker in ("class_mean_difference", "predictivity"):
            raise InputError(f"ranker {self.ranker!r} needs classes; choose another one for a regression")
        if self.phase_two != "seen" and (self.head != "frozen" or self.sample is not None):
            raise InputError(f"phase_two {self.phase_two!r} is for head='frozen' without a sample; leave it at 'seen'")
        if not isinstance(self.seed, Integral):
            raise InputError(f"seed is {self.seed!r}; expected a whole number")
        if self.sample is not None and self.sample < 2:
            raise InputError(f"sample is {self.sample}; expected a number of rows, or None for all")
        check_choices(self.sites, get_args(Site))
        check_choices(self.poolings, get_args(Pooling))
        for name, grid in (("Cs", self.Cs), ("head_Cs", self.head_Cs)):
            if grid is not None and (not len(grid) or not all(0 < value < np.inf for value in grid)):
                raise InputError(f"{name} is {grid!r}; expected positive numbers")
        grids: dict[CutBy, Sequence[float] | None] = {"top_k": self.top_k, "top_share": self.top_share}
        given_grids = {name: grid for name, grid in grids.items() if grid is not None} or {"eta": self.etas}
        if len(given_grids) > 1 or not all(map(len, given_grids.values())):
            raise InputError("etas, top_k and top_share: expected one of them, with one value or more")
        cuts = tuple(Cut(by, amount) for by, grid in given_grids.items() for amount in np.asarray(grid).tolist())
        shallowest_within({1: 0.0}, self.tolerance)  # refuses what is no tolerance before the work, not after
        Cs, head_Cs = (None if grid is None else tuple(np.asarray(grid).tolist()) for grid in (self.Cs, self.head_Cs))
        return Settings(
            task=self.task,
            sites=tuple(self.sites),
            poolings=tuple(self.poolings),
            mixing=self.mixing,
            head=self.head,
            ranker=self.ranker,
            cuts=cuts,
            Cs=Cs,
            head_Cs=head_Cs,
            scaling=self.scaling,
            final_rows=self.final_rows or "training",
            metric=self.metric_,
            seed=self.seed,
        )

    def _exit_depths(self, depth: int) -> list[int]:
        """The depths below `depth` that are to keep a head."""
        if self.exits is None:
            return []
        if isinstance(self.exits, str) and self.exits == "all":
            return list(range(1, depth))
        if isinstance(self.exits, str) or not all(isinstance(exit_, Integral) and exit_ >= 1 for exit_ in self.exits):
            raise InputError(f"exits is {self.exits!r}; expected depths of 1 or more, 'all' or None")
        return [int(exit_) for exit_ in self.exits if exit_ < depth]

    # Deployed: the first depth_ layers, the salient neurons, the heads.

    @property
    def head_(self) -> Head:
        """The head at depth_."""
        check_is_fitted(self, "heads_")
        return self.heads_[self.depth_]

    @property
    def model_config_(self) -> ModelConfig:
        """Sizes of the base model."""
        check_is_fitted(self, "heads_")
        return self._deployed.extractor.model.config

    @property
    def n_truncated_(self) -> int:
        """How many of the texts read so far were longer than the base model holds, and were cut."""
        check_is_fitted(self, "heads_")
        return self._deployed.extractor.n_truncated

    @property
    def salient_neurons_(self) -> dict[int, Int[Array, "_"]]:
        """Layer -> sorted indices of the neurons the head reads, under any pooling (FFN neurons, where it reads both sites)."""
        found: dict[int, Int[Array, "_"]] = {}
        site = "activation" if "activation" in {feature.site for feature in self.head_.neurons} else "hidden"
        for feature, neurons in self.head_.neurons.items():
            if feature.site == site and len(neurons):
                found[feature.layer] = np.union1d(found.get(feature.layer, neurons), neurons)
        return found

    def output_blocks(
        self, texts: Iterable[str], progress: bool | None = None, exit: str | Exit | None = None
    ) -> Iterator[tuple[Float[Array, "row _"], Int[Array, "row"]]]:
        """Probabilities [row, class] (or values [row, 1]) of a stream of texts, and the depth each row left at, block by block.

        exit: when a row stops, such as "fixed:4", "confidence:0.9" or "patience:2" (see Exit); None: exit_.
        """
        check_is_fitted(self, "heads_")
        given = self.exit_ if exit is None else Exit.parse(exit) if isinstance(exit, str) else exit
        if self.task == "regression" and given.by != "fixed":
            raise InputError(f"exit {str(given)!r} needs classes; a regression leaves at a fixed depth")
        yield from self._deployed.blocks(texts, given, progress)

    def _outputs(
        self, texts: str | Iterable[str], progress: bool | None, exit: str | Exit | None
    ) -> tuple[Float[Array, "row _"], Int[Array, "row"]]:
        blocks = list(self.output_blocks([texts] if isinstance(texts, str) else texts, progress, exit))
        if not blocks:
            return np.empty((0, self._n_columns)), np.empty(0, dtype=np.int64)
        outputs, depths = zip(*blocks, strict=True)
        return np.concatenate(outputs), np.concatenate(depths)

    @property
    def _n_columns(self) -> int:
        """How many columns the outputs have."""
        raise NotImplementedError

    def explain(self, text: str, n_neurons: int = 5) -> list[Contribution]:
        """The neurons that added most to the value, or the logit of the class that the head at depth_ predicts, largest first.

        Weight times standardised feature; for a perceptron, slope times it.
        """
        check_is_fitted(self, "heads_")
        (features,) = self._deployed.extractor.blocks([text], False)
        salient = self._deployed.salient_features(features.__getitem__, self.depth_)
        standardised = self.head_.standardizer(salient)[0]
        outputs = self.head_.output(salient)[0]
        winner, model = int(outputs.argmax()), self.head_.model
        # Two classes share one output, which speaks for the second.
        has_one = len(model.biases[-1] if isinstance(model, Perceptron) else model.coef_) == 1
        output, sign = (0, -1 if len(outputs) == 2 and not winner else 1) if has_one else (winner, 1)
        weights = model.slopes(standardised, output) if isinstance(model, Perceptron) else model.coef_[output]
        added = sign * weights * standardised
        places = self.head_.places
        return [
            Contribution(places[i][0].layer, places[i][1], float(added[i]), places[i][0].site, places[i][0].pooling)
            for i in np.argsort(-added, kind="stable")[:n_neurons]
        ]

    def output_names(self) -> list[str]:
        """What each output of the head stands for."""
        raise NotImplementedError

    def neuron_weights(self) -> list[dict[str, Any]]:
        """Every salient neuron with its weight for each output (`output_names`), on the standardised feature.

        InputError for a perceptron, whose neurons have no single weight.
        """
        model = self.head_.model
        if isinstance(model, Perceptron):
            raise InputError("the head is a perceptron (head='weighted'): its neurons have no single weight; see explain")
        return [
            {"layer": feature.layer, "neuron": neuron, "site": feature.site, "pooling": feature.pooling, "weights": weights}
            for (feature, neuron), weights in zip(self.head_.places, model.coef_.T.tolist(), strict=True)
        ]

    # On disk.

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `spin_classifier.json` and `head.safetensors`; the base model is named, not copied."""
        check_is_fitted(self, "heads_")
        checkpoint = self._deployed.checkpoint
        location = checkpoint.location
        description = {
            "spin_native": __version__,
            "task": self.task,
            "base_model": {
                "name": location.name if location.folder is None else str(location.folder.resolve()),
                "revision": checkpoint.revision,
                "depth": self.depth_,
                "fingerprint": checkpoint.fingerprint(self.depth_),
                "tokenizer_fingerprint": self._deployed.extractor.tokenizer.fingerprint,
            },
            "labels": self._labels(),
            "heads": {str(depth): describe_head(head) for depth, head in self.heads_.items()},
            "exit": str(self.exit_),
            "promise": self.promise_ and {**vars(self.promise_), "exit": str(self.promise_.exit)},
            "settings": {name: value for name, value in self.get_params().items() if name not in PLACE},
            "scores": {
                "metric": self.metric_,
                "baseline": self.baseline_ and self.baseline_._asdict(),
                "depth_curve": [row._asdict() for row in self.depth_curve_],
                "layer_curve": [row._asdict() for row in self.layer_curve_],
                "controls": self.controls_ and self.controls_._asdict(),
                "unconverged": self.unconverged_,
            },
        }
        tensors = {f"{depth}.{name}": t for depth, head in self.heads_.items() for name, t in head_tensors(head).items()}
        write_classifier(Path(folder), description, tensors)

    def _labels(self) -> list[Any]:
        """What the outputs stand for, as JSON has it."""
        return []

    def _set_labels(self, labels: list[Any]) -> None:
        """The other way round."""

    @classmethod
    def from_pretrained(
        cls: type[Fitted],
        name: str | Path,
        *,
        revision: str | None = None,
        base_model: str | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        allow_pickle: bool = False,
    ) -> Fitted:
        """Load what was saved from a folder or a Hub repository, and the layers of the base model that it runs.

        base_model: where the base model is now, if not where it was. dtype: how to run it, if not as it was fitted.
        Raises InputError if its weights or its tokenizer are not, to the bit, those it was fitted on, or the task is another.
        """
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        description, tensors = read_classifier(Location(str(name), revision))
        if description.get("task") != cls.task:
            raise InputError(f"{name}: its task is {description.get('task')!r}; {cls.__name__} does {cls.task}")
        try:
            base, heads, scores = description["base_model"], description["heads"], description["scores"]
            given = {"final_rows": "training"} | description["settings"]  # it was so before one could choose
            settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
            settings |= {"model": base_model or base["name"]}
            settings |= {"revision": None if base_model else base["revision"]}
            settings |= {} if dtype is None else {"dtype": dtype}
            clf = cls(**settings, device=device, allow_pickle=allow_pickle)
            clf._set_labels(description["labels"])
            clf.depth_ = base["depth"]
            clf.heads_ = {
                int(depth): read_head(head, tensors, f"{depth}.", clf._n_columns if cls.task == "classification" else 0)
                for depth, head in heads.items()
            }
            if max(clf.heads_) != clf.depth_:
                raise ValueError(f"its deepest head is at {max(clf.heads_)}, its depth is {clf.depth_}")
            clf.exit_ = Exit.parse(description["exit"])
            promise = description["promise"]
            clf.promise_ = promise and Promise(**{**promise, "exit": Exit.parse(promise["exit"])})
            clf.depth_curve_, clf.layer_curve_ = (
                [CurveRow(**row) for row in scores[curve]] for curve in ("depth_curve", "layer_curve")
            )
            clf.baseline_ = scores["baseline"] and CurveRow(**scores["baseline"])
            clf.controls_ = scores["controls"] and Controls(**scores["controls"])
            clf.unconverged_ = scores["unconverged"]
            expected = base["fingerprint"], base["tokenizer_fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{name}: not a classifier that spin_native saved ({error!r}); save it again") from error
        checkpoint = Checkpoint(Location(clf.model, clf.revision), allow_pickle)
        clf._deployed = Deployed(checkpoint, clf.heads_, DTYPES[clf.dtype], device)
        found = checkpoint.fingerprint(clf.depth_), clf._deployed.extractor.tokenizer.fingerprint
        for what, was, now in zip(("weights", "tokenizer"), expected, found, strict=True):
            if was != now:
                raise InputError(
                    f"{name}: the {what} of base model {clf.model!r} changed since the classifier was fitted (sha256 "
                    f"{now[:12]}..., expected {was[:12]}...); bring back the old files, name them with base_model, or fit again"
                )
        return clf

    def push_to_hub(self, repo: str, *, private: bool = False) -> str:
        """Save to a repository on the HuggingFace Hub (made if need be); its address."""
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api = huggingface_hub.HfApi()
            try:
                api.create_repo(repo, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo, folder_path=folder, commit_message="SPIN classifier")
            except (OSError, ValueError) as error:  # HTTP errors are OSErrors there, bad names ValueErrors
                raise InputError(f"{repo!r}: could not be uploaded ({error})") from error
        return f"{api.endpoint}/{repo}"


class SpinClassifier(ClassifierMixin, _Spin):
    __doc__ = f"Classify texts, two classes or more. {_Spin.__doc__}\n    classes_: the labels, in the order of probabilities."

    task = "classification"

    def _rows(
        self, training: TextsAndLabels, validation: TextsAndLabels | None, test: TextsAndLabels | None
    ) -> dict[str, LabelledRows]:
        parts, classes = labelled_rows(training, validation, test, self.validation_share, self.seed)
        self._set_labels(classes)
        return parts

    def _labels(self) -> list[Any]:
        return self.classes_.tolist()

    def _set_labels(self, labels: list[Any]) -> None:
        self.classes_ = np.array(labels)

    @property
    def _n_columns(self) -> int:
        return len(self.classes_)

    def output_names(self) -> list[str]:
        """What each output of the head stands for: the second class of two, or every class."""
        return [str(label) for label in (self.classes_[1:] if len(self.classes_) == 2 else self.classes_)]

    def predict_proba(
        self, texts: str | Iterable[str], progress: bool | None = False, *, exit: str | Exit | None = None
    ) -> Float[Array, "*row class"]:
        """Probability of each class, in the order of classes_; one row per text, or a single row for a single str.

        exit: when a row stops (see output_blocks).
        """
        probabilities, _ = self._outputs(texts, progress, exit)
        return probabilities[0] if isinstance(texts, str) else probabilities

    def predict(self, texts: str | Iterable[str], *, exit: str | Exit | None = None, return_depth: bool = False) -> Any:
        """The most probable class of each text; a single label for a single str. return_depth: with the depth it left at."""
        probabilities, depths = self._outputs(texts, False, exit)
        labels = self.classes_[probabilities.argmax(1)]
        if isinstance(texts, str):
            labels, depths = labels[0], depths[0]
        return (labels, depths) if return_depth else labels

    def score(
        self, texts: Iterable[str], labels: Iterable[Any], sample_weight: None = None, *, exit: str | Exit | None = None
    ) -> float:
        """The chosen metric on other rows; InputError for a label that was not there in fit."""
        if sample_weight is not None:
            raise InputError("score takes no sample_weight")
        texts, truth = self._encoded(texts, labels, "rows to score")
        return float(METRICS[self.task][self.metric_](truth, self.predict_proba(texts, exit=exit).argmax(-1)))

    def calibrate(
        self,
        texts: Iterable[str],
        labels: Iterable[Any],
        *,
        max_accuracy_drop: float = 0.01,
        confidence: float = 0.95,
        by: ExitBy = "confidence",
    ) -> "SpinClassifier":
        """Let rows leave as early as the promise allows: sets exit_ and promise_, which are saved.

        texts, labels: rows that neither fit nor its validation saw. The promise: with `confidence`, rows like these lose at
        most `max_accuracy_drop` of accuracy against the deepest head. Needs a classifier that was fitted with `exits`.
        """
        check_is_fitted(self, "heads_")
        if len(self.heads_) < 2:
            raise InputError("calibrate: there is one head only; fit with exits='all', or with a list of depths")
        texts, truth = self._encoded(texts, labels, "rows to calibrate on")
        if not texts:
            raise InputError("calibrate: no rows; expected labelled rows that fit did not see")
        self.promise_ = calibrate(self._deployed.all_outputs(texts), truth, by, max_accuracy_drop, confidence)
        needed = rows_needed(max_accuracy_drop, confidence)
        if len(texts) < needed:
            warnings.warn(
                f"{len(texts)} rows are too few to promise a fall of at most {max_accuracy_drop:g} with confidence "
                f"{confidence:g}: every row runs to depth {self.depth_}; calibrate on {needed} rows or more",
                stacklevel=2,
            )
        self.exit_ = self.promise_.exit
        return self

    def _encoded(self, texts: Iterable[str], labels: Iterable[Any], what: str) -> tuple[list[str], Int[Array, "row"]]:
        texts = list(texts)
        return texts, encoded(checked_labels(labels, len(texts), what), self.classes_.tolist(), what)


class SpinRegressor(RegressorMixin, _Spin):
    __doc__ = f"Estimate a value for each text. {_Spin.__doc__}"

    task = "regression"

    def _rows(
        self, training: TextsAndLabels, validation: TextsAndLabels | None, test: TextsAndLabels | None
    ) -> dict[str, LabelledRows]:
        return valued_rows(training, validation, test, self.validation_share, self.seed)

    @property
    def _n_columns(self) -> int:
        return 1

    def output_names(self) -> list[str]:
        return ["value"]

    def predict(self, texts: str | Iterable[str], *, exit: str | Exit | None = None) -> Any:
        """The value of each text; a single float for a single str."""
        values = self._outputs(texts, False, exit)[0][:, 0]
        return float(values[0]) if isinstance(texts, str) else values

    def score(
        self, texts: Iterable[str], labels: Iterable[Any], sample_weight: None = None, *, exit: str | Exit | None = None
    ) -> float:
        """The chosen metric on other rows."""
        if sample_weight is not None:
            raise InputError("score takes no sample_weight")
        texts = list(texts)
        truth = checked_values(labels, len(texts), "rows to score")
        return float(METRICS[self.task][self.metric_](truth, self.predict(texts, exit=exit)))


def load_pretrained(name: str | Path, *, revision: str | None = None, **where: Any) -> SpinClassifier | SpinRegressor:
    """What was saved, a SpinClassifier or a SpinRegressor; arguments as of from_pretrained."""
    task = read_classifier(Location(str(name), revision))[0].get("task")
    return (SpinRegressor if task == "regression" else SpinClassifier).from_pretrained(name, revision=revision, **where)
