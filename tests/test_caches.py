"Caches: used by the code that made them alone, seen and removed by `course cache`, and nothing else is touched."
import os
import subprocess
import sys
from dataclasses import replace
from hashlib import sha1
from types import SimpleNamespace

import numpy as np
import pytest
from filelock import FileLock
from making import class_folders, encoded, png16, put, scene
from PIL import Image

from course_lib import caches, data, downloads, files, transfer
from course_lib.cli import main
from course_lib.core import CourseError
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


# ---- damage, a full disk, several processes

def cut(content): return content[:len(content) // 2]


def zeroed(content): return content[:-40] + bytes(40)


def flipped(content):
    at = len(content) * 2 // 3
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1:]


def no_backbone(monkeypatch):
    "A backbone of which only the answers are known."
    monkeypatch.setattr(transfer, "fingerprint", lambda backbone: "made up")
    monkeypatch.setattr(transfer, "embed", lambda backbone, images, *how: images.astype(np.float32).mean((1, 2))[:, None])
    return SimpleNamespace(name="made up", width=3)


def use(kind, folder, monkeypatch):
    "What is computed with a cache of this kind, as it comes out of it."
    splits = data.load(folder)
    train = splits.train
    if kind == "index": return [splits[name].key for name in data.NAMES]
    if kind == "pixels": return data.pixels(train, 16).tolist()
    if kind == "embeddings": return transfer.embeddings(no_backbone(monkeypatch), train, 16).tolist()
    if kind == "digests": return [part.names for part in downloads._carve("made up", train, 0, 0.3).values()]
    boxed = replace(train, task=data.DETECTION, targets=[dict(boxes=np.array([[1, 1, 9, 9]]), labels=np.array([1])) for _ in train.names])
    return [target["boxes"].tolist() for target in squared(boxed, 16).targets]


@pytest.mark.parametrize("damage", [cut, zeroed, flipped, lambda content: b"", None], ids=["cut", "zeroed", "flipped", "empty", "nothing said"])
@pytest.mark.parametrize("kind", caches.KINDS)
def test_a_damaged_cache_is_made_again(kind, damage, home, tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "photos")
    first = use(kind, folder, monkeypatch)
    [path] = [path for path in home.glob(f"{kind}-*") if path.suffix in (".npy", ".json")]
    whole, about = path.read_bytes(), path.with_suffix(".about")
    told = about.read_text()
    for content in ("[]", "null", "{", '"of before"', '{"of": "x", "size": 3}') if damage is None else (None,):
        if damage: path.write_bytes(damage(whole))
        else: about.write_text(content)
        assert use(kind, folder, monkeypatch) == first
        assert path.read_bytes() == whole and about.read_text() == told and not list(home.glob("*.part"))
    if damage: return
    about.unlink()
    assert use(kind, folder, monkeypatch) == first and about.read_text() == told


def test_a_sound_cache_is_summed_once(filled, home, monkeypatch):
    caches._SOUND.clear()
    sums, total = [], caches._sum
    monkeypatch.setattr(caches, "_sum", lambda path: sums.append(path) or total(path))
    for _ in range(3): data.pixels(filled.valid, 16)
    assert len(sums) == 1


def test_files_of_others_stay_and_an_interruption_leaves_none(home, tmp_path):
    path = caches.cache_path("digests", "x", ".json")
    others = [put(path.with_name(f"{path.name}{end}"), b"mine") for end in (".part", f".{os.getpid()}.part", ".tmp")]
    def stopped(part):
        part.write_bytes(b"[1,")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): caches.cache_file("digests", "x", ".json", stopped, "x")
    assert not path.exists() and set(home.glob("*.part")) == set(others[:2])
    assert caches.cache_file("digests", "x", ".json", lambda part: part.write_text("[1]"), "x").read_text() == "[1]"
    assert all(other.read_bytes() == b"mine" for other in others)


@pytest.mark.parametrize("place", ["file/below", "/dev/null/x", "/proc/nowhere"])
def test_a_cache_that_cannot_be_written_says_what_to_do(place, tmp_path, monkeypatch):
    if place.startswith("/") and not os.path.exists("/proc"): pytest.skip("a path of Linux")
    put(tmp_path / "file", b"?")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / place))
    with pytest.raises(CourseError, match="cannot be written .*COURSE_HOME") as caught: data.load(class_folders(tmp_path / "photos"))
    assert "\n" not in str(caught.value)


@pytest.fixture
def small_disk(tmp_path):
    "A file system of a megabyte."
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid(): pytest.skip("only root of a Linux can mount a small disk")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True)
    if done.returncode: pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


DECODE = """
import sys
from course_lib import caches, data
from course_lib.core import CourseError
data._check_room = lambda *_: None  # another process may take the room afterwards
try: print(len(data.pixels(data.load(sys.argv[1]).train, int(sys.argv[2]))))
except CourseError as why: print(why)
"""


def decode(folder, size, home): return subprocess.Popen([sys.executable, "-c", DECODE, folder, str(size)], stdout=subprocess.PIPE,
                                                        text=True, env={**os.environ, "COURSE_HOME": str(home), "TQDM_DISABLE": "1"})


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk, tmp_path):
    "Without reserved blocks this ends by a signal (SIGBUS), without a word."
    folder = class_folders(tmp_path / "photos")
    process = decode(folder, 300, small_disk)  # 2.7 MB
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "free some space, or set COURSE_HOME to another folder" in out and out.count("\n") == 1
    assert not list(small_disk.rglob("*.part")) and not list(small_disk.rglob("*.npy"))
    both = [decode(folder, size, small_disk) for size in (130, 140)]  # 0.6 and 0.7 MB: one of them fits
    outs = [process.communicate(timeout=120)[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0] and any("free some space" in out for out in outs)
    assert len(list(small_disk.rglob("*.npy"))) == 1 and "10" in outs


COUNTED = """
import sys, time
from course_lib import data, files
look, read = files.look, files.Files.image
def slow(*args):
    open(sys.argv[2], "a").write("look\\n")
    time.sleep(0.01)
    return look(*args)
def decode(self, name):
    open(sys.argv[2], "a").write("decode\\n")
    return read(self, name)
files.look, files.Files.image = slow, decode
splits = data.load(sys.argv[1])
print(splits.fingerprint, data.pixels(splits.train, 12).tobytes().hex())
"""


def test_three_processes_on_a_cold_cache_do_the_work_once(home, tmp_path):
    folder, log = class_folders(tmp_path / "photos"), tmp_path / "log"
    command = [sys.executable, "-c", COUNTED, folder, log]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "TQDM_DISABLE": "1"}) for _ in range(3)]
    outs = {worker.communicate(timeout=120)[0] for worker in workers}
    assert [worker.returncode for worker in workers] == [0, 0, 0] and len(outs) == 1
    lines = log.read_text().split()
    assert lines.count("look") == 16 and lines.count("decode") == len(data.load(folder).train)
