"Files of any kind: what is an image is read, what is broken is named, and what is not read is said."
import io
import json
import multiprocessing
import os
import random
import struct
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageCms

from course_lib import data, decoding, doctor, files, layouts
from course_lib.core import CourseError
from course_lib.specs import parse_spec
from making import class_folders, coco, encoded, png16, put, scene, voc, zipped


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))


def said(found, *levels):
    "What was found of some levels: (level, kind, where)."
    findings = found.findings if hasattr(found, "findings") else found
    return {(f.level, f.kind, f.where) for f in findings if not levels or f.level in levels}


# which files are images

OTHER_NAMES = {"a.jfif": "jpeg", "b.JFIF": "jpeg", "c.jpe": "jpeg", "d.ppm": "ppm", "e.pgm": "ppm", "f.tga": "tga", "g.mpo": "mpo",
               "no ending": "png", "h.jpg?width=640": "jpeg", "i.jpg_large": "jpeg", "j.0001": "tiff", "k.img": "webp"}


@pytest.mark.parametrize("make", [class_folders, voc, coco])
def test_images_are_read_whatever_they_are_called(make, tmp_path):
    folder = make(tmp_path / "data")
    place = {class_folders: "cat", voc: "JPEGImages", coco: "images"}[make]
    before = set(files.Files(folder).images)
    for i, (name, kind) in enumerate(OTHER_NAMES.items()): put(folder / place / name, encoded(scene(500 + i), kind))
    put(folder / place / "README", b"Buy more film")
    new = {f"{place}/{name}" for name in OTHER_NAMES}
    assert set(files.Files(folder).images) == before | new
    assert set(files.Files(zipped(folder, tmp_path / "data.zip")).images) == before | new
    if make is not class_folders: return
    splits = data.load(folder)
    assert new <= {name for part in data.NAMES for name in splits[part].names}
    wrong = {name for level, kind, name in said(doctor.check(folder)) if kind == "mislabelled file"}
    assert wrong == {f"cat/{name}" for name in ("no ending", "h.jpg?width=640", "i.jpg_large", "j.0001", "k.img")}


def test_a_class_of_ppm_is_a_class(tmp_path):
    folder = class_folders(tmp_path / "data")
    for i in range(6): put(folder / "sign" / f"{i}.ppm", encoded(scene(300 + i), "ppm"))
    assert data.load(folder).classes == ["cat", "dog", "sign"] and doctor.check(folder).findings == []


@pytest.mark.parametrize("make", [class_folders, voc, coco])
def test_what_is_not_read_is_counted_by_ending(make, tmp_path):
    folder = make(tmp_path / "data")
    for name in ("a.gif", "b.GIF", "c.heic", "d.avif", "clip.mp4", "more.zip"): put(folder / "more" / name, b"?")
    for name in ("x.bin", "y.bin"): put(folder / "more" / name, b"?")
    found = {f.where: f for f in layouts.survey(folder).findings if f.kind in ("unknown format", "other files")}
    assert {where: f.level for where, f in found.items()} == {
        "more/a.gif": "warning", "more/c.heic": "warning", "more/d.avif": "warning", "more/clip.mp4": "warning",
        "more/more.zip": "warning", "more/x.bin": "note"}
    assert "2 in all" in found["more/a.gif"].what and "unpack" in found["more/more.zip"].what and "2 .bin" in found["more/x.bin"].what
    assert set(found.values()) <= set(data.load(folder).left_out)


def test_what_is_there_is_said_where_no_data_set_is(tmp_path):
    put(tmp_path / "data" / "cat" / "1.heic", b"?")
    with pytest.raises(CourseError, match="cat/1.heic: .heic is not read here"): data.load(tmp_path / "data")


@pytest.mark.parametrize("start, kind", [
    (b"%!PS-Adobe-3.0 EPSF-3.0\n", "EPS"), (b"\0\0\0\x18ftypheic", "HEIC"), (b"<?xml version='1.0'?><svg/>", "SVG"),
    (b"<!DOCTYPE html><html>404</html>", "web page"), (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"), (b"%PDF-1.4", "PDF")])
def test_another_format_under_the_name_of_an_image_is_named(start, kind, tmp_path, monkeypatch):
    from PIL import EpsImagePlugin
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("another program was started"))
    content = start + b"%%BoundingBox: 0 0 10 10\n%%EndComments\n" * (kind == "EPS") + bytes(100)
    put(class_folders(tmp_path / "data") / "cat" / "x.jpg", content)
    [finding] = doctor.check(tmp_path / "data").errors
    assert (finding.kind, finding.where) == ("unreadable image", "cat/x.jpg") and kind in finding.what


def test_folders_of_machines_are_not_seen(tmp_path):
    folder = class_folders(tmp_path / "data" / "photos")
    for junk in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"): put(folder / "cat" / junk / "1.jpg", b"?")
    for junk in ("__MACOSX", "@eaDir"): put(folder / junk / "cat" / "1.jpg", b"?")
    assert doctor.check(tmp_path / "data").findings == [] and len(files.Files(tmp_path / "data").images) == 16


# folders

def locked(monkeypatch, *names):
    "Folders that may not be opened, also for the user who may open anything."
    scandir = os.scandir
    def refuse(path):
        if os.path.basename(path) in names: raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)
    monkeypatch.setattr(os, "scandir", refuse)


def test_a_folder_that_may_not_be_opened_is_an_error(tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "data", ("cat", "dog", "emu"))
    put(folder / "cat" / "phone" / "1.png", encoded(scene(99)))
    locked(monkeypatch, "phone", "emu")
    found = doctor.check(folder)
    assert said(found, "error") == {("error", "unreadable folder", "cat/phone"), ("error", "unreadable folder", "emu")}
    assert all("Permission denied" in f.what for f in found.errors)
    assert {f.where for f in data.load(folder).left_out} == {"cat/phone", "emu"}


def test_a_data_set_that_may_not_be_opened_is_one_line(tmp_path, monkeypatch):
    class_folders(tmp_path / "data")
    locked(monkeypatch, "data")
    with pytest.raises(CourseError, match="data' cannot be opened: Permission denied"): data.load(tmp_path / "data")
    locked(monkeypatch, "cat", "dog")
    with pytest.raises(CourseError, match="cannot be opened"): data.load(tmp_path / "data")


@pytest.fixture
def links(tmp_path):
    try: (tmp_path / "link").symlink_to("nowhere")
    except OSError: pytest.skip("links are not allowed here")


def test_a_folder_behind_several_links_is_read_for_each(tmp_path, links):
    pool = class_folders(tmp_path / "pool")
    for split in data.NAMES:
        for name in ("cat", "dog"):
            (tmp_path / "data" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "data" / split / name).symlink_to(pool / name, target_is_directory=True)
    found = doctor.check(tmp_path / "data")
    assert found.counts["cat"] == dict(train=8, valid=8, test=8)
    assert {f.kind for f in found.errors} == {"same image across splits"} and len(found.errors) == 16


def test_links_among_folders_end_and_are_named(tmp_path, links):
    root = tmp_path / "data"
    for i in range(8): put(root / f"c{i}" / "1.png", encoded(scene(i)))
    for i in range(8):
        for j in range(8):
            if i != j: (root / f"c{i}" / f"to{j}").symlink_to(root / f"c{j}", target_is_directory=True)
    started = time.perf_counter()
    found = files.Files(root)
    assert 8 < len(found.images) <= 80 and time.perf_counter() - started < 10
    assert {f.kind for f in found.findings} == {"repeated folder"}


# names

@pytest.mark.parametrize("name", ["odd?dir/set", "why?", "a?valid=0.2", "line\nbreak"])
@pytest.mark.parametrize("query", ["", "?valid=0.2", "?valid=0.2&seed=3"])
def test_any_name_of_a_folder_is_a_spec(name, query, tmp_path):
    try: folder = class_folders(tmp_path / name)
    except OSError: pytest.skip("this file system does not take such a name")
    assert len(data.load(f"{folder}{query}").classes) == 2 and doctor.check(f"{folder}{query}").errors == []


def test_where_nothing_lies_the_first_question_mark_counts():
    assert parse_spec("streets?a=b?c&n=1", 0, {}) == ("streets", 0, {"a": "b?c", "n": "1"})


def test_messages_about_names_with_line_breaks_are_one_line(tmp_path):
    try: folder = class_folders(tmp_path / "a\nb", ("c\nat", "d\rog"), n=2)
    except OSError: pytest.skip("this file system does not take such a name")
    put(folder / "c\nat" / "x\n.png", b"hello")
    for spec in (folder, tmp_path / "no\nne"):
        with pytest.raises(CourseError) as caught: data.load(spec)
        assert len(str(caught.value).splitlines()) == 1
    assert any(r"c\nat/x\n.png" in str(f) for f in doctor.check(folder).findings)


def test_a_yaml_beside_a_yolo_folder_keeps_it_from_being_a_wrapper(tmp_path):
    put(tmp_path / "set" / "data.yaml", b"names: [cat]")
    put(tmp_path / "set" / "train" / "images" / "1.png", encoded(scene(1)))
    put(tmp_path / "set" / "train" / "labels" / "1.txt", b"")
    assert files.Files(tmp_path).prefix == "set/"
    put(tmp_path / "other" / "config.yaml", b"a: 1")
    class_folders(tmp_path / "other" / "photos")
    assert files.Files(tmp_path / "other").prefix == "photos/"


# decoding

def grey16(values, kind="png"): return encoded(Image.fromarray(np.asarray(values)), kind)


def deep_folder(root, scale, dtype, kind="png"):
    "Two classes of grey images, of 8 bits times `scale`."
    for k, name in enumerate(("cat", "dog")):
        for i in range(6):
            values = scene(100 * k + i)[..., 0].astype(float) * (0.2 if i == 0 else 1) * scale
            put(root / name / f"{i}.{kind}", grey16(values.astype(dtype), kind))
    return root


@pytest.mark.parametrize("scale, dtype, kind, white", [
    (1, np.uint16, "png", 255), (16, np.uint16, "png", 4095), (257, np.uint16, "tif", 65535), (1, np.int32, "tif", 255),
    (1 / 255, np.float32, "tif", 1), (1, np.float32, "tif", 255), (1.01 / 255, np.float32, "tif", None)])
def test_one_scale_for_a_data_set(scale, dtype, kind, white, tmp_path):
    folder = deep_folder(tmp_path / "data", scale, dtype, "tiff" if kind == "tif" else kind)
    splits = data.load(folder)
    [found] = [f for f in splits.left_out if f.kind == "scale"]
    assert found.level == "note" and (white is None or f"{white:g} white" in found.what) and "12 images" in found.what
    read = {name: image for part in data.NAMES for name, (image, _) in zip(splits[part].names, splits[part])}
    assert len(read) == 12 and doctor.check(folder).errors == []
    for k, name in enumerate(("cat", "dog")):
        for i in range(6):
            expected = scene(100 * k + i)[..., 0] * (0.2 if i == 0 else 1)
            own = read[f"{name}/{i}.{'tiff' if kind == 'tif' else kind}"][..., 0].astype(float)
            factor = own.sum() / expected.sum()
            assert 0.7 < factor <= 1.05 and np.abs(own - expected * factor).max() < 3
    factors = [read[name].mean() for name in sorted(read)]
    assert factors[0] < 0.4 * factors[1]  # the dark image stays darker than the others


def digests(folder): return {item.name: item.record.digest for item in layouts.survey(folder).items}


def test_a_brighter_image_changes_the_scale_but_no_digest_and_so_no_split(tmp_path):
    folder = deep_folder(tmp_path / "data", 16, np.uint16)
    before, content = data.load(folder), digests(folder)
    put(folder / "cat" / "new.png", grey16(np.full((48, 64), 60000, np.uint16)))
    after = data.load(folder)
    assert [f.what for f in after.left_out if f.kind == "scale"][0].endswith("65535 white")
    assert content.items() <= digests(folder).items()
    assert "cat/0.png" in {f.where for f in after.left_out if f.kind == "almost black"} and after.train.key != before.train.key
    for part in data.NAMES:
        for name, image in zip(after[part].names, data.pixels(after[part], 16)):
            assert name == "cat/new.png" or image.max() <= 16  # by the new scale, not from an old cache


def test_an_image_that_becomes_black_or_white_is_a_warning(tmp_path):
    folder = deep_folder(tmp_path / "data", 257, np.uint16)
    put(folder / "cat" / "dark.png", grey16(scene(50)[..., 0].astype(np.uint16)))
    put(folder / "cat" / "clear.png", encoded(np.dstack([scene(51), np.zeros((48, 64), np.uint8)])))
    put(folder / "cat" / "dark rgb.png", png16(scene(52).astype(np.uint16), 2))
    found = {f.where: f for f in doctor.check(folder).findings if f.kind.startswith("almost")}
    assert {where: f.kind for where, f in found.items()} == {
        "cat/dark.png": "almost black", "cat/clear.png": "almost white", "cat/dark rgb.png": "almost black"}
    assert "65535 is white" in found["cat/dark.png"].what and all(f.level == "warning" for f in found.values())


@pytest.mark.parametrize("dtype, mode, kind", [
    ("<u2", "I;16", "png"), ("<u2", "I;16", "tiff"), (">u2", "I;16B", "tiff"), ("<i4", "I", "tiff"), ("<f4", "F", "tiff")])
def test_deep_images_are_turned_too(dtype, mode, kind):
    values, exif = np.arange(6).reshape(2, 3) * 50 - (100 if mode == "I" else 0), Image.Exif()
    exif[0x0112] = 6
    file = encoded(Image.frombytes(mode, (3, 2), values.astype(dtype).tobytes()), kind, exif=exif)
    black = min(values.min(), 0)
    expected = (np.rot90(values, -1) - black) * 255 / (255 - black)
    read = data.decode(file)[..., 0].astype(int)
    assert read.shape == (3, 2) and np.abs(read - expected).max() <= 1 and files.look(file).orientation == 6


def broken_exif(kind):
    return encoded(scene(1), kind, exif=b"\0\x08\0\x02\x01\x12\0\x03" if kind == "png" else b"Exif\0\0" + b"\0\x08\0\x02\x01\x12\0\x03")


def tagged(kind, value, form):
    "An image whose EXIF orientation is `value`: raw bytes, of TIFF's type `form`."
    entry = struct.pack("<HHI", 0x0112, form, 1 if form == 3 else len(value)) + value.ljust(4, b"\0")
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + bytes(4)
    return encoded(scene(1), kind, exif=block if kind == "png" else b"Exif\0\0" + block)


@pytest.mark.parametrize("file", [
    *[broken_exif(kind) for kind in ("png", "jpeg", "webp")],
    *[tagged(kind, *tag) for kind in ("png", "jpeg") for tag in ((b"\x09\0", 3), (b"6\0", 2))]])
def test_a_broken_exif_block_costs_nothing_and_turns_nothing(file):
    record = files.look(file)
    assert (record.problem, record.note, record.orientation, record.width) == ("", "", 1, 64)


def test_pillow_says_nothing_on_stderr(tmp_path):
    for i, file in enumerate([broken_exif("jpeg"), tagged("jpeg", b"\x06\0\x06\0", 3), encoded(Image.new("1", (10000, 9500)))]):
        put(tmp_path / f"{i}.x", file)
    code = "import sys; from course_lib.files import look; print([look(open(p, 'rb').read()).problem for p in sys.argv[1:]])"
    ran = subprocess.run([sys.executable, "-c", code, *map(str, sorted(tmp_path.glob("*.x")))], capture_output=True, text=True)
    assert (ran.stdout.strip(), ran.stderr) == ("['', '', '']", "")


def profile(gamma):
    "An ICC profile of sRGB's primaries with another gamma: sRGB's own, with its curves replaced."
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = struct.unpack(">I", content[128:132])[0]
    for i in range(count):
        tag, at, size = struct.unpack(">4sII", content[132 + 12 * i:144 + 12 * i])
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            content[at:at + size] = (b"para" + bytes(4) + struct.pack(">HHi", 0, 0, int(gamma * 65536))).ljust(size, b"\0")
    return bytes(content)


@pytest.mark.parametrize("kind, image", [("png", scene(1)), ("tiff", scene(1)), ("png", np.dstack([scene(1), scene(2)[..., 0]])),
                                         ("png", Image.fromarray(scene(1)).quantize(200))])
def test_colours_of_a_profile_become_srgb(kind, image):
    plain, srgb, dark = (data.decode(encoded(image, kind, **options)).astype(int)
                         for options in ({}, dict(icc_profile=profile(2.2)), dict(icc_profile=profile(1.0))))
    assert np.abs(srgb - plain).max() < 12 and (dark - plain).mean() > 25  # linear values are brighter in sRGB
    opaque = np.asarray(Image.fromarray(image) if isinstance(image, np.ndarray) else image)
    if opaque.shape[2:] == (3,):
        linear = opaque / 255
        expected = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055) * 255
        assert np.abs(dark - expected).max() < 2
    assert "now sRGB" in files.look(encoded(image, kind, icc_profile=profile(1.0))).note


@pytest.mark.parametrize("content", [
    ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    b"no profile", profile(1.0)[:300]])
def test_other_profiles_change_nothing(content):
    assert (data.decode(encoded(scene(1), icc_profile=content)) == scene(1)).all()
    assert files.look(encoded(scene(1)[..., 0], icc_profile=profile(1.0))).note == ""  # a profile for colours in a grey image


@pytest.mark.parametrize("kind", ["tiff", "png", "webp", "mpo", "gif"])
def test_pages_and_frames_beyond_the_first_are_said(kind, tmp_path):
    first, *rest = [Image.fromarray(scene(i)) for i in range(3)]
    folder = class_folders(tmp_path / "data")
    name = {"gif": "x.png", "mpo": "x.jpg"}.get(kind, f"x.{kind}")
    put(folder / "cat" / name, encoded(first, kind, save_all=True, append_images=rest))
    splits = data.load(folder)
    assert [(f.level, f.where) for f in splits.left_out if f.kind == "more pages"] == [("note", f"cat/{name}")]
    assert "the first of 3 pages or frames" in {f.where: f.what for f in doctor.check(folder).findings if f.kind == "converted image"}[f"cat/{name}"]


# damage

def sound():
    "Files of all formats that are read, by their format."
    image, more = Image.fromarray(scene(1)), Image.fromarray(scene(2))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "camera"
    both = dict(save_all=True, append_images=[more])
    return {
        "jpeg": encoded(image, "jpeg", exif=exif, icc_profile=profile(1.8)), "progressive": encoded(image, "jpeg", progressive=True),
        "cmyk": encoded(image.convert("CMYK"), "jpeg"), "png": encoded(image, exif=exif, icc_profile=profile(1.8)),
        "palette": encoded(image.quantize(20), transparency=3), "png of 16 bits": grey16(scene(1)[..., 0].astype(np.uint16) * 200),
        "apng": encoded(image, "png", **both), "tiff": encoded(image, "tiff", exif=exif), "pages": encoded(image, "tiff", **both),
        "lzw": encoded(image, "tiff", compression="tiff_lzw"), "jpeg in tiff": encoded(image, "tiff", compression="jpeg"),
        "fax": encoded(image.convert("1"), "tiff", compression="group4"), "floats": grey16(scene(1)[..., 0] / np.float32(255), "tiff"),
        "webp": encoded(image, "webp", exif=exif), "animated": encoded(image, "webp", **both), "gif": encoded(image, "gif", **both),
        "bmp": encoded(image, "bmp"), "ppm": encoded(image, "ppm"), "tga": encoded(image, "tga", compression="tga_rle"),
        "mpo": encoded(image, "mpo", **both), "ico": encoded(image, "ico")}


def mutated(content, other, rng):
    "A damaged copy: bytes flipped, a part cut out, the rest cut off, or two files glued together."
    content, at = bytearray(content), rng.randrange(len(content))
    way = rng.randrange(5)
    if way < 2:
        for _ in range(rng.choice((1, 3, 30))): content[rng.randrange(len(content) if way else min(200, len(content)))] = rng.randrange(256)
    elif way == 2: del content[at:at + rng.choice((1, 4, 500))]
    elif way == 3: del content[at:]
    else: content[at:] = other[rng.randrange(len(other)):]
    return bytes(content)


def look_at_mutants(count):
    "For each mutant its name, the problem, and the seconds that the look took; a child process does it."
    kinds, rng, told = sound(), random.Random(0), []
    names = list(kinds)
    for i in range(count):
        name = names[i % len(names)]
        content = mutated(kinds[name], kinds[rng.choice(names)], rng)
        started = time.perf_counter()
        record = files.look(content)
        if not record.problem:
            image = data.decode(content)
            assert image.shape == (record.height, record.width, 3) and image.dtype == np.uint8
        told.append((name, record.problem, time.perf_counter() - started))
    return told


def open_zips(folder):
    "For each zip what came of it, and the seconds that it took; a child process does it."
    told = []
    for path in sorted(folder.glob("*.zip")):
        started = time.perf_counter()
        try: outcome = f"{len(doctor.check(path).findings)} findings"
        except CourseError as why: outcome = f"error: {why}"
        told.append((path.stem, outcome, time.perf_counter() - started))
    return told


def _send(pipe, work, args): pipe.send((work(*args), peak_mb()))


def peak_mb():
    "The most memory that this process had; 0 where that cannot be told."
    try: text = open("/proc/self/status").read()
    except OSError: return 0
    return int(text.split("VmHWM:")[1].split()[0]) / 1024


def in_a_process(work, *args, seconds=200):
    "What `work` returns, and the peak of memory: a process of its own may crash or hang."
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_send, args=(there, work, args))
    process.start()
    there.close()
    try:
        assert here.poll(seconds), "it hangs"
        try: return here.recv()
        except EOFError: pytest.fail("it crashed")
    finally: process.kill()


def test_300_mutants_of_images_are_read_or_named():
    told, _ = in_a_process(look_at_mutants, 300)
    assert len(told) == 300 and max(seconds for *_, seconds in told) < 10
    assert all("\n" not in problem and " at 0x" not in problem for _, problem, _ in told)
    read = sum(not problem for _, problem, _ in told)
    assert 60 < read < 240  # both ends of the road are walked
    assert {name for name, problem, _ in told if problem} == sound().keys()


def hostile_zips(folder, sample):
    "Forty zips with traps: names, sizes and methods that lie, and bytes that were changed."
    folder.mkdir()
    rng, entries = random.Random(0), [(f"{c}/{i}.png", encoded(scene(50 * k + i))) for k, c in enumerate(("cat", "dog")) for i in range(4)]

    def made(name, more, **how):
        with zipfile.ZipFile(folder / f"{name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for inner, content in [*entries, *more]:
                info = zipfile.ZipInfo("x")
                info.filename, info.compress_type = inner, zipfile.ZIP_DEFLATED  # keeps backslashes and the rest
                archive.writestr(info, content)
            for key, value in how.items(): setattr(archive.filelist[-1], key, value)

    picture = encoded(scene(9))
    for i, name in enumerate(("/etc/x.png", "../../x.png", "C:\\x\\x.png", "..\\x.png", "cat", "cat//x.png", "cat/", "/", "//", "a" * 5000 + ".png",
                              "cat/\n\r.png", "cat/\udcff.png".encode("utf-8", "surrogatepass").decode("utf-8", "replace"), "CON/x.png", "cat/x.png/y.png", " / .png")):
        made(f"name {i}", [(name, picture)])
    with pytest.warns(UserWarning, match="Duplicate name"): made("twice", [("cat/0.png", picture)])
    made("backslash and slash", [("cat\\0.png", picture)])
    made("bomb", [("cat/x.png", bytes(300 << 20))])
    made("bomb without an ending", [("cat/x", bytes(300 << 20))])
    made("bomb of images", [("cat/x.png", encoded(Image.new("1", (30000, 30000))))])
    for i, how in enumerate((dict(file_size=1 << 40), dict(compress_size=1 << 30), dict(header_offset=1 << 33), dict(header_offset=0),
                             dict(flag_bits=1), dict(CRC=1), dict(extract_version=99), dict(external_attr=0o120777 << 16))):
        made(f"lie {i}", [("cat/x.png", picture)], **how)
    for i in range(12):
        (folder / f"bytes {i}.zip").write_bytes(mutated(sample.read_bytes(), sample.read_bytes(), rng))


def test_40_hostile_zips_are_read_or_named(tmp_path):
    hostile_zips(tmp_path / "zips", zipped(class_folders(tmp_path / "data", n=4), tmp_path / "sample.zip"))
    before, outside = sorted(tmp_path.rglob("*")), sorted(os.listdir(tmp_path.parent))
    told, peak = in_a_process(open_zips, tmp_path / "zips")
    assert len(told) == 40 and max(seconds for *_, seconds in told) < 10 and peak < 1000
    assert all("\n" not in outcome for _, outcome, _ in told)
    assert {name for name, outcome, _ in told if outcome == "0 findings"} <= {"lie 1", "lie 7"} | {f"name {i}" for i in (5, 6, 7, 8, 10, 13)}
    written = [path for path in sorted(tmp_path.rglob("*")) if path not in before and "home" not in path.parts]
    assert written == [] and sorted(os.listdir(tmp_path.parent)) == outside


def test_zips_of_windows_and_names_that_come_twice(tmp_path):
    folder = class_folders(tmp_path / "data", n=6)
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            info = zipfile.ZipInfo("x")
            info.filename = "photos\\" + str(file.relative_to(folder)).replace("/", "\\")
            archive.writestr(info, file.read_bytes())
    assert data.load(tmp_path / "w.zip").fingerprint == data.load(folder).fingerprint
    with pytest.warns(UserWarning, match="Duplicate name"): twice = zipped(folder, tmp_path / "t.zip", extra=[("cat/0.png", encoded(scene(70)))])
    found = doctor.check(twice)
    assert said(found, "error", "warning") == {("warning", "repeated name", "cat/0.png")} and found.counts["cat"][""] == 6


def test_records_survive_the_cache_as_they_are(tmp_path):
    folder = deep_folder(tmp_path / "data", 16, np.uint16)
    where = files.Files(folder)
    first, again = (files.index(where, where.images) for _ in range(2))
    assert first == again and json.dumps([f.what for f in files.remarks(again)])


# images that fill the memory

def webp(kind, width, height):
    "The first bytes of a WebP that says how large it is."
    bits = (width - 1) | (height - 1) << 14
    body = {"VP8X": bytes(4) + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little"),
            "VP8L": b"\x2f" + bits.to_bytes(4, "little") + bytes(5),
            "VP8 ": b"\x10\0\0\x9d\x01\x2a" + width.to_bytes(2, "little") + height.to_bytes(2, "little")}[kind]
    return b"RIFF" + struct.pack("<I", len(body) + 12) + b"WEBP" + kind.encode() + struct.pack("<I", len(body)) + body


def one_colour(side):
    "A whole WebP of one colour, in a few bytes: the first of them, with the size of another."
    content = bytearray(encoded(Image.new("RGB", (64, 64), "red"), "webp", lossless=True))
    content[21:25] = ((side - 1) | (side - 1) << 14).to_bytes(4, "little")
    return bytes(content)


def tiff_of_tiles(side):
    "A TIFF of 64 x 64 pixels whose tiles are larger than any image."
    entries = [(256, 4, 64), (257, 4, 64), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), (322, 4, side), (323, 4, side), (324, 4, 200), (325, 4, 20)]
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + rows + bytes(400)


def bombs():
    "Files of a few bytes that say they are large: each within Pillow's bound, but for the last two."
    gif, tga = encoded(Image.new("P", (8, 8)), "gif"), b"\0\0\x0a" + bytes(9) + struct.pack("<HH", 13000, 13000) + b"\x18\0"
    return {"VP8X": webp("VP8X", 13000, 13000), "VP8L": webp("VP8L", 13000, 13000), "VP8": webp("VP8 ", 13000, 13000),
            "one colour": one_colour(13000), "RLE": tga + b"\xff\1\2\3" * 20, "GIF": gif[:6] + struct.pack("<HH", 13000, 13000) + gif[10:],
            "PPM": b"P6 13000 13000 255\n" + bytes(40), "BMP": b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 13000, 13000, 1, 24, 0, 0, 1, 1, 0, 0),
            "tile": tiff_of_tiles(20000), "too large": b"P6 60000 60000 255\n" + bytes(40)}


def look_at_bombs():
    before = peak_mb()
    return {name: files.look(content).problem for name, content in bombs().items()}, before


def test_a_few_bytes_never_take_gigabytes():
    (told, before), peak = in_a_process(look_at_bombs)
    assert peak - before < 100
    small = {name: problem for name, problem in told.items() if name not in ("tile", "too large")}
    assert all("says that it has 169 million pixels, in" in problem for problem in small.values()), small
    assert "400 million pixels; more than 179 million" in told["tile"] and "3600 million pixels" in told["too large"]


@pytest.mark.parametrize("kind", ["VP8X", "VP8L", "VP8 "])
def test_the_size_of_a_webp_is_read_from_its_first_bytes(kind):
    assert decoding._canvas(webp(kind, 640, 427)) == (640, 427)
    for how in (dict(lossless=True), dict(lossless=False), dict(save_all=True, append_images=[Image.new("RGB", (61, 37), "blue")])):
        assert decoding._canvas(encoded(Image.new("RGB", (61, 37), "red"), "webp", **how)) == (61, 37)
    assert decoding._canvas(encoded(scene(1), "jpeg")) is None and decoding._canvas(b"RIFF1234WEBPVP8X") is None


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_the_bound_is_that_of_pillow(monkeypatch):
    content, large = encoded(scene(1)), encoded(Image.new("L", (5000, 4000)))
    assert files.look(large).width == 5000  # an empty page, of 20 million pixels in 19 kB
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert files.look(large).problem == ("cannot be read to its end: it has 20 million pixels; more than 2 million are not safe to open "
                                         "(Image.MAX_IMAGE_PIXELS of Pillow is half of that)")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert files.look(content).problem and not files.look(encoded(scene(1, 40, 50))).problem
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert not files.look(content).problem


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_of_a_gigabyte_is_named_and_not_read(packed, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST", 10_000)
    folder = class_folders(tmp_path / "data")
    put(folder / "cat" / "x.bmp", encoded(scene(3, 60, 80), "bmp"))
    [finding] = doctor.check(zipped(folder, tmp_path / "data.zip") if packed else folder).errors
    assert finding.where == "cat/x.bmp" and "its file has 0.0 GB" in finding.what


def test_a_member_that_declares_gigabytes_is_named(tmp_path):
    path = zipped(class_folders(tmp_path / "data"), tmp_path / "data.zip")
    content, place = bytearray(path.read_bytes()), 0
    for _ in range(3): place = content.index(b"PK\1\2", place + 1)
    content[place + 20:place + 28] = struct.pack("<II", 4 << 29, 4 << 29)  # packed and unpacked: both lie
    path.write_bytes(content)
    [finding] = doctor.check(path).errors
    assert finding.where == "cat/2.png" and "2.1 GB" in finding.what
    assert len(layouts.survey(doctor.fix(path, tmp_path / "out")).items) == 15


# what may pass is not remembered

def spoilt(content, name):
    "The zip with a flipped bit in the content of a member: its table of contents is as before."
    at = content.index(name.encode()) + len(name) + 60
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1:]


def test_a_zip_that_is_repaired_or_damaged_later_is_looked_at_again(tmp_path):
    path = zipped(class_folders(tmp_path / "data"), tmp_path / "data.zip")
    good = path.read_bytes()
    for content, count in ((spoilt(good, "cat/3.png"), 1), (good, 0), (spoilt(good, "dog/1.png"), 1), (good, 0)):
        time.sleep(0.02)
        path.write_bytes(content)
        assert len(doctor.check(path).errors) == count
        splits = data.load(path)
        assert sum(len(splits[name]) for name in data.NAMES) == 16 - count


def test_a_damaged_zip_is_repaired_or_refused_and_leaves_nothing(tmp_path):
    path, rng, outcomes = zipped(class_folders(tmp_path / "data", n=4), tmp_path / "data.zip"), random.Random(0), []
    good = path.read_bytes()
    for n in range(40):
        content = bytearray(good)
        for _ in range(5): content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(content)
        try: doctor.fix(path, tmp_path / "made" / f"{n}")
        except CourseError as why: outcomes.append(str(why))
        else: outcomes.append([f for f in doctor.check(tmp_path / "made" / f"{n}").errors if f.kind == "unreadable image"])
    assert sum(outcome == [] for outcome in outcomes) > 20
    assert all(outcome == [] or isinstance(outcome, str) and "\n" not in outcome for outcome in outcomes)
    assert {made.name for made in (tmp_path / "made").iterdir()} == {f"{n}" for n, outcome in enumerate(outcomes) if isinstance(outcome, list)}


def test_a_file_that_is_damaged_while_it_is_repaired_is_named(tmp_path, monkeypatch):
    folder = class_folders(tmp_path / "data")
    data.load(folder)
    content = files.Files.content
    def gone(self, name):
        if name == "dog/3.png": raise OSError(5, "Input/output error")
        return content(self, name)
    monkeypatch.setattr(files.Files, "content", gone)
    with pytest.raises(CourseError, match="'dog/3.png' cannot be read any more .Input/output error."): doctor.fix(folder, tmp_path / "made" / "out")
    assert list((tmp_path / "made").iterdir()) == []


def test_a_failure_that_passes_is_not_remembered(tmp_path, monkeypatch):
    folder, fails = class_folders(tmp_path / "data"), []
    whole = data.load(folder).fingerprint
    for n, why in enumerate((MemoryError(), OSError(5, "Input/output error"))):
        monkeypatch.setenv("COURSE_HOME", str(tmp_path / f"home {n}"))
        with monkeypatch.context() as patch:
            read = files.Files.read
            def failing(self, name, most=-1):
                if name == "cat/3.png" and most < 0:
                    fails.append(name)
                    raise why
                return read(self, name, most)
            patch.setattr(files.Files, "read", failing)
            for _ in range(2): assert ("error", "unreadable image", "cat/3.png") in said(doctor.check(folder), "error")
        assert data.load(folder).fingerprint == whole
    assert len(fails) == 4


def test_names_in_a_zip_may_begin_with_a_dot(tmp_path):
    folder = class_folders(tmp_path / "data")
    put(folder / "README", b"?")
    plain, dotted = zipped(folder, tmp_path / "a.zip"), zipped(folder, tmp_path / "b.zip", prefix="./", extra=[("./", b"")])
    assert files.Files(dotted).names == files.Files(plain).names and data.load(dotted).fingerprint == data.load(plain).fingerprint
    inner = zipped(folder, tmp_path / "c.zip", prefix="photos/./")
    assert files.Files(inner).names == files.Files(plain).names and doctor.check(inner).errors == []


# folders that hold no data

def test_a_bundle_and_a_run_among_the_data_are_left(tmp_path):
    folder = class_folders(tmp_path / "data")
    before = data.load(folder).fingerprint
    put(folder / "model" / "model.json", b'{"bundle": 2, "classes": ["cat"]}')
    put(folder / "model" / "weights.safetensors", b"?")
    put(folder / "model.run" / "run.json", b'{"model": "cnn"}')
    put(folder / "model.run" / "checkpoint.pt", b"?")
    splits = data.load(folder)
    assert splits.fingerprint == before and {(f.level, f.kind, f.where) for f in splits.left_out} == {
        ("note", "a model", "model"), ("note", "a run", "model.run")}
    assert doctor.check(folder).errors == []
    for name in ("a", "b", "c"): put(folder / "tv.run" / f"{name}.png", encoded(scene(ord(name))))
    put(folder / "tv.run" / "run.json", b"[]")
    put(folder / "cat" / "model.json", b'{"about": "a cat"}')
    assert data.load(folder).classes == ["cat", "dog", "tv.run"]


@pytest.mark.skipif(not os.path.ismount("/proc"), reason="only Linux tells of itself in /proc")
@pytest.mark.parametrize("where", ["/proc/self", "/proc", "/sys"])
def test_a_link_to_what_the_system_says_is_not_followed(where, tmp_path):
    folder = class_folders(tmp_path / "data")
    before = data.load(folder).fingerprint
    (folder / "cat" / "more").symlink_to(where)
    splits, walked = data.load(folder), files.Files(folder)
    assert splits.fingerprint == before and len(walked.names) == 16
    assert said(splits.left_out) == {("warning", "no data", "cat/more")}


# knock-outs: each break must be noticed by the check named beside it

def check_tiff(): assert files.look(encoded(scene(1), "tiff", exif=tagged_exif())).orientation == 6


def tagged_exif():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def check_content(): assert decoding.looks_like_an_image(encoded(scene(1), "jpeg")[:16])


def check_profile(): assert files.look(encoded(scene(1), icc_profile=profile(1.0))).note


def check_frames():
    several = encoded(Image.fromarray(scene(1)), "tiff", save_all=True, append_images=[Image.fromarray(scene(2))])
    assert files.look(several).frames == 2


KNOCK_OUTS = {
    "orientation read after loading": ("_orientation", lambda image: 1, check_tiff),
    "names alone": ("looks_like_an_image", lambda start: False, check_content),
    "profiles ignored": ("_in_srgb", lambda image: (image, ""), check_profile),
    "one frame": ("_frames", lambda image: 1, check_frames),
}


@pytest.mark.parametrize("name", KNOCK_OUTS)
def test_knock_outs_are_noticed(name, monkeypatch):
    target, broken, verify = KNOCK_OUTS[name]
    verify()
    monkeypatch.setattr(decoding, target, broken)
    with pytest.raises(AssertionError): verify()


@pytest.mark.skipif(sys.platform == "win32", reason="a program is a shell script here")
def test_an_eps_under_the_name_of_a_jpg_starts_no_program(tmp_path):
    program = put(tmp_path / "bin" / "gs", f"#!/bin/sh\ntouch '{tmp_path}/started'\n".encode())
    program.chmod(0o755)
    folder = class_folders(tmp_path / "data")
    put(folder / "cat" / "x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n{} loop\n")
    code = "import sys\nfrom course_lib import doctor\nprint(doctor.check(sys.argv[1]).errors)"
    told = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, timeout=60,
                          env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"})
    assert "cat/x.jpg" in told.stdout and "EPS" in told.stdout and not (tmp_path / "started").exists()


def test_formats_that_start_programs_are_never_opened():
    from PIL import EpsImagePlugin  # noqa: F401 - registers itself
    with pytest.raises(OSError, match="EPS"): data.decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    source = open(decoding.__file__).read()
    assert source.count("Image.open(") == 1 and "formats=" in source
    for room in (data, files, layouts, doctor): assert "Image.open(" not in open(room.__file__).read()
    assert io.BytesIO(encoded(scene(1))).read(4) == b"\x89PNG"
