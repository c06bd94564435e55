"Boxes: by hand, by brute force, against torchvision; degenerate and crowded input; and every sign knocked out once."
import itertools
import math
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.ops import box_convert, box_iou, generalized_box_iou
from torchvision.ops import nms as torchvision_nms

from course_lib import boxes as module
from course_lib.boxes import (VARIANCES, anchors, bipartite, check_boxes, cxcywh_to_xyxy, decode, encode, giou, iou,
                              linear_scales, match, nms, pad_targets, per_cell, shapes, soft_nms, xyxy_to_cxcywh)
from course_lib.core import CourseError
from course_lib.data import load

tensor = lambda *rows: torch.tensor(rows, dtype=torch.float32)
squares = lambda *sides: [(side, side) for side in sides]
SSD300 = dict(maps=squares(38, 19, 10, 5, 3, 1), scales=[0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05],
              ratios=[[2], [2, 3], [2, 3], [2, 3], [2], [2]])
PIXELS = dict(image=(300, 300), steps=[8, 16, 32, 64, 100, 300])
KINDS = ["random", "touching", "nested", "identical", "empty"]


@pytest.fixture
def rng(): return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def ssd300(): return anchors(**SSD300, **PIXELS)


@pytest.fixture(scope="module")
def targets(): return load("streets?view=detection&n=8&valid=5&test=5").train.targets


def some(rng, n, kind="touching", size=300.0):
    "Boxes [n, 4] of a kind, x1 y1 x2 y2 within the size."
    corners = torch.rand(n, 2, 2, generator=rng).sort(1).values.flatten(1) * size
    if kind == "touching": return (corners * 8 / size).round() * size / 8       # on a coarse grid; some without area
    if kind == "nested":
        grow = torch.linspace(0, size / 2.1, n)[:, None]
        return torch.cat([grow, grow * 0.9, size - grow, size - grow * 0.8], 1)
    if kind == "identical": return corners[:1].expand(n, 4).clone()
    if kind == "empty": return torch.cat([corners[:, :2], corners[:, :2] + (corners[:, 2:] > size / 2)], 1)
    return corners


def padded(sets): return pad_targets([dict(boxes=s, labels=torch.ones(len(s))) for s in sets])


def matched(grid, sets, **how):
    found, labels = padded(sets)
    return match(grid, found, labels > 0, **how)


def one_to_one(quality):
    "By brute force: all pairs by falling IoU, then object, then anchor; joined if both are free."
    found, taken = [-1] * len(quality), set()
    for q, n, a in sorted((-q, n, a) for n, row in enumerate(quality.tolist()) for a, q in enumerate(row) if q > 0):
        if found[n] < 0 and a not in taken: found[n] = a; taken.add(a)
    return found


def match_by_force(grid, objects, threshold=0.5):
    found = torch.full((len(grid),), -1)
    if not len(objects): return found
    quality = iou(objects, grid)
    best, number = quality.max(0)
    found[best >= threshold] = number[best >= threshold]
    for n, a in enumerate(one_to_one(quality)):
        if a >= 0: found[a] = n
    return found


# ---- areas

@pytest.mark.parametrize("first, second", list(itertools.product(KINDS, KINDS)))
def test_iou_is_torchvisions_and_zero_where_that_is_nan(first, second, rng):
    a, b = some(rng, 40, first), some(rng, 30, second)
    ours, theirs = iou(a, b), box_iou(a, b)
    assert torch.equal(ours, theirs.nan_to_num(0)) and ((ours >= 0) & (ours <= 1)).all()
    theirs = generalized_box_iou(a, b)
    assert torch.allclose(giou(a, b)[theirs.isfinite()], theirs[theirs.isfinite()], atol=1e-5)
    assert ((giou(a, b) >= -1) & (giou(a, b) <= 1)).all()


def test_thousands_of_boxes_and_none_at_all(rng):
    a, b = some(rng, 3000, "random"), some(rng, 2000, "random")
    assert torch.equal(iou(a, b), box_iou(a, b))
    for n, m in ((0, 5), (5, 0), (0, 0)): assert iou(a[:n], b[:m]).shape == giou(a[:n], b[:m]).shape == (n, m)


def test_pairs_of_whole_batches(rng):
    a, b = some(rng, 24).view(2, 3, 4, 4), some(rng, 10).view(2, 1, 5, 4)
    for measure in (iou, giou):
        table = measure(a, b)
        assert table.shape == (2, 3, 4, 5)
        for i, j in itertools.product(range(2), range(3)): assert torch.equal(table[i, j], measure(a[i, j], b[i, 0]))


def test_half_precision_and_whole_numbers_are_widened():
    a, b = tensor([0, 0, 300, 300]), tensor([0, 0, 300, 150])  # the first has an area of 90,000, beyond float16
    for kind in (torch.float16, torch.bfloat16, torch.int64):
        assert abs(iou(a.to(kind), b.to(kind)).item() - 0.5) < 0.01


def test_gradients_are_those_of_the_numbers_and_always_finite(rng):
    a, b = (some(rng, 5, "random", 9.0).double() + torch.tensor([0, 0, 1, 1]) for _ in range(2))
    for measure in (iou, giou): assert gradcheck(measure, (a.requires_grad_(), b.requires_grad_()))
    for first, second in itertools.product(KINDS, KINDS):
        a, b = some(rng, 12, first).requires_grad_(), some(rng, 9, second).requires_grad_()
        for measure in (iou, giou):
            grads = torch.autograd.grad(measure(a, b).sum(), (a, b))
            assert all(grad.isfinite().all() for grad in grads)


def test_giou_pulls_boxes_together_where_iou_does_not():
    box, goal = tensor([20, 30, 24, 32]).requires_grad_(), tensor([0, 0, 4, 2])
    assert not torch.autograd.grad(iou(box, goal).sum(), box)[0].any()
    grad, = torch.autograd.grad(giou(box, goal).sum(), box)
    assert (grad[0, :2] < 0).all() and giou(box + 10 * grad, goal) > giou(box, goal)


@pytest.mark.parametrize("kind", KINDS)
def test_conversions_are_torchvisions_and_each_others_inverse(kind, rng):
    found = some(rng, 50, kind).view(5, 10, 4)
    centres = xyxy_to_cxcywh(found)
    assert torch.equal(centres, box_convert(found, "xyxy", "cxcywh"))
    assert torch.allclose(cxcywh_to_xyxy(centres), found, atol=1e-4)


# ---- anchors

LAYOUTS = {
    "ssd300": dict(**SSD300, **PIXELS),
    "ssdlite320": dict(maps=squares(20, 10, 5, 3, 2, 1), scales=linear_scales(6, 0.2, 0.95), ratios=[[2, 3]] * 6,
                       image=(320, 320)),
    "wide": dict(maps=[(12, 20), (6, 10), (1, 3)], scales=linear_scales(3), ratios=[[2], [2, 3], []],
                 image=(192, 320)),
    "tall, stepped": dict(maps=[(20, 12), (10, 6)], scales=linear_scales(2, 0.1, 0.5), ratios=[[3], [1.5]],
                          image=(320, 192), steps=[16, 32]),
    "one map": dict(maps=[(4, 4)], scales=linear_scales(1, 0.3, 0.6), ratios=[[2]], image=(64, 64)),
    "not clipped": dict(maps=[(2, 2)], scales=[0.8, 1.2], ratios=[[2]], image=(100, 100), clip=False)}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_anchors_are_torchvisions(layout):
    height, width = layout["image"]
    theirs = DefaultBoxGenerator(layout["ratios"], scales=layout["scales"], steps=layout.get("steps"),
                                 clip=layout.get("clip", True))
    made = theirs._grid_default_boxes(layout["maps"], layout["image"])
    made = torch.cat([made[:, :2] - 0.5 * made[:, 2:], made[:, :2] + 0.5 * made[:, 2:]], 1)
    assert (anchors(**layout) / torch.tensor([width, height] * 2) - made).abs().max() < 1e-6
    assert per_cell(layout["ratios"]) == theirs.num_anchors_per_location()
    assert torch.allclose(shapes(*layout["scales"][:2], layout["ratios"][0]), theirs._wh_pairs[0])


def test_scales_are_torchvisions():
    for n, low, high in ((6, 0.2, 0.95), (3, 0.1, 0.5), (1, 0.3, 0.6)):
        assert linear_scales(n, low, high) == DefaultBoxGenerator([[2]] * n, low, high).scales


def test_ssd300_has_8732_anchors_each_with_an_area(ssd300):
    assert len(ssd300) == 38**2 * 4 + 19**2 * 6 + 10**2 * 6 + 5**2 * 6 + 3**2 * 4 + 4 == 8732
    assert (ssd300[:, 2:] > ssd300[:, :2]).all()


def test_anchors_in_shares_are_those_in_pixels_and_making_them_changes_nothing():
    layout = LAYOUTS["wide"]
    shares, again = anchors(**{**layout, "image": (1.0, 1.0)}), anchors(**layout)
    assert torch.allclose(shares * torch.tensor([320.0, 192, 320, 192]), again)
    again.zero_()
    assert anchors(**layout).abs().sum() > 0


@pytest.mark.parametrize("change", [dict(scales=[0.1, 0.2]), dict(ratios=[[2]]), dict(steps=[8])])
def test_lists_that_do_not_belong_together_are_refused(change):
    with pytest.raises(CourseError, match="maps need"): anchors(**{**SSD300, **change})


# ---- matching

@pytest.mark.parametrize("kind", KINDS)
def test_matching_is_brute_force(kind, rng):
    coarse = some(rng, 25, "touching") + torch.tensor([0.0, 0.0, 9.0, 9.0])
    grid = torch.cat([anchors(squares(4, 2), [0.3, 0.5, 0.9], [[2], [2]], (300, 300)), coarse])
    for case in range(60):
        sets = [some(rng, n, kind) for n in torch.randint(0, 14, (3,), generator=rng).tolist()]
        threshold = (0.3, 0.5, 0.7)[case % 3]
        for found, objects in zip(matched(grid, sets, threshold=threshold), sets):
            assert torch.equal(found, match_by_force(grid, objects, threshold))


def test_one_to_one_is_brute_force_with_equal_values_everywhere(rng):
    for _ in range(200):
        n, a = (int(torch.randint(1, 9, (1,), generator=rng)) for _ in range(2))
        quality = torch.randint(0, 4, (2, n, a), generator=rng) / 4
        expected = [one_to_one(table) for table in quality]
        assert bipartite(quality.clone()).tolist() == expected


def test_matching_is_torchvisions_where_no_two_objects_want_the_same_anchor(ssd300, rng):
    compared = 0
    for case in range(30):
        objects = some(rng, 1 + case % 12, "random") * 0.9 + torch.tensor([0.0, 0.0, 20.0, 20.0])
        quality = box_iou(objects, ssd300)
        if len(quality.argmax(1).unique()) < len(objects): continue
        compared += 1
        assert torch.equal(matched(ssd300, [objects])[0], SSDMatcher(0.5)(quality))
    assert compared >= 20


def test_every_object_has_an_anchor_in_any_order(ssd300, rng):
    for n in (50, 300, 1500):
        objects = some(rng, n, "random") * 0.95 + torch.tensor([0.0, 0.0, 6.0, 9.0])
        order = torch.randperm(n, generator=rng)
        found, other = matched(ssd300, [objects, objects[order]])
        assert set(found[found >= 0].tolist()) == set(range(n))
        assert torch.equal(found[found >= 0], order[other[found >= 0]]) and torch.equal(found < 0, other < 0)


def test_many_objects_in_the_same_place_get_an_anchor_each(ssd300):
    found = matched(ssd300, [tensor([100, 110, 180, 200]).expand(120, 4)])[0]
    assert set(found[found >= 0].tolist()) == set(range(120))


def test_more_objects_than_anchors():
    grid = anchors([(1, 2)], [0.5, 0.7], [[]], (8, 8))                 # 4 anchors
    found = matched(grid, [tensor([1, 1, 7, 7]).expand(9, 4)])[0]
    assert sorted(found.tolist()) == [0, 1, 2, 3]


def test_images_without_objects(ssd300, rng):
    assert (match(ssd300, torch.zeros(3, 0, 4), torch.zeros(3, 0, dtype=torch.bool)) == -1).all()
    found = matched(ssd300, [some(rng, 0), some(rng, 3, "random"), some(rng, 0)])
    assert found.dtype == torch.int64 and (found[[0, 2]] == -1).all() and (found[1] >= 0).any()


def test_padding_and_the_other_images_do_not_matter(ssd300, rng):
    sets = [some(rng, n, "random") for n in (4, 1, 9, 0)]
    boxes, labels = padded(sets)
    expected = match(ssd300, boxes, labels > 0)
    for rubbish in (math.nan, math.inf, 77.0):
        spoilt = boxes.where((labels > 0)[..., None], rubbish)
        assert torch.equal(match(ssd300, spoilt, labels > 0), expected)
    for objects, row in zip(sets, expected): assert torch.equal(matched(ssd300, [objects])[0], row)
    gaps = torch.zeros(1, 6, 4)
    gaps[0, [1, 3, 4, 5]] = sets[0]                                    # valid ones need not come first
    found = match(ssd300, gaps, torch.tensor([[False, True, False, True, True, True]]))[0]
    assert torch.equal(found[found >= 0], torch.tensor([1, 3, 4, 5])[expected[0][found >= 0]])


def test_objects_that_touch_no_anchor_get_none():
    grid = tensor([0, 0, 4, 4], [4, 0, 8, 4])
    assert matched(grid, [tensor([20, 20, 30, 30], [1, 1, 1, 3])]).tolist() == [[-1, -1]]
    with pytest.raises(CourseError, match="threshold=0"): matched(grid, [tensor([0, 0, 4, 4])], threshold=0)


def test_the_inputs_stay_as_they_are(ssd300, rng):
    boxes, labels = padded([some(rng, 5), some(rng, 2)])
    before = boxes.clone(), ssd300.clone()
    match(ssd300, boxes, labels > 0)
    assert torch.equal(boxes, before[0]) and torch.equal(ssd300, before[1])


def test_targets_of_the_data_can_be_padded(targets):
    boxes, labels = pad_targets(targets)
    assert boxes.dtype == torch.float32 and labels.dtype == torch.int64
    for own, numbers, target in zip(boxes, labels, targets):
        n = len(target["labels"])
        assert np.array_equal(own[:n], target["boxes"]) and np.array_equal(numbers[:n], target["labels"])
        assert not own[n:].any() and not numbers[n:].any()


# ---- offsets

def test_offsets_are_torchvisions_and_come_back(ssd300, rng):
    objects = some(rng, len(ssd300), "random") + torch.tensor([0.0, 0.0, 1.0, 2.0])
    coder, offsets = BoxCoder((10.0, 10.0, 5.0, 5.0)), encode(objects, ssd300)
    assert torch.allclose(offsets, coder.encode_single(objects, ssd300), atol=1e-4, rtol=1e-4)
    assert torch.allclose(decode(offsets, ssd300), objects, atol=2e-3)
    said = torch.randn(3, len(ssd300), 4, generator=rng) * 8
    for own, ours in zip(said, decode(said, ssd300)):
        assert torch.allclose(ours, coder.decode_single(own, ssd300), atol=1e-2, rtol=1e-4)


def test_decoding_is_finite_whatever_the_network_says(ssd300):
    for value in (1e4, -1e4, 1e30): assert decode(torch.full((len(ssd300), 4), value), ssd300).isfinite().all()
    widest = decode(tensor([0, 0, 1e4, 0]), tensor([0, 0, 2, 2]))[0]
    assert abs((widest[2] - widest[0]) / 2 - 1000 / 16) < 1e-3


def test_other_variances_and_double_precision(rng):
    grid = anchors([(2, 3)], [0.4, 0.5], [[2]]).double()
    objects = (some(rng, len(grid), "random", 1.0) + torch.tensor([0, 0, 0.1, 0.1])).double()
    for variances in (VARIANCES, (1.0, 1.0, 1.0, 1.0)):
        assert torch.allclose(decode(encode(objects, grid, variances), grid, variances), objects)
    assert gradcheck(lambda offsets: decode(offsets, grid), encode(objects, grid).requires_grad_())


# ---- duplicates

def nms_by_force(boxes, scores, threshold):
    left, kept = sorted(range(len(boxes)), key=lambda i: -scores[i]), []
    while left:
        best, *left = left
        kept.append(best)
        left = [i for i in left if iou(boxes[best:best + 1], boxes[i:i + 1]).item() <= threshold]
    return kept


@pytest.mark.parametrize("kind", KINDS)
def test_nms_is_brute_force_and_torchvisions(kind, rng):
    for case in range(60):
        n, threshold = int(torch.randint(0, 30, (1,), generator=rng)), (0.0, 0.45, 0.7)[case % 3]
        boxes, scores = some(rng, n, kind), torch.randint(0, 6, (n,), generator=rng) / 6
        kept = nms(boxes, scores, threshold=threshold)
        assert kept.tolist() == nms_by_force(boxes, scores.tolist(), threshold)
        if kind != "empty" and threshold: assert torch.equal(kept, torchvision_nms(boxes, scores, threshold))


@pytest.mark.parametrize("n", [0, 1, 60, 3000])  # torchvision changes its method at 1000
def test_nms_keeps_classes_and_images_apart_and_its_order(n, rng):
    boxes = some(rng, n, "random") - 150.0                            # half of the coordinates are negative
    scores = torch.randint(0, 20, (n,), generator=rng) / 20
    labels, images = torch.randint(1, 5, (n,), generator=rng), torch.randint(0, 4, (n,), generator=rng)
    expected = []
    for image in range(4):
        own = []
        for label in range(1, 5):
            numbers = ((images == image) & (labels == label)).nonzero()[:, 0]
            own += numbers[torchvision_nms(boxes[numbers], scores[numbers], 0.45)].tolist()
        expected += sorted(own, key=lambda i: (-scores[i].item(), i))[:25]
    assert nms(boxes, scores, labels, images, top=25).tolist() == expected


def test_nms_of_boxes_in_far_apart_groups_is_as_exact_as_alone(rng):
    boxes = some(rng, 300, "random", 1.0)
    alone = nms(boxes, torch.linspace(1, 0, 300))
    groups = torch.full((300,), 5000)
    assert torch.equal(nms(boxes, torch.linspace(1, 0, 300), groups, groups), alone)


def soft_nms_by_force(boxes, scores, sigma, least):
    "The new scores of a class, {number: score}, one box after the other in double precision."
    boxes, scores, left, new = boxes.double(), scores.double().clone(), list(range(len(boxes))), {}
    while left:
        best = max(left, key=lambda i: (scores[i].item(), -i))
        left.remove(best)
        new[best] = scores[best].item()
        for i in left: scores[i] *= (-iou(boxes[best:best + 1], boxes[i:i + 1])[0, 0] ** 2 / sigma).exp()
    return {i: score for i, score in new.items() if score > least}


@pytest.mark.parametrize("kind", KINDS)
def test_soft_nms_is_brute_force(kind, rng):
    for case in range(30):
        n, sigma, least = int(torch.randint(0, 30, (1,), generator=rng)), (0.5, 0.05, 5.0)[case % 3], (0.001, 0.1)[case % 2]
        boxes, scores = some(rng, n, kind), torch.randint(0, 6, (n,), generator=rng) / 6
        given = scores.clone()
        kept, new = soft_nms(boxes, scores, sigma=sigma, least=least)
        expected = soft_nms_by_force(boxes, scores, sigma, least)
        assert torch.equal(scores, given) and kept.dtype == torch.int64 and kept.shape == new.shape and new.dtype == torch.float32
        assert kept.tolist() == sorted(expected, key=lambda i: (-expected[i], i))
        assert torch.allclose(new, torch.tensor([expected[i] for i in kept.tolist()])) and (new.diff() <= 0).all()


@pytest.mark.parametrize("n", [0, 1, 60, 400])
def test_soft_nms_keeps_classes_and_images_apart_and_its_order(n, rng):
    boxes, scores = some(rng, n, "random") - 150.0, torch.randint(0, 20, (n,), generator=rng) / 20
    labels, images = torch.randint(1, 5, (n,), generator=rng), torch.randint(0, 4, (n,), generator=rng) * 2  # no image 1
    expected, values = [], {}
    for image in range(0, 8, 2):
        own = []
        for label in range(1, 5):
            numbers = ((images == image) & (labels == label)).nonzero()[:, 0]
            found = soft_nms_by_force(boxes[numbers], scores[numbers], 0.5, 0.001)
            values |= {numbers[i].item(): score for i, score in found.items()}
            own += numbers[list(found)].tolist()
        expected += sorted(own, key=lambda i: (-values[i], i))[:25]
    kept, new = soft_nms(boxes, scores, labels, images, top=25)
    assert kept.tolist() == expected and torch.allclose(new, torch.tensor([values[i] for i in expected]))


@pytest.mark.parametrize("sigma", [0, -1.0, math.nan, math.inf, "0.5", None])
def test_a_sigma_that_is_not_positive_is_refused(sigma):
    for n in (0, 2):
        with pytest.raises(CourseError, match="sigma="): soft_nms(torch.zeros(n, 4), torch.zeros(n), sigma=sigma)


# ---- the boundary

GOOD = [1.0, 2.0, 7.0, 4.0]


@pytest.mark.parametrize("box, label, words", [
    ([math.nan, 2, 7, 4], 1, "finite"), ([1, 2, math.inf, 4], 1, "finite"), ([-math.inf, 2, math.inf, 4], 1, "finite"),
    ([0, 0, 1e30, 1e30], 1, "usable size"), ([7, 2, 1, 4], 1, "swapped"), ([1, 4, 7, 2], 1, "swapped"),
    ([7, 4, 1, 2], 1, "swapped"), ([1, 2, 1, 4], 1, "no area"), ([1, 2, 7, 2], 1, "no area"),
    ([3, 3, 3, 3], 1, "no area"), (GOOD, 0, "background"), (GOOD, -1, "background")])
@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_bad_boxes_are_refused_by_file_and_number(box, label, words, make):
    with pytest.raises(CourseError, match=rf"'a/7\.xml', box 2 .*{words}"):
        check_boxes(make([GOOD, GOOD, box, box]), make([1, 2, label, label]), "a/7.xml")


@pytest.mark.parametrize("boxes, labels", [
    ([GOOD], [1, 2]), (GOOD, [1]), ([GOOD[:3]], [1]), ([GOOD], [[1]]), ([GOOD], [1.0]), ([[GOOD]], [1])])
def test_wrong_shapes_are_refused(boxes, labels):
    with pytest.raises(CourseError, match="'x'.*expected"): check_boxes(torch.tensor(boxes), torch.tensor(labels), "x")


def test_good_targets_pass(targets):
    check_boxes(torch.tensor([GOOD, GOOD]), torch.tensor([1, 5]), "x")
    check_boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), "an image without objects")
    for target in targets: check_boxes(target["boxes"], target["labels"], "streets")


# ---- knock-outs: numbers by hand that any wrong sign, side or order would change

def by_hand(m):
    "Every function of a module on lopsided numbers. AssertionError if one of them is wrong."
    close = lambda found, *rows: found.shape == tensor(*rows).shape and torch.allclose(found, tensor(*rows), atol=1e-5)
    a, b, far = tensor([0, 0, 6, 2]), tensor([3, 1, 9, 3]), tensor([8, 5, 9, 9])
    assert close(m.iou(a, b), [3 / 21]) and close(m.iou(a, far), [0])                    # 3 x 1 is shared
    assert close(m.giou(a, b), [3 / 21 - (27 - 21) / 27]) and close(m.giou(a, far), [-(81 - 16) / 81])
    assert close(m.iou(a, tensor([8, 1, 9, 3], [1, 7, 3, 9])), [0, 0])                   # beside it, and below
    assert m.iou(tensor([1, 1, 1, 5]), tensor([1, 1, 1, 5])).item() == 0
    assert close(m.xyxy_to_cxcywh(tensor([1, 2, 7, 4])), [4, 3, 6, 2])
    assert close(m.cxcywh_to_xyxy(tensor([4, 3, 6, 2])), [1, 2, 7, 4])
    wide = m.anchors([(1, 2)], [0.5, 0.72], [[4]], image=(10, 40))
    assert close(m.xyxy_to_cxcywh(wide)[[0, 1, 2, 3, 4]],
                 [10, 5, 20, 5], [10, 5, 24, 6], [10, 5, 40, 2.5], [10, 5, 10, 10], [30, 5, 20, 5])
    two = m.anchors([(2, 1), (1, 1)], [0.2, 0.4, 0.6], [[], []], image=(10, 40), steps=[4, 10])
    assert close(m.xyxy_to_cxcywh(two)[[0, 2]], [2, 2, 8, 2], [2, 6, 8, 2]) and len(two) == 6
    grid = tensor([0, 0, 4, 4], [4, 0, 8, 4], [8, 0, 12, 4])
    sets = [tensor([1, 0, 5, 4], [8, 0, 12, 2]), tensor([5, 1, 6, 2]), tensor([4, 0, 8, 3], [5, 0, 9, 4]),
            tensor([5, 0, 9, 4], [4, 0, 8, 3]), tensor([4, 0, 8, 3], [4, 0, 8, 3]), tensor([0, 0, 8, 4]),
            torch.zeros(0, 4)]
    boxes, labels = m.pad_targets([dict(boxes=s, labels=torch.full((len(s),), 2)) for s in sets])
    assert m.match(grid, boxes, labels > 0).tolist() == [[0, -1, 1], [-1, 0, -1], [-1, 0, 1], [-1, 1, 0], [-1, 0, -1],
                                                         [0, 0, -1], [-1, -1, -1]]
    anchor, thing = m.cxcywh_to_xyxy(tensor([10, 10, 10, 20])), m.cxcywh_to_xyxy(tensor([12, 9, 20, 5]))
    offsets = [2, -0.5, math.log(2) / 0.2, math.log(0.25) / 0.2]
    assert close(m.encode(thing, anchor), offsets) and close(m.decode(tensor(offsets), anchor), [2, 6.5, 22, 11.5])
    chain = tensor([0, 0, 4, 4], [1, 0, 5, 4], [2, 0, 6, 4], [8, 0, 12, 4])
    assert m.nms(chain, torch.tensor([0.8, 0.9, 0.7, 0.6])).tolist() == [1, 3]
    assert m.nms(chain, torch.tensor([0.8, 0.9, 0.7, 0.6]), torch.tensor([1, 2, 1, 1])).tolist() == [1, 0, 2, 3]
    numbers = torch.tensor([1, 0, 1, 0])
    assert m.nms(chain, torch.tensor([0.8, 0.9, 0.7, 0.6]), None, numbers, top=1).tolist() == [1, 0]
    assert m.nms(tensor([0, 0, 10, 10], [-11, -11, -1, -1]), torch.ones(2), torch.tensor([0, 1])).tolist() == [0, 1]
    kept, new = m.soft_nms(chain, torch.tensor([0.8, 0.9, 0.7, 0.6]))                    # IoUs 12/20 and 8/24
    assert kept.tolist() == [1, 3, 0, 2]
    assert close(new, *[0.9, 0.6, 0.8 * math.exp(-0.72), 0.7 * math.exp(-0.72 - 2 / 9)])
    assert m.soft_nms(chain, torch.tensor([0.8, 0.9, 0.7, 0.6]), torch.tensor([1, 2, 1, 1]))[0].tolist() == [1, 0, 3, 2]
    assert m.soft_nms(chain, torch.tensor([0.8, 0.9, 0.7, 0.6]), None, numbers, top=1)[0].tolist() == [1, 0]


def test_the_numbers_by_hand(): by_hand(module)


KNOCK_OUTS = {
    "gaps beside count as overlap": (".clamp_(min=0)              # the width", "              # the width"),
    "gaps below count as overlap": (".clamp_(min=0)             # times", "             # times"),
    "x and y swapped in the IoU": ("torch.min(ay2, by2).sub_", "torch.min(ax2, by2).sub_"),
    "union without the overlap": ("union.sub_(inter)", "union"),
    "0/0": ("return inter / union.where(union > 0, 1)\n", "return inter / union\n"),
    "hull for union": ("(hull - union)", "(hull + union)"),
    "centre is the corner": ("(low + high) / 2", "low"),
    "sides have the wrong sign": ("high - low", "low - high"),
    "rows and columns swapped": ("torch.stack([x, y], -1)", "torch.stack([y, x], -1)"),
    "width and height swapped": ("torch.tensor([width, height, width, height])", "torch.tensor([height, width] * 2)"),
    "ratios upside down": ("for side in ((w, h), (h, w))", "for side in ((h, w), (w, h))"),
    "no half cell": ("torch.arange(columns) + 0.5", "torch.arange(columns)"),
    "steps forgotten": ("if steps else (rows, columns)", "if False else (rows, columns)"),
    "no forced match": ("matched[b, own[b, n]] = n", "pass"),
    "the later object overwrites": ("own = bipartite(quality)", "own = quality.argmax(-1)"),
    "no threshold": (">= threshold).nonzero", ">= 2).nonzero"),
    "sign of the offset of the centre": ("there[..., :2] - here[..., :2]", "here[..., :2] - there[..., :2]"),
    "sign of the offset of the sides": ("there[..., 2:] / here[..., 2:]", "here[..., 2:] / there[..., 2:]"),
    "sign when decoding": ("here[..., :2] + offsets[..., :2]", "here[..., :2] - offsets[..., :2]"),
    "x and y swapped when encoding": ("- here[..., :2]) / here[..., 2:]", "- here[..., :2]) / here[..., 2:].flip(-1)"),
    "variances forgotten": ("return torch.cat([centre, sides], -1) /", "return torch.cat([centre, sides], -1) + 0 *"),
    "NMS off": ("threshold).sort().values", "1.0).sort().values"),
    "classes mixed in NMS": ("* (labels.max() + 1) + labels", "* (labels.max() + 1)"),
    "images mixed in NMS": ("images * (labels.max() + 1)", "0 * (labels.max() + 1)"),
    "negative coordinates in NMS": ("boxes.double() - boxes.min()", "boxes.double()"),
    "top of all images": ("kept[rank < top]", "kept[:top]"),
    "soft-NMS without the square": ("[:, 0] ** 2 / sigma", "[:, 0] / sigma"),
    "soft-NMS leaves scores as they are": ("left = left * (-iou", "left * (-iou"),
    "soft-NMS forgets the second class": ("new[row, best] += score", "new[0, best[0]] += score[0]")}


@pytest.mark.parametrize("right, wrong", KNOCK_OUTS.values(), ids=KNOCK_OUTS)
def test_knock_outs_are_caught(right, wrong):
    source = Path(module.__file__).read_text(encoding="utf-8")
    assert right in source, "the knock-out is out of date"
    broken = types.ModuleType("broken")
    broken.__package__ = "course_lib"
    exec(compile(source.replace(right, wrong), "broken", "exec"), broken.__dict__)
    with pytest.raises(AssertionError): by_hand(broken)
