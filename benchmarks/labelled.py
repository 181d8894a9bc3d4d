"""Labelled sets for classifiers: reading them, extracting their features once, and the usual way without a language model.

Texts that are also test rows, and copies of a text, are removed from the training and dev rows of every set.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
from inputs import DATA, read
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import spin_native as sn

# The package's internals: metrics, and how a fitted head is applied to features that are there already.
from spin_native.classifier.options import DTYPES
from spin_native.classifier.parts import ExtractedPart
from spin_native.classifier.tasks import Classes, Task, Values
from spin_native.features.selection import rows_of_texts
from spin_native.features.store import Features

Array = np.ndarray
N_FOLDS = 5
TFIDF_CS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
EMBEDDING_CS = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)


class Source(NamedTuple):
    """Where a set is, which column is predicted, and what is compared."""

    folder: str
    label: str
    metric: str

    @property
    def is_regression(self) -> bool:
        return self.metric == "pearson"


SETS = {
    "sst2": Source("sst2", "label", "accuracy"),
    "edos": Source("edos", "label", "macro_f1"),
    "edos_category": Source("edos", "label_category", "macro_f1"),
    "imdb_small": Source("imdb_small", "label", "accuracy"),
    "tweet_emotion": Source("tweet_emotion", "label", "macro_f1"),
    "tweet_valence": Source("tweet_valence", "label", "pearson"),
}


class Rows(NamedTuple):
    """Texts and labels: numbers, classes counted from 0 in the order of their names."""

    texts: list[str]
    labels: Array

    def take(self, rows: Sequence[int] | Array) -> "Rows":
        return Rows([self.texts[row] for row in rows], self.labels[rows])

    def pair(self) -> tuple[list[str], list[Any]]:
        """As `fit` takes it."""
        return self.texts, self.labels.tolist()


class Labelled(NamedTuple):
    """A set. learnt: training rows, then the given dev rows (n_dev of them; 0 where the set has no dev part)."""

    name: str
    source: Source
    learnt: Rows
    n_dev: int
    test: Rows

    @property
    def task(self) -> Task:
        return Values() if self.source.is_regression else Classes(np.unique(self.learnt.labels))

    def score(self, predicted: Array, metric: str | None = None) -> float:
        """The metric of encoded predictions for the test rows."""
        chosen: Any = metric or self.source.metric
        return float(self.task.score(chosen, self.test.labels, predicted))


def read_set(name: str, limit: int | None = None) -> Labelled:
    """A set; limit: at most so many training and dev rows together, drawn by class from each part (test rows stay)."""
    source = SETS[name]
    names = [part for part in ("train", "dev", "val", "test") if (DATA / source.folder / f"{part}.csv").exists()]
    parts = {part: read(source.folder, part, source.label) for part in names}
    taken = set(parts["test"][0])
    kept: dict[str, list[tuple[str, Any]]] = {"test": list(zip(*parts["test"], strict=True))}
    for part in reversed(names[:-1]):  # of copies in train and dev, dev keeps its own
        kept[part] = []
        for text, label in zip(*parts[part], strict=True):
            if text not in taken:
                taken.add(text)
                kept[part].append((text, label))
    texts = [text for part in names for text, _ in kept[part]]
    raw = [label for part in names for _, label in kept[part]]
    labels = np.array(raw, dtype=float) if source.is_regression else np.unique(raw, return_inverse=True)[1]
    rows, n_learnt = Rows(texts, labels), len(texts) - len(kept["test"])
    n_dev = len(kept[names[-2]]) if len(names) == 3 else 0
    learnt, test = rows.take(range(n_learnt)), rows.take(range(n_learnt, len(texts)))
    if limit is not None and limit < n_learnt:
        share, n_train = limit / n_learnt, n_learnt - n_dev
        train = drawn(learnt.labels[:n_train], round(share * n_train), source, seed=0)
        dev = n_train + drawn(learnt.labels[n_train:], round(share * n_dev), source, seed=0) if n_dev else np.array([], int)
        learnt, n_dev = learnt.take(np.concatenate([train, dev])), len(dev)
    return Labelled(name, source, learnt, n_dev, test)


def drawn(labels: Array, n: int, source: Source, seed: int) -> Array:
    """n of the rows, sorted; of each class its share."""
    rows = np.arange(len(labels))
    if n >= len(rows):
        return rows
    return np.sort(
        train_test_split(rows, train_size=n, stratify=None if source.is_regression else labels, random_state=seed)[0]
    )


class Extracted(NamedTuple):
    """Features of all the texts. seconds: wall time of loading the model, and of extracting them or checking the store."""

    features: Features
    n_layers: int
    seconds: float


def extracted(data: Labelled, model_name: str, dtype: str, store: Path | None) -> Extracted:
    """Mean and max of the activations and of the hidden states of all layers, of all the set's texts.

    store: a folder; each model and each collection of texts has an ActivationStore of its own in it, which later runs read.
    """
    texts = data.learnt.texts + data.test.texts
    folder = None
    if store is not None:
        digest = hashlib.sha256("\0".join([model_name, dtype, *texts]).encode()).hexdigest()[:12]
        folder = store / f"{data.source.folder}-{digest}"
    started = perf_counter()
    model, tokenizer = sn.load_model(model_name, dtype=DTYPES[dtype]), sn.load_tokenizer(model_name)
    features = sn.extract(model, tokenizer, texts, sites=("activation", "hidden"), store=folder)
    return Extracted(features, model.config.n_layers, perf_counter() - started)


def test_predictions(fitted: Any, features: Features, test: Rows) -> Array:
    """What a fitted estimator predicts for test rows, encoded, from their features: the model does not run again."""
    head = fitted.head_
    return head.predict(head.read(ExtractedPart(test.labels, features, rows=rows_of_texts(features, test.texts))))


class Simple(NamedTuple):
    """A model of scikit-learn, after its fit: encoded test predictions, what cross-validation chose, CPU seconds."""

    predicted: Array
    chosen: str
    cpu_seconds: float


def tfidf(data: Labelled, learnt: Rows, seed: int) -> Simple:
    """TF-IDF of words and pairs of words, and logistic (for values: ridge) regression; C by cross-validation."""

    def read_texts(rows: Array, others: Rows) -> tuple[Any, Any]:
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        return vectorizer.fit_transform(learnt.take(rows).texts), vectorizer.transform(others.texts)

    candidates = {f"C={C:g}": linear(data, C) for C in TFIDF_CS}
    return cross_validated(data, learnt, read_texts, candidates, seed)


def embedding(data: Labelled, learnt: Rows, ready: Extracted, seed: int) -> Simple:
    """The mean final hidden state and logistic regression; C, and whether to standardise, by cross-validation."""

    def read_states(rows: Array, others: Rows) -> tuple[Any, Any]:
        states = ready.features.array(site="hidden", pooling="mean", layer=ready.n_layers)
        places = [rows_of_texts(ready.features, texts) for texts in (learnt.take(rows).texts, others.texts)]
        return states[places[0]], states[places[1]]

    plain = {f"C={C:g}": linear(data, C) for C in EMBEDDING_CS}
    standardised = {f"C={C:g}, standardised": make_pipeline(StandardScaler(), linear(data, C)) for C in EMBEDDING_CS}
    return cross_validated(data, learnt, read_states, plain | standardised, seed)


def linear(data: Labelled, C: float) -> Any:
    return Ridge(alpha=1 / C) if data.source.is_regression else LogisticRegression(C=C, max_iter=5000)


def cross_validated(
    data: Labelled,
    learnt: Rows,
    read_rows: Callable[[Array, Rows], tuple[Any, Any]],
    candidates: dict[str, Any],
    seed: int,
) -> Simple:
    """Choose the candidate with the best mean score over the folds (the first of equals), and fit it on all learnt rows.

    read_rows: (which learnt rows to fit on, other rows) to the features of both.
    """
    started = process_time()
    folds = (KFold if data.source.is_regression else StratifiedKFold)(N_FOLDS, shuffle=True, random_state=seed)
    scores: dict[str, list[float]] = {name: [] for name in candidates}
    metric: Any = data.source.metric
    for fitted_on, held_out in folds.split(learnt.labels, learnt.labels):
        features, others = read_rows(fitted_on, learnt.take(held_out))
        for name, model in candidates.items():
            predicted = model.fit(features, learnt.labels[fitted_on]).predict(others)
            scores[name].append(float(data.task.score(metric, learnt.labels[held_out], predicted)))
    chosen = max(scores, key=lambda name: float(np.mean(scores[name])))
    features, others = read_rows(np.arange(len(learnt.labels)), data.test)
    predicted = candidates[chosen].fit(features, learnt.labels).predict(others)
    return Simple(predicted, chosen, process_time() - started)
