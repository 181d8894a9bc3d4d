"""SpinClassifier: texts and labels in; a classifier out that runs the base model only as deep as it needs."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Literal, NamedTuple, get_args

import huggingface_hub
import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from spin_native.checkpoints import Checkpoint, Dtype, Location, load_tokenizer
from spin_native.errors import InputError
from spin_native.exits import shallowest_within
from spin_native.extract import Extractor, Site, check_choices
from spin_native.integration import (
    METRICS,
    CurveRow,
    Metric,
    Part,
    Scaling,
    Settings,
    baseline,
    sweep,
)
from spin_native.labels import checked_labels, encoded
from spin_native.models import ModelConfig, checked_depth
from spin_native.pooling import Pooling
from spin_native.rows import LabelledRows, TextsAndLabels, labelled_rows
from spin_native.saved import describe_head, head_tensors, read_classifier, read_head, write_classifier
from spin_native.store import Feature
from spin_native.text import Tokenizer
from spin_native.version import __version__

Array = np.ndarray
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
    """What one neuron added to the predicted class's logit."""

    layer: int
    neuron: int
    contribution: float


class SpinClassifier(ClassifierMixin, BaseEstimator):
    """Classify texts from the salient neurons of a language model's first layers (SPIN, arXiv 2311.15983).

    model, revision: the base model, a folder or a Hub name. dtype, device: how to run it.
    depth: how many layers the classifier may run; None for all, "best" to let the validation rows choose among all.
    tolerance: with "best", take the shallowest depth whose validation score is at most this much below the best.
    site, poolings: what is read of every layer; validation chooses one of the poolings.
    etas: shares of the importance to keep, validation chooses. Cs: of the layers' L1 probes; None: 3, 10, 30 and 100 times the
        smallest C at which a probe has any weight. head_Cs: of the heads' L2 refit; None: 1, 3, 10 and 30 over the
        number of neurons, so that the prior variance of a logit does not depend on it.
    scaling: "standard" gives every neuron mean 0 and variance 1 over the training rows before any probe sees it.
    metric: what validation compares: "accuracy" or "macro_f1".
    validation_share: of the training rows, split off by class where no validation rows are given.
    baseline: also fit what people do today, a logistic regression on the pooled final hidden state.
    seed: of every random choice.

    After fit: classes_, depth_, salient_neurons_ {layer: sorted indices}, head_, depth_curve_ (a CurveRow per depth),
    baseline_ (a CurveRow or None), seconds_ per phase.
    """

    def __init__(
        self,
        model: str = "roberta-base",
        *,
        revision: str | None = None,
        depth: int | Literal["best"] | None = "best",
        tolerance: float = 0.0,
        site: Site = "activation",
        poolings: Sequence[Pooling] = ("mean", "max"),
        etas: Sequence[float] = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0),
        Cs: Sequence[float] | None = None,
        head_Cs: Sequence[float] | None = None,
        scaling: Scaling = "standard",
        metric: Metric = "accuracy",
        validation_share: float = 0.2,
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
        self.site = site
        self.poolings = poolings
        self.etas = etas
        self.Cs = Cs
        self.head_Cs = head_Cs
        self.scaling = scaling
        self.metric = metric
        self.validation_share = validation_share
        self.baseline = baseline
        self.dtype = dtype
        self.device = device
        self.allow_pickle = allow_pickle
        self.seed = seed

    def fit(
        self,
        texts: Iterable[str],
        labels: Iterable[Any],
        *,
        validation: TextsAndLabels | None = None,
        test: TextsAndLabels | None = None,
        store: str | Path | None = None,
        progress: bool | None = None,
    ) -> "SpinClassifier":
        """Extract the features of all texts, probe every layer, refit a head for every depth, and choose a depth.

        texts, labels: one text (str) and one label (all str, or all int) per row; lists, arrays, Series.
        validation, test: (texts, labels) of other rows. Validation chooses everything; test is scored once per depth.
        store: a folder that keeps the features on disk: a fit that was interrupted goes on where it was.
        progress: bars on stderr (None: if that is a terminal).

        Raises InputError for unusable settings, texts, labels or checkpoints.
        """
        settings = self._settings()
        parts, classes = labelled_rows((texts, labels), validation, test, self.validation_share, self.seed)
        checkpoint = Checkpoint(Location(self.model, self.revision), self.allow_pickle)
        n_layers = checkpoint.config.n_layers
        max_depth = n_layers if self.depth == "best" else checked_depth(self.depth, n_layers)

        started = perf_counter()
        features = self._extract(checkpoint, max_depth, parts, store, progress)
        train, held_out = features[:2]
        tested = features[2] if test is not None else None
        extracted = perf_counter()
        heads, curve = sweep(train, held_out, tested, max_depth, settings, progress)
        self.classes_ = np.array(classes)
        self.depth_curve_ = list(curve.values())
        self.baseline_ = baseline(train, held_out, tested, n_layers, settings) if self.baseline else None
        scores = {depth: row.validation for depth, row in curve.items()}
        self.depth_ = shallowest_within(scores, self.tolerance) if self.depth == "best" else max_depth
        self.head_ = heads[self.depth_]
        self.seconds_ = {"extract": extracted - started, "fit": perf_counter() - extracted}
        self._deploy(checkpoint)
        return self

    def _settings(self) -> Settings:
        """The sweep's settings, checked."""
        for name, given, choices in (
            ("metric", self.metric, tuple(METRICS)),
            ("scaling", self.scaling, get_args(Scaling)),
            ("dtype", self.dtype, tuple(DTYPES)),
            ("site", self.site, get_args(Site)),
        ):
            if given not in choices:
                raise InputError(f"{name} is {given!r}; expected one of {', '.join(choices)}")
        check_choices(self.poolings, get_args(Pooling))
        for name, grid in (("etas", self.etas), ("Cs", self.Cs), ("head_Cs", self.head_Cs)):
            if grid is not None and (not len(grid) or not all(0 < value < np.inf for value in grid)):
                raise InputError(f"{name} is {grid!r}; expected positive numbers")
        if max(self.etas) > 1:
            raise InputError(f"etas is {self.etas!r}; expected shares of at most 1")
        shallowest_within({1: 0.0}, self.tolerance)  # refuses what is no tolerance before the work, not after
        Cs, head_Cs = (None if grid is None else tuple(grid) for grid in (self.Cs, self.head_Cs))
        return Settings(self.site, tuple(self.poolings), tuple(self.etas), Cs, head_Cs, self.scaling, self.metric, self.seed)

    def _extract(
        self,
        checkpoint: Checkpoint,
        max_depth: int,
        parts: dict[str, LabelledRows],
        store: str | Path | None,
        progress: bool | None,
    ) -> list[Part]:
        """The pooled features of every part: the site at every layer, and the final hidden state for the baseline."""
        n_layers = checkpoint.config.n_layers
        wanted = {Feature(self.site, pooling, layer): None for layer in range(max_depth) for pooling in self.poolings}
        if self.baseline:
            wanted |= {Feature("hidden", pooling, n_layers): None for pooling in self.poolings}
        model = checkpoint.load(n_layers if self.baseline else max_depth, DTYPES[self.dtype], self.device)
        extractor = Extractor(model, self._tokenizer(checkpoint), wanted)
        return [
            Part(extractor.run(rows.texts, store and Path(store) / name, progress), rows.labels) for name, rows in parts.items()
        ]

    # Deployed: the first depth_ layers, the salient neurons, the head.

    @property
    def model_config_(self) -> ModelConfig:
        """Sizes of the base model."""
        check_is_fitted(self)
        return self._extractor.model.config

    @property
    def n_truncated_(self) -> int:
        """How many of the texts labelled so far were longer than the base model holds, and were cut."""
        check_is_fitted(self)
        return self._extractor.n_truncated

    @property
    def salient_neurons_(self) -> dict[int, Int[Array, "_"]]:
        """Layer -> sorted indices of the neurons the head reads."""
        check_is_fitted(self)
        return self.head_.neurons

    def predict_proba(self, texts: str | Iterable[str], progress: bool | None = False) -> Float[Array, "*row class"]:
        """Probability of each class, in the order of classes_; one row per text, or a single row for a single str."""
        blocks = list(self.predict_proba_blocks([texts] if isinstance(texts, str) else texts, progress))
        probabilities = np.concatenate(blocks) if blocks else np.empty((0, len(self.classes_)))
        return probabilities[0] if isinstance(texts, str) else probabilities

    def predict_proba_blocks(self, texts: Iterable[str], progress: bool | None = None) -> Iterator[Float[Array, "row class"]]:
        """predict_proba of a stream of texts of any length, some thousands of rows at a time."""
        for features in self._salient_features(texts, progress):
            yield self.head_.predict_proba(features)

    def predict(self, texts: str | Iterable[str]) -> Any:
        """The most probable class of each text; a single label for a single str."""
        probabilities = self.predict_proba(texts)
        return self.classes_[probabilities.argmax(-1)]

    def score(self, texts: Iterable[str], labels: Iterable[Any], sample_weight: None = None) -> float:
        """The chosen metric on other rows; InputError for a label that was not there in fit."""
        if sample_weight is not None:
            raise InputError("score takes no sample_weight")
        texts = list(texts)
        expected = checked_labels(labels, len(texts), "rows to score")
        truth = encoded(expected, self.classes_.tolist(), "rows to score")
        return float(METRICS[self.metric](truth, self.predict_proba(texts).argmax(-1)))

    def explain(self, text: str, n_neurons: int = 5) -> list[Contribution]:
        """The neurons that added most to the predicted class's logit, largest first: weight times standardised feature."""
        (features,) = self._salient_features([text], False)
        standardised = self.head_.standardizer(features)[0]
        winner = int(self.head_.predict_proba(features)[0].argmax())
        weights = self.head_.probe.coef_
        added = standardised * (weights[winner] if len(weights) > 1 else weights[0] * (1 if winner else -1))
        places = self.head_.places
        return [
            Contribution(places[i][0], places[i][1], float(added[i])) for i in np.argsort(-added, kind="stable")[:n_neurons]
        ]

    def output_names(self) -> list[str]:
        """What each output of the head stands for: the second class of two, or every class."""
        return [str(label) for label in (self.classes_[1:] if len(self.classes_) == 2 else self.classes_)]

    def neuron_weights(self) -> list[dict[str, Any]]:
        """Every salient neuron with its weight for each output (`output_names`), on the standardised feature."""
        check_is_fitted(self)
        weights = self.head_.probe.coef_.T.tolist()
        return [{"layer": layer, "neuron": n, "weights": w} for (layer, n), w in zip(self.head_.places, weights, strict=True)]

    def _salient_features(self, texts: Iterable[str], progress: bool | None) -> Iterator[Float[Array, "row salient"]]:
        check_is_fitted(self)
        for block in self._extractor.blocks(texts, progress):
            yield np.concatenate(list(block.values()), axis=1)

    def _deploy(self, checkpoint: Checkpoint) -> None:
        """Hold the layers that depth_ needs, of the last one the salient neurons, and nothing else of the base model."""
        self._checkpoint = checkpoint
        wanted: dict[Feature, Int[Array, "_"] | None] = {
            Feature(self.site, self.head_.pooling, layer): neurons for layer, neurons in self.head_.neurons.items()
        }
        last = Feature(self.site, self.head_.pooling, self.depth_ - 1)
        last_neurons = wanted.get(last) if self.site == "activation" and self.depth_ < checkpoint.config.n_layers else None
        if last_neurons is not None and len(last_neurons):
            wanted[last] = None  # all that is left of it
        else:
            last_neurons = None
        model = checkpoint.load(self.depth_, DTYPES[self.dtype], self.device, last_neurons=last_neurons)
        self._extractor = Extractor(model, self._tokenizer(checkpoint), wanted)

    @staticmethod
    def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
        return load_tokenizer(checkpoint.name, revision=checkpoint.revision)

    # On disk.

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `spin_classifier.json` and `head.safetensors`; the base model is named, not copied."""
        check_is_fitted(self)
        location = self._checkpoint.location
        description = {
            "spin_native": __version__,
            "task": "classification",
            "base_model": {
                "name": location.name if location.folder is None else str(location.folder.resolve()),
                "revision": self._checkpoint.revision,
                "depth": self.depth_,
                "fingerprint": self._checkpoint.fingerprint(self.depth_),
                "tokenizer_fingerprint": self._extractor.tokenizer.fingerprint,
            },
            "labels": self.classes_.tolist(),
            "head": describe_head(self.head_),
            "settings": {name: value for name, value in self.get_params().items() if name not in PLACE},
            "scores": {
                "metric": self.metric,
                "baseline": self.baseline_ and self.baseline_._asdict(),
                "depth_curve": [row._asdict() for row in self.depth_curve_],
            },
        }
        write_classifier(Path(folder), description, head_tensors(self.head_))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        base_model: str | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        allow_pickle: bool = False,
    ) -> "SpinClassifier":
        """Load a saved classifier from a folder or a Hub repository, and the layers of the base model that it runs.

        base_model: where the base model is now, if not where it was. dtype: how to run it, if not as it was fitted.
        Raises InputError if its weights or its tokenizer are not, to the bit, those the classifier was fitted on.
        """
        if dtype is not None and dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        where = Location(str(name), revision)
        description, tensors = read_classifier(where)
        try:
            base, head, scores = description["base_model"], description["head"], description["scores"]
            given = description["settings"].items()
            settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given}
            settings |= {"model": base_model or base["name"]}
            settings |= {"revision": None if base_model else base["revision"]}
            settings |= {} if dtype is None else {"dtype": dtype}
            clf = cls(**settings, device=device, allow_pickle=allow_pickle)
            clf.classes_ = np.array(description["labels"])
            clf.depth_ = base["depth"]
            clf.head_ = read_head(head, tensors, len(clf.classes_))
            clf.depth_curve_ = [CurveRow(**row) for row in scores["depth_curve"]]
            clf.baseline_ = scores["baseline"] and CurveRow(**scores["baseline"])
            expected = base["fingerprint"], base["tokenizer_fingerprint"]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{name}: not a classifier that spin_native saved ({error!r}); save it again") from error
        checkpoint = Checkpoint(Location(clf.model, clf.revision), allow_pickle)
        clf._deploy(checkpoint)
        found = checkpoint.fingerprint(clf.depth_), clf._extractor.tokenizer.fingerprint
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
