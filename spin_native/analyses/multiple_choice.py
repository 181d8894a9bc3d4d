"""Multiple-choice questions (MCEval8K's JSON; Zhao et al. 2025) as prompts, and a report of what train and test share."""

import json
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spin_native.errors import InputError

TEMPLATE = "{text}\n{options}\nAnswer:"


@dataclass(frozen=True)
class Question:
    """A text with its options in the order shown, and the index of the true one. fields: the row as it was read."""

    text: str
    options: tuple[str, ...]
    truth: int
    fields: Mapping[str, Any]

    @property
    def answer(self) -> str:
        """The true option."""
        return self.options[self.truth]

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """The same for questions that differ in case, spaces or the order of the options only."""
        return plain(self.text), tuple(sorted(map(plain, self.options)))


@dataclass(frozen=True)
class Questions:
    """Questions with equally many options each."""

    questions: tuple[Question, ...]

    def __len__(self) -> int:
        return len(self.questions)

    @property
    def letters(self) -> list[str]:
        """What the options are called in a prompt: "A", "B", ..."""
        return list(string.ascii_uppercase[: len(self.questions[0].options)])

    @property
    def truth(self) -> np.ndarray:
        """The index of the true option of each question [row]."""
        return np.array([question.truth for question in self.questions])

    @property
    def targets(self) -> list[list[str]]:
        """The letters, once per prompt: the targets of `neuron_gradients`, in the order of the labels that `truth` counts."""
        return [self.letters] * len(self)

    def prompts(self, template: str = TEMPLATE, max_characters: int | None = None) -> list[str]:
        """One prompt per question. A masked language model needs its mask token in the template.

        template: with {text}, {options} (one line per option, "A. ...") and any other field of the file in braces.
        max_characters: shorten a text to this length, for a model with few positions (None: keep it).
        InputError for a field that a question does not have.
        """
        prompts = []
        for row, question in enumerate(self.questions):
            options = "\n".join(f"{name}. {option}" for name, option in zip(self.letters, question.options, strict=True))
            try:
                filled = {**question.fields, "text": question.text[:max_characters], "options": options}
                prompts.append(template.format_map(filled))
            except (KeyError, IndexError, ValueError) as error:
                known = ", ".join(["text", "options", *sorted(question.fields.keys() - {"text", "options"})])
                raise InputError(f"template {template!r}: question {row} has no field {error}; it has {known}") from None
        return prompts

    def shuffled(self, seed: int) -> "Questions":
        """The same questions with each one's options in a random order: else the position of the true one may give it away."""
        generator = np.random.default_rng(seed)
        shuffled = []
        for question in self.questions:
            order = generator.permutation(len(question.options)).tolist()
            options = tuple(question.options[place] for place in order)
            shuffled.append(Question(question.text, options, order.index(question.truth), question.fields))
        return Questions(tuple(shuffled))

    def only(self, rows: Sequence[int]) -> "Questions":
        """Some of the questions."""
        return Questions(tuple(self.questions[row] for row in rows))


def read_questions(path: str | Path, *, label: str = "label", options: Sequence[str] | None = None) -> Questions:
    """The questions of a JSON file: a list of objects with "text", "options" and the index of the true option.

    label: the name of that index. options: the options of every question, where the file lists none (classes such as
    "positive", "negative", in the order of their indices).

    Raises InputError, naming the row, for a file that is not such a list, a missing field, an index that is no option, and
    questions with different numbers of options.
    """
    path = Path(path)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(f"{path}: expected a list of one or more questions")
    questions = []
    for index, row in enumerate(rows):
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            raise InputError(f"{path}: question {index} has no text; expected an object with 'text', 'options' and {label!r}")
        listed = row.get("options") if options is None else list(options)
        if not isinstance(listed, list) or len(listed) < 2:
            raise InputError(f"{path}: question {index} has no options; give those of every question as options=")
        truth = row.get(label)
        if not isinstance(truth, int) or isinstance(truth, bool) or not 0 <= truth < len(listed):
            raise InputError(
                f"{path}: question {index} has {label!r} {truth!r}; expected 0 to {len(listed) - 1}; name it as label="
            )
        questions.append(Question(row["text"], tuple(map(str, listed)), truth, row))
        if len(listed) != len(questions[0].options) or len(listed) > len(string.ascii_uppercase):
            raise InputError(f"{path}: question {index} has {len(listed)} options, question 0 has {len(questions[0].options)}")
    return Questions(tuple(questions))


@dataclass(frozen=True)
class LeakReport:
    """What test questions share with the training questions; rows are indices of test questions.

    same_text: their text is in train. same_question: so are their text and options. answered: so is the true answer.
    contradicted: train has the same question with another answer. repeated: the same question comes earlier in test.
    majority: how many test questions the most frequent training answer solves, as a share: above 1 / n_options, a probe can
        score by preferring one answer's text without reading the question.
    """

    n_train: int
    n_test: int
    same_text: list[int]
    same_question: list[int]
    answered: list[int]
    contradicted: list[int]
    repeated: list[int]
    majority: float

    @property
    def clean(self) -> list[int]:
        """The test rows whose text is not in train, each question once."""
        return sorted(set(range(self.n_test)) - set(self.same_text) - set(self.repeated))

    def __str__(self) -> str:
        counts = ", ".join(f"{name} {len(value)}" for name, value in asdict(self).items() if isinstance(value, list))
        return (
            f"{self.n_test} test and {self.n_train} training questions: {counts}, majority answer right in {self.majority:.0%}"
        )


def leaks(train: Questions, test: Questions) -> LeakReport:
    """Compare test with train, whatever the case, the spaces and the order of the options."""
    texts = {plain(question.text) for question in train.questions}
    answers: dict[Any, set[str]] = {}
    for question in train.questions:
        answers.setdefault(question.key, set()).add(plain(question.answer))
    seen: set[Any] = set()
    report: dict[str, list[int]] = {name: [] for name in ("same_text", "same_question", "answered", "contradicted", "repeated")}
    for row, question in enumerate(test.questions):
        known = answers.get(question.key, set())
        for name, applies in (
            ("same_text", plain(question.text) in texts),
            ("same_question", bool(known)),
            ("answered", plain(question.answer) in known),
            ("contradicted", bool(known - {plain(question.answer)})),
            ("repeated", question.key in seen),
        ):
            if applies:
                report[name].append(row)
        seen.add(question.key)
    ((most_frequent, _),) = Counter(plain(question.answer) for question in train.questions).most_common(1)
    majority = float(np.mean([plain(question.answer) == most_frequent for question in test.questions]))
    return LeakReport(len(train), len(test), **report, majority=majority)


def plain(text: str) -> str:
    """Lower case, with single spaces."""
    return " ".join(text.casefold().split())
