"Published backbones: their weights, preparation, heads, stages; freezing, embeddings, strategies, bundles."
import urllib.error
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from functools import partial
from threading import Thread

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from course_lib import loop, training, transfer
from course_lib import weights as weights_module
from course_lib.cli import main
from course_lib.core import CourseError, models, open_model
from course_lib.data import load, pixels, resize, to_float
from course_lib.doctor import write_splits
from course_lib.evaluation import evaluate
from course_lib.training import Recipe, drawn_evenly, groups
from course_lib.loop import Job, fit, make_task
from course_lib.weights import RAW, at_hand, build, pretrained, published
from course_lib.transfer import (Backbone, Transfer, Vectors, embeddings, learn_transfer, phases, stages,
                                 take_head, unfreeze)

NAMES = ("vgg16 resnet50 resnet101 densenet121 mobilenet_v2 efficientnet_b0 efficientnet_b1 vit_b_16 convnext_tiny swin_t "
         "regnet_y_400mf timm:tf_efficientnet_lite0 timm:mobilenetv3_small_100 timm:deit_tiny_patch16_224").split()
TINY = dict(enlarge=32, input_size=32, weights="none", batch_size=10, head_epochs=2)
real = pytest.mark.skipif(not at_hand("mobilenet_v2-b0353104.pth") or not at_hand("efficientnet-lite0-57934424.pth"),
                          reason="the two packages with weights are not installed: see `make help`")


@pytest.fixture(scope="module")
def splits(): return load("streets?n=40&valid=20&test=20&size=32")


def small(seed=0, classes=5):
    torch.manual_seed(seed)
    return Transfer(Backbone("mobilenet_v2", 32), classes)


def state(module): return {name: value.clone() for name, value in module.state_dict().items()}


def same(first, second): return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


# ---- backbones

@pytest.mark.parametrize("name", NAMES)
def test_any_backbone_takes_small_images_and_has_stages(name):
    backbone = Backbone(name, 64).eval()
    with torch.inference_mode(): vectors = backbone(torch.rand(2, 3, 48, 48))
    assert vectors.shape == (2, backbone.width) and vectors.isfinite().all()
    found, every = [p for group in stages(backbone) for p in group], list(backbone.parameters())
    assert len(stages(backbone)) >= 3 and len(found) == len(every) and {*map(id, found)} == {*map(id, every)}
    assert all(group for group in stages(backbone))
    assert Transfer(backbone, 7).eval()(torch.rand(1, 3, 48, 48)).shape == (1, 7)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3", "maxvit_t"])
def test_backbones_with_further_heads_or_a_fixed_side(name, recwarn):
    backbone = Backbone(name, 96).eval()
    with torch.inference_mode(): assert backbone(torch.rand(2, 3, 48, 48)).shape == (2, backbone.width)
    assert getattr(backbone.net, "transform_input", True) and not recwarn.list


def test_a_side_that_does_nothing_is_refused(splits):
    with pytest.raises(CourseError, match="enlarge=96 does nothing: vit_b_16 takes 224 pixels"):
        models["transfer"](splits, backbone="vit_b_16", enlarge=96, weights="none")


@pytest.mark.parametrize("name", ["resnet50", "vit_b_16", "timm:tf_efficientnet_lite0"])
def test_stages_go_from_the_image_to_the_head(name):
    backbone = Backbone(name, 64)
    names = {id(p): n for n, p in backbone.net.named_parameters()}
    first, last = [names[id(p)] for p in stages(backbone)[0]], [names[id(p)] for p in stages(backbone)[-1]]
    assert any(n.startswith(("conv1", "conv_proj", "conv_stem")) for n in first)
    assert any(n.startswith(("layer4.2", "encoder.layers.encoder_layer_11", "conv_head")) for n in last)


def test_a_backbone_prepares_images_itself_and_a_caller_cannot():
    backbone = Backbone("timm:tf_efficientnet_lite0", 64).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode(): assert torch.equal(backbone(images), backbone.net((images - 0.5) / 0.5))
    model = Transfer(backbone, 5)
    splits = load("streets?n=20&valid=10&test=10&size=32")
    inputs, _ = make_task(model, splits, 32, Recipe()).loader(splits.test, torch.device("cpu")).batch(0, 0)
    assert torch.equal(inputs, to_float(torch.from_numpy(np.array(pixels(splits.test, 32))).permute(0, 3, 1, 2), *RAW))
    assert 0 <= inputs.min() and inputs.max() <= 1


def test_a_network_without_a_linear_layer_is_no_backbone():
    with pytest.raises(CourseError, match="no linear layer"): take_head(nn.Conv2d(3, 8, 3))


@pytest.mark.parametrize("name", ["mobilnet_v2", "timm:mobilnet_v2", "fasterrcnn_resnet50_fpn", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(CourseError, match="unknown backbone"): Backbone(name)


# ---- weights

@real
@pytest.mark.parametrize("name", ["mobilenet_v2", "timm:tf_efficientnet_lite0"])
def test_published_weights_recognise_photos(name):
    from skimage import data
    from sklearn.datasets import load_sample_image
    from torchvision.models import get_model_weights
    net, weights = pretrained(name)
    photos = [data.coffee(), data.cat(), load_sample_image("flower.jpg")]
    images = torch.from_numpy(np.stack([resize(photo, weights.size) for photo in photos])).permute(0, 3, 1, 2)
    with torch.inference_mode(): best = net.eval()(to_float(images, weights.mean, weights.std)).argmax(1).tolist()
    names = [get_model_weights("mobilenet_v2").DEFAULT.meta["categories"][k] for k in best]
    assert names[0] in ("espresso", "cup", "coffee mug") and "cat" in names[1] + " tabby cat" * (names[1] == "tabby")


@real
def test_a_loaded_backbone_is_the_published_network_without_its_head():
    net, weights = pretrained("mobilenet_v2")
    backbone = Backbone("mobilenet_v2", 96).load().eval()
    assert take_head(net).in_features == backbone.width == 1280
    assert same(state(net), state(backbone.net)) and backbone.mean.flatten().tolist() == pytest.approx(weights.mean)


def test_a_damaged_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = published("resnet50")[0].file
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / file).write_bytes(b"half a file")
    with pytest.raises(CourseError, match="damaged"): pretrained("resnet50")


def test_a_file_of_timm_put_by_hand_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    [weights], own = published("timm:test_resnet"), build("timm:test_resnet")
    assert weights.file == "test_resnet.safetensors"
    (tmp_path / "checkpoints").mkdir()
    save_file(own.state_dict(), tmp_path / "checkpoints" / weights.file)
    found, _ = pretrained("timm:test_resnet")
    assert all(torch.equal(value, own.state_dict()[name]) for name, value in found.state_dict().items())


def test_weights_that_cannot_be_had_are_one_line_with_the_way_out(tmp_path, monkeypatch, capsys):
    def unreachable(*_, **__): raise urllib.error.URLError("no network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    arguments = ["train", "transfer", "--data", "streets?n=20&size=32", "--out", str(tmp_path / "out"), "--backbone", "resnet50"]
    assert main(arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert published("resnet50")[0].file in line and "--weights none" in line and "Traceback" not in line


@real
def test_weights_are_downloaded_checked_and_kept(tmp_path, monkeypatch):
    found = at_hand("mobilenet_v2-b0353104.pth")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), dict(log_message=lambda *_: None))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(found.parent))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        fetch, port = torch.hub.download_url_to_file, server.server_address[1]
        monkeypatch.setattr(torch.hub, "download_url_to_file", lambda url, *args, **options: fetch(
            f"http://127.0.0.1:{port}/{url.rpartition('/')[2]}", *args, **options))
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
        monkeypatch.setattr(weights_module, "PACKAGES", ())
        weights = next(w for w in published("mobilenet_v2") if w.file == found.name)
        monkeypatch.setattr(weights_module, "published", lambda name: [weights])
        net, _ = pretrained("mobilenet_v2")
        server.shutdown()
    assert same(state(net), torch.load(found, weights_only=True))
    assert (tmp_path / "checkpoints" / found.name).read_bytes() == found.read_bytes()


# ---- freezing

def test_what_is_frozen_stays_as_it_was_and_what_is_not_learns(splits):
    model = small()
    parts = stages(model.backbone)
    unfreeze(model.backbone, parts, 1)
    names = {id(p): n for n, p in model.named_parameters()}
    learning = {names[id(p)] for p in parts[-1]} | {"head.weight", "head.bias"}
    before = state(model)
    fit(model, splits, Recipe(epochs=1, batch_size=10), 32)
    for name, value in model.state_dict().items():
        if name in before and not any(name.rpartition(".")[0] == n.rpartition(".")[0] for n in learning):
            assert torch.equal(value, before[name]), name
    assert all(not torch.equal(dict(model.named_parameters())[n], before[n]) for n in learning)


@pytest.mark.parametrize("name", ["efficientnet_b0", "mobilenet_v2", "swin_t", "vgg16"])
def test_what_is_frozen_has_no_chance_in_it_and_what_learns_has(name):
    "Dropout and stochastic depth of frozen parts are off, those of parts that learn are on."
    torch.manual_seed(0)
    model, images = Transfer(Backbone(name, 32), 5), torch.rand(2, 3, 32, 32)
    parts = stages(model.backbone)
    chance = [m for m in model.modules() if type(m).__name__ in ("Dropout", "StochasticDepth")]
    unfreeze(model.backbone, parts, 0)
    with torch.no_grad(): first, second = [model.train()(images) for _ in range(2)]
    assert torch.equal(first, second) and not any(m.training for m in chance) and chance
    unfreeze(model.backbone, parts, len(parts))
    assert all(m.training for m in model.train().modules())
    model.requires_grad_(False).train()  # all of it, the head too
    assert not any(m.training for m in model.backbone.modules()) and not model.head.training


def test_blocks_of_frozen_stages_are_still_and_later_ones_are_not():
    model = Transfer(Backbone("efficientnet_b0", 32), 5)
    parts = stages(model.backbone)
    unfreeze(model.backbone, parts, 1)
    model.train()
    blocks = [m for m in model.modules() if type(m).__name__ == "MBConv"]
    for block in blocks:
        learns = any(p.requires_grad for p in block.parameters())
        assert all(m.training == learns for m in block.modules())
    assert {block.training for block in blocks} == {True, False}


def test_earlier_stages_learn_more_slowly():
    model = small()
    parts = stages(model.backbone)
    unfreeze(model.backbone, parts, 3, 0.5)
    scales = {id(p): group["lr_scale"] for group in groups(model, Recipe()) for p in group["params"]}
    assert [{scales.get(id(p)) for p in part} for part in parts] == [{None}] * (len(parts) - 3) + [{0.125}, {0.25}, {0.5}]
    assert scales[id(model.head.weight)] == 1 and {g["weight_decay"] for g in groups(model, Recipe())} == {0.0, 0.05}


def test_phases_share_out_the_epochs():
    assert phases("frozen", 5, 10) == [] and phases("full", 5, 10) == [(5, 10)]
    assert phases("progressive", 5, 10) == [(1, 2), (2, 2), (3, 2), (4, 2), (5, 2)]
    assert sum(epochs for _, epochs in phases("progressive", 5, 3)) == 3
    with pytest.raises(CourseError, match="frozen, progressive or full"): phases("none", 5, 3)


# ---- embeddings

def test_embeddings_are_computed_once_and_belong_to_weights_images_and_views(splits, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_HOME", str(tmp_path))
    backbone = small().backbone
    first = embeddings(backbone, splits.train, 32, 2, "cpu")
    images = torch.from_numpy(np.array(pixels(splits.train, 32))).permute(0, 3, 1, 2)
    with torch.inference_mode():
        for view, seen in enumerate((images, images.flip(3))):
            expected = backbone.eval()(to_float(seen, *RAW))
            assert (torch.from_numpy(np.array(first[:, view])) - expected).abs().max() < 0.05 * expected.abs().max()
    assert first.shape == (40, 2, 1280)

    def forbidden(*_): raise AssertionError("computed again")
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "embed", forbidden)
        assert np.array_equal(embeddings(backbone, splits.train, 32, 2, "cpu"), first)
        others = [(small(1).backbone, splits.train, 32, 2), (backbone, splits.test, 32, 2), (backbone, splits.train, 32, 1)]
        for other in others:
            with pytest.raises(AssertionError, match="again"): embeddings(*other, "cpu")
    with torch.no_grad(): backbone.net.features[0][1].running_mean += 1
    assert not np.array_equal(embeddings(backbone, splits.train, 32, 2, "cpu"), first)


@real
def test_the_head_learns_and_its_labels_matter():
    splits = load("streets?n=200&valid=10&test=100&size=64")
    options = dict(strategy="frozen", enlarge=64, input_size=64, device="cpu")
    accuracy = lambda splits: evaluate(models["transfer"](splits, **options), splits.test)["accuracy"]
    targets = list(np.random.default_rng(0).permutation(splits.train.targets))
    assert accuracy(splits) > 0.45 > 0.35 > accuracy(replace(splits, train=replace(splits.train, targets=targets)))


# ---- training

@pytest.mark.parametrize("strategy", ["frozen", "progressive", "full"])
def test_every_strategy_trains_saves_and_opens_without_weights(strategy, splits, tmp_path, monkeypatch):
    epochs = {} if strategy == "frozen" else dict(epochs=5)
    trained = models["transfer"](splits, strategy=strategy, folder=tmp_path / "run", **epochs, **TINY)
    assert list(tmp_path.rglob("done.pt")) and trained.about["recipe"]["epochs"] == (5 if epochs else 10)
    assert [row["epoch"] for row in trained.about["history"]] == list(range(1, (2 if strategy == "frozen" else 7) + 1))
    trained.save(tmp_path / "bundle")
    assert not list(tmp_path.rglob("*.pt"))  # what was trained is kept until the bundle is there
    monkeypatch.setattr(transfer, "pretrained", lambda name: pytest.fail("a bundle needs no published weights"))
    images = np.array(pixels(splits.test, 32))
    assert np.array_equal(open_model(tmp_path / "bundle").predict_proba(images), trained.predict_proba(images))


def test_frozen_leaves_the_backbone_alone(splits):
    model = small()
    before = state(model.backbone)
    learn_transfer(Job(model, splits, Recipe(batch_size=10), 32), strategy="frozen", weights="none", head_epochs=1)
    assert same(before, state(model.backbone))


class Interrupted(Exception): "In place of a power failure."


@pytest.mark.parametrize("moment", [2, 9, 14, 22])
def test_interrupted_in_any_phase_it_ends_with_the_same_weights(moment, splits, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Checkpoint, "due", lambda self: True)
    recipe, how = Recipe(epochs=5, batch_size=10), dict(strategy="progressive", weights="none", head_epochs=2)
    whole = small()
    learn_transfer(Job(whole, splits, recipe, 32), **how)
    usual, left = training.Classification.loss, iter(range(moment))

    def failing(self, outputs, targets):
        if torch.is_grad_enabled() and next(left, None) is None: raise Interrupted
        return usual(self, outputs, targets)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(training.Classification, "loss", failing)
        learn_transfer(Job(small(), splits, recipe, 32, folder=tmp_path / "run"), **how)
    resumed = small()
    history = learn_transfer(Job(resumed, splits, recipe, 32, folder=tmp_path / "run", resume=True), **how)
    assert same(state(whole), state(resumed)) and len(history.rows) == 7


@real
def test_a_few_photos_of_two_classes_make_a_model(tmp_path, capsys):
    write_splits(load("streets?n=80&valid=20&test=40&size=96"), "folder", tmp_path / "all")
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("car", "motorcycle"): (tmp_path / "all" / "train" / name).rename(folder / name)
    assert main(["train", "transfer", "--data", str(folder), "--out", str(tmp_path / "B"), "--epochs", "3"]) == 0
    assert main(["predict", str(tmp_path / "B"), str(folder / "car"), "--top-k", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count(": car") > said.count(": motorcycle")


def test_embeddings_of_rare_classes_are_drawn_as_often_as_others():
    data = load("streets?n=20&valid=5&test=5").train
    vectors, recipe = np.arange(40, dtype=np.float32).reshape(20, 1, 2), Recipe(batch_size=8, balance="sampling")
    train, measured = (Vectors(vectors, data, recipe, torch.device("cpu"), training) for training in (True, False))
    drawn = np.concatenate([train.numbers(4, step) for step in range(len(train))])
    assert np.array_equal(drawn, drawn_evenly(np.array(data.targets), 0, 4)) and len(set(drawn)) < 20
    inputs, targets = train.batch(4, 1)
    assert (inputs[:, 0] / 2).tolist() == train.numbers(4, 1).tolist() and targets.tolist() == [data.targets[i] for i in train.numbers(4, 1)]
    assert measured.numbers(0, 0).tolist() == list(range(20))
