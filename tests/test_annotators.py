"LabelMe, CVAT and Label Studio: exports are read as they lie; what cannot be read is named and costs its image at most."
import json
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest
from PIL import Image

from course_lib.core import CourseError
from course_lib.data import DETECTION, NAMES, load
from course_lib.doctor import check, fix
from course_lib.layouts import survey
from making import class_folders, coco, encoded, put, scene, voc, zipped

BOX = {"cat": (8, 6, 40, 30), "dog": (10, 20, 60, 44)}  # pixels of 64 x 48
TOOLS = ("labelme", "cvat", "labelstudio")


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))


# one object in each tool's words

def shape(name, box, **more): return dict(label=name, points=[box[:2], box[2:]], shape_type="rectangle", **more)


def shapes(boxes=BOX): return [shape(name, box) for name, box in boxes.items()]


def labelme_file(own, filename, width=64, height=48, **more):
    return json.dumps(dict(version="5.0.1", flags={}, shapes=own, imagePath=filename, imageData=None, imageHeight=height, imageWidth=width, **more))


def labelme(root, own=None, n=8, image="{}.png", note="{}.json", told="{}.png"):
    "own: {number of an image: its shapes, a text for the whole file, None for no file}."
    for i in range(n):
        put(root / image.format(i), encoded(scene(i)))
        said = (own or {}).get(i, shapes())
        text = labelme_file(said, told.format(i)) if isinstance(said, list) else said
        if text is not None: put(root / note.format(i), text if isinstance(text, bytes) else text.encode())
    return root


def node(name, box, tag="box", inner="", **more):
    sides = dict(zip(("xtl", "ytl", "xbr", "ybr"), map(str, box)))
    attributes = " ".join(f"{key}={quoteattr(str(value))}" for key, value in {"label": name, **sides, **more}.items())
    return f"<{tag} {attributes}>{inner}</{tag}>"


NODES = "".join(node(name, box) for name, box in BOX.items())


def cvat_image(i, own=NODES, name="{}.png", width=64, height=48, subset=""):
    more = f' subset="{subset}"' if subset else ""
    return f'<image id="{i}" name={quoteattr(name.format(i))} width="{width}" height="{height}"{more}>{own}</image>'


def cvat(root, own=None, n=8, image="images/{}.png", name="{}.png", file="annotations.xml", subset=lambda i: "", encoding="utf-8"):
    for i in range(n): put(root / image.format(i), encoded(scene(i)))
    rows = "".join(cvat_image(i, (own or {}).get(i, NODES), name, subset=subset(i)) for i in range(n))
    head = f'<?xml version="1.0" encoding="{encoding}"?>\n<annotations><version>1.1</version><meta><task/></meta>'
    put(root / file, f"{head}{rows}</annotations>".encode(encoding))
    return root


def region(name, box, size=(64, 48), **more):
    x1, y1, x2, y2 = box
    value = dict(x=100 * x1 / size[0], y=100 * y1 / size[1], width=100 * (x2 - x1) / size[0], height=100 * (y2 - y1) / size[1],
                 rotation=0, rectanglelabels=[name])
    return dict(id=name, type="rectanglelabels", original_width=size[0], original_height=size[1], image_rotation=0, value=value | more)


def regions(boxes=BOX): return [region(name, box) for name, box in boxes.items()]


def task(i, own, name="/data/local-files/?d=images/{}.png"):
    return dict(id=i, data=dict(image=name.format(i)), annotations=[dict(id=i, result=own)], predictions=[])


def studio(root, own=None, n=8, image="images/{}.png", name="/data/local-files/?d=images/{}.png", file="project-1.json"):
    for i in range(n): put(root / image.format(i), encoded(scene(i)))
    put(root / file, json.dumps([task(i, (own or {}).get(i, regions()), name) for i in range(n)]).encode())
    return root


MAKE = dict(labelme=labelme, cvat=cvat, labelstudio=studio)


def read(folder):
    "number of an image -> its split and its boxes by class"
    return {int(i.name.split("/")[-1][:-4]): (i.split, {o.name: tuple(np.round(o.box, 3)) for o in i.objects}) for i in survey(folder).items}


def expected(*without): return {i: ("", BOX) for i in range(8) if i not in without}


def level(folder, *levels): return [(f.kind, f.where) for f in check(folder).findings if f.level in (levels or ("error", "warning"))]


FORMS = {
    "labelme": {},
    "labelme below": dict(image="photos/{}.png", note="photos/{}.json"),
    "labelme apart": dict(image="images/{}.png", note="labels/{}.json", told="..\\images\\{}.png"),
    "labelme from windows": dict(told="C:\\photos\\{}.png"),
    "labelme, other case": dict(image="img{}.PNG", note="IMG{}.json", told="img{}.png"),
    "cvat": {},
    "cvat beside": dict(image="{}.png"),
    "cvat with folders": dict(image="images/a/{}.png", name="a/{}.png"),
    "cvat from windows": dict(name="C:\\data\\{}.png"),
    "cvat, other ending and case": dict(image="images/Photo{}.PNG", name="photo{}.jpg"),
    "cvat in UTF-16": dict(encoding="utf-16"),
    "labelstudio": {},
    "labelstudio, uploaded": dict(name="/data/upload/3/0f9a8b7c-{}.png"),
    "labelstudio, a url": dict(name="https://host/photos/{}.png?token=7"),
    "labelstudio, s3": dict(name="s3://bucket/images/{}.png"),
    "labelstudio, exported names": dict(image="images/0f9a8b7c-{}.png", name="/data/upload/3/0f9a8b7c-{}.png"),
}


@pytest.mark.parametrize("form", FORMS)
def test_exports_are_read_as_they_lie(form, tmp_path):
    tool = form.replace(",", " ").split()[0]
    folder = MAKE[tool](tmp_path / "data", **FORMS[form])
    for spec in (folder, zipped(folder, tmp_path / "data.zip"), zipped(folder, tmp_path / "wrapped.zip", prefix="pets/")):
        found = survey(spec)
        assert (found.layout, found.task, found.classes, found.findings) == (tool, DETECTION, ["cat", "dog"], [])
        assert len(found.items) == 8 and not any(item.split for item in found.items)
        for item in found.items: np.testing.assert_allclose([thing.box for thing in item.objects], list(BOX.values()))
    splits = load(folder)
    assert sum(len(splits[part]) for part in NAMES) == 8


@pytest.mark.parametrize("tool", TOOLS)
def test_splits_are_folders_or_subsets(tool, tmp_path):
    parts = ("train", "val", "test")
    def place(i): return f"{parts[i % 3]}/{i}.png"
    folder = tmp_path / "data"
    for i in range(9): put(folder / "images" / place(i), encoded(scene(i)))
    for i in range(9):
        if tool == "labelme": put((folder / "images" / place(i)).with_suffix(".json"), labelme_file(shapes(), f"{i}.png").encode())
    rows = "".join(cvat_image(i, subset=parts[i % 3].title()) for i in range(9))
    if tool == "cvat": put(folder / "annotations.xml", f"<annotations>{rows}</annotations>".encode())
    if tool == "labelstudio": put(folder / "all.json", json.dumps([task(i, regions(), f"/x/{place(i)}") for i in range(9)]).encode())
    assert read(folder) == {i: (("train", "valid", "test")[i % 3], BOX) for i in range(9)} and check(folder).findings == []


def test_equal_names_in_two_subsets_are_two_images(tmp_path):
    for k, part in enumerate(("train", "val")):
        for i in range(4): put(tmp_path / "data" / "images" / part / f"{i}.png", encoded(scene(10 * k + i)))
    rows = "".join(cvat_image(i, NODES if part == "train" else "", subset=part) for part in ("train", "val") for i in range(4))
    put(tmp_path / "data" / "annotations.xml", f"<annotations>{rows}</annotations>".encode())
    found = {item.name: (item.split, len(item.objects)) for item in survey(tmp_path / "data").items}
    assert found == {f"images/{part}/{i}.png": (split, n) for part, split, n in (("train", "train", 2), ("val", "valid", 0)) for i in range(4)}


# boxes around shapes

def test_shapes_with_an_area_give_the_box_around_them(tmp_path):
    near = dict(group_id=None)
    own = {0: [dict(label="cat", shape_type="polygon", points=[[8, 10], [40, 6], [30, 30]]), shape("dog", BOX["dog"])],
           1: [shape("cat", BOX["cat"]), dict(label="dog", points=[[10, 20], [60, 30], [35, 44]])],  # without a type
           2: [dict(label="cat", shape_type="circle", points=[[24, 18], [24, 30]]), *shapes()[1:]],
           3: [dict(label="cat", shape_type="rectangle", points=[[40, 30], [8, 6]], **near), *shapes()[1:]],
           4: [*shapes(), dict(label="nose", shape_type="point", points=[[3, 3]])]}
    folder = labelme(tmp_path / "data", own)
    assert read(folder) == {**expected(), 2: ("", {**BOX, "cat": (12, 6, 36, 30)})}
    assert level(folder, "error", "warning") == [("unread shapes", "4.json")]
    assert level(folder, "note") == [("polygons", "0.json"), ("polygons", "2.json")]


def test_cvat_s_shapes_give_the_box_around_them(tmp_path):
    dog = node("dog", BOX["dog"])
    own = {0: '<polygon label="cat" points="8,10;40,6;30,30"/>' + dog,
           1: '<ellipse label="cat" cx="24" cy="18" rx="16" ry="12"/>' + dog,
           2: '<mask label="cat" rle="3" left="8" top="6" width="32" height="24"/>' + dog,
           3: node("cat", (12, 2, 36, 34), rotation="90") + dog,  # about its centre
           4: NODES + '<polyline label="cat" points="1,1;2,2;3,3"/><tag label="night"/>'}
    folder = cvat(tmp_path / "data", own)
    assert read(folder) == {**expected(), 3: ("", {**BOX, "cat": (8, 6, 40, 30)})}
    assert {kind for kind, _ in level(folder)} == {"unread shapes"} and len(level(folder)) == 2
    assert {kind for kind, _ in level(folder, "note")} == {"polygons"} and len(level(folder, "note")) == 4


def test_label_studio_s_regions_give_the_box_around_them(tmp_path):
    polygon = region("cat", BOX["cat"])
    polygon["value"] = dict(points=[[12.5, 12.5], [62.5, 12.5], [40, 62.5]], polygonlabels=["cat"])
    turned = region("cat", (40, 6, 64, 38), rotation=90)  # about its upper left corner: to the left and down
    key = dict(region("nose", BOX["cat"]), type="keypointlabels", value=dict(x=1, y=1, width=0.3, keypointlabels=["nose"]))
    folder = studio(tmp_path / "data", {0: [polygon, regions()[1]], 1: [turned, regions()[1]], 2: [*regions(), key]})
    assert read(folder) == {**expected(), 1: ("", {**BOX, "cat": (8, 6, 40, 30)})}
    assert [kind for kind, _ in level(folder)] == ["unread shapes"] and len(level(folder, "note")) == 2


def test_flags_are_read(tmp_path):
    own = {0: [shape("cat", BOX["cat"], flags=dict(difficult=True, occluded=False, night=True)), shape("dog", BOX["dog"], flags=None)]}
    [first] = [item for item in survey(labelme(tmp_path / "a", own)).items if item.name == "0.png"]
    assert [(o.difficult, o.occluded) for o in first.objects] == [(True, False), (False, False)]
    own = {0: node("cat", BOX["cat"], occluded=1) + node("dog", BOX["dog"], inner='<attribute name="difficult">true</attribute>')}
    [first] = [item for item in survey(cvat(tmp_path / "b", own)).items if item.name == "images/0.png"]
    assert [(o.difficult, o.occluded) for o in first.objects] == [(False, True), (True, False)]


def test_percents_that_leave_the_image_by_rounding_are_no_finding(tmp_path):
    own = regions()
    own[1]["value"].update(x=0, width=100.0000001, y=-1e-9)
    folder = studio(tmp_path / "data", {0: own})
    assert check(folder).findings == [] and read(folder)[0][1]["dog"][::2] == (0, 64)


# what cannot be right

BAD = {
    "labelme": [dict(label="cat", shape_type="rectangle", points=points) for points in
                ([["left", 6], [40, 30]], [[8, 6]], [], None, [[8, 6], [None, 30]], [[float("nan"), 6], [40, 30]], [[8, 6, 1], [40, 30, 1]])]
    + [shape("", BOX["cat"]), shape("cat", (100, 100, 140, 140))],
    "cvat": [node("cat", box) for box in (("left", 6, 40, 30), ("nan", 6, 40, 30), ("inf", 6, 40, 30), ("", 6, 40, 30), (100, 100, 140, 140))]
    + ['<box label="cat" xtl="3"/>', '<polygon label="cat" points="1,2;3"/>', '<polygon label="cat"/>', node("", BOX["cat"])],
    "labelstudio": [region("cat", BOX["cat"], **bad) for bad in (dict(x="left"), dict(width=None), dict(y=float("nan")), dict(rotation="x"))]
    + [region("cat", (100, 100, 140, 140)), region("", BOX["cat"]), dict(region("cat", BOX["cat"]), original_width=0),
       dict(region("cat", BOX["cat"]), image_rotation=90), 3, dict(id=1, type="rectanglelabels")],
}


@pytest.mark.parametrize("tool, i", [(tool, i) for tool in TOOLS for i in range(len(BAD[tool]))])
def test_an_object_that_means_nothing_is_an_error_and_costs_its_image(tool, i, tmp_path):
    "Without the object the image would teach that there is none; after --fix what is there is right."
    bad, good = BAD[tool][i], dict(labelme=shapes(), cvat=NODES, labelstudio=regions())[tool]
    folder = MAKE[tool](tmp_path / "data", {1: good + bad if tool == "cvat" else [*good, bad]})
    [finding] = check(folder).errors
    assert "1." in finding.where and ("object 2" in finding.what or "region has no value" in finding.what)
    assert read(folder) == expected(1)
    fixed = fix(folder, tmp_path / "fixed")
    assert len(read(fixed)) == 7 and check(fixed).findings == []


def test_a_json_that_is_no_annotation(tmp_path):
    texts = {0: "{", 1: b"\xff\xfe\xfd", 2: '{"shapes": 3, "imagePath": ""}', 3: '{"shapes": [3], "imagePath": ""}', 4: '{"a": 1}', 5: None}
    folder = labelme(tmp_path / "data", texts, n=12)
    put(folder / "readme.json", b"{}")
    put(folder / "broken.json", b"{")
    assert level(folder, "error") == [("broken annotation", f"{i}.json") for i in range(4)]
    assert level(folder, "note") == [("unread json", name) for name in ("4.json", "broken.json", "readme.json")]
    assert sorted(where for kind, where in level(folder, "warning")) == [f"{i}.png" for i in range(6)]  # no annotation
    assert sorted(read(folder)) == list(range(6, 12))


def test_several_json_for_one_image_and_none_for_another(tmp_path):
    folder = labelme(tmp_path / "data", {3: []})
    put(folder / "0-copy.json", labelme_file(shapes(), "0.png").encode())
    put(folder / "gone.json", labelme_file(shapes(), "gone.png").encode())
    assert level(folder, "error") == [("missing image", "0-copy.json"), ("missing image", "gone.json")]
    assert level(folder, "warning") == [("no objects", "3.png")] and read(folder) == {**expected(), 3: ("", {})}


def test_listed_images_that_are_not_there_and_images_that_are_not_listed(tmp_path):
    for tool in ("cvat", "labelstudio"):
        folder = MAKE[tool](tmp_path / tool)
        (folder / "images" / "2.png").rename(folder / "images" / "other.png")
        source = dict(cvat="annotations.xml", labelstudio="project-1.json")[tool]
        assert level(folder) == [("missing image", source), ("no annotation", "images/other.png")]


def test_an_image_that_is_listed_twice_has_the_objects_of_both(tmp_path):
    rows = [task(i, regions({name: BOX[name]})) for i in range(8) for name in BOX]
    folder = studio(tmp_path / "data")
    put(folder / "project-1.json", json.dumps(rows).encode())
    assert read(folder) == expected() and {kind for kind, _ in level(folder)} == {"several entries"}
    put(folder / "project-1.json", json.dumps([*rows, task(0, [])]).encode())  # which says no size
    assert read(folder) == expected()


def test_two_uploads_of_one_name_are_not_one_image(tmp_path):
    folder = studio(tmp_path / "data")
    rows = [task(i, regions(), "/data/upload/1/0f9a8b7c-{}.png") for i in range(8)] + [task(0, [], "/data/upload/1/12345678-{}.png")]
    put(folder / "project-1.json", json.dumps(rows).encode())
    assert read(folder) == expected() and level(folder) == [("missing image", "project-1.json")]


def test_a_rectangle_may_have_its_label_in_a_row_of_its_own(tmp_path):
    rows = []
    for one in regions():
        plain = {key: value for key, value in one["value"].items() if key != "rectanglelabels"}
        rows += [dict(one, type="rectangle", value=plain), dict(one, type="labels", value=dict(plain, labels=[one["id"]])),
                 dict(one, type="choices", value=dict(plain, choices=["old"]))]
    folder = studio(tmp_path / "data", dict.fromkeys(range(8), rows))
    assert read(folder) == expected() and check(folder).findings == []


def test_tasks_without_annotation_are_not_background(tmp_path):
    folder = studio(tmp_path / "data")
    rows = json.loads((folder / "project-1.json").read_text())
    rows[0]["annotations"] = []
    rows[1]["annotations"][0]["was_cancelled"] = True
    rows[2]["annotations"][0]["result"] = []
    rows[3]["annotations"].append(dict(result=[]))
    put(folder / "project-1.json", json.dumps(rows).encode())
    assert read(folder) == {**expected(0, 1), 2: ("", {})}
    assert sorted({kind for kind, _ in level(folder)}) == ["no annotation", "no objects", "several entries"]


def test_json_min_is_read(tmp_path):
    folder = studio(tmp_path / "data")
    rows = [dict(image=f"/data/upload/1/0f9a8b7c-{i}.png", id=i, annotator=1, annotation_id=i,
                 label=[{**one["value"], "original_width": 64, "original_height": 48} for one in regions()]) for i in range(8)]
    put(folder / "project-1.json", json.dumps(rows).encode())
    assert read(folder) == expected() and check(folder).findings == []


def test_classes_of_whole_images_and_videos_are_refused_with_the_remedy(tmp_path):
    choice = [dict(type="choices", value=dict(choices=["cat"]))]
    with pytest.raises(CourseError, match="classes of whole images .* labels.csv"): load(studio(tmp_path / "a", dict.fromkeys(range(8), choice)))
    folder = cvat(tmp_path / "b")
    put(folder / "annotations.xml", b"<annotations><track id='0' label='cat'><box frame='0'/></track></annotations>")
    with pytest.raises(CourseError, match="export it as 'CVAT for images 1.1'"): load(folder)


@pytest.mark.parametrize("tool", TOOLS)
def test_an_image_that_was_resized_has_its_boxes_scaled(tool, tmp_path):
    folder = MAKE[tool](tmp_path / "data")
    for path in folder.rglob("*.png"): path.write_bytes(encoded(scene(int(path.stem), 96, 128)))
    doubled = {name: tuple(2 * value for value in box) for name, box in BOX.items()}
    assert read(folder) == {i: ("", doubled) for i in range(8)}
    assert {kind for kind, _ in level(folder, "error")} == {"wrong size"}


# what is not theirs

def test_the_files_may_be_named(tmp_path):
    for tool, file in (("cvat", "annotations.xml"), ("labelstudio", "project-1.json")):
        folder = MAKE[tool](tmp_path / tool)
        MAKE[tool](folder, n=2, file=f"train{file[-5:]}" if tool == "labelstudio" else "train.xml")
        assert len(survey(folder / file).items) == 8
        with pytest.raises(CourseError, match="which split is in which"): load(folder)


def test_other_data_sets_stay_what_they_are(tmp_path):
    folder = class_folders(tmp_path / "folders")
    put(folder / "cat" / "0.json", labelme_file(shapes(), "0.png").encode())
    for i in range(8): put(folder / "dog" / f"{i}.json", b'{"camera": "x"}')
    put(folder / "notes.xml", b"<notes/>")
    assert survey(folder).layout == "folder"
    folder = coco(tmp_path / "coco")
    put(folder / "list.json", b"[1, 2]")
    put(folder / "tasks.json", b'[{"data": 3, "annotations": []}]')
    assert survey(folder).layout == "coco"
    folder = voc(tmp_path / "voc")
    put(folder / "more.xml", b"<annotation/>")
    put(folder / "Annotations" / "more.xml", b"<other/>")
    assert survey(folder).layout == "voc"


def test_few_files_are_opened_to_tell_what_they_are(tmp_path, monkeypatch):
    from course_lib.files import Files
    from course_lib.annotators import Cvat, LabelMe
    folder, opened = labelme(tmp_path / "data", n=200), []
    for i in range(200): put(folder / f"{i}.xml", b"<annotation/>")
    monkeypatch.setattr(Files, "read", lambda self, name, most=-1: opened.append(name) or (folder / name).read_bytes())
    assert LabelMe(Files(folder), None).claims() and not Cvat(Files(folder), None).claims()
    assert len(opened) <= 20


@pytest.mark.parametrize("tool", TOOLS)
def test_damaged_files_are_findings_or_one_line(tool, tmp_path):
    "100 files with bytes changed or cut off: never another exception."
    folder = MAKE[tool](tmp_path / "data", n=4)
    path = dict(labelme="0.json", cvat="annotations.xml", labelstudio="project-1.json")[tool]
    good, odd = (folder / path).read_bytes(), 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        data = np.frombuffer(good, np.uint8).copy()
        data[rng.integers(0, len(data), rng.integers(1, 12))] = rng.integers(0, 256, 1)
        put(folder / path, data[:rng.integers(len(data))].tobytes() if seed % 4 == 0 else data.tobytes())
        try: found = survey(folder)
        except CourseError as why: assert "\n" not in str(why)
        else:
            odd += bool(found.findings)
            for item in found.items: assert all(np.isfinite(thing.box).all() for thing in item.objects)
    assert odd or tool == "cvat"


@pytest.mark.parametrize("tool", ["labelme", "labelstudio"])
def test_values_of_other_kinds_are_findings_or_one_line(tool, tmp_path):
    "Whatever stands in the place of a value, the rest is read."
    folder = MAKE[tool](tmp_path / "data", n=4)
    path = folder / dict(labelme="0.json", labelstudio="project-1.json")[tool]
    good = json.loads(path.read_text())
    first = good if tool == "labelme" else good[0]
    def places(value, at=()):
        yield at
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            yield from places(value[key], (*at, key))
    for at in list(places(first)):
        for other in (None, "x", -1, 1e400, [], {}, [[]], True):
            changed = json.loads(json.dumps(good))
            inner, own = changed, at if tool == "labelme" else (0, *at)
            for key in own[:-1]: inner = inner[key]
            if own: inner[own[-1]] = other
            put(path, json.dumps(changed).encode())
            try: survey(folder)
            except CourseError as why: assert "\n" not in str(why)


# ---- images that EXIF turns

@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("tool", TOOLS)
def test_boxes_of_the_stored_image_are_turned_with_it(tool, orientation, tmp_path):
    "The tool saw the file without its EXIF, as its width and height say: the box still lies on the bright object."
    box, pixels, exif = (4, 6, 24, 16), np.zeros((48, 64, 3), np.uint8), Image.Exif()
    pixels[6:16, 4:24], exif[0x0112] = 255, orientation
    own = dict(labelme=shapes, cvat=lambda boxes: node("cat", boxes["cat"]), labelstudio=regions)[tool]
    folder = MAKE[tool](tmp_path / "data", {0: own({"cat": box})})
    [path] = folder.rglob("0.png")
    path.write_bytes(encoded(pixels, "png", exif=exif))
    splits = load(folder)
    [(image, target)] = [splits[name][i] for name in NAMES for i in range(len(splits[name])) if splits[name].names[i].endswith("0.png")]
    x1, y1, x2, y2 = map(round, target["boxes"][0].tolist())
    assert image.shape == (64, 48, 3) and (image[y1:y2, x1:x2] > 200).all() and (x2 - x1) * (y2 - y1) == 200
    assert "turned boxes" in {finding.kind for finding in check(folder).findings}
