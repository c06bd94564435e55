"Shallow models: the solver, the kernel, the patches, calibration, what a bundle may hold, and what may not leak."
import json
import os
import re
import shutil
import zipfile
from dataclasses import replace
from hashlib import sha1
from pathlib import Path

import numpy as np
import pytest
import torch
from making import vouched
from scipy.special import softmax
from skops import io as skops
from sklearn.datasets import make_classification
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from course_lib import core, shallow
from course_lib.core import CourseError, open_bundle, open_model
from course_lib.data import SINGLE, Images, Splits, decode, load, pixels
from course_lib.features import Features
from course_lib.shallow import Landmarks, LinearSVM, PatchDictionary, forest, svm
from course_lib.pipelines import Shallow
from course_lib.evaluation import evaluate, reliability, scores, temperature

SHARED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
CHANCE = 1 / 5


@pytest.fixture(scope="module")
def streets():
    return load("streets?n=250")


@pytest.fixture(scope="module")
def machine(streets):
    return svm(streets, input_size=32, c=4.0, gamma=1.0)


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

def test_patches_do_not_see_mirrors_and_agree_with_a_loop(images, monkeypatch):
    monkeypatch.setattr(shallow, "fast_type", lambda numbers=0: torch.float32)
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
        monkeypatch.setattr(shallow, "fast_type", lambda numbers=0, kind=kind: kind)
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


def test_large_data_takes_patches_and_a_line(streets, monkeypatch, capsys):
    monkeypatch.setattr(shallow, "SMALL", 100)
    found = svm(streets, input_size=32, atoms=20, c=1.0)
    assert "linear on patches,hog,lbp,color" in capsys.readouterr().out
    assert isinstance(found.pipeline[-1], LinearSVM) and found.about["trained_on"] == 300
    approximate = svm(streets, input_size=32, features="hog", kernel="rbf", landmarks=50, c=4.0, gamma=1.0)
    assert "rbf by 50 landmarks" in capsys.readouterr().out
    assert evaluate(approximate, streets.test)["accuracy"] > CHANCE


def test_a_class_without_training_images_is_never_predicted(streets, images):
    few = replace(streets, train=streets.train.subset(i for i, t in enumerate(streets.train.targets) if t != 2))
    P = svm(few, input_size=32, c=1.0, gamma=1.0, refit=False).predict_proba(images)
    assert P.shape == (40, 5) and np.allclose(P.sum(1), 1) and not (P.argmax(1) == 2).any()


def test_refuses_with_the_reason(streets):
    with pytest.raises(CourseError, match="chapter 15"): svm(replace(streets, task="detection"))
    with pytest.raises(CourseError, match="chapter 10"): forest(replace(streets, task="multi-label"))
    with pytest.raises(CourseError, match="chapter 10"): evaluate(None, replace(streets.test, task="multi-label"))
    with pytest.raises(CourseError, match="no kernel 'sigmoid'"): svm(streets, kernel="sigmoid")
    with pytest.raises(CourseError, match="leaf="): forest(streets, leaf=10**21)
    for wrong in (dict(c=-1.0), dict(gamma=0.0), dict(atoms=0), dict(landmarks=0), dict(input_size=-3)):
        with pytest.raises(CourseError, match="above 0"): svm(streets, **wrong)
    with pytest.raises(CourseError, match="trees=0: use a number above 0"): forest(streets, trees=0)
    empty = streets.valid.subset([])
    with pytest.raises(CourseError, match="validation split is empty"): svm(replace(streets, valid=empty))
    with pytest.raises(CourseError, match="this split is empty"): evaluate(None, empty)
    with pytest.raises(CourseError, match="unknown feature 'hogg': did you mean 'hog'"): svm(streets, features="hogg")
    one = streets.train.subset(i for i, t in enumerate(streets.train.targets) if t == 0)
    for train in (svm, forest):
        with pytest.raises(CourseError, match="only one class"): train(replace(streets, train=one))


# ---- probabilities and scores

def test_temperature_calibrates_and_keeps_the_ranking():
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 2, (20_000, 4))
    targets = (softmax(honest, axis=1).cumsum(1) > rng.random((20_000, 1))).argmax(1)
    for factor in (0.1, 1.0, 8.0):
        T = temperature(honest[:10_000] * factor, targets[:10_000])
        assert abs(T / factor - 1) < 0.05
        P = softmax(honest[10_000:] * factor / T, axis=1)
        assert reliability(P, targets[10_000:])["ece"] < 0.02
        assert np.array_equal(P.argmax(1), honest[10_000:].argmax(1))
    assert reliability(np.eye(4)[[0, 1, 2, 3]], [0, 1, 2, 3])["ece"] == 0
    assert reliability(np.eye(4)[[0, 1, 2, 3]], [1, 2, 3, 0])["ece"] == 1


def test_evaluate_counts_right(streets):
    class Fixed:
        classes, size, task = streets.classes, 32, SINGLE
        def predict_proba(self, images): return np.tile([0, 1, 0, 0, 0], (len(images), 1))
    found = evaluate(Fixed(), streets.test, batch_size=7)
    n = len(streets.test) // 5
    assert found["accuracy"] == found["recall"] == 0.2 and found["images"] == 5 * n
    assert np.array_equal(found["confusion"], [[0, n, 0, 0, 0]] * 5)
    assert found["per_class"]["bus"] == dict(precision=0.2, recall=1.0, f1=pytest.approx(1 / 3), images=n)
    assert found["per_class"]["car"] == dict(precision=0.0, recall=0.0, f1=0.0, images=n)
    json.dumps(found)


# ---- bundles

def test_round_trip(machine, images, tmp_path):
    machine.save(tmp_path / "b", architecture="svm", seed=3)
    again = open_model(tmp_path / "b")
    assert np.array_equal(again.predict_proba(images), machine.predict_proba(images))
    assert (again.classes, again.size, again.task) == (machine.classes, 32, SINGLE)
    meta = open_bundle(tmp_path / "b").meta
    assert (meta["architecture"], meta["seed"], meta["format"]) == ("svm", 3, "skops")


@pytest.mark.parametrize("model", ["patches", "forest"])
def test_round_trip_of_the_others(model, streets, images, tmp_path):
    if model == "forest": made = forest(streets, input_size=32, trees=5, leaf=4)
    else: made = svm(streets, input_size=32, features="patches,color", kernel="linear", atoms=10, c=1.0)
    made.save(tmp_path / "b")
    assert np.array_equal(open_model(tmp_path / "b").predict_proba(images), made.predict_proba(images))


def test_other_sizes_are_resized_and_other_arrays_refused(machine, images):
    larger = images.repeat(2, axis=1).repeat(2, axis=2)
    assert machine.predict_proba(larger).shape == (40, 5)
    assert machine.predict_proba(images[:0]).shape == (0, 5)
    for wrong in (images / 255, images[0], images[..., :1]):
        with pytest.raises(CourseError, match="uint8"): machine.predict_proba(wrong)


@pytest.mark.parametrize("function", [os.system, shutil.rmtree, eval])
def test_a_foreign_type_is_refused_by_name(function, machine, tmp_path):
    Shallow(make_pipeline(FunctionTransformer(function), LinearSVM()), machine.classes, 32).save(tmp_path / "b")
    with pytest.raises(CourseError, match=f"the type .*{function.__name__}.*not opened"): open_model(tmp_path / "b")


def swap(bundle, content):
    "Replace the pipeline's file and its checksum, as someone with bad intentions would."
    (bundle / "pipeline.skops").write_bytes(content)
    vouched(bundle, lambda meta: meta)


def test_damaged_and_exchanged_pipelines_are_refused(machine, tmp_path):
    bundle = machine.save(tmp_path / "b")
    good = (bundle / "pipeline.skops").read_bytes()
    (bundle / "pipeline.skops").write_bytes(good[:-100])
    with pytest.raises(CourseError, match="truncated or was altered"): open_model(bundle)
    for bad in (b"", b"not a zip", good[:-100], good[:2000]):
        swap(bundle, bad)
        with pytest.raises(CourseError, match="cannot be read as a skops file"): open_model(bundle)
    swap(bundle, skops.dumps(StandardScaler()))
    with pytest.raises(CourseError, match="holds a StandardScaler, not"): open_model(bundle)


@pytest.mark.parametrize("field, value", [("children_left", 10**6), ("children_right", 0), ("feature", 580)])
def test_a_forest_whose_nodes_point_astray_is_refused(field, value, streets, tmp_path):
    made = forest(streets, input_size=32, trees=2, leaf=4)
    getattr(made.pipeline[-1].estimators_[1].tree_, field)[0] = value
    with pytest.raises(CourseError, match="point astray"): open_model(made.save(tmp_path / "b"))


def test_trees_inside_of_inner_pipelines_and_foreign_machines_are_refused(streets, tmp_path):
    made = forest(streets, input_size=32, trees=2, leaf=4)
    made.pipeline[-1].estimators_[1].tree_.children_left[0] = 10**6
    made.pipeline = make_pipeline(made.pipeline, LinearSVM())
    with pytest.raises(CourseError, match="point astray"): open_model(made.save(tmp_path / "b"))
    skops.dump(make_pipeline(StandardScaler(), DecisionTreeClassifier().fit(*table())), tmp_path / "tree.skops")
    with pytest.raises(CourseError, match="holds a DecisionTreeClassifier"): shallow.load_pipeline(tmp_path / "tree.skops")


def test_a_list_of_files_that_is_none_is_refused(machine, tmp_path):
    bundle = machine.save(tmp_path / "b")
    meta = json.loads((bundle / "model.json").read_text()) | dict(files=["a"])
    (bundle / "model.json").write_text(json.dumps(meta | dict(digest=core.digest(meta))))
    with pytest.raises(CourseError, match="list of files is damaged"): open_bundle(bundle)
    with pytest.raises(CourseError): core.writable_bundle(bundle)
    with pytest.raises(CourseError, match="use a number"): core.within(0, 1, dropout="a")


def test_a_renamed_type_inside_the_file_is_refused(machine, tmp_path):
    bundle = machine.save(tmp_path / "b")
    with zipfile.ZipFile(bundle / "pipeline.skops") as archive: files = {n: archive.read(n) for n in archive.namelist()}
    schema, times = re.subn(rb'"__class__": "LinearSVM",(\s*)"__module__": "[^"]*"',
                            rb'"__class__": "Popen",\1"__module__": "subprocess"', files["schema.json"])
    assert times == 1
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        for name, content in {**files, "schema.json": schema}.items(): archive.writestr(name, content)
    swap(bundle, (tmp_path / "x").read_bytes())
    with pytest.raises(CourseError, match="subprocess.Popen"): open_model(bundle)


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
