"""Skill probes on hand-made gradients, their experiments, and multiple-choice questions with leaks."""

import json

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

import spin_native as sn
from spin_native.analyses import ActivationProbe, ForestProbe, MagnitudeProbe, PolarityProbe
from spin_native.analyses.gradient_experiments import balanced

# Four rows, two labels, three neurons. Neuron 0: positive for the true label, negative for the other. Neuron 1: the reverse in
# three rows of four. Neuron 2: positive always, and larger for the true label in three rows of four.
TRUTH = np.array([0, 1, 0, 1])
TRUE_GRADIENTS = np.array([[1, -1, 5], [2, -1, 5], [1, -3, 5], [1, 1, 1.0]])
OTHER_GRADIENTS = np.array([[-1, 1, 2], [-1, 1, 2], [-9, 1, 2], [-1, -1, 2.0]])


def hand_made():
    scores = np.empty((4, 2, 3))
    for row, label in enumerate(TRUTH):
        scores[row, label], scores[row, 1 - label] = TRUE_GRADIENTS[row], OTHER_GRADIENTS[row]
    return scores


def planted(n_rows, seed, n_labels=3, n_neurons=60):
    """Noise, but neurons 7, 8 and 9 have a larger gradient for the true label, and 11 and 12 a smaller one."""
    generator = np.random.default_rng(seed)
    truth = np.arange(n_rows) % n_labels
    scores = generator.normal(size=(n_rows, n_labels, n_neurons)).astype(np.float32)
    scores[np.arange(n_rows), truth, 7:10] += 2.5
    scores[np.arange(n_rows), truth, 11:13] -= 2.5
    return scores, truth


def test_the_polarity_probe_equals_a_hand_calculation():
    """Neuron 0: 4 times 1 - (-1). Neuron 1: three times -2, once 2. Neuron 2: nothing."""
    probe = PolarityProbe(n_neurons=2).fit(hand_made(), TRUTH)
    assert probe.importance_.tolist() == [8, 4, 0]
    assert probe.polarity_.tolist() == [1, -1, 0]
    assert probe.neurons_.tolist() == [0, 1]
    # Label sums: (-1, -1) gives -1 + 1 = 0 and (1, -1) gives 1 + 1 = 2.
    assert probe.predict(np.array([[[-1.0, -1, 9], [1, -1, -9]]])).tolist() == [1]
    assert probe.predict(hand_made()).tolist() == [0, 1, 0, 0]  # in row 3 neuron 1 cancels neuron 0: a tie
    assert probe.score(hand_made(), TRUTH) == 0.75


def test_the_magnitude_probe_equals_a_hand_calculation():
    probe = MagnitudeProbe(n_neurons=3).fit(hand_made(), TRUTH)
    assert probe.importance_.tolist() == [1, 0.25, 0.75]
    assert probe.ranking_.tolist() == [0, 2, 1]
    # The largest gradients of neurons 0, 2 and 1 are those of labels 0, 1 and 1.
    assert probe.predict(np.array([[[3.0, 1, 1], [2, 2, 2]]])).tolist() == [1]
    assert MagnitudeProbe(n_neurons=1).fit(hand_made(), TRUTH).score(hand_made(), TRUTH) == 1


def test_equal_gradients_count_one_half():
    scores = np.ones((2, 2, 1))
    assert MagnitudeProbe(1).fit(scores, np.array([0, 1])).importance_.tolist() == [0.5]


@pytest.mark.parametrize("probe", [PolarityProbe(5), MagnitudeProbe(3), ForestProbe(5)])
def test_planted_neurons_are_ranked_first_and_predict_held_out_rows(probe):
    train, test = planted(150, 0), planted(150, 1)
    probe.fit(*train)
    expected = {7, 8, 9} if isinstance(probe, MagnitudeProbe) else {7, 8, 9, 11, 12}
    assert set(probe.neurons_.tolist()) == expected
    assert probe.score(*test) > 0.85


def test_the_forest_is_scikit_learns_on_comparisons_of_every_pair():
    scores, truth = planted(80, 2)
    probe = ForestProbe(n_neurons=60, n_trees=10, seed=3).fit(scores, truth)
    columns = probe.neurons_
    compared = np.concatenate([np.sign(scores[:, i] - scores[:, j])[:, columns] for i, j in ((0, 1), (0, 2), (1, 2))], axis=1)
    expected = RandomForestClassifier(10, random_state=3).fit(compared.astype(np.float32), truth)
    np.testing.assert_array_equal(probe.predict(scores), expected.predict(compared.astype(np.float32)))


def test_the_activation_probe_reads_activations():
    generator = np.random.default_rng(0)
    truth = np.arange(100) % 2
    activations = generator.normal(size=(100, 30)).astype(np.float32)
    activations[:, 4] += 3 * truth
    probe = ActivationProbe(n_neurons=2, C=1.0).fit(activations[:60], truth[:60])
    assert probe.ranking_[0] == 4
    assert probe.score(activations[60:], truth[60:]) > 0.85


def test_scores_have_one_column_per_neuron_of_every_layer():
    gradient = np.arange(2 * 3 * 2 * 5.0).reshape(2, 3, 2, 5)
    axes = {"row": np.arange(2), "label": np.arange(3), "layer": np.array([1, 4]), "neuron": np.arange(5)}
    result = sn.analyses.NeuronGradients(axes, {"gradient": gradient, "activation": -gradient}, {}, np.zeros((2, 3)))
    assert sn.analyses.skill_scores(result)[1, 2, 7] == gradient[1, 2, 1, 2]
    assert sn.analyses.activation_scores(result)[1, 7] == -gradient[1, 0, 1, 2]


@pytest.mark.parametrize(
    ("truth", "message"),
    [([1, 1, 1, 1], "one class, 1"), ([0, 1, 2, 0], "a label from 0 to 1"), ([0, 1], "for each of 4 rows")],
)
def test_labels_that_cannot_be_learnt_are_refused(truth, message):
    with pytest.raises(sn.InputError, match=message):
        PolarityProbe().fit(hand_made(), truth)


# Experiments.


def test_balanced_rows_have_every_class_equally_often():
    truth = np.array([0] * 50 + [1] * 5 + [2] * 20)
    chosen = balanced(truth, 12, seed=1)
    assert np.bincount(truth[chosen]).tolist() == [4, 4, 4]
    assert len(set(chosen.tolist())) == 12
    assert np.bincount(truth[balanced(truth, 25, seed=1)]).tolist() == [10, 5, 10]


def test_the_experiments_show_planted_skill():
    train, test = planted(150, 0), planted(150, 1)
    few = sn.analyses.few_shot_curve(MagnitudeProbe(3), train, test, shots=(3, 150), seeds=(0, 1))
    assert few.shape == (2, 2)
    assert few["accuracy"][1].min() > 0.85
    assert few.to_table().column_names == ["shots", "seed", "accuracy"]
    efficiency = sn.analyses.efficiency_curve(MagnitudeProbe(), train, test, n_neurons=(1, 3, 60))
    assert efficiency["accuracy"].argmax() == 1
    flexibility = sn.analyses.flexibility_curve(MagnitudeProbe(3), train, test, n_groups=3)
    assert flexibility["accuracy"][0] > 0.85
    assert flexibility["accuracy"][1:].max() < 0.55
    together = sn.analyses.interdependency_curve(MagnitudeProbe(), train, test, n_neurons=(3,))
    assert together["together"][0] > together["best_alone"][0] >= together["mean_alone"][0]


def test_a_skill_transfers_to_another_prompt_and_not_to_noise():
    noise = np.random.default_rng(5).normal(size=(150, 3, 60)), np.arange(150) % 3
    prompts = {"one": planted(150, 0), "two": planted(150, 1), "noise": noise}
    matrix = sn.analyses.transfer_matrix(MagnitudeProbe(3), prompts, prompts)
    assert matrix["accuracy"][0, 1] > 0.85
    assert matrix["accuracy"][0, 2] < 0.5
    assert matrix.axes["scored_on"].tolist() == ["one", "two", "noise"]


def test_too_many_shots_or_groups_are_refused():
    rows = planted(20, 0)
    with pytest.raises(sn.InputError, match="shots go up to 30, but there are 20 training rows"):
        sn.analyses.few_shot_curve(PolarityProbe(3), rows, rows, shots=(30,))
    with pytest.raises(sn.InputError, match=r"10 groups of 10 neurons: expected .* at most 60"):
        sn.analyses.flexibility_curve(PolarityProbe(10), rows, rows, n_groups=10)


# Multiple choice.


def questions(tmp_path, rows, name="questions.json", **options):
    (tmp_path / name).write_text(json.dumps(rows))
    return sn.analyses.read_questions(tmp_path / name, **options)


ROWS = [
    {"text": "Two and two?", "options": ["four", "five"], "label": 0},
    {"text": "Sky?", "options": ["green", "blue"], "label": 1},
]


def test_questions_become_prompts_with_letters(tmp_path):
    read = questions(tmp_path, ROWS)
    assert read.prompts() == ["Two and two?\nA. four\nB. five\nAnswer:", "Sky?\nA. green\nB. blue\nAnswer:"]
    assert read.prompts("{text}: {label}", max_characters=3) == ["Two: 0", "Sky: 1"]
    assert read.targets == [["A", "B"], ["A", "B"]]
    assert read.truth.tolist() == [0, 1]
    with pytest.raises(sn.InputError, match="question 0 has no field 'word'; it has text, options, label"):
        read.prompts("{word}")


def test_shuffled_options_keep_their_answer(tmp_path):
    read = questions(tmp_path, [{"text": str(i), "options": ["yes", "no", "maybe"], "label": 0} for i in range(60)])
    shuffled = read.shuffled(seed=0)
    assert {question.answer for question in shuffled.questions} == {"yes"}
    assert np.bincount(shuffled.truth).min() > 10


def test_options_may_be_the_classes_of_the_task(tmp_path):
    read = questions(tmp_path, [{"text": "hi", "toxic": 1}], label="toxic", options=["kind", "rude"])
    assert read.questions[0].answer == "rude"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 0}, "question 1 has no options"),
        ({"text": "a", "options": ["b", "c"], "label": 2}, "question 1 has 'label' 2; expected 0 to 1"),
        ({"options": ["b", "c"], "label": 0}, "question 1 has no text"),
        ({"text": "a", "options": ["b", "c", "d"], "label": 0}, "question 1 has 3 options, question 0 has 2"),
    ],
)
def test_what_is_no_question_is_refused(tmp_path, row, message):
    with pytest.raises(sn.InputError, match=message):
        questions(tmp_path, [ROWS[0], row])


def test_leaks_are_reported_whatever_the_spelling_and_the_order_of_options(tmp_path):
    train = questions(tmp_path, ROWS)
    test = questions(
        tmp_path,
        [
            {"text": "two  AND two?", "options": ["five", "Four"], "label": 1},  # the same question and answer
            {"text": "Sky?", "options": ["green", "blue"], "label": 0},  # another answer
            {"text": "Sky?", "options": ["red", "blue"], "label": 1},  # other options
            {"text": "Grass?", "options": ["green", "four"], "label": 1},
            {"text": "grass?", "options": ["four", "green"], "label": 1},  # repeated
        ],
    )
    report = sn.analyses.leaks(train, test)
    assert report.same_text == [0, 1, 2]
    assert report.same_question == [0, 1]
    assert report.answered == [0]
    assert report.contradicted == [1]
    assert report.repeated == [4]
    assert report.clean == [3]
    assert report.majority == 0.4  # "four" is the answer of rows 0 and 3
    assert str(report).startswith("5 test and 2 training questions: same_text 3, same_question 2, answered 1")
