"""What labels mean, by hand: classes and values checked, encoded, answered, shown and scored."""

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

import spin_native as sn
from spin_native.classifier.tasks import TASKS, Classes, LabelSets, Values
from spin_native.classifier.tasks.classes import hidden_classes

TWO = np.array([[0.9, 0.1], [0.25, 0.75], [0.4, 0.6]])
NUMBERS = np.array([[1.5], [-2.0], [0.25]])


@pytest.fixture
def classes():
    return Classes.learn(["yes", "no", "yes"], 3, "training rows")


def test_every_task_is_listed_under_its_name():
    assert {"classification": Classes, "multilabel": LabelSets, "regression": Values} == TASKS
    assert list(Classes.metrics) == ["accuracy", "macro_f1"]
    assert list(Values.metrics) == ["pearson", "spearman", "mse", "mae"]


def test_classes_are_sorted_and_labels_are_their_places(classes):
    assert classes.classes.tolist() == ["no", "yes"]
    assert classes.encode(["yes", "yes", "no"], 3, "rows").tolist() == [1, 1, 0]
    assert Classes.learn(np.array([3, 1, 2]), 3, "rows").encode([1, 3], 2, "rows").tolist() == [0, 2]
    assert Classes.from_json(classes.to_json()).classes.tolist() == ["no", "yes"]


def test_what_a_classification_answers_prints_and_adds_to_a_table(classes):
    columns = classes.columns(TWO)
    assert {name: column.tolist() for name, column in columns.items()} == {
        "predicted_label": ["no", "yes", "yes"],
        "probability_no": [0.9, 0.25, 0.4],
        "probability_yes": [0.1, 0.75, 0.6],
    }
    assert classes.described(TWO[0]) == {"label": "no", "probabilities": {"no": 0.9, "yes": 0.1}}
    assert classes.shown(TWO[1]) == "yes\t0.7500"
    assert classes.output_names == ["yes"]
    assert Classes(np.array([0, 1, 2])).output_names == ["0", "1", "2"]


def test_a_classification_is_evaluated_by_hand(classes):
    result = classes.evaluate(TWO, ["no", "no", "yes"], "data.csv")
    f1 = (2 / 3 + 2 / 3) / 2  # of each class: one right, one row too many or too few
    expected = {"confusion": [[1, 1], [0, 1]], "labels": ["no", "yes"], "rows": 3}
    assert result.pop("ece") == pytest.approx(((1 - 0.9) + 0.75 + (1 - 0.6)) / 3)  # each row is alone in its bin
    assert result.pop("log_loss") == pytest.approx(-np.log([0.9, 0.25, 0.6]).mean())
    assert [(row["n"], row["confidence"], row["accuracy"]) for row in result.pop("reliability")] == [
        (1, 0.6, 1.0),
        (1, 0.75, 0.0),
        (1, 0.9, 1.0),
    ]
    assert result == {"accuracy": pytest.approx(2 / 3), "macro_f1": pytest.approx(f1), **expected}
    with pytest.raises(sn.InputError, match=r"data.csv: row 1 has the label 'maybe'; known are 'no', 'yes'"):
        classes.evaluate(TWO, ["no", "maybe", "yes"], "data.csv")
    with pytest.raises(sn.InputError, match=r"data.csv: 3 texts but 2 labels"):
        classes.evaluate(TWO, ["no", "yes"], "data.csv")


def test_a_class_with_ten_rows_that_is_nearly_never_recognised_is_hidden():
    truth = np.repeat([0, 1, 2, 3], [900, 40, 9, 20])
    predicted = np.zeros_like(truth)
    predicted[900:902] = 1  # 2 of 40 rows: .05
    predicted[-2:] = 3  # 2 of 20 rows: .10
    predicted[:30] = 3  # wrong answers do not count
    assert hidden_classes(truth, predicted, 5) == [(1, 40, 2)]  # class 2 has 9 rows, class 4 none
    predicted[902] = 1
    assert hidden_classes(truth, predicted, 5) == []


def test_a_class_that_is_answered_in_the_wrong_rows_only_is_hidden():
    truth, predicted = np.repeat([0, 1], [50, 10]), np.repeat([1, 0], [10, 50])
    assert hidden_classes(truth, predicted, 2) == [(1, 10, 0)]


def test_no_class_is_hidden_where_all_rows_are_right():
    truth = np.repeat([0, 1, 2], 30)
    assert hidden_classes(truth, truth, 3) == []


def test_what_accuracy_does_not_say_is_calculated_by_hand(classes):
    truth, predicted = np.repeat([0, 1], [90, 10]), np.zeros(100, dtype=int)
    assert classes.beside_accuracy(truth, predicted) == {
        "majority_share": 0.9,
        "macro_f1": pytest.approx((2 * 90 / (2 * 90 + 10)) / 2),  # of "yes" it is 0
        "hidden_classes": [{"label": "yes", "rows": 10, "recognised": 0}],
    }
    (warning,) = classes.hidden_class_warnings(truth, predicted, "validation rows")
    assert warning.startswith("class 'yes' is recognised in 0 of its 10 validation rows, which the accuracy of 0.9000 hides")
    assert classes.hidden_class_warnings(truth, truth, "validation rows") == []


def test_a_regression_hides_no_class():
    numbers = np.arange(20.0)
    assert Values().beside_accuracy(numbers, numbers) == {}
    assert Values().hidden_class_warnings(numbers, numbers, "validation rows") == []


def test_what_a_regression_answers_prints_and_scores():
    values = Values.learn([1, 2.5, 3, 4], 4, "training rows")
    assert values.columns(NUMBERS)["predicted_value"].tolist() == [1.5, -2.0, 0.25]
    assert values.described(NUMBERS[1]) == {"value": -2.0}
    assert values.shown(NUMBERS[2]) == "0.2500"
    assert values.output_names == ["value"]
    truth = [1.0, -1.0, 1.0]
    assert values.evaluate(NUMBERS, truth, "data.csv") == {
        "pearson": pytest.approx(pearsonr(truth, NUMBERS[:, 0])[0]),
        "spearman": pytest.approx(spearmanr(truth, NUMBERS[:, 0])[0]),
        "mse": pytest.approx((0.5**2 + 1 + 0.75**2) / 3),
        "mae": pytest.approx((0.5 + 1 + 0.75) / 3),
        "rows": 3,
    }


def test_less_is_better_for_errors_only():
    assert [Values.worth(metric, 0.5) for metric in Values.metrics] == [0.5, 0.5, -0.5, -0.5]
    assert [Classes.worth(metric, 0.5) for metric in Classes.metrics] == [0.5, 0.5]


def test_a_score_that_speaks_for_the_second_class_is_explained_with_the_sign_of_the_answer(classes):
    assert classes.explained(TWO[0]) == (0, -1)
    assert classes.explained(TWO[1]) == (0, 1)
    assert Classes(np.array([0, 1, 2])).explained(np.array([0.2, 0.5, 0.3])) == (1, 1)
    assert Values().explained(NUMBERS[0]) == (0, 1)


def test_a_share_may_be_any_number(unchecked):
    labels = np.tile([0, 1], 20)
    whole = Classes(np.array(["a", "b"])).split(labels, 0.25, 0)
    assert [part.tolist() for part in Classes(np.array(["a", "b"])).split(labels, np.float32(0.25), 0)] == [
        part.tolist() for part in whole
    ]


def test_classes_past_63_bits_stay_whole_beside_small_ones():
    task = Classes.learn([2**63, 1] * 4, 8, "rows")
    assert task.classes.tolist() == [1, 2**63]
    assert task.encode([2**63, 1], 2, "rows").tolist() == [1, 0]
