"A detector's scales as a classifier: the cut, the bridge, checkpointing, learning, bundles, and what is refused."
import urllib.error
from dataclasses import replace

import numpy as np
import pytest
import torch
from making import class_folders
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.models.detection.ssdlite import _mobilenet_extractor

from course_lib import device, hybrid, hybrid_parts, transfer
from course_lib.cli import main
from course_lib.core import CourseError, models, open_model
from course_lib.data import load, pixels, to_float
from course_lib.hybrid import Bridge, HybridModel, MultiScale, cut
from course_lib.hybrid_parts import DETECTOR, begin, chosen_scales
from course_lib.training import Recipe, groups
from course_lib.loop import Job, fit
from course_lib.weights import RAW, at_hand, build, published
from course_lib.transfer import embed

TINY = dict(enlarge=32, input_size=32, weights="none", batch_size=10, epochs=1)
real = pytest.mark.skipif(not at_hand("mobilenet_v2-b0353104.pth"), reason="the package with weights is not installed: see `make help`")


@pytest.fixture(scope="module")
def splits(): return load("streets?n=40&valid=20&test=20&size=32")


def small(seed=0, **how):
    torch.manual_seed(seed)
    return HybridModel(5, **dict(enlarge=32) | how)


def state(module): return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(value, b[name]) for name, value in a.items())


def weights_of(module): return sum(p.numel() for p in module.parameters())


# ---- the cut

def test_the_maps_of_v3_are_those_of_torchvisions_extractor():
    torch.manual_seed(0)
    net = build("mobilenet_v3_large").eval()
    reference = _mobilenet_extractor(net, 6, nn.BatchNorm2d).eval()
    ours = MultiScale("mobilenet_v3_large", enlarge=96).eval()
    for own, part in zip(ours.net, [*reference.features, *reference.extra]): own.load_state_dict(part.state_dict())
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        expected = reference((images - ours.mean) / ours.std).values()
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.maps(images), expected, strict=True))


def test_the_maps_of_the_detector_are_its_own():
    pieces = cut(DETECTOR)
    torch.manual_seed(0)
    net = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    ours = MultiScale(DETECTOR, enlarge=64).eval()
    for own, part in zip(ours.net, [*net.backbone.features, *net.backbone.extra]): own.load_state_dict(part.state_dict())
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = net.backbone((images - 0.5) / 0.5).values()
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.maps(images), expected, strict=True))
    assert pieces.known == 6 and pieces.mean == (0.5, 0.5, 0.5)


def test_mobilenet_v2_is_cut_where_its_paper_says():
    "Section 6.2 of Sandler et al. 2018: the first map is the expansion of the layer 15 with output stride 16."
    torch.manual_seed(0)
    ours, net = MultiScale("mobilenet_v2", enlarge=96).eval(), build("mobilenet_v2").eval()
    fresh = [*net.features[:14], net.features[14].conv[0]], [net.features[14].conv[1:], *net.features[15:]]
    for own, part in zip(ours.net, fresh): own.load_state_dict(nn.Sequential(*part).state_dict())
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        x = (images - ours.mean) / ours.std
        finest, last = ours.maps(images)[:2]
        assert torch.allclose(last, net.features(x), atol=1e-5)
        assert torch.allclose(finest, net.features[14].conv[0](net.features[:14](x)), atol=1e-5)
    assert finest.shape == (2, 576, 6, 6) and last.shape == (2, 1280, 3, 3)


@pytest.mark.parametrize("name, widths, wanted", [
    ("mobilenet_v2", [576, 1280, 512, 256, 256, 128], 1280), ("mobilenet_v3_large", [672, 960, 512, 256, 256, 128], 960),
    ("mobilenet_v3_small", [288, 576, 512, 256, 256, 128], 576), (DETECTOR, [672, 480, 512, 256, 256, 128], 960)])
def test_every_backbone_has_six_scales_and_its_own_classifier(name, widths, wanted):
    model = HybridModel(7, name, enlarge=64).eval()
    assert model.backbone.widths == widths and model.head[0].adapt.out_features == wanted
    assert weights_of(model.head[0]) == 2 * sum(widths) + (sum(widths) + 1) * wanted
    with torch.no_grad(): assert model(torch.rand(2, 3, 48, 48)).shape == (2, 7)
    kinds = [type(layer).__name__ for layer in build("mobilenet_v3_large" if name == DETECTOR else name).classifier]
    assert [type(layer).__name__ for layer in model.head[1]] == kinds
    assert (model.head[0].through is None) == (name == DETECTOR)


def test_the_sides_at_320_pixels():
    with torch.no_grad(): maps = MultiScale("mobilenet_v2").eval().maps(torch.rand(1, 3, 320, 320))
    assert [m.shape[2] for m in maps] == [20, 10, 5, 3, 2, 1]


def test_what_is_behind_the_last_scale_is_not_built():
    all_, two, one = (MultiScale("mobilenet_v2", scales, 64) for scales in (range(6), (0, 1), (0,)))
    assert [len(m.net) for m in (all_, two, one)] == [6, 2, 1] and one.widths == [576] and two.width == 1856
    assert weights_of(two) == 2_223_872 and weights_of(one) == 598_976  # the first is MobileNetV2 without its head


# ---- the bridge

def test_it_begins_as_mobilenet():
    "What enters the classifier is MobileNet's own embedding, and nothing else."
    model, net = small(), build("mobilenet_v2")
    for own, part in zip(model.backbone.net, transferred(net)): own.load_state_dict(part.state_dict())
    images = torch.rand(2, 3, 32, 32)
    model, net = model.eval(), net.eval()
    net.classifier[1] = model.head[1][1]
    with torch.no_grad(): assert torch.allclose(model(images), net((images - model.backbone.mean) / model.backbone.std), atol=1e-5)


def transferred(net):
    return nn.Sequential(*net.features[:14], net.features[14].conv[0]), nn.Sequential(net.features[14].conv[1:], *net.features[15:])


def test_the_bridge_hears_each_scale_at_the_same_volume():
    torch.manual_seed(0)
    bridge, means = Bridge([8, 16], 4).eval(), torch.rand(3, 24)
    louder = means.clone()
    louder[:, :8] *= 50
    with torch.no_grad(): assert torch.allclose(bridge(means), bridge(louder), atol=1e-3)
    assert {p.lr_scale for p in bridge.parameters()} == {0.1} and {g["lr_scale"] for g in groups(bridge, Recipe())} == {0.1}
    quiet = Bridge([8, 16], 8, through=0)
    with torch.no_grad(): assert torch.equal(quiet(means), means[:, :8])


def test_listening_makes_the_last_scales_heard_and_leaves_the_others_alone():
    model = small(enlarge=64)
    before, images = state(model.backbone.net[:2]), torch.rand(60, 3, 32, 32)
    with torch.no_grad():
        was = model.backbone.eval()(images).split(model.backbone.widths, 1)
        model.backbone.listen(images)
        now = model.backbone(images).split(model.backbone.widths, 1)
    assert same(before, state(model.backbone.net[:2])) and torch.equal(was[1], now[1])
    assert was[5].mean() < 1e-5 < 0.01 < now[5].mean()
    norms = [m for m in model.backbone.net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {m.momentum for m in norms} == {0.1} and not any(m.training for m in norms)


# ---- checkpointing

def after_a_step(model, images):
    model.train()
    model.head[1][0].p = 0.0  # dropout
    model(images).logsumexp(1).sum().backward()
    return [p.grad for p in model.parameters()], state(model)


def test_checkpointing_changes_neither_gradients_nor_statistics():
    images = torch.rand(4, 3, 64, 64)
    plain, statistics = after_a_step(small(enlarge=64), images)
    saving, also = after_a_step(small(enlarge=64, checkpointing=True), images)
    assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-5 * float(a.abs().max())) for a, b in zip(plain, saving, strict=True))
    assert same(statistics, also) and also["backbone.net.0.0.1.num_batches_tracked"] == 1


def test_counting_twice_would_be_noticed(monkeypatch):
    images = torch.rand(4, 3, 64, 64)
    _, statistics = after_a_step(small(enlarge=64), images)
    monkeypatch.setattr(hybrid, "recomputed", lambda block, x: checkpoint(block, x, use_reentrant=False))
    _, also = after_a_step(small(enlarge=64, checkpointing=True), images)
    assert not torch.equal(statistics["backbone.net.0.0.1.running_mean"], also["backbone.net.0.0.1.running_mean"])


def kept(model, images, half=False):
    own, found = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}
    def keep(t):
        if t.untyped_storage().data_ptr() not in own: found[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast("cpu", torch.bfloat16, enabled=half): out = model(images)
    return sum(found.values()) + 0 * out.numel()


def test_checkpointing_and_half_precision_save_memory():
    images = torch.rand(2, 3, 128, 128)
    plain, saving = (small(enlarge=128, checkpointing=on).train() for on in (False, True))
    whole = kept(plain, images)
    assert kept(saving, images) < 0.5 * whole and kept(plain, images, True) < 0.8 * whole
    assert kept(saving.eval(), images) > 0.8 * kept(plain.eval(), images), "only in training"


def test_frozen_statistics_stay_with_checkpointing():
    model = small(checkpointing=True)
    model.backbone.requires_grad_(False)
    before = state(model.backbone)
    model.train()(torch.rand(4, 3, 32, 32)).sum().backward()
    assert same(before, state(model.backbone))


# ---- learning

@pytest.mark.parametrize("how", [dict(strategy="frozen"), dict(strategy="full"), dict(strategy="progressive", scales="0,2"),
                                 dict(checkpointing=True, precision="bf16"), dict(backbone="mobilenet_v3_large", scales="1")])
def test_it_trains_saves_and_opens_without_weights(how, splits, tmp_path, monkeypatch):
    trained = models["hybrid"](splits, folder=tmp_path / "run", **TINY | how)
    assert list(tmp_path.rglob("done.pt")) and trained.about["history"][-1]["epoch"] == 1
    trained.save(tmp_path / "bundle")
    assert not list(tmp_path.rglob("*.pt"))
    monkeypatch.setattr(transfer, "pretrained", lambda name: pytest.fail("a bundle needs no published weights"))
    monkeypatch.setattr(hybrid, "pretrained", transfer.pretrained)
    monkeypatch.setattr(hybrid_parts, "pretrained", transfer.pretrained)
    images = np.array(pixels(splits.test, 32))
    assert np.array_equal(open_model(tmp_path / "bundle").predict_proba(images), trained.predict_proba(images))


def test_with_checkpointing_it_learns_the_same(splits):
    first, second = small(), small(checkpointing=True)
    for model in (first, second): fit(model, splits, Recipe(epochs=1, batch_size=20, precision="fp32"), 32)
    for name, value in first.state_dict().items(): assert torch.allclose(value.float(), second.state_dict()[name].float(), atol=2e-3), name


def test_embeddings_are_what_the_trunk_says(splits, monkeypatch):
    monkeypatch.setattr(device, "best_precision", lambda device: "fp32")
    model, images = small(), np.array(pixels(splits.test, 32))
    begin(Job(model, splits, input_size=32, device="cpu"), "none")
    with torch.no_grad(): expected = model.backbone.eval()(to_float(torch.from_numpy(images).permute(0, 3, 1, 2), *RAW))
    said = torch.tensor(embed(model.backbone, images, device="cpu")[:, 0])
    for a, b in zip(said.split(model.backbone.widths, 1), expected.split(model.backbone.widths, 1)):
        assert (a - b).norm() < 1e-3 * b.norm()


@real
def test_published_weights_are_loaded_and_nothing_else_changes():
    model = small()
    extras, (net, weights) = state(model.backbone.net[2:]), transfer.pretrained("mobilenet_v2")
    model.load()
    assert same(extras, state(model.backbone.net[2:])) and model.backbone.mean.flatten().tolist() == pytest.approx(weights.mean)
    for own, part in zip(model.backbone.net, transferred(net)): assert same(state(own), state(part))


@real
def test_labels_and_preparation_matter(splits):
    data = load("streets?n=150&valid=10&test=100&size=64")
    def right(data, prepared=True):
        trained = models["hybrid"](data, strategy="frozen", epochs=15, enlarge=64, input_size=64, scales="0,1", device="cpu")
        return np.mean(trained.predict_proba(np.array(pixels(data.test, 64))).argmax(1) == np.array(data.test.targets))
    shuffled = list(np.random.default_rng(0).permutation(data.train.targets))
    assert right(data) > 0.45 > 0.35 > right(replace(data, train=replace(data.train, targets=shuffled)))


def test_a_folder_of_photos_from_the_command_line(tmp_path, capsys):
    folder = class_folders(tmp_path / "photos")
    arguments = ["train", "hybrid", "--data", str(folder), "--out", str(tmp_path / "B"), "--epochs", "1", "--enlarge", "32", "--batch-size", "4",
                 "--weights", "none", "--scales", "0,1", "--checkpointing"]
    assert main(arguments) == 0 and main(["predict", str(tmp_path / "B"), str(folder / "cat")]) == 0
    assert open_model(tmp_path / "B").arguments["scales"] == "0,1"


# ---- what is refused

def test_scales_as_text():
    assert chosen_scales("0,1") == (0, 1) and chosen_scales("5, 2") == (2, 5) and chosen_scales(3) == (3,)
    for wrong in ("", "6", "a", "1,,2", "-1"):
        with pytest.raises(CourseError, match="use numbers from 0 to 5"): chosen_scales(wrong)


@pytest.mark.parametrize("options, words", [
    (dict(backbone="resnet50"), "needs one of mobilenet_v2"), (dict(backbone="mobilenet_v9"), "needs one of"), (dict(weights="some"), "published or none"),
    (dict(strategy="half"), "frozen, progressive or full"), (dict(batch_size=1), "two images or more"),
    (dict(accumulate=10), "two images or more"), (dict(scales="9"), "scales=9")])
def test_wrong_options_are_one_line(options, words, splits):
    with pytest.raises(CourseError, match=words): models["hybrid"](splits, **TINY | options)


@pytest.mark.parametrize("name, file", [("mobilenet_v3_large", None), (DETECTOR, "ssdlite320_mobilenet_v3_large_coco-a79551df.pth")])
def test_weights_that_cannot_be_had(name, file, tmp_path, monkeypatch):
    def unreachable(*_, **__): raise urllib.error.URLError("no network")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(CourseError, match="--weights none") as error: HybridModel(5, name, enlarge=32).load()
    assert (file or published(name)[0].file) in str(error.value)
