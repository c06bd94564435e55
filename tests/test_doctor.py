"The dataset doctor: every fault is named with its file, nothing crashes, and a repaired copy is sound."
import contextlib
import hashlib
import io
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image, ImageFilter
from pycocotools.coco import COCO as PyCoco
from scipy.signal import correlate2d
from torchvision.datasets import VOCDetection

from course_lib import doctor, files, layouts
from course_lib.core import CourseError, sources
from course_lib.data import DETECTION, NAMES, SINGLE, Batches, Splits, decode, load, pixels
from course_lib.doctor import Diagnosis, check, fix, near_duplicates
from course_lib.files import describe, look
from course_lib.layouts import Item, survey, write_dataset
from course_lib.notebooks import checkout
from making import BOXES, bomb, class_folders, coco, encoded, png16, put, scene, voc, voc_xml, zipped

SHARED = checkout().parent / "shared" / "data"
JPEG, PNG = encoded(scene(1), "jpeg", quality=90), encoded(scene(1))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def prints(folder):
    "What a folder or file holds, to see whether it was touched."
    files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p): hashlib.sha1(p.read_bytes()).hexdigest() for p in files}


def kinds(found): return {(f.level, f.kind) for f in found.findings}


def named(found, level="error"): return {(f.kind, f.where) for f in found.findings if f.level == level}


def attempt(act):
    "What `act` returns, or the CourseError it raises, which must be one line. Other errors fail the test."
    try: return act()
    except CourseError as error:
        assert "\n" not in str(error)
        return error


def examine(spec, tmp_path, sound=True):
    """The diagnosis, after everything was done to `spec` that can be done to data.

    Where nothing is wrong it must load. The original is not touched. The repaired copy has no error and
    loads, unless it cannot: `sound` is False."""
    before, fixed = prints(Path(spec)), tmp_path / "fixed"
    found = attempt(lambda: check(spec))
    loaded = attempt(lambda: load(spec))
    if isinstance(found, Diagnosis):
        json.dumps(found.as_dict())
        assert str(len(found.errors)) in found.table() and all(f.where and f.what for f in found.findings)
        assert found.errors or isinstance(loaded, Splits)
    if isinstance(loaded, Splits):
        for name in NAMES:
            assert len(pixels(loaded[name], 8)) == len(loaded[name]) > 0
            if loaded.task == SINGLE:
                assert sum(len(images) for images, _ in Batches(loaded[name], 8)) == len(loaded[name])
    out = attempt(lambda: fix(spec, fixed))
    assert prints(Path(spec)) == before
    if sound:
        assert out == fixed and check(fixed).errors == []
        assert isinstance(load(fixed), Splits)
    return found


# class folders

def mpo():
    first, second = Image.fromarray(scene(31)), Image.fromarray(scene(32))
    first.save(buffer := io.BytesIO(), format="mpo", save_all=True, append_images=[second])
    return buffer.getvalue()


def jpeg_with(exif): return encoded(scene(41), "jpeg", exif=exif)


# what lies in cat/: (name, content, the level and kind of what is to be said about it; None: nothing bad)
FAULTS = {
    "cut off": ("x.jpg", JPEG[:len(JPEG) // 2], ("error", "unreadable image")),
    "zero bytes": ("x.jpg", b"", ("error", "unreadable image")),
    "text": ("x.jpg", b"hello", ("error", "unreadable image")),
    "bomb": ("x.png", bomb(), ("error", "unreadable image")),
    "bomb that is whole": ("x.png", encoded(Image.new("1", (20000, 10000))), ("error", "unreadable image")),
    "png with wrong bytes": ("x.png", PNG[:80] + b"????" + PNG[84:], ("error", "unreadable image")),
    "1 x 1": ("x.png", encoded(scene(51, 1, 1)), ("warning", "odd size")),
    "very long": ("x.png", encoded(scene(52, 9, 3000)), ("warning", "odd size")),
    "png named jpg": ("x.jpg", encoded(scene(53)), ("warning", "mislabelled file")),
    "gif named jpg": ("x.jpg", encoded(scene(54), "gif"), ("warning", "mislabelled file")),
    "ppm named png": ("x.png", encoded(scene(55), "ppm"), ("warning", "mislabelled file")),
    "ico named bmp": ("x.bmp", encoded(scene(56), "ico"), ("warning", "mislabelled file")),
    "gif": ("x.gif", encoded(scene(57), "gif"), ("warning", "unknown format")),
    "heic": ("x.HEIC", b"?", ("warning", "unknown format")),
    "cmyk": ("x.jpg", encoded(Image.fromarray(scene(58)).convert("CMYK"), "jpeg"), None),
    "16-bit png": ("x.png", png16(scene(59).astype(np.uint16) * 257, 2), None),
    "two images in a jpeg": ("x.jpg", mpo(), None),
    "broken exif": ("x.jpg", jpeg_with(b"Exif\0\0garbage, as some cameras write it"), None),
    "truncated exif": ("x.jpg", jpeg_with(b"Exif\0\0II*\0\x08\0\0\0\xff\xff ?"), None),
    "upper case": ("X.JPEG", encoded(scene(64), "jpeg"), None),
    "unicode": ("ünï 猫 😀.png", encoded(scene(60)), None), "newline": ("x\ny.png", encoded(scene(61)), None),
    "not utf-8": ("\udcff\udcfe.png", encoded(scene(62)), None),
    "quotes": ("it's \"x\" & <y>.png", encoded(scene(63)), None),
    "hidden": (".x.png", b"?", None), "of a Mac": ("._x.jpg", b"?", None),
    "no image": ("Thumbs.db", b"?", None),
    "same in class": ("x.png", encoded(scene(3)), ("warning", "same image")),
    "same in class, other format": ("x.bmp", encoded(scene(3), "bmp"), ("warning", "same image")),
    "same in another class": ("x.png", encoded(scene(1003)), ("error", "same image in two classes")),
}


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_faults_in_class_folders(name, tmp_path):
    file, content, expected = FAULTS[name]
    folder = class_folders(tmp_path / "data")
    try: put(folder / "cat" / file, content)
    except (OSError, ValueError): pytest.skip("this file system does not take such a name")
    found = examine(folder, tmp_path)
    bad = {(f.level, f.kind) for f in found.findings if f.level != "note"}
    assert bad == ({expected} if expected else set())
    if expected:
        assert any("x." in (f.where + f.what).lower() for f in found.findings
                   if (f.level, f.kind) == expected)


@pytest.mark.parametrize("name",
                         ["cut off", "zero bytes", "text", "1 x 1", "cmyk", "gif named jpg", "unicode",
                          "newline", "upper case"])
def test_faults_in_a_zip(name, tmp_path):
    file, content, expected = FAULTS[name]
    archive = zipped(class_folders(tmp_path / "data"), tmp_path / "data.zip", "wrapper/",
                     [(f"wrapper/cat/{file}", content)])
    bad = {(f.level, f.kind) for f in examine(archive, tmp_path).findings if f.level != "note"}
    assert bad == ({expected} if expected else set())


def test_the_folder_of_the_issue(tmp_path):
    "All at once, with a class of one image and an empty one."
    folder, exif = class_folders(tmp_path / "data"), Image.Exif()
    exif[0x0112] = 6
    bad = {"broken é.jpg": JPEG[:len(JPEG) // 2], "zero bytes.jpg": b"", "a text 猫.jpg": b"hello"}
    odd = {"1x1.png": encoded(scene(51, 1, 1)), "c m y k.jpg": FAULTS["cmyk"][1],
           "16.png": FAULTS["16-bit png"][1],
           "turned.jpg": encoded(scene(70), "jpeg", exif=exif)}
    for file, content in {**bad, **odd}.items(): put(folder / "cat" / file, content)
    put(folder / "lonely" / "only one.png", encoded(scene(71)))
    (folder / "empty").mkdir()
    found = examine(folder, tmp_path, sound=False)
    assert named(found) == {*[("unreadable image", f"cat/{file}") for file in bad],
                            ("class too small", "lonely"), ("empty class", "empty")}
    assert ("odd size", "cat/1x1.png") in named(found, "warning")
    with pytest.raises(CourseError, match="lonely"): load(folder)
    assert named(check(tmp_path / "fixed")) == {("class too small", "lonely")}
    (folder / "lonely" / "only one.png").unlink()
    (folder / "lonely").rmdir()
    splits = load(folder)
    assert {f.where for f in splits.left_out if f.level == "error"} == {"empty",
                                                                        *[f"cat/{file}" for file in bad]}
    names = {name for part in NAMES for name in splits[part].names}
    assert names == {f"{c}/{i}.png" for c in ("cat", "dog") for i in range(8)} | {f"cat/{file}"
                                                                                  for file in odd}


def one_split(root): return class_folders(root / "train", n=9)


def missing_in_valid(root):
    for n, part in enumerate(NAMES):
        class_folders(root / part, ("cat", "dog") if part != "valid" else ("cat",), start=5000 * n)
    return root


def one_training_image(root):
    class_folders(root / "train", n=1)
    class_folders(root / "test", n=4, start=5000)
    return root


def across(root):
    for n, part in enumerate(NAMES): class_folders(root / part, start=5000 * n)
    put(root / "test" / "cat" / "same.bmp", encoded(scene(2), "bmp"))
    return root


def imbalanced(root):
    class_folders(root, ("cat",), n=40)
    return class_folders(root, ("dog",), n=5, start=5000)


def beside_splits(root):
    missing = across(root)
    (missing / "test" / "cat" / "same.bmp").unlink()
    put(root / "more" / "cat" / "x.png", encoded(scene(9000)))
    put(root / "train" / "y.png", encoded(scene(9001)))
    return root


WHOLES = {  # what is wrong with the whole: (maker, what is to be found, can it be repaired)
    "nothing": (class_folders, set(), True),
    "a train folder alone": (lambda root: one_split(root).parent, set(), True),
    "class misses valid": (missing_in_valid, {("error", "class misses a split", "dog")}, False),
    "one training image, valid to be carved": (one_training_image, {("error", "cannot be split", "splits")},
                                               False),
    "same image across splits": (across, {("error", "same image across splits", "test/cat/same.bmp")}, True),
    "imbalance": (imbalanced, {("warning", "imbalance", "dog")}, True),
    "one class": (lambda root: class_folders(root, ("cat",)), {("error", "too few classes", "classes")},
                  False),
    "two images a class": (lambda root: class_folders(root, n=2),
                           {("error", "class too small", c) for c in ("cat", "dog")}, False),
    "images beside the splits": (beside_splits,
                                 {("warning", "no split", "more/cat/x.png"),
                                  ("warning", "no class", "train/y.png")}, True),
}


@pytest.mark.parametrize("name", WHOLES)
def test_faults_of_the_whole(name, tmp_path):
    make, expected, repairable = WHOLES[name]
    found = examine(make(tmp_path / "data"), tmp_path, repairable)
    listed = {(f.level, f.kind, f.where) for f in found.findings if f.level != "note"}
    if name == "same image across splits":
        assert {entry[:2] for entry in listed} == {entry[:2] for entry in expected}
    else: assert listed == expected


NO_DATA = {
    "empty folder": lambda root: root.mkdir() or root, "an image": lambda root: put(root / "x.png", PNG),
    "images without folders": lambda root: put(root / "x.png", PNG).parent,
    "a text": lambda root: put(root / "x.zip", b"hello"),
    "an empty file": lambda root: put(root / "x.zip", b""),
    "an empty zip": lambda root: put(root / "x.zip", b"PK\5\6" + bytes(18)),
    "half a zip": lambda root: put(root / "x.zip",
                                   zipped(class_folders(root), root / "a.zip").read_bytes()[:-300]),
    "another json": lambda root: put(root / "x.json", b'{"a": 1}'),
    "half a json": lambda root: put(root / "x.json", b'{"images": ['),
    "deep json": lambda root: put(root / "x.json", b"[" * 100000),
    "no file": lambda root: root / "nowhere.json",
}


@pytest.mark.parametrize("name", NO_DATA)
def test_what_is_no_data_set_is_refused_in_one_line(name, tmp_path):
    path = NO_DATA[name](tmp_path / "data")
    for act in (check, load, lambda spec: fix(spec, tmp_path / "out")):
        with pytest.raises(CourseError) as caught: act(path)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


# folders and archives with traps

@pytest.fixture
def links(tmp_path):
    try: (tmp_path / "link").symlink_to("nowhere")
    except OSError: pytest.skip("links are not allowed here")


def test_links_in_circles_end(tmp_path, links):
    folder = class_folders(tmp_path / "data")
    for name in ("cat", "dog"): (folder / name / "up").symlink_to("..", target_is_directory=True)
    found = examine(folder, tmp_path)
    assert found.findings == [] and found.counts["cat"][""] == 8


def test_links_to_files_and_folders_are_followed_and_dangling_ones_named(tmp_path, links):
    folder = class_folders(tmp_path / "data", ("cat",))
    (folder / "dog").symlink_to(class_folders(tmp_path / "elsewhere", ("dog",), start=500) / "dog",
                                target_is_directory=True)
    (folder / "cat" / "linked.png").symlink_to(put(tmp_path / "else.png", encoded(scene(800))))
    (folder / "cat" / "gone.png").symlink_to("nowhere.png")
    found = examine(folder, tmp_path)
    assert named(found) == {("unreadable image", "cat/gone.png")} and found.counts["cat"][""] == 9


@pytest.fixture
def pipes(tmp_path):
    try: os.mkfifo(tmp_path / "pipe")
    except (AttributeError, OSError): pytest.skip("there are no pipes here")


def test_a_pipe_among_the_images_is_named_and_not_waited_for(tmp_path, pipes):
    folder = class_folders(tmp_path / "data")
    os.mkfifo(folder / "cat" / "pipe.png")
    assert named(examine(folder, tmp_path)) == {("unreadable image", "cat/pipe.png")}
    for name in ("pipe.zip", "pipe"):
        path = tmp_path / name
        if name == "pipe.zip": os.mkfifo(path)
        with pytest.raises(CourseError, match="regular file"): load(path)


@pytest.mark.parametrize("make, name",
                         [(coco, "more.json"), (voc, "ImageSets/Main/val.txt"), (voc, "labels.txt"),
                          (class_folders, "labels.csv")])
def test_annotations_behind_a_link_to_nowhere_are_named(make, name, tmp_path, links):
    folder = make(tmp_path / "data")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).symlink_to("nowhere")
    for act in (check, load):
        with pytest.raises(CourseError, match=name): act(folder)


def test_messages_about_images_are_plain():
    for content, text in ((b"hello", "not an image"), (encoded(Image.new("1", (20000, 10000))), "pixels")):
        with pytest.raises(OSError, match=text) as caught: decode(content)
        assert "BytesIO" not in str(caught.value) and "Error" not in str(caught.value)


def test_what_a_mac_adds_is_not_seen(tmp_path):
    extra = [("__MACOSX/cat/._0.png", b"?"), ("__MACOSX/._cat", b"?"), (".DS_Store", b"?"),
             ("cat/.DS_Store", b"?")]
    archive = zipped(class_folders(tmp_path / "data"), tmp_path / "mac.zip", extra=extra)
    assert examine(archive, tmp_path).findings == []
    with zipfile.ZipFile(archive) as content: content.extractall(tmp_path / "unpacked")
    assert check(tmp_path / "unpacked").findings == []


def wrong_byte(archive):
    content = bytearray(archive.read_bytes())
    content[content.find(b"IDAT") + 20] ^= 255
    archive.write_bytes(content)


def with_bits(archive, where, bit):
    "Set a bit in the header of the first file: (8, 1) encrypts it, (10, 64) is an unknown compression."
    content = bytearray(archive.read_bytes())
    content[content.find(b"PK\1\2") + where] |= bit
    content[content.find(b"PK\3\4") + where - 2] |= bit
    archive.write_bytes(content)


def hole(archive):
    content = archive.read_bytes()
    archive.write_bytes(content[:200] + bytes(2000) + content[2200:])


@pytest.mark.parametrize("damage",
                         [wrong_byte, lambda a: with_bits(a, 8, 1), lambda a: with_bits(a, 10, 64), hole],
                         ids=["wrong byte", "encrypted", "unknown compression", "hole"])
def test_damaged_files_in_a_zip_are_named(damage, tmp_path):
    archive = zipped(class_folders(tmp_path / "data"), tmp_path / "data.zip")
    damage(archive)
    found = examine(archive, tmp_path)
    assert ("unreadable image",
            "cat/0.png") in named(found) and all(kind == "unreadable image" for kind, _ in named(found))


def test_a_zip_cannot_write_elsewhere(tmp_path):
    evil = ["../evil/1.png", "cat/../../evil/2.png", "..\\evil\\3.png", "/evil/4.png"]
    archive = zipped(class_folders(tmp_path / "data"), tmp_path / "data.zip",
                     extra=[(name, encoded(scene(300 + i))) for i, name in enumerate(evil)])
    before = set(tmp_path.parent.rglob("*evil*"))
    examine(archive, tmp_path, sound=False)
    assert set(tmp_path.parent.rglob("*evil*")) - before <= set((tmp_path / "fixed").rglob("*"))


def test_fix_does_not_write_into_the_original(tmp_path):
    folder = class_folders(tmp_path / "data")
    before = prints(folder)
    for out in (folder, folder / "fixed", folder / "cat" / "fixed"):
        with pytest.raises(CourseError): fix(folder, out)
    assert prints(folder) == before and not (folder / "fixed").exists()
    with pytest.raises(CourseError): fix("streets", tmp_path / "out")


def test_fix_keeps_the_copy_in_test_and_drops_images_of_two_classes(tmp_path):
    folder = across(tmp_path / "data")
    put(folder / "train" / "dog" / "twice.png", encoded(scene(4)))  # also train/cat/4.png
    items = survey(fix(folder, tmp_path / "out")).items
    digests = {item.record.digest: item for item in items}
    assert len(items) == 3 * 16 + 1 - 1 - 1 and len(digests) == len(items)
    assert digests[describe(scene(2)).digest].split == "test" and describe(scene(4)).digest not in digests


def test_a_json_that_is_no_coco_file_is_mentioned_among_class_folders(tmp_path):
    folder = class_folders(tmp_path / "data")
    put(folder / "author.json", b'{"images": 16, "author": "me"}')
    assert named(examine(folder, tmp_path), "note") == {("unread json", "author.json")}


# VOC

ZERO, OUTSIDE = [("cat", (5, 5, 5, 30))], [("cat", (100, 100, 120, 120))]
XML = {  # Annotations/0.xml: (content, kinds of errors and warnings about it, besides 'no objects')
    "cut off": ("<annotation><obj", {"broken annotation"}), "empty": ("", {"broken annotation"}),
    "entity bomb": ('<!DOCTYPE l [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in ("ab", "bc", "cd", "de", "ef", "fg", "gh", "hi"))
                    + "]><annotation>&i;</annotation>",
                    {"broken annotation"}),
    "latin-1, undeclared": (voc_xml([("é", (1, 1, 9, 9))]).encode("latin-1"), {"broken annotation"}),
    "latin-1, declared": (b'<?xml version="1.0" encoding="latin-1"?>' +
                          voc_xml(filename="é.png").encode("latin-1"), set()),
    "utf-16": (('<?xml version="1.0" encoding="utf-16"?>' + voc_xml()).encode("utf-16"), set()),
    "byte order mark": (b"\xef\xbb\xbf" + voc_xml().encode(), set()),
    "unknown encoding": (b'<?xml version="1.0" encoding="x"?>' + voc_xml().encode(), set()),
    "nested without end": ("<annotation>" * 3000, {"broken annotation"}),
    "swapped corners": (voc_xml([("cat", (20, 20, 1, 1))]), {"swapped corners"}),
    "zero area": (voc_xml(ZERO), {"zero-area box"}),
    "thin": (voc_xml([("cat", (10, 1, 10.0000001, 30))]), {"zero-area box"}),
    "thin when clipped": (voc_xml([("cat", (1, 47.9999999, 9, 60))]), {"zero-area box"}),
    "outside": (voc_xml(OUTSIDE), {"box outside"}),
    "beyond": (voc_xml([("cat", (-5, -5, 99, 99))]), {"box outside"}),
    "text for a number": (voc_xml([("cat", ("x", 1, 5, 9))]), {"bad box"}),
    "nan": (voc_xml([("cat", ("nan", 1, 5, 9))]), {"bad box"}),
    "infinite": (voc_xml([("cat", ("-inf", 1, 5, "1e999"))]), {"bad box"}),
    "no name": (voc_xml([("", (1, 1, 5, 9))]), {"empty label"}),
    "no box": (voc_xml().replace("</annotation>", "<object><name>cat</name></object></annotation>"),
               {"bad box"}),
    "wrong size": (voc_xml(width=1), {"wrong size"}),
    "infinite size": (voc_xml(width="1e999"), {"broken annotation"}),
    "nan size": (voc_xml(width="nan"), {"broken annotation"}),
    "no size": (voc_xml(width="", height=""), set()),
    "another file's name": (voc_xml(filename="1.png"), set()),
    "a path as name": (voc_xml(filename="../../x/0.png"), set()),
    "no objects": (voc_xml([]), set()), "fractions": (voc_xml([("cat", (0.5, 1.25, 20.75, 30))]), set()),
    "one class under two names": (voc_xml([("Cat ", (1, 1, 9, 9))]),
                                  {"unknown label", "class too small", "imbalance"}),
}


@pytest.mark.parametrize("entity", ['<!ENTITY % x SYSTEM "file:///etc/passwd"> %x;', '<!ENTITY x "cat">', '<!ENTITY x SYSTEM "file:///etc/passwd">'])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_an_xml_with_entities_is_refused_by_its_name(entity, encoding, tmp_path):
    text = f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE annotation [{entity}]>{voc_xml()}'
    findings = check(voc(tmp_path / "data", xml={3: text.encode(encoding)})).errors
    assert {f.where for f in findings if f.kind == "broken annotation" and "defines entities" in f.what} == {"Annotations/3.xml"}


@pytest.mark.parametrize("name", XML)
def test_faults_in_voc(name, tmp_path):
    xml, expected = XML[name]
    found = examine(voc(tmp_path / "data", xml={0: xml}), tmp_path, sound=name != "one class under two names")
    assert {f.kind for f in found.findings if f.level != "note"} - {"no objects", "no annotation"} == expected
    about = [f for f in found.findings
             if f.kind in expected - {"class too small", "imbalance", "unknown label"}]
    assert all(f.where == "Annotations/0.xml" for f in about)


def test_a_thin_box_is_left_out_and_named(tmp_path):
    splits = load(voc(tmp_path / "data", xml={0: voc_xml([*BOXES, ("cat", (10, 1, 10.0000001, 30))])}))
    boxes = np.concatenate([target["boxes"] for part in NAMES for target in splits[part].targets])
    assert (boxes[:, 2:] > boxes[:, :2]).all() and len(boxes) == 24
    [finding] = splits.left_out
    assert finding.where == "Annotations/0.xml" and "object 2" in finding.what


def pairs(folder): return {item.source: item.name for item in survey(folder).items}


def test_voc_images_in_sub_folders_keep_their_own_annotations(tmp_path):
    folder, expected = tmp_path / "data", {}
    for i in range(12):
        name = f"{'ab'[i % 2]}/{i // 2}"
        put(folder / "JPEGImages" / f"{name}.png", encoded(scene(i)))
        put(folder / "Annotations" / f"{name}.xml", voc_xml(filename=f"{i // 2}.png").encode())
        expected[f"Annotations/{name}.xml"] = f"JPEGImages/{name}.png"
    lists = dict(test=["a/0", "b/1", "a/2"],
                 train=["a/1", "a/3", "a/4", "a/5", "b/0", "b/2", "b/3", "b/4", "b/5"])
    for name, stems in lists.items():
        put(folder / "ImageSets" / "Main" / f"{name}.txt", "\n".join(stems).encode())
    assert examine(folder, tmp_path).findings == [] and pairs(folder) == expected
    assert sorted(load(folder).test.names) == ["JPEGImages/a/0.png", "JPEGImages/a/2.png",
                                               "JPEGImages/b/1.png"]
    (folder / "JPEGImages" / "b" / "0.png").unlink()  # that of a/0 does not stand in for it
    assert ("missing image", "Annotations/b/0.xml") in named(check(folder))


def test_voc_pairs_by_name_then_by_filename_and_each_image_once(tmp_path):
    folder = voc(tmp_path / "data",
                 xml={0: voc_xml(filename="C:\\scans\\p0.png"), 1: voc_xml(filename="2.png")})
    (folder / "JPEGImages" / "0.png").rename(folder / "JPEGImages" / "p0.png")
    (folder / "JPEGImages" / "1.png").unlink()                     # its xml names the image of another
    put(folder / "JPEGImages" / "3.jpg", JPEG)                     # 3.xml says 3.png
    put(folder / "JPEGImages" / "4.jpg", JPEG)
    put(folder / "Annotations" / "4.xml", voc_xml(filename="4").encode())
    put(folder / "Annotations" / "0a.xml", voc_xml(filename="p0.png").encode())
    found = examine(folder, tmp_path)
    where = {f.where: f.what for f in found.errors}
    assert set(where) == {"Annotations/1.xml", "Annotations/4.xml", "Annotations/0a.xml"}
    assert "already the image of Annotations/2.xml" in where["Annotations/1.xml"]
    assert "4.jpg or" in where["Annotations/4.xml"]
    assert pairs(folder)["Annotations/0.xml"] == "JPEGImages/p0.png"
    assert pairs(folder)["Annotations/3.xml"] == "JPEGImages/3.png"


def turned(orientation, width=64, height=48, kind="png"):
    "An image that EXIF turns, with a bright object at (4, 6, 24, 16) as stored."
    image, exif = np.zeros((height, width, 3), np.uint8), Image.Exif()
    image[6:16, 4:24] = 255
    exif[0x0112] = orientation
    return encoded(image, kind, exif=exif)


@pytest.mark.parametrize("layout, kind", [("voc", "png"), ("voc", "tiff"), ("coco", "png"), ("coco", "tiff")])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_of_the_stored_image_are_turned_with_it(layout, kind, orientation, tmp_path):
    if layout == "voc": folder = voc(tmp_path / "data", xml={0: voc_xml([("cat", (4, 6, 24, 16))])})
    else: folder = coco(tmp_path / "data", edit=edit("annotations", 0, "bbox", to=[4, 6, 20, 10]))
    name = "JPEGImages/0.png" if layout == "voc" else "images/0.png"
    put(folder / name, turned(orientation, kind=kind))
    found = survey(folder)
    [item] = [item for item in found.items if item.name == name]
    x1, y1, x2, y2 = map(int, item.objects[0].box)
    assert found.image(item)[y1:y2, x1:x2].min() == 255 and (x2 - x1, y2 - y1) == (10, 20)
    assert {f.kind for f in found.findings} == {"turned boxes"}
    again = survey(fix(folder, tmp_path / "fixed"))  # says the upright size
    assert {"turned boxes", "turned image", "wrong size"}.isdisjoint(f.kind for f in again.findings)
    assert {item.objects[0].box for item in again.items
            if "EXIF" in item.record.note} == {item.objects[0].box}


@pytest.mark.parametrize("orientation", [2, 3, 4])
@pytest.mark.parametrize("stored", [True, False])
def test_boxes_of_mirrored_images_are_taken_as_those_of_the_other_images(orientation, stored, tmp_path):
    size = dict(width=64, height=48) if stored else dict(width=48, height=64)  # what is said of an image on its side
    folder = voc(tmp_path / "data", xml={0: voc_xml([("cat", (4, 6, 24, 16))]), 1: voc_xml([("cat", (4, 6, 24, 16))], **size)})
    put(folder / "JPEGImages" / "0.png", turned(orientation))
    put(folder / "JPEGImages" / "1.png", turned(6))
    found = survey(folder)
    [item] = [item for item in found.items if item.name == "JPEGImages/0.png"]
    x1, y1, x2, y2 = map(int, item.objects[0].box)
    assert (found.image(item)[y1:y2, x1:x2].min() == 255) == stored and (x2 - x1, y2 - y1) == (20, 10)
    assert {f.kind for f in found.findings} == {"turned boxes"}


FRAMES = {  # (image, what the xml says, the kinds of warnings); its boxes are left as they are
    "upright": (turned(6), voc_xml(width=48, height=64), set()),
    "square": (turned(6, 64, 64), voc_xml(width=64, height=64), {"turned image"}),
    "upside down": (turned(3), voc_xml(), {"turned image"}),
    "no size": (turned(8), voc_xml(width="", height=""), {"turned image"}),
    "another size": (turned(6), voc_xml(width=9, height=9), {"turned image", "wrong size"}),
    "no such orientation": (turned(9), voc_xml(), set()),
}


@pytest.mark.parametrize("name", FRAMES)
def test_boxes_of_turned_images_are_as_written_or_said_to_be_unsure(name, tmp_path):
    image, xml, expected = FRAMES[name]
    folder = voc(tmp_path / "data", xml={0: xml})
    put(folder / "JPEGImages" / "0.png", image)
    found = examine(folder, tmp_path)
    warned = [f for f in found.of("warning") if f.kind != "low information"]  # it is a white box on black
    assert {f.kind for f in warned} == expected and all(f.where == "Annotations/0.xml" for f in warned)
    [item] = [item for item in survey(folder).items if item.name == "JPEGImages/0.png"]
    assert [thing.box for thing in item.objects] == [box for _, box in BOXES]


def test_a_width_that_is_no_number_is_said_in_plain_words(tmp_path):
    found = check(voc(tmp_path / "data", xml={0: voc_xml(width="inf"), 1: voc_xml(width="nan")}))
    assert [f.what.split(")")[0] for f in found.errors] == [
        f"cannot be read (it says that the image has {width} x 48 pixels" for width in ("inf", "nan")]


def test_a_namespace_is_at_least_seen(tmp_path):
    xml = voc_xml().replace("<annotation>", '<annotation xmlns="http://example.org">')
    found = examine(voc(tmp_path / "data", xml={0: xml}), tmp_path)
    assert found.findings == [] or ("no objects", "JPEGImages/0.png") in named(found, "warning")


def test_gaps_in_voc(tmp_path):
    folder = voc(tmp_path / "data", lists=dict(train=range(6), val=range(6, 9), test=[9, 10, 99]))
    (folder / "JPEGImages" / "0.png").unlink()
    (folder / "Annotations" / "1.xml").unlink()
    put(folder / "JPEGImages" / "2.png", b"")
    found = examine(folder, tmp_path)
    assert named(found) == {("missing image", "Annotations/0.xml"), ("unreadable image", "JPEGImages/2.png"),
                            *[("missing image", f"ImageSets/Main: {stem}") for stem in ("0", "1", "99")]}
    assert named(found, "warning") >= {("no annotation", "JPEGImages/1.png"),
                                       ("no split", "JPEGImages/11.png")}
    splits = load(folder)
    assert [len(splits[part]) for part in NAMES] == [3, 3, 2]


def test_labels_that_a_list_does_not_know(tmp_path):
    folder = voc(tmp_path / "data", xml={0: voc_xml([*BOXES, ("cow", (1, 1, 9, 9))])})
    put(folder / "labels.txt", "cat\r\ndog\r\nvélo\n".encode("latin-1"))
    found = examine(folder, tmp_path, sound=False)
    assert ("unknown label", "Annotations/0.xml") in named(found)
    assert ("class too small", "vélo") in named(found, "warning")  # the other classes can be learnt
    assert "JPEGImages/0.png" not in [item.name for item in survey(folder).items]  # its cow would be background


@pytest.mark.parametrize("content", ["é\n".encode("latin-1"), b"\xff\xfe\0\0", b"\n\n", b"nowhere 1\n"])
def test_odd_lists_in_voc(content, tmp_path):
    folder = voc(tmp_path / "data", lists=dict(train=range(6), val=range(6, 9), test=range(9, 12)))
    path = folder / "ImageSets" / "Main" / "train.txt"
    path.write_bytes(content + path.read_bytes())
    examine(folder, tmp_path)


# tables of labels

ROWS = [f"{i}.png,{'cat dog'.split()[i % 2]}" for i in range(12)]


def table(root, *lines, end="\n"):
    "Twelve images and a labels.csv of these lines."
    for i in range(12): put(root / f"{i}.png", encoded(scene(i)))
    put(root / "labels.csv", end.join(lines).encode())
    return root


TABLES = {
    "spaces after": ["file, labels", *[row.replace(",", ", ") for row in ROWS]],
    "spaces around": [" file , labels ", *[row.replace(",", "\t ,  ") + " " for row in ROWS]],
    "byte order mark": ["\ufefffile,labels", *ROWS],
    "semicolons": ["file;labels", *[row.replace(",", " ; ") for row in ROWS]],
    "a column without name": [",file,labels", *[f"{i},{row}" for i, row in enumerate(ROWS)]],
    "empty cells at the end": ["file,labels", *[row + ",," for row in ROWS]],
    "blank lines": ["", "file,labels", "", *[row + "\n" for row in ROWS], ""],
    "0 and 1": ["file, cat ,dog", *[f"{i}.png , {1 - i % 2},{i % 2} " for i in range(12)]],
}


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_with_spaces_and_all_line_ends(name, end, tmp_path):
    folder = table(tmp_path / "data", *TABLES[name], end=end)
    assert examine(folder, tmp_path).findings == []
    expected = {f"{i}.png": ("cat dog".split()[i % 2],) for i in range(12)}
    assert {item.name: item.labels for item in survey(folder).items} == expected


@pytest.mark.parametrize("more, classes, warned",
                         [("", {"house", "cat", "dog"}, True), (";dog", {"house cat", "cat", "dog"}, False)])
def test_spaces_part_labels_only_where_no_row_has_another_mark(more, classes, warned, tmp_path):
    folder = table(tmp_path / "data", "file,labels", f"0.png,house cat{more}", *ROWS[1:])
    assert ("labels with spaces" in [f.kind for f in check(folder).findings]) == warned
    assert set(survey(folder).classes) == classes


@pytest.mark.parametrize("labels", [("stop sign",), ("stop sign", "cat"), ("cat",)])
def test_labels_with_spaces_survive_writing(labels, tmp_path):
    folder = table(tmp_path / "data", "file,labels", f"0.png,{';'.join(labels)};", *ROWS[1:])
    fix(folder, tmp_path / "out")
    assert sorted(sorted(item.labels) for item in survey(tmp_path / "out").items) == sorted(
        sorted(item.labels) for item in survey(folder).items)


def test_a_table_refuses_labels_with_marks(tmp_path):
    items = [Item("1.png", label="red, green")]
    with pytest.raises(CourseError, match="red, green"):
        write_dataset(items, lambda item: encoded(scene(0)), "csv", tmp_path / "out")
    assert not any(tmp_path.iterdir())


BAD_ROWS = {  # a row that takes the place of that of 5.png, in line 7
    "too few cells": "5.png", "too many cells": "5.png,cat,dog", "no such image": "99.png,cat",
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_by_file_and_line(name, tmp_path):
    found = examine(table(tmp_path / "data", "file,labels", *ROWS[:5], BAD_ROWS[name], *ROWS[6:]), tmp_path)
    assert [(f.where, f.what.split(":")[0]) for f in found.errors] == [("labels.csv", "line 7")]
    spaced = check(table(tmp_path / "spaced", "file,labels", *ROWS[:5], "", "", BAD_ROWS[name], *ROWS[6:]))
    assert [f.what.split(":")[0] for f in spaced.errors] == ["line 9"]


@pytest.mark.parametrize("row", ['"5.png,cat', '5.png,"cat" x', "5.png," + "x" * 200000],
                         ids=["open quote", "text after a quote", "huge"])
def test_tables_that_are_no_csv_are_refused_with_file_and_line(row, tmp_path):
    folder = table(tmp_path / "data", "file,labels", *ROWS[:5], row, *ROWS[6:])
    for act in (check, load):
        with pytest.raises(CourseError, match="'labels.csv' cannot be read after line 6") as caught:
            act(folder)
        assert "\n" not in str(caught.value)


def test_a_column_that_comes_twice_is_refused(tmp_path):
    with pytest.raises(CourseError, match="several columns 'cat'"):
        load(table(tmp_path / "data", "file,cat,cat", "0.png,0,1"))


@pytest.mark.parametrize("first, second",
                         [("file,labels", "0.png,dog"), ("file,labels,split", "0.png,cat,test")])
def test_a_image_with_two_answers_is_an_error_and_is_not_loaded(first, second, tmp_path):
    folder = table(tmp_path / "data", first, *[row + ",train" * first.count("split") for row in ROWS], second)
    found = examine(folder, tmp_path)
    [finding] = [f for f in found.errors if f.kind == "contradiction"]
    assert finding.where == "labels.csv" and all(text in finding.what
                                                 for text in ("0.png", "line 2", "line 14"))
    with pytest.raises(CourseError, match="0.png"): load(folder)
    assert len(survey(tmp_path / "fixed").items) == 11  # neither row is believed


def test_the_same_row_twice_is_no_contradiction(tmp_path):
    folder = table(tmp_path / "data", "file,labels", *ROWS, ROWS[0])
    assert named(examine(folder, tmp_path)) == {("broken annotation", "labels.csv")}
    assert sum(len(load(folder)[part]) for part in NAMES) == 12


def test_copies_with_other_labels_in_a_table_are_an_error_and_are_dropped(tmp_path):
    folder = table(tmp_path / "data", "file,labels", *ROWS, "copy.png,dog", "same.png,dog")
    for name, i in (("copy", 0), ("same", 1)): put(folder / f"{name}.png", encoded(scene(i)))
    found = examine(folder, tmp_path)
    assert named(found) == {("same image with other labels", "0.png")} and ("same image",
                                                                            "1.png") in named(found,
                                                                                              "warning")
    assert len(survey(tmp_path / "fixed").items) == 11


# COCO

def edit(*path, to=None, drop=False):
    "A function that changes one place of a COCO file's content."
    def change(content):
        place = content
        for key in path[:-1]: place = place[key]
        if drop: del place[path[-1]]
        else: place[path[-1]] = to
    return change


BOX, IMAGE, LABEL = ("annotations", 0, "bbox"), ("images", 0), ("categories", 0)
COCO = {  # (change, an error's kind, or '' where nothing is wrong)
    **{f"bbox {value!r}": (edit(*BOX, to=value), "bad box")
       for value in (None, "abcd", [1, 2], {"x": 1}, [[1], 2, 3, 4], ["x"] * 4, 7,
                                                                         [0, 0, float("inf"), 3],
                     [float("nan")] * 4)},
    "bbox of huge numbers": (edit(*BOX, to=[0, 0, 10**400, 3]), "bad box"),
    "bbox of texts": (edit(*BOX, to=["1", "2", "3", "4"]), ""),
    "no bbox": (edit(*BOX, drop=True), "bad box"),
    "negative size": (edit(*BOX, to=[20, 20, -10, -10]), "swapped corners"),
    "no size": (edit(*BOX, to=[20, 20, 0, 10]), "zero-area box"),
    "outside": (edit(*BOX, to=[200, 200, 10, 10]), "box outside"),
    "image without id": (edit(*IMAGE, "id", drop=True), "broken annotation"),
    "image without name": (edit(*IMAGE, "file_name", drop=True), "broken annotation"),
    "image null": (edit(*IMAGE), "broken annotation"),
    "image a list": (edit(*IMAGE, to=[1]), "broken annotation"),
    "image name null": (edit(*IMAGE, "file_name"), "broken annotation"),
    "image name a number": (edit(*IMAGE, "file_name", to=5), "missing image"),
    "image name empty": (edit(*IMAGE, "file_name", to=""), "missing image"),
    "missing image": (edit(*IMAGE, "file_name", to="x.png"), "missing image"),
    "repeated id": (edit("images", 1, "id", to=0), "contradiction"),
    "id a list": (edit(*IMAGE, "id", to=[1]), "broken annotation"),
    "annotation null": (edit("annotations", 0), "broken annotation"),
    "unknown image": (edit("annotations", 0, "image_id", to=99), "missing image"),
    "image_id a dict": (edit("annotations", 0, "image_id", to={}), "broken annotation"),
    "category_id a list": (edit("annotations", 0, "category_id", to=[1]), "broken annotation"),
    "unknown category": (edit("annotations", 0, "category_id", to=99), "empty label"),
    "no category": (edit("annotations", 0, "category_id", drop=True), "broken annotation"),
    "category without name": (edit(*LABEL, "name", drop=True), "broken annotation"),
    "category without id": (edit(*LABEL, "id", drop=True), "broken annotation"),
    "category null": (edit(*LABEL), "broken annotation"),
    "category a number": (edit(*LABEL, "name", to=5), ""),
    "crowd": (edit("annotations", 0, "iscrowd", to=1), ""),
    "control characters": (edit(*LABEL, "name", to="c\1at"), ""),
    "no size said": (edit(*IMAGE, "width", drop=True), ""),
    "size nan": (edit(*IMAGE, "width", to=float("nan")), ""),
    **{f"path {name}": (edit(*IMAGE, "file_name", to=name), "") for name in (
        "./images/0.png", "../images/0.png", "/data/images/0.png", "images\\0.png", "images/0.png")},
}


@pytest.mark.parametrize("name", COCO)
def test_faults_in_coco(name, tmp_path):
    change, kind = COCO[name]
    nothing_left = name in ("category without name", "category without id", "category null")  # a cat in each image
    found = examine(coco(tmp_path / "data", edit=change), tmp_path, sound=not nothing_left)
    errors = {f.kind for f in found.errors}
    assert kind in errors if kind else not errors
    about = [f for f in found.errors if not (nothing_left and f.kind == "too few classes")]
    assert all("annotations.json" in f.where for f in about)


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, "x", 5, {"a": 1}, []])
def test_coco_without_its_lists(key, value, tmp_path):
    examine(coco(tmp_path / "data", edit=edit(key, to=value)), tmp_path, sound=False)


DAMAGED = {"cut off": lambda text: text[:len(text) // 2], "cut off late": lambda text: text[:-3],
           "a list is missing": lambda text: text.replace('"annotations"', '"notes"'),
           "images a dictionary": lambda text: json.dumps({**json.loads(text), "images": {}})}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_coco_file_is_named_alone_and_among_others(name, tmp_path):
    folder = coco(tmp_path / "data")
    text = (folder / "annotations.json").read_text()
    put(folder / "annotations.json", DAMAGED[name](text).encode())
    for spec in (folder, folder / "annotations.json"):
        for act in (check, load):
            with pytest.raises(CourseError, match="annotations.json") as caught: act(spec)
            assert "damaged" in str(caught.value) and "\n" not in str(caught.value)
    several(folder, ("train", "val", "test"), text)
    put(folder / "test.json", DAMAGED[name]((folder / "test.json").read_text()).encode())
    (folder / "annotations.json").unlink()
    with pytest.raises(CourseError, match="'test.json' is a damaged"): load(folder)


def several(folder, names, text):
    "The content of a COCO file, divided among several of these names."
    content, n = json.loads(text), 12 // len(names)
    for k, name in enumerate(names):
        parts = dict(images=content["images"][n * k:n * (k + 1)],
                     annotations=[a for a in content["annotations"] if a["image_id"] // n == k])
        put(folder / f"{name}.json", json.dumps({**content, **parts}).encode())


def several_alone(root, *names):
    folder = coco(root)
    several(folder, names, (folder / "annotations.json").read_text())
    (folder / "annotations.json").unlink()
    return folder


@pytest.mark.parametrize("names",
                         [("train", "valid", "test"), ("train", "val", "test"),
                          ("train/_annotations.coco", "valid/_annotations.coco", "test/_annotations.coco"),
                                   ("annotations/instances_train2017", "annotations/instances_val2017",
                                    "annotations/instances_test2017")])
def test_names_of_jsons_say_their_splits(names, tmp_path):
    splits = load(several_alone(tmp_path / "data", *names))
    assert [sorted(splits[part].names)
            for part in NAMES] == [sorted(f"images/{4 * k + i}.png" for i in range(4)) for k in range(3)]


@pytest.mark.parametrize("names, unclear",
                         [(("a", "b"), ("a.json", "b.json")), (("train", "extra", "test"), ("extra.json",)),
                                            (("train", "train_more", "test"),
                                             ("train.json", "train_more.json"))])
def test_jsons_whose_split_is_unclear_are_named(names, unclear, tmp_path):
    folder = several_alone(tmp_path / "data", *names)
    for act in (check, load, lambda spec: fix(spec, tmp_path / "out")):
        with pytest.raises(CourseError) as caught: act(folder)
        assert f"? {', '.join(unclear)}:" in str(caught.value) and "\n" not in str(caught.value)


def test_the_path_of_a_json_means_that_one(tmp_path):
    "Also where others have the same name in other folders."
    folder = several_alone(tmp_path / "data",
                           *(f"{part}/_annotations.coco" for part in ("train", "valid", "test")))
    items = survey(folder / "valid" / "_annotations.coco.json").items
    assert [(item.name, item.split) for item in items] == [(f"images/{i}.png", "") for i in range(4, 8)]


def test_what_coco_publishes_beside_its_boxes_is_not_read(tmp_path):
    folder = several_alone(tmp_path / "data",
                           *(f"annotations/instances_{part}2017" for part in ("train", "val", "test")))
    before = load(folder).fingerprint
    put(folder / "annotations" / "captions_train2017.json", b'{"images": [], "annotations": []}')
    put(folder / "annotations" / "person_keypoints_train2017.json",
        (folder / "annotations" / "instances_train2017.json").read_bytes())
    assert load(folder).fingerprint == before


def test_crowds_are_difficult(tmp_path):
    items = survey(coco(tmp_path / "data", edit=edit("annotations", 0, "iscrowd", to=1))).items
    assert [thing.difficult for item in items for thing in item.objects].count(True) == 1


def test_several_jsons_are_splits(tmp_path):
    folder = coco(tmp_path / "data", n=9)
    content = json.loads((folder / "annotations.json").read_text())
    (folder / "annotations.json").unlink()
    for k, name in enumerate(("instances_train2017", "instances_val2017", "instances_test")):
        images = content["images"][3 * k:3 * k + 3]
        notes = [a for a in content["annotations"] if a["image_id"] // 3 == k]
        text = json.dumps(dict(images=images, annotations=notes, categories=content["categories"]))
        put(folder / "annotations" / f"{name}.json", text.encode("utf-8-sig"))
    put(folder / "annotations" / "notes.json", b'{"author": "me"}')
    assert examine(folder, tmp_path).findings == []
    splits = load(folder)
    assert [sorted(splits[part].names) for part in NAMES] == [[f"images/{3 * k + i}.png" for i in range(3)]
                                                              for k in range(3)]


def test_one_json_of_a_coco_folder(tmp_path):
    "Its images are not below it, but beside its folder."
    folder = coco(tmp_path / "data", name="annotations/instances.json")
    assert load(folder / "annotations" / "instances.json").fingerprint == load(folder).fingerprint
    flat = coco(tmp_path / "flat")
    assert load(flat / "annotations.json").fingerprint == load(flat).fingerprint


def by_torchvision(folder, name):
    "The corners of an annotation's boxes as torchvision's reader hands them on."
    tree = ElementTree.parse(folder / "Annotations" / f"{name}.xml").getroot()
    things = VOCDetection.parse_voc_xml(tree)["annotation"]["object"]
    return [tuple(float(thing["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")) for thing in things]


def by_pycocotools(folder, number):
    "The boxes of an image, x1, y1, x2, y2, by pycocotools."
    with contextlib.redirect_stdout(io.StringIO()): found = PyCoco(next(folder.rglob("*.json")))
    return [(x, y, x + w, y + h) for x, y, w, h in (row["bbox"] for row in found.imgToAnns[number])]


WHOLE = (("cat", (1, 1, 64, 48)), ("dog", (0, 0, 64, 48)), ("dog", (5.5, 6.25, 30, 31)))  # from 1, from 0


def test_corners_of_voc_are_as_written_here_in_torchvision_and_in_the_copy(tmp_path):
    "Whichever way of counting a tool has used, nothing is shifted."
    folder = voc(tmp_path / "data", xml={0: voc_xml(WHOLE)})
    copy = fix(folder, tmp_path / "copy")
    for place in (folder, copy):
        [item] = [item for item in survey(place).items if item.name.endswith("/0.png")]
        assert [thing.box for thing in item.objects] == [box for _, box in WHOLE] == by_torchvision(place, "0")


def test_boxes_of_coco_are_those_of_pycocotools_and_of_the_copy(tmp_path):
    boxes = [[0, 0, 64, 48], [5.5, 6.25, 20, 30]]
    rows = [dict(id=i, image_id=0, category_id=1 + i, bbox=box) for i, box in enumerate(boxes)]
    folder = coco(tmp_path / "data", edit=lambda content: dict(
        content, annotations=rows + [row for row in content["annotations"] if row["image_id"]]))
    copy = fix(folder, tmp_path / "copy")
    for place in (folder, copy):
        [item] = [item for item in survey(place).items if Path(item.name).stem == "0"]
        number = next(row["id"] for row in json.loads(next(place.rglob("*.json")).read_text())["images"]
                      if Path(row["file_name"]).stem == "0")
        assert [thing.box for thing in item.objects] == by_pycocotools(place, number)


# near duplicates

def photo(seed):
    "An image with structure at all scales, like a photo."
    rng = np.random.default_rng(seed)
    image = 0
    for n, weight in ((3, 0.6), (8, 0.3), (40, 0.1)):
        small = Image.fromarray(rng.integers(0, 256, (n, n, 3), dtype=np.uint8))
        image = image + weight * np.asarray(small.resize((160, 120), Image.Resampling.BICUBIC), float)
    return np.clip(image, 0, 255).astype(np.uint8)


def saved(image, kind="png", **how):
    return np.asarray(Image.open(io.BytesIO(encoded(image, kind, **how))).convert("RGB"))


def resized(image, width, height): return np.asarray(Image.fromarray(image).resize((width, height)))


CHANGES = {
    "jpeg, quality 60": lambda p: saved(p, "jpeg", quality=60),
    "jpeg, quality 30": lambda p: saved(p, "jpeg", quality=30),
    "webp": lambda p: saved(p, "webp", quality=70), "half the size": lambda p: resized(p, 80, 60),
    "twice the size": lambda p: resized(p, 320, 240),
    "other shape": lambda p: resized(p, 150, 120), "cropped": lambda p: p[2:-2, 2:-2].copy(),
    "one pixel": lambda p: np.roll(p, 1, 1),
    "brighter": lambda p: np.clip(p.astype(int) + 8, 0, 255).astype(np.uint8),
}


def looks_like(found): return found.what.split(":")[0].removeprefix("looks like ")


def check_near_duplicates(change, folder, count=3):
    "The changed copies are found, and nothing else."
    for i in range(24): put(folder / ("cat", "dog")[i % 2] / f"{i}.png", encoded(photo(i)))
    for i in range(count): put(folder / "cat" / f"near {i}.png", encoded(change(photo(2 * i))))
    pairs = [{f.where, looks_like(f)} for f in check(folder).findings
             if f.kind.startswith("near duplicate")]
    assert sorted(map(sorted, pairs)) == [[f"cat/{2 * i}.png", f"cat/near {i}.png"] for i in range(count)]


@pytest.mark.parametrize("name", CHANGES)
def test_near_duplicates_are_found(name, tmp_path): check_near_duplicates(CHANGES[name], tmp_path / "data")


def test_different_images_are_no_near_duplicates(tmp_path):
    "Photos, mirrored ones, plain colours, drawings on white."
    def sheet(i): return np.where(scene(i)[..., :1] > 235, scene(i), 255)

    for i in range(60): put(tmp_path / "data" / "cat" / f"{i}.png", encoded(photo(i)))
    for i in range(10):
        put(tmp_path / "data" / "dog" / f"mirrored {i}.png", encoded(photo(i)[:, ::-1].copy()))
        put(tmp_path / "data" / "dog" / f"plain {i}.png", encoded(np.full((48, 64, 3), 25 * i, np.uint8)))
        put(tmp_path / "data" / "dog" / f"sheet {i}.png", encoded(sheet(i)))
    assert [f for f in check(tmp_path / "data").findings if "duplicate" in f.kind] == []


def test_many_that_look_alike_are_compared_quickly():
    "The frames of a camera that does not move: each is read once, and the pairs do not multiply."
    rng, base, reads = np.random.default_rng(0), photo(0).astype(int), []
    frames = [np.clip(base + rng.integers(-4, 5, base.shape), 0, 255).astype(np.uint8) for _ in range(300)]
    items = [Item(str(i), record=describe(frame)) for i, frame in enumerate(frames)]
    found = SimpleNamespace(image=lambda item: reads.append(item.name) or frames[int(item.name)])
    pairs = near_duplicates(items, found)
    assert {i for pair in pairs for i in pair} == set(range(300)) and all(a != b for a, b in pairs)
    assert len(reads) == 300 and len(pairs) < 3000


def test_near_duplicates_across_splits_are_said_to_be(tmp_path):
    for n, part in enumerate(NAMES): class_folders(tmp_path / "data" / part, n=4, start=5000 * n)
    put(tmp_path / "data" / "test" / "cat" / "near.jpg", encoded(scene(2), "jpeg", quality=80))
    pairs = {(f.kind, *sorted([f.where, looks_like(f)])) for f in check(tmp_path / "data").findings}
    [(kind, test, other)] = pairs
    assert (kind, test) == ("near duplicate across splits", "test/cat/near.jpg") and other.endswith("2.png")


def test_a_burst_that_load_would_tear_apart_is_said_to_be_one(tmp_path):
    "Frames of a hand that moves a little; data without splits is looked at as `load` divides it."
    folder = class_folders(tmp_path / "data", n=30)
    for i in range(12): put(folder / "cat" / f"burst {i}.png", encoded(np.roll(photo(7), 2 * i, 1)))
    put(folder / "dog" / "broken.png", b"?")  # an error of another kind changes nothing
    splits = load(folder)
    split = {name: part for part in NAMES for name in splits[part].names}
    found = [f for f in check(folder).of("warning") if f.kind.startswith("near duplicate")]
    assert len(found) >= 11 and all("burst" in f.where and "burst" in f.what for f in found)
    for f in found:
        torn = split[f.where] != split[looks_like(f)]
        assert f.kind == "near duplicate" + " across splits" * torn and ("?group=" in f.what) == torn
    assert any("?group=" in f.what for f in found)


def test_no_pair_of_like_thumbnails_is_missed():
    "The tree finds what a comparison of all with all finds."
    rng = np.random.default_rng(0)
    base = [np.asarray(Image.fromarray(scene(i)).resize((8, 8))).ravel().astype(float) for i in range(1200)]
    near = [base[i] + rng.normal(0, noise, 192) for i, noise in zip(range(300), np.linspace(1, 25, 300))]
    thumbs = np.clip([*base, *near, np.full(192, 90), np.full(192, 91)], 0, 255).astype(np.uint8)
    found = doctor._like_thumbnails([thumb.tobytes().hex() for thumb in thumbs], 0.97, 20)
    values = thumbs.astype(float)
    apart = [np.abs(values[i + 1:] - row).mean(1) < 20 for i, row in enumerate(values)]
    with np.errstate(invalid="ignore"): correlated = np.corrcoef(values) > 0.97
    expected = [(i, i + 1 + int(k)) for i, row in enumerate(apart) for k in np.flatnonzero(row & correlated[i, i + 1:])]
    assert sorted(found) == expected and 150 < len(expected) < 300


# how images and boxes look

def grainy(seed):
    "A photo with the grain that sharp images have."
    return np.clip(photo(seed) + np.random.default_rng(seed).normal(0, 9, (120, 160, 1)), 0, 255).astype(np.uint8)


def odd_looks():
    "Images that a doctor names, by what is wrong with them."
    image = grainy(100).astype(float)
    blurred = Image.fromarray(grainy(101)).filter(ImageFilter.GaussianBlur(2))
    return {"dark": image * 0.2, "bright": 250 + image / 60, "low information": np.full((120, 160, 3), 128),
            "blurred": np.asarray(blurred), "odd size": image[:30]}


def check_odd_looks(folder):
    "Each is named with its worst fault, and no other image."
    for i in range(40): put(folder / ("cat", "dog")[i % 2] / f"{i}.png", encoded(grainy(i)))
    assert check(folder).findings == []
    for kind, image in odd_looks().items(): put(folder / "cat" / f"{kind}.png", encoded(image.astype(np.uint8)))
    found = check(folder)
    assert {f.where: f.kind for f in found.of("warning")} == {f"cat/{kind}.png": kind for kind in odd_looks()}
    assert {f.where: f.what for f in found.findings}["cat/dark.png"].startswith("99 % of its pixels are at most ")


def test_images_that_look_odd_are_named(tmp_path): check_odd_looks(tmp_path / "data")


def test_an_image_whose_grey_levels_were_misread_is_dark_or_bright(tmp_path):
    "Twelve bits in sixteen, say: what remains is 1 to 14 of 255."
    folder = class_folders(tmp_path / "data")
    put(folder / "cat" / "x.png", encoded(scene(70) // 18))
    put(folder / "dog" / "y.png", encoded(245 + scene(71) // 26))
    assert {(f.kind, f.where) for f in check(folder).of("warning")} == {("dark", "cat/x.png"), ("bright", "dog/y.png")}


def test_what_all_images_share_is_no_fault(tmp_path):
    "Strokes on black are poor in grey levels, spots are soft: all are, so none is odd."
    for i in range(40):
        stroke = np.zeros((48, 64, 3), np.uint8)
        stroke[5 + i % 30:15 + i % 30, 10 + i % 7:50] = 255
        put(tmp_path / "strokes" / ("one", "two")[i % 2] / f"{i}.png", encoded(stroke))
        soft = Image.fromarray(grainy(i)).filter(ImageFilter.GaussianBlur(2))
        put(tmp_path / "soft" / ("one", "two")[i % 2] / f"{i}.png", encoded(soft))
    for name in ("strokes", "soft"):
        kinds_ = {f.kind for f in check(tmp_path / name).findings}
        assert kinds_.isdisjoint({"dark", "bright", "low information", "blurred"})


def test_measures_of_looks_are_their_definitions():
    "Against numpy and scipy, in the image's own size below 256 pixels a side."
    image = photo(3)
    record, grey = describe(image), np.asarray(Image.fromarray(image).convert("L"))
    kernel = [[0, -1, 0], [-1, 4, -1], [0, -1, 0]]
    assert record.sharpness == pytest.approx(correlate2d(grey.astype(int), kernel, "valid").var(), rel=1e-3)
    assert record.entropy == pytest.approx(Image.fromarray(grey).entropy(), abs=0.01)
    low, high = np.percentile(grey, [5, 99], method="inverted_cdf")
    assert (record.low, record.high) == (low, high)
    large = describe(np.repeat(np.repeat(image, 4, 0), 4, 1))
    for name in ("low", "high", "entropy", "sharpness"):  # 640 pixels wide, seen at 214
        assert getattr(large, name) == pytest.approx(getattr(record, name), rel=0.5)
    for shape in ((1, 1), (1, 900), (2, 2), (900, 1)): describe(np.zeros((*shape, 3), np.uint8))


BOX = ("cat", (10, 10, 30, 30))


@pytest.mark.parametrize("make", [voc, coco], ids=["voc", "coco"])
def test_tiny_and_odd_boxes_are_warnings_with_file_and_object(make, tmp_path): check_odd_boxes(tmp_path / "data", make)


def check_odd_boxes(root, make=voc):
    odd = [BOX, ("cat", (5, 5, 5.4, 30)), ("cat", (2, 20, 62, 24))]
    if make is voc: folder = voc(root, xml={0: voc_xml(odd), 1: voc_xml([BOX] * 10)})
    else:
        boxes = [[x1, y1, x2 - x1, y2 - y1] for _, (x1, y1, x2, y2) in odd + [BOX] * 20]
        rows = [dict(id=i, image_id=i % 3 if i > 2 else 0, category_id=1, bbox=box) for i, box in enumerate(boxes)]
        others = dict(image_id=2, category_id=2, bbox=[1, 1, 20, 20])
        rows += [dict(id=100 + i, **{**others, "image_id": i}) for i in range(2, 12)]
        folder = coco(root, edit=lambda content: dict(content, annotations=rows))
    found = {f.kind: f for f in check(folder).of("warning") if "box" in f.kind}
    assert set(found) == {"tiny box", "odd box"} and not check(folder).errors
    source = "Annotations/0.xml" if make is voc else "annotations.json"
    assert all(f.where.startswith(source) for f in found.values())
    assert found["tiny box"].what.startswith("object 1 (cat), box (5, 5, 5.4, 30)")
    assert found["odd box"].what.startswith("object 2 (cat), box (2, 20, 62, 24): width to height is 15")


def test_a_class_that_one_image_shows_is_a_warning(tmp_path):
    xml = {0: voc_xml([*BOXES, ("owl", (3, 3, 20, 20))])}
    lists = dict(train=range(6), val=range(6, 9), test=range(9, 12))
    found = check(voc(tmp_path / "data", lists=lists, xml=xml))
    assert ("one image", "owl") in named(found, "warning")


# the library's own splits, and real data

def test_loaded_images_are_examined_too(tmp_path, monkeypatch):
    splits = load(across(tmp_path / "data"))
    monkeypatch.setitem(sources, "made-up", lambda seed=0: splits)
    assert ("error", "same image across splits") in kinds(check("made-up"))


@pytest.mark.parametrize("make, view", [(class_folders, ""), (voc, ""), (coco, ""), (voc, "?view=multi")],
                         ids=["single label", "detection", "detection, coco", "multi label"])
def test_loaded_images_are_counted_like_files(make, view, tmp_path, monkeypatch):
    splits = load(f"{make(tmp_path / 'data')}{view}")
    monkeypatch.setitem(sources, "made-up", lambda seed=0: splits)
    drawn, files_ = check("made-up"), check(f"{tmp_path / 'data'}{view}")
    assert drawn.task == files_.task == splits.task and drawn.findings == files_.findings == []
    totals = [{name: sum(row.values()) for name, row in one.counts.items()} for one in (drawn, files_)]
    assert totals[0] == totals[1] and set(drawn.counts["cat"]) == set(NAMES)


def test_one_is_one_error_and_two_are_errors():
    found = Diagnosis("spec", SINGLE, {}, [layouts.error("kind", "1.png", "is odd")])
    assert found.table().endswith("1 error, 0 warnings, 0 notes")


def real(name):
    path = SHARED / name
    if not path.is_file(): pytest.skip(f"needs ../shared/data/{name}")
    return path


def test_bccd(tmp_path):
    found = check(real("bccd_voc.zip"))
    assert sorted(f.where for f in found.findings if f.kind == "zero-area box") == [
        "Annotations/BloodImage_00338.xml", "Annotations/BloodImage_00343.xml"]
    assert found.task == DETECTION and list(found.counts) == ["Platelets", "RBC", "WBC"]
    assert sum(sum(row.values()) for row in found.counts.values()) == 4888 - 2
    assert {"dark", "bright", "blurred", "low information", "tiny box", "odd box"}.isdisjoint(
        f.kind for f in found.findings)
    twice = [(f.kind, f.where, looks_like(f)) for f in found.findings if f.kind.startswith("near")]
    assert twice == [("near duplicate across splits", *(f"JPEGImages/BloodImage_000{n}.jpg" for n in (37, 38)))]
    splits = load(real("bccd_voc.zip"))
    assert [len(splits[part]) for part in NAMES] == [205, 87, 72]


def test_kangaroo(tmp_path):
    found = check(real("kangaroo_voc.zip"))
    assert [f.where for f in found.findings if f.kind == "unreadable image"] == ["JPEGImages/00090.jpg"]
    assert {f.kind for f in found.of("warning")} <= {"mislabelled file", "same image"}
    splits = load(real("kangaroo_voc.zip"))
    assert sum(len(splits[part]) for part in NAMES) == 163 and splits.classes == ["kangaroo"]


# knock-outs

KNOCK_OUTS = {  # the room, the name in it, what takes its place, and the check that must fail then
    "thumbnails not compared": (doctor, "near_duplicates", lambda *_: [],
                                lambda root: check_near_duplicates(CHANGES["webp"], root)),
    "everything alike": (doctor, "near_duplicates", lambda items, found: [(0, 1)],
                         lambda root: check_near_duplicates(CHANGES["webp"], root)),
    "nothing looks odd": (doctor, "_fault", lambda *_: ("", ""), lambda root: check_odd_looks(root)),
    "all are as sharp": (doctor, "_blurred", lambda _: 0.0, lambda root: check_odd_looks(root)),
    "any shape is usual": (doctor, "_usual_shapes", lambda _: (-9, 9), lambda root: check_odd_boxes(root)),
    "no box cleaned": (layouts, "clean_boxes", lambda objects, *_: (objects, []),
                       lambda root: check_voc(root, "zero area")),
    "size not compared": (files, "look", lambda content, scales: replace(look(content), width=1, height=48),
                          lambda root: check_voc(root, "wrong size")),
    "nothing missed": (doctor, "missing_classes", lambda *_: [], lambda root: check_missing(root)),
    "unread files pass": (files, "look", lambda content, scales: describe(np.zeros((9, 9, 3), np.uint8)),
                          lambda root: check_unreadable(root)),
    "copies agree whatever they say": (doctor, "_answer", lambda item: frozenset(),
                                       lambda root: check_copies(root)),
}


def check_voc(root, name):
    xml, expected = XML[name]
    assert {f.kind for f in check(voc(root, xml={0: xml})).findings} - {"no objects"} == expected


def check_missing(root): assert ("class misses a split", "dog") in named(check(missing_in_valid(root)))


def check_unreadable(root):
    put(class_folders(root) / "cat" / "x.jpg", b"hello")
    assert named(check(root)) == {("unreadable image", "cat/x.jpg")}


def check_copies(root):
    put(class_folders(root) / "cat" / "x.png", encoded(scene(1003)))
    assert ("same image in two classes", "cat/x.png") in named(check(root))


@pytest.mark.parametrize("name", KNOCK_OUTS)
def test_knock_outs_are_noticed(name, tmp_path, monkeypatch):
    room, target, broken, verify = KNOCK_OUTS[name]
    verify(tmp_path / "sound")
    monkeypatch.setattr(room, target, broken)
    with pytest.raises((AssertionError, CourseError)): verify(tmp_path / "broken")
