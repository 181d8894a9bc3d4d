"""Planted label errors: how many of them are among the most suspicious rows.

    python benchmarks/label_errors.py [sst2 tweet_emotion edos] [--model FOLDER] [--seeds 0 1 2 3 4] [--rows 4000]
                                      [--share 0.05]

Needs ../shared/data beside the repository. --model is a checkpoint folder or Hub name; without it, the demo's all-MiniLM-L6-v2.

Method: at most --rows random training rows of a set (the same for all seeds). Each seed gives --share of them another label,
drawn from the other classes, and so many rows are then marked as suspicious. Precision: the share of the marked rows that were
changed (recall is the same number). By chance it is --share. Rows that were mislabelled before count as wrongly marked.
"suspicious_rows_": of a default fit; where it lists fewer rows, the rest are drawn at random from the other rows ("filled").
"confident_learning": scikit-learn's logistic regression on the mean final hidden state, with C of the best cross-validated
log-loss, and its out-of-fold probabilities in 5 folds, as many as a default fit has; rows are ranked as in Northcutt, Jiang and
Chuang 2021: by self-confidence, the probability of the given label; by normalised margin, that minus the largest probability of
another class; and by the confident joint: first the rows that lie off its diagonal, by their margin, then the others. "tfidf":
the same regression on TF-IDF, by self-confidence. The last line is JSON.
"""

import argparse
from typing import Any

import numpy as np
from inputs import demo_weights
from machine import environment, parser, print_json
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from usual import N_FOLDS, SETS, Model, hidden_regression, labelled, mean_of, tfidf_regression, timed

import spin_native as sn

DEFAULT = ("sst2", "tweet_emotion", "edos")


def flipped(labels: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The labels with a share of them changed to another class, and the rows that were changed."""
    classes = np.unique(labels)
    changed = rng.permutation(len(labels))[: round(share * len(labels))]
    places = np.searchsorted(classes, labels[changed])
    planted = labels.copy()
    planted[changed] = classes[(places + rng.integers(1, len(classes), len(changed))) % len(classes)]
    return planted, changed


def out_of_fold(search: Any, inputs: Any, labels: np.ndarray, seed: int) -> np.ndarray:
    """Probabilities [row, class] of a regression that was not fitted on the row; C is chosen once, on all rows."""
    best = search.fit(inputs, labels).best_estimator_
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    return cross_val_predict(best, inputs, labels, cv=folds, method="predict_proba")


def rankings(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rows by each rule, the most suspicious first. labels: places of the classes."""
    rows = np.arange(len(labels))
    of_given = probabilities[rows, labels]
    others = probabilities.copy()
    others[rows, labels] = -1
    margin = of_given - others.max(1)
    # A class's threshold is the mean probability that its own rows give it. A row is counted in the class with the largest
    # probability among those that reach their threshold.
    thresholds = np.array([of_given[labels == place].mean() for place in range(probabilities.shape[1])])
    reached = np.where(probabilities >= thresholds, probabilities, -1)
    is_off_diagonal = (reached.max(1) >= 0) & (reached.argmax(1) != labels)
    return {
        "self_confidence": np.argsort(of_given, kind="stable"),
        "normalised_margin": np.argsort(margin, kind="stable"),
        "confident_joint": np.lexsort((margin, ~is_off_diagonal)),
    }


def precision(ranked: np.ndarray, changed: np.ndarray) -> float:
    """The share of changed rows among as many rows as were changed."""
    return float(np.isin(ranked[: len(changed)], changed).mean())


def measure_seed(base: Model, train: tuple[list[str], list[Any]], features: Any, seed: int, share: float) -> dict[str, Any]:
    texts, labels = train[0], np.array(train[1])
    rng = np.random.default_rng(seed)
    planted, changed = flipped(labels, share, rng)
    places = np.unique(planted, return_inverse=True)[1]
    clf, cost = timed(
        lambda: sn.SpinClassifier(base.name, seed=seed).fit(texts, planted.tolist(), features=features, progress=False)
    )
    listed = np.array(clf.suspicious_rows_, dtype=int)
    rest = np.setdiff1d(np.arange(len(labels)), listed)
    result: dict[str, Any] = {
        "planted": len(changed),
        "suspicious_rows_": {
            "precision": precision(np.concatenate([listed, rng.permutation(rest)]), changed),
            "listed": len(listed),
            "filled": max(0, len(changed) - len(listed)),
            "precision_of_all_listed": float(np.isin(listed, changed).mean()) if len(listed) else None,
            "planted_that_are_listed": float(np.isin(changed, listed).mean()),
        }
        | cost,
    }
    regressions = {
        "confident_learning": (hidden_regression(seed), base.final_of(features)),
        "tfidf": (tfidf_regression(seed), np.array(texts, dtype=object)),
    }
    for name, (search, inputs) in regressions.items():
        probabilities, cost = timed(lambda search=search, inputs=inputs: out_of_fold(search, inputs, planted, seed))  # type: ignore[misc]
        ranked = rankings(probabilities, places)
        result[name] = {rule: precision(rows, changed) for rule, rows in ranked.items()} | cost
    ours, theirs = result["suspicious_rows_"], result["confident_learning"]
    print(
        f"  seed {seed}: {len(changed)} planted; suspicious_rows_ {ours['precision']:.3f} ({ours['listed']} listed, "
        f"{ours['filled']} filled at random, {ours['cpu_seconds']:.1f} CPU s); confident learning by self-confidence "
        f"{theirs['self_confidence']:.3f}, by margin {theirs['normalised_margin']:.3f}, by the joint "
        f"{theirs['confident_joint']:.3f} ({theirs['cpu_seconds']:.1f} CPU s); TF-IDF {result['tfidf']['self_confidence']:.3f}",
        flush=True,
    )
    return result


def measure(base: Model, name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One data set over all seeds."""
    train, _ = labelled(name, given.rows)
    features, extraction = timed(lambda: base.features(train[0]))
    print(f"\n{name}: {len(train[0])} training rows; extracted in {extraction['seconds']:.1f} s", flush=True)
    seeds = [measure_seed(base, train, features, seed, given.share) for seed in given.seeds]
    print(f"  precision over {len(seeds)} seeds: suspicious_rows_ {mean_of(seeds, 'suspicious_rows_', 'precision')}")
    for rule in ("self_confidence", "normalised_margin", "confident_joint"):
        print(f"    confident learning, {rule}: {mean_of(seeds, 'confident_learning', rule)}")
    print(f"    TF-IDF, self_confidence: {mean_of(seeds, 'tfidf', 'self_confidence')}", flush=True)
    return {"seeds": seeds, "extraction": extraction, "rows": len(train[0])}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("data", nargs="*", choices=[*SETS, []], help=f"default: {', '.join(DEFAULT)}")
    arguments.add_argument("--model", help="checkpoint folder or Hub name (default: the demo's all-MiniLM-L6-v2)")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    arguments.add_argument("--rows", type=int, default=4000, help="training rows, at most")
    arguments.add_argument("--share", type=float, default=0.05, help="of the labels that are changed")
    given = arguments.parse_args()
    given.model = given.model or str(demo_weights())
    where = environment()
    base = Model.load(given.model)
    print_json(where | {"arguments": vars(given)}, {name: measure(base, name, given) for name in given.data or DEFAULT})


if __name__ == "__main__":
    main()
