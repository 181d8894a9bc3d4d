"""Skill probes on neuron gradients and on activations: multiple-choice tasks of MCEval8K on the small trained language models.

    python benchmarks/gradient_probes.py accuracy [MODEL ...]
    python benchmarks/gradient_probes.py few-shot|efficiency|robustness|flexibility|interdependency [MODEL ...] [--task postag]

MODEL: folders with a tokenizer (default: the two GPT-2s of ../shared/models, which have 64 positions: longer prompts are left
out, and counted). Needs ../shared/data/mceval8k_sample. Options are shuffled, the target of an option is its letter after
"Answer:". accuracy: chance, the model's own answer (the most probable letter), every probe with 256 neurons, on test rows
without leaks; and the leaks. The other words are the experiments of `spin_native.analyses` on one task. The last line is JSON.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from inputs import DATA, SHARED
from machine import environment, parser, print_json

import spin_native as sn
from spin_native.analyses import ActivationProbe, ForestProbe, MagnitudeProbe, PolarityProbe, activation_scores, skill_scores
from spin_native.analyses.multiple_choice import LeakReport, Questions

# Task -> its folder, and what `read_questions` needs to know of it.
TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "agnews": ("classification/agnews", {"options": ["World", "Sports", "Business", "Science"]}),
    "toxicity": ("self-reflection/toxicity", {"label": "toxic", "options": ["no", "yes"]}),
    "commonsenseqa": ("fact/commensenseqa", {}),
    "postag": ("linguistic/postag", {}),
}
TEMPLATES = {
    "agnews": ("{text}\n{options}\nAnswer:", "Topic of: {text}\n{options}\nIt is"),
    "toxicity": ("{text}\nRude?\n{options}\nAnswer:", "{text}\nIs it rude?\n{options}\nIt is"),
    "commonsenseqa": ("{text}\n{options}\nAnswer:", "Q. {text}\n{options}\nIt is"),
    "postag": ("{target_token} in: {text}\n{options}\nAnswer:", "{text}\nThe word {target_token}:\n{options}\nIt is"),
}
MAX_CHARACTERS = 50  # of a text: the options must fit into 64 positions as well
MODELS = [SHARED / "models" / name / "safetensors" for name in ("gpt2-4l128-shakespeare", "gpt2-4l128-presidenttweets")]


class Part(NamedTuple):
    """Scores of one part of a task: gradients [row, label, neuron], activations [row, neuron], the model's own answers."""

    questions: Questions
    gradients: np.ndarray
    activations: np.ndarray
    own: np.ndarray
    n_too_long: int

    @property
    def truth(self) -> np.ndarray:
        return self.questions.truth


def part_of(model: Any, tokenizer: Any, questions: Questions, template: str) -> Part:
    encoded = tokenizer.encode(questions.prompts(template, MAX_CHARACTERS))
    short = questions.only([row for row, was_cut in enumerate(encoded.truncated) if not was_cut])
    gradients = sn.analyses.neuron_gradients(model, tokenizer, short.prompts(template, MAX_CHARACTERS), short.targets)
    own = gradients.output.argmax(1)
    return Part(short, skill_scores(gradients), activation_scores(gradients), own, len(questions) - len(short))


def task_of(model: Any, tokenizer: Any, task: str, template: str) -> tuple[Part, Part, LeakReport]:
    """Train and test of a task, with the test rows that leak taken out, and the report of the leaks."""
    folder, settings = TASKS[task]
    train, test = (
        sn.analyses.read_questions(DATA / "mceval8k_sample" / folder / f"{p}.json", **settings) for p in ("train", "test")
    )
    report = sn.analyses.leaks(train, test)
    parts = [train.shuffled(0), test.only(report.clean).shuffled(1)]
    fitted, scored = (part_of(model, tokenizer, questions, template) for questions in parts)
    return fitted, scored, report


def accuracy(model: Any, tokenizer: Any) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for task in TASKS:
        train, test, report = task_of(model, tokenizer, task, TEMPLATES[task][0])
        print(f"{task}: {report}; too long: {train.n_too_long} of train, {test.n_too_long} of test", flush=True)
        n_options = len(test.questions.letters)
        scores = {"chance": 1 / n_options, "model's own answer": float(np.mean(test.own == test.truth))}
        for probe in (PolarityProbe(), MagnitudeProbe(), ForestProbe()):
            scores[type(probe).__name__] = probe.fit(train.gradients, train.truth).score(test.gradients, test.truth)
        probe = ActivationProbe().fit(train.activations, train.truth)
        scores["ActivationProbe"] = probe.score(test.activations, test.truth)
        noise = 2 * np.sqrt(1 / n_options * (1 - 1 / n_options) / len(test.truth))
        at_chance = [name for name, score in scores.items() if abs(score - 1 / n_options) <= noise and name != "chance"]
        print(f"  {len(train.truth)} train and {len(test.truth)} test rows")
        print("  " + ", ".join(f"{name} {score:.3f}" for name, score in scores.items()))
        print(f"  within two standard errors ({noise:.3f}) of chance: {', '.join(at_chance) or 'none'}")
        if report.majority > 1 / n_options:
            print(f"  one answer is right in {report.majority:.0%} of test: a probe need only find where its text stands")
        results[task] = scores | {"test_rows": len(test.truth), "two_standard_errors": noise, "majority": report.majority}
    return results


def experiment(name: str, task: str, model: Any, tokenizer: Any) -> dict[str, Any]:
    results: dict[str, Any] = {}
    parts = [task_of(model, tokenizer, task, template)[:2] for template in TEMPLATES[task]]
    ((train, test), _) = parts
    for probe in (PolarityProbe(), MagnitudeProbe(), ForestProbe()):
        pair = (train.gradients, train.truth), (test.gradients, test.truth)
        run = {
            "few-shot": partial(sn.analyses.few_shot_curve, probe, *pair),
            "efficiency": partial(sn.analyses.efficiency_curve, probe, *pair),
            "flexibility": partial(sn.analyses.flexibility_curve, probe, *pair),
            "interdependency": partial(sn.analyses.interdependency_curve, probe, *pair),
            "robustness": partial(
                sn.analyses.transfer_matrix,
                probe,
                *({f"prompt {i}": (two[p].gradients, two[p].truth) for i, two in enumerate(parts)} for p in (0, 1)),
            ),
        }[name]
        table = run().to_table()
        print(f"{type(probe).__name__}\n{table.to_pandas().round(3).to_string(index=False)}", flush=True)
        results[type(probe).__name__] = table.to_pydict()
    return results


def main() -> None:
    arguments: argparse.ArgumentParser = parser(__doc__)
    words = ["accuracy", "few-shot", "efficiency", "robustness", "flexibility", "interdependency"]
    arguments.add_argument("what", choices=words)
    arguments.add_argument("models", nargs="*", type=Path)
    arguments.add_argument("--task", choices=list(TASKS), default="postag")
    given = arguments.parse_args()
    where, results = environment(), {}
    for folder in given.models or MODELS:
        model, tokenizer = sn.load_model(str(folder), head=True, prepack="kernels"), sn.load_tokenizer(str(folder))
        print(f"\n{folder}", flush=True)
        is_accuracy = given.what == "accuracy"
        results[str(folder)] = (
            accuracy(model, tokenizer) if is_accuracy else experiment(given.what, given.task, model, tokenizer)
        )
    print_json(where, results)


if __name__ == "__main__":
    main()
