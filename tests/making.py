"Small images and data sets for the tests, in every layout and with every fault."
import io
import json
import struct
import subprocess
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from course_lib.core import checksum, digest


def scene(seed, height=48, width=64):
    "An image of soft blobs, uint8 [H, W, 3]; another seed, another image."
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))


def encoded(image, kind="png", **options):
    "The bytes of an image file; `image` is an array or a PIL image."
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer := io.BytesIO(), format=kind, **options)
    return buffer.getvalue()


def png16(values, kind):
    "A PNG of 16 bits per channel, which Pillow cannot write. kind: 2 is RGB, 4 is grey + alpha, 6 is RGBA."
    height, width = values.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunk = lambda tag, data: struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb():
    "The start of a PNG that says it has 60,000 x 60,000 pixels."
    data = struct.pack(">IIBBBBB", 60000, 60000, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + data + struct.pack(">I", zlib.crc32(b"IHDR" + data))


def put(path, data):
    "Write a file, with its folders."
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def class_folders(root, classes=("cat", "dog"), n=8, start=0):
    "Class folders with `n` images each, all different: cat/0.png, ..."
    for k, name in enumerate(classes):
        for i in range(n): put(Path(root) / name / f"{i}.png", encoded(scene(start + 1000 * k + i)))
    return Path(root)


def zipped(folder, path, prefix="", extra=()):
    "A zip archive of `folder`; `extra` are (name, data) pairs."
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file(): archive.writestr(prefix + file.relative_to(folder).as_posix(), file.read_bytes())
        for name, data in extra: archive.writestr(name, data)
    return Path(path)


BOXES = (("cat", (1, 1, 20, 20)), ("dog", (5, 5, 30, 30)))  # the objects of every made-up image


def voc_xml(boxes=BOXES, width=64, height=48, filename="0.png", root="annotation"):
    "A VOC annotation, as text."
    box = lambda values: "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), values))
    objects = "".join(f"<object><name>{name}</name><bndbox>{box(values)}</bndbox></object>" for name, values in boxes)
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<{root}><filename>{filename}</filename>{size}{objects}</{root.split()[0]}>"


def voc(root, n=12, lists=None, stem=str, xml=None):
    "A VOC layout. lists: {'train': [0, 1, ...]}; stem(i) is the name of image i; xml: {i: text or bytes}."
    root, xml = Path(root), xml or {}
    for i in range(n):
        put(root / "JPEGImages" / f"{stem(i)}.png", encoded(scene(i)))
        text = xml.get(i, voc_xml(filename=f"{stem(i)}.png"))
        put(root / "Annotations" / f"{stem(i)}.xml", text if isinstance(text, bytes) else text.encode())
    for name, numbers in (lists or {}).items():
        put(root / "ImageSets" / "Main" / f"{name}.txt", "".join(f"{stem(i)}\n" for i in numbers).encode())
    return root


def coco(root, n=12, edit=None, name="annotations.json"):
    "A COCO layout; edit(content) may spoil the json's content, or return another."
    root = Path(root)
    for i in range(n): put(root / "images" / f"{i}.png", encoded(scene(i)))
    content = dict(images=[dict(id=i, file_name=f"{i}.png", width=64, height=48) for i in range(n)],
                   categories=[dict(id=1, name="cat"), dict(id=2, name="dog")],
                   annotations=[dict(id=2 * i + k, image_id=i, category_id=k + 1, bbox=[1, 1, 20 + k, 20])
                                for i in range(n) for k in range(2)])
    content = (edit(content) if edit else None) or content
    put(root / name, json.dumps(content).encode())
    return root


# ---- the data of README's walk: apples are red and round, lemons are yellow and long

FRUIT = ("apple", "lemon")


def fruit(seed, kinds, side=96):
    "An image of these fruit side by side, uint8 [side, side, 3], and (kind, box) of each."
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 140, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)
    objects = []
    for place, kind in enumerate(kinds):
        room = side // len(kinds)
        wide = int(rng.integers(side // 4, side * 2 // 5))
        high = wide if kind == "apple" else wide * 3 // 5
        left = place * room + int(rng.integers(0, max(1, room - wide)))
        top = int(rng.integers(0, side - high))
        shade = int(rng.integers(150, 255))
        colour = (shade, 20, 30) if kind == "apple" else (shade, shade - 20, 20)
        ImageDraw.Draw(image).ellipse((left, top, left + wide - 1, top + high - 1), fill=colour)
        objects.append((kind, (left, top, left + wide, top + high)))
    return np.asarray(image), objects


def fruit_scenes(n):
    "n images with one or two fruit, as `fruit` gives them."
    return [fruit(1000 + i, [FRUIT[i % 2]] if i % 3 else [*FRUIT][::1 - 2 * (i % 2)]) for i in range(n)]


def fruit_folders(root, n=30):
    "Class folders; one file is cut short, and one image stands in both classes."
    for k, kind in enumerate(FRUIT):
        for i in range(n): put(Path(root) / kind / f"{i:02}.jpg", encoded(fruit(100 * k + i, [kind])[0], "jpeg"))
    broken = Path(root) / "apple" / "07.jpg"
    broken.write_bytes(broken.read_bytes()[:700])
    put(Path(root) / "lemon" / "again.jpg", (Path(root) / "apple" / "12.jpg").read_bytes())
    return Path(root)


def fruit_yolo(root, n=48):
    "A YOLO export with its own lists of train and val; one line has a class that data.yaml does not know."
    for i, (image, objects) in enumerate(fruit_scenes(n)):
        split, side = "val" if i % 4 == 0 else "train", len(image)
        rows = [(FRUIT.index(kind), (x1 + x2) / 2 / side, (y1 + y2) / 2 / side, (x2 - x1) / side, (y2 - y1) / side)
                for kind, (x1, y1, x2, y2) in objects]
        if i == 5: rows.append((2, 0.5, 0.5, 0.1, 0.1))
        text = "".join(" ".join(f"{value:g}" for value in row) + "\n" for row in rows)
        put(Path(root) / "images" / split / f"{i:03}.jpg", encoded(image, "jpeg"))
        put(Path(root) / "labels" / split / f"{i:03}.txt", text.encode())
    put(Path(root) / "data.yaml", b"train: images/train\nval: images/val\nnames: [apple, lemon]\n")
    return Path(root)


def fruit_coco(root, n=48):
    "A COCO export; one image is missing, and one box has no area."
    content = dict(images=[], annotations=[], categories=[dict(id=k, name=kind) for k, kind in enumerate(FRUIT)])
    for i, (image, objects) in enumerate(fruit_scenes(n)):
        content["images"].append(dict(id=i, file_name=f"{i:03}.jpg", width=len(image), height=len(image)))
        for kind, (x1, y1, x2, y2) in objects:
            content["annotations"].append(dict(id=len(content["annotations"]), image_id=i, category_id=FRUIT.index(kind),
                                               bbox=[x1, y1, 0 if i == 9 else x2 - x1, y2 - y1]))
        if i != 3: put(Path(root) / "images" / f"{i:03}.jpg", encoded(image, "jpeg"))
    put(Path(root) / "annotations.json", json.dumps(content).encode())
    return Path(root)


def vouched(bundle, change):
    "Change a bundle's description, and all checksums that vouch for it, as someone with bad intentions would."
    path = Path(bundle) / "model.json"
    meta = json.loads(path.read_text(encoding="utf-8"))
    change(meta)
    meta["files"] = {name: checksum(path.parent / name) for name in meta["files"]}
    path.write_text(json.dumps({**meta, "digest": digest(meta)}), encoding="utf-8")


@contextmanager
def small_disk(
    folder: Path,  # to make, where the disk is then
    size: str,     # '1M'
):
    "A file system in memory; the test is skipped where it may not be mounted."
    folder.mkdir(parents=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True) \
        if Path("/bin/mount").exists() else None
    if made is None or made.returncode: pytest.skip("a small disk cannot be mounted here: that takes root on Linux")
    try: yield folder
    finally: subprocess.run(["umount", "-l", folder], check=True)
