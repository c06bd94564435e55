"Classes, splits and groups: which folders are what, what is held out, what belongs together, and what is rare."
import json
import re
from collections import Counter, defaultdict

import numpy as np
import pytest
import torch

from course_lib.core import CourseError
from course_lib.data import DETECTION, NAMES, SINGLE, load
from course_lib.doctor import check, fix
from course_lib.layouts import survey_with
from making import class_folders, coco, encoded, put, scene, voc, voc_xml, zipped


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "Caches of their own for each test."
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))


def images(root, *names, start=7000):
    "Different images under these names."
    for i, name in enumerate(names): put(root / name, encoded(scene(start + i)))
    return root


def several(root, *folders, n=4): return images(root, *(f"{folder}/{i}.png" for folder in folders for i in range(n)))


def refusal(spec, **options):
    "The single line with which `load` refuses."
    with pytest.raises(CourseError) as caught: load(str(spec), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def told(folder, level="warning"): return {(f.kind, f.where) for f in check(folder).findings if f.level == level}


# which folders are classes

@pytest.mark.parametrize("folders, names", [
    (("train", "test"), "test/ and train/"), (("train", "valid", "test"), "test/ and train/ and valid/"),
    (("images", "masks"), "images/ and masks/"), (("JPEGImages", "SegmentationClass"), "JPEGImages/ and"),
    (("train/images", "train/masks", "val/images", "val/masks"), "train/images/ and train/masks/"),
    (("images", "labels", "annotations"), "annotations/ and images/ and labels/"), (("train", "eval"), "train/")])
def test_folders_that_are_never_classes(folders, names, tmp_path):
    "Splits without class folders, and folders of images and of annotations: an error that says what was seen."
    folder = several(tmp_path / "data", *folders)
    if folders == ("train", "eval"):
        assert ("no class", "train") in told(folder, "error") and "has one class only (eval)" in refusal(folder)
        return
    for spec in (folder, zipped(folder, tmp_path / "data.zip")):
        assert names in refusal(spec) and "labels.csv" in refusal(spec)
        with pytest.raises(CourseError, match="no classes"): check(spec)


def test_what_is_seen_and_not_read_is_named(tmp_path):
    folder = several(tmp_path / "data", "test", "train")
    put(folder / "test" / "labels.csv", b"file,label")
    assert "(seen, but in no layout that is known: test/labels.csv)" in refusal(folder)


@pytest.mark.parametrize("stray", ["images", "masks", "test", "val"])
def test_such_a_folder_beside_classes_is_left_out_and_named(stray, tmp_path):
    folder = class_folders(tmp_path / "data")
    several(folder, stray)
    assert ("no class", stray) in told(folder, "error")
    splits = load(folder)
    assert splits.classes == ["cat", "dog"] and sum(len(splits[part]) for part in NAMES) == 16
    assert any("its 4 images are left out" in finding.what for finding in splits.left_out)
    assert check(fix(folder, tmp_path / "fixed")).errors == []


@pytest.mark.parametrize("tops", [("train", "tram", "bus"), ("Train", "bus"), ("train", "bus/red", "tram/blue")])
def test_a_class_of_trains_that_its_siblings_make_plain(tops, tmp_path):
    splits = load(several(tmp_path / "data", *tops, n=6))
    assert splits.classes == sorted(top.split("/")[0] for top in tops) and not splits.left_out


def test_a_class_of_trains_in_splits(tmp_path):
    splits = load(several(tmp_path / "data", *(f"{split}/{name}" for split in ("train", "val", "test") for name in ("bus", "train"))))
    assert splits.classes == ["bus", "train"] and len(splits.valid) == 8


def test_where_nobody_can_tell_the_user_decides(tmp_path):
    folder = several(tmp_path / "data", *(f"{name}/{view}" for name in ("bus", "car", "train") for view in ("back", "front")))
    said = refusal(folder)
    assert "train/ beside bus/ and car/" in said and "?splits=yes" in said and "?splits=no" in said
    assert load(f"{folder}?splits=no").classes == ["bus", "car", "train"]
    splits = load(f"{folder}?splits=yes")
    assert splits.classes == ["back", "front"] and sum(len(splits[part]) for part in NAMES) == 8
    assert {(f.kind, f.where) for f in splits.left_out} == {("no split", "bus"), ("no split", "car")}
    assert "choose from yes, no, new" in refusal(f"{folder}?splits=perhaps")


def test_folders_that_may_be_splits_are_named_with_what_to_do(tmp_path):
    folder = several(tmp_path / "data", *(f"{split}/{name}" for split in ("train", "eval", "Test_images") for name in ("cat", "dog")))
    found = [f for f in load(folder).left_out if f.kind == "no split"]
    assert {f.where for f in found} == {"eval", "Test_images"}
    assert all("8 images lie outside" in f.what and "call it train, valid or test" in f.what for f in found)


def test_splits_inside_class_folders(tmp_path):
    "MVTec's form: they were lost, and images of the test split learnt."
    folder = several(tmp_path / "data", *(f"{name}/{split}" for name in ("cat", "dog") for split in ("train", "val", "Test")))
    splits = load(folder)
    assert splits.classes == ["cat", "dog"] and splits.made == () and not splits.left_out
    assert all("/Test/" in name for name in splits.test.names) and len(splits.test) == len(splits.valid) == 8
    images(folder, "cat/1.png", "lost.png", start=9000)
    assert told(folder) == {("no split", "cat/1.png"), ("no split", "lost.png")} and load(folder).made == ()
    assert load(f"{folder}?splits=no").made == NAMES  # folders like others
    several(folder, "emu")
    images(folder, "lost.png", start=9500)
    assert load(folder).made == NAMES and ("no split", "cat/Test") in told(folder)  # emus know of no splits


def test_empty_folders_of_such_names_are_no_classes(tmp_path):
    folder = class_folders(tmp_path / "data")
    for name in ("annotations", "test", "images"): (folder / name).mkdir()
    assert check(folder).findings == []


# what is held out

@pytest.mark.parametrize("name, split", [("test", "test"), ("val", "valid"), ("valid", "valid"), ("Testing", "test")])
def test_a_lone_folder_is_that_split(name, split, tmp_path):
    class_folders(tmp_path / "data" / name)
    for spec in (tmp_path / "data", zipped(tmp_path / "data", tmp_path / "data.zip")):
        said = refusal(spec)
        assert f"split {split} only" in said and "course evaluate" in said and "?splits=new" in said
        held_out = load(spec, rare="keep")
        assert [len(held_out[part]) for part in NAMES] == [16 * (part == split) for part in NAMES]
        assert split not in held_out.made and check(spec).errors == []
        assert [len(load(f"{spec}?splits=new")[part]) > 0 for part in NAMES] == [True] * 3


def test_a_lone_train_folder_is_divided(tmp_path):
    class_folders(tmp_path / "data" / "train")
    assert load(tmp_path / "data").made == NAMES


@pytest.mark.parametrize("name, split", [("instances_val2017.json", "valid"), ("instances_test.json", "test"),
                                         ("instances_train.json", ""), ("annotations.json", "")])
def test_a_lone_json_is_the_split_of_its_name(name, split, tmp_path):
    folder = coco(tmp_path / "data", name=f"annotations/{name}")
    assert {item.split for item in survey_with(folder, {})[0].items} == {split}
    assert {item.split for item in survey_with(folder / "annotations" / name, {})[0].items} == {""}  # chosen as the data
    if not split: assert load(folder).made == NAMES
    else: assert f"split {split} only" in refusal(folder)


def test_lists_at_the_root(tmp_path):
    lists = dict(train=[f"{i}" for i in range(7)], val=["JPEGImages/7.png", "8.png"], test=["9", "8", "77"])
    for make in (voc, coco, class_folders):
        folder = make(tmp_path / make.__name__)
        for name, lines in lists.items():
            if make is class_folders: lines = [f"cat/{line.removeprefix('JPEGImages/')} 0" for line in lines if line < "7"]
            put(folder / f"{name}.txt", "\r\n".join(lines).encode())
        if make is class_folders: continue
        found, _ = survey_with(folder, {})
        split = {re.search(r"\d+", item.name)[0]: item.split for item in found.items}
        assert split == {**{str(i): "train" for i in range(7)}, "7": "valid", "8": "test", "9": "test", "10": "unlisted",
                         "11": "unlisted"}, make
        kinds = Counter(f.kind for f in found.findings)
        assert kinds["missing image"] == kinds["same image across splits"] == kinds["no split"] == 1
    found, _ = survey_with(tmp_path / "class_folders", {})
    assert Counter(item.split for item in found.items) == {"train": 7, "unlisted": 9}


def test_a_text_that_names_no_images_is_no_list(tmp_path):
    folder = class_folders(tmp_path / "data")
    put(folder / "test.txt", b"this is only a test")
    assert load(folder).made == NAMES


def test_an_image_that_two_splits_name_is_in_the_later_one(tmp_path):
    "C14: it was trained on and tested on."
    folder = coco(tmp_path / "data")
    content = json.loads((folder / "annotations.json").read_text())
    (folder / "annotations.json").unlink()
    for split, numbers in dict(train=range(8), val=range(6, 10), test=range(9, 12)).items():
        own = dict(content, images=[image for image in content["images"] if image["id"] in numbers])
        put(folder / f"{split}.json", json.dumps(own).encode())
    splits = load(folder)
    assert {part: len(splits[part]) for part in NAMES} == dict(train=6, valid=3, test=3)
    assert {f.where for f in splits.left_out if f.kind == "same image across splits"} == {f"images/{i}.png" for i in (6, 7, 9)}
    assert check(fix(folder, tmp_path / "fixed")).findings == []


# boxes that cannot be understood

def shown(splits): return {name for part in NAMES for name in splits[part].names}


@pytest.mark.parametrize("name, box", [("cat", ("31,0", 1, 5, 9)), ("cat", ("nan", 1, 5, 9)), ("", (1, 1, 5, 9)),
                                       ("cat", (100, 100, 120, 120))])
def test_an_object_that_cannot_be_understood_costs_its_image(name, box, tmp_path):
    folder = voc(tmp_path / "data", n=16, xml={0: voc_xml([("dog", (1, 1, 20, 20)), (name, box)])})
    splits = load(folder)
    [finding] = splits.left_out
    assert finding.level == "error" and finding.where == "Annotations/0.xml"
    assert "object 1" in finding.what and "its image is left out" in finding.what
    assert shown(splits) == {f"JPEGImages/{i}.png" for i in range(1, 16)}
    assert check(fix(folder, tmp_path / "fixed")).findings == []


@pytest.mark.parametrize("spoil", [dict(bbox=dict(x=1, y=1, width=9, height=9)), dict(bbox=["a", 1, 2, 3]), dict(category_id=99),
                                   dict(category_id=None), dict(bbox=[500, 500, 9, 9])])
def test_so_it_is_with_coco(spoil, tmp_path):
    folder = coco(tmp_path / "data", n=16, edit=lambda content: content["annotations"][3].update(spoil))
    splits = load(folder)
    assert [f.where for f in splits.left_out] == ["annotations.json: 1.png"] and "left out" in splits.left_out[0].what
    assert shown(splits) == {f"images/{i}.png" for i in range(16) if i != 1}


@pytest.mark.parametrize("row", ["1.png,64,48,cat,one,1,20,20", "1.png,64,48", "1.png,64,48,cat,500,500,600,600"])
def test_so_it_is_with_a_table(row, tmp_path):
    rows = [f"{i}.png,64,48,{name},1,1,20,2{i % 9}" for i in range(16) for name in ("cat", "dog")]
    folder = images(tmp_path / "data", *(f"{i}.png" for i in range(16)))
    put(folder / "boxes.csv", "\n".join(["filename,width,height,class,xmin,ymin,xmax,ymax", *rows, row]).encode())
    splits = load(folder)
    assert [f.where for f in splits.left_out] == ["boxes.csv: 1.png"]
    assert shown(splits) == {f"{i}.png" for i in range(16) if i != 1}


def test_where_nothing_is_left_the_first_error_is_said(tmp_path):
    folder = coco(tmp_path / "data", edit=lambda content: [a.update(bbox=dict(x=1)) for a in content["annotations"]] and None)
    assert "holds no image that can be used" in refusal(folder) and "object 0 (cat): its bbox is {'x': 1}" in refusal(folder)


# masks

@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor, list, lambda mask: (bool(value) for value in mask)])
def test_a_boolean_mask_selects(form, tmp_path):
    train = load(class_folders(tmp_path / "data", n=12)).train
    mask = np.array(train.targets) == 1
    some = train.subset(form(mask))
    assert some.names == [name for name in train.names if name.startswith("dog")] and set(some.targets) == {1}
    assert some.key == train.subset(np.flatnonzero(mask)).key
    for wrong in (mask[1:], [*mask, True], mask[:, None]):
        with pytest.raises(CourseError, match="mask"): train.subset(wrong)
    assert train.subset([1, 0]).names == [train.names[1], train.names[0]] and len(train.subset([])) == 0
    assert len(train.subset(torch.tensor([2, 2]))) == 2 and len(train.subset(range(3))) == 3


# rare classes

def rare_folders(root):
    "A class of birds without validation images."
    for k, split in enumerate(("train", "val", "test")):
        class_folders(root / split, ("cat", "dog") if split == "val" else ("bird", "cat", "dog"), n=4, start=100 * k)
    return root


def rare_boxes(root):
    "Birds on two images of thirty, which are not enough for three splits."
    birds = voc_xml([("bird", (1, 1, 20, 20)), ("dog", (5, 5, 30, 30))])
    return voc(root, n=30, xml={3: birds, 7: birds})


def test_a_single_label_that_misses_a_split_is_refused_with_two_ways_on(tmp_path):
    folder = rare_folders(tmp_path / "data")
    said = refusal(folder)
    assert "'bird' has no readable image for the valid split" in said and "'?classes=cat,dog'" in said and "'?rare=keep'" in said
    assert load(f"{folder}?classes=cat,dog").classes == ["cat", "dog"]
    kept = load(f"{folder}?rare=keep")
    assert kept.classes == ["bird", "cat", "dog"] and len(kept.train) == 12
    assert [str(f) for f in kept.left_out] == ["bird: has no image in valid: it is not measured in valid"]
    assert "choose from keep" in refusal(f"{folder}?rare=yes")


@pytest.mark.parametrize("view", ["", "?view=multi"])
def test_boxes_and_several_labels_go_on_with_a_warning(view, tmp_path):
    folder = f"{rare_boxes(tmp_path / 'data')}{view}"
    splits = load(folder)
    assert splits.classes == ["bird", "cat", "dog"] and sum(len(splits[part]) for part in NAMES) == 30
    assert [(f.level, f.kind, f.where) for f in splits.left_out] == [("warning", "class misses a split", "bird")]
    assert check(folder).errors == [] and ("class too small", "bird") in told(folder)


@pytest.mark.parametrize("n, options", [(2, ""), (12, "?group=/(a|b)")])
def test_a_split_without_any_image_is_refused(n, options, tmp_path):
    "Whatever the task: nothing could be chosen by it, or measured on it."
    folder = voc(tmp_path / "data", n=n, stem=lambda i: f"{'ab'[i % 2]}{i}")
    spec = f"{folder}{options}"
    assert "has no readable image for the" in refusal(spec) and "leave it out" not in refusal(spec)
    assert sum(len(load(spec, rare="keep")[part]) for part in NAMES) == n


def test_some_classes(tmp_path):
    folder = rare_boxes(tmp_path / "data")
    splits = load(f"{folder}?classes=bird, cat")
    assert splits.classes == ["bird", "cat"] and sum(len(splits[part]) for part in NAMES) == 30
    objects = [label for part in NAMES for target in splits[part].targets for label in target["labels"]]
    assert Counter(objects) == {1: 2, 2: 28}  # an image of dogs alone would be background
    assert any(f.kind == "chosen classes" and "30 objects of others" in f.what for f in splits.left_out)
    alone = load(f"{folder}?classes=bird")
    assert sum(len(target["boxes"]) == 0 for part in NAMES for target in alone[part].targets) == 28
    assert "no class 'emu'; there are bird, cat, dog" in refusal(f"{folder}?classes=bird,emu")
    assert check(fix(f"{folder}?classes=cat,dog", tmp_path / "fixed")).counts.keys() == {"cat", "dog"}


def test_some_classes_of_a_data_set_with_a_name():
    whole = load("streets", n=60, size=32)
    some = load("streets?classes=bus,car&n=60&size=32")
    assert some.classes == ["bus", "car"] and some.task == SINGLE and some.fingerprint != whole.fingerprint
    names = {name: whole.classes[target] for name, target in zip(whole.test.names, whole.test.targets)}
    assert {name: some.classes[target] for name, target in zip(some.test.names, some.test.targets)} == {
        name: own for name, own in names.items() if own in ("bus", "car")}
    boxes = load("streets", view="detection", n=20, size=64, classes="car")
    assert boxes.task == DETECTION and len(boxes.train) == 20 and {n for t in boxes.train.targets for n in t["labels"]} == {1}
    assert "no class 'ship'" in refusal("streets?classes=ship&n=60&size=32")


# groups

def bursts(root, groups=60, n=5):
    "Photos of some cars, each in a burst, of two makes."
    names = [f"{('audi', 'bmw')[g % 2]}/car{g:02}_{i}.png" for g in range(groups) for i in range(n)]
    return images(root, *names)


def sides(splits, pattern=r"car\d+"):
    "Group -> the splits that it is in."
    found = defaultdict(set)
    for part in NAMES:
        for name in splits[part].names: found[re.search(pattern, name)[0]].add(part)
    return found


@pytest.mark.parametrize("pattern", ["(car[0-9]+)_", "car[0-9]+"])
def test_no_group_is_on_two_sides_and_the_shares_are_near(pattern, tmp_path):
    folder = bursts(tmp_path / "data")
    assert any(len(parts) > 1 for parts in sides(load(folder)).values())
    counts = Counter()
    for seed in range(6):
        splits = load(f"{folder}?group={pattern}", seed=seed)
        assert all(len(parts) == 1 for parts in sides(splits).values())
        counts.update({part: len(splits[part]) for part in NAMES})
    assert abs(counts["test"] / 1800 - 0.15) < 0.05 and abs(counts["valid"] / 1800 - 0.15) < 0.05
    wide = load(f"{folder}?group={pattern}&test=0.4&valid=0.1")
    assert abs(len(wide.test) / 300 - 0.4) < 0.2


def test_equal_images_join_groups(tmp_path):
    folder = bursts(tmp_path / "data", groups=30)
    for g in range(2, 20, 2): put(folder / "audi" / f"car{g:02}_copy.png", encoded(scene(7000)))  # that of car00
    found = sides(load(f"{folder}?group=(car[0-9]+)_"))
    assert len({part for g in range(0, 20, 2) for part in found[f"car{g:02}"]}) == 1


def test_groups_without_copies_or_matches_change_nothing(tmp_path):
    folder = bursts(tmp_path / "data", groups=20)
    assert load(f"{folder}?group=car[0-9]+_[0-9]").made == NAMES
    said = refusal(f"{folder}?group=patient")
    assert "make 0 groups" in said and "audi/car00_0.png" in said
    assert "no regular expression" in refusal(f"{folder}?group=(car")
    assert "make 1 groups" in refusal(f"{folder}?group=car")


def test_a_plus_in_a_pattern_is_a_plus(tmp_path):
    folder = bursts(tmp_path / "data", groups=20)
    assert all(len(parts) == 1 for parts in sides(load(rf"{folder}?group=(car\d+)_&seed=3")).values())


def test_a_group_that_the_data_has_on_two_sides_is_an_error(tmp_path):
    folder = images(tmp_path / "data", *(f"{split}/{name}/{group}_{i}.png" for split, group in (
        ("train", "a"), ("train", "b"), ("val", "c"), ("test", "a")) for name in ("cat", "dog") for i in range(3)))
    found = [f for f in load(f"{folder}?group=([a-z])_").left_out if f.level == "error"]
    assert [(f.kind, f.where) for f in found] == [("group across splits", "a")] and "test and train" in found[0].what
    assert not [f for f in load(f"{folder}?group=([a-z])_&splits=new").left_out if f.level == "error"]


@pytest.mark.parametrize("column", ["patient", "Case No"])
def test_groups_are_a_column_of_a_table(column, tmp_path):
    patient = {f"{i}.png": f"patient {i // 4}" for i in range(80)}
    folder = images(tmp_path / "data", *(f"images/{name}" for name in patient))
    rows = [f"{name},{own},{('cat', 'dog')[i % 2]}" for i, (name, own) in enumerate(patient.items())]
    put(folder / "labels.csv", "\n".join([f"file,{column},label", *rows]).encode())
    splits = load(f"{folder}?group={column}")
    assert splits.classes == ["cat", "dog"] and not [f for f in splits.left_out if f.kind == "unread column"]
    found = defaultdict(set)
    for part in NAMES:
        for name in splits[part].names: found[patient[name.removeprefix("images/")]].add(part)
    assert len(found) == 20 and all(len(parts) == 1 for parts in found.values())


def test_uneven_groups_are_said(tmp_path):
    folder = bursts(tmp_path / "data", groups=30, n=2)
    images(folder, *(f"bmw/car99_{i}.png" for i in range(100)), start=8000)
    for seed in range(3):
        splits = load(f"{folder}?group=car[0-9]+", seed=seed)
        share = len(splits.test) / 160
        assert (abs(share - 0.15) > 0.05) == any((f.kind, f.where) == ("uneven groups", "test") for f in splits.left_out)
