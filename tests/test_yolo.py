"YOLO: exports of Ultralytics, Roboflow and others are read as they lie; labels that cannot be right stop or are named."
import numpy as np
import pytest

from course_lib.core import CourseError
from course_lib.data import DETECTION, NAMES, load
from course_lib.doctor import check, fix
from course_lib.layouts import survey, write_dataset
from making import class_folders, encoded, put, scene, zipped

BOX = {"cat": (8, 6, 40, 30), "dog": (10, 20, 60, 44)}  # pixels of 64 x 48
YAML = "train: images/train\nval: images/val\ntest: images/test\nnc: 2\nnames: [cat, dog]\n"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))


def line(name, number=None):
    "A label of the box of that class."
    x1, y1, x2, y2 = BOX[name]
    values = (x1 + x2) / 128, (y1 + y2) / 96, (x2 - x1) / 64, (y2 - y1) / 48
    return f"{list(BOX).index(name) if number is None else number} {' '.join(map(repr, values))}\n"


BOTH = line("cat") + line("dog")


def yolo(root, images="images/{}/{}.png", labels="labels/{}/{}.txt", content=YAML, texts=None, name="data.yaml", parts=("train", "val", "test")):
    "Four images in each split; texts: {number of an image: its label file, None for no file}."
    texts = texts or {}
    for k, split in enumerate(parts):
        for i in range(4 * k, 4 * k + 4):
            put(root / images.format(split, i), encoded(scene(i)))
            text = texts.get(i, BOTH)
            if text is not None: put(root / labels.format(split, i), text.encode())
    if content is not None: put(root / name, content.encode())
    return root


def read(folder):
    "number of an image -> its split and its boxes by class"
    return {int(i.name.split("/")[-1][:-4]): (i.split, {o.name: tuple(np.round(o.box, 4)) for o in i.objects}) for i in survey(folder).items}


def expected(parts=("train", "valid", "test")): return {i: (parts[i // 4], BOX) for i in range(4 * len(parts))}


def level(folder, *levels): return [(f.kind, f.where) for f in check(folder).findings if f.level in (levels or ("error", "warning"))]


FORMS = {
    "ultralytics": {},
    "roboflow": dict(images="{}/images/{}.png", labels="{}/labels/{}.txt", parts=("train", "valid", "test"),
                     content="train: ../train/images\nval: ../valid/images\ntest: ../test/images\n\nnc: 2\nnames: ['cat', 'dog']\n"),
    "numbered names": dict(content=YAML.replace("[cat, dog]", "\n  0: cat\n  1: dog")),
    "another machine": dict(content=YAML.replace("images/", "/content/datasets/pets/images/")),
    "windows": dict(content=YAML.replace("images/", "C:\\pets\\images\\")),
    "a path": dict(content="path: ../datasets/pets\n" + YAML),
    "lists of folders": dict(content=YAML.replace("images/val", "[images/val]")),
    "a yml": dict(name="pets.yml"),
    "a yaml further down": dict(name="cfg/data.yaml", content="path: ..\n" + YAML),
    "labels beside images": dict(labels="images/{}/{}.txt"),
    "capitals": dict(images="Images/{}/{}.png", labels="Labels/{}/{}.txt", content=YAML.replace("images", "Images")),
    "folders that the yaml does not name": dict(content="names: [cat, dog]"),
    "classes.txt": dict(content="cat\ndog\n", name="classes.txt"),
    "obj.names": dict(content="cat\r\ndog\r\n", name="obj.names", labels="images/{}/{}.txt"),
}


@pytest.mark.parametrize("form", FORMS)
def test_exports_are_read_as_they_lie(form, tmp_path):
    folder = yolo(tmp_path / "data", **FORMS[form])
    assert read(folder) == expected() and check(folder).findings == []
    for spec in (folder, zipped(folder, tmp_path / "data.zip"), zipped(folder, tmp_path / "wrapped.zip", prefix="pets/")):
        splits = load(spec)
        assert splits.task == DETECTION and splits.classes == ["cat", "dog"]
        assert [len(splits[part]) for part in NAMES] == [4, 4, 4]
        np.testing.assert_allclose(splits.train.targets[0]["boxes"], list(BOX.values()), atol=1e-4)


def test_the_yaml_may_be_named(tmp_path):
    folder = yolo(tmp_path / "data")
    put(folder / "other.yaml", YAML.replace("cat, dog", "cow, hen").encode())
    assert survey(folder / "data.yaml").classes == ["cat", "dog"] and survey(folder / "other.yaml").classes == ["cow", "hen"]
    with pytest.raises(CourseError, match="data.yaml' and 'other.yaml' name different classes"): load(folder)


@pytest.mark.parametrize("pack", [False, True])
def test_an_export_with_one_split_only(pack, tmp_path):
    "Its yaml lies beside the one folder that holds everything else."
    folder = yolo(tmp_path / "data", **{**FORMS["roboflow"], "parts": ("train",)})
    assert read(zipped(folder, tmp_path / "data.zip", prefix="pets/") if pack else folder) == expected(("train",))


def test_lists_of_images_are_splits(tmp_path):
    folder = yolo(tmp_path / "data", images="images/{1}.png", labels="labels/{1}.txt", content="train: train.txt\nval: ./val.txt\ntest: [a.txt, b.txt]\nnames: [cat, dog]\n")
    for name, numbers in dict(train=range(4), val=range(4, 8), a=(8, 9), b=(10, 77)).items():
        put(folder / f"{name}.txt", "".join(f"{('./images', '/data/pets/images')[i % 2]}/{i}.png\r\n" for i in numbers).encode())
    found = read(folder)
    assert found == {i: (split if i != 11 else "unlisted", boxes) for i, (split, boxes) in expected().items()}
    assert level(folder) == [("missing image", "b.txt"), ("no split", "images/11.png")]


def test_names_are_text_whatever_yaml_thinks_of_them(tmp_path):
    folder = yolo(tmp_path / "data", content=YAML.replace("cat, dog", "no, 1.0"))
    assert survey(folder).classes == ["1.0", "no"]
    out = write_dataset(survey(folder).items, lambda item: (folder / item.name).read_bytes(), "yolo", tmp_path / "out")
    assert survey(out).classes == ["1.0", "no"]


def test_a_polygon_is_its_box_and_keypoints_are_passed_over(tmp_path):
    x1, y1, x2, y2 = (value / side for value, side in zip(BOX["cat"], (64, 48, 64, 48)))
    polygon = f"0 {x1} {y1 + .1} {x2} {y1} {x1 + .2} {y2}\n" + line("dog")
    folder = yolo(tmp_path / "data", texts={0: polygon})
    assert read(folder) == expected() and level(folder, "note") == [("polygons", "labels/train/0.txt")]
    pose = "".join(f"{text} 0.9 0.9 2 0.1 0.1 1\n" for text in BOTH.splitlines())
    folder = yolo(tmp_path / "pose", texts=dict.fromkeys(range(12), pose), content=YAML + "kpt_shape: [2, 3]\n")
    assert read(folder) == expected() and check(folder).findings == []


def test_images_without_objects_are_counted_in_a_note(tmp_path):
    folder = yolo(tmp_path / "data", texts={0: "", 1: None})
    found = check(folder)
    assert [(f.level, f.kind) for f in found.findings] == [("note", "no objects")] and "1 label files are empty, 1 missing" in found.findings[0].what
    assert read(folder) == expected() | {0: ("train", {}), 1: ("train", {})}


def test_a_folder_without_any_label_file_is_not_background(tmp_path):
    folder = yolo(tmp_path / "data", texts=dict.fromkeys(range(8, 12)))
    assert level(folder) == [("no annotation", "images/test")] and len(read(folder)) == 8


BAD_LINES = {
    "a class without name": (line("cat", 2), "class 2 has no name, there are 0 to 1"),
    "a class below 0": (line("cat", -1), "class -1 has no name"),
    "pixels": ("0 24 18 32 24", "no shares of the image, 0 to 1: are these pixels"),
    "negative": ("0 .5 .5 -.2 .2", "below 0 or no number"),
    "nan": ("0 .5 .5 nan .2", "below 0 or no number"),
    "a confidence": (line("cat").strip() + " 0.9", "a prediction with its confidence"),
    "too few": ("0 .5 .5 .2", "4 numbers"),
    "no number": ("cat .5 .5 .2 .2", "is not a class number and a box"),
    "class behind the box": (".5 .5 .2 .2 0", "no whole number"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_cannot_be_right_is_an_error_and_costs_its_image(name, tmp_path):
    "Without the object the image would teach that there is none; after --fix what is there is right."
    bad, cause = BAD_LINES[name]
    folder = yolo(tmp_path / "data", texts={1: line("cat") + bad})
    [finding] = check(folder).errors
    assert finding.where == "labels/train/1.txt" and "line 2" in finding.what and cause in finding.what
    right = {i: value for i, value in expected().items() if i != 1}
    assert read(folder) == right
    fixed = fix(folder, tmp_path / "fixed")
    assert read(fixed) == right and check(fixed).findings == []


def test_a_repeated_line_counts_once(tmp_path):
    folder = yolo(tmp_path / "data", texts={5: BOTH + line("cat")})
    assert read(folder) == expected() and level(folder) == [("repeated line", "labels/val/5.txt")]


def form(change):
    "The labels of twelve images whose boxes differ, in another form."
    texts = {}
    for i in range(12):
        corners = np.array([2 + 2 * i, 3 + i, 30 + 2 * i, 27 + i]) / (64, 48, 64, 48)
        texts[i] = "".join(f"{k} {' '.join(map(str, change(*corners)))}\n" for k in range(2))
    return texts


OTHER_FORMS = {
    "corners": (form(lambda *corners: corners), "two corners"),
    "corner and size": (form(lambda x1, y1, x2, y2: (x1 / 3, y1 / 3, x2 - x1, y2 - y1)), "a corner and a size"),
    "counted from 1": (dict.fromkeys(range(12), line("cat", 1) + line("dog", 2)), "counted from 1"),
}


@pytest.mark.parametrize("name", OTHER_FORMS)
def test_labels_of_another_form_stop_with_the_likely_cause(name, tmp_path):
    texts, cause = OTHER_FORMS[name]
    folder = yolo(tmp_path / "data", texts=texts)
    for act in (check, load, lambda spec: fix(spec, tmp_path / "fixed")):
        with pytest.raises(CourseError, match=cause): act(folder)


def test_the_same_images_for_two_splits_are_an_error(tmp_path):
    folder = yolo(tmp_path / "data", parts=("train",), content="train: images/train\nval: images/train\nnames: [cat, dog]\n")
    assert level(folder, "error") == [("same image across splits", "data.yaml")]
    assert read(folder) == expected(("train",))
    assert not set(load(folder).train.names) & set(load(folder).valid.names)


def test_what_is_missing_is_said(tmp_path):
    with pytest.raises(CourseError, match="no names of the classes: put a data.yaml"): load(yolo(tmp_path / "a", content=None))
    with pytest.raises(CourseError, match="'data.yaml' cannot be read"): load(yolo(tmp_path / "b", content="names: [cat"))
    with pytest.raises(CourseError, match="images/test/10.png would have labels/test/10.txt"):
        load(yolo(tmp_path / "c", texts=dict.fromkeys(range(12))))
    for i, names in enumerate(("cat", "", "[]", "{a: cat}", "[[cat], dog]")):
        with pytest.raises(CourseError, match="names"): load(yolo(tmp_path / f"d{i}", content=f"train: images\nnames: {names}\n"))


def test_gaps_are_named(tmp_path):
    folder = yolo(tmp_path / "data", content=YAML.replace("nc: 2", "nc: 3").replace("cat, dog", "cat, dog, cow"))
    put(folder / "images" / "train" / "0.jpg", encoded(scene(77), "jpeg"))
    (folder / "images" / "val" / "5.png").unlink()
    found = check(folder)
    assert {(f.level, f.kind, f.where) for f in found.findings} == {
        ("error", "broken annotation", "labels/train/0.txt"), ("error", "missing image", "labels/val/5.txt"),
        ("note", "unused class", "data.yaml")}
    assert load(folder).classes == ["cat", "dog"]
    put(folder / "data.yaml", YAML.replace("nc: 2", "nc: 3").encode())
    assert ("unknown label", "data.yaml") in level(folder, "error")


def test_other_folders_with_yamls_and_texts_are_no_yolo(tmp_path):
    folder = class_folders(tmp_path / "data")
    put(folder / "config.yaml", b"epochs: 5\n")
    put(folder / "broken.yaml", b"a: [")
    put(folder / "cat" / "0.txt", b"a cat")
    put(folder / "cat" / "readme.txt", b"cats")
    assert survey(folder).layout == "folder"


def test_difficult_objects_become_ordinary_ones_and_a_log_line_says_so(tmp_path, caplog):
    from dataclasses import replace
    folder = yolo(tmp_path / "data")
    items = [replace(i, objects=tuple(replace(o, difficult=o.index == 1) for o in i.objects)) for i in survey(folder).items]
    out = write_dataset(items, lambda item: (folder / item.name).read_bytes(), "yolo", tmp_path / "out")
    assert read(out) == expected() and "12 objects are ordinary ones now" in caplog.text
