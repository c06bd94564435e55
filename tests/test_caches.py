"Caches: used by the code that made them alone, seen and removed by `course cache`, and nothing else is touched."
import os
import sys
from hashlib import sha1

import numpy as np
import pytest
from filelock import FileLock
from making import class_folders, encoded, png16, put, scene
from PIL import Image

from course_lib import caches, data, files
from course_lib.cli import main
from course_lib.scenes import squared


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache"


@pytest.fixture
def filled(home, tmp_path):
    "Class folders, and the caches of a training on them: the index, and the pixels of two splits."
    splits = data.load(class_folders(tmp_path / "photos"))
    for part in (splits.train, splits.valid): data.pixels(part, 16)
    return splits


DECODED = {3: "062810"}  # version of the decoder -> the start of the hash of what it makes of `EXAMPLES`
WIDE = np.arange(48 * 64, dtype=np.uint16).reshape(48, 64) * 20
EXAMPLES = [
    encoded(scene(1)), encoded(scene(1)[..., 0]), encoded(Image.fromarray(scene(1)).quantize(8)), encoded(np.dstack([scene(1), scene(2)[..., 0]])),
    encoded(Image.fromarray(scene(1)).convert("CMYK"), "tiff"), encoded(Image.fromarray(WIDE)), encoded(Image.fromarray(WIDE.astype(np.int32)), "tiff"),
    encoded(Image.fromarray(WIDE.astype(np.float32)), "tiff"), png16(np.dstack([WIDE] * 3), 2),
    encoded(scene(1), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0")]


def test_another_decoder_has_another_version():
    "If this fails, images are decoded, resized or described in another way: raise `VERSION` of 00e, and note here what it makes."
    seen = sha1()
    for example in EXAMPLES:
        image = data.decode(example)
        record = files.describe(image)
        seen.update(repr((record.digest, record.thumb)).encode())
        for fit in ("crop", "squash"): seen.update(data.resize(image, 16, fit).tobytes())
    assert DECODED.get(caches.VERSION) == seen.hexdigest()[:6]


@pytest.mark.parametrize("change", [lambda patch: patch.setattr(caches, "VERSION", caches.VERSION + 1),
                                    lambda patch: patch.setattr(caches, "version", lambda package: "0.0")], ids=["library", "Pillow"])
def test_a_cache_of_another_decoder_is_never_used(change, filled, home, tmp_path, monkeypatch):
    before = set(home.iterdir())
    for path in home.glob("pixels-*.npy"): path.write_bytes(path.read_bytes()[:-300] + bytes(300))  # as another decoder would
    change(monkeypatch)
    again = data.load(tmp_path / "photos")
    pixels = data.pixels(again.train, 16)
    assert np.array_equal(pixels[-1], data.resize(again.train.read(len(again.train) - 1), 16)) and pixels[-1, -1].any()
    assert {path.name.split("-")[0] for path in set(home.iterdir()) - before} == {"index", "pixels"}


def test_the_same_decoder_uses_its_cache(filled, home, tmp_path):
    before = {path: path.read_bytes() for path in home.iterdir()}
    data.pixels(data.load(tmp_path / "photos").train, 16)
    assert {path: path.read_bytes() for path in home.iterdir()} == before


def test_every_cache_says_what_it_is_of_and_when_it_was_used(filled, home, tmp_path, capsys):
    for path in home.glob("*"): os.utime(path, (1e9, 1e9))
    data.pixels(filled.valid, 16)
    assert main(["cache"]) == 0
    place, *lines, total, advice = capsys.readouterr().out.splitlines()
    assert place == str(home) and total.startswith("3 caches, ") and "course cache clear" in advice
    assert f"{len(filled.valid)} of 16 x 16 pixels" in lines[0] and "2001-09-09" not in lines[0] and all("2001-09-" in line for line in lines[1:])
    assert any(line.startswith("index-") and line.endswith(str(tmp_path / "photos")) for line in lines)


def test_boxes_have_a_cache_of_sizes(home):
    squared(data.load("streets?view=detection&n=5&valid=5&test=5&size=32").train, 16)
    assert {cache.name.split("-")[0] for cache in caches.caches()} == {"pixels", "shapes"}


def test_clear_shows_first_and_removes_only_what_is_ours(filled, home, tmp_path, capsys, monkeypatch):
    thesis = put(tmp_path / "thesis.json", b"three years of work")
    others = [put(home / name, b"mine") for name in ("notes.txt", "pixels-mine.npy", "pixels-0123456789abcdef.npy.bak", "photos-0123456789abcdef.npy")]
    (home / "index-0123456789abcdef.json").mkdir()
    if sys.platform != "win32": (home / "pixels-fedcba9876543210.npy").symlink_to(thesis)
    left = put(home / "pixels-0123456789abcdef0123.npy.part", b"left by a killed process")
    kept = {*home.iterdir()} - {path for cache in caches.caches() for path in cache.paths}
    monkeypatch.setattr("sys.stdin", open(os.devnull))
    assert main(["cache", "clear"]) == 1 and left.is_file()
    out, err = capsys.readouterr()
    assert "4 caches" in out and "of an earlier version or unfinished" in out and "--yes" in err
    assert main(["cache", "clear", "--yes"]) == 0 and "removed 4 of 4" in capsys.readouterr().out
    assert {*home.iterdir()} == kept >= set(others) and thesis.read_bytes() == b"three years of work"
    assert main(["cache", "clear"]) == 0 and capsys.readouterr().out == "0 caches, 0.0 MB\n"


@pytest.mark.parametrize("answer, gone", [("y", True), ("", False), ("no", False)])
def test_clear_asks(answer, gone, filled, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: answer)
    assert main(["cache", "clear"]) == (0 if gone else 1) and bool(caches.caches()) != gone


def test_a_cache_that_is_just_being_made_stays(filled, home, capsys):
    busy = next(home.glob("pixels-*.npy"))
    with FileLock(f"{busy}.lock"):
        assert main(["cache", "clear", "--yes"]) == 1
    out, err = capsys.readouterr()
    assert "removed 2 of 3" in out and f"{busy.stem} is in use by another process" in err and busy.is_file()


@pytest.mark.skipif(sys.platform == "win32", reason="no such name on Windows")
def test_a_folder_with_a_line_break_in_its_name_is_one_line(home, tmp_path, capsys):
    data.load(class_folders(tmp_path / "two\nlines"))
    assert main(["cache"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
