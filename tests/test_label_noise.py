"Label noise: the method by hand and against its definition, a small real training with planted mistakes, and the command."
import json
from types import SimpleNamespace

import numpy as np
import pytest
from making import class_folders, encoded, put, voc
from sklearn.datasets import load_digits

from course_lib.cli import main
from course_lib.core import CourseError, open_bundle
from course_lib.data import MULTI, Images, load
from course_lib.label_noise import check_labels, class_thresholds, disagreements, doubtful_labels


@pytest.fixture(autouse=True, scope="module")
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        patch.setenv("COURSE_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def test_thresholds_are_the_mean_of_a_class_over_its_own_images():
    probabilities = np.array([[0.9, 0.1, 0.0], [0.7, 0.1, 0.2], [0.2, 0.5, 0.3], [0.2, 0.7, 0.1]])
    assert class_thresholds(probabilities, np.array([0, 0, 1, 1])) == pytest.approx([0.8, 0.6, 2])


def by_definition(probabilities, targets):
    "Northcutt et al. 2021, equation 1, image by image; without those whose label is the more probable one."
    found = set()
    for i, row in enumerate(probabilities):
        confident = [k for k in range(len(row)) if (targets == k).any() and row[k] >= probabilities[targets == k, k].mean()]
        best = max(confident, key=lambda k: row[k], default=targets[i])
        if row[best] > row[targets[i]]: found.add((i, best))
    return found


def test_disagreements_are_the_off_diagonal_of_the_confident_joint_clearest_first():
    rng = np.random.default_rng(0)
    for classes in (2, 5):
        targets = rng.integers(0, classes, 300)
        scores = rng.normal(0, 1.5, (300, classes)) + np.eye(classes)[targets]
        probabilities = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        found = disagreements(probabilities, targets)
        assert {(i, k) for i, k, _ in found} == by_definition(probabilities, targets) and len(found) > 10
        margins = [margin for _, _, margin in found]
        assert margins == sorted(margins, reverse=True)
        assert all(m == pytest.approx(probabilities[i, k] - probabilities[i, targets[i]]) for i, k, m in found)


def test_several_labels_are_doubted_in_both_directions():
    "A label that is missing, and one that is too many; the model's classes stand in another order."
    answers = np.full((20, 2), 0.1)
    answers[:10, 0] = 0.9
    noted = np.zeros((20, 2), np.float32)
    noted[1:10, 0] = noted[15, 0] = 1
    dataset = Images([f"{i}.png" for i in range(20)], list(noted), ["cat", "dog"], MULTI,
                     lambda i: np.full((8, 8, 3), i, np.uint8), "several labels")
    oracle = SimpleNamespace(classes=["dog", "cat"], size=8, predict_proba=lambda images: answers[:, ::-1])
    found = {finding.where: finding.what for finding in doubtful_labels(oracle, dataset)}
    assert set(found) == {"0.png", "15.png"}
    assert "is not labelled cat" in found["0.png"] and "is labelled cat" in found["15.png"]
    oracle.classes = ["dog", "owl"]
    with pytest.raises(CourseError, match="does not know cat"): doubtful_labels(oracle, dataset)


CLASSES = 5


@pytest.fixture(scope="module")
def mislabelled(tmp_path_factory):
    "A folder of scanned digits, of which one in 16 lies in the folder of another; and the names of these."
    root, scans, rng = tmp_path_factory.mktemp("data") / "digits", load_digits(n_class=CLASSES), np.random.default_rng(0)
    wrong = {int(i) for i in rng.choice(800, 50, replace=False)}
    for i, (scan, digit) in enumerate(zip(scans.images[:800], scans.target[:800])):
        label = (digit + 1 + i % (CLASSES - 1)) % CLASSES if i in wrong else digit
        image = np.kron((scan * 15.9).astype(np.uint8), np.ones((4, 4), np.uint8))
        put(root / str(label) / f"{i}.png", encoded(image))
    return root, {f"{i}.png" for i in wrong}


@pytest.fixture(scope="module")
def bundle(mislabelled, tmp_path_factory):
    "A support vector machine, trained on one half and on the validation split."
    out = tmp_path_factory.mktemp("models") / "svm"
    assert main(["train", "svm", "--data", spec_of(mislabelled), "--out", str(out)]) == 0
    return out


def spec_of(mislabelled): return f"{mislabelled[0]}?test=0.4&valid=0.1"


def of_kind(findings, kind): return [f for f in findings if f["kind"] == kind]


def test_planted_mistakes_are_found_in_the_images_that_were_not_learnt(mislabelled, bundle, capsys):
    spec, wrong = spec_of(mislabelled), mislabelled[1]
    assert main(["data", "check", spec, "--json", "--with", str(bundle)]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    test = {name.split("/")[1] for name in load(spec).test.names}
    named = {f["where"].split("/")[1] for f in of_kind(findings, "doubtful label")}
    planted, right = test & wrong, named & wrong
    assert named <= test and len(planted) >= 10
    assert len(right) / len(planted) >= 0.6 and len(right) / len(named) >= 0.8
    [note] = of_kind(findings, "labels compared")
    assert f"{len(test)} images of test" in note["what"] and "trained on train and valid" in note["what"]
    first = of_kind(findings, "doubtful label")[0]
    assert first["level"] == "warning" and first["where"].split("/")[0] == first["what"].split()[2].rstrip(",")


def test_of_other_data_all_is_looked_at(mislabelled, bundle):
    found = check_labels(f"{mislabelled[0]}?test=0.41&valid=0.1", open_bundle(bundle), with_valid=True)
    assert "800 images of train, valid, test" in found[-1].what and "does not doubt" in found[-1].what


def test_what_cannot_be_compared_is_said_in_one_line(mislabelled, bundle, tmp_path, capsys):
    unlike = class_folders(tmp_path / "pets")
    for spec, words in [(unlike, "does not know cat, dog"), (voc(tmp_path / "voc"), "single-label data: with boxes put")]:
        assert main(["data", "check", str(spec), "--with", str(bundle)]) == 2
        out, err = capsys.readouterr()
        assert words in err and len(err.strip().splitlines()) == 1
    assert main(["data", "check", str(unlike), "--with", str(unlike)]) == 2
    assert "not a usable bundle" in capsys.readouterr().err
    alone = class_folders(tmp_path / "alone", classes=["0"])  # one class: it cannot be loaded, and that is said
    assert main(["data", "check", str(alone), "--with", str(bundle)]) == 1
    out = capsys.readouterr().out
    assert "too few classes" in out and "labels not compared" in out
