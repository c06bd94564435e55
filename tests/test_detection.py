"Detection: against torchvision, pycocotools and brute force; errors and reasons by hand; the commands; and knock-outs."
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from hashlib import sha1
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.ssd import SSD as TheirSSD

from course_lib import boxes as boxes_module
from course_lib import cli
from course_lib import detection, diagnosis, scenes
from course_lib.boxes import anchors, iou, xyxy_to_cxcywh
from course_lib.core import CourseError, digest, models, open_model
from course_lib.data import DETECTION, Images, load
from course_lib.doctor import check, write_splits
from course_lib.detection import (AveragePrecision, CocoMetric, Detection, as_truth, best_threshold,
                                  detections, sort_detections)
from course_lib.diagnosis import ap50, diagnose, evaluate_detector, learn_by_heart, scores_of
from course_lib.scenes import squared
from course_lib.drawing import draw, free_place
from course_lib.training import Recipe

TINY = dict(weights="none", input_size=64, epochs=2, batch_size=8, width=32, head="lite", augment="near")
GRID = anchors([(12, 12), (6, 6), (3, 3), (1, 1)], [0.1, 0.25, 0.45, 0.7, 0.9], [[2], [2, 3], [2], [2]], (96, 96))
tensor = lambda *values: torch.tensor(values, dtype=torch.float32)
ints = lambda *values: torch.tensor(values, dtype=torch.int64)


@pytest.fixture
def rng(): return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def streets(): return load("streets?view=detection&n=16&valid=6&test=6&size=64")


@pytest.fixture(scope="module")
def trained(streets): return models["ssd"](streets, **TINY)


def random_outputs(rng, images=3, classes=4, sure=2.0):
    shape = images, len(GRID)
    return dict(loc=torch.randn(*shape, 4, generator=rng), conf=sure * torch.randn(*shape, classes + 1, generator=rng), anchors=GRID)


def by_torchvision(outputs, size, **how):
    "torchvision's decoding, suppression and choice."
    theirs = object.__new__(TheirSSD)
    nn.Module.__init__(theirs)
    theirs.score_thresh, theirs.nms_thresh = how.get("least", 0.01), how.get("threshold", 0.45)
    theirs.topk_candidates, theirs.detections_per_img = how.get("most", 200), how.get("top", 100)
    theirs.box_coder, B = BoxCoder((10.0, 10.0, 5.0, 5.0)), len(outputs["loc"])
    return theirs.postprocess_detections(dict(bbox_regression=outputs["loc"], cls_logits=outputs["conf"]), [outputs["anchors"]] * B,
                                         [(size, size)] * B)


def agree(found, others):
    "The same detections, in any order of equal scores."
    for a, b in zip(found, others, strict=True):
        assert len(a["scores"]) == len(b["scores"])
        rows = [sorted(zip(x["labels"].tolist(), *x["boxes"].T.round(decimals=2).tolist(), x["scores"].round(decimals=4).tolist()))
                for x in (a, b)]
        assert np.allclose(np.array(rows[0]).reshape(-1, 6), np.array(rows[1]).reshape(-1, 6), atol=0.03)


# ---- decoding and suppression

@pytest.mark.parametrize("how", [{}, dict(least=0.3), dict(threshold=0.2), dict(most=7), dict(top=5), dict(least=0.999)])
def test_detections_are_torchvisions(how, rng):
    outputs = random_outputs(rng)
    agree(detections(outputs, 96, **how), by_torchvision(outputs, 96, **how))


def softly_by_force(outputs, size, least, most, top):
    "Soft suppression of all candidates at once, image by image and class by class."
    for loc, conf in zip(outputs["loc"], outputs["conf"]):
        boxes, scores, rows = boxes_module.decode(loc, outputs["anchors"]).clamp(0, size), conf.softmax(1), []
        for k in range(1, conf.shape[1]):
            own = scores[:, k].argsort(descending=True, stable=True)[:most]
            own = own[scores[own, k] > least]
            kept, new = boxes_module.soft_nms(boxes[own], scores[own, k], least=least, top=len(own))
            rows += [(score, k, boxes[a]) for score, a in zip(new.tolist(), own[kept].tolist())]
        rows = sorted(rows, key=lambda row: -row[0])[:top]
        yield dict(scores=tensor(*(row[0] for row in rows)), labels=ints(*(row[1] for row in rows)), boxes=torch.stack([row[2] for row in rows]))


@pytest.mark.parametrize("how", [{}, dict(least=0.2), dict(most=7), dict(top=5), dict(top=300)])
@pytest.mark.parametrize("copies", [1, 16])  # of each anchor: duplicates lose so much that more candidates are needed
def test_soft_suppression_of_the_best_candidates_is_that_of_all(how, copies, rng):
    outputs = random_outputs(rng)
    outputs = dict(loc=outputs["loc"].repeat(1, copies, 1), conf=outputs["conf"].repeat(1, copies, 1), anchors=GRID.repeat(copies, 1))
    outputs["conf"] += 0.01 * torch.randn(outputs["conf"].shape, generator=rng)
    found = detections(outputs, 96, **how, suppression="soft")
    for ours, theirs in zip(found, softly_by_force(outputs, 96, **dict(least=0.01, most=200, top=100) | how), strict=True):
        assert torch.allclose(ours["scores"], theirs["scores"]) and torch.equal(ours["labels"], theirs["labels"])
        assert torch.allclose(ours["boxes"], theirs["boxes"], atol=1e-3)
    if "top" not in how: assert not torch.equal(found[0]["scores"], detections(outputs, 96, **how)[0]["scores"])  # the best may lie apart


def test_no_detection_and_no_image(rng):
    outputs = random_outputs(rng)
    outputs["conf"][..., 0] = 50
    for how in ("hard", "soft"):
        found = detections(outputs, 96, suppression=how)
        assert [len(one["boxes"]) for one in found] == [0, 0, 0] and all(one["boxes"].shape == (0, 4) for one in found)


def test_boxes_stay_in_the_image_and_scores_fall(rng):
    outputs = random_outputs(rng)
    for found in detections(outputs, 96) + detections(outputs, 96, suppression="soft"):
        assert found["boxes"].min() >= 0 and found["boxes"].max() <= 96 and found["labels"].min() >= 1 and found["labels"].max() <= 4
        assert (found["scores"].diff() <= 0).all()


# ---- average precision: brute force, pycocotools, ours

def random_case(seed, images=3, classes=3):
    "Detections near objects, far from them, twice; some objects difficult."
    rng, found, targets = np.random.default_rng(seed), [], []
    for _ in range(images):
        n = rng.integers(0, 6)
        low = rng.uniform(0, 70, (n, 2))
        truth = np.concatenate([low, low + rng.uniform(5, 30, (n, 2))], 1).astype(np.float32)
        labels = rng.integers(1, classes + 1, n)
        near = truth[rng.integers(0, n, rng.integers(0, 10))] if n else truth
        near = near + rng.normal(0, 3, near.shape)
        low = rng.uniform(0, 70, (rng.integers(0, 4), 2))
        guess = np.concatenate([near, np.concatenate([low, low + 20], 1)]).astype(np.float32)
        guess[:, 2:] = np.maximum(guess[:, 2:], guess[:, :2] + 1)
        found.append(dict(boxes=torch.tensor(guess), labels=torch.tensor(rng.integers(1, classes + 1, len(guess))),
                          scores=torch.tensor(rng.permutation(len(guess)) / 20 + 0.01 * rng.random(), dtype=torch.float32)))
        targets.append(dict(boxes=truth, labels=labels, difficult=rng.random(n) < 0.2))
    return found, targets


def overlap(box, other, crowd):
    w, h = (max(0.0, min(box[i + 2], other[i + 2]) - max(box[i], other[i])) for i in (0, 1))
    area = lambda b: (b[2] - b[0]) * (b[3] - b[1])
    return w * h / (area(box) if crowd else area(box) + area(other) - w * h)


def brute_force_ap(found, targets, label, threshold):
    "Average precision of a class by COCO's rules, one detection at a time; None without objects."
    rows, objects = [], 0
    for one, target in zip(found, targets):
        truth = [(box, bool(hard)) for box, name, hard in zip(target["boxes"].astype(float), target["labels"], target["difficult"]) if name == label]
        truth.sort(key=lambda item: item[1])
        objects, taken = objects + sum(not hard for _, hard in truth), set()
        own = [(s, b) for b, k, s in zip(one["boxes"].double().tolist(), one["labels"].tolist(), one["scores"].tolist()) if k == label]
        for score, box in sorted(own, key=lambda item: -item[0])[:100]:
            best, match = min(threshold, 1 - 1e-10), None
            for n, (other, hard) in enumerate(truth):
                if n in taken and not hard: continue
                if match is not None and not truth[match][1] and hard: break
                if (value := overlap(box, other, hard)) >= best: best, match = value, n
            if match is not None: taken.add(match)
            if match is None or not truth[match][1]: rows.append((score, match is not None))
    if not objects: return None
    rows.sort(key=lambda row: -row[0])
    right = np.cumsum([hit for _, hit in rows])
    recall, precision = right / objects, right / np.arange(1, len(rows) + 1)
    return np.mean([max(precision[recall >= r], default=0.0) for r in np.linspace(0, 1, 101)])


def brute_force_map(found, targets, threshold, classes=3):
    values = [v for k in range(1, classes + 1) if (v := brute_force_ap(found, targets, k, threshold)) is not None]
    return np.mean(values) if values else -1.0


def by_pycocotools(found, targets, classes=3):
    "map, map_50 and map_75 by the reference implementation."
    sides = lambda box: [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]
    notes = [dict(image_id=i, category_id=int(k), bbox=sides(box), area=float(np.prod(sides(box)[2:])), iscrowd=int(hard))
             for i, t in enumerate(targets) for box, k, hard in zip(t["boxes"].astype(float), t["labels"], t["difficult"])]
    guesses = [dict(image_id=i, category_id=int(k), bbox=sides(box), score=float(s))
               for i, f in enumerate(found) for box, k, s in zip(f["boxes"].double().numpy(), f["labels"], f["scores"])]
    truth = COCO()
    truth.dataset = dict(info={}, images=[dict(id=i) for i in range(len(targets))], categories=[dict(id=k + 1) for k in range(classes)],
                         annotations=[dict(note, id=i + 1) for i, note in enumerate(notes)])
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        score = COCOeval(truth, truth.loadRes(guesses), "bbox")
        score.evaluate(), score.accumulate(), score.summarize()
    return score.stats[:3]


def measured(found, targets):
    "map, map_50 and map_75 by the course's metric."
    metric = CocoMetric()
    metric.update(found, as_truth(targets))
    return [metric.compute()[name].item() for name in ("map", "map_50", "map_75")]


@pytest.mark.parametrize("start", range(0, 240, 40))
def test_map_is_pycocotools_and_brute_force(start):
    for seed in range(start, start + 40):
        found, targets = random_case(seed)
        if not sum(len(t["labels"]) for t in targets) or not sum(len(f["labels"]) for f in found): continue
        ours, theirs = measured(found, targets), by_pycocotools(found, targets)
        assert ours == pytest.approx(theirs, abs=1e-6), seed
        assert ours[1] == pytest.approx(brute_force_map(found, targets, 0.5), abs=1e-6), seed
        assert ours[2] == pytest.approx(brute_force_map(found, targets, 0.75), abs=1e-6), seed
        assert ap50(found, targets) == pytest.approx(max(0, ours[1]), abs=1e-6)


def test_difficult_objects_count_neither_way():
    box = tensor([0, 0, 10, 10], [20, 0, 30, 10])
    found = [dict(boxes=box, labels=ints(1, 1), scores=tensor(0.9, 0.8))]
    target = dict(boxes=box, labels=ints(1, 1), difficult=torch.tensor([True, False]))
    assert ap50(found, [target]) == 1
    assert ap50([{k: v[1:] for k, v in found[0].items()}], [target]) == 1
    assert ap50([{k: v[:1] for k, v in found[0].items()}], [target]) == 0


def test_metric_is_the_same_batch_by_batch(rng):
    outputs, targets = random_outputs(rng, 6), random_case(1, 6, 4)[1]
    whole, parts = AveragePrecision(96), AveragePrecision(96)
    whole.update(outputs, targets)
    for part in (slice(0, 1), slice(1, 4), slice(4, 6)):
        parts.update(dict(loc=outputs["loc"][part], conf=outputs["conf"][part], anchors=GRID), targets[part])
    assert whole.compute() == parts.compute()


# ---- errors

TRUTH = dict(boxes=tensor([0, 0, 10, 10], [50, 0, 60, 10], [0, 50, 10, 60]), labels=ints(1, 2, 1))


@pytest.mark.parametrize("box, label, kind, missed", [
    ([0, 0, 10, 10], 1, "right", [False, True, True]), ([1, 1, 11, 11], 1, "right", [False, True, True]),
    ([50, 0, 60, 10], 1, "class", [True, False, True]), ([6, 0, 16, 10], 1, "location", [False, True, True]),
    ([80, 80, 90, 90], 1, "background", [True, True, True]), ([56, 0, 66, 10], 1, "both", [True, True, True]),
    ([59, 0, 69, 10], 1, "background", [True, True, True])])
def test_errors_by_hand(box, label, kind, missed):
    kinds, lost = sort_detections(dict(boxes=tensor(box), labels=ints(label), scores=tensor(0.9)), TRUTH)
    assert kinds == [kind] and lost.tolist() == missed


def test_the_less_probable_one_is_the_duplicate():
    twice = dict(boxes=tensor([1, 0, 11, 10], [0, 0, 10, 10]), labels=ints(1, 1), scores=tensor(0.6, 0.9))
    assert sort_detections(twice, TRUTH)[0] == ["duplicate", "right"]


def test_difficult_objects_are_no_errors():
    target = dict(TRUTH, difficult=torch.tensor([True, False, False]))
    kinds, missed = sort_detections(dict(boxes=tensor([0, 0, 10, 10]), labels=ints(1), scores=tensor(0.9)), target)
    assert kinds == [""] and missed.tolist() == [False, True, True]


def test_a_detection_inside_a_difficult_object_is_no_error_but_one_of_another_class_is():
    target = dict(boxes=tensor([0, 0, 100, 100]), labels=ints(1), difficult=torch.tensor([True]))
    inside = dict(boxes=tensor([10, 10, 30, 30], [10, 10, 30, 30], [80, 80, 180, 180]), labels=ints(1, 2, 1), scores=tensor(0.9, 0.8, 0.7))
    assert sort_detections(inside, target)[0] == ["", "background", "background"]


def test_where_nothing_counts_there_is_no_score():
    hidden = [dict(boxes=np.array([[0.0, 0, 9, 9]]), labels=np.array([k]), difficult=np.array([k == 2])) for k in (1, 2)]
    images = Images(["a", "b"], hidden, ["seen", "hidden"], DETECTION, None, "key")
    precision = torch.full((10, 101, 2), -1.0)
    with pytest.raises(CourseError, match="nothing to find"): scores_of(precision, images)
    precision[:, :, 0] = 0.5
    scores = scores_of(precision, images)
    assert scores["map"] == 0.5 and scores["per_class"]["hidden"] == dict(map=None, map_50=None, map_75=None, objects=1)


def test_the_threshold_has_the_best_f1():
    found = [dict(boxes=tensor([0, 0, 10, 10], [50, 0, 60, 10], [80, 80, 90, 90]), labels=ints(1, 2, 1), scores=tensor(0.9, 0.4, 0.3))]
    assert best_threshold(found, [TRUTH]) == pytest.approx(0.4)
    assert best_threshold([{k: v[:0] for k, v in found[0].items()}], [TRUTH]) == 0.5
    assert best_threshold(found, [{k: v[:0] for k, v in TRUTH.items()}]) == 0.5


# ---- reasons

class Says:
    "A detector that answers what it is told."
    size, classes, threshold, task, anchors = 96, ["a", "b", "c"], 0.5, DETECTION, GRID

    def __init__(self, answers): self.answers = list(answers)

    def detect(self, images, least=0.01): return [self.answers.pop(0) for _ in images]


def images_with(boxes, labels, size=96):
    targets = [dict(boxes=box.numpy(), labels=label.numpy()) for box, label in zip(boxes, labels)]
    return Images([f"{i}.png" for i in range(len(targets))], targets, ["a", "b", "c"], DETECTION,
                    lambda i: np.zeros((size, size, 3), np.uint8), sha1(f"{boxes}{labels}".encode()).hexdigest())


def answers_to(images, change):
    "The truth, changed."
    exact = [dict(boxes=torch.tensor(t["boxes"]), labels=torch.tensor(t["labels"]), scores=torch.linspace(0.9, 0.8, len(t["labels"])))
             for t in images.targets]
    return [dict(one, **change(one)) for one in exact]


BOXES = [tensor([10, 5, 40, 20], [50, 50, 70, 90]), tensor([60, 10, 90, 40]), tensor([5, 30, 25, 80])]
LABELS = [ints(1, 2), ints(3), ints(1)]
MISTAKES = {
    "x and y": lambda one: dict(boxes=one["boxes"][:, [1, 0, 3, 2]]),
    "one too low": lambda one: dict(labels=one["labels"] - 1),
    "one too high": lambda one: dict(labels=one["labels"] + 1),
    "centres and sides": lambda one: dict(boxes=xyxy_to_cxcywh(one["boxes"])),
    "taken for a corner": lambda one: dict(boxes=torch.cat([one["boxes"][:, :2], one["boxes"][:, 2:] - one["boxes"][:, :2]], 1)),
    "not the classes": lambda one: dict(labels=4 - one["labels"]),
    "do not fit": lambda one: dict(boxes=one["boxes"] + 9),
    "sure of nothing": lambda one: dict(scores=one["scores"] / 10),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_each_mistake_is_named(what):
    images = images_with(BOXES, LABELS)
    reasons = diagnose(Says(answers_to(images, MISTAKES[what])), images)
    assert any(what in reason for reason in reasons), reasons


def test_nothing_is_wrong_with_the_truth():
    images = images_with(BOXES, LABELS)
    assert diagnose(Says(answers_to(images, lambda one: {})), images) == []


def test_objects_too_small_for_the_anchors_are_named():
    images = images_with([box * 0.05 + 40 for box in BOXES], LABELS)
    assert any("fit no anchor" in reason for reason in diagnose(Says(answers_to(images, lambda one: {})), images))


# ---- images in, images out

def test_squares_keep_boxes_on_their_objects():
    image = np.zeros((60, 120, 3), np.uint8)
    image[15:45, 30:90] = 255
    one = Images(["a.png"], [dict(boxes=np.array([[30, 15, 90, 45]], np.float32), labels=np.array([1]), difficult=np.array([False]))],
                   ["a"], DETECTION, lambda i: image, "one white box")
    square = squared(one, 80)
    ys, xs = np.nonzero(square.read(0)[..., 0] > 127)
    assert square.read(0).shape == (80, 80, 3)
    assert square.targets[0]["boxes"][0].tolist() == [20, 20, 60, 60] == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert one.targets[0]["boxes"][0].tolist() == [30, 15, 90, 45]


def test_batches_follow_from_seed_epoch_and_step(streets):
    task = Detection(streets, 64, Recipe(augment="near", batch_size=5, seed=3))
    first, second = (task.loader(streets.train, torch.device("cpu"), True) for _ in range(2))
    second.batch(0, 0)
    for epoch, step in ((1, 2), (0, 1)):
        (a, s), (b, t) = first.batch(epoch, step), second.batch(epoch, step)
        assert torch.equal(a, b) and all(torch.equal(x["boxes"], y["boxes"]) for x, y in zip(s, t, strict=True))
    assert not torch.equal(first.batch(0, 0)[0], first.batch(1, 0)[0])


def test_views_are_made_anew_where_there_is_no_room(streets, monkeypatch):
    monkeypatch.setattr(scenes, "ROOM", 1)
    loader = Detection(streets, 64, Recipe(augment="ssd", batch_size=5)).loader(streets.train, torch.device("cpu"), True)
    loader.batch(0, 0)
    assert not loader.kept


def test_boxes_come_back_in_pixels_of_the_image(trained):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    wide = np.asarray(Image.fromarray(small).resize((192, 128), Image.Resampling.NEAREST))
    found = trained.detect([wide], least=0.0)[0]
    assert found["boxes"].shape == (len(found["scores"]), 4) and (found["boxes"] <= tensor(192, 128, 192, 128)).all()
    assert found["boxes"][:, 2].max() > 128


def test_drawings_show_each_box():
    image = np.full((50, 40, 3), 200, np.uint8)
    found = dict(boxes=tensor([5, 20, 30, 45]), labels=ints(2), scores=tensor(0.87))
    seen = draw(image, found, ["a", "kangaroo"])
    assert max(seen.shape) >= 480 and (seen != 200).any() and (draw(image, {k: v[:0] for k, v in found.items()}, ["a", "b"]) == 200).all()
    scale = seen.shape[0] // 50
    assert (seen[45 * scale, 10 * scale:25 * scale] != 200).any(1).all()            # the lower edge


# ---- trained, saved, measured

def test_saved_and_opened_it_says_the_same(trained, streets, tmp_path):
    trained.save(tmp_path / "b", architecture="ssd")
    again, image = open_model(tmp_path / "b"), streets.test.read(0)
    for name, value in trained.detect([image], least=0.0)[0].items(): assert torch.equal(value, again.detect([image], least=0.0)[0][name])
    assert again.threshold == trained.threshold and again.classes == streets.classes


def test_soft_suppression_is_kept_and_bundles_without_it_are_hard(trained, streets, tmp_path):
    soft, image = replace(trained, suppression="soft"), streets.test.read(0)
    kept = soft.detect([image])[0]
    assert trained.suppression == "hard" and not torch.equal(kept["scores"], trained.detect([image])[0]["scores"])
    soft.save(tmp_path / "b", architecture="ssd")
    again = open_model(tmp_path / "b")
    assert again.suppression == "soft" and torch.equal(again.detect([image])[0]["scores"], kept["scores"])
    described = tmp_path / "b" / "model.json"
    older = {name: value for name, value in json.loads(described.read_text()).items() if name not in ("suppression", "digest")}
    described.write_text(json.dumps(older | dict(digest=digest(older))))
    assert open_model(tmp_path / "b").suppression == "hard"
    described.write_text(json.dumps((other := older | dict(suppression="gentle")) | dict(digest=digest(other))))
    with pytest.raises(CourseError, match="suppression=gentle: use hard or soft"): open_model(tmp_path / "b")


def test_soft_suppression_is_an_option_and_decides_the_threshold(trained, streets, monkeypatch):
    with monkeypatch.context() as without_training:
        without_training.setattr(detection, "learn", None)
        with pytest.raises(CourseError, match="suppression=gentle: use hard or soft"): models["ssd"](streets, **TINY, suppression="gentle")
    soft = models["ssd"](streets, **TINY, suppression="soft")
    for a, b in zip(trained.model.state_dict().values(), soft.model.state_dict().values()): assert torch.equal(a, b)
    found = [one for i in range(len(streets.valid)) for one in soft.detect([streets.valid.read(i)])]
    assert soft.suppression == "soft" and soft.threshold == best_threshold(found, streets.valid.targets)


def test_scores_have_a_row_for_each_class(trained, streets):
    scores = evaluate_detector(trained, streets.test)
    assert list(scores["per_class"]) == streets.classes and scores["images"] == 6
    assert sum(row["objects"] for row in scores["per_class"].values()) == sum(len(t["labels"]) for t in streets.test.targets)
    assert 0 <= scores["map"] <= scores["map_50"] <= 1
    with pytest.raises(CourseError, match="empty"): evaluate_detector(trained, streets.test.subset([]))


def test_same_seed_same_weights_and_a_resumed_run_too(streets, trained, tmp_path, monkeypatch):
    from course_lib import loop
    monkeypatch.setattr(loop.Checkpoint, "due", lambda self: True)
    loss, left = Detection.loss, [3]
    def failing(self, outputs, targets):
        left[0] -= 1
        if left[0] == 0: raise KeyboardInterrupt
        return loss(self, outputs, targets)
    monkeypatch.setattr(Detection, "loss", failing)
    with pytest.raises(KeyboardInterrupt): models["ssd"](streets, **TINY, folder=tmp_path / "run")
    for name, value in dict(backbone_lr_scale=0.9, smallest=0.2, frozen=4, weights="published").items():
        with pytest.raises(CourseError, match=name):
            models["ssd"](streets, **{**TINY, name: value}, folder=tmp_path / "run", resume=True)
    again = models["ssd"](streets, **TINY, folder=tmp_path / "run", resume=True)
    for a, b in zip(trained.model.state_dict().values(), again.model.state_dict().values()): assert torch.equal(a, b)


def test_refusals(streets):
    single = load("streets?n=10&valid=5&test=5&size=32")
    with pytest.raises(CourseError, match="boxes"): models["ssd"](single, **TINY)
    with pytest.raises(CourseError, match="augment"): models["ssd"](streets, **{**TINY, "augment": "flip"})
    with pytest.raises(CourseError, match="published or none"): models["ssd"](streets, **{**TINY, "weights": "mine"})
    for name in scenes.ZOOMS:
        with pytest.raises(CourseError, match="boxes"): models["cnn"](single, augment=name, epochs=1)


def test_ten_images_by_heart_or_a_reason(streets, monkeypatch):
    asked = []
    monkeypatch.setattr(diagnosis, "diagnose", lambda *given: asked.append(given) or ["because"])
    score, reasons = learn_by_heart("ssd", streets, **{**TINY, "epochs": 1})
    assert score <= 0.95 and reasons == ["because"] and len(asked[0][1]) == 10


def test_a_detector_that_has_learnt_nothing_gets_a_reason(streets):
    score, reasons = learn_by_heart("ssd", streets, **{**TINY, "epochs": 1})
    assert score <= 0.95
    assert reasons


def test_three_commands(streets, tmp_path, capsys):
    write_splits(streets, "voc", tmp_path / "photos")
    data, out = str(tmp_path / "photos"), str(tmp_path / "finder")
    flags = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    assert cli.main(["train", "ssd", "--data", data, "--out", out, *flags]) == 0
    assert cli.main(["evaluate", out, "--data", data]) == 0
    assert "map_50" in (table := capsys.readouterr().out) and "missed" in table
    words = ["predict", out, f"{data}/JPEGImages", "--threshold", "0.0", "--top-k", "3", "--draw", str(tmp_path / "drawn"), "--out", str(tmp_path / "found.json")]
    assert cli.main(words) == 0
    rows = json.loads((tmp_path / "found.json").read_text())
    assert len(rows) == 28 == len(list((tmp_path / "drawn").rglob("*.jpg")))
    for row in rows:
        assert row["width"] == row["height"] == 64 and len(row["detections"]) == 3
        for thing in row["detections"]: assert thing["label"] in streets.classes and 0 <= min(thing["box"]) and max(thing["box"]) <= 64
    image = f"{data}/JPEGImages/{rows[0]['file'].split('/')[-1]}"
    assert cli.main(["predict", out, image, "--threshold", "0.0"]) == 0 and " at " in capsys.readouterr().out


def corners(*values):
    "A change of an annotation: its first box becomes this one."
    box = "".join(f"<{name}>{value}</{name}>" for name, value in zip(("xmin", "ymin", "xmax", "ymax"), values))
    return lambda xml: re.sub("<bndbox>.*?</bndbox>", f"<bndbox>{box}</bndbox>", xml, count=1, flags=re.S)


FAULTS = {"broken annotation": lambda xml: xml[:len(xml) // 2], "swapped corners": corners(40, 40, 10, 10),
          "box outside": corners(-9, -9, 30, 90), "zero-area box": corners(10, 10, 10, 30), "missing image": str,
          "unknown label": lambda xml: re.sub("<name>.*?</name>", "<name>tank</name>", xml, count=1)}


def test_a_folder_with_every_fault_is_named_repaired_and_never_a_nan(tmp_path):
    drawn = load("streets?view=detection&n=24&valid=6&test=6&size=64")
    folder = write_splits(drawn, "voc", tmp_path / "photos")
    listed = (folder / "ImageSets" / "Main" / "train.txt").read_text().split()
    for stem, (kind, change) in zip(listed, FAULTS.items()):
        path = folder / "Annotations" / f"{stem}.xml"
        path.write_text(change(path.read_text()))
        if kind == "missing image": next((folder / "JPEGImages").glob(f"{stem}.*")).unlink()
    (folder / "labels.txt").write_text("\n".join(drawn.classes))
    named = {(found.kind, found.where) for found in check(folder).findings}
    assert named >= {(kind, f"Annotations/{stem}.xml") for stem, kind in zip(listed, FAULTS)}
    trained = models["ssd"](load(folder), **TINY)
    assert all(np.isfinite([row["train_loss"], row["valid_loss"]]).all() for row in trained.about["history"])
    assert all(value.isfinite().all() for value in trained.model.state_dict().values())


def test_names_in_drawn_images_are_inside_and_apart():
    taken = []
    for box in [(10, 30, 60, 90)] * 4 + [(10, 10, 60, 15), (80, 0, 99, 20)]:     # four times the same, one higher, one in a corner
        taken.append(free_place(box, (30, 10), (100, 100), taken))
    assert [place[1] for place in taken[:4]] == [20, 30, 90, 80]                 # above, inside, below, inside at the bottom
    for n, (x1, y1, x2, y2) in enumerate(taken):
        assert 0 <= x1 < x2 <= 100 and 0 <= y1 < y2 <= 100
        assert not iou(torch.tensor([[x1, y1, x2, y2]]).float(), torch.tensor(taken[:n]).view(-1, 4).float()).any()
    assert free_place((10, 30, 60, 90), (30, 10), (100, 100), taken) == taken[0]  # nowhere is free: above
    assert free_place((0, 0, 4, 4), (30, 10), (20, 6), []) == (0, 0, 30, 10)      # an image smaller than the label


def test_only_detectors_draw(tmp_path, capsys):
    data = load("streets?n=10&valid=5&test=5&size=32")
    models["svm"](data).save(tmp_path / "b", architecture="svm")
    Image.fromarray(data.test.read(0)).save(tmp_path / "a.png")
    assert cli.main(["predict", str(tmp_path / "b"), str(tmp_path / "a.png"), "--draw", str(tmp_path / "d")]) == 2
    assert "--draw is for detectors" in capsys.readouterr().err


TWO = '''
import sys
import torch
import torch.distributed as dist
sys.path.insert(0, {tests!r})
from test_detection import known_answers
from course_lib.detection import CocoMetric, as_truth
dist.init_process_group("gloo")
found, truth = known_answers()
mine = slice(0, 3) if dist.get_rank() == 0 else slice(3, 5)
metric = CocoMetric(compute_on_cpu=True)
metric.update(found[mine], as_truth(truth[mine]))
scores = metric.compute()
if dist.get_rank() == 0: torch.save({{name: scores[name] for name in ("map", "map_50")}}, sys.argv[1])
dist.destroy_process_group()
'''


def known_answers():
    "Detections and truths of five images."
    rng = torch.Generator().manual_seed(3)
    def boxes(n):
        low = torch.rand(n, 2, generator=rng) * 40
        return torch.cat([low, low + 10 + 30 * torch.rand(n, 2, generator=rng)], 1)
    truth = [dict(boxes=boxes(n), labels=torch.randint(1, 3, (n,), generator=rng)) for n in (3, 1, 4, 2, 3)]
    found = [dict(boxes=t["boxes"] + 3 * torch.randn(t["boxes"].shape, generator=rng), labels=t["labels"],
                  scores=torch.rand(len(t["labels"]), generator=rng)) for t in truth]
    return found, truth


@pytest.mark.skipif(sys.platform == "win32", reason="torchrun's rendezvous")
def test_processes_with_unequal_shares_measure_as_one(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO.format(tests=str(Path(__file__).parent)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, script, tmp_path / "two.pt"], env=dict(os.environ, OMP_NUM_THREADS="1"), timeout=200,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found, truth = known_answers()
    (metric := CocoMetric()).update(found, as_truth(truth))
    expected = metric.compute()
    assert 0 < expected["map"] < 1
    for name, value in torch.load(tmp_path / "two.pt").items(): assert value == pytest.approx(expected[name].item(), abs=1e-9)


# ---- knock-outs: break one thing, and a check above must fail

def decoded_right(): test_detections_are_torchvisions({}, torch.Generator().manual_seed(0))
def scored_right(): test_difficult_objects_count_neither_way()
def errors_right(): test_the_less_probable_one_is_the_duplicate()


def turned(offsets, grid, *rest): return boxes_module.decode(offsets, grid, *rest)[..., [1, 0, 3, 2]]
def mirrored(offsets, grid, *rest): return boxes_module.decode(offsets * tensor(-1, 1, 1, 1), grid, *rest)
def all_stay(boxes, scores, labels, images, threshold, top): return boxes_module.nms(boxes, scores, labels, images, 1.0, top)
def counted(targets, device="cpu"): return [dict(t, iscrowd=t["iscrowd"] * 0) for t in as_truth(targets, device)]


KNOCK_OUTS = {
    "x and y swapped": (detection, "decode", turned, decoded_right),
    "sign of an offset": (detection, "decode", mirrored, decoded_right),
    "suppression off": (detection, "nms", all_stay, decoded_right),
    "difficult objects counted": (diagnosis, "as_truth", counted, scored_right),
}


@pytest.mark.parametrize("name", KNOCK_OUTS)
def test_knock_outs_are_noticed(name, monkeypatch):
    room, what, broken, check = KNOCK_OUTS[name]
    check()
    monkeypatch.setattr(room, what, broken)
    with pytest.raises(AssertionError): check()


def test_classes_from_zero_are_noticed(rng, monkeypatch):
    "A detector whose labels count from 0 agrees with nobody."
    outputs = random_outputs(rng)
    lower = [dict(found, labels=found["labels"] - 1) for found in detections(outputs, 96)]
    with pytest.raises(AssertionError): agree(lower, by_torchvision(outputs, 96))
