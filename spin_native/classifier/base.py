"""What SpinClassifier and SpinRegressor share: their parameters, and one short method for each thing they do."""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, TypeVar

import huggingface_hub
import numpy as np
from jaxtyping import Float, Int, UInt64
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted

from spin_native.checkpoints import Checkpoint, Location
from spin_native.classifier import explain, options, saved
from spin_native.classifier.ablating import Ablating
from spin_native.classifier.baselines import Baseline
from spin_native.classifier.curve_rows import CurveRow
from spin_native.classifier.dense_training import DenseTraining
from spin_native.classifier.deployed import Deployed
from spin_native.classifier.examples import Keeps
from spin_native.classifier.exits import Exit
from spin_native.classifier.explanation import Explanation
from spin_native.classifier.heads import head_name
from spin_native.classifier.learnt import LEARNT, Place
from spin_native.classifier.options import DTYPES
from spin_native.classifier.published import PublishedTraining
from spin_native.classifier.rows import TextsAndLabels, digests, evaluation_rows, labelled_parts
from spin_native.classifier.settings import PUBLISHED, FinalRows, HeadName, Mixing, PhaseTwo, Scaling, Settings
from spin_native.classifier.shift import ShiftWatch
from spin_native.classifier.tasks import TASKS, Metric, Task, TaskName
from spin_native.classifier.training import Fitted
from spin_native.errors import InputError
from spin_native.features.extract import Site
from spin_native.features.pooling import Pooling
from spin_native.features.store import Features
from spin_native.given import is_whole, path_of
from spin_native.models import ModelConfig
from spin_native.text.documents import Windows
from spin_native.text.pairs import GivenText, is_one_row

Array = np.ndarray
Spin = TypeVar("Spin", bound="SpinEstimator")


class SpinEstimator(Ablating):
    """Read the hidden states and neurons of a language model's first layers, and classify with a linear model or a perceptron.

    model, revision: the base model, a folder or a Hub name. dtype, device: how to run it.
    depth: how many layers it may run; None for all, "best" to let the held-out rows choose among all.
    tolerance: with "best", take the shallowest depth whose held-out score is at most this much below the best; "one-se": one
        standard error of the best score. None: 0 for published heads; for dense ones "one-se", or, with fewer than 150 rows
        of the rarest class, all layers.
    head: "best", of few dense heads the one that held-out rows prefer at each depth; "dense", an L2 regression on everything
        that is read below a depth. Or a published head on salient neurons: "refit", a new regression on them (SPIN, arXiv
        2311.15983); "frozen", the layers' own probes, pruned, under a dense layer (Liu, phase 2); "weighted", a small
        perceptron over neurons weighted by their layers' validation scores (SIREN). Dense heads are chosen by
        cross-validation over all rows, published ones by validation rows that are split off; both by yours, if you give some.
        None: "best"; or "refit", where an option of the selection of neurons is given (mixing, ranker, etas, top_k, top_share,
        Cs, validation_share).
    sites, poolings: what is read of every layer. None: what the head's kind needs, mean hidden states and mean and max
        activations for dense heads, mean and max activations for published ones.
    mixing: for published heads, one (site, pooling) per head ("apart", as SPIN does), all of them in one head ("together",
        Sparsify-then-Classify), or what validation prefers of these ("best", None).
    phase_two: the rows that a frozen head learns from: those the probes have "seen", as many "unseen" ones (half the training
        rows are kept from the probes), or "both".
    ranker: what makes a neuron important: its probe's weights, "squared" (SPIN), "l2" (Liu) or "absolute" (SIREN); or, without
        a probe, "class_mean_difference", "f_statistic", "mutual_information", "predictivity" (skill neurons),
        "intersection_over_union", "average_precision" or "gaussian" (see probes/importance.py).
    etas: shares of the importance to keep, validation chooses (None: .2, .4, .6, .8, .9 and 1). top_k: numbers of neurons per
        layer, or top_share: shares of each layer, instead.
    Cs: of the layers' L1 probes; None: 3, 10, 30 and 100 times the smallest C at which a probe has any weight. head_Cs: of the
        L2 regressions; None: for dense heads 1, 3 and 10, as prior variances of a score (see docs/methods.md), for refit heads
        .3, 1, 3 and 10 over the number of neurons, for frozen ones .1 to 300 over the number of the probes' outputs.
    scaling: "standard" gives every neuron mean 0 and variance 1 over the training rows before any probe sees it.
    final_rows: the rows of the last fit of dense, refit and frozen heads and of the baselines, where there are validation
        rows: "training" rows only, as published, or "all", training and validation rows (whose scores then say nothing any
        more). None: "all" where the validation rows were split off the training rows (and phase_two is "seen"), "training"
        where they were given. C stays; the probes stay, too.
    metric: what validation compares: "accuracy" or "macro_f1"; for a regression "pearson", "spearman", "mse" or "mae". None:
        the first of them.
    class_weight: how many times a row of each class counts in every fit: "balanced" (rows / (classes * rows of the class), so
        that rare classes count as much as frequent ones), {label: weight} (1 where a label is not named), or None: all rows
        count once. For classes only. Scores count every row once; so do scaling, and rankers that need no probe.
    validation_share: of the training rows, split off (by class, equal texts on one side) where no validation rows are given.
    sample: choose on at most so many training (and validation) rows, and extract of all rows only what the chosen heads read.
        Published heads: probes and selection are fitted on the sample. Dense heads: their curves and baselines are the
        sample's, the heads are fitted on all rows. None: all rows choose (at most 10,000 of more than 16,384, for dense heads).
    exits: depths below depth_ that keep a head of their own, so that easy texts can stop early: "all", a sequence, or None.
    baseline: also fit what a head must beat: see baselines_.
    windows: (size, stride), to read texts to their end that are longer than the model holds, as `extract` does, in fit and in
        everything that reads texts later; None: such texts are cut, with a warning.
    examples: what to keep, in a saved classifier, too, of the training rows that excite the main neurons most and least (see
        explain): "rows", their numbers; "texts", also the first 300 characters of their texts; None, nothing.
    seed: of every random choice.

    After fit: depth_, salient_neurons_ {layer: sorted indices}, head_, heads_ {depth: head}, depth_curve_ (a CurveRow per
    depth), layer_curve_ (one per single layer), baselines_ ({name: Baseline}: majority, final_hidden, best_hidden, all_hidden,
    all_activations, with paired tests; None without `baseline`), baseline_ (the row of final_hidden), controls_ (of published
    heads; None with `sample`), suspicious_rows_ (training rows whose held-out predictions contradict their label at every
    depth, the least plausible label first; None without cross-validation), unconverged_ (models whose solver gave up), exit_
    (when a row exits), promise_ (the result of calibrate, or None), seconds_ {phase: seconds}, task_ (what the labels mean),
    pairs_ (whether each text is a pair), examples_ (training rows by neuron, or None), shift_reference_ (quantiles of neurons,
    with which the texts that are read later are compared).
    """

    task: ClassVar[TaskName]
    baselines_: dict[str, Baseline] | None

    def __init__(
        self,
        model: str | os.PathLike[str] = "roberta-base",
        *,
        revision: str | None = None,
        depth: int | Literal["best"] | None = "best",
        tolerance: float | Literal["one-se"] | None = None,
        sites: Sequence[Site] | None = None,
        poolings: Sequence[Pooling] | None = None,
        mixing: Mixing | None = None,
        head: HeadName | None = None,
        phase_two: PhaseTwo = "seen",
        ranker: str = "squared",
        etas: Sequence[float] | None = None,
        top_k: Sequence[int] | None = None,
        top_share: Sequence[float] | None = None,
        Cs: Sequence[float] | None = None,
        head_Cs: Sequence[float] | None = None,
        scaling: Scaling = "standard",
        final_rows: FinalRows | None = None,
        metric: Metric | None = None,
        class_weight: Literal["balanced"] | Mapping[Any, float | int] | None = None,
        validation_share: float = options.DEFAULT_SHARE,
        sample: int | None = None,
        exits: Sequence[int] | Literal["all"] | None = None,
        baseline: bool = True,
        windows: tuple[int, int] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        allow_pickle: bool = False,
        examples: Keeps | None = "rows",
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
        self.class_weight = class_weight
        self.validation_share = validation_share
        self.sample = sample
        self.exits = exits
        self.baseline = baseline
        self.windows = windows
        self.dtype = dtype
        self.device = device
        self.allow_pickle = allow_pickle
        self.examples = examples
        self.seed = seed

    @property
    def baseline_(self) -> CurveRow | None:
        """The row of the usual way, a regression on the final hidden state; None where no baselines were wanted."""
        check_is_fitted(self, "heads_")
        return None if self.baselines_ is None else self.baselines_["final_hidden"].row

    @property
    def metric_(self) -> Metric:
        """The metric that is compared."""
        return options.metric_of(self.get_params(), TASKS[self.task])

    def fit(
        self: Spin,
        texts: Iterable[GivenText],
        labels: Iterable[Any],
        sample_weight: Iterable[Any] | None = None,
        *,
        validation: TextsAndLabels | None = None,
        test: TextsAndLabels | None = None,
        store: str | Path | None = None,
        features: Features | None = None,
        progress: bool | None = None,
    ) -> Spin:
        """Extract the features of all texts, probe every layer, integrate a head for every depth, and choose a depth.

        texts, labels: one text (str) and one label (all str, or all int; for a regression numbers) per row, in lists, arrays
            or Series. Instead of texts all rows may be pairs of texts, tuples or lists of two str, such as a premise and a
            hypothesis (see Tokenizer for how they are read); the estimator then reads pairs only.
        sample_weight: how many times each row counts in every fit, a positive number per row; None: once. Weights of classes
            are multiplied with it. Rows split off for validation keep theirs for the last fit; scores count every row once.
        validation, test: (texts, labels) of other rows. Validation chooses everything, and the last fit learns from it if
            final_rows is "all"; test is scored once per depth.
        store: a folder that keeps the features on disk; a fit with the same store resumes after an interruption.
        features: what `extract` gave for all these texts and more, in any order, in place of running the model: every layer,
            site and pooling that is read, and for the baselines all mean hidden states and mean activations.
        progress: bars on stderr (None: if that is a terminal).

        Raises InputError for unusable settings, texts, labels or checkpoints. LeakWarning if a text is in two of the parts.
        After an error or an interruption, an earlier fit is still there.
        """
        given = self.get_params()
        options.check(given, TASKS[self.task], has_validation=validation is not None)
        store = None if store is None else path_of(store, "store")
        if features is not None and (store is not None or not isinstance(features, Features)):
            got = f"a {type(features).__name__}" if store is None else "store, too, which has nothing to keep then"
            raise InputError(f"fit: features is what extract returns, or an ActivationStore; got {got}")
        checkpoint = Checkpoint(Location(options.name_of(self.model, "model"), self.revision), self.allow_pickle)
        max_depth, exits = options.check_model(given, checkpoint.config)
        windows = Windows.checked(self.windows, checkpoint.tokenizer)
        seed = int(self.seed)
        is_published = head_name(given) in PUBLISHED
        share = self.validation_share if is_published else None
        task, parts = labelled_parts(TASKS[self.task], (texts, labels), validation, test, share, seed, sample_weight)
        if self.final_rows is None and validation is None and self.phase_two == "seen":
            given["final_rows"] = "all"
        training = (PublishedTraining if is_published else DenseTraining)(
            checkpoint=checkpoint,
            dtype=DTYPES[self.dtype],
            device=self.device,
            settings=options.settings_of(given, task),
            max_depth=max_depth,
            chooses_depth=options.is_best(self.depth),
            tolerance=options.tolerance_of(given),
            exits=exits,
            sample=self.sample,
            phase_two=self.phase_two,
            with_baseline=self.baseline,
            progress=progress,
            features=features,
            windows=windows,
            examples=self.examples,
        )
        fitted = training.run(parts, store)
        if fitted.unconverged:
            warnings.warn(
                f"{len(fitted.unconverged)} linear models did not converge: {', '.join(fitted.unconverged[:3])}"
                + (", ..." if len(fitted.unconverged) > 3 else ""),
                ConvergenceWarning,
                stacklevel=2,
            )
        fitted = replace(fitted, pairs=parts["training"].are_pairs)
        self._take(fitted, checkpoint, digests(text for name, rows in parts.items() if name != "test" for text in rows.texts))
        return self

    def _settings(self, task: Task) -> Settings:
        """What a fit tries, checked."""
        options.check(self.get_params(), type(task))
        return options.settings_of(self.get_params(), task)

    def _take(self, fitted: Fitted, checkpoint: Checkpoint, seen: UInt64[Array, "_"] | None = None) -> None:
        """Load the layers that the heads need, and set every attribute of a fit at once.

        seen: digests of the texts that fit saw (None: not known).
        """
        windows, dtype = Windows.of(self.windows), DTYPES[self.dtype]
        deployed = Deployed(checkpoint, fitted.heads, dtype, self.device, windows, fitted.pairs)
        promise = fitted.promise and fitted.promise.in_dtype(deployed.dtype)
        learnt = {name: getattr(fitted, name[:-1]) for name in LEARNT if name not in ("task_", "heads_")}
        place = Place.of(checkpoint, self.dtype, self.device, windows)
        learnt |= {"_heads": deployed.heads, "promise_": promise, "_fitted_with": self.get_params()}
        self.__dict__.update(learnt, _deployed=deployed, _place=place, _seen=seen, _content=None)

    # The first depth_ layers, the salient neurons, the heads.

    @property
    def model_config_(self) -> ModelConfig:
        """Sizes of the base model."""
        check_is_fitted(self, "heads_")
        return self._deployed.extractor.model.config

    @property
    def salient_neurons_(self) -> dict[int, Int[Array, "_"]]:
        """Layer -> sorted neurons that the head reads, under any pooling (FFN neurons, where it reads both sites)."""
        return explain.salient_neurons(self.head_)

    def output_blocks(
        self,
        texts: Iterable[GivenText],
        progress: bool | None = None,
        exit: str | Exit | None = None,
        watch: ShiftWatch | None = None,
    ) -> Iterator[tuple[Float[Array, "row _"], Int[Array, "row"]]]:
        """Probabilities [row, class] (or values [row, 1]) of a stream of texts, and the depth where each row exited, in blocks.

        exit: when a row exits, such as "fixed:4", "confidence:0.9" or "patience:2" (see Exit); None: exit_.
        watch: what `shift_watch` gave, to watch several streams as one; the caller then calls its `finish`. None: this stream
            alone. At the end, a ShiftWarning if 100 texts or more differ from those of the fit.
        """
        check_is_fitted(self, "heads_")
        given = Exit.of(self.exit_ if exit is None else exit)
        own = self.shift_watch() if watch is None else None
        yield from self._deployed.blocks(texts, given, progress, watch or own)
        if own is not None:
            own.finish()

    def _outputs(
        self, texts: str | Iterable[GivenText], progress: bool | None, exit: str | Exit | None
    ) -> tuple[Float[Array, "row _"], Int[Array, "row"]]:
        blocks = list(self.output_blocks([texts] if self._is_one_row(texts) else texts, progress, exit))  # type: ignore[list-item]
        if not blocks:
            return np.empty((0, self.task_.n_outputs)), np.empty(0, dtype=np.int64)
        outputs, depths = zip(*blocks, strict=True)
        return np.concatenate(outputs), np.concatenate(depths)

    def _is_one_row(self, texts: object) -> bool:
        """Whether predict got one row, not several: a str; or, fitted on pairs, a tuple of two str."""
        return is_one_row(texts, reads_pairs=self.__dict__.get("pairs_", False))

    def score(
        self, texts: Iterable[GivenText], labels: Iterable[Any], sample_weight: None = None, *, exit: str | Exit | None = None
    ) -> float:
        """The chosen metric on other rows, larger for better: errors (mse, mae) are negative, as scikit-learn's neg_* scorers.

        InputError for a label that was not there in fit.
        """
        if sample_weight is not None:
            raise InputError("score takes no sample_weight")
        check_is_fitted(self, "heads_")
        rows = evaluation_rows(self.task_, texts, labels, "rows to score")
        with rows.named_in_errors():
            outputs, _ = self._outputs(rows.texts, False, exit)
        return self.task_.worth(self.metric_, self.task_.score(self.metric_, rows.labels, self.task_.decide(outputs)))

    def explain(self, text: str | tuple[str, str], n_neurons: int = 5) -> Explanation:
        """What each word, each token and each neuron added to the answer of the head at depth_.

        The answer is the value, or the logit of the class that this head predicts. A neuron adds its weight times its
        standardised feature (for a perceptron, slope times it), and the tokens that made the feature share that: with mean
        pooling each token by its own activation, with max pooling the token that holds the maximum has all of it. With the
        head's intercept (`bias`) the tokens add up to the logit. n_neurons: how many neurons to list. See Explanation.
        Raises InputError for what is no text, and, when they are asked for, for the words of a perceptron.
        """
        check_is_fitted(self, "heads_")
        if not self._is_one_row(text) or isinstance(text, str) is self.pairs_:
            expected = "one pair of texts, a tuple of two str" if self.pairs_ else "one text (str)"
            raise InputError(f"explain: got a {type(text).__name__}; expected {expected}")
        if not is_whole(n_neurons) or n_neurons < 1:
            raise InputError(f"n_neurons is {n_neurons!r}; expected a whole number, 1 or more")
        return explain.explain(self._deployed, text, self.depth_, int(n_neurons), self.examples_)

    def output_names(self) -> list[str]:
        """What each weight of a neuron stands for: the second class of two, every class, or the value."""
        check_is_fitted(self, "heads_")
        return list(self.task_.output_names)

    def neuron_weights(self) -> list[dict[str, Any]]:
        """Every salient neuron with its weight for each output (`output_names`), on the standardised feature.

        InputError for a perceptron, whose neurons have no single weight.
        """
        return explain.neuron_weights(self.head_)

    # On disk.

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `spin_classifier.json` and `head.safetensors`; the base model is named, not copied.

        Saving over another classifier is atomic: a crash leaves the old one or the new one.
        """
        check_is_fitted(self, "heads_")
        saved.save_classifier(path_of(folder, "folder"), *self._learnt(), self._deployed.checkpoint)

    @classmethod
    def from_pretrained(
        cls: type[Spin],
        name: str | Path,
        *,
        revision: str | None = None,
        base_model: str | Path | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        allow_pickle: bool = False,
    ) -> Spin:
        """Load a saved classifier from a folder or a Hub repository, and the layers of the base model that it runs.

        base_model: where the base model is now, if it moved. dtype: how to run it, if not as it was fitted.
        Raises InputError if its weights or its tokenizer are not, to the bit, those it was fitted on, or the task is another.
        """
        read = saved.read_saved(Location(options.name_of(name, "classifier"), revision, "classifier"))
        return cls._restored(read, base_model=base_model, dtype=dtype, device=device, allow_pickle=allow_pickle)

    @classmethod
    def _restored(
        cls: type[Spin],
        read: saved.Saved,
        *,
        base_model: str | Path | None = None,
        dtype: str | None = None,
        device: str = "cpu",
        allow_pickle: bool = False,
    ) -> Spin:
        """The classifier that was read."""
        options.check_place(dtype, device, allow_pickle)
        if read.task != cls.task:
            raise InputError(f"{read.name}: its task is {read.task!r}; {cls.__name__} does {cls.task}")
        parameters = saved.parameters_of(read, base_model)
        with saved.refuse_edited(read):
            clf = cls(**parameters, device=device, allow_pickle=allow_pickle)
            clf.dtype = dtype or clf.dtype
            options.check(clf.get_params(), TASKS[cls.task])
        fitted = saved.restored(read)
        checkpoint = Checkpoint(Location(options.name_of(clf.model, "base_model"), clf.revision), allow_pickle)
        saved.check_base_model(read, checkpoint)
        clf._take(fitted, checkpoint)
        return clf

    def push_to_hub(self, repo: str, *, private: bool = False, base_model: str | None = None) -> str:
        """Save to a repository on the HuggingFace Hub (created if it is not there); returns its address.

        base_model: the Hub name under which readers find the base model; needed where it is a local folder here, whose path is
        not published. Loading refuses other weights than those of the fit.
        """
        check_is_fitted(self, "heads_")
        folder_here = self._deployed.checkpoint.location.folder
        if base_model is None and folder_here is not None:
            raise InputError(
                f"push_to_hub: the base model is the local folder {folder_here}, which readers of {repo} do not have; publish "
                "it, and name it: base_model='owner/name'"
            )
        if base_model is not None:
            options.check_hub_name(base_model, "base_model")
        with TemporaryDirectory() as folder:
            saved.save_classifier(Path(folder), *self._learnt(), self._deployed.checkpoint, base_model)
            api = huggingface_hub.HfApi()
            try:
                api.create_repo(repo, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo, folder_path=folder, commit_message="SPIN classifier")
            except (OSError, ValueError) as error:  # HTTP errors are OSErrors there, bad names ValueErrors
                raise InputError(f"{repo!r}: could not be uploaded ({error})") from error
        return f"{api.endpoint}/{repo}"

    def __sklearn_tags__(self) -> Any:
        """For scikit-learn: rows are texts, not vectors."""
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string = True, False, True
        return tags
