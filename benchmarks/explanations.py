"""Deletion test of explain(): does removing the word that added most move the logit more than removing another word?

    python benchmarks/explanations.py [--data sst2] [--rows 4000] [--texts 500] [--set head=refit depth=6 ...]

Needs the demo's weights (MiniLM) and ../shared/data beside the repository. A classifier is fitted on the first training rows.
For each of the first test texts of two words or more that it explains, every word is deleted in turn and the classifier asked
again. Of each text the top word is the one whose contribution to the predicted class is largest. "moved": its deletion changes
the logit of the predicted class more, up or down, than that of another word; "lowered": it lowers that logit more. Both are
shares of texts with one other word drawn at random (seed 0), and in expectation over all other words, which needs no draw.
"..._of_a_random_word": the same for a word drawn at random in place of the top one. "top_lowers": the share of texts where
deleting the top word lowers the logit. "rank_correlation": of contributions and what deletions lower, the mean of the texts.
"adds_up": the largest difference between bias + tokens and the logit. --set: other parameters of SpinClassifier, as Python
values. The last line is JSON.
"""

import ast
from time import perf_counter
from typing import Any

import numpy as np
from inputs import demo_weights, read
from machine import environment, parser, print_json
from scipy.stats import spearmanr

import spin_native as sn


def measure(data: str, n_rows: int, n_texts: int, parameters: dict[str, Any]) -> dict[str, Any]:
    started = perf_counter()
    train = [part[:n_rows] for part in read(data, "train")]
    clf = sn.SpinClassifier(demo_weights(), **parameters).fit(*train, progress=False)
    fit_seconds = perf_counter() - started
    texts = [text for text in read(data, "test")[0] if len(text.split()) > 1]
    rng = np.random.default_rng(0)
    adds_up, seconds = 0.0, 0.0
    compared: list[dict[str, Any]] = []
    for text in texts:
        started = perf_counter()
        explained = clf.explain(text)
        seconds += perf_counter() - started
        adds_up = max(adds_up, abs(explained.bias + sum(token.contribution for token in explained.tokens) - explained.logit))
        if len(explained.words) > 1:
            compared.append(deletions(clf, explained, rng))
        if len(compared) == n_texts:
            break
    results = {
        "data": data,
        "rows": len(train[0]),
        "depth": clf.depth_,
        "neurons": clf.head_.n_neurons,
        "texts": len(compared),
        "adds_up": adds_up,
        "explain_ms": 1000 * seconds / len(compared),
        "fit_seconds": fit_seconds,
        **{name: float(np.mean([one[name] for one in compared])) for name in compared[0]},
    }
    for name, value in results.items():
        print(f"{name}: {value:.3g}" if isinstance(value, float) else f"{name}: {value}")
    return results


def deletions(clf: sn.SpinClassifier, explained: Any, rng: np.random.Generator) -> dict[str, float]:
    """How the logit of the predicted class changes when each word of a text is deleted: the top word against the others."""
    text, words = explained.text, explained.words
    without = [text[: word.start] + text[word.end :] for word in words]
    predicted = list(clf.classes_).index(explained.answer)
    log_odds = np.diff(np.log(clf.predict_proba(without)), axis=1)[:, 0] * (1 if predicted else -1)
    lowered = explained.logit - log_odds
    contributions = np.array([word.contribution for word in words])
    top, drawn = int(contributions.argmax()), int(rng.integers(len(words)))
    others = np.delete(np.arange(len(words)), top)
    other = rng.choice(others)
    elsewhere = np.delete(np.arange(len(words)), drawn)
    moved = np.abs(lowered)
    return {
        "moved": moved[top] > moved[other],
        "moved_expected": np.mean(moved[top] > moved[others]),
        "moved_expected_of_a_random_word": np.mean(moved[drawn] > moved[elsewhere]),
        "lowered": lowered[top] > lowered[other],
        "lowered_expected": np.mean(lowered[top] > lowered[others]),
        "lowered_expected_of_a_random_word": np.mean(lowered[drawn] > lowered[elsewhere]),
        "top_lowers": lowered[top] > 0,
        "rank_correlation": float(spearmanr(contributions, lowered)[0]),
    }


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--data", default="sst2")
    arguments.add_argument("--rows", type=int, default=4000)
    arguments.add_argument("--texts", type=int, default=500)
    arguments.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    given = arguments.parse_args()
    parameters = {}
    for name, _, value in (setting.partition("=") for setting in given.set):
        try:
            parameters[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            parameters[name] = value
    where = environment()
    print_json(where, measure(given.data, given.rows, given.texts, parameters))


if __name__ == "__main__":
    main()
