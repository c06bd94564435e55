"The ingredients of recipes: augmentations, progressive resizing, views, Muon."
from dataclasses import replace
from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn

from course_lib.core import CourseError, models, open_model
from course_lib.data import SINGLE, load, pixels
from course_lib.scenes import ZOOMS
from course_lib.modern import MUON, Muon, Whiten, orthogonal
from course_lib.recipes import SpeedNet, cutmix, cutout, mixup, training_flops
from course_lib.training import LEAST, Recipe, augmentations, generator, optimizers, side_at, tasks
from course_lib.loop import fit
from course_lib.predictors import networks, tta_views

models.discover()
K = 4


@pytest.fixture(scope="module")
def splits(): return load("streets?n=60&valid=20&test=20&size=32")


def batch(n=24, side=32):
    return torch.randint(256, (n, 3, side, side), dtype=torch.uint8, generator=generator(1)), torch.arange(n) % K


def rng(epoch, n=24):
    found = generator(epoch)
    found.epoch, found.numbers = epoch, np.arange(n)
    return found


@pytest.mark.parametrize("name", sorted(set(augmentations) - set(ZOOMS)))  # those with boxes: see test_detection
def test_every_augmentation_follows_from_its_dice_and_keeps_the_shape(name):
    images, targets = batch()
    kept = images.clone()
    torch.manual_seed(1)
    first = augmentations[name](images, targets, rng(7), K)
    torch.manual_seed(2)
    second, third = (augmentations[name](images, targets, rng(seed), K) for seed in (7, 8))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1]) and torch.equal(images, kept)
    assert first[0].shape == images.shape and not torch.equal(first[0].float(), third[0].float())
    assert not torch.equal(first[0].float(), images.float()) and 0 <= first[0].min() and first[0].max() <= 255


@pytest.mark.parametrize("name", sorted(set(augmentations) - set(ZOOMS)))  # those with boxes: see test_detection
def test_every_augmentation_takes_a_single_image(name):
    images, targets = batch(1)
    assert augmentations[name](images, targets, rng(7, 1), K)[0].shape == images.shape


@pytest.mark.parametrize("mix", [mixup, cutmix])
def test_mixed_answers_are_shares_of_the_images(mix):
    colours = torch.eye(3)[torch.arange(30) % 3][:, :, None, None].expand(-1, -1, 24, 24) * 255.0
    for trial in range(30):
        images, answers = mix(colours, torch.arange(30) % 3, generator(trial), 3)
        assert torch.allclose(images.mean((2, 3)) / 255, answers, atol=1e-4)
    several = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    assert mix(colours[:2], several, generator(0), 3)[1].max() <= 1


def test_cutout_greys_at_most_a_quarter():
    images, targets = batch(200, 32)
    changed = (cutout(images, targets, generator(3), K)[0] != images).any(1).float().mean((1, 2))  # share of each image
    assert changed.max() <= 0.26 and changed.mean() > 0.1


def test_nudged_images_move_by_two_pixels_at_most():
    ramp = torch.arange(32).expand(64, 3, 32, 32).contiguous()             # a pixel's value is its column
    moved, _ = augmentations["nudge"](ramp, None, generator(1), K)
    offsets = (moved[:, 0, :, 10] - 10).unique().tolist()
    assert offsets == [-2, -1, 0, 1, 2]


def test_alternating_shows_every_image_both_ways_in_two_epochs(splits):
    recipe = Recipe(augment="alternate", batch_size=7)
    loader = tasks[SINGLE](splits, 32, recipe).loader(splits.train, torch.device("cpu"), True)
    seen = []
    for epoch in (0, 1):
        where = np.concatenate([loader.batches.numbers(epoch, step) for step in range(len(loader))])
        seen.append(torch.cat([loader.batch(epoch, step)[0] for step in range(len(loader))])[np.argsort(where)])
    assert torch.equal(seen[0], seen[1].flip(3))
    mirrored = (seen[0] == tasks[SINGLE](splits, 32, replace(recipe, augment="")).loader(
        splits.train, torch.device("cpu")).batch(0, 0)[0]).flatten(1).all(1)
    assert 0.2 < mirrored.float().mean() < 0.8


def test_bytes_are_asked_for_by_name():
    with pytest.raises(CourseError, match="put mixup last"): augmentations["randaugment"](batch()[0].float(), None, generator(0), K)


def test_images_grow_to_their_full_size(splits):
    recipe = Recipe(epochs=8, progressive_resizing=0.5)
    sides = [side_at(32, epoch, recipe) for epoch in range(8)]
    assert sides[0] == 16 and sides == sorted(sides) and sides[6:] == [32, 32]
    assert all(side_at(32, n - 1, Recipe(epochs=n, progressive_resizing=0.5)) == 32 for n in range(1, 8))
    loader = tasks[SINGLE](splits, 32, recipe).loader(splits.train, torch.device("cpu"), True)
    assert [loader.batch(epoch, 0)[0].shape[-1] for epoch in (0, 7)] == [16, 32]
    measuring = tasks[SINGLE](splits, 32, recipe).loader(splits.valid, torch.device("cpu"))
    assert measuring.batch(0, 0)[0].shape[-1] == 32


@pytest.mark.parametrize("views", [2, 6])
def test_with_views_predictions_do_not_depend_on_left_and_right(splits, tmp_path, views):
    trained = models["speedrun"](splits, size="small", epochs=2, batch_size=20, tta=views)
    images = np.array(pixels(splits.test, 32))
    left, right = trained.predict_proba(images), trained.predict_proba(images[:, :, ::-1])
    assert np.allclose(left, right, atol=0.02)
    trained.save(tmp_path / "b")
    assert open_model(tmp_path / "b").tta == views and np.array_equal(open_model(tmp_path / "b").predict_proba(images), left)
    assert not np.allclose(replace(trained, tta=1).predict_proba(images), left, atol=1e-4)


def test_views_are_the_images_moved_and_mirrored(splits):
    images = torch.rand(3, 3, 8, 8, generator=generator(1))
    seen = tta_views(images, 6)
    assert len(tta_views(images, 1)) == 1 and len(tta_views(images, 2)) == 2 and len(seen) == 6
    assert torch.equal(seen[0], images) and all(torch.equal(seen[i].flip(3), seen[i + 1]) for i in (0, 2, 4))
    assert torch.equal(seen[2][:, :, :-1, :-1], images[:, :, 1:, 1:]) and torch.equal(seen[4][:, :, 1:, 1:], images[:, :, :-1, :-1])
    with pytest.raises(CourseError, match="use 1, 2 or 6"): models["speedrun"](splits, tta=3)


@pytest.mark.parametrize("shape", [(8, 50), (50, 8), (32, 32)])
def test_orthogonal_equals_the_singular_value_decomposition(shape):
    matrix = torch.randn(shape, generator=generator(4))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonal(matrix, times=6)
    values = torch.linalg.svdvals(found)
    assert 0.5 < values.min() and values.max() < 1.3  # the polynomial settles near one, not at it
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), 0) > 0.97


def test_muon_keeps_the_length_of_filters_and_learns():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    x = torch.randn(64, 3, 8, 8)
    y = x[:, 0].mean((1, 2)).gt(0).long()
    optimizer, losses = Muon([dict(params=[p for p in model.parameters() if (p.ndim == 4) == filters], filters=filters)
                              for filters in (True, False)], lr=0.1, momentum=0.6), []
    for _ in range(60):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] and 2 < model[0].weight.norm() < 4
    state = optimizer.state_dict()
    assert torch.load(_saved(state), weights_only=True)["param_groups"] == state["param_groups"]


def test_muon_takes_filters_of_zeros_and_heeds_lr_scale():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    nn.init.zeros_(model[2].weight)
    model[0].weight.lr_scale = 0.25
    optimizer = optimizers["muon"](model, Recipe(**MUON))
    assert sorted(group["lr_scale"] for group in optimizer.param_groups if group["filters"]) == [0.25, 1.0]
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(1, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


def _saved(state):
    import io
    torch.save(state, file := io.BytesIO())
    file.seek(0)
    return file


@pytest.mark.parametrize("name", ["speedrun", "resnet"])
def test_the_first_layer_whitens_and_is_not_trained(splits, name):
    recipe = Recipe(epochs=1, batch_size=20, progressive_resizing=0.5)
    torch.manual_seed(0)
    net = networks[name](5, size="small")
    layer = next(module for module in net.modules() if isinstance(module, Whiten))
    images = tasks[SINGLE](splits, 32, recipe).loader(splits.train, torch.device("cpu"), True).unchanged()
    layer.data_init(images)
    looked = layer.weight.clone()
    fit(net, splits, recipe, 32)                                                       # initialized again, from the same images
    assert torch.equal(layer.weight, looked) and layer.bias.abs().max() > 0
    with torch.no_grad(): out = nn.functional.conv2d(images, layer.weight)             # [B, 24, 31, 31]
    covariance = torch.cov(out[:, :12].permute(1, 0, 2, 3).flatten(1))
    assert (covariance - torch.diag(covariance.diag())).abs().max() < 0.02 and covariance.diag()[1:].mean() > 0.5
    assert torch.equal(out[:, :12], -out[:, 12:])


@pytest.mark.parametrize("name", [name for name in networks if "size" in signature(networks[name]).parameters])
def test_every_network_takes_images_of_any_side(name):
    network = networks[name](K).eval()
    with torch.inference_mode():
        for side in range(LEAST, 44): assert network(torch.rand(1, 3, side, side)).shape == (1, K)


def test_too_small_images_are_refused_and_progressive_does_not_make_them(splits):
    with pytest.raises(CourseError, match="from 16 to 4096"): models["cnn"](splits, input_size=8)
    assert side_at(32, 0, Recipe(progressive_resizing=0.2)) == LEAST and side_at(12, 0, Recipe(progressive_resizing=0.2)) == 12


def test_counting_flops_changes_no_network():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert training_flops(model, [8], 1) > 0 and model[0].weight.grad is None
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_flops_are_those_counted_by_hand():
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    forward = 2 * 16 * 16 * 27 * 8
    assert training_flops(conv, [16, 16], 100) == pytest.approx(2 * 100 * forward * 2)  # no gradient for the input


def test_muon_is_resumable(splits, tmp_path):
    recipe = Recipe(epochs=2, batch_size=20, optimizer="muon", learning_rate=0.1)
    make = lambda: (torch.manual_seed(0), SpeedNet(5, (8, 8, 8)))[1]
    whole, broken = make(), make()
    fit(whole, splits, recipe, 32)

    class Stop(tasks[SINGLE]):
        steps = 0
        def loss(self, outputs, targets):
            self.steps += torch.is_grad_enabled()
            if self.steps == 5: raise KeyboardInterrupt
            return super().loss(outputs, targets)

    with pytest.raises(KeyboardInterrupt): fit(broken, splits, recipe, 32, Stop(splits, 32, recipe), tmp_path)
    fit(broken, splits, recipe, 32, folder=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), broken.state_dict().values()))
