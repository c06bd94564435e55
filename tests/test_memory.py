"Arrays, datasets and tables as splits: equal to a folder of the same images, ready for all that follows, and strict."
import io
import multiprocessing
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from making import FRUIT, class_folders, encoded, fruit, fruit_scenes, put, scene
from PIL import Image

from course_lib.core import CourseError, models
from course_lib.data import DETECTION, MULTI, NAMES, SINGLE, decode, load, pixels
from course_lib.evaluation import evaluate
from course_lib.files import describe
from course_lib.memory import from_arrays, from_dataframe, from_dataset


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "Caches of their own for each test."
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))


IMAGES = np.stack([scene(i) for i in range(24)])  # uint8 [24, 48, 64, 3]
LABELS = ["cat", "dog"] * 12
NUMBERS = np.array([0, 1] * 12)
BOX = dict(boxes=[[1, 1, 20, 20], [5, 5, 30, 30]], labels=["cat", "dog"])


def refusal(make, *args, **options):
    "The single line with which a function refuses."
    with pytest.raises(CourseError) as caught: make(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sides(splits): return {name.rsplit("/", 1)[-1].removesuffix(".png"): part for part in NAMES for name in splits[part].names}


def folder_of(root, images=IMAGES, labels=LABELS):
    for i, (image, label) in enumerate(zip(images, labels)): put(root / label / f"{i}.png", encoded(image))
    return root


# the same as a folder

@pytest.mark.parametrize("seed", range(4))
def test_the_split_is_that_of_a_folder_of_the_same_images(seed, tmp_path):
    folder = load(folder_of(tmp_path / "data"), seed=seed, valid=0.2, test=0.3)
    splits = from_arrays(IMAGES, LABELS, seed=seed, valid=0.2, test=0.3)
    assert sides(splits) == sides(folder) and (splits.classes, splits.made, splits.task) == (["cat", "dog"], NAMES, SINGLE)
    for part in NAMES:
        for i, name in enumerate(splits[part].names):
            image, target = splits[part][i]
            assert (image == IMAGES[int(name)]).all() and image.dtype == np.uint8 and target == NUMBERS[int(name)]


def test_the_boxes_are_those_of_a_table_of_the_same_images(tmp_path):
    scenes, rows = fruit_scenes(24), ["filename,class,xmin,ymin,xmax,ymax"]
    for i, (image, objects) in enumerate(scenes):
        put(tmp_path / "data" / f"{i}.png", encoded(image))
        rows += [",".join(map(str, (f"{i}.png", kind, *box))) for kind, box in objects]
    put(tmp_path / "data" / "boxes.csv", "\n".join(rows).encode())
    folder = load(tmp_path / "data")
    targets = [dict(boxes=torch.tensor([box for _, box in objects]), labels=[kind for kind, _ in objects]) for _, objects in scenes]
    splits = from_arrays([image for image, _ in scenes], targets)
    assert splits.task == DETECTION and splits.classes == list(FRUIT) and sides(splits) == sides(folder)
    expected = {name: target for part in NAMES for name, target in zip(folder[part].names, folder[part].targets)}
    for part in NAMES:
        for name, target in zip(splits[part].names, splits[part].targets):
            assert target.keys() == expected[f"{name}.png"].keys()
            for key, value in target.items():
                np.testing.assert_array_equal(value, expected[f"{name}.png"][key])
                assert value.dtype == expected[f"{name}.png"][key].dtype
    numbered = [dict(target, labels=[FRUIT.index(kind) + 1 for kind in target["labels"]]) for target in targets]
    assert from_arrays([image for image, _ in scenes], numbered, FRUIT).fingerprint == splits.fingerprint


def test_groups_stay_together_as_in_a_folder(tmp_path):
    group = [f"{i // 3}" for i in range(24)]
    for i, image in enumerate(IMAGES): put(tmp_path / "data" / LABELS[i] / f"{group[i]}_{i}.png", encoded(image))
    folder = load(f"{tmp_path / 'data'}?group=([0-9]+)_", rare="keep")
    splits = from_arrays(IMAGES, LABELS, group=np.array(group), rare="keep")
    assert {int(name.split("_")[1]): side for name, side in sides(folder).items()} == {int(n): s for n, s in sides(splits).items()}
    for own in range(8): assert len({sides(splits)[str(i)] for i in range(24) if i // 3 == own}) == 1


def test_pillow_images_of_every_kind_are_as_from_their_files():
    rgb = IMAGES[0]
    alpha = np.dstack([rgb, np.where(rgb[..., 0] > 128, 255, 0).astype(np.uint8)])
    exif = Image.Exif()
    exif[0x0112] = 6
    files = [encoded(rgb, exif=exif), encoded(alpha), encoded(rgb[..., 0]), encoded(Image.fromarray(rgb).quantize(16), transparency=3),
             encoded(Image.fromarray(rgb).convert("CMYK"), "jpeg"), encoded(Image.fromarray(rgb), "jpeg", exif=exif), encoded(Image.fromarray(rgb).convert("1"))]
    images = [Image.open(io.BytesIO(file)) for file in files]
    for part in (from_arrays(images, LABELS[:7], split=["train"] * 5 + ["test"] * 2, rare="keep"),
                 from_arrays(files, LABELS[:7], split=["train"] * 5 + ["test"] * 2, rare="keep")):
        for split in NAMES:
            for name, i in zip(part[split].names, range(99)):
                np.testing.assert_array_equal(part[split].read(i), decode(files[int(name)]))


def test_colour_profiles_count_as_in_files():
    from PIL import ImageCms
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.open(io.BytesIO(encoded(IMAGES[0], icc_profile=lab)))
    splits = from_arrays([image, *IMAGES[1:]], LABELS)
    where = next(part for part in NAMES if "0" in splits[part].names)
    assert (splits[where].read(splits[where].names.index("0")) == decode(encoded(IMAGES[0], icc_profile=lab))).all()


@pytest.mark.parametrize("form", [
    lambda x: x / 255, lambda x: (x / 255).astype(np.float32), list, lambda x: [Image.fromarray(one) for one in x],
    lambda x: torch.from_numpy(x).permute(0, 3, 1, 2), lambda x: torch.from_numpy(x).permute(0, 3, 1, 2) / 255,
    lambda x: (one for one in x), lambda x: [encoded(one) for one in x], lambda x: [dict(bytes=encoded(one), path=None) for one in x]])
def test_every_form_of_images_is_the_same_content(form):
    assert from_arrays(form(IMAGES), LABELS).fingerprint == from_arrays(IMAGES, LABELS).fingerprint


@pytest.mark.parametrize("form", [lambda x: x[..., 0], lambda x: x[..., :1], lambda x: x[..., 0] / 255, lambda x: torch.from_numpy(x[..., 0]),
                                  lambda x: torch.from_numpy(x[:, None, :, :, 0]).half() / 255])
def test_grey_becomes_rgb(form):
    splits = from_arrays(form(IMAGES), LABELS)
    expected = np.repeat(IMAGES[int(splits.test.names[0])][..., :1], 3, 2)
    assert (splits.test.read(0) == expected).all()


@pytest.mark.parametrize("targets, classes", [(NUMBERS, ["cat", "dog"]), (NUMBERS.astype(float), ("cat", "dog")), (torch.tensor(NUMBERS), ["cat", "dog"]),
                                              (np.array(LABELS), None), (LABELS, ["cat", "dog"]), (NUMBERS == 1, ["cat", "dog"]),
                                              ([torch.tensor(n) for n in NUMBERS], np.array(["cat", "dog"]))])
def test_every_form_of_labels_is_the_same_content(targets, classes):
    splits = from_arrays(IMAGES, targets, classes)
    assert splits.fingerprint == from_arrays(IMAGES, LABELS).fingerprint and splits.classes == ["cat", "dog"]
    assert set(map(type, splits.train.targets)) == {int}


def test_classes_keep_the_order_of_their_numbers():
    splits = from_arrays(IMAGES, NUMBERS, ["zebra", "ant"])
    assert splits.classes == ["zebra", "ant"] and splits.train.targets == [int(name) % 2 for name in splits.train.names]
    numbers = from_arrays(IMAGES, NUMBERS * 7 + 3)
    assert numbers.classes == ["3", "10"] and set(numbers.train.targets) == {0, 1}


# several labels

MATRIX = np.array([[1, 0, i % 3 == 0] for i in range(24)], np.int64) | np.array([[0, i % 2, 0] for i in range(24)])


@pytest.mark.parametrize("form", [lambda x: x, lambda x: x.astype(bool), lambda x: torch.tensor(x).float(), lambda x: x.tolist(),
                                  lambda x: list(x), lambda x: [[n for n, y in zip(("ant", "bee", "cat"), row) if y] for row in x],
                                  lambda x: [{n for n, y in zip(("ant", "bee", "cat"), row) if y} for row in x]])
def test_several_labels(form):
    splits = from_arrays(IMAGES, form(MATRIX), ["ant", "bee", "cat"])
    assert splits.task == MULTI and splits.fingerprint == from_arrays(IMAGES, MATRIX, ["ant", "bee", "cat"]).fingerprint
    for name, target in zip(splits.train.names, splits.train.targets):
        assert target.dtype == np.float32 and target.tolist() == MATRIX[int(name)].tolist()
    assert not splits.left_out


def test_one_hot_rows_are_several_labels_with_a_hint():
    splits = from_arrays(IMAGES, np.eye(2)[NUMBERS])
    assert splits.task == MULTI and splits.classes == ["0", "1"] and "argmax" in str(splits.left_out[0])


# keys and leaks

def test_the_key_follows_the_content():
    splits = from_arrays(IMAGES, LABELS)
    assert from_arrays(IMAGES.copy(), LABELS).train.key == splits.train.key
    assert len({splits[part].key for part in NAMES}) == 3
    changed = IMAGES.copy()
    changed[int(splits.train.names[0]), 0, 0] ^= 1
    assert from_arrays(changed, LABELS).fingerprint != splits.fingerprint
    assert from_arrays(IMAGES, ["dog", *LABELS[1:]]).fingerprint != splits.fingerprint
    boxes = from_arrays(IMAGES, [BOX] * 24)
    assert from_arrays(IMAGES, [dict(BOX, difficult=[0, 1])] * 24).fingerprint != boxes.fingerprint
    order = [from_arrays(IMAGES, MATRIX[:, columns], [("ant", "bee", "cat")[k] for k in columns]).fingerprint for columns in ([0, 1, 2], [2, 0, 1])]
    assert order[0] == order[1]
    assert pixels(splits.train, 16).shape == (len(splits.train), 16, 16, 3)


@pytest.mark.parametrize("seed", range(3))
def test_equal_images_lie_on_one_side(seed):
    order = np.random.default_rng(seed).permutation(72)
    images, labels = np.concatenate([IMAGES] * 3)[order], np.array(LABELS * 3)[order]
    splits = from_arrays(images, labels, seed=seed)
    content = {part: {describe(splits[part].read(i)).digest for i in range(len(splits[part]))} for part in NAMES}
    assert not content["train"] & content["test"] and not content["train"] & content["valid"] and not content["valid"] & content["test"]
    assert sum(map(len, content.values())) == 24 and sum(len(splits[part]) for part in NAMES) == 72
    rows = [(image, label) for image, label in zip(images, labels)]
    assert from_dataset(rows, seed=seed).fingerprint == splits.fingerprint


def test_a_given_split_that_leaks_is_named():
    splits = from_arrays(np.concatenate([IMAGES, IMAGES[:2]]), LABELS + LABELS[:2],
                         split=["train"] * 12 + ["val"] * 6 + ["Testing"] * 8)
    assert splits.made == () and [len(splits[part]) for part in NAMES] == [12, 6, 8]
    assert [str(f) for f in splits.left_out] == ["0: is equal to 24, in train and test", "1: is equal to 25, in train and test"]


def test_what_is_not_given_is_made_of_the_training_images():
    splits = from_arrays(IMAGES, LABELS, split=["train"] * 18 + ["test"] * 6)
    assert splits.made == ("valid",) and splits.test.names == [str(i) for i in range(18, 24)] and len(splits.valid)


def test_images_that_change_are_noticed():
    images = IMAGES.copy()
    splits = from_arrays(images, LABELS)
    images[int(splits.train.names[3])] //= 2
    splits.train.read(2)
    assert f"image {splits.train.names[3]} is another image" in refusal(splits.train.read, 3)


# what follows

def test_models_train_on_it_and_evaluate_measures():
    import course_lib.cnn
    import course_lib.shallow  # noqa: F401
    made = [(fruit(i, [FRUIT[i % 2]], side=32)[0], FRUIT[i % 2]) for i in range(60)]
    splits = from_arrays([image for image, _ in made], [label for _, label in made])
    for predictor in (models["svm"](splits), models["cnn"](splits, epochs=1)):
        found = evaluate(predictor, splits.test)
        assert found["images"] == len(splits.test) and 0 <= found["accuracy"] <= 1


def first_pixel(dataset): return int(dataset.read(0)[0, 0, 0])


@pytest.mark.parametrize("make", [lambda root: from_arrays(IMAGES, LABELS), lambda root: from_dataset(list(zip(IMAGES, LABELS))),
                                  lambda root: from_dataframe(dict(file=[f"{b}/{i}.png" for i, b in enumerate(LABELS)], label=LABELS), folder=folder_of(root))])
def test_workers_can_read_it(make, tmp_path):
    splits = make(tmp_path / "data")
    copy = pickle.loads(pickle.dumps(splits))
    assert copy.fingerprint == splits.fingerprint and (copy.test.read(0) == splits.test.read(0)).all()
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(first_pixel, (splits.train,)) == first_pixel(splits.train)


# datasets

class Feature:
    def __init__(self, names): self.names = names


class Hugging:
    "What `datasets.Dataset` is to its reader."
    def __init__(self, rows, names=("cat", "dog"), label="label"):
        self.rows, self.features, self.reads = rows, {"image": object(), label: Feature(list(names))}, 0

    def __len__(self): return len(self.rows)

    def __getitem__(self, i):
        assert isinstance(i, int)
        self.reads += 1
        return self.rows[i]


def hugging(numbers=range(24), **options):
    return Hugging([dict(image=Image.fromarray(IMAGES[i]), label=int(NUMBERS[i])) for i in numbers], **options)


class Vision:
    "A data set as torchvision has them."
    classes = ["cat", "dog"]

    def __init__(self, change=None): self.change = change or (lambda image: image)

    def __len__(self): return 24

    def __getitem__(self, i): return self.change(Image.fromarray(IMAGES[i])), int(NUMBERS[i])


def test_datasets_of_every_kind_are_the_same_content():
    expected = from_arrays(IMAGES, LABELS)
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(IMAGES).permute(0, 3, 1, 2) / 255, torch.tensor(NUMBERS))
    to_float = lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255  # torchvision's ToTensor
    subset = torch.utils.data.Subset(Vision(), range(24))
    for splits in (from_dataset(tensors, classes=["cat", "dog"]), from_dataset(Vision()), from_dataset(Vision(to_float)),
                   from_dataset(subset), from_dataset(hugging())):
        assert splits.fingerprint == expected.fingerprint and splits.classes == ["cat", "dog"] and sides(splits) == sides(expected)
    assert from_dataset(tensors).classes == ["0", "1"]


def test_torchvision_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # FakeData seeds the one generator of all threads
    from torchvision.datasets import FakeData, ImageFolder
    folder = class_folders(tmp_path / "data", n=12)
    splits = from_dataset(ImageFolder(str(folder)))
    assert splits.fingerprint == from_dataframe(dict(file=[f"{c}/{i}.png" for c in ("cat", "dog") for i in sorted(range(12), key=str)],
                                                     label=["cat"] * 12 + ["dog"] * 12), folder=folder).fingerprint
    assert len(from_dataset(FakeData(30, (3, 8, 8), 2)).classes) == 2


def test_images_are_read_when_asked_for():
    dataset = hugging()
    splits = from_dataset(dataset)
    before = dataset.reads
    splits.train.read(0)
    assert dataset.reads == before + 1 <= 24 + 8 + 1 and splits.train.names[0] in map(str, range(24))
    assert not any(isinstance(value, np.ndarray) for value in vars(splits.train.read).values())


def test_several_datasets_are_splits():
    splits = from_dataset(dict(train=hugging(range(12)), validation=hugging(range(12, 18)), test=hugging(range(18, 24))))
    assert splits.made == () and splits.valid.names[:2] == ["validation/0", "validation/1"] and splits.classes == ["cat", "dog"]
    assert (splits.test.read(1) == IMAGES[19]).all() and splits.test.targets == NUMBERS[18:].tolist()
    partly = from_dataset(dict(train=hugging(range(18)), test=hugging(range(18, 24))))
    assert partly.made == ("valid",) and len(partly.test) == 6
    assert "name different classes" in refusal(from_dataset, dict(train=hugging(range(12)), test=hugging(range(12, 24), names=("dog", "cat"))))
    assert "unknown split 'dev'" in refusal(from_dataset, dict(train=hugging(), dev=hugging()))
    assert "no dataset" in refusal(from_dataset, {})


def test_rows_under_other_names():
    rows = [dict(img=image, fine_label=int(n)) for image, n in zip(IMAGES, NUMBERS)]
    splits = from_dataset(Hugging(rows, label="fine_label"), image="img", label="fine_label")
    assert splits.classes == ["cat", "dog"]
    assert "image 0: its row has no 'image', but img, fine_label" in refusal(from_dataset, rows)


def test_datasets_that_cannot_be_used():
    class Failing(Vision):
        def __getitem__(self, i): return super().__getitem__(i) if i < 5 else {}["nowhere"]

    rng = np.random.default_rng(0)
    noisy = Vision(lambda image: np.asarray(image) ^ rng.integers(0, 2, (48, 64, 3), np.uint8))
    assert "image 5: cannot be read: KeyError: 'nowhere'" in refusal(from_dataset, Failing())
    assert "image 0 is another image" in refusal(from_dataset, noisy) and "transforms" in refusal(from_dataset, noisy)
    assert "turn a stream into a list" in refusal(from_dataset, iter([(IMAGES[0], 0)]))
    assert "`load` reads" in refusal(from_dataset, "photos")
    assert "image 0: its row is a tuple, not a pair" in refusal(from_dataset, [(IMAGES[0], 0, 1)])
    assert "image 23: label -1 is below zero" in refusal(from_dataset, [(i, n if k < 23 else -1) for k, (i, n) in enumerate(zip(IMAGES, NUMBERS))])
    half = Vision(lambda image: Image.open(io.BytesIO(encoded(IMAGES[0], "jpeg")[:800])))
    assert "image 0: cannot be read: " in refusal(from_dataset, half) and "truncated" in refusal(from_dataset, half)


# tables

def table(root=None, **columns):
    if root: folder_of(root)
    return {**dict(file=[f"{label}/{i}.png" for i, label in enumerate(LABELS)], label=LABELS, n=list(NUMBERS)), **columns}


def test_a_table_is_as_its_folder(tmp_path):
    splits = from_dataframe(table(tmp_path / "data"), folder=tmp_path / "data", seed=3)
    folder = load(tmp_path / "data", seed=3)
    assert {name: part for part in NAMES for name in splits[part].names} == {name: part for part in NAMES for name in folder[part].names}
    assert splits.fingerprint == from_arrays(IMAGES, LABELS, seed=3).fingerprint
    absolute = table(file=[tmp_path / "data" / name for name in table()["file"]])
    assert from_dataframe(absolute, label="n", classes=["cat", "dog"], seed=3).fingerprint == splits.fingerprint
    for held in (list(IMAGES), [Image.fromarray(image) for image in IMAGES], [encoded(image) for image in IMAGES]):
        assert from_dataframe(table(file=held), seed=3).fingerprint == splits.fingerprint
    assert load(tmp_path / "data", seed=3).fingerprint == folder.fingerprint  # the index of the folder is still its own


def test_columns_of_splits_groups_and_classes(tmp_path):
    folder_of(tmp_path)
    frame = table(part=["train"] * 12 + ["val"] * 6 + ["test"] * 6, patient=[float(i // 3) for i in range(23)] + [float("nan")],
                  ant=MATRIX[:, 0], bee=MATRIX[:, 1], cat=MATRIX[:, 2])
    given = from_dataframe(frame, split="part", folder=tmp_path)
    assert given.made == () and len(given.valid) == 6
    grouped = from_dataframe(frame, group="patient", folder=tmp_path, rare="keep")
    for own in range(7): assert len({sides(grouped)[str(i)] for i in range(23) if i // 3 == own}) == 1
    assert any(f.kind == "no group" for f in grouped.left_out)
    several = from_dataframe(frame, label=["ant", "bee", "cat"], folder=tmp_path)
    assert several.fingerprint == from_arrays(IMAGES, MATRIX, ["ant", "bee", "cat"]).fingerprint
    across = from_dataframe(frame, split="part", group="n", folder=tmp_path)
    assert any(f.kind == "group across splits" for f in across.left_out)


def test_files_with_16_bits_have_one_scale(tmp_path):
    deep = [image.astype(np.uint16) * 16 for image in IMAGES[..., 0]]
    for i, image in enumerate(deep): put(tmp_path / LABELS[i] / f"{i}.png", encoded(Image.fromarray(image)))
    splits, folder = from_dataframe(table(), folder=tmp_path), load(tmp_path)
    assert sides(splits) == sides(folder) and splits.scales == folder.scales == dict(whole=(0, 4095))
    assert (splits.test.read(0) == folder.test.read(folder.test.names.index(splits.test.names[0]))).all()
    put(tmp_path / splits.test.names[0], encoded(Image.fromarray(deep[0] // 2)))
    assert "is another image" in refusal(splits.test.read, 0)


def test_a_file_that_has_gone_or_changed_is_named(tmp_path):
    splits = from_dataframe(table(tmp_path), folder=tmp_path)
    put(tmp_path / splits.train.names[0], encoded(scene(99)))
    (tmp_path / splits.train.names[1]).unlink()
    assert splits.train.names[0] in refusal(splits.train.read, 0) and "load it again" in refusal(splits.train.read, 0)
    assert splits.train.names[1] in refusal(splits.train.read, 1) and "cannot be read" in refusal(splits.train.read, 1)


def test_tables_that_cannot_be_used(tmp_path):
    folder_of(tmp_path)
    put(tmp_path / "half.png", encoded(IMAGES[0])[:900])
    first = lambda file: table(file=[file, *table()["file"][1:]])
    for frame, words in [(first("cat/99.png"), "row 0 (cat/99.png): cannot be read"), (first("half.png"), "row 0 (half.png): "),
                         (first("dog/1.png"), "row 1 (dog/1.png): its file is in row 0, too"), (first(""), "row 0: '' is no path"),
                         (table(file=[*table()["file"][:-1], None]), "row 23: None is no path"),
                         (table(label=[*LABELS[:-1], None]), "row 23 (dog/23.png): label None is missing"),
                         (table(label=[*LABELS[:-1], float("nan")]), "row 23 (dog/23.png): label nan is missing"),
                         (table(label=["cat"] * 24), "one class only (cat)"), (dict(file=[], label=[]), "no rows")]:
        assert words in refusal(from_dataframe, frame, folder=tmp_path), words
    assert "no column 'path': there are file, label, n" in refusal(from_dataframe, table(), image="path")
    assert "row 1: unknown split 'dog'" in refusal(from_dataframe, table(label=["train", *LABELS[1:]]), split="label", folder=tmp_path)
    assert "make 1 groups" in refusal(from_dataframe, table(one=[1] * 24), group="one", folder=tmp_path)


def test_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table(tmp_path)).sample(frac=1, random_state=0)
    frame["kind"] = frame["label"].astype("category")
    splits = from_dataframe(frame, label="kind", folder=tmp_path)
    assert sides(splits) == sides(from_arrays(IMAGES, LABELS))
    assert from_arrays(IMAGES, pandas.Series(LABELS, index=range(50, 74))).fingerprint == from_arrays(IMAGES, LABELS).fingerprint
    frame.loc[frame.index[5], "label"] = pandas.NA
    assert "row 5" in refusal(from_dataframe, frame, folder=tmp_path) and "is missing" in refusal(from_dataframe, frame, folder=tmp_path)


# what is refused

@pytest.mark.parametrize("images, words", [
    (IMAGES.transpose(0, 3, 1, 2), "image 0: an array [3, 48, 64] has its channels first"), (IMAGES * 1.0, "0 to 255"),
    (IMAGES / 127.5 - 1, "normalised"), (IMAGES.astype(int), "an array of int64"), (IMAGES.astype(np.uint16), "an array of uint16"),
    (IMAGES[..., :2], "[48, 64, 2] is no image"), (IMAGES[:, :0], "has no pixels"), (IMAGES[:23], "23 images, but 24 targets"),
    (np.where(IMAGES > 250, np.nan, IMAGES / 255), "nan"), ([*IMAGES[:23], None], "image 23: a NoneType is no image"),
    ([*IMAGES[:23], "cat.png"], "image 23: a str is no image: `from_dataframe` reads files"), (torch.from_numpy(IMAGES), "permute(2, 0, 1)"),
    ([*IMAGES[:23], b"GIF89a"], "image 23: cannot be read: "), (Image.fromarray(IMAGES[0]), "a list with one for each image"), (7, "images is a int"),
    ([Image.fromarray(image.astype(np.uint16)) for image in IMAGES[..., 0]], "more than 8 bits"), (IMAGES > 99, "an array of bool")])
def test_images_that_are_refused(images, words): assert words in refusal(from_arrays, images, LABELS)


def last(value): return [*NUMBERS[:-1], value]


@pytest.mark.parametrize("targets, classes, words", [
    (last(2), ["cat", "dog"], "image 23: label 2 is unknown; there are 0 (cat), 1 (dog)"), (last(-1), None, "image 23: label -1 is below zero"),
    (last(1.5), None, "image 23: label 1.5 is no whole number"), (last(float("nan")), None, "image 23: label nan is missing"),
    (last(float("inf")), None, "image 23: label inf is no whole number"), (last(None), None, "image 23: label None is missing"),
    (last("dog"), None, "image 23: label 'dog' is a name"), (last([1]), None, "the target of image 23 is a list, that of image 0 one label"),
    (np.array([*LABELS[:-1], np.nan]), None, "image 23: label 'nan' is missing"), ([*LABELS[:-1], ""], None, "image 23: label '' is missing"),
    ([*LABELS[:-1], "gnu"], ["cat", "dog"], "image 23: label 'gnu' is unknown"), ([*LABELS[:-1], b"dog"], None, "neither a name nor a number"),
    (NUMBERS[:, None], None, "targets[:, 0]"), (MATRIX, ["cat", "dog"], "3 numbers, and there are 2 classes"),
    (MATRIX * 3, None, "neither 0 nor 1"), ([[1, 0]] * 23 + [[1]], None, "the target of image 23 has 1 numbers"),
    ([["cat", 1]] * 24, None, "label 1 is a number"), ([[]] * 24, None, "no image has a label"), (LABELS, "cat,dog", "give a list of names"),
    (LABELS, ["cat", "cat"], "'cat' comes twice"), (LABELS, [], "that is none"), (LABELS, ["cat", 1], "1 is no name"), (LABELS, 2, "that is none"),
    (LABELS, ["cat", "dog", "emu"], "class 'emu' has no image for the train split"), (["cat"] * 24, None, "one class only"),
    ("cat", None, "targets is a str"), (dict(BOX), None, "targets is a dict"), (["cat"] * 22 + ["dog"] * 2, None, "class 'dog' has no image for the")])
def test_labels_that_are_refused(targets, classes, words): assert words in refusal(from_arrays, IMAGES, targets, classes)


@pytest.mark.parametrize("change, words", [
    (dict(boxes=[[1, 1, 20, 20], [500, 5, 600, 30]]), "image 23: object 1 (dog), box (500, 5, 600, 30): outside the 64 x 48 image"),
    (dict(boxes=[[1, 1, 20, 20], [30, 5, 5, 30]]), "has min and max swapped"), (dict(boxes=[[1, 1, 20, 20], [5, 5, 5, 30]]), "has no area"),
    (dict(boxes=[[1, 1, 20, 20], [5, 5, np.nan, 30]]), "is not four numbers"), (dict(boxes=[[1, 1, 20]] * 2), "are [2, 3], where [n, 4]"),
    (dict(boxes=[[1, 1, 20, 20]]), "image 23 has 1 boxes, but its 'labels' are ['cat', 'dog']"), (dict(boxes="none"), "are not all numbers"),
    (dict(labels=["cat", ""]), "image 23: label '' is missing"), (dict(labels=["cat", 2]), "image 23: label 2 is a number"),
    (dict(labels=["cat", "gnu"]), "image 23: label 'gnu' is unknown"), (dict(labels="cat"), "its 'labels' are 'cat'"),
    (dict(difficult=[1]), "its 'difficult' are [1]")])
def test_boxes_that_are_refused(change, words):
    assert words in refusal(from_arrays, IMAGES, [BOX] * 23 + [{**BOX, **change}], ["cat", "dog"])


def test_more_boxes_that_are_refused():
    numbered = dict(BOX, labels=[0, 1])
    assert "image 0: a box has the label 0, which is the background" in refusal(from_arrays, IMAGES, [numbered] * 24)
    assert "label 3 is unknown; there are 1 (cat), 2 (dog)" in refusal(from_arrays, IMAGES, [dict(BOX, labels=[1, 3])] * 24, ["cat", "dog"])
    assert "leave it out" in refusal(from_arrays, IMAGES, [dict(BOX, labels=[1, 2])] * 24, ["__background__", "cat", "dog"])
    shares = dict(BOX, boxes=np.array(BOX["boxes"]) / 64)
    assert "shares of the image" in refusal(from_arrays, IMAGES, [shares] * 24)
    assert "the target of image 0 has no 'boxes', but bbox" in refusal(from_arrays, IMAGES, [dict(bbox=[])] * 24)


def test_boxes_that_go_beyond_the_image_are_clipped_and_named():
    splits = from_arrays(IMAGES, [dict(BOX, boxes=[[1, 1, 20, 20], [5, 5, 65, 30]])] * 23 + [dict(boxes=np.zeros((0, 4)), labels=[])])
    assert len(splits.left_out) == 23 and "clipped" in str(splits.left_out[0])
    assert max(target["boxes"].max(initial=0) for target in splits.train.targets) == 64
    assert sorted({len(target["labels"]) for part in NAMES for target in splits[part].targets}) == [0, 2]


@pytest.mark.parametrize("options, words", [
    (dict(split="train"), "for each of the 24 images"), (dict(split=["train"] * 23), "for each of the 24 images"),
    (dict(split=["train"] * 23 + ["dev"]), "image 23: unknown split 'dev': choose from train, valid, test"),
    (dict(split=["test"] * 24), "no image for the train split"), (dict(valid=0), "shares between 0 and 1"), (dict(valid=0.5, test=0.5), "shares"),
    (dict(rare="yes"), "choose from keep"), (dict(group=["a"] * 24), "make 1 groups"), (dict(group=["a"]), "one for each of the 24 images")])
def test_options_that_are_refused(options, words): assert words in refusal(from_arrays, IMAGES, LABELS, **options)


def test_nothing_is_refused():
    for none in ([], np.zeros((0, 8, 8, 3), np.uint8)): assert "no image" in refusal(from_arrays, none, [])
    assert "no image" in refusal(from_dataset, [])


def test_rare_classes_may_be_kept():
    held = from_arrays(IMAGES, LABELS, split=["test"] * 24, rare="keep")
    assert [len(held[part]) for part in NAMES] == [0, 0, 24] and held.made == ("train", "valid")
    rare = from_arrays(IMAGES, ["cat"] * 23 + ["dog"], rare="keep")
    assert {(f.kind, f.where) for f in rare.left_out} == {("class misses a split", "dog")}


def test_similar_names_are_said():
    names = from_arrays(np.stack([scene(i) for i in range(40)]), ["Cat", "cat", "dog", "emu"] * 10, rare="keep")
    assert any("one class under several names" in str(f) for f in names.left_out)


def test_parts_of_it_are_splits_too():
    from course_lib.combine import only_these
    three = from_arrays(np.stack([scene(i) for i in range(36)]), ["ant", "bee", "cat"] * 12)
    some = only_these(replace(three), "ant,cat")
    assert some.classes == ["ant", "cat"] and set(some.train.targets) == {0, 1}
