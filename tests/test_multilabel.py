"Several labels per image: losses, thresholds, scores, the model, and tables of labels."
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn import metrics
from torchvision.ops import sigmoid_focal_loss

from course_lib.cli import main
from course_lib.core import CourseError, models, open_model
from course_lib.data import MULTI, load
from course_lib.doctor import check, fix, write_splits
from course_lib.multilabel import best_thresholds, evaluate_labels, focal, label_scores, losses
from course_lib.evaluation import predicted
from course_lib.weights import at_hand

SEEING = dict(enlarge=32, input_size=32, strategy="frozen", batch_size=10, head_epochs=3)
TINY = SEEING | dict(weights="none")
real = pytest.mark.skipif(not at_hand("mobilenet_v2-b0353104.pth"),
                          reason="the package with weights is not installed: see `make help`")


@pytest.fixture(scope="module")
def splits(): return load("streets?view=multi&n=40&valid=30&test=30&size=32")


def answers(seed, n=40, K=4):
    "Truth and probabilities, [n, K], with many equal ones."
    rng = np.random.default_rng(seed)
    return rng.integers(2, size=(n, K)), rng.random((n, K)).round(1)


def table(folder, text, n=9, names="{}.png"):
    "A folder of n grey images and a table of labels."
    folder.mkdir(parents=True)
    (folder / "labels.csv").write_text(text, encoding="utf-8")
    for i in range(n):
        path = folder / names.format(i)
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((16, 16, 3), 25 * i, np.uint8)).save(path)
    return folder


# ---- losses

@pytest.mark.parametrize("gamma, alpha", [(0, None), (2, None), (2, 0.25), (5, 0.9)])
def test_focal_is_the_papers(gamma, alpha):
    torch.manual_seed(0)
    z, y = torch.randn(8, 3, dtype=torch.float64) * 4, torch.randint(2, (8, 3)).double()
    assert torch.isclose(focal(z, y, gamma=gamma, alpha=alpha), sigmoid_focal_loss(z, y, alpha or -1, gamma, "mean"))
    assert torch.autograd.gradcheck(lambda z: focal(z, y, gamma=gamma, alpha=alpha), z.requires_grad_())


def test_focal_by_hand():
    "z = log 3: a yes has probability 3/4. A right answer counts 1/16, a wrong one 9/16 of its cross entropy."
    z = torch.tensor([[np.log(3.0)]])
    assert torch.isclose(focal(z, torch.ones(1, 1).double()), torch.tensor(-np.log(0.75) / 16))
    assert torch.isclose(focal(z, torch.zeros(1, 1).double()), torch.tensor(-np.log(0.25) * 9 / 16))


def test_weights_give_both_answers_the_same_sum():
    "Four images, one with the class: at probability one half its yes counts as much as the three noes."
    y, z = torch.tensor([[1.0], [0.0], [0.0], [0.0]]), torch.zeros(4, 1, requires_grad=True)
    losses["weighted"](z, y, y.mean(0)).backward()
    assert torch.isclose(z.grad.sum(), torch.tensor(0.0), atol=1e-7) and z.grad[0] < 0
    rare = losses["weighted"](torch.zeros(1, 1), torch.ones(1, 1), torch.zeros(1))
    assert rare.isfinite() and torch.isclose(rare, torch.tensor(20 * np.log(2), dtype=torch.float32))


@pytest.mark.parametrize("name", ["bce", "weighted", "focal"])
def test_losses_are_finite_for_any_logit(name):
    z = torch.tensor([[-1e4, -60.0, 0.0, 60.0, 1e4]], requires_grad=True)
    for y in (torch.zeros(1, 5), torch.ones(1, 5)):
        loss = losses[name](z, y, torch.full((5,), 0.3))
        slope, = torch.autograd.grad(loss, z)
        assert loss.isfinite() and slope.isfinite().all()


# ---- thresholds

@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_is_better(seed):
    truth, p = answers(seed, n=25, K=3)
    f1 = lambda k, least: metrics.f1_score(truth[:, k], p[:, k] >= least, zero_division=0)
    for k, found in enumerate(best_thresholds(truth, p)):
        assert f1(k, found) >= max(f1(k, least) for least in np.linspace(-0.05, 1.05, 111)) - 1e-12


def test_thresholds_where_there_is_nothing_to_choose():
    p = np.array([[0.2, 0.2, 0.9], [0.4, 0.4, 0.1]])
    assert best_thresholds(np.array([[0, 1, 1], [0, 1, 0]]), p).tolist() == [0.5, 0.5, 0.5]
    assert np.allclose(best_thresholds(np.array([[1.0], [0.0], [1.0]]), np.array([[0.3], [0.2], [0.8]])), 0.25)
    assert np.allclose(best_thresholds(np.array([[0.0], [1.0], [1.0]]), np.array([[0.9], [0.8], [0.7]])), 0.35)  # not 0: not everything


@real
def test_thresholds_come_from_the_validation_split_alone(splits):
    "Other test labels change nothing; other validation labels do; and the thresholds are the best there."
    other = lambda part: replace(part, targets=[1 - t for t in part.targets], key=part.key + "x")
    made = models["multilabel"](splits, **SEEING)
    p, _ = predicted(made, splits.valid)
    assert np.allclose(made.thresholds, best_thresholds(np.array(splits.valid.targets), p))
    assert not np.allclose(made.thresholds, best_thresholds(np.array(splits.test.targets), predicted(made, splits.test)[0]))
    assert models["multilabel"](replace(splits, test=other(splits.test)), **SEEING).thresholds == made.thresholds
    assert models["multilabel"](replace(splits, valid=other(splits.valid)), **SEEING).thresholds != made.thresholds


# ---- scores

@pytest.mark.parametrize("seed", range(5))
def test_scores_agree_with_scikit_learn(seed):
    truth, p = answers(seed)
    least = np.array([0.3, 0.5, 0.7, 0.55])
    said, found = p >= least, label_scores(truth, p, least, list("abcd"))
    assert np.isclose(found["map"], metrics.average_precision_score(truth, p, average="macro"))
    for average, name in (("macro", "f1"), ("micro", "micro_f1")):
        assert np.isclose(found[name], metrics.f1_score(truth, said, average=average))
    assert np.isclose(found["subset_accuracy"], metrics.accuracy_score(truth, said))
    assert np.isclose(found["hamming_loss"], (truth != said).mean())
    assert [row["threshold"] for row in found["per_class"].values()] == least.tolist()


def test_a_class_without_images_is_not_measured_and_left_out_of_the_means():
    truth, p = answers(0)
    truth[:, 1] = 0
    found = label_scores(truth, p, 0.5, list("abcd"))
    kept = [0, 2, 3]
    assert np.isclose(found["map"], metrics.average_precision_score(truth[:, kept], p[:, kept], average="macro"))
    assert np.isclose(found["f1"], metrics.f1_score(truth[:, kept], p[:, kept] >= 0.5, average="macro"))
    assert found["per_class"]["b"] == dict(precision=None, recall=None, f1=None, images=0, average_precision=None, threshold=0.5)


# ---- the model

@real
def test_the_loss_is_an_option(splits):
    made = {loss: predicted(models["multilabel"](splits, loss=loss, **SEEING), splits.test)[0] for loss in losses}
    assert not np.allclose(made["bce"], made["weighted"]) and not np.allclose(made["bce"], made["focal"])
    assert made["weighted"].mean() > made["bce"].mean(), "weights of rare classes say yes more often"
    with pytest.raises(CourseError, match="did you mean 'focal'"): models["multilabel"](splits, loss="fokal", **SEEING)


def test_single_label_data_is_sent_elsewhere():
    with pytest.raises(CourseError, match="labels.csv.*course train transfer"): models["multilabel"](load("streets?n=10"))


@real
def test_shuffled_labels_teach_nothing(splits):
    "Images whose colour is their labels are learnt; with the labels of the training images shuffled mAP is at chance."
    rng = np.random.default_rng(0)
    def coloured(split):
        targets = [t.astype(np.float32) for t in rng.integers(2, size=(len(split), 3))]
        paint = lambda i: np.full((32, 32, 3), 40 + 170 * targets[i], np.uint8)
        return replace(split, targets=targets, classes=list("rgb"), read=paint, key=split.key + "painted")
    bright = replace(splits, classes=list("rgb"), **{name: coloured(splits[name]) for name in ("train", "valid", "test")})
    mixed = [bright.train.targets[i] for i in rng.permutation(len(bright.train))]
    shuffled = replace(bright, train=replace(bright.train, targets=mixed))
    maps = [evaluate_labels(models["multilabel"](data, **SEEING | dict(head_epochs=60, head_lr=0.01)), bright.test)["map"]
            for data in (bright, shuffled)]
    assert maps[0] > 0.95 and maps[1] < 0.8, maps


def test_command_line_from_a_table_to_labels(splits, tmp_path, capsys):
    write_splits(splits, "csv", tmp_path / "mine")
    out, options = tmp_path / "bundle", [f"--{k.replace('_', '-')}={v}" for k, v in TINY.items()]
    assert main(["train", "multilabel", "--data", str(tmp_path / "mine"), "--out", str(out), *options]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(out), "--data", str(tmp_path / "mine"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["map"] <= 1 and result["images"] == 30
    assert main(["evaluate", str(out), "--data", str(tmp_path / "mine")]) == 0
    assert "average_precision" in (text := capsys.readouterr().out) and "hamming_loss" in text
    assert main(["predict", str(out), str(tmp_path / "mine"), "--out", str(tmp_path / "p.json")]) == 0
    model, rows = open_model(out), json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))
    least = dict(zip(model.classes, model.thresholds))
    assert len(rows) == 100 and all(p["probability"] >= least[p["label"]] - 1e-4 for row in rows for p in row["predictions"])
    mine = load(tmp_path / "mine")
    named = {row["file"].rpartition("/")[2]: {p["label"] for p in row["predictions"]} for row in rows}
    p, _ = predicted(model, mine.test)
    for name, row in zip(mine.test.names, p >= np.array(model.thresholds)):
        assert named[name.rpartition("/")[2]] == {c for c, said in zip(model.classes, row) if said}
    assert main(["evaluate", str(out), "--data", "streets?n=10"]) == 2
    assert "multi-label" in capsys.readouterr().err


def test_other_networks_say_labels_too(splits, tmp_path):
    made = models["cnn"](splits, epochs=1, input_size=32)
    assert made.thresholds == (0.5,) * 5 and 0 <= evaluate_labels(made, splits.test)["map"] <= 1
    assert open_model(made.save(tmp_path / "b")).thresholds == (0.5,) * 5


# ---- tables of labels, and boxes as labels

LABELS = ["cat", "dog", "cat;dog"] * 3


@pytest.mark.parametrize("text, names", [
    ("file,labels\n" + "\n".join(f"{i}.png,{l}" for i, l in enumerate(LABELS)), "{}.png"),
    ("image_name,tags\n" + "\n".join(f"{i},{l.replace(';', ' ')}" for i, l in enumerate(LABELS)), "{}.png"),
    ("file;cat;dog\n" + "\n".join(f"pics/{i}.png;{int('cat' in l)};{int('dog' in l)}" for i, l in enumerate(LABELS)), "pics/{}.png"),
    ("\ufefffile\tlabels\n" + "\n".join(f"{i}.png\t{l.replace(';', '|')}" for i, l in enumerate(LABELS)), "images/{}.png")])
def test_tables_of_labels(tmp_path, text, names):
    folder = table(tmp_path / "t", text, names=names)
    for spec in (folder, folder / "labels.csv", shutil.make_archive(str(tmp_path / "zipped"), "zip", folder)):
        mine = load(spec)
        assert mine.task == MULTI and mine.classes == ["cat", "dog"]
        assert [f.kind for f in mine.left_out] == ["labels with spaces"] * ("cat dog" in text)  # a word, so that nobody is surprised
        found = {name.rpartition("/")[2]: tuple(t) for part in (mine.train, mine.valid, mine.test)
                 for name, t in zip(part.names, part.targets)}
        assert found == {f"{i}.png": (float("cat" in l), float("dog" in l)) for i, l in enumerate(LABELS)}


def test_a_table_may_say_the_splits(tmp_path):
    rows = [f"{i}.png,{l},{('train', 'val', 'test')[i // 3]}" for i, l in enumerate(LABELS)]
    mine = load(table(tmp_path / "t", "file,labels,split\n" + "\n".join(rows)))
    assert mine.valid.names == ["3.png", "4.png", "5.png"] and mine.test.names == ["6.png", "7.png", "8.png"]


def test_faults_in_a_table_are_named(tmp_path):
    rows = ["0.png,1,0,train", "0.png,1,0,train", "1.png,2,0,train", "9.png,1,1,train", "2.png,0,1,holiday", "3.png,,1,train",
            *(f"{i}.png,1,1,{s}" for i, s in zip(range(4, 8), ("train", "train", "valid", "test")))]
    found = check(table(tmp_path / "t", "file,cat,dog,split\n" + "\n".join(rows)))
    said = "\n".join(str(f) for f in found.findings)
    for part in ("line 3: 0.png comes twice", "line 4: cat is '2', not 0 or 1", "line 5: no image 9.png",
                 "line 6: unknown split 'holiday'", "line 7: cat is ''", "8.png: is not listed"):
        assert part in said, said
    with pytest.raises(CourseError, match="must name a column 'file'"): load(table(tmp_path / "u", "cat,dog\n1,0\n"))
    with pytest.raises(CourseError, match="must name a column 'file'"): load(table(tmp_path / "v", ""))


def test_a_table_is_fixed_and_written_again(tmp_path):
    rows = "\n".join(f"{i}.png,{l}" for i, l in enumerate(LABELS))
    folder = table(tmp_path / "t", "file,labels\n" + rows + "\n9.png,cat")
    mine = load(fix(folder, tmp_path / "fixed"))
    assert not mine.left_out and len(mine.train) + len(mine.valid) + len(mine.test) == 9


def test_boxes_become_labels(tmp_path):
    scenes = load("streets?view=detection&n=20&valid=10&test=10&size=64")
    write_splits(scenes, "voc", tmp_path / "voc")
    seen, boxes = load(f"{tmp_path / 'voc'}?view=multi"), load(tmp_path / "voc")
    assert seen.task == MULTI and seen.classes == boxes.classes and seen.train.names == boxes.train.names
    for labels, target in zip(seen.train.targets, boxes.train.targets):
        assert set(np.flatnonzero(labels) + 1) == set(target["labels"][~target["difficult"]])
    assert seen.train.key != boxes.train.key
    with pytest.raises(CourseError, match="view=top"): load(f"{tmp_path / 'voc'}?view=top")
