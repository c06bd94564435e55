"VOC and COCO as people's tools write them: each box lies around its object, or an error says why it cannot."
import json
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from course_lib.core import CourseError
from course_lib.data import load
from course_lib.doctor import check, fix
from course_lib.layouts import UNCLEAR, survey
from making import encoded, put

COLOURS = dict(red=(220, 20, 20), blue=(20, 20, 220))
WIDTH, HEIGHT = 160, 120


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))


# the truth is in the images: each object is a rectangle of its class's colour on grey

def drawn(seed):
    "An image with a red and a blue object, uint8 [120, 160, 3], and [(class, [x1, y1, x2, y2])]."
    rng = np.random.default_rng(seed)
    grey = rng.integers(60, 200, (6, 8), dtype=np.uint8)
    image = np.repeat(np.asarray(Image.fromarray(grey).resize((WIDTH, HEIGHT)))[..., None], 3, 2).copy()
    objects = []
    for left, name in ((4, "red"), (84, "blue")):
        (width, height), x, y = rng.integers(24, 40, 2), left + rng.integers(0, 30), rng.integers(4, 70)
        image[y:y + height, x:x + width] = COLOURS[name]
        objects.append((name, [int(v) for v in (x, y, x + width, y + height)]))
    return image, objects


def around(image, name):
    "The box around the colour of a class."
    y, x = np.nonzero((np.abs(image.astype(int) - COLOURS[name]) < 40).all(2))
    return x.min(), y.min(), x.max() + 1, y.max() + 1


def true_objects(spec):
    "The number of objects that are found; each must lie around its colour, and no image lacks one."
    found, count = survey(spec), 0
    for item in found.items:
        image = found.image(item)
        assert sorted(thing.name for thing in item.objects) == ["blue", "red"], item.name
        for thing in item.objects:
            assert np.abs(np.subtract(thing.box, around(image, thing.name))).max() <= 1.01, (item.name, thing)
            count += not thing.difficult
    return count


def kinds(spec, level="error"): return {f.kind for f in check(spec).findings if f.level == level}


def repaired(folder, out, count=24):
    "A repaired copy has no findings, and the same objects."
    fixed = fix(folder, out)
    assert check(fixed).findings == [] and true_objects(fixed) == count
    return load(fixed)


# VOC

def xml_text(objects, size=(WIDTH, HEIGHT), filename="x.png", flags="", head=""):
    sides = ("xmin", "ymin", "xmax", "ymax")
    boxes = ("".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, box)) for _, box in objects)
    things = "".join(f"<object><name>{name}</name>{flags}<bndbox>{box}</bndbox></object>"
                     for (name, _), box in zip(objects, boxes))
    width, height = size
    size = f"<size><width>{width}</width><height>{height}</height></size>"
    return f"{head}<annotation><filename>{filename}</filename>{size}{things}</annotation>"


def voc(root, change=list, n=12, image="JPEGImages/{}.png", xml="Annotations/{}.xml", resize=None,
        content=str.encode, **text):
    "A VOC set; change(box) is what a tool makes of a box."
    for i in range(n):
        pixels, objects = drawn(i)
        picture = Image.fromarray(pixels)
        put(root / image.format(i), encoded(picture.resize(resize, 0) if resize else picture))
        put(root / xml.format(i), content(xml_text([(name, change(box)) for name, box in objects], **text)))
    return root


@pytest.mark.parametrize("flag", ["0", "", "Unspecified", "False", "0.0", "no", "None"])
def test_flags_that_say_no(flag, tmp_path):
    folder = voc(tmp_path / "data", flags=f"<difficult>{flag}</difficult><truncated>{flag}</truncated>")
    assert true_objects(folder) == 24 and check(folder).findings == []


@pytest.mark.parametrize("flag", ["1", "True", "yes", "1.0"])
def test_flags_that_say_yes(flag, tmp_path):
    assert true_objects(voc(tmp_path / "data", flags=f"<difficult>{flag}</difficult>")) == 0


def test_flags_that_say_neither_are_named(tmp_path):
    folder = voc(tmp_path / "data", flags="<difficult>maybe</difficult><truncated>0.0597</truncated>")
    found = check(folder)
    assert {(f.level, f.kind) for f in found.findings} == {("error", "unclear flag"), ("warning", "unclear flag")}
    assert "Annotations/0.xml: object 0 (red): difficult is 'maybe'" in str(found.errors[0])
    assert true_objects(folder) == 24
    repaired(folder, tmp_path / "fixed")


def shares(box): return [box[0] / WIDTH, box[1] / HEIGHT, box[2] / WIDTH, box[3] / HEIGHT]


def size_of(box): return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def centre_of(box): return [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, box[2] - box[0], box[3] - box[1]]


def twice(box): return [2 * value for value in box]


PUT_RIGHT = {  # how it is written -> the kind of error; boxes are right already before a repair
    "shares": (dict(change=shares), "boxes as shares"),
    "halved after annotation": (dict(change=twice, size=(2 * WIDTH, 2 * HEIGHT)), "wrong size"),
    "doubled after annotation": (dict(resize=(2 * WIDTH, 2 * HEIGHT)), "wrong size"),
}


@pytest.mark.parametrize("name", PUT_RIGHT)
def test_boxes_of_another_scale_are_an_error_and_put_right(name, tmp_path):
    how, kind = PUT_RIGHT[name]
    folder = voc(tmp_path / "data", **how)
    found = check(folder)
    assert [f.kind for f in found.findings] == [kind] * 12 and len(found.errors) == 12
    assert found.errors[0].where == "Annotations/0.xml" and true_objects(folder) == 24
    repaired(folder, tmp_path / "fixed")


@pytest.mark.parametrize("change, cause", [(size_of, "x, y, width, height"), (centre_of, "centre x, centre y")])
def test_boxes_in_another_form_stop_loading_until_repaired(change, cause, tmp_path):
    folder = voc(tmp_path / "data", change)
    [finding] = check(folder).errors
    assert finding.kind == UNCLEAR and cause in finding.what and finding.where.startswith("Annotations/")
    with pytest.raises(CourseError, match=cause): load(folder)
    repaired(folder, tmp_path / "fixed")


def test_boxes_of_other_images_stop_loading(tmp_path):
    folder = voc(tmp_path / "data", lambda box: [3 * value for value in box])
    assert UNCLEAR in kinds(folder)
    with pytest.raises(CourseError, match="of other images"): load(folder)
    with pytest.raises(CourseError, match="nothing"): fix(folder, tmp_path / "fixed")


def test_a_few_boxes_beyond_their_images_are_no_other_form(tmp_path):
    folder = voc(tmp_path / "data")
    put(folder / "Annotations/0.xml", xml_text([("red", [100, 90, 170, 130]), ("blue", [1, 1, 9, 9])]).encode())
    assert kinds(folder) == set() and kinds(folder, "warning") == {"box outside"}


def test_a_size_that_is_out_of_date_moves_no_box(tmp_path):
    folder = voc(tmp_path / "data", size=(WIDTH // 2, HEIGHT // 2))  # boxes reach beyond it
    assert true_objects(folder) == 24 and kinds(folder, "warning") == {"wrong size"} and not kinds(folder)


def test_cropped_images_are_left_out(tmp_path):
    folder = voc(tmp_path / "data")
    put(folder / "JPEGImages/0.png", encoded(drawn(0)[0][:, 60:]))
    [finding] = check(folder).errors
    assert (finding.kind, finding.where) == ("wrong size", "Annotations/0.xml") and "left out" in finding.what
    assert true_objects(folder) == 22
    repaired(folder, tmp_path / "fixed", 22)


def test_a_box_that_is_not_numbers_is_shown_as_written_and_costs_its_image(tmp_path):
    "The object is still to be seen: without its box a detector would learn that it is background."
    folder = voc(tmp_path / "data")
    put(folder / "Annotations/0.xml", xml_text([("red", ["31,0", 2, 3, 4]), *drawn(0)[1]]).encode())
    [finding] = check(folder).errors
    assert "object 0 (red)" in finding.what and "xmin '31,0'" in finding.what and true_objects(folder) == 22
    repaired(folder, tmp_path / "fixed", 22)


ENCODINGS = {"gb2312": ("gb2312", "gbk", "猫"), "gbk": ("gbk", "gbk", "貓"), "utf8": ("utf8", "utf-8", "é"),
             "shift_jis": ("shift_jis", "shift_jis", "猫"), "utf-16": ("utf-16", "utf-16", "猫")}


@pytest.mark.parametrize("name", ENCODINGS)
def test_declared_encodings(name, tmp_path):
    declared, real, word = ENCODINGS[name]
    head = f'<?xml version="1.0" encoding="{declared}"?>'
    folder = voc(tmp_path / "data", content=lambda text: text.replace("red", word).encode(real), head=head)
    assert survey(folder).classes == sorted(["blue", word]) and not kinds(folder)


def test_encodings_that_are_not_declared_are_guessed_for_no_class(tmp_path):
    folder = voc(tmp_path / "data", filename="照片.jpg", content=lambda text: text.encode("gbk"))
    assert true_objects(folder) == 24 and check(folder).findings == []
    put(folder / "Annotations/0.xml", xml_text([("红", [1, 1, 9, 9])]).encode("gbk"))
    [finding] = check(folder).errors
    assert finding.where == "Annotations/0.xml" and "save it as UTF-8" in finding.what


ARRANGEMENTS = {  # image, xml
    "Roboflow": ("{}.png", "{}.xml"), "lower case": ("images/{}.png", "annotations/{}.xml"),
    "half of it": ("images/{}.png", "Annotations/{}.xml"), "labelImg": ("photos/{}.png", "labels/{}.xml"),
    "sub-folders": ("images/a/{}.png", "annotations/a/{}.xml"), "xmls": ("images/{}.png", "annotations/xmls/{}.xml"),
    "odd folders": ("pics/{}.png", "boxes/{}.xml")}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_arrangements_of_images_and_annotations(name, tmp_path):
    image, xml = ARRANGEMENTS[name]
    folder = voc(tmp_path / "data", image=image, xml=xml)
    assert survey(folder).layout == "voc" and true_objects(folder) == 24 and check(folder).findings == []


def test_xml_files_beside_images_in_split_folders(tmp_path):
    folder = tmp_path / "data"
    for start, split in ((0, "train"), (6, "valid"), (9, "test")):
        voc(folder, n=12, image=f"{split}/{start}-{{}}.png", xml=f"{split}/{start}-{{}}.xml")
        for i in range(start, start + 3):
            put(folder / split / f"{start}-{i}.png", encoded(drawn(100 + i)[0]))
            put(folder / split / f"{start}-{i}.xml", xml_text(drawn(100 + i)[1]).encode())
    found = survey(folder)
    assert found.classes == ["blue", "red"] and true_objects(folder) == 72
    assert all(item.split == item.name.split("/")[0] for item in found.items)


def test_two_years_beside_each_other_with_their_own_lists(tmp_path):
    folder = tmp_path / "data"
    for year in ("VOC2007", "VOC2012"):
        voc(folder, n=12, image=f"{year}/JPEGImages/{{}}.png", xml=f"{year}/Annotations/{{}}.xml")
        put(folder / year / "SegmentationClass" / "0.png", encoded(drawn(0)[0]))
        for split, lines in dict(train="0 1 2 3 4 5 6", val="7 8 9", test="10.png JPEGImages/11.png").items():
            if year == "VOC2007": lines = " ".join(f"{11 - int(Path(name).stem)}" for name in lines.split())
            put(folder / year / "ImageSets" / "Main" / f"{split}.txt", lines.replace(" ", "\n").encode())
    splits = {item.name: item.split for item in survey(folder).items}
    assert len(splits) == 24 and true_objects(folder) == 48
    assert splits["VOC2007/JPEGImages/0.png"] == splits["VOC2012/JPEGImages/11.png"] == "test"
    assert splits["VOC2007/JPEGImages/11.png"] == splits["VOC2012/JPEGImages/0.png"] == "train"


def test_xml_files_that_are_no_annotations_claim_nothing(tmp_path):
    for i in range(6):
        put(tmp_path / "data" / "cat" / f"{i}.png", encoded(drawn(i)[0]))
        put(tmp_path / "data" / "dog" / f"{i}.png", encoded(drawn(50 + i)[0]))
    put(tmp_path / "data" / "project.xml", b"<project/>")
    assert survey(tmp_path / "data").layout == "folder"
    folder = voc(tmp_path / "boxes")
    put(folder / "project.xml", b"<project/>")
    assert kinds(folder, "note") == {"unread xml"} and not kinds(folder)


SPELLINGS = {"other case": ("Photo{}.PNG", "photo{}"), "percent-encoded": ("my%20photo{}.png", "my photo{}"),
             "decomposed": (unicodedata.normalize("NFD", "été{}.png"), "été{}")}


@pytest.mark.parametrize("name", SPELLINGS)
def test_names_that_are_spelled_otherwise(name, tmp_path):
    image, stem = SPELLINGS[name]
    folder = voc(tmp_path / "data", image=f"JPEGImages/{image}", xml=f"Annotations/{stem}.xml")
    for split, numbers in dict(train=range(8), val=(8, 9), test=(10, 11)).items():
        put(folder / f"ImageSets/Main/{split}.txt", "\n".join(image.format(i) for i in numbers).encode())
    assert true_objects(folder) == 24 and not kinds(folder) and len(load(folder).valid) == 2


def test_an_exact_name_comes_first(tmp_path):
    folder = voc(tmp_path / "data", n=6, image="JPEGImages/a{}.png", xml="Annotations/a{}.xml")
    for i in range(6):
        put(folder / f"JPEGImages/A{i}.png", encoded(drawn(50 + i)[0]))
        put(folder / f"Annotations/A{i}.xml", xml_text(drawn(50 + i)[1]).encode())
    assert true_objects(folder) == 24 and not kinds(folder)


# COCO

def coco(root, change=lambda content: None, box=size_of, name="annotations/instances_default.json",
         image="images/{}.png", said="{}.png", resize=None, size=(WIDTH, HEIGHT), numbers=range(12)):
    "A COCO set; box(corners) is what a tool makes of a box, change(content) may spoil the rest."
    content = SimpleNamespace(images=[], annotations=[],
                              categories=[dict(id=1, name="red"), dict(id=2, name="blue")])
    for i in numbers:
        pixels, objects = drawn(i)
        picture = Image.fromarray(pixels)
        put(root / image.format(i), encoded(picture.resize(resize, 0) if resize else picture))
        content.images.append(dict(id=i, file_name=said.format(i), width=size[0], height=size[1]))
        content.annotations += [dict(id=2 * i + k, image_id=i, category_id=1 + k, bbox=box(corners))
                                for k, (_, corners) in enumerate(objects)]
    change(content)
    put(root / name, json.dumps(vars(content)).encode())
    return root


def share_sizes(box): return size_of(shares(box))


COCO_PUT_RIGHT = {
    "shares": (dict(box=share_sizes), "boxes as shares"),
    "halved": (dict(box=lambda box: size_of(twice(box)), size=(2 * WIDTH, 2 * HEIGHT)), "wrong size"),
    "doubled": (dict(resize=(2 * WIDTH, 2 * HEIGHT)), "wrong size"),
}


@pytest.mark.parametrize("name", COCO_PUT_RIGHT)
def test_coco_boxes_of_another_scale_are_an_error_and_put_right(name, tmp_path):
    how, kind = COCO_PUT_RIGHT[name]
    folder = coco(tmp_path / "data", **how)
    assert [(f.level, f.kind) for f in check(folder).findings] == [("error", kind)] * 12
    assert true_objects(folder) == 24
    repaired(folder, tmp_path / "fixed")


@pytest.mark.parametrize("box, cause", [
    (list, "as x1, y1, x2, y2"), (centre_of, "as centre x"), (lambda box: centre_of(shares(box)), "as centre x")],
    ids=["corners", "centres", "centres as shares"])
def test_coco_boxes_in_another_form_stop_loading_until_repaired(box, cause, tmp_path):
    folder = coco(tmp_path / "data", box=box)
    finding = next(f for f in check(folder).errors if f.kind == UNCLEAR)
    assert cause in finding.what and finding.where.startswith("annotations/instances_default.json: ")
    with pytest.raises(CourseError, match=cause): load(folder)
    repaired(folder, tmp_path / "fixed")


def same_id(content):
    content.images[1]["id"] = 0
    for annotation in content.annotations:
        if annotation["image_id"] == 1: annotation["image_id"] = 0


def test_an_image_id_used_twice_stops_loading_and_is_repaired_without_both(tmp_path):
    folder = coco(tmp_path / "data", same_id)
    [finding] = check(folder).findings
    assert (finding.level, finding.kind) == ("error", UNCLEAR)
    assert "image id 0 is images/0.png and images/1.png" in finding.what and "instances_default" in finding.where
    with pytest.raises(CourseError, match="image id 0"): load(folder)
    repaired(folder, tmp_path / "fixed", 20)
    assert not {"0.png", "1.png"} & {item.name.split("/")[-1] for item in survey(tmp_path / "fixed").items}


def test_a_category_id_used_twice_stops_loading_and_is_repaired_without_its_images(tmp_path):
    def change(content):
        content.categories.append(dict(id=3, name="green"))
        content.categories.append(dict(id=3, name="cyan"))
        content.annotations[0]["category_id"] = 3
    folder = coco(tmp_path / "data", change)
    assert kinds(folder) == {UNCLEAR, "unclear annotation"}
    with pytest.raises(CourseError, match="category id 3 is cyan and green"): load(folder)
    repaired(folder, tmp_path / "fixed", 22)


def test_one_name_under_two_ids_and_one_id_twice_with_one_name_are_no_fault(tmp_path):
    def change(content):
        content.categories += [dict(id=1, name="red"), dict(id=9, name="red")]
        content.annotations[0]["category_id"] = 9
    assert true_objects(coco(tmp_path / "data", change)) == 24 and not kinds(tmp_path / "data")


def entry_per_object(content):
    names = {image["id"]: image for image in content.images}
    content.images = [dict(names[a["image_id"]], id=a["id"]) for a in content.annotations]
    for annotation in content.annotations: annotation["image_id"] = annotation["id"]


def everything_twice(content):
    content.images += [dict(image, id=image["id"] + 100) for image in content.images]
    content.annotations += [dict(a, image_id=a["image_id"] + 100) for a in content.annotations]


def same_entry_twice(content): content.images.append(dict(content.images[0]))


@pytest.mark.parametrize("change, count", [(entry_per_object, 12), (everything_twice, 12), (same_entry_twice, 1)])
def test_entries_of_one_image_are_merged(change, count, tmp_path):
    folder = coco(tmp_path / "data", change)
    found = check(folder).findings
    assert [(f.level, f.kind) for f in found] == [("warning", "several entries")] * count
    assert len(survey(folder).items) == 12 and true_objects(folder) == 24
    repaired(folder, tmp_path / "fixed")


@pytest.mark.parametrize("what, key", [("images", "id"), ("annotations", "image_id"), ("categories", "id"),
                                       ("annotations", "category_id")])
def test_ids_that_are_text_in_one_list_only(what, key, tmp_path):
    def change(content):
        for entry in getattr(content, what): entry[key] = str(entry[key])
    folder = coco(tmp_path / "data", change)
    assert true_objects(folder) == 24 and check(folder).findings == []


NAMES = {"other case": ("Photo{}.PNG", "photo{}.png"), "percent-encoded": ("my photo{}.png", "my%20photo{}.png"),
         "encoded on disk": ("my%20photo{}.png", "my photo{}.png"), "no ending": ("{}.png", "{}"),
         "a link": ("my {}.png", "https://host/data/my%20{}.png?raw=1"),
         "decomposed": (unicodedata.normalize("NFD", "été{}.png"), "été{}.png")}


@pytest.mark.parametrize("name", NAMES)
def test_coco_names_that_are_spelled_otherwise(name, tmp_path):
    image, said = NAMES[name]
    folder = coco(tmp_path / "data", image=f"images/{image}", said=said)
    assert true_objects(folder) == 24 and not kinds(folder) and not kinds(folder, "warning")


def test_a_loose_name_takes_no_image_that_another_entry_names(tmp_path):
    def change(content): content.images[0]["file_name"] = "1"  # 1.png is that of entry 1
    folder = coco(tmp_path / "data", change)
    assert ("missing image", "error") in {(f.kind, f.level) for f in check(folder).findings}
    assert true_objects(folder) == 22


@pytest.mark.parametrize("place", ["images/{}", "{}2017"])
def test_the_same_names_in_train_and_val(place, tmp_path):
    folder = tmp_path / "data"
    for split, numbers in dict(train=range(8), val=range(8, 12), test=range(12, 16)).items():
        where = place.format(split)
        coco(folder, name=f"annotations/instances_{split}.json", image=where + "/{}.png", numbers=numbers)
        table = json.loads((folder / f"annotations/instances_{split}.json").read_text())
        for k, image in enumerate(table["images"]):
            (folder / where / image["file_name"]).rename(folder / where / f"{k:04}.png")
            image["file_name"] = f"{k:04}.png"
        put(folder / f"annotations/instances_{split}.json", json.dumps(table).encode())
    assert true_objects(folder) == 32 and check(folder).findings == []
    assert [len(load(folder)[part]) for part in ("train", "valid", "test")] == [8, 4, 4]
    (folder / place.format("train") / "0000.png").unlink()  # that of val does not stand in for it
    assert kinds(folder) == {"missing image"} and true_objects(folder) == 30


def test_boxes_from_polygons(tmp_path):
    def change(content):
        for a in content.annotations:
            x, y, width, height = a.pop("bbox")
            a["segmentation"] = [[x, y, x + width, y], [x + width, y + height, x, y + height]]
    folder = coco(tmp_path / "data", change)
    assert true_objects(folder) == 24 and check(folder).findings == []


def test_a_bbox_that_is_no_list_is_shown_as_written(tmp_path):
    def change(content):
        content.annotations.append(dict(image_id=0, category_id=1, bbox=dict(x=31, y=18)))
    folder = coco(tmp_path / "data", change)
    [finding] = check(folder).errors
    assert "object 24 (red): its bbox is {'x': 31, 'y': 18}" in finding.what and finding.where.endswith(": 0.png")


@pytest.mark.parametrize("crowd, left", [("0", 24), (False, 24), (None, 24), ("1", 0), (1, 0)])
def test_crowds_as_people_write_them(crowd, left, tmp_path):
    def change(content):
        for annotation in content.annotations: annotation["iscrowd"] = crowd
    assert true_objects(coco(tmp_path / "data", change)) == left and not kinds(tmp_path / "data")
