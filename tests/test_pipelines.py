"Pipelines: what a bundle of scikit-learn's and our own steps may hold, and that it comes back the same."
import json
import os
import re
import shutil
import zipfile
from importlib import import_module

import numpy as np
import pytest
from making import vouched
from skops import io as skops
from sklearn.datasets import make_classification
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.tree import DecisionTreeClassifier

from course_lib import core
from course_lib.core import CourseError, open_bundle, open_model
from course_lib.data import SINGLE, load, pixels
from course_lib.pipelines import OURS, Shallow, load_pipeline
from course_lib.shallow import LinearSVM, forest, svm


@pytest.fixture(scope="module")
def streets():
    return load("streets?n=100")


@pytest.fixture(scope="module")
def machine(streets):
    return svm(streets, input_size=32, features="hog,lbp,color", c=4.0, gamma=1.0)


@pytest.fixture(scope="module")
def images(streets):
    return np.array(pixels(streets.test, 32))[:40]


@pytest.mark.parametrize("name", OURS)
def test_every_trusted_name_is_a_class(name):
    module, _, last = name.rpartition(".")
    found = getattr(import_module(module), last)
    assert isinstance(found, type) and found.__module__.startswith("course_lib.")
    assert core.home_of(found) in OURS  # also where it moved to


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
    skops.dump(make_pipeline(StandardScaler(), DecisionTreeClassifier().fit(*make_classification(random_state=0))), tmp_path / "tree.skops")
    with pytest.raises(CourseError, match="holds a DecisionTreeClassifier"): load_pipeline(tmp_path / "tree.skops")


def test_a_list_of_files_that_is_none_is_refused(machine, tmp_path):
    bundle = machine.save(tmp_path / "b")
    meta = json.loads((bundle / "model.json").read_text()) | dict(files=["a"])
    (bundle / "model.json").write_text(json.dumps(meta | dict(digest=core.digest(meta))))
    with pytest.raises(CourseError, match="files in model.json is not of the type dict"): open_bundle(bundle)
    with pytest.raises(CourseError): core.writable_bundle(bundle)
    with pytest.raises(CourseError, match="use a number"): core.within(0, 1, dropout="a")


def altered(bundle, pattern, replacement, folder):
    "The content of the pipeline's file with one change in its schema."
    with zipfile.ZipFile(bundle / "pipeline.skops") as archive: files = {n: archive.read(n) for n in archive.namelist()}
    files["schema.json"], times = re.subn(pattern, replacement, files["schema.json"])
    assert times == 1
    with zipfile.ZipFile(folder / "x", "w") as archive:
        for name, content in files.items(): archive.writestr(name, content)
    return (folder / "x").read_bytes()


def test_a_renamed_type_inside_the_file_is_refused(machine, tmp_path):
    bundle = machine.save(tmp_path / "b")
    swap(bundle, altered(bundle, rb'"__class__": "LinearSVM",(\s*)"__module__": "[^"]*"',
                         rb'"__class__": "Popen",\1"__module__": "subprocess"', tmp_path))
    with pytest.raises(CourseError, match="subprocess.Popen"): open_model(bundle)


def test_a_bundle_from_before_patches_moved_opens_still(streets, images, tmp_path):
    made = svm(streets, input_size=32, features="patches,color", kernel="linear", atoms=10, c=1.0)
    bundle = made.save(tmp_path / "b")
    content = altered(bundle, rb'"__class__": "PatchDictionary",(\s*)"__module__": "course_lib.patches"',
                      rb'"__class__": "PatchDictionary",\1"__module__": "course_lib.shallow"', tmp_path)
    swap(bundle, content)
    assert "course_lib.shallow.PatchDictionary" in skops.get_untrusted_types(file=bundle / "pipeline.skops")
    assert np.array_equal(open_model(bundle).predict_proba(images), made.predict_proba(images))
