"Layouts are a registry: a format of one's own takes part like the others, and each keeps what is written."
import json
import pickle
import re
from dataclasses import replace
from hashlib import sha1
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from course_lib.cli import main
from course_lib.core import CourseError, import_file, layouts, library_sources
from course_lib.data import DETECTION, MULTI, NAMES, SINGLE, load, pixels
from course_lib.doctor import check, fix, write_splits
from course_lib.files import Record, describe
from course_lib.layouts import Item, Survey, boxes_made_good, load_files, split_items, survey, write_dataset
from course_lib.notebooks import checkout, imports
from course_lib.specs import Object
from course_lib.voc import voc_xml
from making import class_folders, coco, encoded, put, scene, voc, zipped
from making import voc_xml as voc_text

FORMATS = sorted(layouts.names())  # read from the source: a new one is tested without being told
PAGE = checkout() / "CONTRIBUTING.md"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    "Caches and layouts of their own for each test."
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))
    before = dict(layouts.discover())
    yield
    layouts.clear()
    layouts.update(before)


# every registered layout

def item(i, task, split):
    "An image that is not in the way of any layout: its record, and what its task asks for."
    box = (i % 7, i % 5, 20.5 + i, 30)
    objects = (Object("car", box, difficult=i % 3 == 0), Object("stop sign", (1, 2, 60, 40), index=1))
    annotation = {SINGLE: dict(label=("car", "stop sign")[i % 2]),
                  DETECTION: dict(objects=objects[:1 + i % 2]),
                  MULTI: dict(labels=(("car",), ("car", "stop sign"), ("stop sign",), ())[i % 4])}[task]
    return Item(f"{i}.png", split, record=describe(scene(i)), **annotation)


def made_up(task, splits=True): return [item(i, task, NAMES[i % 3] if splits else "") for i in range(24)]


def image_file(item): return encoded(scene(int(item.name.removesuffix(".png"))))


def essence(items):
    "What must survive writing and reading, by the image's digest; boxes apart."
    return {i.record.digest: (i.split, i.label, i.labels, [o.name for o in i.objects]) for i in items}


def is_refused(items, name, out):
    "Whether the layout cannot hold these items; then nothing may be there. Else they are written."
    try: write_dataset(items, image_file, name, out)
    except CourseError as why:
        assert "\n" not in str(why) and not list(out.parent.glob(f"*{out.name}*"))
        return True
    return False


@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_again(name, splits, tmp_path):
    items, out = made_up(layouts[name].task, splits), tmp_path / "out"
    if is_refused(items, name, out):
        assert splits, "a layout may lack a place for splits, and must hold everything else of its task"
        return
    found = survey(out)
    assert (found.layout, found.task, found.findings) == (name, layouts[name].task, [])
    assert found.classes == ["car", "stop sign"] and essence(found.items) == essence(items)
    old = {i.record.digest: i for i in items}
    for i in found.items:
        before = old[i.record.digest]
        np.testing.assert_array_equal(found.image(i), scene(items.index(before)))
        for thing, given in zip(i.objects, before.objects, strict=True):
            np.testing.assert_allclose(thing.box, given.box, atol=0.01)  # pixels: some formats round


@pytest.mark.parametrize("name", FORMATS)
def test_folder_and_zip_and_repaired_copy_are_one_data_set(name, tmp_path):
    folder = tmp_path / "out"
    if is_refused(made_up(layouts[name].task), name, folder):
        write_dataset(made_up(layouts[name].task, splits=False), image_file, name, folder)
    archive = zipped(folder, tmp_path / "out.zip", prefix="wrapped/")
    expected = load(folder)
    assert load(archive).fingerprint == expected.fingerprint
    assert check(folder).errors == check(archive).errors == []
    repaired = load(fix(archive, tmp_path / "fixed"))
    assert [len(repaired[part]) for part in NAMES] == [len(expected[part]) for part in NAMES]


@pytest.mark.parametrize("name", FORMATS)
def test_a_layout_refuses_items_of_another_task_or_keeps_their_classes(name, tmp_path):
    "A table, for one, keeps the classes of objects and forgets their boxes."
    for task in {SINGLE, MULTI, DETECTION} - {layouts[name].task}:
        items, out = made_up(task), tmp_path / task
        if is_refused(items, name, out): continue
        found = survey(out)
        assert found.task in (layouts[name].task, task)  # a table holds one label an image, too
        old, new = ({i.record.digest: set(i.classes) for i in some} for some in (items, found.items))
        assert old == new


def test_what_each_layout_refuses(tmp_path):
    refused = {(name, task) for name in FORMATS for task in (SINGLE, MULTI, DETECTION)
               if is_refused(made_up(task), name, tmp_path / f"{name} {task}")}
    boxes = {(name, task) for name in ("voc", "coco", "yolo", "boxcsv", "labelme", "cvat", "labelstudio") for task in (SINGLE, MULTI)}
    assert refused >= boxes | {("folder", MULTI), ("folder", DETECTION)}
    assert not refused & {(name, layouts[name].task) for name in ("folder", "csv", *dict(boxes))}


@pytest.mark.parametrize("name", FORMATS)
def test_a_layout_has_the_form_that_the_protocol_asks_for(name):
    kind = layouts[name]
    assert kind.task in (SINGLE, MULTI, DETECTION) and isinstance(kind.rank, int) and len(kind.about) > 5
    assert isinstance(kind.endings, tuple)
    assert all(re.fullmatch(r"\.[a-z]+", ending) for ending in kind.endings)


def test_ranks_decide_without_ties():
    ranks = [layouts[name].rank for name in FORMATS]
    assert len(set(ranks)) == len(ranks)


def test_nothing_below_imports_a_format():
    homes = set(layouts.homes().values()) - {"layouts"}
    assert {"voc", "coco", "yolo", "tables"} <= homes
    for room in ("data", "specs", "files", "layouts"): assert not imports(library_sources()[room]) & homes


# which layout it is

def test_errors_list_what_every_layout_expects(tmp_path):
    (tmp_path / "empty").mkdir()
    put(tmp_path / "other" / "x.json", b"[]")
    with pytest.raises(CourseError) as caught: survey(tmp_path / "empty")
    assert "\n" not in str(caught.value) and all(layouts[name].about in str(caught.value) for name in FORMATS)
    with pytest.raises(CourseError) as caught: survey(tmp_path / "other" / "x.json")
    listed = {name for name in FORMATS if layouts[name].about in str(caught.value)}
    assert "coco" in listed and listed == {name for name in FORMATS if ".json" in layouts[name].endings}
    with pytest.raises(CourseError, match="unknown layout 'vox': did you mean 'voc'"):
        write_dataset([], image_file, "vox", tmp_path / "out")


def everything(**about):
    "A layout that claims whatever it sees."
    return type("Everything", (), dict(
        about="anything", task=SINGLE, endings=(), **about, claims=lambda self: True,
        __init__=lambda self, files, only: setattr(self, "files", files),
        survey=lambda self: SimpleNamespace(layout=type(self).name)))


@pytest.mark.parametrize("order", [("low", "high"), ("high", "low")])
def test_the_higher_rank_is_asked_first_whatever_was_registered_first(order, tmp_path):
    ranks = dict(low=1000, high=1001)
    for name in order: layouts.register(name)(everything(rank=ranks[name], name=name))
    assert survey(class_folders(tmp_path / "data")).layout == "high"


def test_a_layout_of_low_rank_gets_what_nobody_else_wants(tmp_path):
    layouts.register("rest")(everything(rank=-1, name="rest"))
    assert survey(class_folders(tmp_path / "data")).layout == "folder"
    put(tmp_path / "notes" / "readme.txt", b"nothing else")
    assert survey(tmp_path / "notes").layout == "rest"


def test_a_folder_of_several_kinds_is_what_the_ranks_say(tmp_path):
    folder = voc(tmp_path / "data", lists=dict(train=range(6), val=range(6, 9), test=range(9, 12)))
    expected = load(folder)
    coco(tmp_path / "coco")
    put(folder / "annotations.json", (tmp_path / "coco" / "annotations.json").read_bytes())
    assert survey(folder).layout == "voc" and load(folder).fingerprint == expected.fingerprint
    put(folder / "labels.csv", b"file,labels\n" + b"".join(b"%d.png,cat\n" % i for i in range(12)))
    found = survey(folder)
    assert (found.layout, found.task, found.classes) == ("csv", MULTI, ["cat"])


# a format of one's own

@pytest.fixture
def notes(tmp_path):
    "The example of CONTRIBUTING.md, imported from a file as `course --import FILE` does."
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    [example] = [block for block in blocks if "@layouts.register(" in block]
    path = put(tmp_path / "notes.py", example.encode())
    import_file(path)
    return path


def noted(root, n=8):
    for k, name in enumerate(("cat", "dog")):
        for i in range(n):
            put(root / f"{name}{i}.png", encoded(scene(1000 * k + i)))
            put(root / f"{name}{i}.txt", f"{name}\n".encode())
    return root


def test_without_it_the_folder_is_unknown(tmp_path):
    with pytest.raises(CourseError, match="holds no data set"): survey(noted(tmp_path / "data"))


def test_it_is_claimed_surveyed_loaded_and_cached(notes, tmp_path):
    folder = noted(tmp_path / "data")
    found = survey(folder)
    assert (found.layout, found.classes, found.findings) == ("notes", ["cat", "dog"], [])
    expected = {f"{name}{i}.png": name for name in ("cat", "dog") for i in range(8)}
    assert {i.name: i.label for i in found.items} == expected
    splits, same = load(folder), load(class_folders(tmp_path / "folders"))
    assert splits.fingerprint == same.fingerprint  # equal images with equal labels, however they lie
    np.testing.assert_array_equal(pixels(splits.train, 8), pixels(same.train, 8))
    assert load(zipped(folder, tmp_path / "data.zip")).fingerprint == splits.fingerprint


def test_its_faults_are_found_and_repaired(notes, tmp_path):
    folder = noted(tmp_path / "data")
    (folder / "cat0.txt").unlink()
    (folder / "cat1.txt").write_text("\n")
    (folder / "cat2.png").write_bytes(b"hello")
    found = check(folder)
    assert {(f.kind, f.where) for f in found.findings if f.level != "note"} == {
        ("no annotation", "cat0.png"), ("empty label", "cat1.txt"), ("unreadable image", "cat2.png")}
    again = survey(fix(folder, tmp_path / "fixed"))
    assert (again.layout, len(again.items), again.findings) == ("notes", 13, [])


def test_it_is_written_and_read_back(notes, tmp_path):
    splits = load(class_folders(tmp_path / "data"))
    items = [replace(i, split="") for i in survey(tmp_path / "data").items]
    files = {i.name: (tmp_path / "data" / i.name).read_bytes() for i in items}
    out = write_dataset(items, lambda i: files[i.name], "notes", tmp_path / "out")
    written = load(out)
    for part in NAMES:  # names are others, so their order may be, too
        images = [{(describe(some.read(i)).digest, some.targets[i]) for i in range(len(some))}
                  for some in (splits[part], written[part])]
        assert images[0] == images[1] and len(written[part]) == len(splits[part])
    for wrong in (splits, load(voc(tmp_path / "voc"))):  # with splits, with boxes
        with pytest.raises(CourseError, match="notes"): write_splits(wrong, "notes", tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_it_is_named_in_errors(notes, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CourseError, match="images beside text files with their class"):
        survey(tmp_path / "empty")
    with pytest.raises(CourseError, match="did you mean 'notes'"):
        write_dataset([], image_file, "notse", tmp_path / "out")


def test_it_works_on_the_command_line(notes, tmp_path, capsys):
    folder = noted(tmp_path / "data")
    del layouts["notes"]
    assert main(["data", "check", str(folder)]) == 2 and "holds no data set" in capsys.readouterr().err
    assert main(["--import", str(notes), "data", "check", "--json", str(folder)]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"cat": {"": 8}, "dog": {"": 8}}


# labels, boxes, and what caches are named after

def test_labels_are_labels_and_every_box_has_four_numbers(tmp_path):
    folder = voc(tmp_path / "data")
    boxed = survey(folder)
    assert all(len(thing.box) == 4 for i in boxed.items for thing in i.objects)
    assert not any(i.labels for i in boxed.items)
    write_splits(load(f"{folder}?view=multi"), "csv", tmp_path / "table")
    for spec in (f"{folder}?view=multi", tmp_path / "table"):
        splits = load(spec)
        assert splits.task == MULTI and all(target.tolist() == [1, 1] for target in splits.train.targets)
    for i in survey(tmp_path / "table").items:
        assert (i.labels, i.objects, i.classes) == (("cat", "dog"), (), ["cat", "dog"])


@pytest.mark.parametrize("annotation, content", [
    (dict(label="cat"), ("d", "cat", [])),
    (dict(labels=("cat", "dog")),
     ("d", "", [("cat", (), False, False, False), ("dog", (), False, False, False)])),
    (dict(objects=(Object("cat", (1.0, 2.0, 3.0, 4.0), True, index=5),)),
     ("d", "", [("cat", (1.0, 2.0, 3.0, 4.0), True, False, False)])),
], ids=["label", "labels", "objects"])
def test_keys_are_what_they_were(annotation, content, monkeypatch):
    "Caches are named after them: this may change only if everybody's caches may be thrown away."
    monkeypatch.setattr("course_lib.layouts._targets", lambda found, items: [0])
    from course_lib.layouts import _images
    files = SimpleNamespace(stamp=lambda name: "")
    made = _images(Survey(files, "any", SINGLE, [], ["cat", "dog"]),
                   [Item("1.png", "train", record=Record("d", 9, 9), **annotation)])
    assert made.key == sha1(repr([content]).encode()).hexdigest()


def test_corners_of_voc_are_as_written():
    "The original sets count pixels from 1; nothing in a file says so, and nothing is shifted, either way."
    whole = Item("0.png", objects=(Object("cat", (1, 1, 64, 48)),), record=Record("", 64, 48))
    tree = voc_xml(whole, "0.png").decode()
    sides = [re.search(f"<{side}>(.*)</{side}>", tree)[1] for side in ("xmin", "ymin", "xmax", "ymax")]
    assert sides == ["1", "1", "64", "48"]


def test_corners_of_voc_are_read_as_written(tmp_path):
    found = survey(voc(tmp_path / "data"))
    assert {thing.box for i in found.items for thing in i.objects} == {(1, 1, 20, 20), (5, 5, 30, 30)}


# worker processes

def zipped_folders(root): return zipped(class_folders(root), root.with_suffix(".zip"))


@pytest.mark.parametrize("make", [class_folders, voc, coco, zipped_folders])
def test_images_can_be_pickled(make, tmp_path):
    splits = load(make(tmp_path / "data"))
    for part in (splits.train, splits.test.subset([1, 0])):
        again = pickle.loads(pickle.dumps(part))
        assert (again.names, again.key) == (part.names, part.key)
        for i in range(2): np.testing.assert_array_equal(again.read(i), part.read(i))


def first(batch): return batch[0]


def test_a_worker_that_is_spawned_reads_them(tmp_path):
    "As on Windows and macOS."
    splits = load(zipped_folders(tmp_path / "data"))
    how = dict(num_workers=1, multiprocessing_context="spawn", collate_fn=first)
    for i, (image, target) in enumerate(torch.utils.data.DataLoader(splits.train, **how)):
        np.testing.assert_array_equal(image, splits.train.read(i))
        assert target == splits.train.targets[i]


# knock-outs: each break must be noticed by the check named beside it

KNOCK_OUTS = {
    "boxes as they come": ("clean_boxes", lambda objects, *_: (objects, []),
                           lambda root: test_thin_boxes(root)),
    "every image unlisted": ("UNLISTED", "train", lambda root: test_unlisted_images_are_left_out(root)),
    "annotations do not count": ("_content", lambda item: item.record.digest,
                                 lambda root: test_another_box_is_another_key(root)),
}


def test_thin_boxes(tmp_path):
    items = [Item("0.png", objects=(Object("cat", (5, 5, 5, 9)), Object("cat", (1, 1, 9, 9))),
                  record=Record("d", 64, 48))]
    found = boxes_made_good(SimpleNamespace(), "any", items, [], ())
    assert [thing.box for i in found.items for thing in i.objects] == [(1, 1, 9, 9)]
    assert [f.kind for f in found.findings] == ["zero-area box"]


def test_unlisted_images_are_left_out(tmp_path):
    folder = voc(tmp_path / "data", lists=dict(train=range(4), val=range(4, 8), test=range(8, 11)))
    items = split_items(survey(folder), 0, valid=0.15, test=0.15)
    assert len(items) == 11 and "JPEGImages/11.png" not in [i.name for i in items]


def test_another_box_is_another_key(tmp_path):
    before = load_files(voc(tmp_path / "data"))
    after = load_files(voc(tmp_path / "data",
                           xml={0: voc_text([("cat", (1, 1, 20, 21)), ("dog", (5, 5, 30, 30))])}))
    changed = [part for part in NAMES if before[part].key != after[part].key]
    assert [before[part].names == after[part].names for part in NAMES] == [True] * 3
    assert len(changed) == 1 and "JPEGImages/0.png" in before[changed[0]].names


@pytest.mark.parametrize("name", KNOCK_OUTS)
def test_knock_outs_are_noticed(name, tmp_path, monkeypatch):
    target, broken, verify = KNOCK_OUTS[name]
    verify(tmp_path / "sound")
    monkeypatch.setattr(f"course_lib.layouts.{target}", broken)
    with pytest.raises((AssertionError, CourseError)): verify(tmp_path / "broken")


@pytest.mark.parametrize("size", ["<size><width>0</width><height>0</height><depth>3</depth></size>", ""])
def test_an_annotation_without_a_size_is_a_note_and_no_contradiction(size, tmp_path):
    plain = re.sub("<size>.*</size>", size, voc_text())
    found = check(voc(tmp_path, xml={i: plain for i in range(12)}))
    assert [f.level for f in found.findings if "size" in f.kind] == ["note"] * 12 and not found.errors
    assert all("0 x 0" not in str(f) for f in found.findings)


def test_boxes_without_any_class_are_said_to_have_none(tmp_path):
    with pytest.raises(CourseError, match="has no class: no object"): load(voc(tmp_path, xml={i: voc_text(boxes=()) for i in range(12)}))
