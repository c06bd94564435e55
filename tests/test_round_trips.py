"What the library writes, other libraries read, and find the same boxes and names."
import numpy as np
import pytest
import supervision
from making import encoded, scene
from PIL import Image
from pycocotools.coco import COCO

from course_lib import files, layouts, specs

SPLITS = [("train", "train"), ("valid", "val")]  # our name, and that of the folder or file


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "Twelve images with up to three boxes each: the items, and the folder of each layout."
    rng, images, items = np.random.default_rng(0), [scene(i, 60, 80) for i in range(12)], []
    for i, image in enumerate(images):
        corners = rng.uniform(1, 25, (i % 4, 2)).round(3).tolist()
        things = tuple(specs.Object(("car", "bus")[k % 2], (x, y, x + 40.5, y + 30.25)) for k, (x, y) in enumerate(corners))
        items.append(layouts.Item(f"photo {i}.png", "train" if i < 8 else "valid", "", things, files.describe(image)))
    contents = {item.name: encoded(image) for item, image in zip(items, images)}
    root = tmp_path_factory.mktemp("written")
    return items, {layout: layouts.write_dataset(items, lambda item: contents[item.name], layout, root / layout)
                   for layout in ("voc", "coco", "yolo")}


def wanted(items, split):
    "digest of the image -> its names and boxes, sorted"
    return {item.record.digest: sorted((thing.name, *thing.box) for thing in item.objects)
            for item in items if item.split == split}


def read_by_supervision(dataset, offset=0.):
    "The same of a data set of supervision; its images are BGR."
    found = {}
    for _, image, things in dataset:
        names = [] if things.class_id is None else [dataset.classes[k] for k in things.class_id]
        boxes = (things.xyxy.astype(float) + offset).tolist()
        found[files.describe(np.ascontiguousarray(image[..., ::-1])).digest] = sorted(
            (name, *box) for name, box in zip(names, boxes))
    return found


def read_by_pycocotools(path, images):
    "The same of a COCO json."
    content, found = COCO(str(path)), {}
    for number, image in content.imgs.items():
        things = content.loadAnns(content.getAnnIds([number]))
        boxes = [(x, y, x + w, y + h) for x, y, w, h in (thing["bbox"] for thing in things)]
        names = [content.cats[thing["category_id"]]["name"] for thing in things]
        pixels = np.asarray(Image.open(images / image["file_name"]).convert("RGB"))
        found[files.describe(pixels).digest] = sorted((name, *box) for name, box in zip(names, boxes))
    return found


def assert_same(found, expected):
    assert found.keys() == expected.keys() and any(expected.values())
    for digest, things in expected.items():
        assert [name for name, *_ in found[digest]] == [name for name, *_ in things]
        np.testing.assert_allclose([box for _, *box in found[digest]], [box for _, *box in things], atol=0.01)


@pytest.mark.parametrize("split, name", SPLITS)
def test_supervision_reads_yolo(written, split, name):
    items, root = written[0], written[1]["yolo"]
    images, labels = root / "images" / name, root / "labels" / name
    dataset = supervision.DetectionDataset.from_yolo(str(images), str(labels), str(root / "data.yaml"))
    assert_same(read_by_supervision(dataset), wanted(items, split))


@pytest.mark.parametrize("split, name", SPLITS)
def test_supervision_and_pycocotools_read_coco(written, split, name):
    items, root = written[0], written[1]["coco"]
    images, path = root / "images", root / "annotations" / f"instances_{name}.json"
    assert_same(read_by_supervision(supervision.DetectionDataset.from_coco(str(images), str(path))), wanted(items, split))
    assert_same(read_by_pycocotools(path, images), wanted(items, split))


def test_supervision_reads_voc_but_counts_from_one(written):
    items, root = written[0], written[1]["voc"]
    dataset = supervision.DetectionDataset.from_pascal_voc(str(root / "JPEGImages"), str(root / "Annotations"))
    found = read_by_supervision(dataset, (1, 1, 0, 0))  # it subtracts 1 from xmin and ymin; chapter 01d says why we do not
    for split, _ in SPLITS:
        expected = wanted(items, split)
        assert_same({digest: found[digest] for digest in expected}, expected)
