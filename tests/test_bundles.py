"Bundles under fire: replaced while they are read, killed while they are written, full disks, odd places, descriptions that lie."
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from making import small_disk, vouched

from course_lib import core
from course_lib.core import (
    CourseError, beside, formats, model_in, only_one, open_bundle, open_model, printable, save_bundle, writable_bundle,
    write_whole)

META = dict(architecture="constant", format="constant", classes=["no", "yes"], task="single-label", input_size=4)


class Constant:
    "Says the same of every image: the numbers in its file."
    def __init__(self, bundle): self.shares = np.array(json.loads((bundle.folder / "shares.json").read_text()))

    def predict_proba(self, images): return np.tile(self.shares, (len(images), 1))


@pytest.fixture(autouse=True)
def constant(monkeypatch): monkeypatch.setitem(formats, "constant", Constant)


def saved(folder, shares=(0.25, 0.75), **meta):
    return save_bundle(folder, META | meta, lambda part: (part / "shares.json").write_text(json.dumps(list(shares))))


def in_another_process(code):
    tests = str(Path(__file__).parent)
    begin = f"import sys; sys.path.insert(0, {tests!r})\nfrom test_bundles import *\nformats['constant'] = Constant\nprint('ready', flush=True)\n"
    process = subprocess.Popen([sys.executable, "-c", begin + code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


# ---- writing

def test_a_reader_never_finds_a_gap_or_a_mixture(tmp_path):
    model = saved(tmp_path / "model", (0.0, 1.0), classes=["a0", "b0"])
    writer = in_another_process(f"""
for i in range(400): saved({str(model)!r}, (i / 400, 1 - i / 400), classes=[f"a{{i}}", f"b{{i}}"])
""")
    read = set()
    while writer.poll() is None:
        bundle, predictor = core.open_both(model)
        i = int(bundle.meta["classes"][0][1:])
        assert predictor.shares.tolist() == [i / 400, 1 - i / 400]
        read.add(i)
    assert writer.returncode == 0 and len(read) > 3
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_killed_at_any_moment_the_old_or_the_new_one_is_there(tmp_path):
    model, rng, kept = saved(tmp_path / "model"), np.random.default_rng(0), []
    for _ in range(8):
        writer = in_another_process(f"for i in range(10**6): saved({str(model)!r}, (0.5, 0.5), about=dict(x='x' * 10**5))")
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        writer.wait()
        assert open_model(model).shares.sum() == 1
        kept.append(len(list(tmp_path.glob(".model*"))))
    saved(model)
    assert any(kept) and [path.name for path in tmp_path.iterdir()] == ["model"]  # the next one cleans up


def test_folders_of_others_beside_a_bundle_stay(tmp_path):
    names = (".model.part", ".model.old", f".model.{os.getpid()}-mine.part", ".model.999999999-0123456789ab.parts")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("three years")
    saved(tmp_path / "model")
    saved(tmp_path / "model")
    assert all((tmp_path / name / "thesis.txt").exists() for name in names)


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left, busy = tmp_path / f".model.{dead.pid}-0123456789ab.part", tmp_path / f".model.{os.getpid()}-0123456789ab.part"
    for path in (left, busy): path.mkdir()
    beside(tmp_path / "model")
    assert not left.exists() and busy.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no permissions of this kind")
def test_others_may_read_what_was_written(tmp_path):
    before = os.umask(0o022)
    try: model = saved(tmp_path / "model")
    finally: os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in model.iterdir()} == {0o644} and model.stat().st_mode & 0o777 == 0o755


def test_after_an_error_the_old_bundle_is_there_and_nothing_else(tmp_path):
    model = saved(tmp_path / "model")
    def fails(part):
        (part / "shares.json").write_text("[")
        raise ValueError("no")
    with pytest.raises(ValueError): save_bundle(model, META, fails)
    with pytest.raises(CourseError, match="cannot be saved: two of its classes"): saved(model, classes=["no", "no"])
    assert open_model(model).shares.tolist() == [0.25, 0.75] and [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "1M") as disk:
        model = saved(disk / "model")
        with pytest.raises(CourseError, match=r"cannot be written \(no space left on device\): free some space"):
            save_bundle(model, META, lambda part: (part / "shares.json").write_bytes(bytes(2**21)))
        with pytest.raises(CourseError, match="free some space"): write_whole(disk / "file", bytes(2**21))
        with pytest.raises(CourseError, match="set COURSE_HOME"): core.build_once(disk / "x.npy", lambda part: part.write_bytes(bytes(2**21)))
        assert open_model(model).shares.tolist() == [0.25, 0.75]
        assert sorted(path.name for path in disk.iterdir()) == ["model", "x.npy.lock"]


# ---- places

@pytest.mark.skipif(os.name == "nt", reason="needs pipes and devices with names")
def test_devices_pipes_and_places_that_are_stood_on_are_refused(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    (tmp_path / "here" / "deep").mkdir(parents=True)
    (tmp_path / "other" / "photos").mkdir(parents=True)
    for name, says in (("pipe", "device or a pipe"), ("file", "is a file"), ("other", "holds other files"), ("here", "holds other files")):
        with pytest.raises(CourseError, match=says): writable_bundle(tmp_path / name)
    with pytest.raises(CourseError, match="device or a pipe"): writable_bundle("/dev/null")
    model = saved(tmp_path / "model")
    monkeypatch.chdir(model)
    with pytest.raises(CourseError, match="the folder you are in"): writable_bundle(".")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "here", "model", "other", "pipe"]


def test_an_empty_mount_point_is_filled_and_a_full_one_is_refused(tmp_path):
    with small_disk(tmp_path / "disk", "1M") as disk:
        assert open_model(saved(disk)).shares.tolist() == [0.25, 0.75]
        with pytest.raises(CourseError, match="is a mount point"): writable_bundle(disk)


def test_asking_leaves_nothing_behind(tmp_path):
    assert writable_bundle(tmp_path / "new" / "deep" / "model") and list(tmp_path.iterdir()) == []


def test_one_process_at_a_time(tmp_path):
    other = in_another_process(f"""
with only_one({str(tmp_path / 'model')!r}):
    print('inside', flush=True)
    time.sleep(600)
""")
    assert other.stdout.readline() == "inside\n"
    with pytest.raises(CourseError, match="another process is writing to"), only_one(tmp_path / "model"): pass
    with only_one(tmp_path / "elsewhere"): pass
    other.kill()
    other.wait()
    with only_one(tmp_path / "model"): pass  # a killed process holds nothing


def test_a_home_that_cannot_be_is_named(monkeypatch):
    monkeypatch.setenv("COURSE_HOME", "~nobody-of-that-name/cache")
    with pytest.raises(CourseError, match="no such user: set COURSE_HOME"): core.home()


@pytest.mark.parametrize("rank", ["x", "", "-1", "1.5"])
def test_torchruns_words_are_numbers(monkeypatch, rank):
    monkeypatch.setenv("RANK", rank)
    with pytest.raises(CourseError, match="RANK"): core.of_torchrun("RANK")


# ---- descriptions that lie, with checksums made to fit

@pytest.mark.parametrize("change, says", [
    (dict(classes=["no"]), "not one for 1 classes"), (dict(classes=["no", "yes", "perhaps"]), "not one for 3 classes"),
    (dict(classes=["no", "no"]), "one name"), (dict(classes=[]), "0 classes"), (dict(classes={"no": 1}), "not of the type list"),
    (dict(classes=["no", 1]), "no text"), (dict(classes=["no", ""]), "no text"), (dict(classes=["no", "y" * 2000]), "no text"),
    (dict(classes=[str(i) for i in range(200_000)]), "200000 classes"), (dict(classes=None), "not of the type list"),
    (dict(input_size=20_000), "at most 4096"), (dict(input_size=0), "at most"), (dict(input_size="4"), "not of the type int"),
    (dict(input_size=True), "not of the type int"), (dict(task=None), "not of the type str"), (dict(format=["x"]), "not of the type str"),
    (dict(format="x"), "unknown model format"), (dict(files={}), "no files"), (dict(files=[]), "not of the type dict"),
    (dict(files={"../shares.json": "0"}), "outside the bundle"), (dict(files={"a\\b": "0"}), "outside the bundle"),
    (dict(files={"no.json": "0"}), "no.json is missing"), (dict(files={"shares.json": 5}), "was altered")])
def test_a_description_is_checked_before_anything_is_built(tmp_path, change, says):
    model = saved(tmp_path / "model")
    meta = json.loads((model / "model.json").read_text()) | change
    meta["digest"] = core.digest(meta)
    (model / "model.json").write_text(json.dumps(meta))
    with pytest.raises(CourseError, match=says): open_model(model)


@pytest.mark.parametrize("shares", [[0.5, float("nan")], [-1, 2], [0.25], {}, "x", [1e300, 0]])
def test_a_model_that_answers_nonsense_is_refused(tmp_path, shares):
    model = saved(tmp_path / "model")
    (model / "shares.json").write_text(json.dumps(shares))
    vouched(model, lambda meta: None)
    with pytest.raises(CourseError, match="not a usable bundle"): model_in(open_bundle(model))


def test_large_files_need_a_word(tmp_path, monkeypatch):
    model = saved(tmp_path / "model")
    monkeypatch.setenv("COURSE_MOST_GB", "1e-9")
    with pytest.raises(CourseError, match="set COURSE_MOST_GB to more"): open_bundle(model)
    monkeypatch.setenv("COURSE_MOST_GB", "much")
    with pytest.raises(CourseError, match="COURSE_MOST_GB=much: use a number"): open_bundle(model)


def test_a_huge_description_is_not_read(tmp_path):
    model = saved(tmp_path / "model")
    with open(model / "model.json", "ab") as file: file.truncate(2**40)  # a hole; nobody has so much memory
    with pytest.raises(CourseError, match="damaged"): open_bundle(model)
    with pytest.raises(CourseError, match="damaged"): open_model(model)


# ---- texts from outside

def test_no_control_character_reaches_the_terminal():
    raw = [*map(chr, range(32)), *map(chr, range(127, 160)), *"\u061c\u200e\u200f\u2028\u2029\u202a\u202e\u2066\u2069"]
    for character in raw:
        shown = printable(f"cat{character}dog")
        assert shown.isprintable() and shown.startswith("cat\\") and shown.endswith("dog")
    assert printable("Größe 猫 🐈 é") == "Größe 猫 🐈 é"
    assert str(CourseError("no \x1b[2J")) == r"no \x1b[2J"
