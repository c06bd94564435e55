"Tables of labels and of boxes, in the forms in which people write them."
import numpy as np
import pytest

from course_lib.core import CourseError
from course_lib.data import DETECTION, MULTI, SINGLE, load
from course_lib.doctor import check, fix
from course_lib.layouts import survey
from making import class_folders, encoded, put, scene, voc

LABELS = [("cat", "dog"), ("cat",), ("dog",), ()] * 3
ONE = ["cat", "dog"] * 6


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))


def table(root, head, rows, encoding="utf-8", name="labels.csv", at="images/{}.png"):
    "Twelve images and a table; rows are texts, or tuples of cells."
    for i in range(12): put(root / at.format(i), encoded(scene(i)))
    lines = [row if isinstance(row, str) else ",".join(map(str, row)) for row in rows]
    put(root / name, "\n".join([head, *lines]).encode(encoding))
    return root


def hot(yes, no): return [(f"{i}.png", yes if "cat" in names else no, yes if "dog" in names else no) for i, names in enumerate(LABELS)]


def several(join): return [f"{i}.png,{join(names)}" for i, names in enumerate(LABELS)]


FORMS = {
    "1.0": ("file,cat,dog", hot(1.0, 0.0)),
    "True": ("file,cat,dog", hot(True, False)),
    "yes": ("file,cat,dog", hot("Yes", "no")),
    "an index": ("Unnamed: 0,file,cat,dog", [(i, *row) for i, row in enumerate(hot(1, 0))]),
    "two indices": ("Unnamed: 0.1,index,file,cat,dog", [(i, i, *row) for i, row in enumerate(hot(1, 0))]),
    "an index and names": ("Unnamed: 0,file,labels", [f"{i},{row}" for i, row in enumerate(several(";".join))]),
    "lists": ("file,labels", several(lambda names: f'"{list(names)}"')),
    "tuples": ("file,labels", several(lambda names: f'"{names}"')),
    "numpy": ("file,labels", several(lambda names: f'"{np.array(names, dtype=str)}"')),
    "image_id": ("image_id,labels", several(";".join)),
    "an unknown column of files": ("foto,labels", several(";".join)),
}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
@pytest.mark.parametrize("form", FORMS)
def test_tables_are_read_as_people_write_them(form, encoding, tmp_path):
    folder = table(tmp_path / "data", *FORMS[form], encoding)
    found = survey(folder)
    assert (found.task, found.classes, found.findings) == (MULTI, ["cat", "dog"], [])
    assert {i.name: i.labels for i in found.items} == {f"images/{i}.png": names for i, names in enumerate(LABELS)}


def answers(found): return {i.name.split("/")[-1]: i.classes for i in found.items}


@pytest.mark.parametrize("nothing", ["nan", "NaN", "<NA>", "null"])
def test_nan_is_no_class_and_a_note_says_so(nothing, tmp_path):
    found = survey(table(tmp_path / "data", "file,labels", several(lambda names: ";".join(names) or nothing)))
    assert found.classes == ["cat", "dog"] and answers(found)["3.png"] == []
    assert [(f.level, f.kind) for f in found.findings] == [("note", "no label")] and "3 cells" in found.findings[0].what


@pytest.mark.parametrize("head", ["file,label", "image_id,label", "id,breed", "filename,class", "path,split,category"])
def test_one_label_an_image_is_single_label_data(head, tmp_path):
    rows = [(i if "id" in head else f"{i}.png", *[("train", "val", "test")[i % 3 if i > 5 else 0]] * ("split" in head), ONE[i].replace("dog", "hot dog"))
            for i in range(12)]
    folder = table(tmp_path / "data", head, rows)
    found = survey(folder)
    assert (found.task, found.classes, found.findings) == (SINGLE, ["cat", "hot dog"], [])
    assert load(folder).task == SINGLE
    again = survey(fix(folder, tmp_path / "fixed"))
    assert (again.task, answers(again), again.findings) == (SINGLE, answers(found), [])
    assert sorted(i.split for i in again.items) == sorted(i.split for i in found.items)


def test_labels_of_0_and_1_are_two_classes(tmp_path):
    assert survey(table(tmp_path / "data", "file,label", [(f"{i}.png", i % 2) for i in range(12)])).classes == ["0", "1"]


def test_an_image_without_its_one_label_is_left_out_and_named(tmp_path):
    found = survey(table(tmp_path / "data", "file,label", [(f"{i}.png", ["nan", ""][i] if i < 2 else ONE[i]) for i in range(12)]))
    assert [(f.kind, f.where) for f in found.findings if f.level == "warning"] == [("no class", "images/0.png"), ("no class", "images/1.png")]
    assert found.classes == ["cat", "dog"] and len(found.items) == 10


@pytest.mark.parametrize("head", ["file,labels", "file,label"])
def test_a_row_for_each_label_is_put_together(head, tmp_path):
    rows = [f"{i}.png,{name}" for i, names in enumerate(LABELS) for name in names or [""]]
    folder = table(tmp_path / "data", head, rows)
    found = survey(folder)
    assert found.task == MULTI and answers(found) == {f"{i}.png": list(names) for i, names in enumerate(LABELS)}
    assert [(f.level, f.kind) for f in found.findings] == [("warning", "several rows")]
    assert survey(fix(folder, tmp_path / "fixed")).findings == []


def test_two_people_who_disagree_are_no_such_table(tmp_path):
    "Each lists all images once; nobody can tell who is right."
    rows = [f"{i}.png,{ONE[i]}" for i in range(12)] + [f"{i}.png,{ONE[i + 1]}" for i in range(4)]
    folder = table(tmp_path / "data", "file,label", rows)
    assert {f.kind for f in check(folder).errors} >= {"contradiction"}
    with pytest.raises(CourseError, match="keep the one that is right"): load(folder)


def test_columns_that_are_no_classes_are_named(tmp_path):
    found = survey(table(tmp_path / "data", "file,cat,dog,patient", [(*row, "anna") for row in hot(1, 0)]))
    assert found.classes == ["cat", "dog"] and [(f.level, f.kind) for f in found.findings] == [("warning", "unread column")]
    with pytest.raises(CourseError, match="must name a column 'file'"):
        survey(table(tmp_path / "none", "file,weight,age", [(f"{i}.png", 4.5, 7) for i in range(12)]))


def test_a_table_about_something_else_does_not_block_class_folders(tmp_path):
    folder = class_folders(tmp_path / "data", ("0", "1"))
    expected = load(folder).fingerprint
    for text in ("ClassId,Name\n0,cat\n1,dog\n", "id,name\n0,cat\n1,dog\n"):
        put(folder / "labels.csv", text.encode())
        found = survey(folder)
        assert found.layout == "folder" and load(folder).fingerprint == expected
        assert [(f.level, f.kind, f.where) for f in found.findings] == [("warning", "unread table", "labels.csv")]
    wrapped = class_folders(tmp_path / "wrapped" / "DATA", ("0", "1"))
    put(wrapped.parent / "labels.csv", b"ClassId,Name\n0,cat\n1,dog\n")
    found = survey(wrapped.parent)
    assert found.classes == ["0", "1"] and [(f.level, f.where) for f in found.findings] == [("warning", "labels.csv")]
    assert load(wrapped.parent).fingerprint == expected
    put(folder / "labels.csv", b"file,labels\n1/0.png,cat\n")
    assert survey(folder).layout == "csv"  # about images, if only of one


# boxes

BOX_HEAD = "filename,width,height,class,xmin,ymin,xmax,ymax"


def box_rows(numbers, scale=1):
    return [f"{i}.png,64,48,{name},{x1 * scale},{y1 * scale},{x2 * scale},{y2 * scale}" for i in numbers
            for name, (x1, y1, x2, y2) in (("cat", (1, 2, 20 + i, 30)), ("dog", (5.5, 5, 60, 40)))]


@pytest.mark.parametrize("name", ["labels.csv", "_annotations.csv", "data/boxes.csv"])
def test_tensorflows_tables_of_boxes(name, tmp_path):
    folder = table(tmp_path / "data", BOX_HEAD, box_rows(range(12)), name=name)
    found = survey(folder)
    assert (found.task, found.classes, found.findings) == (DETECTION, ["cat", "dog"], [])
    assert {i.name: [o.box for o in i.objects] for i in found.items} == {
        f"images/{i}.png": [(1, 2, 20 + i, 30), (5.5, 5, 60, 40)] for i in range(12)}
    assert survey(fix(folder, tmp_path / "fixed")).layout == "boxcsv"


def test_a_table_of_boxes_for_each_split(tmp_path):
    for k, split in enumerate(("train", "valid", "test")):
        for i in range(4): put(tmp_path / "data" / split / f"{i}.png", encoded(scene(4 * k + i)))
        put(tmp_path / "data" / split / "_annotations.csv", "\n".join([BOX_HEAD, *box_rows(range(4))]).encode())
    found = survey(tmp_path / "data")
    assert sorted((i.split, i.name) for i in found.items) == sorted((s, f"{s}/{i}.png") for s in ("train", "valid", "test") for i in range(4))
    (tmp_path / "data" / "test" / "_annotations.csv").rename(tmp_path / "data" / "more.csv")
    with pytest.raises(CourseError, match="which split is in which table of boxes"): survey(tmp_path / "data")


def test_faults_in_a_table_of_boxes(tmp_path):
    rows = box_rows(range(12))
    rows[0], rows[2], rows[4] = rows[0].replace("0.png", "77.png"), rows[2].replace(",cat,1,", ",cat,one,"), "2.png,64"
    found = check(table(tmp_path / "data", BOX_HEAD, rows))
    assert {(f.kind, f.what.split(":")[0].split(" (")[0]) for f in found.errors} == {
        ("missing image", "line 2"), ("bad box", "object 4"), ("broken annotation", "line 6")}
    with pytest.raises(CourseError, match="shares of the image, not pixels"):
        load(table(tmp_path / "shares", BOX_HEAD, box_rows(range(12), 1 / 64)))


def test_a_table_made_from_xmls_does_not_hide_them(tmp_path):
    folder = voc(tmp_path / "data")
    put(folder / "train_labels.csv", "\n".join([BOX_HEAD, *box_rows(range(3))]).encode())
    assert survey(folder).layout == "voc"
