"Evaluation: scores of K classes, temperature, calibration error, counts, and what is recorded of a run."
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import f1_score, precision_score, recall_score
from sklearn.svm import LinearSVC
from torchmetrics.functional.classification import multiclass_calibration_error

from course_lib.core import CourseError, models
from course_lib.data import SINGLE, load
from course_lib.evaluation import (class_scores, decision_scores, evaluate, predicted, record_runs, recorded,
                                   reliability, temperature, train_and_evaluate)


@pytest.fixture(scope="module")
def streets():
    return load("streets?n=25&valid=5&test=25")


def drawn(n=20_000, classes=4, seed=0):
    "Scores [n, classes], and labels drawn from their softmax: they are calibrated."
    rng = np.random.default_rng(seed)
    honest = rng.normal(0, 2, (n, classes))
    return honest, (softmax(honest, axis=1).cumsum(1) > rng.random((n, 1))).argmax(1)


# ---- scores

@pytest.mark.parametrize("model", [LinearSVC(), RandomForestClassifier(5, random_state=0)])
def test_a_class_that_was_never_seen_gets_the_lowest_score(model):
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 2, 4], 20)
    X = rng.normal(size=(60, 5)) + 4 * np.eye(5)[labels]
    found = decision_scores(model.fit(X, labels), X, 5)
    assert found.shape == (60, 5) and np.isfinite(found).all()
    assert np.array_equal(found.argmax(1), model.predict(X))
    assert (found[:, [1, 3]] == found.min()).all()


def test_no_images_have_no_scores():
    model = LinearSVC().fit(np.eye(3), [0, 1, 2])
    model.decision_function = lambda X: np.zeros((0, 3))  # scikit-learn refuses an empty array by itself
    assert decision_scores(model, np.zeros((0, 3)), 4).shape == (0, 4)


# ---- calibration

@pytest.mark.parametrize("factor", [0.1, 1.0, 8.0])
def test_temperature_calibrates_and_keeps_the_ranking(factor):
    honest, targets = drawn()
    T = temperature(honest[:10_000] * factor, targets[:10_000])
    assert abs(T / factor - 1) < 0.05
    P = softmax(honest[10_000:] * factor / T, axis=1)
    assert reliability(P, targets[10_000:])["ece"] < 0.02
    assert np.array_equal(P.argmax(1), honest[10_000:].argmax(1))


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
@pytest.mark.parametrize("bins", [5, 10, 15])
def test_calibration_error_is_that_of_torchmetrics(factor, bins):
    honest, targets = drawn(5000)
    P = softmax(honest * factor, axis=1)
    theirs = multiclass_calibration_error(torch.from_numpy(P), torch.from_numpy(targets), 4, n_bins=bins)
    found = reliability(P, targets, bins)
    assert abs(found["ece"] - theirs.item()) < 1e-4
    assert found["count"].shape == (bins,) and found["count"].sum() == 5000


def test_calibration_error_of_the_sure():
    sure = np.eye(4)
    assert reliability(sure, [0, 1, 2, 3])["ece"] == 0
    assert reliability(sure, [1, 2, 3, 0])["ece"] == 1
    found = reliability(np.array([[0.75, 0.25], [0.75, 0.25]]), [0, 1], bins=4)
    assert found["ece"] == 0.25 and found["accuracy"][3] == 0.5 and found["count"].tolist() == [0, 0, 0, 2]


# ---- counts

@pytest.mark.parametrize("K", [2, 5])
def test_class_scores_are_those_of_scikit_learn(K):
    rng = np.random.default_rng(K)
    truth, guess = rng.integers(K, size=200), rng.integers(K, size=200)
    found = class_scores(truth, guess, [f"c{k}" for k in range(K)])
    for name, function in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
        expected = function(truth, guess, average=None)
        np.testing.assert_allclose([row[name] for row in found["per_class"].values()], expected)
        assert found[name] == pytest.approx(expected.mean())
    assert [row["images"] for row in found["per_class"].values()] == np.bincount(truth).tolist()


def test_a_class_without_images_is_not_measured():
    truth, guess = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    found = class_scores(truth, guess, ["a", "b", "c"])
    assert found["per_class"]["b"] == dict(precision=None, recall=None, f1=None, images=0)
    assert found["recall"] == 0.75 and found["precision"] == 1  # of a and c; taken as 0, b would cost a third


class AlwaysBus:
    "Says `bus` with full confidence."
    size, task = 32, SINGLE

    def __init__(self, classes=("bicycle", "bus")): self.classes, self.about = classes, dict(weights=7)

    def predict_proba(self, images):
        assert images.dtype == np.uint8 and images.shape[1:] == (32, 32, 3)
        return np.eye(len(self.classes))[[self.classes.index("bus")] * len(images)]


def test_evaluate_counts_right(streets):
    found = evaluate(AlwaysBus(streets.classes), streets.test, batch_size=7)
    assert found["accuracy"] == found["recall"] == 0.2 and found["images"] == 25
    column = np.sum(found["confusion"], axis=0)
    assert column[streets.classes.index("bus")] == column.sum() == 25
    assert found["per_class"]["bus"] == dict(precision=0.2, recall=1.0, f1=pytest.approx(1 / 3), images=5)
    assert found["per_class"]["car"] == dict(precision=0.0, recall=0.0, f1=0.0, images=5)
    json.dumps(found)


def test_predicted_keeps_the_order_whatever_the_batch(streets):
    class Mean(AlwaysBus):
        def predict_proba(self, images): return images.mean((1, 2))

    whole, seconds = predicted(Mean(), streets.test)
    np.testing.assert_array_equal(predicted(Mean(), streets.test, batch_size=4)[0], whole)
    assert whole.shape == (25, 3) and len(np.unique(whole, axis=0)) == 25 and seconds >= 0


def test_refuses_with_the_reason(streets):
    for task, says in (("multi-label", "chapter 10"), ("detection", "chapter 15"), ("poetry", "chapter 01")):
        with pytest.raises(CourseError, match=says): evaluate(None, replace(streets.test, task=task))
    with pytest.raises(CourseError, match="this split is empty"): evaluate(None, streets.valid.subset([]))


# ---- records

@pytest.fixture
def bus():
    "A model of this name in the registry, for one test."
    @models.register("always-bus")
    def always_bus(splits, seed=0, effort=1, input_size=32): return AlwaysBus(splits.classes)

    yield "always-bus"
    del models["always-bus"]


def test_train_and_evaluate_says_what_was_done(bus, streets):
    found = train_and_evaluate(streets, bus, effort=3)
    assert (found["model"], found["test_accuracy"]) == (bus, 0.2) and found["data"].startswith("streets")
    assert found["images"] == dict(train=25, valid=5, test=25) and found["about"] == dict(weights=7)
    assert {"train_seconds", "train_cpu_seconds", "images_per_second", "memory_mb", "cores", "versions"} <= set(found)
    json.dumps(found)


def test_runs_of_a_seed_are_replaced_and_of_other_models_kept(bus, tmp_path):
    path = tmp_path / "new" / "r.json"
    for seeds in ((0, 1), (1, 2)): runs = record_runs("streets?n=10", path, bus, seeds=seeds)
    assert [run["seed"] for run in runs] == [0, 1, 2] and all(run["options"] == {} for run in runs)
    file = json.loads(path.read_text())
    file["runs"].append(runs[0] | dict(model="other", test_accuracy=0.9, train_seconds=5.0))
    path.write_text(json.dumps(file))
    found = recorded(path)
    assert found[bus] | dict(seconds=0) == dict(accuracy=pytest.approx(0.2), n=3, sd=pytest.approx(0), seconds=0,
                                                weights=7, options={})
    assert (found["other"]["n"], found["other"]["sd"], found["other"]["seconds"]) == (1, 0, 5.0)
    record_runs("streets?n=10", path, bus, seeds=(3,), effort=2)
    with pytest.raises(CourseError, match="different options"): recorded(path)


def test_looks_at_the_test_images_are_kept_and_never_fall(bus, tmp_path):
    path = tmp_path / "r.json"
    def looks(**more): return [(run["looks"], run["chosen_after_look"]) for run in record_runs("streets?n=10", path, bus, **more)]
    assert looks(seeds=(0, 1)) == looks(seeds=(0, 1)) == [(1, "")] * 2          # the same again decides nothing
    assert looks(seeds=(0, 1), looks=3, chosen_after_look="the form") == [(3, "the form")] * 2
    assert looks(seeds=(0, 1)) == [(3, "the form")] * 2
    assert looks(seeds=(0, 1), effort=2) == [(4, "the form")] * 2               # another version
    file = json.loads(path.read_text())
    for run in file["runs"]: del run["looks"], run["chosen_after_look"]         # as records were before
    path.write_text(json.dumps(file))
    assert looks(seeds=(0, 1), effort=2) == [(1, "")] * 2
