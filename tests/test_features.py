"""Chapter 03: the batched features equal scikit-image, refuse bad input, are fast, and say what moved when they change."""
import inspect
import pickle
import platform
import sys
import time
import types
import warnings
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from skimage.feature import hog as skimage_hog, local_binary_pattern as skimage_lbp
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from course_lib import features, kernels
from course_lib.core import CourseError

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# elsewhere scikit-image's compiler may fuse a product and a sum into one step, which decides ties of LBP differently
EXACT = platform.machine() in ("x86_64", "AMD64")
METHODS = ["default", "ror", "uniform", "nri_uniform"]
thorough = settings(max_examples=60, deadline=None, derandomize=True)
rng = np.random.default_rng(3)


def tensor(images, device="cpu"): return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(device)


def noise(*shape): return np.random.default_rng(sum(shape)).integers(0, 256, shape, np.uint8)


# The parity checks. They take the module, so that the knock-outs below can hand them a broken one.

def assert_hog(module, images, orientations=9, cell=(8, 8), block=(2, 2), device="cpu"):
    "`images` [B, H, W, C] give the same numbers as scikit-image, to 1e-4."
    ours = module.hog(tensor(images, device), orientations, cell, block)
    theirs = np.stack([skimage_hog(p, orientations, cell, block, channel_axis=2) for p in images])
    assert ours.dtype == torch.float32 and ours.shape == theirs.shape
    np.testing.assert_allclose(ours.cpu().numpy(), theirs, rtol=0, atol=1e-4)


def assert_lbp(module, greys, points=8, radius=1, method="uniform", device="cpu"):
    "`greys` [B, H, W] give exactly the codes of scikit-image."
    ours = module.lbp(tensor(greys[..., None], device), points, radius, method)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Applying `local_binary_pattern`")  # about floats: that is the point here
        theirs = np.stack([skimage_lbp(g, points, radius, method) for g in greys])
    assert ours.dtype == torch.int64
    if EXACT: np.testing.assert_array_equal(ours.cpu().numpy(), theirs)
    else: assert (ours.cpu().numpy() != theirs).mean() < 0.05


def by_hand(image, cells, bins, high):  # [H, W, C] -> shares of the bins in each part, part by part, channel by channel
    row, column = (np.arange(n) * cells // n for n in image.shape[:2])
    parts = [image[row == r][:, column == c] for r in range(cells) for c in range(cells)]
    return np.concatenate([np.histogram(p[..., k], bins, (0, high))[0] / p[..., k].size
                           for p in parts for k in range(p.shape[2])])


def assert_histograms(module, images, device="cpu"):
    batch = tensor(images, device)
    codes = module.lbp(batch).cpu().numpy()[..., None]
    for cells in (1, 3):
        np.testing.assert_allclose(module.lbp_histogram(batch, cells=cells).cpu().numpy(),
                                   [by_hand(c, cells, 10, 10) for c in codes], atol=1e-6)
        np.testing.assert_allclose(module.color_histogram(batch, 8, cells).cpu().numpy(),
                                   [by_hand(p, cells, 8, 256) for p in images], atol=1e-6)


def assert_all(module):
    "Small, quick, and enough to notice every knock-out below."
    assert_hog(module, noise(2, 32, 40, 3))
    assert_hog(module, np.random.default_rng(0).random((2, 20, 20, 1)), 8, (4, 5), (3, 2))
    assert_hog(module, 0.5 + 1e-5 * np.random.default_rng(1).random((2, 16, 16, 3)))
    for method in METHODS:
        assert_lbp(module, noise(2, 17, 20), 8, 1, method)
        assert_lbp(module, noise(2, 17, 20) // 100, 12, 2.5, method)
    assert_lbp(module, noise(1, 40, 40) // 100, 8, 1, "default")  # few levels: rounding errors decide
    assert_histograms(module, noise(2, 17, 20, 3))


# Parity

@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", ["bytes", "three levels", "float32", "float64", "nearly constant", "one channel"])
def test_hog_equals_scikit_image(kind, device):
    images = {"bytes": noise(5, 37, 50, 3), "three levels": noise(5, 37, 50, 3) // 100,
                "float32": rng.random((5, 37, 50, 3)).astype(np.float32), "float64": rng.random((5, 37, 50, 3)),
                "nearly constant": 0.5 + 1e-6 * rng.random((5, 37, 50, 3)), "one channel": noise(5, 37, 50, 1)}[kind]
    for orientations, cell, block in ((9, (8, 8), (2, 2)), (8, (7, 5), (1, 3)), (12, (3, 9), (3, 1)), (1, (6, 6), (2, 2)),
                                      (7, (37, 50), (1, 1)), (18, (1, 1), (2, 2))):
        assert_hog(features, images, orientations, cell, block, device)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_hog_of_a_photograph(dtype):
    "Where neighbours are equal, channels tie and angles fall exactly on 45 degrees."
    from skimage.data import astronaut
    photo = astronaut()[:256].reshape(4, 64, 8, 64, 3).swapaxes(1, 2).reshape(-1, 64, 64, 3)
    photo = photo if dtype == np.uint8 else (photo / 255).astype(dtype)
    for orientations in (6, 8, 9, 12): assert_hog(features, photo, orientations)


def test_every_gradient_of_bytes_falls_into_the_right_bin():
    "All 511x511 gradients that uint8 images can have, against the definition in float64."
    down, right = (g.ravel() for g in np.meshgrid(np.arange(-255, 256), np.arange(-255, 256), indexing="ij"))
    images = np.zeros((len(down), 3, 3, 1), np.uint8)
    images[:, 2, 1, 0], images[:, 0, 1, 0] = down.clip(0), (-down).clip(0)
    images[:, 1, 2, 0], images[:, 1, 0, 0] = right.clip(0), (-right).clip(0)
    degrees = np.arctan2(down, right) * (180 / np.pi) % 180
    for orientations in range(1, 37):
        expected = np.floor(degrees * orientations / 180)
        assert (kernels.byte_bins(orientations, torch.device("cpu")).numpy() == expected).all(), orientations
    cells = kernels.cell_histograms(tensor(images), 12, 3)[:, 0, 0].numpy() * 9  # only the middle has a gradient
    expected = np.eye(12)[np.floor(degrees / 15).astype(int)] * np.hypot(down, right)[:, None]
    np.testing.assert_allclose(cells, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_constant_images_have_no_edges(value):
    flat = np.full((2, 24, 24, 3), value, np.uint8)
    assert_hog(features, flat)
    assert not features.hog(tensor(flat)).any()
    for method in METHODS: assert_lbp(features, flat[..., 0], 8, 1, method)


@pytest.mark.parametrize("height, width", [(1, 1), (1, 7), (2, 2), (3, 1), (5, 2)])
def test_tiny_images(height, width):
    images = noise(3, height, width, 3)
    assert_hog(features, images, 9, (1, 1), (1, 1))
    for method in METHODS: assert_lbp(features, images[..., 0], 8, 3, method)
    shares = features.color_histogram(tensor(images), cells=1).numpy()
    np.testing.assert_allclose(shares, [by_hand(p, 1, 8, 256) for p in images], atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("points, radius", [(8, 1), (8, 2), (4, 1), (1, 1), (3, .4), (12, 1.5), (16, 2), (18, 2.3), (24, 3)])
def test_lbp_equals_scikit_image(points, radius, method, device):
    for greys in (noise(2, 21, 34), noise(2, 21, 34) // 90, rng.random((2, 21, 34)), np.full((1, 70, 9), 123, np.uint8)):
        assert_lbp(features, greys, points, radius, method, device)


images = hnp.arrays(np.uint8, st.tuples(st.just(1), st.integers(1, 24), st.integers(1, 24), st.sampled_from([1, 3])))
floats = hnp.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 3])),
                    elements=st.floats(0, 1, width=32, allow_subnormal=False))
sides = st.tuples(st.integers(1, 6), st.integers(1, 6))


@thorough
@given(images | floats, st.integers(1, 24), sides, st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_any_hog(image, orientations, cell, block):
    smallest = [c * b for c, b in zip(cell, block)]
    if image.shape[1] < smallest[0] or image.shape[2] < smallest[1]:
        with pytest.raises(CourseError, match=f"smaller than one block .{smallest[0]}x{smallest[1]}"):
            features.hog(tensor(image), orientations, cell, block)
    else: assert_hog(features, image, orientations, cell, block)


@thorough
@given(images | floats, st.integers(1, 12), st.floats(0.25, 5), st.sampled_from(METHODS))
def test_any_lbp(image, points, radius, method): assert_lbp(features, image[..., 0], points, radius, method)


@thorough
@given(hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.integers(3, 20), st.integers(3, 20), st.just(3))))
def test_any_histograms(images): assert_histograms(features, images)


@pytest.mark.parametrize("points, method, names", [(8, "default", 256), (8, "ror", 36), (8, "uniform", 10),
                                                   (8, "nri_uniform", 59), (4, "ror", 6), (12, "uniform", 14)])
def test_lbp_histogram_has_one_column_per_name(points, method, names):
    shares = features.lbp_histogram(tensor(noise(2, 30, 30, 3)), points, 1, method, 2)
    assert shares.shape == (2, 4 * names)
    torch.testing.assert_close(shares.view(2, 4, names).sum(2), torch.ones(2, 4))


def test_grey_is_rgb2gray_rounded():
    from skimage.color import rgb2gray
    images = noise(1, 200, 200, 3)
    exact = rgb2gray(images[0]) * 255
    assert np.abs(features.grey(tensor(images))[0, 0].numpy() - exact).max() <= 0.5 + 1e-9
    levels = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256).contiguous()
    assert (features.grey(levels)[0, 0, 0] == torch.arange(256)).all()


# What moved? These are the first tests to fail when somebody changes a default of `hog`.

GOLDEN = dict(orientations=9, pixels_per_cell=8, cells_per_block=2, length_32=324, length_128=8100)
GOLDEN_CELL = [0.2171, 0.1741, 0.2049, 0.185, 0.2341, 0.1081, 0.087, 0.0659, 0.0217]  # the first cell of the image below, to four digits


def known_image():
    y, x = np.mgrid[:32, :32]
    return np.stack([13 * x * x + 7 * y * y, 5 * x * y + 3 * y, 11 * x + 9 * y * y], -1).astype(np.uint8)[None]


def test_the_default_hog_is_the_one_that_models_were_trained_on():
    "If you meant the change: update GOLDEN and GOLDEN_CELL here, the bands of chapters 03 and 04, and retrain."
    defaults = {name: p.default for name, p in inspect.signature(features.hog).parameters.items() if name != "images"}
    per_image = {side: features.hog(torch.zeros(1, 3, side, side)).shape[1] for side in (32, 128)}
    now = dict(**defaults, length_32=per_image[32], length_128=per_image[128])
    moved = [f"  {name}: {GOLDEN.get(name, 'absent')} -> {now.get(name, 'absent')}"
             for name in {**GOLDEN, **now} if GOLDEN.get(name) != now.get(name)]
    assert not moved, ("\ncourse_lib.features.hog (nbs/03_features.ipynb) has other defaults:\n" + "\n".join(moved)
                       + "\nlength_S counts the numbers per SxS image. Bundles trained on the old length will not"
                       " predict.\n" + inspect.getdoc(test_the_default_hog_is_the_one_that_models_were_trained_on))


def test_hog_of_a_known_image():
    vector = features.hog(tensor(known_image()))[0].double().numpy()
    first_cell = vector[:len(vector) // 36].round(4).tolist()
    assert first_cell == pytest.approx(GOLDEN_CELL, abs=2e-4), (
        f"\nthe first cell of the known image, by orientation:\n  was {GOLDEN_CELL}\n  is  {first_cell}\n"
        f"{len(first_cell)} orientations now, {len(GOLDEN_CELL)} before. If the defaults did not change, HOG broke: "
        "see the parity tests above.")


@thorough
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), sides, st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_length_of_hog(height, width, orientations, cell, block):
    "(cells down - block + 1) x (cells across - block + 1) blocks of block x block cells of `orientations` numbers."
    down, across = (size // c - b + 1 for size, c, b in zip((height, width), cell, block))
    if down < 1 or across < 1: return
    found = features.hog(torch.zeros(1, 1, height, width), orientations, cell, block)
    assert found.shape == (1, down * across * block[0] * block[1] * orientations)


# Knock-outs: break one line, and the parity checks must notice.

BREAKS = {
    "the sign of the gradient": ("torch.sub(x[:, :, 2:], x[:, :, :-2],", "torch.sub(x[:, :, :-2], x[:, :, 2:],"),
    "rows and columns swapped": ("return down, right, size", "return right, down, size"),
    "signed directions": ("angle -= (angle / 180).floor_() * 180", "angle = angle % 360 / 2"),
    "always the first channel": ("enumerate(sizes[1:], 1)", "enumerate(sizes[1:1], 1)"),
    "votes without size": ("slot, size.float().flatten(1))", "slot, torch.ones(slot.shape))"),
    "bins rounded, not cut": (".div_(180).long()", ".div_(180).round_().long()"),
    "votes not per pixel": ("[..., :-1] / (height * width)", "[..., :-1]"),
    "no clipping": (".clamp(max=clip)", ""),
    "normalized once": ("return unit(unit(blocks).clamp(max=clip))", "return unit(blocks).clamp(max=clip)"),
    "another eps": ("eps: float = 1e-5", "eps: float = 1e-3"),
    "cells of a block in another order": (".permute(0, 1, 2, 4, 5, 3)", ".permute(0, 1, 2, 5, 4, 3)"),
    "neighbours clockwise": ("-radius * np.sin(turn)", "radius * np.sin(turn)"),
    "neighbours from the top": ("2 * np.pi * np.arange(points, dtype=np.float64) / points",
                                "np.pi / 2 + 2 * np.pi * np.arange(points, dtype=np.float64) / points"),
    "brighter, not at least as bright": ("neighbour >= (x", "neighbour > (x"),
    "nearest pixel": ("near, far = as_double(near), as_double(x.narrow(dim, margin + low + 1, size))",
                      "near, far = as_double(near), as_double(near)"),
    "float32 between pixels": ("else x.double()", "else x.float()"),
    "border repeated": ("F.pad(x, [margin] * 4)", "F.pad(as_double(x)[None], [margin] * 4, mode='replicate')[0]"),
    "three changes are uniform": ("torch.where(changes <= 2, ones", "torch.where(changes <= 3, ones"),
    "largest rotation": (".amin(0)", ".amax(0)"),
    "turns counted the other way": ("ones - first_zero, points - first_one", "first_zero - ones, first_one"),
    "parts transposed": ("part = row[:, None] * cells + column ", "part = column * cells + row[:, None] "),
    "levels upside down": ("levels(images).int() *", "(255 - levels(images).int()) *"),
    "counts, not shares": ("channels * n) / area)", "channels * n))"),
}


def broken(old, new):
    "`features` on top of `kernels`, both made anew, with one piece of their source replaced."
    sources = {module.__name__.split(".")[1]: inspect.getsource(module) for module in (kernels, features)}
    assert any(old in source for source in sources.values()), f"the knock-out does not fit the source any more: {old}"
    with mock.patch.dict(sys.modules):  # where the broken features find the broken kernels, until the block ends
        for name, source in sources.items():
            module = types.ModuleType(f"course_lib.broken_{name}")
            module.__package__ = "course_lib"
            source = source.replace(old, new).replace("from .kernels import", "from .broken_kernels import")
            exec(compile(source, f"broken_{name}.py", "exec"), module.__dict__)
            sys.modules[module.__name__] = module
    return module


def test_the_checks_pass_on_the_real_module(): assert_all(features)


@pytest.mark.parametrize("name", BREAKS)
def test_knock_out(name):
    module = broken(*BREAKS[name])
    with pytest.raises(AssertionError): assert_all(module)


# Bad input ends in one line that helps.

@pytest.mark.parametrize("call, message", [
    (lambda: features.hog(noise(1, 32, 32, 3)), "torch tensor.*as_tensor"),
    (lambda: features.hog(torch.zeros(1, 32, 32, 3)), r"permute\(0, 3, 1, 2\)"),
    (lambda: features.hog(torch.zeros(3, 32, 32)), r"\[B, 3, H, W\]"),
    (lambda: features.hog(torch.zeros(1, 4, 32, 32)), r"not \[1, 4, 32, 32\]"),
    (lambda: features.hog(torch.zeros(0, 3, 32, 32)), "no pixels"),
    (lambda: features.lbp(torch.zeros(1, 3, 0, 32)), "no pixels"),
    (lambda: features.hog(torch.zeros(1, 3, 32, 32, dtype=torch.int64)), "uint8 or float"),
    (lambda: features.hog(torch.full((1, 3, 32, 32), 255.)), "divide by 255"),
    (lambda: features.color_histogram(torch.full((1, 3, 32, 32), -0.1)), "within 0 and 1"),
    (lambda: features.lbp(torch.full((1, 3, 32, 32), float("nan"))), "within 0 and 1"),
    (lambda: features.hog(torch.zeros(1, 3, 15, 32)), "15x32 pixels are smaller than one block .16x16"),
    (lambda: features.hog(torch.zeros(1, 3, 32, 32), 0), "orientations must be a whole number"),
    (lambda: features.hog(torch.zeros(1, 3, 32, 32), 9.0), "orientations must be a whole number"),
    (lambda: features.hog(torch.zeros(1, 3, 32, 32), pixels_per_cell=(8, 0)), "pixels_per_cell must be"),
    (lambda: features.hog(torch.zeros(1, 3, 32, 32), cells_per_block=(1, 2, 3)), "cells_per_block must be"),
    (lambda: features.lbp(torch.zeros(1, 3, 8, 8), method="rotation"), "choose from default, ror"),
    (lambda: features.lbp(torch.zeros(1, 3, 8, 8), points=25), "points must be a whole number from 1 to 24"),
    (lambda: features.lbp(torch.zeros(1, 3, 8, 8), radius=0), "radius"),
    (lambda: features.lbp_histogram(torch.zeros(1, 3, 8, 8), 16, method="ror"), "use 'uniform'"),
    (lambda: features.lbp_histogram(torch.zeros(1, 3, 3, 8)), "cannot be cut into 4x4"),
    (lambda: features.color_histogram(torch.zeros(1, 3, 8, 8), bins=257), "from 1 to 256"),
    (lambda: features.extract(torch.zeros(1, 3, 32, 32), ("hgo",)), "did you mean 'hog'"),
    (lambda: features.extract(torch.zeros(1, 3, 32, 32), ()), "no features named"),
    (lambda: features.Features(("hog", "hog")).fit(noise(2, 32, 32, 3)), "'hog' is named twice"),
    (lambda: features.Features(chunk=0).fit_transform(noise(2, 32, 32, 3)), "chunk=0"),
    (lambda: features.extract(torch.zeros(1, 3, 32, 32), hog=dict(orientation=8)), "no option 'orientation'.*orientations"),
    (lambda: features.extract(torch.zeros(1, 3, 32, 32), ("hog",), lbp=dict(points=8)), "options for 'lbp'"),
    (lambda: features.Features().fit(noise(2, 32, 32, 3) / 255), "uint8"),
    (lambda: features.Features().fit(noise(2, 3, 32, 32)), r"\[N, H, W, 3\]"),
    (lambda: features.Features().fit(noise(2, 32, 32, 3)[:0]), "no images"),
    (lambda: features.Features().fit(noise(2, 32, 32, 3)).transform(noise(2, 40, 40, 3)), "resize"),
    (lambda: features.Features(names=("hog", "smell")).fit(noise(2, 32, 32, 3)), "unknown feature 'smell'"),
])
def test_bad_input(call, message):
    with pytest.raises(CourseError, match=message) as caught: call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


# Batches, pieces, threads

def test_a_image_has_the_same_features_alone_and_in_a_batch():
    images = tensor(noise(300, 32, 32, 3))
    together = features.extract(images)
    for i in (0, 127, 128, 299):
        torch.testing.assert_close(features.extract(images[i:i + 1])[0], together[i], rtol=0, atol=1e-6)
    assert torch.equal(features.extract(images), together)


def test_threads_change_nothing_and_are_given_back():
    images, before = tensor(noise(1100, 32, 32, 3)), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(features.extract(images))
            assert torch.get_num_threads() == threads
            with pytest.raises(CourseError): features.hog(images, 9, 64)
            assert torch.get_num_threads() == threads
    finally: torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_input_is_not_changed_and_may_be_strided_or_half():
    images = noise(3, 32, 32, 3)
    images = torch.from_numpy(images).permute(0, 3, 1, 2)  # not contiguous
    kept = images.clone()
    found = features.extract(images)
    assert torch.equal(images, kept) and torch.equal(found, features.extract(images.contiguous()))
    assert features.extract((images / 255).half()).shape == found.shape
    as_float = features.extract(images / 255, ("lbp", "color"))
    assert torch.equal(as_float, features.extract(images, ("lbp", "color")))


# scikit-learn

def test_features_in_a_pipeline(tmp_path):
    images, labels = noise(40, 32, 32, 3), np.arange(40) % 2
    images[labels == 1, 8:24, 8:24] = 255
    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    options = {"hog": {"orientations": 12}, "lbp": {"method": "nri_uniform"}}
    step = features.Features(options=options, chunk=7).fit(mapped)
    found = step.transform(mapped)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, features.extract(tensor(images), **options).numpy())
    groups = step.get_feature_groups()
    assert groups == {"hog": slice(0, 432), "lbp": slice(432, 432 + 16 * 59), "color": slice(1376, 1376 + 96)}
    np.testing.assert_array_equal(found[:, groups["color"]], features.color_histogram(tensor(images)).numpy())
    pipeline = make_pipeline(clone(step), LinearSVC()).fit(mapped, labels)
    assert (pipeline.predict(images) == labels).all()


def test_features_survive_pickling():
    images = noise(3, 32, 32, 3)
    step = features.Features(("lbp", "hog"), {"hog": {"pixels_per_cell": (4, 8)}}).fit(images)
    again = pickle.loads(pickle.dumps(step))
    np.testing.assert_array_equal(again.transform(images), step.transform(images))
    assert again.get_feature_groups() == step.get_feature_groups()


def test_a_new_extractor_plugs_in_by_name():
    @features.extractors.register("mean")
    def mean(images, scale=1.0): return images.float().mean((2, 3)) * scale
    try:
        images = torch.rand(4, 3, 16, 16)
        found = features.extract(images, ("color", "mean"), mean=dict(scale=2))[:, 96:]
        torch.testing.assert_close(found, 2 * images.mean((2, 3)))
        step = features.Features("mean").fit(noise(2, 8, 8, 3))
        assert step.get_feature_groups() == {"mean": slice(0, 3)}
    finally: del features.extractors["mean"]


# Speed: both sides in turn, so that a busy machine hits both; the medians count, and the best of a few tries.

def slow_hog(images): return [skimage_hog(p, 9, (8, 8), (2, 2), channel_axis=2) for p in images]
def slow_lbp(images): return [by_hand(skimage_lbp(p[..., 1], 8, 1, "uniform")[..., None], 4, 10, 10) for p in images]
def slow_color(images): return [by_hand(p, 2, 8, 256) for p in images]
def slow_all(images): return slow_hog(images), slow_lbp(images), slow_color(images)


def ratio(ours, theirs, side, count, sample):
    images = noise(count, side, side, 3)
    batch, times = tensor(images), []
    for _ in range(6):
        started = time.perf_counter()
        ours(batch)
        middle = time.perf_counter()
        theirs(images[:sample])
        times.append(((middle - started) / count, (time.perf_counter() - middle) / sample))
    ours_median, theirs_median = np.median(times[1:], 0)
    return theirs_median / ours_median


@pytest.mark.parametrize("side, count, sample, least", [(32, 256, 32, 10), (128, 64, 4, 5)])
@pytest.mark.parametrize("name", ["hog", "lbp", "all"])
def test_faster_than_scikit_image(name, side, count, sample, least):
    sides = dict(hog=(features.hog, slow_hog), lbp=(features.lbp_histogram, slow_lbp), all=(features.extract, slow_all))
    ours, theirs = sides[name]
    ratios = []
    while len(ratios) < 8 and max(ratios, default=0) < least: ratios.append(ratio(ours, theirs, side, count, sample))
    assert max(ratios) >= least, f"{name} at {side}x{side}: {np.round(ratios, 1)} times as fast as scikit-image, not {least}"
