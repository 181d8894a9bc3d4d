"""What perturbing skill neurons costs: the score while they change, against the least predictive and random ones.

Wang et al. 2022, section 4.1. What is scored is the caller's choice: a soft prompt, a `FinalProbe`, or any function that takes
an `edit` of the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

import numpy as np
from jaxtyping import Float, Shaped
from scipy.stats import t as student
from tqdm.auto import tqdm

from spin_native.analyses.ablation import Ablation, How
from spin_native.analyses.labels import Labels, encoded_labels
from spin_native.analyses.results import Result
from spin_native.analyses.skills import SkillNeurons, Which, checked_pair
from spin_native.errors import InputError
from spin_native.features.extract import Extractor
from spin_native.features.pooling import POOLINGS, Pooling
from spin_native.features.spec import FeatureKey
from spin_native.given import checked_texts, is_number, is_whole
from spin_native.models import Transformer
from spin_native.models.transformer import Edit
from spin_native.probes.importance import Cut
from spin_native.probes.probes import LogisticProbe, checked_targets
from spin_native.probes.scaling import mean_and_scale
from spin_native.text.tokenizer import Tokenizer

Array = np.ndarray
C_TIMES = (0.1, 1.0, 10.0, 100.0)  # over the number of features: the strengths of the L2 penalty that validation chooses from
TOL = 1e-4  # of the probe's objective: far below what a score can see
RESAMPLE = "resample"


# Called as score(edit=...): the score under an edit of the model, or of the model as it is (None).
Score = Callable[..., float]


@dataclass(frozen=True, eq=False)
class Perturbation(Result):
    """The score while neurons are perturbed.

    Axes: how, layers (as "0-5"), share, which ("most" predictive, "least", "random"), seed. Array: score.
    clean: the score of the model as it is.
    """

    clean: float

    def intervals(self, level: float = 0.95) -> Result:
        """Means over the seeds, with Student's intervals of that level.

        Arrays: score, score_low, score_high; worse, worse_low, worse_high: how much lower the score is than with random
        neurons of the same seed. Raises InputError if there are fewer than two seeds.
        """
        n = len(self.axes["seed"])
        if n < 2 or not is_number(level) or not 0 < level < 1:
            raise InputError(
                f"level is {level!r}, and there are {n} seeds; expected a level between 0 and 1, and two seeds or more"
            )
        score = self["score"]
        worse = score[..., self.axes["which"].tolist().index("random"), None, :] - score
        arrays: dict[str, Array] = {}
        for name, values in (("score", score), ("worse", worse)):
            mean = values.mean(-1)
            half = student.ppf((1 + level) / 2, n - 1) * values.std(-1, ddof=1) / np.sqrt(n)
            arrays |= {name: mean, f"{name}_low": mean - half, f"{name}_high": mean + half}
        axes = {name: places for name, places in self.axes.items() if name != "seed"}
        return Result(axes, arrays, {**self.metadata, "level": level})


def perturbation_curve(
    score: Score,
    skill: SkillNeurons,
    *,
    hows: Sequence[How] = ("noise",),
    shares: Sequence[float] = (0.01, 0.05, 0.1),
    ranges: Sequence[Sequence[int] | None] = (None,),
    seeds: Sequence[int] = range(5),
    noise: float = 0.1,
    progress: bool | None = None,
) -> Perturbation:
    """Change the most predictive neurons, and as many least predictive and random ones (Wang et al. 2022, section 4.1).

    score: called as score(edit=...), for example `partial(prompt.score, model, tokenizer, texts, labels)` of a soft prompt, or
        `partial(probe.score, texts, labels)` of a FinalProbe.
    hows: "noise" adds Gaussian noise of standard deviation `noise`; "zero"; "mean" sets the baseline of `skill`.
    shares: of each layer's neurons. ranges: sets of layers that are perturbed together (None: all that were measured).
    seeds: of the random neurons and of the noise. What neither changes is scored once.

    Raises InputError for a way, a share or a layer that cannot be used.
    """
    allowed = [how for how in get_args(How) if how != RESAMPLE]
    for how in hows:
        if how not in allowed:
            raise InputError(f"hows: got {how!r}; expected one or more of {', '.join(allowed)}")
    if not (len(hows) and len(shares) and len(ranges) and len(seeds)):
        raise InputError(f"hows {hows!r}, shares {shares!r}, ranges {ranges!r}, seeds {seeds!r}: expected one or more of each")
    if not all(is_whole(seed) and seed >= 0 for seed in seeds):
        raise InputError(f"seeds is {seeds!r}; expected whole numbers from 0")
    for share in shares:
        Cut("top_share", share)  # refuses it before anything runs
    layer_sets = [skill.checked_layers(layers) for layers in ranges]
    clean = score(edit=None)
    whiches: tuple[Which, ...] = get_args(Which)
    scores = np.empty((len(hows), len(ranges), len(shares), len(whiches), len(seeds)))
    cases = list(product(*map(enumerate, (hows, layer_sets, shares, whiches))))
    for (at_how, how), (at_range, layers), (at_share, share), (at_which, which) in tqdm(
        cases, unit=" cases", disable=None if progress is None else not progress
    ):
        place = scores[at_how, at_range, at_share, at_which]
        for draw, seed in enumerate(seeds):
            if draw and which != "random" and how != "noise":
                place[draw] = place[0]
                continue
            chosen = skill.chosen(which, share, seed=seed, layers=layers)
            place[draw] = score(edit=Ablation(chosen, how, skill.baselines(chosen) if how == "mean" else {}, noise, seed))
    axes = {
        "how": np.array(hows),
        "layers": np.array([_named(layers) for layers in layer_sets]),
        "share": np.array(shares, np.float64),
        "which": np.array(whiches),
        "seed": np.array(seeds),
    }
    return Perturbation(axes, {"score": scores}, {**skill.metadata, "noise": noise, "clean": clean}, clean)


def _named(layers: Sequence[int]) -> str:
    """Layers as "0-5" or "0,3"."""
    is_run = len(layers) > 1 and list(layers) == list(range(layers[0], layers[-1] + 1))
    return f"{layers[0]}-{layers[-1]}" if is_run else ",".join(map(str, layers))


@dataclass(frozen=True)
class FinalProbe:
    """L2 logistic regression on the pooled final hidden state: a classifier that feels every edit of the model below it.

    mean, scale: of the training rows; the probe reads standardised features.
    """

    model: Transformer
    tokenizer: Tokenizer
    probe: LogisticProbe
    mean: Float[Array, "d_model"]
    scale: Float[Array, "d_model"]
    pooling: Pooling

    @classmethod
    def fit(
        cls,
        model: Transformer,
        tokenizer: Tokenizer,
        training: tuple[Sequence[str], Labels],
        validation: tuple[Sequence[str], Labels],
        *,
        pooling: Pooling = "mean",
    ) -> "FinalProbe":
        """Fit to (texts, labels) of the model as it is; `validation`, other (texts, labels), chooses the penalty.

        Raises InputError for texts and labels that cannot be used, and for a model without its last layer.
        """
        (texts, labels), (other_texts, other_labels) = training, checked_pair(validation)
        y = np.asarray(checked_targets(labels, "training rows"))
        encoded_labels(labels, np.unique(y).tolist(), len(checked_texts(texts, "training rows")), "training rows")
        features = final_hidden(model, tokenizer, texts, pooling)
        mean, scale = (values.astype(features.dtype) for values in mean_and_scale(features))
        Cs = [times / features.shape[1] for times in C_TIMES]
        probes = LogisticProbe(l1_ratio=0.0, tol=TOL).fit_path((features - mean) / scale, y, Cs)
        fitted = [cls(model, tokenizer, probe, mean, scale, pooling) for probe in probes]
        held_out = final_hidden(model, tokenizer, checked_texts(other_texts, "validation rows"), pooling)
        scores = [one._accuracy(held_out, other_labels, "validation rows") for one in fitted]
        return fitted[int(np.argmax(scores))]

    def predict(self, texts: Sequence[str], *, edit: Edit | None = None) -> Shaped[Array, "row"]:
        """The label of each text."""
        return self._labels(final_hidden(self.model, self.tokenizer, checked_texts(texts, "texts"), self.pooling, edit))

    def score(self, texts: Sequence[str], labels: Labels, *, edit: Edit | None = None) -> float:
        """Accuracy on labelled texts."""
        listed = checked_texts(texts, "texts")
        return self._accuracy(final_hidden(self.model, self.tokenizer, listed, self.pooling, edit), labels, "texts")

    def _labels(self, features: Float[Array, "row d_model"]) -> Shaped[Array, "row"]:
        return self.probe.predict((features - self.mean) / self.scale)

    def _accuracy(self, features: Float[Array, "row d_model"], labels: Labels, what: str) -> float:
        known = self.probe.classes_
        return float((self._labels(features) == known[encoded_labels(labels, known.tolist(), len(features), what)]).mean())


def final_hidden(
    model: Transformer, tokenizer: Tokenizer, texts: Sequence[str], pooling: Pooling, edit: Edit | None = None
) -> Float[Array, "row d_model"]:
    """The pooled final hidden state of texts, while `edit` changes neurons; InputError for a model without its last layer."""
    if not model.is_whole:
        raise InputError(f"the model was loaded with depth {model.depth}, so it has no final hidden state: load all its layers")
    if pooling not in POOLINGS:
        raise InputError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
    final = FeatureKey("hidden", pooling, model.depth)
    features = Extractor(model, tokenizer, {final: None}, edit=edit).run(texts, progress=False)
    return features[final].astype(np.float64)
