"Shallow models: the solver, the kernel, the patches, what is chosen, and what may not leak."
import logging
import zipfile
from dataclasses import replace
from hashlib import sha1
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from course_lib import patches, shallow
from course_lib.core import CourseError
from course_lib.data import SINGLE, Images, Splits, decode, load, pixels
from course_lib.evaluation import evaluate
from course_lib.patches import PatchDictionary, contrast_normalized, whitening
from course_lib.pipelines import Shallow
from course_lib.shallow import Landmarks, LinearSVM, forest, svm

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
CHANCE = 1 / 5


@pytest.fixture(scope="module")
def streets():
    return load("streets?n=250")


@pytest.fixture(scope="module")
def images(streets):
    return np.array(pixels(streets.test, 32))[:40]


def table(n=300, d=12, classes=3, seed=0):
    X, y = make_classification(n, d, n_informative=6, n_classes=classes, class_sep=0.7, random_state=seed)
    return StandardScaler().fit_transform(X).astype(np.float32), y


# ---- parity

@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("C", [0.01, 1.0])
def test_linear_svm_is_linear_svc(C, classes):
    X, y = table(classes=classes)
    mine = LinearSVM(C, iterations=2000, tolerance=1e-7).fit(X, y)
    theirs = LinearSVC(C=C, tol=1e-9, max_iter=1_000_000).fit(X, y)
    own = slice(1, 2) if classes == 2 else slice(None)  # for two classes scikit-learn keeps the second score only
    np.testing.assert_allclose(mine.coef_[own], theirs.coef_, atol=2e-4)
    np.testing.assert_allclose(mine.intercept_[own], theirs.intercept_, atol=2e-4)
    assert np.array_equal(mine.predict(X), theirs.predict(X))


def test_linear_svm_keeps_strange_labels_and_refuses_a_single_one():
    X, y = table()
    names = np.array(["ant", "bee", "cat"])[y]
    assert set(LinearSVM().fit(X, names).predict(X)) <= {"ant", "bee", "cat"}
    with pytest.raises(CourseError, match="only one class"): LinearSVM().fit(X, np.zeros(len(X)))


def test_landmarks_are_the_kernel_when_all_and_near_it_when_many():
    X, _ = table()
    kernel = rbf_kernel(X, gamma=0.05)
    errors = []
    for count in (20, 100, 300):
        phi = Landmarks(0.05, count).fit(X).transform(X)
        assert phi.shape == (300, count)
        errors.append(abs(phi @ phi.T - kernel).mean())
    assert errors[0] > errors[1] > errors[2] and errors[2] < 1e-5
    twice = np.concatenate([X, X])
    phi = Landmarks(0.05).fit(twice).transform(X)
    np.testing.assert_allclose(phi @ phi.T, kernel, atol=1e-3)


def test_rbf_machine_is_about_as_right_as_svc():
    X, y = table(900)
    ours = make_pipeline(Landmarks(0.05), LinearSVM(4.0)).fit(X[:600], y[:600]).score(X[600:], y[600:])
    theirs = SVC(C=4.0, gamma=0.05).fit(X[:600], y[:600]).score(X[600:], y[600:])
    assert abs(ours - theirs) < 0.05 and ours > 0.6


def test_half_precision_changes_little(monkeypatch):
    X, y = table(2000, 40)
    exact = LinearSVM(0.01).fit(X, y)
    monkeypatch.setattr(shallow, "fast_type", lambda numbers=0: torch.bfloat16)
    half = LinearSVM(0.01).fit(X, y)
    assert (exact.predict(X) == half.predict(X)).mean() > 0.98


# ---- patches

def test_whitened_patches_are_uncorrelated():
    rng = np.random.default_rng(0)
    mixed = torch.from_numpy(rng.normal(0, 40, (5000, 27)) @ rng.normal(0, 1, (27, 27))).float().reshape(-1, 3, 3, 3)
    flat = contrast_normalized(mixed)
    assert flat.shape == (5000, 27) and abs(flat.mean(1)).max() < 1e-4
    matrix, offset = whitening(flat, 5)
    white = flat @ matrix + offset
    assert white.shape == (5000, 5) and abs(white.mean(0)).max() < 1e-4
    covariance = np.cov(white.T.numpy())
    assert np.allclose(covariance, np.diag(np.diag(covariance)), atol=1e-3) and (np.diag(covariance) <= 1.001).all()


def test_patches_do_not_see_mirrors_and_agree_with_a_loop(images, monkeypatch):
    monkeypatch.setattr(patches, "fast_type", lambda numbers=0: torch.float32)
    dictionary = PatchDictionary(atoms=20).fit(images)
    found = dictionary.transform(images[:6])                                      # [6, 180]
    np.testing.assert_allclose(dictionary.transform(images[:6, :, ::-1]), found, atol=1e-3)
    whiten = dictionary.filters_.reshape(dictionary.keep, -1).T                   # [108, keep]
    similar = np.zeros((27, 27, 20))
    for top, left in np.ndindex(27, 27):
        patch = images[0, top:top + 6, left:left + 6].astype(float).transpose(2, 0, 1).ravel()
        patch = (patch - patch.mean()) / np.sqrt(patch.var() + 10)
        white = patch @ whiten + dictionary.offset_
        similar[top, left] = white / (np.linalg.norm(white) + 0.1) @ dictionary.atoms_
    for sign in (0, 1):
        above = np.maximum((-1)**sign * similar - dictionary.threshold, 0)
        parts = above.reshape(3, 9, 3, 9, 20).mean((1, 3)).transpose(2, 0, 1)     # [20, 3, 3]
        both = np.sqrt(parts[:10] + parts[10:, :, ::-1])
        np.testing.assert_allclose(found[0].reshape(2, 10, 3, 3)[sign], both, atol=2e-3)


def test_patches_in_half_precision_are_nearly_the_same(images, monkeypatch):
    dictionary = PatchDictionary(atoms=20).fit(images)
    found = {}
    for kind in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(patches, "fast_type", lambda numbers=0, kind=kind: kind)
        found[kind] = dictionary.transform(images)
    difference = found[torch.float32] - found[torch.bfloat16]
    assert abs(difference).mean() < 0.02 * found[torch.float32].mean()


def test_patches_do_not_depend_on_threads_and_refuse_other_sizes(images):
    dictionary, before = PatchDictionary(atoms=20).fit(images), torch.get_num_threads()
    try:
        found = []
        for n in (1, 2):
            torch.set_num_threads(n)
            found.append(dictionary.transform(images))
            assert torch.get_num_threads() == n
    finally: torch.set_num_threads(before)
    assert np.array_equal(*found)
    with pytest.raises(CourseError, match="32"): dictionary.transform(images[:, :30])
    with pytest.raises(CourseError, match="too small"): PatchDictionary().fit(images[:, :8, :8])


# ---- learning

@pytest.mark.parametrize("train", [svm, forest])
def test_better_than_chance_on_streets_and_deterministic(train, streets, images):
    options = dict(c=4.0, gamma=1.0) if train is svm else dict(trees=60, leaf=1)
    first, second = (train(streets, input_size=32, **options) for _ in range(2))
    assert evaluate(first, streets.test)["accuracy"] > CHANCE + 0.1
    assert np.array_equal(first.predict_proba(images), second.predict_proba(images))


def test_shuffled_labels_give_chance(streets):
    rng = np.random.default_rng(0)
    mixed = replace(streets, train=replace(streets.train, targets=rng.permutation(streets.train.targets).tolist()),
                    valid=replace(streets.valid, targets=rng.permutation(streets.valid.targets).tolist()))
    score = evaluate(svm(mixed, input_size=32, c=4.0, gamma=1.0), streets.test)
    assert abs(score["accuracy"] - CHANCE) < 5 * np.sqrt(CHANCE * (1 - CHANCE) / len(streets.test))


def test_small_data_takes_the_plan_that_validates_better(streets, images, monkeypatch):
    found = svm(streets, input_size=32, c=1.0, gamma=1.0, atoms=20)
    tried = found.about["tried"]
    assert list(tried) == ["exact rbf on hog,lbp,color", "linear on patches"]
    assert found.about["valid_accuracy"] == max(tried.values()) == tried[found.about["plan"]]
    given = dict(zip(tried, (dict(features="hog,lbp,color", gamma=1.0), dict(features="patches", kernel="linear", atoms=20))))
    alone = {plan: svm(streets, input_size=32, c=1.0, **options) for plan, options in given.items()}
    assert {plan: made.about["valid_accuracy"] for plan, made in alone.items()} == tried
    assert np.array_equal(alone[found.about["plan"]].predict_proba(images), found.predict_proba(images))
    one, other = tried  # whichever wins is taken, the first if they are equal
    for values, best in (((0.5, 0.6), other), ((0.6, 0.5), one), ((0.5, 0.5), one)):
        answers = iter(values)
        def fake(*_, **__): return Shallow(None, streets.classes, 32, about=dict(valid_accuracy=next(answers)))
        monkeypatch.setattr(shallow, "fit_best", fake)
        assert svm(streets).about == dict(valid_accuracy=max(values), plan=best, tried=dict(zip(tried, values)))


@pytest.mark.parametrize("features, kernel, small, plans", [
    ("auto", "auto", True, [("hog,lbp,color", "rbf"), ("patches", "linear")]),
    ("auto", "linear", True, [("hog,lbp,color", "linear"), ("patches", "linear")]),
    ("auto", "auto", False, [("patches,hog,lbp,color", "linear")]),
    ("patches", "auto", True, [("patches", "rbf")]),
    ("hog", "rbf", False, [("hog", "rbf")]),
    ("hog", "auto", False, [("hog", "linear")])])
def test_plans(features, kernel, small, plans):
    assert shallow._plans(features, kernel, small) == plans


def test_large_data_takes_patches_and_a_line(streets, monkeypatch, capsys, caplog):
    monkeypatch.setattr(shallow, "SMALL", 100)
    with caplog.at_level(logging.INFO, "course_lib"):
        found = svm(streets, input_size=32, atoms=20, c=1.0)
        assert "linear on patches,hog,lbp,color" in caplog.text and "trained again on all 300" in caplog.text
        assert isinstance(found.pipeline[-1], LinearSVM) and found.about["trained_on"] == 300
        approximate = svm(streets, input_size=32, features="hog", kernel="rbf", landmarks=50, c=4.0, gamma=1.0)
        assert "rbf by 50 landmarks" in caplog.text
    assert evaluate(approximate, streets.test)["accuracy"] > CHANCE
    assert capsys.readouterr().out == ""  # a library logs, it does not print


def test_a_class_without_training_images_is_never_predicted(streets, images):
    few = replace(streets, train=streets.train.subset(i for i, t in enumerate(streets.train.targets) if t != 2))
    P = svm(few, input_size=32, c=1.0, gamma=1.0, refit=False).predict_proba(images)
    assert P.shape == (40, 5) and np.allclose(P.sum(1), 1) and not (P.argmax(1) == 2).any()


def test_refuses_with_the_reason(streets):
    with pytest.raises(CourseError, match="chapter 15"): svm(replace(streets, task="detection"))
    with pytest.raises(CourseError, match="chapter 10"): forest(replace(streets, task="multi-label"))
    with pytest.raises(CourseError, match="no kernel 'sigmoid'"): svm(streets, kernel="sigmoid")
    with pytest.raises(CourseError, match="leaf="): forest(streets, leaf=10**21)
    for wrong in (dict(c=-1.0), dict(gamma=0.0), dict(atoms=0), dict(landmarks=0), dict(input_size=-3)):
        with pytest.raises(CourseError, match="above 0"): svm(streets, **wrong)
    with pytest.raises(CourseError, match="trees=0: use a number above 0"): forest(streets, trees=0)
    empty = streets.valid.subset([])
    with pytest.raises(CourseError, match="validation split is empty"): svm(replace(streets, valid=empty))
    with pytest.raises(CourseError, match="unknown feature 'hogg': did you mean 'hog'"): svm(streets, features="hogg")
    one = streets.train.subset(i for i, t in enumerate(streets.train.targets) if t == 0)
    for train in (svm, forest):
        with pytest.raises(CourseError, match="only one class"): train(replace(streets, train=one))


# ---- real images

def test_a_part_of_cifar10():
    path = SHARED / "cifar10_jpeg.zip"
    if not path.is_file(): pytest.skip(f"{path} is not there")
    archive = zipfile.ZipFile(path)
    names = sorted(n for n in archive.namelist() if n.endswith(".jpg"))
    classes = sorted({n.split("/")[2] for n in names})

    def part(split, first, count):
        of = lambda name: [n for n in names if n.startswith(f"cifar10/{split}/{name}/")][first:first + count]
        own = [n for name in classes for n in of(name)]
        return Images(own, [classes.index(n.split("/")[2]) for n in own], classes, SINGLE,
                        lambda i: decode(archive.read(own[i])), sha1(f"{own}".encode()).hexdigest())

    splits = Splits(part("train", 0, 150), part("train", 150, 30), part("test", 0, 50), classes, SINGLE, "cifar10")
    by_hand = evaluate(svm(splits, c=4.0, gamma=0.3), splits.test)["accuracy"]
    patches = evaluate(svm(splits, features="patches,hog,lbp,color", kernel="linear", atoms=200, c=1.0), splits.test)
    assert 0.40 < by_hand < 0.65 and 0.50 < patches["accuracy"] < 0.75
