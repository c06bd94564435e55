"The training loop: equal to a bare one, to itself after kills, to itself in two processes; and what it says when it cannot."
import json
import math
import os
import platform
import random
import re
import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch
from making import small_disk, vouched
from torch import nn
from torchmetrics import MeanMetric, MetricCollection

from course_lib import device, loop, predictors
from course_lib.cli import main
from course_lib.core import CourseError, import_file, models, networks, open_model
from course_lib.data import SINGLE, Images, Splits, load, pixels
from course_lib.evaluation import evaluate, recorded
from course_lib.training import Classification, Recipe, drawn_evenly, image_weights, learning_rate, losses, schedules, tasks
from course_lib.loop import Callback, Job, fit, learn, measure
from course_lib.multilabel import MultiLabel
from course_lib.notebooks import checkout
from course_lib.predictors import arguments_of, extends

CALM = dict(batch_size=16, seed=3)
posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and SIGKILL")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    "Small networks: threads that wait for each other only slow them down."
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def splits():
    "Images whose class is the colour of a square: easy to learn, not without looking."
    rng, tint = np.random.default_rng(0), np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])

    def part(name, n):
        targets, images = [i % 3 for i in range(n)], rng.integers(0, 120, (n, 32, 32, 3), dtype=np.uint8)
        for image, target in zip(images, targets):
            y, x = rng.integers(0, 16, 2)
            image[y:y + 16, x:x + 16] = tint[target]
        return Images([f"{name}-{i}" for i in range(n)], targets, list("abc"), SINGLE, images.__getitem__, f"squares {name} {n}")

    return Splits(part("train", 90), part("valid", 31), part("test", 60), list("abc"), SINGLE, "squares")


def net(seed=0, dropout=0.2, norm=True):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(dropout),
                         nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 3))


def vector(model): return torch.cat([v.detach().reshape(-1).double() for v in model.state_dict().values()])


class Interrupted(Exception): "In place of a power failure."


class Failing(Classification):
    "Stops at the n-th training loss."
    left = math.inf

    def loss(self, outputs, targets):
        if torch.is_grad_enabled():
            self.left -= 1
            if self.left < 0: raise Interrupted
        return super().loss(outputs, targets)


# ---- recipes and schedules

@pytest.mark.parametrize("wrong", [dict(epochs=0), dict(batch_size=0), dict(learning_rate=-1), dict(accumulate=99), dict(ema=2.0),
                                   dict(label_smoothing=-0.1), dict(keep="first"), dict(precision="int8"), dict(momentum=3),
                                   dict(optimizer="adam"), dict(schedule="cos"), dict(augment="flip,shfit"), dict(warmup=99.0),
                                   dict(learning_rate=math.nan), dict(balance="both")])
def test_recipes_that_make_no_sense_are_refused(wrong):
    with pytest.raises(CourseError): Recipe(**wrong)


@pytest.mark.parametrize("name", list(schedules))
def test_every_schedule_starts_warm_stays_within_bounds_and_ends_low(name):
    recipe = Recipe(epochs=10, learning_rate=2.0, schedule=name, warmup=1.5)
    rates = [learning_rate(recipe, i, 20) for i in range(200)]
    assert rates[0] == pytest.approx(2.0 / 30) and rates[29] == pytest.approx(2.0) and 0 <= min(rates) <= max(rates) <= 2.0
    if name in ("cosine", "linear", "onecycle"): assert rates[-1] < 0.03


def test_plateau_counts_only_epochs_without_a_better_score():
    recipe = Recipe(epochs=50, learning_rate=1.0, schedule="plateau", plateau_patience=2)
    rate = lambda scores: learning_rate(recipe, 10 * len(scores), 10, scores)
    assert rate([.1, .2, .3, .4]) == 1 and rate([.5, .4, .4]) == 1
    assert rate([.5, .4, .4, .4]) == pytest.approx(.1) and rate([.5] + [.4] * 6) == pytest.approx(.01)


# ---- rare classes

@pytest.fixture(scope="module")
def uneven(splits):
    "Of the classes a, b, c there are 30, 30 and 3 training images."
    rare = [i for i, target in enumerate(splits.train.targets) if target == 2]
    return replace(splits, train=splits.train.subset([i for i in range(90) if i not in rare[3:]]))


def test_weights_of_images_are_the_inverse_shares_with_a_mean_of_one(uneven):
    task, targets = tasks[SINGLE](uneven, 32, Recipe(balance="loss")), torch.tensor(uneven.train.targets)
    each = image_weights(targets, task.class_shares)
    assert torch.allclose(each[targets == 0], torch.tensor(63 / 90)) and torch.allclose(each[targets == 2], torch.tensor(7.0))
    assert each.mean().item() == pytest.approx(1)
    mixed = torch.tensor([[0.25, 0.0, 0.75]])
    assert image_weights(mixed, task.class_shares).item() == pytest.approx(0.25 * 0.7 + 0.75 * 7)
    shares = torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64)  # a class without images weighs like the rarest
    assert image_weights(torch.tensor([0, 1, 2]), shares).tolist() == [1, 1, 1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_balanced_loss_is_that_of_weighted_images(uneven, smoothing):
    task = tasks[SINGLE](uneven, 32, Recipe(balance="loss", label_smoothing=smoothing))
    logits, targets = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 0, 0, 2])
    log_p, weights = logits.log_softmax(1), torch.tensor([0.7, 0.7, 7.0])[targets]
    wanted = torch.eye(3)[targets] * (1 - smoothing) + smoothing / 3
    by_hand = (weights * -(wanted * log_p).sum(1)).mean()
    assert torch.allclose(task.loss(logits, targets), by_hand)
    assert torch.allclose(task.loss(logits, torch.eye(3)[targets]), by_hand)  # as probabilities, too
    parts = sum(task.loss(logits[part], targets[part]) * len(targets[part]) / 8 for part in (slice(0, 3), slice(3, 8)))
    assert torch.allclose(parts, by_hand)  # parts of a batch add up to the whole


def test_sampling_draws_every_class_equally_often_and_every_image_of_it(uneven):
    targets = np.array(uneven.train.targets)
    epochs = [drawn_evenly(targets, 5, epoch) for epoch in range(400)]
    assert all(len(epoch) == 63 for epoch in epochs) and not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(epochs[7], drawn_evenly(targets, 5, 7)) and not np.array_equal(epochs[7], drawn_evenly(targets, 6, 7))
    counts = np.bincount(np.concatenate(epochs), minlength=63)
    assert np.allclose([counts[targets == k].sum() / counts.sum() for k in range(3)], 1 / 3, atol=0.015)
    assert np.allclose(counts[targets == 2] / counts.sum(), 1 / 9, atol=0.01) and counts.min() > 0


def test_sampling_changes_batches_of_training_alone_and_their_files_fit(uneven):
    task = tasks[SINGLE](uneven, 32, Recipe(balance="sampling", augment="", **CALM))
    train, valid = task.loader(uneven.train, torch.device("cpu"), True), task.loader(uneven.valid, torch.device("cpu"))
    images, targets = train.batch(3, 1)
    again = task.loader(uneven.train, torch.device("cpu"), True).batch(3, 1)
    assert torch.equal(images, again[0]) and torch.equal(targets, again[1])
    assert train.files(3, 1) == [uneven.train.names[i] for i in drawn_evenly(np.array(uneven.train.targets), 3, 3)[15:31]]
    assert [uneven.train.targets[uneven.train.names.index(name)] for name in train.files(3, 1)] == targets.tolist()
    assert valid.files(0, 0) == uneven.valid.names


def test_without_balance_nothing_is_drawn_or_weighed_anew(uneven):
    task = tasks[SINGLE](uneven, 32, Recipe(label_smoothing=0.1, **CALM))
    loader = task.loader(uneven.train, torch.device("cpu"), True)
    order = np.concatenate([loader.batches.numbers(2, step) for step in range(len(loader))])
    assert np.array_equal(order, np.random.default_rng((3, 2)).permutation(63))
    logits, targets = torch.randn(9, 3), torch.tensor([0, 1, 2] * 3)
    assert torch.equal(task.loss(logits, targets), nn.functional.cross_entropy(logits, targets, label_smoothing=0.1))


def test_each_balance_makes_other_weights_and_finds_the_rare_class(uneven):
    found = {}
    for balance in ("none", "loss", "sampling"):
        model, recipe = net(dropout=0.0), Recipe(epochs=4, learning_rate=0.01, balance=balance, **CALM)
        fit(model, uneven, recipe, 32)
        task = tasks[SINGLE](uneven, 32, recipe)
        confusion = np.array(measure(model, task, task.loader(uneven.test, torch.device("cpu")))["confusion"])
        found[balance] = confusion[2].sum(), confusion[2, 2]
    assert found["none"][1] < min(found["loss"][1], found["sampling"][1]) and found["none"][0] == 20


def test_balance_is_for_one_label_per_image():
    several, boxes = load("streets?view=multi&n=10&valid=5&test=5"), load("streets?view=detection&n=5&valid=5&test=5")
    for balance in ("loss", "sampling"):
        with pytest.raises(CourseError, match="one label per image"): MultiLabel(several, 32, Recipe(balance=balance))
        with pytest.raises(CourseError, match="does nothing.*loss=weighted"): models["cnn"](several, balance=balance)
    assert "balance" not in signature(models["ssd"]).parameters
    with pytest.raises(TypeError): models["ssd"](boxes, balance="loss")


# ---- the loop

def test_learns_and_its_labels_matter(splits):
    recipe = Recipe(epochs=8, learning_rate=0.02, **CALM)
    history = fit(net(), splits, recipe, 32)
    assert history.scores[-1] > 0.8 and history.rows[-1]["train_loss"] < 0.6 * history.rows[0]["train_loss"]
    targets = list(splits.train.targets)
    random.Random(0).shuffle(targets)
    shuffled = replace(splits, train=replace(splits.train, targets=targets), valid=splits.test)
    assert abs(fit(net(), shuffled, recipe, 32).scores[-1] - 1 / 3) < 0.25


def test_batches_reach_the_network_normalised(splits):
    loader = tasks[SINGLE](splits, 32, Recipe(**CALM)).loader(splits.train, torch.device("cpu"), True)
    images = torch.cat([loader.batch(0, i)[0] for i in range(len(loader))])
    assert abs(images.mean()) < 0.1 and abs(images.std() - 1) < 0.1 and images.shape == (90, 3, 32, 32)
    assert loader.files(0, 1) == [splits.train.names[i] for i in loader.batches.numbers(0, 1)]


def test_strided_depthwise_convolutions_work_in_32_bits_while_training(splits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, 2, groups=8), nn.BatchNorm2d(8), nn.ReLU(),
                          nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
    kinds, images = [type(module) for module in model], torch.rand(2, 8, 9, 9)
    exact = model[1](images)
    with device.training_layers(model, torch.device("cpu"), 1), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model[1](images), exact)
    with torch.autocast("cpu", torch.bfloat16): assert not torch.equal(model[1](images).float(), exact)
    fit(model, splits, Recipe(epochs=1, **CALM), 32)
    assert [type(module) for module in model] == kinds


def test_same_seed_same_weights_and_another_seed_others(splits):
    run = lambda seed: (model := net(), fit(model, splits, Recipe(epochs=2, batch_size=16, seed=seed), 32))[0]
    first, second, third = vector(run(1)), vector(run(1)), vector(run(2))
    assert torch.equal(first, second) and not torch.equal(first, third)


KINDS = [dict(), dict(optimizer="sgd", schedule="plateau", learning_rate=0.05, plateau_patience=0),
         dict(ema=0.9, grad_clip=0.5, accumulate=3), dict(keep="best", early_stopping_patience=2, schedule="cosine"),
         dict(precision="fp32", warmup=1.0, label_smoothing=0.1), dict(balance="loss"), dict(balance="sampling")]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: ",".join(k) or "plain")
def test_interrupted_anywhere_it_ends_with_the_same_weights(kind, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Checkpoint, "due", lambda self: True)
    recipe = Recipe(epochs=4, **CALM, **kind)
    whole, task = net(), Failing(splits, 32, recipe)
    history = fit(whole, splits, recipe, 32, task)
    for moment in random.Random(str(kind)).sample(range(1, 20), 3):
        model, task.left = net(), moment
        with pytest.raises(Interrupted): fit(model, splits, recipe, 32, task, tmp_path / "run")
        model, task.left = net(seed=9 if (tmp_path / "run" / "checkpoint.pt").exists() else 0), math.inf
        again = fit(model, splits, recipe, 32, task, tmp_path / "run", resume=True)
        assert torch.equal(vector(model), vector(whole)), moment
        drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
        assert drop(again.rows) == drop(history.rows) and not (tmp_path / "run" / "checkpoint.pt").exists()


KILLS = '''
import os, random, signal, sys, time
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as t
from course_lib.data import load
t.loop.Checkpoint.due = lambda self: True
import tensorboard.compat.proto.event_pb2, tensorboard.summary.writer.record_writer, torchmetrics.classification  # once, not in each child
t.loop.Curves.after_training = lambda self, run: None  # kills shall hit the training, not the drawing after it
data, recipe, folder = load("streets?n=60&valid=10&test=5"), t.Recipe(epochs=12, batch_size=10, ema=0.9), sys.argv[1]
model = lambda: t.nn.Sequential(t.net(), t.nn.Linear(3, 5))
for name in ("train", "valid"): t.pixels(data[name], 32)
rng, places = random.Random(5), set()

def child(run):
    pid = os.fork()
    if pid: return pid
    run()
    os._exit(0)

def train(folder=folder):
    m = model()
    t.fit(m, data, recipe, 32, folder=folder, resume=True)
    torch.save(t.vector(m), folder + ".pt")

began = time.monotonic()
os.waitpid(child(lambda: train(folder + "-in-peace")), 0)
took = time.monotonic() - began  # so that kills hit the run on a fast machine, too
for _ in range(10):
    pid = child(train)
    time.sleep(rng.uniform(0.02, 0.3) * took)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if os.path.exists(folder + "/checkpoint.pt"):
        place = t.loop.read_state(t.Path(folder + "/checkpoint.pt"))["place"]
        places.add((place["epoch"], place["step"]))
os.waitpid(child(train), 0)
unharmed = model()
t.fit(unharmed, data, recipe, 32)
print(len(places), torch.equal(torch.load(folder + ".pt"), t.vector(unharmed)))
'''


@posix
def test_killed_ten_times_it_ends_with_the_same_weights(tmp_path):
    script = tmp_path / "kills.py"
    script.write_text(KILLS.format(tests=str(Path(__file__).parent)))
    done = subprocess.run([sys.executable, script, tmp_path / "run"], capture_output=True, text=True, timeout=300,
                          env=dict(os.environ, TQDM_DISABLE="1"))
    places, equal = done.stdout.split()
    assert equal == "True" and int(places) >= 3, done.stderr[-2000:]


def test_after_an_error_the_model_is_as_it_was_and_the_run_goes_on(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Checkpoint, "due", lambda self: True)
    thin = nn.Sequential(nn.Conv2d(3, 3, 3, 2, groups=3), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 3))
    recipe, kinds, own = Recipe(epochs=2, **CALM), [type(layer) for layer in thin.modules()], set(thin.__dict__)
    task = Failing(splits, 32, recipe)
    task.left = 8
    with pytest.raises(Interrupted): fit(thin, splits, recipe, 32, task, tmp_path / "run")
    assert [type(layer) for layer in thin.modules()] == kinds and set(thin.__dict__) == own
    assert len(fit(thin, splits, recipe, 32, folder=tmp_path / "run", resume=True).rows) == 2


def test_a_forward_of_the_models_own_survives(splits):
    model = net()
    model.forward = own = lambda x: type(model).forward(model, x)
    with pytest.raises(CourseError): fit(model, replace(splits, train=splits.train.subset([])), Recipe(**CALM), 32)
    assert vars(model)["forward"] is own
    fit(model, splits, Recipe(epochs=1, precision="bf16", **CALM), 32)
    assert vars(model)["forward"] is own and "_is_accelerate_prepared" not in vars(model)


@pytest.mark.parametrize("text", ["CUDA error: out of memory", "MPS backend out of memory (MPS allocated", "CUBLAS_STATUS_ALLOC_FAILED"])
def test_every_way_to_run_out_of_memory_is_one_line(text):
    with pytest.raises(CourseError, match="raise accumulate"), loop.advice(Recipe(), torch.device("cpu")): raise RuntimeError(text)


def test_predictions_take_smaller_batches_where_memory_is_scarce(splits, monkeypatch):
    exact = dict(recipe=dict(precision="fp32"))
    trained = predictors.Network(net().eval(), list("abc"), 32, (0.5,) * 3, (0.2,) * 3, "net", {}, about=exact)
    images, small = pixels(splits.test, 32), trained._logits
    expected = trained.logits(images)
    def scarce(part):
        if len(part) > 20: raise torch.OutOfMemoryError("no more")
        return small(part)
    monkeypatch.setattr(trained, "_logits", scarce)
    assert torch.allclose(trained.logits(images), expected, atol=1e-5)


def test_predictions_are_made_in_32_bits_if_the_training_was(splits):
    cells, model = [], net()
    model[0].register_forward_hook(lambda module, args, out: cells.append(out.dtype))
    trained = predictors.Network(model, list("abc"), 32, (0.5,) * 3, (0.2,) * 3, "net", {}, about=dict(recipe=dict(precision="fp32")))
    trained.logits(pixels(splits.test, 32)[:4])
    assert cells == [torch.float32]


def test_numbers_of_numpy_become_plain_ones():
    recipe = Recipe(epochs=np.int64(3), learning_rate=np.float64(0.1), grad_clip=1)
    assert [type(getattr(recipe, name)) for name in ("epochs", "learning_rate", "grad_clip")] == [int, float, float]


def test_fp16_that_overflows_for_good_is_one_line():
    class Scaler:
        def is_enabled(self): return True
        def get_scale(self): return 2.0**-3
    with pytest.raises(CourseError, match="use fp32"): loop.refuse_overflow(Scaler())
    loop.refuse_overflow(None)


@pytest.mark.parametrize("n, world", [(33, 8), (10, 3), (7, 7)])
def test_every_process_works_through_as_many_parts(n, world):
    parts = [list(loop.micro_batches(n, Recipe(batch_size=64, accumulate=5), rank, world)) for rank in range(world)]
    assert len({len(mine) for mine in parts}) == 1
    assert sorted(i for mine in parts for part in mine for i in range(part.start, part.stop)) == list(range(n))


def test_several_labels_are_measured_on_logits_whatever_their_size(splits):
    task = MultiLabel(replace(splits, classes=["a", "b"]), 32, Recipe())
    for logits, right in (([0.3, 0.4], 1.0), ([-0.3, 0.4], 0.5), ([0.3, 5.0], 1.0)):
        scores = task.metrics()
        scores.update(torch.tensor([logits]), torch.ones(1, 2))
        assert scores.compute()["accuracy"] == right


def test_no_images_to_measure_on_is_one_line(splits):
    task = tasks[SINGLE](splits, 32, Recipe())
    with pytest.raises(CourseError, match="no images"): measure(net(), task, task.loader(splits.test.subset([]), torch.device("cpu")))


@pytest.mark.parametrize("option", [dict(epochs=1.5), dict(batch_size=2.5), dict(seed=0.5)])
def test_whole_numbers_are_asked_for(option):
    with pytest.raises(CourseError, match="whole number"): Recipe(**option)


def test_a_single_value_to_normalise_is_one_line():
    with pytest.raises(CourseError, match="larger batches"), loop.advice(Recipe(batch_size=1), torch.device("cpu")):
        nn.BatchNorm2d(3)(torch.rand(1, 3, 1, 1))
    with pytest.raises(ValueError, match="other"), loop.advice(Recipe(), torch.device("cpu")): raise ValueError("other")


@pytest.mark.parametrize("option", [dict(keep="best"), dict(schedule="plateau"), dict(early_stopping_patience=1)])
def test_what_goes_by_validation_images_needs_some(option, splits):
    with pytest.raises(CourseError, match=next(iter(option))):
        fit(net(), replace(splits, valid=splits.valid.subset([])), Recipe(**CALM | option), 32)


def test_an_unfinished_run_is_neither_overwritten_nor_mixed_up(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Checkpoint, "due", lambda self: True)
    recipe, folder = Recipe(epochs=3, **CALM), tmp_path / "run"
    task = Failing(splits, 32, recipe)
    task.left = 8
    with pytest.raises(Interrupted): fit(net(), splits, recipe, 32, task, folder)
    with pytest.raises(CourseError, match="--resume"): fit(net(), splits, recipe, 32, folder=folder)
    with pytest.raises(CourseError, match="epochs=3, not 5"): fit(net(), splits, replace(recipe, epochs=5), 32, folder=folder, resume=True)
    with pytest.raises(CourseError, match="input_size=32, not 24"): fit(net(), splits, recipe, 24, folder=folder, resume=True)
    thinned = nn.Sequential(net(), nn.Dropout(0.5))  # as many weights
    with pytest.raises(CourseError, match="layers="): fit(thinned, splits, recipe, 32, folder=folder, resume=True)
    other = replace(splits, train=splits.train.subset(range(80)))
    with pytest.raises(CourseError, match="data="): fit(net(), other, recipe, 32, folder=folder, resume=True)
    (folder / "checkpoint.pt").write_bytes((folder / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(CourseError, match="damaged"): fit(net(), splits, recipe, 32, folder=folder, resume=True)


def interrupted(splits, folder, monkeypatch):
    "A run that stopped in its third epoch, and its recipe."
    monkeypatch.setattr(loop.Checkpoint, "due", lambda self: True)
    recipe, task = Recipe(epochs=3, **CALM), Failing(splits, 32, Recipe(epochs=3, **CALM))
    task.left = 8
    with pytest.raises(Interrupted): fit(net(), splits, recipe, 32, task, folder)
    return recipe


def test_a_flipped_bit_in_a_checkpoint_is_noticed(splits, tmp_path, monkeypatch):
    recipe, path = interrupted(splits, tmp_path, monkeypatch), tmp_path / "checkpoint.pt"
    whole = bytearray(path.read_bytes())
    for place in random.Random(0).sample(range(len(whole)), 40):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(CourseError, match="is damaged: delete it"): fit(net(), splits, recipe, 32, folder=tmp_path, resume=True)


def test_other_threads_are_said_because_the_last_bits_depend_on_them(splits, tmp_path, monkeypatch, caplog):
    recipe = interrupted(splits, tmp_path, monkeypatch)
    monkeypatch.setattr(loop, "machine", lambda: dict(threads=torch.get_num_threads() + 1, torch=torch.__version__))
    fit(net(), splits, recipe, 32, folder=tmp_path, resume=True)
    n = torch.get_num_threads()
    assert f"was made with threads {n}, now {n + 1}: the result will be close" in caplog.text


def test_a_finished_training_stays_until_its_model_is_saved(tmp_path):
    splits, how = load("streets?n=40&valid=10&test=5"), dict(size="small", epochs=2, input_size=32, folder=tmp_path / "run")
    first = models["cnn"](splits, **how)  # and now, before `save`, the power fails
    with pytest.raises(CourseError, match="--resume"): models["cnn"](splits, **how)
    began = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "learn_epoch", lambda run: began.append(run))
        again = models["cnn"](splits, **how, resume=True)
    assert not began and torch.equal(vector(again.model), vector(first.model))
    again.save(tmp_path / "model")
    assert not list(tmp_path.rglob("*.pt"))
    models["cnn"](splits, **how)  # nothing is in the way of the next one


@pytest.mark.skipif(os.name == "nt", reason="needs a small disk")
def test_a_full_disk_costs_no_checkpoint(splits, tmp_path, monkeypatch):
    with small_disk(tmp_path / "disk", "1M") as disk:
        recipe = interrupted(splits, disk / "run", monkeypatch)
        before = (disk / "run" / "checkpoint.pt").read_bytes()
        with open(disk / "other", "wb", buffering=0) as file, pytest.raises(OSError):
            while True: file.write(bytes(4096))
        with pytest.raises(CourseError, match=r"cannot be written \(no space left on device\): free some space"):
            fit(net(), splits, recipe, 32, folder=disk / "run", resume=True)
        assert (disk / "run" / "checkpoint.pt").read_bytes() == before and not list((disk / "run").glob("*.part"))
        (disk / "other").unlink()
        fit(net(), splits, recipe, 32, folder=disk / "run", resume=True)


TWO = '''
import sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
import test_training as t
from course_lib.data import load
data = load("streets?n=53&valid=17&test=5")
torch.manual_seed(0)
model = t.nn.Sequential(t.nn.Conv2d(3, 8, 3, 2), t.nn.BatchNorm2d(8), t.nn.ReLU(), t.nn.Conv2d(8, 8, 3, 2), t.nn.BatchNorm2d(8),
                        t.nn.AdaptiveAvgPool2d(2), t.nn.Flatten(), t.nn.Linear(32, 5))
recipe = t.Recipe(epochs=3, batch_size=10, precision="fp32", optimizer="sgd", learning_rate=0.1, grad_clip=1.0, accumulate=int(sys.argv[2]))
history = t.fit(model, data, recipe, 32)
assert type(model[1]) is t.nn.BatchNorm2d
if int(t.os.environ.get("RANK", 0)) == 0:
    rows = [[row[k] for k in ("train_loss", "valid_loss", "accuracy", "f1")] for row in history.rows]
    torch.save((t.vector(model), torch.tensor(rows)), sys.argv[1])
'''


@posix
def test_two_processes_equal_one_with_the_same_batches(tmp_path):
    script, env = tmp_path / "two.py", dict(os.environ, TQDM_DISABLE="1", OMP_NUM_THREADS="1")
    script.write_text(TWO.format(tests=str(Path(__file__).parent)))
    subprocess.run([sys.executable, script, tmp_path / "one.pt", "1"], check=True, env=env, timeout=200)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run([*torchrun, script, tmp_path / "two.pt", "1"], env=env, timeout=200, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (one, rows), (two, other_rows) = (torch.load(tmp_path / name) for name in ("one.pt", "two.pt"))
    assert torch.allclose(one, two, rtol=1e-3, atol=1e-4), (one - two).abs().max()
    assert torch.allclose(rows, other_rows, rtol=1e-3, atol=1e-4)


def test_parts_of_a_batch_add_up_to_the_whole(splits):
    plain = Recipe(epochs=2, batch_size=30, optimizer="sgd", learning_rate=0.1, precision="fp32", augment="")
    run = lambda parts: (model := net(dropout=0.0, norm=False), fit(model, splits, replace(plain, accumulate=parts), 32))[0]
    assert torch.allclose(vector(run(1)), vector(run(7)), atol=1e-5)


def test_clipped_gradients_are_no_longer_than_asked(splits):
    short = Recipe(epochs=1, batch_size=90, optimizer="sgd", momentum=0.0, learning_rate=1.0, weight_decay=0, schedule="constant", grad_clip=1e-3)
    before, model = net(norm=False), net(norm=False)
    fit(model, splits, short, 32)
    assert (vector(model) - vector(before)).norm() == pytest.approx(1e-3, rel=0.05)


def test_weights_stay_in_32_bits_and_the_network_is_given_back_as_it_was(splits):
    model, cells = net(), []
    forward = type(model).forward
    model[0].register_forward_hook(lambda module, args, out: cells.append(out.dtype))
    fit(model, splits, Recipe(epochs=1, precision="bf16", **CALM), 32)
    assert torch.bfloat16 in cells and {p.dtype for p in model.parameters()} == {torch.float32}
    assert "forward" not in vars(model) and type(model).forward is forward and not model.training


def test_moving_average_is_the_formula(splits):
    seen, model = [], net(norm=False)
    class Watching(Classification):
        def loss(self, outputs, targets):
            if torch.is_grad_enabled(): seen.append(model[0].weight.detach().clone())
            return super().loss(outputs, targets)
    recipe = Recipe(epochs=2, ema=0.5, precision="fp32", batch_size=30, optimizer="sgd", learning_rate=0.1)
    bare = net(norm=False)
    fit(model, splits, recipe, 32, Watching(splits, 32, recipe))
    values = seen[1:]  # the weights after each step; the last ones were replaced by the average
    last = fit(bare, splits, replace(recipe, ema=0.0), 32) and bare[0].weight.detach()
    average = values[0].clone()
    for i, value in enumerate([*values[1:], last], 1): average.lerp_(value, 1 - min(0.5, (1 + i) / (10 + i)))
    assert torch.allclose(model[0].weight, average, atol=1e-6)


def test_stops_early_and_keeps_the_best(splits):
    recipe = Recipe(epochs=60, learning_rate=0.05, schedule="constant", early_stopping_patience=2, keep="best", **CALM)
    model = net()
    history = fit(model, splits, recipe, 32)
    task = tasks[SINGLE](splits, 32, recipe)
    assert len(history.rows) < 60 and history.waited() == 2
    with device.make_accelerator(recipe.precision, "cpu") as accelerator:
        found = measure(model, task, task.loader(splits.valid, torch.device("cpu")), accelerator)
    assert found["accuracy"] == max(history.scores)


class Regions(Classification):
    "A task with a list of dictionaries as targets, as detection has: where is the square?"
    score = "closeness"

    def loader(self, images, device, training=False):
        loader = super().loader(images, device, training)
        whole, centre = loader.batch, torch.tensor([[(i % 7) / 7] for i in range(len(images))])
        loader.batch = lambda epoch, step: (whole(epoch, step)[0], [dict(boxes=centre[i]) for i in loader.batches.numbers(epoch, step)])
        return loader

    def loss(self, outputs, targets): return (outputs["loc"] - torch.stack([t["boxes"] for t in targets])).square().mean()

    def metrics(self):
        class Closeness(MeanMetric):
            def update(self, outputs, targets): super().update(1 - (outputs["loc"] - torch.stack([t["boxes"] for t in targets])).abs())
        return MetricCollection(dict(closeness=Closeness()))


def test_serves_targets_that_are_lists_of_boxes(splits):
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(net(), nn.Linear(3, 1))

        def forward(self, x): return dict(loc=self.net(x))

    recipe = Recipe(epochs=2, accumulate=2, **CALM)
    history = fit(Detector(), splits, recipe, 32, Regions(splits, 32, recipe))
    assert history.score == "closeness" and history.scores[-1] > 0.3


def test_serves_several_labels():
    several = load("streets?view=multi&n=40&valid=10&test=5")
    model = nn.Sequential(net(), nn.Linear(3, 5))
    history = fit(model, several, Recipe(epochs=1, **CALM), 32)
    assert history.score == "f1" and set(history.rows[0]) >= {"accuracy", "precision", "recall", "f1", "valid_loss"}


def test_metrics_are_of_the_whole_split_not_means_of_batches(splits):
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
    recipe = Recipe(batch_size=7, precision="fp32")
    task, model = tasks[SINGLE](splits, 32, recipe), net()
    loader = task.loader(splits.test, torch.device("cpu"))
    found = measure(model, task, loader)
    with torch.inference_mode(): guess = torch.cat([model(loader.batch(0, i)[0]) for i in range(len(loader))]).argmax(1)
    precision, recall, f1, _ = precision_recall_fscore_support(splits.test.targets, guess, average="macro", zero_division=0)
    assert found["confusion"] == confusion_matrix(splits.test.targets, guess).tolist()
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((precision, recall, f1), abs=1e-6)


class Diary(Callback):
    "Writes down what it is told, and ends the training after some epochs."
    name = "diary"

    def __init__(self, last=99): self.told, self.last = [], last

    def before_training(self, run): self.told.append("begin")

    def before_epoch(self, run): run.stopped |= run.epoch >= self.last

    def after_step(self, run): self.told.append((run.epoch, run.step))

    def after_epoch(self, run): self.told.append(run.history.rows[-1]["epoch"])

    def after_training(self, run): self.told.append("end")

    def close(self): self.told.append("closed")

    def state_dict(self): return dict(told=self.told)

    def load_state_dict(self, state): self.told = state["told"]


def test_callbacks_are_told_and_can_stop_the_training(splits):
    diary = Diary(last=2)
    history = fit(net(), splits, Recipe(epochs=5, batch_size=45), 32, callbacks=(diary,))
    assert diary.told == ["begin", (0, 1), (0, 2), 1, (1, 1), (1, 2), 2, "end", "closed"] and len(history.rows) == 2


def test_a_callbacks_state_is_in_the_checkpoint_and_it_is_closed_after_an_error(splits, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Checkpoint, "due", lambda self: True)
    recipe, diary = Recipe(epochs=2, batch_size=45), Diary()
    task = Failing(splits, 32, recipe)
    task.left = 3
    with pytest.raises(Interrupted): fit(net(), splits, recipe, 32, task, tmp_path, callbacks=(diary,))
    assert diary.told[-1] == "closed" and "end" not in diary.told
    again = Diary()
    fit(net(), splits, recipe, 32, folder=tmp_path, resume=True, callbacks=(again,))
    assert again.told == ["begin", (0, 1), (0, 2), 1, (1, 1), (1, 2), 2, "end", "closed"]


def test_the_loop_has_no_branch_on_a_callback():
    from inspect import getsource
    source = "".join(map(getsource, (loop.learn, loop.learn_epoch, loop.learn_batch)))
    for name in ("ema", "keep ", "patience", "tensorboard", "checkpoint", "TensorBoard", "best"): assert name not in source, name


def test_the_callers_random_state_and_accelerator_stay_as_they_were(splits):
    from accelerate import Accelerator
    own = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=3)
    def draws(): return random.random(), np.random.rand(), torch.rand(1).item()
    def seeded(): random.seed(1), np.random.seed(1), torch.manual_seed(1)
    seeded()
    expected = draws()
    model = net()
    seeded()
    fit(model, splits, Recipe(epochs=1, precision="fp32", **CALM), 32)
    assert draws() == expected
    assert own.mixed_precision == own.state.mixed_precision == "bf16" and own.gradient_accumulation_steps == 3


def test_a_job_is_what_fit_takes(splits):
    recipe, first, second = Recipe(epochs=1, **CALM), net(), net()
    fit(first, splits, recipe, 32)
    learn(Job(second, splits, recipe, 32))
    assert torch.equal(vector(first), vector(second))


SYNC = """
import sys
sys.path.insert(0, {tests!r})
import torch
import test_training as t
from torch.nn.parallel import DistributedDataParallel as DDP
torch.set_num_threads(1)
syncing, whole = [], DDP.forward
def forward(self, *given): syncing.append(self.require_backward_grad_sync); return whole(self, *given)
DDP.forward = forward
data = t.load("streets?n=20&valid=5&test=5")
t.fit(t.nn.Sequential(t.net(norm=False), t.nn.Linear(3, 5)), data, t.Recipe(epochs=1, batch_size=20, accumulate=4, precision="fp32"), 32)
training = syncing[:4]
if int(t.os.environ["RANK"]) == 0: print(training)
"""


@posix
def test_processes_exchange_gradients_once_for_each_batch(tmp_path):
    script = tmp_path / "sync.py"
    script.write_text(SYNC.format(tests=str(Path(__file__).parent)))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    done = subprocess.run(torchrun, env=dict(os.environ, TQDM_DISABLE="1", OMP_NUM_THREADS="1"), timeout=200, capture_output=True, text=True)
    assert done.stdout.strip() == "[False, False, False, True]", done.stderr[-2000:]


# ---- what it says when it cannot

def test_a_loss_that_is_not_finite_has_an_address(splits):
    class Poisoned(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.calls = net(), 0

        def forward(self, x):
            self.calls += self.training
            return self.net(x) * (math.nan if self.calls == 9 else 1)

    recipe = Recipe(epochs=3, learning_rate=0.01, schedule="constant", **CALM)
    files = tasks[SINGLE](splits, 32, recipe).loader(splits.train, torch.device("cpu"), True).files(1, 2)
    with pytest.raises(CourseError) as error: fit(Poisoned(), splits, recipe, 32)
    for part in ("epoch 2, step 3", "0.01", ", ".join(files[:4]), f"{len(files) - 4} more", "Try"): assert part in str(error.value)


def test_the_network_and_the_loss_of_the_contributing_page_work(splits, tmp_path):
    page = (checkout() / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    for mark in ("@network(", "@losses.register("):
        [example] = [block for block in blocks if mark in block]
        path = tmp_path / f"own_{len(example)}.py"
        path.write_text(example)
        import_file(path)
    made = models["mine"](splits, epochs=1, width=4, loss="mine")
    again = open_model(made.save(tmp_path / "b"))
    images = np.array(pixels(splits.test, made.size))
    assert np.array_equal(made.predict_proba(images), again.predict_proba(images))


def no_shares(logits, targets): return logits.mean()
def no_mean(logits, targets, class_shares): return logits.sum(1)


@pytest.mark.parametrize("loss, why", [("bce", "single-label"), ("no-shares", "takes 2 positional arguments"),
                                       ("no-mean", "does not return one number")])
def test_a_loss_that_cannot_work_is_one_line_before_training(splits, monkeypatch, loss, why):
    monkeypatch.setitem(losses, "no-shares", no_shares)
    monkeypatch.setitem(losses, "no-mean", no_mean)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 3))
    before = model[1].weight.clone()
    with pytest.raises(CourseError, match=f"loss '{loss}' is not for .*{why}"):
        fit(model, splits, Recipe(epochs=1, loss=loss), 32)
    assert torch.equal(model[1].weight, before)


def test_losses_looked_at_in_groups_still_name_the_batch(splits):
    recipe = Recipe(**CALM)
    losses = loop.Losses(0.0, tasks[SINGLE](splits, 32, recipe).loader(splits.train, torch.device("cpu"), True), every=20)
    for step in range(5): losses.add((0, step, 0.1), torch.tensor(math.inf if step == 3 else 1.0))
    with pytest.raises(CourseError, match="epoch 1, step 4"): losses.look()


def test_lack_of_memory_says_what_to_lower(splits):
    class Greedy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x): return self.net(x) + torch.empty(2**52).sum()

    with pytest.raises(CourseError, match="raise accumulate, or lower batch_size"): fit(Greedy(), splits, Recipe(epochs=1), 32)
    with pytest.raises(CourseError, match="out of memory on cuda"), loop.advice(Recipe(), torch.device("cuda")):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), loop.advice(Recipe(), torch.device("cpu")): raise RuntimeError("shapes")


def test_devices_and_precisions_that_are_not_there(monkeypatch):
    with pytest.raises(CourseError, match="not here"): device.device_of("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(CourseError, match="device 'cuda'"): device.device_of("cuda")
    with pytest.raises(CourseError, match="fp16 needs"), device.make_accelerator("fp16", "cpu"): pass
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    assert device.best_precision("cuda") == "fp16" and device.best_precision("mps") == "fp32"


def test_an_empty_training_split_is_refused(splits):
    with pytest.raises(CourseError, match="training split is empty"): fit(net(), replace(splits, train=splits.train.subset([])), Recipe(), 32)


def test_a_batch_too_small_to_share_is_refused():
    with pytest.raises(CourseError, match="3 cannot be shared by 4"): list(loop.micro_batches(3, Recipe(), 0, 4))


def test_events_can_be_read_by_tensorboard(splits, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    history = fit(net(), splits, Recipe(epochs=3, **CALM), 32, folder=tmp_path)
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [round(e.value, 4) for e in events.Scalars("train_loss")] == [round(row["train_loss"], 4) for row in history.rows]


# ---- every network by name

networks.discover()
ALL = [name for name in networks if "size" in signature(networks[name]).parameters]  # from scratch, in several sizes


@pytest.mark.parametrize("name", ALL)
def test_every_network_trains_saves_and_opens(name, splits, tmp_path):
    trained = models[name](splits, size="small", epochs=1, batch_size=30)
    trained.save(tmp_path / "b", seed=0)
    again, images = open_model(tmp_path / "b"), np.array(pixels(splits.test, 32))
    assert np.array_equal(trained.predict_proba(images), again.predict_proba(images))
    assert evaluate(again, splits.test)["images"] == 60
    assert json.loads((tmp_path / "b" / "model.json").read_text())["about"]["recipe"]["epochs"] == 1


@pytest.mark.parametrize("name", ALL)
def test_every_weight_of_every_network_gets_a_gradient(name):
    torch.manual_seed(0)
    model = networks[name](7, size="small")
    out = model(torch.randn(4, 3, 48, 48) + torch.randn(4, 3, 1, 1))  # of several colours: to a gate all plain noise is alike
    out.square().sum().backward()
    assert out.shape == (4, 7) and all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ALL)
def test_every_network_grows_with_its_size_and_exists_on_meta(name):
    with torch.device("meta"): made = [networks[name](10, size=size) for size in ("small", "base", "large")]
    counts = [sum(p.numel() for p in model.parameters()) for model in made]
    assert counts == sorted(set(counts)) and made[0](torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    with pytest.raises(CourseError, match="no size 'huge'"): networks[name](10, size="huge")


@pytest.mark.parametrize("spoil,says", [(lambda meta: meta.update(architecture="cmm"), "cnn"),
                                        (lambda meta: meta.update(network=dict(size="base")), "does not fit"),
                                        (lambda meta: meta.update(network=dict(width=3)), "does not fit"),
                                        (lambda meta: meta.pop("mean"), "does not fit")])
def test_a_bundle_whose_parts_do_not_fit_is_refused(spoil, says, splits, tmp_path):
    models["cnn"](splits, size="small", epochs=1).save(tmp_path / "b")
    vouched(tmp_path / "b", spoil)
    with pytest.raises(CourseError, match=says): open_model(tmp_path / "b")


def test_images_of_another_size_or_type_are_refused(splits):
    trained = models["cnn"](splits, size="small", epochs=1)
    for wrong in (np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 32, 32, 3), np.float32), np.zeros((32, 32, 3), np.uint8)):
        with pytest.raises(CourseError, match="images must be"): trained.predict_proba(wrong)
    assert trained.predict_proba(np.zeros((0, 32, 32, 3), np.uint8)).shape == (0, 3)


def test_validation_images_can_be_learnt_from_too(splits):
    trained = models["cnn"](splits, size="small", epochs=1, with_valid=True)
    assert trained.about["trained_on"] == 121 and trained.about["valid_accuracy"] is None and trained.temperature == 1.0


def test_a_learner_that_extends_another_has_the_options_of_both():
    def first(job, depth: int = 1, width: int = 2): return depth, width

    @extends(first)
    def second(job, width: int = 5, rate: float = 0.1, **more): return first(job, width=width, **more)
    assert {p.name: p.default for p in arguments_of(second)[1:]} == dict(width=5, rate=0.1, depth=1)
    assert second(None, depth=7) == (7, 5) and second.documented_in == (second, first)


def test_one_class_is_refused(splits):
    with pytest.raises(CourseError, match="two or more"): models["cnn"](replace(splits, classes=["a"]), epochs=1)
    with pytest.raises(CourseError, match="view=multi"): models["cnn"](replace(splits, task="detection"))


# ---- the command line

def test_forty_images_in_two_classes_with_the_defaults(tmp_path, capsys, splits):
    two = [i for i, target in enumerate(splits.train.targets) if target < 2][:40]
    folder = tmp_path / "images"
    for i in two:
        from PIL import Image
        (folder / "ab"[splits.train.targets[i]]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(splits.train.read(i)).save(folder / "ab"[splits.train.targets[i]] / f"{i}.png")
    assert main(["train", "cnn", "--data", str(folder), "--out", str(tmp_path / "model")]) == 0
    assert main(["evaluate", str(tmp_path / "model"), "--data", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 2)[2])["accuracy"] >= 0.75
    assert main(["predict", str(tmp_path / "model"), str(folder), "--out", str(tmp_path / "p.json")]) == 0
    rows = json.loads((tmp_path / "p.json").read_text())
    assert len(rows) == 40 and "images/s" in capsys.readouterr().err
    right = [row["predictions"][0]["label"] == Path(row["file"]).parent.name for row in rows]
    assert np.mean(right) > 0.9


def test_a_run_can_be_resumed_from_the_command_line(tmp_path, capsys, monkeypatch):
    words = ["train", "cnn", "--data", "streets?n=40&valid=10&test=5", "--size", "small", "--epochs", "3", "--batch-size", "10",
             "--input-size", "32", "--out"]
    monkeypatch.setattr(loop.Checkpoint, "due", lambda self: True)
    assert main([*words, str(tmp_path / "whole")]) == 0
    take = Classification.loss
    calls = iter(range(10**6))
    def loss(self, outputs, targets):
        if torch.is_grad_enabled() and next(calls) == 7: raise KeyboardInterrupt
        return take(self, outputs, targets)
    monkeypatch.setattr(Classification, "loss", loss)
    assert main([*words, str(tmp_path / "broken")]) == 130
    assert main([*words, str(tmp_path / "broken")]) == 2 and "--resume" in capsys.readouterr().err
    assert main([*words, str(tmp_path / "broken"), "--resume"]) == 0
    same = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "broken")]
    assert same[0] == same[1]


def test_the_list_of_models_shows_weights_and_input(capsys):
    assert main(["train", "--list"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) >= {*ALL, "svm", "forest"} and "457,258 weights" in lines["cnn"] and "32 to 64 px" in lines["cnn"]


KEEP = """
import resource, torch
from course_lib.device import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5): torch.ones(2**24)                      # 64 MB each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

try:
    with keep_memory():
        faults()
        kept = faults()
        1 / 0
except ZeroDivisionError: print(kept, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_memory_is_kept_within_and_given_back_after():
    done = subprocess.run([sys.executable, "-c", KEEP], capture_output=True, text=True, check=True, timeout=100)  # a heap of its own
    kept, returned = map(int, done.stdout.split())
    assert kept < returned / 10


def test_elsewhere_memory_is_left_alone(monkeypatch):
    monkeypatch.setattr(device.sys, "platform", "win32")
    with device.keep_memory(): assert torch.ones(3).sum() == 3


def test_runs_with_other_options_have_no_common_mean(tmp_path):
    run = lambda seed, right, **options: dict(model="m", seed=seed, options=options, test_accuracy=right, train_seconds=10 + seed,
                                              about=dict(weights=7))
    write = lambda *runs: (tmp_path / "r.json").write_text(json.dumps(dict(runs=runs)))
    write(run(0, 0.8), run(1, 0.9))
    found = recorded(tmp_path / "r.json")["m"]
    assert found["n"] == 2 and found["accuracy"] == pytest.approx(0.85) and found["sd"] == pytest.approx(0.05 * 2**0.5)
    assert found["seconds"] == 11 and found["weights"] == 7
    write(run(0, 0.8), run(1, 0.9, epochs=3))
    with pytest.raises(CourseError, match="different options"): recorded(tmp_path / "r.json")
