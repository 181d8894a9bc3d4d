"""Several labels per text, pairs of texts, and long texts in windows, each on a real task and beside the obvious alternatives.

    python benchmarks/tasks.py [labels pairs windows] [--model FOLDER] [--seeds 0] [--rows 4000] [--limit N]

Needs ../shared/data beside the repository. --model is a checkpoint folder or Hub name; without it, the demo's all-MiniLM-L6-v2.
--rows: training rows, at most, drawn at random by each seed; of pairs the first questions, where a seed changes only the folds.
--limit: first test rows (or questions) only.

labels: sexism in posts (EDOS). A sexist post has the label "sexist" and one of four categories, other posts have none. F1 over
all labels (micro), mean F1 of the labels (macro), the share of posts whose whole set is right (subset), and the mean average
precision of the labels, which needs no threshold. A label is given above a probability of 1/2. Beside SpinMultilabelClassifier:
one SpinClassifier per label, on the same features; one logistic regression per label on the final hidden state, and on TF-IDF.
pairs: MCEval8K's commonsenseqa and postag (200 questions a part). A question with each of its choices is a pair, "right" or
"wrong"; training and validation questions, without test questions, are learnt from. Accuracy: the share of the test questions
whose right choice has the largest probability of "right" (equal ones share the point). By default, and "balanced": with
class_weight="balanced" and metric="macro_f1". Beside pairs: both texts joined to one; logistic regression on their final hidden
states apart (u, v, |u - v|, u * v), and on TF-IDF of the joined text.
windows: film reviews (imdb_small), cut at what the model holds, against windows=(256, 254) and (512, 510), which read them to
their end; accuracy on all test rows and on those that are cut; on the latter, an exact McNemar test of each against the cut.
Beside: TF-IDF, which reads whole texts.

Seconds and CPU seconds: of a fit (features of all training rows are extracted once for all, and their time is given apart), and
of predicting the test rows, which runs the model. The last line is JSON.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from inputs import DATA, demo_weights, read
from machine import environment, parser, print_json
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, f1_score
from usual import Model, hidden_regression, labelled, mean_of, tfidf_regression, timed

import spin_native as sn

CUT = "cut"
WINDOWS: dict[str, tuple[int, int] | None] = {CUT: None, "windows (256, 254)": (256, 254), "windows (512, 510)": (512, 510)}
QUESTIONS = {"commonsenseqa": "fact/commensenseqa", "postag": "linguistic/postag"}
# One choice in four or five is right: the accuracy over rows is that of "wrong" everywhere, and says little about depths.
SETTINGS: dict[str, dict[str, Any]] = {"default": {}, "balanced": {"class_weight": "balanced", "metric": "macro_f1"}}
Record = dict[str, Any]


def record_of(scores: Record, fit: dict[str, float], predict: dict[str, float] | None = None) -> Record:
    """Scores with their cost."""
    record = scores | {f"fit_{key}": value for key, value in fit.items()}
    return record | {f"predict_{key}": value for key, value in (predict or {}).items()}


def show(seeds: Sequence[dict[str, Record]]) -> None:
    """A line per contender: the means of its numbers over the seeds."""
    for name in seeds[0]:
        numbers = [key for key, value in seeds[0][name].items() if isinstance(value, (int, float))]
        print(f"  {name}: " + ", ".join(f"{key} {mean_of(seeds, name, key)}" for key in numbers), flush=True)


# Several labels per text.


def label_sets(part: str) -> tuple[list[str], list[list[str]]]:
    """Posts, and the labels of each one: none, or "sexist" and a category."""
    texts, categories = read("edos", part, "label_category")
    return texts, [[] if category == "none" else ["sexist", category] for category in categories]


def set_scores(truth: np.ndarray, probabilities: np.ndarray, given: np.ndarray) -> Record:
    """Scores of 0/1 [text, label], and of its probabilities."""
    return {
        "micro_f1": float(f1_score(truth, given, average="micro", zero_division=0)),
        "macro_f1": float(f1_score(truth, given, average="macro", zero_division=0)),
        "subset": float((truth == given).all(1).mean()),
        "average_precision": float(average_precision_score(truth, probabilities, average="macro")),
    }


def one_by_one(base: Model, texts: list[str], truth: np.ndarray, features: Any, seed: int) -> list[sn.SpinClassifier]:
    """A classifier for each label: has a text this label?"""
    fitted = []
    for column in truth.T.astype(int).tolist():
        fitted.append(sn.SpinClassifier(base.name, seed=seed).fit(texts, column, features=features, progress=False))
    return fitted


def labels_seed(base: Model, seed: int, given: argparse.Namespace) -> dict[str, Record]:
    test_texts, test_sets = (values[: given.limit] for values in label_sets("test"))
    in_test = set(test_texts)
    rows = [row for row in zip(*label_sets("train"), strict=True) if row[0] not in in_test]
    drawn = np.random.default_rng(seed).permutation(len(rows))[: given.rows]
    texts, sets = [rows[row][0] for row in drawn], [rows[row][1] for row in drawn]
    names = sorted({label for row in sets for label in row})
    train, truth = (np.array([[name in row for name in names] for row in some]) for some in (sets, test_sets))
    features, extraction = timed(lambda: base.features(texts))
    results: dict[str, Record] = {"extraction": dict(extraction)}

    estimator = sn.SpinMultilabelClassifier(base.name, seed=seed)
    clf, fit = timed(lambda: estimator.fit(texts, sets, features=features, progress=False))
    assert clf.classes_.tolist() == names
    probabilities, predict = timed(lambda: clf.predict_proba(test_texts))
    scores = set_scores(truth, probabilities, probabilities > clf.thresholds_) | {"depth": clf.depth_}
    results["SpinMultilabelClassifier"] = record_of(scores, fit, predict)

    several, fit = timed(lambda: one_by_one(base, texts, train, features, seed))
    probabilities, predict = timed(lambda: np.stack([one.predict_proba(test_texts)[:, 1] for one in several], axis=1))
    scores = set_scores(truth, probabilities, probabilities > 0.5) | {"depth": max(one.depth_ for one in several)}
    results["a SpinClassifier per label"] = record_of(scores, fit, predict)

    for name, inputs, test_inputs in (
        ("final hidden state", base.final_of(features), base.final_hidden(test_texts)),
        ("TF-IDF", texts, test_texts),
    ):
        new = tfidf_regression if name == "TF-IDF" else hidden_regression
        regressions, fit = timed(lambda new=new, inputs=inputs: [new(seed).fit(inputs, column) for column in train.T])  # type: ignore[misc]
        probabilities = np.stack([one.predict_proba(test_inputs)[:, 1] for one in regressions], axis=1)
        results[name] = record_of(set_scores(truth, probabilities, probabilities > 0.5), fit)
    return results


def measure_labels(base: Model, given: argparse.Namespace) -> Any:
    print("\nlabels: EDOS, five labels", flush=True)
    seeds = [labels_seed(base, seed, given) for seed in given.seeds]
    show(seeds)
    return seeds


# Pairs of texts.


def questions(task: str, part: str) -> dict[str, list[str]]:
    """Question -> its choices, the right one first, as the files have them."""
    content = json.loads((DATA / "mceval8k_sample" / QUESTIONS[task] / f"{part}.json").read_text(encoding="utf-8"))
    found = {}
    for row in content:
        text = f"{row['target_token']} in: {row['text']}" if "target_token" in row else row["text"]
        right = row["options"][row["label"]]
        found[text] = [right, *(option for option in row["options"] if option != right)]
    return found


def choice_accuracy(of_right: np.ndarray, asked: dict[str, list[str]]) -> Record:
    """The share of questions answered right, and its standard error.

    of_right: the probability of "right" of each question's choices, one after another; the first one is right.
    """
    points, start = [], 0
    for choices in asked.values():
        of_choices = of_right[start : start + len(choices)]
        is_best = of_choices >= of_choices.max() - 1e-12
        points.append(float(is_best[0]) / is_best.sum())
        start += len(choices)
    return {"accuracy": float(np.mean(points)), "standard_error": float(np.std(points) / np.sqrt(len(points)))}


def pairs_seed(base: Model, task: str, seed: int, given: argparse.Namespace) -> dict[str, Record]:
    asked = dict(list(questions(task, "test").items())[: given.limit])
    known = {text: choices for part in ("train", "valid") for text, choices in questions(task, part).items()}
    known = dict([item for item in known.items() if item[0] not in asked][: given.rows])
    pairs, test = ([(text, choice) for text, choices in some.items() for choice in choices] for some in (known, asked))
    labels = ["right" if place == 0 else "wrong" for choices in known.values() for place in range(len(choices))]
    joined, test_joined = ([f"{text} {choice}" for text, choice in some] for some in (pairs, test))
    chance = float(np.mean([1 / len(choices) for choices in asked.values()]))
    results: dict[str, Record] = {
        "questions": {"train": len(known), "train_rows": len(pairs), "test": len(asked), "chance": chance}
    }
    for name, rows, test_rows in (("pairs", pairs, test), ("joined", joined, test_joined)):
        features, extraction = timed(lambda rows=rows: base.features(rows))  # type: ignore[misc]
        for how, settings in SETTINGS.items():
            estimator = sn.SpinClassifier(base.name, seed=seed, **settings)
            clf, fit = timed(lambda rows=rows, f=features, e=estimator: e.fit(rows, labels, features=f, progress=False))  # type: ignore[misc]
            outputs, predict = timed(lambda rows=test_rows, clf=clf: clf.predict_proba(rows))  # type: ignore[misc]
            scores = choice_accuracy(outputs[:, clf.classes_.tolist().index("right")], asked)
            scores |= {"depth": clf.depth_, "extraction_seconds": extraction["seconds"]}
            results[f"{name}, {how}"] = record_of(scores, fit, predict)
    for name, search, inputs, test_inputs in (
        ("final hidden states apart", hidden_regression(seed), apart(base, pairs), apart(base, test)),
        ("TF-IDF", tfidf_regression(seed), joined, test_joined),
    ):
        fitted, fit = timed(lambda search=search, inputs=inputs: search.fit(inputs, labels))  # type: ignore[misc]
        of_right = fitted.predict_proba(test_inputs)[:, list(fitted.classes_).index("right")]
        results[name] = record_of(choice_accuracy(of_right, asked), fit)
    return results


def apart(base: Model, pairs: list[tuple[str, str]]) -> np.ndarray:
    """Both texts' mean final hidden states, their distance and their product, as Sentence-BERT joins them."""
    first, second = (base.final_hidden(list(texts)) for texts in zip(*pairs, strict=True))
    return np.concatenate([first, second, np.abs(first - second), first * second], axis=1)


def measure_pairs(base: Model, given: argparse.Namespace) -> Any:
    results = {}
    for task in QUESTIONS:
        print(f"\npairs: {task}", flush=True)
        results[task] = [pairs_seed(base, task, seed, given) for seed in given.seeds]
        show(results[task])
    return results


# Long texts.


def windows_seed(base: Model, seed: int, given: argparse.Namespace) -> dict[str, Record]:
    train, (test_texts, test_labels) = labelled("imdb_small", given.rows, given.limit, seed)
    truth = np.array(test_labels)
    is_cut, train_is_cut = (np.array(base.tokenizer.encode(texts).truncated) for texts in (test_texts, train[0]))
    results: dict[str, Record] = {
        "rows": {"train": len(train[0]), "train_cut": train_is_cut.mean(), "test": len(truth), "test_cut": is_cut.mean()}
    }
    is_right: dict[str, np.ndarray] = {}
    for name, windows in WINDOWS.items():
        features, extraction = timed(lambda windows=windows: base.features(train[0], windows))  # type: ignore[misc]
        estimator = sn.SpinClassifier(base.name, windows=windows, seed=seed)
        clf, fit = timed(lambda e=estimator, f=features: e.fit(*train, features=f, progress=False))  # type: ignore[misc]
        answers, predict = timed(lambda clf=clf: clf.predict(test_texts))  # type: ignore[misc]
        is_right[name] = answers == truth
        scores = {"depth": clf.depth_, "extraction_seconds": extraction["seconds"]}
        results[name] = record_of(scores, fit, predict)
    fitted, fit = timed(lambda: tfidf_regression(seed).fit(*train))
    is_right["TF-IDF"] = fitted.predict(test_texts) == truth
    results["TF-IDF"] = record_of({}, fit)
    for name, right in is_right.items():
        results[name] = {"accuracy": float(right.mean())} | results[name]
        if is_cut.any():
            better, worse = int((right & ~is_right[CUT])[is_cut].sum()), int((~right & is_right[CUT])[is_cut].sum())
            p = float(binomtest(better, better + worse).pvalue) if better + worse else 1.0
            on_cut = {"accuracy_of_cut_rows": float(right[is_cut].mean()), "better": better, "worse": worse, "p": p}
            results[name] = on_cut | results[name]
    return results


def measure_windows(base: Model, given: argparse.Namespace) -> Any:
    print("\nwindows: imdb_small", flush=True)
    seeds = [windows_seed(base, seed, given) for seed in given.seeds]
    show(seeds)
    return seeds


MEASURES = {"labels": measure_labels, "pairs": measure_pairs, "windows": measure_windows}


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("tasks", nargs="*", choices=[*MEASURES, []], help="default: all of them")
    arguments.add_argument("--model", help="checkpoint folder or Hub name (default: the demo's all-MiniLM-L6-v2)")
    arguments.add_argument("--seeds", nargs="+", type=int, default=[0])
    arguments.add_argument("--rows", type=int, default=4000, help="training rows (pairs: questions), at most")
    arguments.add_argument("--limit", type=int, help="first test rows (pairs: questions) only; default: all")
    given = arguments.parse_args()
    given.model = given.model or str(demo_weights())
    where = environment()
    base = Model.load(given.model)
    print_json(where | {"arguments": vars(given)}, {name: MEASURES[name](base, given) for name in given.tasks or MEASURES})


if __name__ == "__main__":
    main()
