"Pipelines: what comes back from a bundle is what was saved, and nothing that somebody made up is believed."
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from making import vouched
from safetensors import numpy as safetensors
from sklearn.ensemble import RandomForestClassifier
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from course_lib import core
from course_lib.core import CourseError, open_bundle, open_model, peak_memory
from course_lib.data import load, pixels
from course_lib.features import Features
from course_lib.patches import PatchDictionary
from course_lib.pipeline_files import KINDS, depth, from_files, sound, to_files
from course_lib.pipelines import Shallow
from course_lib.shallow import Landmarks, LinearSVM, forest, svm

TEXT, NUMBERS = "pipeline.json", "pipeline.safetensors"
MODELS = {
    "rbf": lambda data: svm(data, input_size=32, features="hog,lbp,color", c=4.0, gamma=1.0),
    "linear": lambda data: svm(data, input_size=32, features="color", kernel="linear", c=1.0),
    "patches": lambda data: svm(data, input_size=32, features="patches", kernel="linear", atoms=10, c=1.0),
    "union": lambda data: svm(data, input_size=32, features="patches,color", kernel="rbf", atoms=10, c=1.0, gamma=1.0),
    "forest": lambda data: forest(data, input_size=32, features="lbp,color", trees=5, leaf=4),
}


@pytest.fixture(scope="module")
def streets():
    return load("streets?n=100")


@pytest.fixture(scope="module")
def trained(streets):
    return {name: make(streets) for name, make in MODELS.items()}


@pytest.fixture(scope="module")
def machine(trained):
    return trained["rbf"]


@pytest.fixture(scope="module")
def images(streets):
    return np.array(pixels(streets.test, 32))[:40]


# ---- what comes back

@pytest.mark.parametrize("name", KINDS)
def test_every_known_type_is_a_class_with_these_parameters(name):
    made = getattr(import_module(KINDS[name].module), name)
    assert isinstance(made, type) and made.__name__ == name
    assert KINDS[name].parameters.keys() <= made().get_params(deep=False).keys()


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name, trained, images, tmp_path):
    machine = trained[name]
    machine.save(tmp_path / "b", architecture="svm", seed=3)
    again = open_model(tmp_path / "b")
    assert np.array_equal(again.predict_proba(images), machine.predict_proba(images))
    assert np.array_equal(again.scores(images), machine.scores(images))
    for field in ("classes", "size", "temperature", "about", "task"): assert getattr(again, field) == getattr(machine, field)
    meta = open_bundle(tmp_path / "b").meta
    assert (meta["architecture"], meta["seed"], meta["format"]) == ("svm", 3, "pipeline")
    again.save(tmp_path / "c", architecture="svm", seed=3)
    assert content(tmp_path / "b") == content(tmp_path / "c")


def content(bundle): return {path.name: path.read_bytes() for path in sorted(Path(bundle).iterdir())}


def test_a_reopened_step_knows_what_it_knew(trained, tmp_path):
    before, after = trained["forest"].pipeline, open_model(trained["forest"].save(tmp_path / "f")).pipeline
    assert np.array_equal(before[-1].feature_importances_, after[-1].feature_importances_)
    for one, other in zip(before[-1].estimators_, after[-1].estimators_, strict=True):
        assert one.tree_.max_depth == other.tree_.max_depth == depth(one.tree_.children_left, one.tree_.children_right)
        X = np.random.default_rng(0).random((50, before[-1].n_features_in_), np.float32)
        assert (one.tree_.decision_path(X) != other.tree_.decision_path(X)).nnz == 0
    assert before[0].get_feature_groups() == after[0].get_feature_groups() and before[0].shape_ == after[0].shape_
    assert after[0].get_params() == before[0].get_params() and after[-1].get_params() == before[-1].get_params()
    before, after = (model.pipeline for model in (trained["union"], open_model(trained["union"].save(tmp_path / "u"))))
    for (_, one), (_, other) in zip(before[0].transformer_list, after[0].transformer_list, strict=True):
        assert type(one) is type(other) and one.get_params() == other.get_params()
    assert before[1].n_samples_seen_ == after[1].n_samples_seen_ and np.array_equal(before[1].var_, after[1].var_)
    assert before[0].transformer_list[0][1].size_ == after[0].transformer_list[0][1].size_ == [32, 32]


def test_pipelines_inside_of_unions_and_options_come_back(streets, images, tmp_path):
    scaled = make_pipeline(Features(("hog", "lbp"), {"hog": {"pixels_per_cell": (4, 8)}, "lbp": {"radius": 2.0}}), StandardScaler())
    steps = make_union(scaled, PatchDictionary(8)), StandardScaler(), make_pipeline(Landmarks(0.01, 50), LinearSVM())
    pipeline = make_pipeline(*steps).fit(np.array(pixels(streets.train, 32)), streets.train.targets)
    made = Shallow(pipeline, streets.classes, 32)
    assert np.array_equal(open_model(made.save(tmp_path / "b")).predict_proba(images), made.predict_proba(images))


def test_a_class_without_images_comes_back(streets, images, tmp_path):
    kept = [i for i, k in enumerate(streets.train.targets) if k != 1]
    X, y = np.array(pixels(streets.train, 32))[kept], np.array(streets.train.targets)[kept]
    for last in (LinearSVM(), RandomForestClassifier(3, random_state=0)):
        made = Shallow(make_pipeline(Features(("color",)), StandardScaler(), last).fit(X, y), streets.classes, 32)
        again = open_model(made.save(tmp_path / "b"))
        assert np.array_equal(again.predict_proba(images), made.predict_proba(images))
        assert again.predict_proba(images).shape == (40, 5)


@pytest.mark.parametrize("name", ["rbf", "union", "forest"])
def test_the_same_seed_gives_the_same_bytes(name, trained, streets):
    first, second = (to_files(model.pipeline, 32, 5) for model in (trained[name], MODELS[name](streets)))
    assert first == second and first.keys() == {TEXT, NUMBERS}


def test_two_processes_on_one_cold_cache_make_the_same_bundle(tmp_path):
    code = """if True:
        import sys
        from course_lib.data import load
        from course_lib.shallow import forest, svm
        data = load("streets?n=60")
        svm(data, features="patches,hog", kernel="rbf", atoms=10, c=1.0, gamma=1.0).save(f"{sys.argv[1]}/svm")
        forest(data, trees=10, leaf=1).save(f"{sys.argv[1]}/forest")"""
    cold = os.environ | dict(COURSE_HOME=str(tmp_path / "home"))
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / run)], env=cold) for run in "ab"]
    assert [process.wait() for process in both] == [0, 0]
    for model in ("svm", "forest"): assert content(tmp_path / "a" / model) == content(tmp_path / "b" / model)


def test_other_sizes_are_resized_and_other_arrays_refused(machine, images):
    larger = images.repeat(2, axis=1).repeat(2, axis=2)
    assert machine.predict_proba(larger).shape == (40, 5)
    assert machine.predict_proba(images[:0]).shape == (0, 5)
    for wrong in (images / 255, images[0], images[..., :1]):
        with pytest.raises(CourseError, match="uint8"): machine.predict_proba(wrong)


# ---- what is not saved

@pytest.mark.parametrize("function", [os.system, shutil.rmtree, eval])
def test_a_foreign_type_is_not_saved(function, machine, tmp_path):
    strange = Shallow(make_pipeline(FunctionTransformer(function), LinearSVM()), machine.classes, 32)
    with pytest.raises(CourseError, match="a FunctionTransformer has no place"): strange.save(tmp_path / "b")
    assert not list(tmp_path.iterdir())


class Impostor(StandardScaler):
    "Another class under a known name."


Impostor.__name__ = "StandardScaler"


@pytest.mark.parametrize("change, says", [
    (lambda model: setattr(model, "size", 40), "for images of"),
    (lambda model: setattr(model, "size", 4000), "side of 1 to 512"),
    (lambda model: setattr(model, "classes", model.classes[:3]), "from 0 to 2"),
    (lambda model: model.pipeline.steps.pop(), "no classifier"),
    (lambda model: model.pipeline.steps.insert(1, ("x", LinearSVM())), "LinearSVM"),
    (lambda model: model.pipeline[-1].set_params(n_jobs=-1), "n_jobs=-1 of RandomForestClassifier has no place"),
    (lambda model: model.pipeline[0].set_params(device="cuda"), "device='cuda'"),
    (lambda model: model.pipeline[-1].set_params(criterion="entropy"), "criterion='entropy'"),
    (lambda model: model.pipeline.set_params(memory="/tmp/x"), "memory='/tmp/x'"),
    (lambda model: model.pipeline.steps.__setitem__(1, ("s", Impostor())), "has no place"),
    (lambda model: model.pipeline[1].mean_.fill(np.nan), "not finite"),
    (lambda model: model.pipeline[-1].estimators_[2].tree_.children_left.__setitem__(0, 10**6), "point astray"),
    (lambda model: model.pipeline[-1].estimators_.pop(), "it has 4 trees"),
    (lambda model: setattr(model, "pipeline", DecisionTreeClassifier()), "DecisionTreeClassifier"),
    (lambda model: setattr(model, "pipeline", None), "NoneType"),
])
def test_what_could_not_be_opened_again_is_not_saved(change, says, streets, tmp_path):
    model = MODELS["forest"](streets)
    change(model)
    with pytest.raises(CourseError, match=says): model.save(tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_what_could_not_be_saved_is_not_trained(streets):
    for train in (svm, forest):
        with pytest.raises(CourseError, match="input_size=600: use a number from 1 to 512"): train(streets, input_size=600)
    with pytest.raises(CourseError, match="trees=1000000: use a number"): forest(streets, trees=10**6)


def test_a_full_disk_is_an_ordinary_error(machine, tmp_path):
    if not hasattr(os, "geteuid") or os.geteuid() != 0: pytest.skip("only root can make a small disk")
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)], capture_output=True)
    if mounted.returncode: pytest.skip(f"no small disk: {mounted.stderr.decode().strip()}")
    try:
        with pytest.raises((OSError, CourseError)): machine.save(tmp_path / "b")
        with pytest.raises(CourseError): open_bundle(tmp_path / "b")
    finally: subprocess.run(["umount", str(tmp_path)], check=True)


# ---- what somebody made up

@pytest.fixture(scope="module")
def kept(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return {name: model.save(folder / name) for name, model in trained.items()}


@pytest.fixture
def bundle(kept, tmp_path):
    return lambda name: shutil.copytree(kept[name], tmp_path / name, dirs_exist_ok=True)


def forge(bundle, text=None, arrays=None, meta=None):
    "Change what a bundle's files hold, with checksums that fit, as someone with bad intentions would."
    if text:
        told = json.loads((bundle / TEXT).read_text())
        text(told)
        (bundle / TEXT).write_text(json.dumps(told))
    if arrays:
        held = {name: array.copy() for name, array in safetensors.load((bundle / NUMBERS).read_bytes()).items()}
        arrays(held)
        (bundle / NUMBERS).write_bytes(safetensors.save({name: array.copy(order="C") for name, array in held.items()}))
    vouched(bundle, meta or (lambda meta: None))
    return bundle


def reopened(bundle): return Shallow.load(open_bundle(bundle))  # `open_model` would turn any error into a CourseError


def test_damaged_and_exchanged_files_are_refused(bundle):
    for name in (TEXT, NUMBERS):
        one = bundle("rbf")
        good = (one / name).read_bytes()
        (one / name).write_bytes(good[:-100])
        with pytest.raises(CourseError, match="truncated or was altered"): open_model(one)
        for bad in (b"", b"\x80\x04.", b"[" * 10_000, b"{" * 10**6, good[:-100], good[:50], b"\xff" * 2000, b'{"a": NaN}', b"9" * 9000):
            (one / name).write_bytes(bad)
            vouched(one, lambda meta: None)
            with pytest.raises(CourseError, match=f"{name}' cannot be read"): reopened(one)
        (one / name).write_bytes(good)


def test_a_bundle_of_an_earlier_version_says_train_again(bundle):
    old = forge(bundle("rbf"), meta=lambda meta: meta.update(format="skops"))
    with pytest.raises(CourseError, match="earlier version.*skops.*train the model again"): open_model(old)


@pytest.mark.parametrize("name, value", [
    ("classes", []), ("classes", {"a": 1}), ("classes", ["a"] * 5), ("classes", [1, 2, 3, 4, 5]), ("classes", None), ("classes", "abcde"),
    ("classes", ["a", "b", "c", "d"]), ("classes", ["a", "b", "c", "d", "e", "f"]), ("classes", [str(i) for i in range(10**5)]),
    ("input_size", 20_000), ("input_size", 0), ("input_size", "32"), ("input_size", True), ("input_size", 33), ("input_size", 32.0),
    ("temperature", 0), ("temperature", -1), ("temperature", float("nan")), ("temperature", "1"), ("temperature", None),
    ("temperature", 1e300), ("about", []), ("about", None), ("task", "detection"), ("task", 5),
])
def test_a_description_that_no_training_wrote_is_refused(name, value, bundle):
    with pytest.raises(CourseError): reopened(forge(bundle("rbf"), meta=lambda meta: meta.update({name: value})))


def step(told, i): return told["steps"][i]


@pytest.mark.parametrize("change, says", [
    (lambda told: step(told, 1).update(type="subprocess.Popen"), "step 1 is of the type 'subprocess.Popen'"),
    (lambda told: step(told, 1).update(type=["StandardScaler"]), "step 1 is of the type a list"),
    (lambda told: step(told, 1).update(type="LinearSVM"), "step 1 \\(LinearSVM\\): it must hold"),
    (lambda told: step(told, 1).pop("type"), "step 1 is of the type None"),
    (lambda told: told["steps"].pop(), "no classifier"),
    (lambda told: told["steps"].reverse(), "it takes features, and is given images"),
    (lambda told: told["steps"].append(step(told, 1)), "given scores"),
    (lambda told: told.update(steps=[]), "1 to 16 steps"),
    (lambda told: told.update(steps={}), "1 to 16 steps"),
    (lambda told: told.update(steps=[step(told, 0)] * 100), "1 to 16 steps"),
    (lambda told: told.update(more=1), "it must hold size, classes, steps"),
    (lambda told: told.update(classes=6), "for classes=6"),
    (lambda told: told.update(size=True), "for size=True"),
    (lambda told: step(told, 0)["parameters"].update(chunk=0), "chunk cannot be 0"),
    (lambda told: step(told, 0)["parameters"].update(device="meta"), "it must hold names, options, chunk"),
    (lambda told: step(told, 0)["parameters"].update(names=["hog", "hog"]), "named twice"),
    (lambda told: step(told, 0)["parameters"].update(names=["nothing"]), "unknown feature"),
    (lambda told: step(told, 0)["parameters"].update(names=[["hog"]]), "names cannot be a list"),
    (lambda told: step(told, 0)["parameters"].update(options={"hog": {"orientations": 10}}), "mean_: float64"),
    (lambda told: step(told, 0)["parameters"].update(options={"hog": {"cells_per_block": 5}}), "smaller than one block"),
    (lambda told: step(told, 0)["parameters"].update(options={"hog": {"bins": 5}}), "no option 'bins'"),
    (lambda told: step(told, 0)["parameters"].update(options={"hog": {"images": 5}}), "options cannot be"),
    (lambda told: step(told, 1)["parameters"].update(copy=0), "copy cannot be 0"),
    (lambda told: step(step(told, 2), 0)["parameters"].update(gamma=-1.0), "step 2.0 \\(Landmarks\\): gamma cannot be -1.0"),
])
def test_a_text_that_no_training_wrote_is_refused(change, says, bundle):
    with pytest.raises(CourseError, match=says): reopened(forge(bundle("rbf"), text=change))


def nested(kind, levels):
    "A text with pipelines or unions inside of each other."
    told = dict(type="StandardScaler", parameters=dict(copy=True))
    for _ in range(levels): told = dict(type=kind, steps=[told])
    return told


def test_what_is_nested_too_deep_is_refused(bundle):
    for kind in ("Pipeline", "FeatureUnion"):
        for levels in (5, 50, 150):
            with pytest.raises(CourseError, match="in each other|takes"): reopened(forge(bundle("rbf"), text=lambda told: told.update(steps=[nested(kind, levels)])))
    large = bundle("rbf")
    for deep in ('{"size":32,"classes":5,"steps":' + "[" * 10_000 + "]" * 10_000 + "}", '{"size":' + "[" * 900 + "]" * 900 + ',"classes":5,"steps":[]}'):
        (large / TEXT).write_text(deep)
        vouched(large, lambda meta: None)
        with pytest.raises(CourseError): reopened(large)


def test_options_that_would_fill_the_memory_are_refused(streets):
    model = MODELS["linear"](streets)
    files = to_files(model.pipeline, 32, 5)
    before = peak_memory()
    for size, options in ((512, {"hog": {"pixels_per_cell": 1, "cells_per_block": 250}}), (512, {"hog": {"pixels_per_cell": [1, 1], "orientations": 180}}),
                          (512, {"color": {"cells": 500}}), (512, {"lbp": {"points": 25}}), (512, {"lbp": {"radius": 1e9}})):
        told = json.loads(files[TEXT]) | dict(size=size)
        told["steps"][0]["parameters"] |= dict(options=options, names=list(options))
        with pytest.raises(CourseError): from_files(files | {TEXT: json.dumps(told).encode()}, size, 5)
    told = json.loads(to_files(MODELS["patches"](streets).pipeline, 32, 5)[TEXT])
    for side in (0, 5, 7, 10**9):
        told["steps"][0]["parameters"]["side"] = side
        with pytest.raises(CourseError): from_files(files | {TEXT: json.dumps(told).encode()}, 32, 5)
    assert peak_memory() - before < 1000


def put(name, where, value):
    def change(arrays): arrays[name][where] = value
    return change


def swap(name, make):
    def change(arrays): arrays[name] = make(arrays[name])
    return change


def ones_less(arrays):
    "The last tree has no node left."
    arrays["2.sizes"][-2] += arrays["2.sizes"][-1]
    arrays["2.sizes"][-1] = 0


def wrapped(arrays):
    "Sizes whose sum is right only because it overflows."
    arrays["2.sizes"][:] = [2**62, 2**62, 2**62, 2**62, len(arrays["2.values"])]


def no_nodes(arrays):
    for name, array in arrays.items():
        if name.startswith("2.") and name != "2.classes_": arrays[name] = array[:0]


def twice_the_same(arrays):
    arrays["2.left_child"][0] = arrays["2.right_child"][0]


@pytest.mark.parametrize("change, says", [
    (ones_less, "has no nodes"), (wrapped, "do not add up"), (no_nodes, "is not int64"), (twice_the_same, "point astray"),
    (put("2.left_child", 0, 10**6), "point astray"), (put("2.left_child", 0, 0), "point astray"), (put("2.right_child", 0, 1), "point astray"),
    (put("2.right_child", 0, -1), "point astray"), (put("2.left_child", 0, -1), "point astray"), (put("2.left_child", 0, -2**63), "point astray"),
    (put("2.right_child", 0, -7), "point astray"), (put("2.feature", 0, 10**6), "point astray"), (put("2.feature", 0, -2), "point astray"),
    (put("2.values", 0, -1), "no shares"), (put("2.values", 1, 7.0), "no shares"), (put("2.values", 0, np.nan), "not finite"),
    (put("2.threshold", 0, np.inf), "not finite"), (put("2.missing_go_to_left", 0, 2), "no shares"),
    (swap("2.left_child", lambda a: a.astype(np.int32)), "int32"), (swap("2.left_child", lambda a: a[:-1]), "left_child"),
    (swap("2.values", lambda a: a[:, :4]), "values"), (swap("2.sizes", lambda a: a[:-1]), "do not add up"), (lambda arrays: arrays.update({"2.sizes": np.append(arrays["2.sizes"][:-2], arrays["2.sizes"][-2:].sum())}), "4 trees"),
    (swap("2.classes_", lambda a: a + 1), "from 0 to 4"), (swap("2.classes_", lambda a: a[::-1]), "from 0 to 4"),
    (put("2.classes_", 2, 2**62), "from 0 to 4"), (swap("2.classes_", lambda a: a.astype(float)), "classes_: float64"),
    (swap("1.mean_", lambda a: a[:-1]), "mean_: float64"), (put("1.scale_", 3, 0), "no spread"), (put("1.scale_", 3, -1), "no spread"),
    (swap("1.var_", lambda a: a[None]), "var_: float64"), (put("1.mean_", 0, 1e300), "not finite or above"),
    (lambda arrays: arrays.pop("1.mean_"), "it has no mean_"), (lambda arrays: arrays.update({"3.coef_": np.zeros(3)}), "no step for the array '3.coef_'"),
])
def test_arrays_that_no_training_learnt_are_refused(change, says, bundle):
    with pytest.raises(CourseError, match=says): reopened(forge(bundle("forest"), arrays=change))


@pytest.mark.parametrize("name, change, says", [
    ("rbf", swap("2.1.coef_", lambda a: a[:4]), "intercept_"), ("rbf", swap("2.1.coef_", lambda a: a[:, 1:]), "coef_"),
    ("rbf", swap("2.1.coef_", lambda a: a.astype(np.float64)), "float64"), ("rbf", swap("2.1.intercept_", lambda a: a[:, None]), "intercept_"),
    ("rbf", put("2.1.classes_", 4, 5), "from 0 to 4"), ("rbf", put("2.1.classes_", 0, -1), "from 0 to 4"), ("rbf", swap("2.0.root_", lambda a: a[:, :-1]), "root_"),
    ("rbf", swap("2.0.landmarks_", lambda a: a[:-1]), "root_"), ("rbf", put("2.0.root_", (0, 0), np.nan), "not finite"),
    ("patches", swap("0.atoms_", lambda a: a[:, :-1]), "atoms"), ("patches", swap("0.atoms_", lambda a: a[:, :-2]), "atoms"),
    ("patches", swap("0.filters_", lambda a: a[:, :, 1:]), "filters_"), ("patches", swap("0.filters_", lambda a: a[:, :, 1:, 1:]), "patches_"),
    ("patches", swap("0.filters_", lambda a: a[:, :2]), "filters_"), ("patches", swap("0.offset_", lambda a: a[1:]), "offset_"),
])
def test_arrays_of_other_lengths_are_refused(name, change, says, bundle):
    with pytest.raises(CourseError, match=says): reopened(forge(bundle(name), arrays=change))


@pytest.mark.parametrize("last", [LinearSVM(), RandomForestClassifier(2), make_pipeline(Landmarks(), LinearSVM())])
def test_numbers_that_grow_from_step_to_step_end_in_one_line(last, streets, images, tmp_path):
    pipeline = make_pipeline(Features(("color",)), StandardScaler(), StandardScaler(), StandardScaler(), last)
    pipeline.fit(np.array(pixels(streets.train, 32)), streets.train.targets)
    for scaler in pipeline[1:4]:
        scaler.mean_[::2], scaler.mean_[1::2], scaler.scale_[:] = -1e15, 1e15, 1e-12
    model = Shallow(pipeline, streets.classes, 32)
    with pytest.raises(CourseError, match="train it again"): model.predict_proba(images)
    with pytest.raises(CourseError, match="not a usable bundle.*train it again"): open_model(model.save(tmp_path / "b"))


def test_trees():
    left, right, feature = np.array([1, -1, 3, -1, -1]), np.array([2, -1, 4, -1, -1]), np.array([0, -2, 6, -2, -2])
    assert sound(left, right, feature, 7) and not sound(left, right, feature, 6) and depth(left, right) == 2
    assert sound(left[-1:], right[-1:], feature[-1:], 1) and depth(left[-1:], right[-1:]) == 0
    assert not sound(left[:0], right[:0], feature[:0], 7)
    rng = np.random.default_rng(0)
    for _ in range(2000):  # whatever is called sound can be walked from each parent down, and reaches every node once
        n = int(rng.integers(1, 8))
        left, right = rng.integers(-2, n + 1, (2, n))
        if not sound(left, right, np.zeros(n, int), 1): continue
        reached, waiting = [], [0]
        while waiting and len(reached) <= n:
            reached.append(waiting.pop())
            if left[reached[-1]] != -1: waiting += [left[reached[-1]], right[reached[-1]]]
        assert sorted(reached) == [*range(n)]


# ---- hundreds of changes by chance

VALUES = [None, True, False, -1, 0, 1, 2, 3, 5, 6, 31, 64, 10**6, 2**31, 2**63, 10**400, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), "", "hog", "lbp",
          "Pipeline", "LinearSVM", "os.system", "\x1b[2J", "é" * 1000, [], [[]], [1, 2], ["hog"], ["color", "lbp"], {}, {"hog": {"cells": 3}},
          {"type": "Features"}, [0] * 1000]


def spots(told):
    "All places in a text: (what holds it, its key)."
    keys = [*told] if isinstance(told, dict) else range(len(told)) if isinstance(told, list) else []
    return [spot for key in keys for spot in ((told, key), *spots(told[key]))]


def changed_text(told, rng):
    holder, key = (all_spots := spots(told))[rng.integers(len(all_spots))]
    other_holder, other_key = all_spots[rng.integers(len(all_spots))]
    what = rng.integers(6)
    if what == 0: del holder[key]
    elif what == 1: holder[key] = json.loads(json.dumps(other_holder[other_key]))
    elif what == 2 and isinstance(holder, dict): holder[f"{key}_"] = holder.pop(key)
    elif what == 3 and isinstance(holder, list): holder.insert(key, json.loads(json.dumps(other_holder[other_key])))
    elif what == 4: holder[key] = [holder[key]]
    else: holder[key] = VALUES[rng.integers(len(VALUES))]


def changed_arrays(arrays, rng):
    name = sorted(arrays)[rng.integers(len(arrays))]
    array = arrays[name]
    extremes = [np.nan, np.inf, -np.inf, 1e300, -1e30] if array.dtype.kind == "f" else [2**63 - 1, -2**63, 10**6] if array.dtype.kind == "i" else [255]
    what = rng.integers(9)
    if what == 0: del arrays[name]
    elif what == 1: arrays[name] = array.astype(rng.choice(["float16", "float32", "float64", "int32", "int64", "uint8", "bool"]))
    elif what == 2: arrays[name] = array[None] if rng.random() < 0.5 else array.reshape(-1)
    elif what == 3 and array.ndim: arrays[name] = np.delete(array, rng.integers(len(array)), axis=0) if len(array) else array
    elif what == 4 and array.ndim: arrays[name] = np.concatenate([array, array[:1]])
    elif what == 5: arrays[name] = array[..., :0] if array.ndim else array
    elif what == 6: arrays[name] = arrays[sorted(arrays)[rng.integers(len(arrays))]]
    elif what == 7 and array.ndim: arrays[name] = rng.permutation(array)
    elif array.size:  # one number, or a few
        place = rng.integers(array.size, size=rng.integers(1, 4))
        some = [*extremes, -1, 0, 1, 2, 3, int(rng.integers(100))]
        with np.errstate(all="ignore"): array.reshape(-1)[place] = np.array(some[rng.integers(len(some))]).astype(array.dtype)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", MODELS)
def test_changes_by_chance_are_refused_or_do_no_harm(name, seed, kept, bundle, images):
    rng = np.random.default_rng([seed, *name.encode()])
    before = peak_memory()
    opened = 0
    for _ in range(60):
        broken = bundle(name)
        change = dict(text=changed_text) if rng.random() < 0.5 else dict(arrays=changed_arrays)
        if rng.random() < 0.1: change = dict(text=changed_text, arrays=changed_arrays)
        forge(broken, **{what: (lambda held, how=how: how(held, rng)) for what, how in change.items()})
        try: model = reopened(broken)
        except CourseError as error:
            assert str(broken) in str(error) and len(str(error).splitlines()) == 1 and len(str(error)) < 1000
            continue
        found = model.predict_proba(images[:3])
        assert found.shape == (3, 5) and np.allclose(found.sum(1), 1)
        opened += 1
    assert opened < 45 and peak_memory() - before < 1000


def test_a_list_of_files_that_is_none_is_refused(machine, tmp_path):
    bundle = machine.save(tmp_path / "b")
    meta = json.loads((bundle / "model.json").read_text()) | dict(files=["a"])
    (bundle / "model.json").write_text(json.dumps(meta | dict(digest=core.digest(meta))))
    with pytest.raises(CourseError, match="files in model.json is not of the type dict"): open_bundle(bundle)
    with pytest.raises(CourseError): core.writable_bundle(bundle)
    with pytest.raises(CourseError, match="use a number"): core.within(0, 1, dropout="a")
