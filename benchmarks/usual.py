"""Classification sets, rows drawn from them, and the models that people would otherwise run on them: scikit-learn's logistic
regression on the final hidden state, or on TF-IDF.

Every regression chooses C by 5-fold cross-validation of the log-loss within its training rows, and is then fitted on all of
them.
"""

from collections.abc import Callable, Sequence
from time import perf_counter, process_time
from typing import Any, NamedTuple, TypeVar

import numpy as np
from inputs import read
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import spin_native as sn

Result = TypeVar("Result")
Labelled = tuple[list[str], list[Any]]
# Name -> folder in ../shared/data, label column.
SETS = {
    "sst2": ("sst2", "label"),
    "edos": ("edos", "label"),
    "edos_category": ("edos", "label_category"),
    "imdb_small": ("imdb_small", "label"),
    "tweet_emotion": ("tweet_emotion", "label"),
}
N_FOLDS = 5
HIDDEN_CS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
TFIDF_CS = (0.3, 1.0, 3.0, 10.0, 30.0)


class Model(NamedTuple):
    """A base model: its folder or Hub name, loaded, and its tokenizer."""

    name: str
    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, name: str) -> "Model":
        return cls(name, sn.load_model(name), sn.load_tokenizer(name))

    def features(self, texts: Sequence[Any], windows: tuple[int, int] | None = None) -> Any:
        """All that a default fit reads of these texts."""
        return sn.extract(self.model, self.tokenizer, texts, sites=("activation", "hidden"), windows=windows, progress=False)

    def final_hidden(self, texts: Sequence[Any]) -> np.ndarray:
        """The mean over the tokens of the final hidden state, [text, d_model]."""
        extracted = sn.extract(self.model, self.tokenizer, texts, sites=("hidden",), poolings=("mean",), progress=False)
        return self.final_of(extracted)

    def final_of(self, features: Any) -> np.ndarray:
        return features["hidden", "mean", self.model.config.n_layers]


def labelled(name: str, n_train: int, n_test: int | None = None, seed: int = 0) -> tuple[Labelled, Labelled]:
    """At most `n_train` random training rows of a set, without test texts; and its (first `n_test`) test rows."""
    folder, column = SETS[name]
    test_texts, test_labels = read(folder, "test", column)
    in_test = set(test_texts)
    rows = [row for row in zip(*read(folder, "train", column), strict=True) if row[0] not in in_test]
    drawn = np.random.default_rng(seed).permutation(len(rows))[:n_train]
    train = [rows[row][0] for row in drawn], [rows[row][1] for row in drawn]
    return train, (test_texts[:n_test], test_labels[:n_test])


def hidden_regression(seed: int = 0) -> GridSearchCV:
    """Logistic regression on standardised columns; not fitted yet."""
    return _searched(make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000)), HIDDEN_CS, seed)


def tfidf_regression(seed: int = 0) -> GridSearchCV:
    """Logistic regression on TF-IDF of words and word pairs; not fitted yet."""
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    return _searched(make_pipeline(words, LogisticRegression(max_iter=3000)), TFIDF_CS, seed)


def _searched(model: Pipeline, cs: tuple[float, ...], seed: int) -> GridSearchCV:
    folds = StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed)
    return GridSearchCV(model, {"logisticregression__C": cs}, scoring="neg_log_loss", cv=folds)


def timed(run: Callable[[], Result]) -> tuple[Result, dict[str, float]]:
    """A result, and the seconds and CPU seconds that it took."""
    started, cpu_started = perf_counter(), process_time()
    result = run()
    return result, {"seconds": perf_counter() - started, "cpu_seconds": process_time() - cpu_started}


def mean_of(records: Sequence[dict[str, Any]], *path: str) -> str:
    """The mean of a number in several records, with its standard deviation where there are several."""
    values = []
    for record in records:
        value: Any = record
        for key in path:
            value = value[key]
        values.append(value)
    if all(isinstance(value, int) for value in values):
        return f"{np.mean(values):g}"
    return f"{np.mean(values):.4f}" + (f" +- {np.std(values):.4f}" if len(values) > 1 else "")
