"Hostile input: bundles, descriptions, names, zips, annotations and images that somebody made up or damaged."
import io
import json
import pickle
import re
import shutil
import stat
import struct
import warnings
import zipfile
from pathlib import Path
from random import Random

from making import bomb, encoded, put, scene, voc, zipped
from PIL import Image
from trial import Failed, Trial, shown, tree, unchanged

HOSTILE = (None, True, -1, 0, 1.5, 1e308, float("nan"), float("inf"), 10**30, "", "x", "\x1b[2Jx", "../../x", "/etc/passwd",
           [], {}, [[]], [None], {"x": 1}, [1] * 1000, "x" * 10**5)


def damaged(data: bytes, rng: Random) -> bytes:
    "The same with flipped bits, cut short, lengthened, emptied, or with a piece of zeros."
    how, data = rng.choice(("flips", "flips", "cut", "longer", "empty", "zeros")), bytearray(data)
    start = rng.randrange(len(data))
    if how == "flips":
        for place in [rng.randrange(len(data)) for _ in range(rng.choice((1, 5, 50)))]: data[place] ^= 1 << rng.randrange(8)
    if how == "cut": del data[start:]
    if how == "longer": data += rng.randbytes(100)
    if how == "empty": data.clear()
    if how == "zeros": data[start:start + 1000] = bytes(len(data[start:start + 1000]))
    return bytes(data)


def mutated(value, rng: Random):
    "Plain content of json with one hostile value, one entry less, or one twice, at a random place."
    kids = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    if not kids or rng.random() < 0.1: return rng.choice(HOSTILE)
    kid, new = rng.choice(kids), value.copy()
    if rng.random() < 0.15: del new[kid]
    elif isinstance(new, list) and rng.random() < 0.15: new.append(new[kid])
    else: new[kid] = mutated(value[kid], rng)
    return new


# ---- bundles

class _Bait:
    "Pickled, it writes a file when somebody loads it."
    def __init__(self, path: Path): self.path = path

    def __reduce__(self): return Path.write_text, (self.path, "executed")


def vouch(bundle: Path, meta: dict) -> None:
    "Write a description with checksums that fit, as somebody with bad intentions would."
    from course_lib.core import checksum, digest
    if isinstance(meta.get("files"), dict):
        meta["files"] = {name: checksum(bundle / name) for name in meta["files"] if (bundle / name).is_file()}
    (bundle / "model.json").write_text(json.dumps({**meta, "digest": digest(meta)}), encoding="utf-8")


def described(bundle: Path) -> dict: return json.loads((bundle / "model.json").read_text(encoding="utf-8"))


def an_image(t: Trial, job: str) -> Path: return min((t.made.boxes / "images" if job == "ssd" else t.made.photos / "apple").iterdir())


JOBS = ("svm", "forest", "cnn", "ssd")


def bundles(t: Trial) -> None:
    "A bundle's files are damaged, swapped, missing or pickles; with checksums that fit, and without."
    job, fits = JOBS[t.number % 4], t.rng.random() < 0.5
    bundle, bait = t.made.copy(job, t.folder / "b"), t.folder / "bait"
    path = bundle / t.rng.choice(sorted(described(bundle)["files"]))
    kind = t.pick(("damaged", "swapped", "damaged", "missing", "extra", "damaged", "pickle"))
    if kind == "damaged": path.write_bytes(damaged(path.read_bytes(), t.rng))
    if kind == "swapped":
        other = t.made.bundle(t.rng.choice([one for one in JOBS if one != job]))
        shutil.copy(t.rng.choice([one for one in sorted(other.iterdir()) if one.name != "model.json"]), path)
    if kind == "missing": path.unlink()
    if kind == "pickle": path.write_bytes(pickle.dumps(_Bait(bait)))
    if kind == "extra": put(bundle / t.rng.choice(("weights.pt", "model.pkl", ".hidden", "x.skops")), pickle.dumps(_Bait(bait)))
    if fits: vouch(bundle, described(bundle))
    same = kind == "extra" or path.exists() and path.read_bytes() == (t.made.bundle(job) / path.name).read_bytes()
    with unchanged(bundle):
        image = an_image(t, job)
        if same or fits and kind == "damaged": t.course("predict", bundle, image, ok=(0,) if same else (0, 2))
        else: t.refused("predict", bundle, image)
    if bait.exists(): raise Failed(f"a pickle in {path.name} was executed")


def descriptions(t: Trial) -> None:
    "A bundle's json says something else, and its checksums fit."
    job = JOBS[t.number % 4]
    bundle = t.made.copy(job, t.folder / "b")
    meta, kind = described(bundle), t.pick(("value", "classes", "value", "size", "value", "unknown", "value"))
    names, ok = meta["classes"], (2,) if kind in ("classes", "size") else (0, 2)
    if kind == "value":
        path = t.rng.choice(sorted(bundle.glob("*.json")))
        if path.name == "model.json":
            kept = {name: meta.pop(name) for name in ("files", "digest", "bundle")}
            meta = mutated(meta, t.rng)
            meta = {**(meta if isinstance(meta, dict) else {}), **kept}
        else: path.write_text(json.dumps(mutated(json.loads(path.read_text()), t.rng)))
    if kind == "classes":
        meta["classes"] = t.rng.choice(([*names, "one more"], names[:1], [], None, "ab", 2, dict(enumerate(names)),
                                        [[name] for name in names], [1, 2], [names[0], None]))
    if kind == "unknown":
        name = t.rng.choice(("architecture", "format", "task"))
        meta[name] = t.rng.choice(("nosuch", "os.system", "\x1b[2J", ""))
        if name == "format": ok = (2,)
    if kind == "size":
        name, value = t.rng.choice((("input_size", 20000), ("input_size", 10**9), ("classes", [f"c{i}" for i in range(10**6)]),
                                    ("members", ",".join(["mobilenet_v2"] * 300)), ("width", 10**6), ("pyramid", 10**6)))
        if name in meta: meta[name] = value
        if name == "input_size" and "input_size" in meta.get("network", {}): meta["network"][name] = value
        if name == "members": meta |= dict(architecture="ensemble", format="safetensors", network=dict(members=value))
        if name in ("width", "pyramid"): meta |= dict(architecture="ssd", format="detector", task="detection", network={name: value})
    vouch(bundle, meta)
    with unchanged(bundle):
        ran = t.course("predict", bundle, an_image(t, job), ok=ok)
    if ran.status == 2 and not ran.last.startswith("course"): raise Failed(f"no line for its user, but: {ran.last}")


# ---- names

CONTROLS = ("\x1b[2J", "\x1b]0;x\x07", "\r\x1b[K", "\x07", "\nfake: row", "\u202e", "\u2066", "\x9b2J", "\x7f")


def controls(t: Trial) -> None:
    "Control characters in names of classes, files, models and data: nothing of them reaches the terminal."
    kind, name = t.pick(("classes", "files", "bundle", "words", "zip", "boxes")), "a" + t.rng.choice(CONTROLS) + "b"
    data, bundle = t.folder / "data", t.made.bundle("svm")
    if kind in ("classes", "zip"):
        shutil.copytree(t.made.photos, data)
        (data / "apple").rename(data / name)
    if kind == "files":
        shutil.copytree(t.made.photos, data)
        for place in ("apple", "lemon"): put(data / place / f"{name}.png", b"no image")
        shutil.copy(an_image(t, "svm"), data / "apple" / f"copy {name}.png")
    if kind == "zip": data = zipped(data, t.folder / f"{name}.zip")
    if kind == "bundle":
        bundle, data = t.made.copy("svm", t.folder / f"{name}.model"), t.made.photos
        vouch(bundle, described(bundle) | dict(classes=[name, "lemon"]))
    if kind == "boxes":
        shutil.copytree(t.made.boxes, data)
        text = (data / "annotations.json").read_text().replace('"apple"', json.dumps(name)).replace("3.png", f"3{json.dumps(name)[1:-1]}.png")
        (data / "annotations.json").write_text(text)
    commands = [["data", "check", data], ["data", "check", data, "--json"], ["predict", bundle, data],
                ["evaluate", bundle, "--data", data], ["train", "svm", "--data", data, "--features", "color", "--out", t.folder / "m"],
                ["data", "check", data, "--with", bundle], ["data", "check", data, "--fix", t.folder / name], ["cache"]]
    if kind == "words": commands = [["train", name], ["data", "check", name], ["predict", name, name], [name], ["--import", name, "cache"]]
    for words in commands:
        ran = t.course(*words)
        if any(line.startswith("fake") for line in (ran.out + ran.err).splitlines()): raise Failed("a newline fakes a row")


# ---- zips

def patched(data: bytes, central: int, local: int, kind: str, value: int) -> bytes:
    "A number in the headers of all members of a zip, in its directory and before each member, is another."
    data = bytearray(data)
    for mark, offset in ((b"PK\x01\x02", central), (b"PK\x03\x04", local)):
        for found in re.finditer(re.escape(mark), bytes(data)): struct.pack_into(kind, data, found.start() + offset, value)
    return bytes(data)


ZIPS = ("slip", "damaged", "duplicate", "lying", "damaged", "encrypted", "link", "damaged", "nested", "compression", "dots", "junk",
        "bomb", "many")
SLIPS = ("../../slip", "C:\\slip", "..\\..\\slip", "cat/../../../slip", "....//slip", "\\\\host\\slip")


def hostile_zip(kind: str, t: Trial) -> bytes:
    "A zip of two classes and something that is wrong with it."
    rng, write = t.rng, io.BytesIO()
    if kind == "bomb": return t.made.bomb
    members = [(f"{label}/{i}.png", encoded(scene(10 * k + i))) for k, label in enumerate(("cat", "dog")) for i in range(6)]
    if kind == "slip": members += [(f"{slip}/{i}.png", encoded(scene(i))) for i, slip in enumerate((*SLIPS, t.folder.parent / "slip"))]
    if kind == "duplicate": members += [(name, encoded(scene(99))) for name, _ in members[:4]]
    if kind == "nested": members.append(("cat/inner.zip", hostile_zip("slip", t)))
    if kind == "dots": members = [(f"./{name}", data) for name, data in members]
    if kind == "many": members += [(f"cat/{i:05}.png", members[i % 12][1]) for i in range(11000)]
    with zipfile.ZipFile(write, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in members: archive.writestr(name, data)
        if kind == "link":
            for i, goal in enumerate(("/etc/passwd", "../../secret", "/dev/zero")):
                link = zipfile.ZipInfo(f"cat/link{i}.png")
                link.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(link, goal)
    data = write.getvalue()
    if kind == "damaged": return damaged(data, rng)
    if kind == "junk": return rng.choice((b"", b"PK\x05\x06" + bytes(18), rng.randbytes(1000), data + rng.randbytes(500)))
    if kind == "lying": return patched(data, *rng.choice(((24, 22), (20, 18))), "<I", rng.choice((0, 5, 2**31, 2**32 - 2)))
    if kind == "encrypted": return patched(data, 8, 6, "<H", 1)
    if kind == "compression": return patched(data, 10, 8, "<H", rng.choice((1, 6, 9, 97, 99)))
    return data


def zips(t: Trial) -> None:
    "Zips that lead outside, lie, are damaged, hold bombs or very many files."
    kind, slip = t.pick(ZIPS), t.folder.parent / "slip"  # where the names of some members lead
    path, out = put(t.folder / "data.zip", hostile_zip(kind, t)), t.folder / "out"
    limit = 60 if kind == "many" else 10
    with unchanged(path):
        t.course("data", "check", path, limit=limit)
        t.course("predict", t.made.bundle("svm"), path, limit=limit)
        fixed = t.course("data", "check", path, "--fix", out, limit=limit)
    strange = [path.name for path in t.folder.iterdir() if path.name not in ("data.zip", "out")]
    strange += [name for name, (what, _) in tree(out).items() if what == stat.S_IFLNK] + [str(slip)] * slip.exists()
    if strange: raise Failed(f"left {shown(', '.join(strange))}")
    if fixed.status == 2 and out.exists(): raise Failed("--fix fails and leaves an OUT")


# ---- annotations

def hostile_text(text: str, rng: Random) -> bytes:
    "A text with a hostile word, line, encoding, or damaged bytes."
    words, data = list(re.finditer(r"[\w.-]+", text)), text.encode()
    how = rng.choice(("word", "word", "word", "damaged", "twice", "utf-16", "bytes", "deep"))
    if how == "word":
        word, value = rng.choice(words), rng.choice((*map(str, HOSTILE), "1e400", "0x1", "1,5", "<x>", "&x;", '"', "!!python/object:os.system x"))
        return (text[:word.start()] + value + text[word.end():]).encode("utf-8", "surrogateescape")
    if how == "damaged": return damaged(data, rng)
    if how == "twice": return data + data
    if how == "utf-16": return text.encode("utf-16")
    if how == "deep": return rng.choice((b"[", b'{"a":', b"<a>", b"- ", b'"')) * 20000
    return data[:50] + rng.choice((b"\0", b"\xff\xfe\xff", b"\xef\xbb\xbf", b"\r", b"\x1b[2J")) + data[50:]


LAUGHS = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 10))
ENTITIES = (f'<!DOCTYPE x [<!ENTITY a0 "ha">{LAUGHS}]>', '<!DOCTYPE x [<!ENTITY a9 SYSTEM "file:///etc/passwd">]>',
            '<!DOCTYPE x [<!ENTITY % a9 SYSTEM "file:///etc/passwd"> %a9;]>')


def annotations(t: Trial) -> None:
    "One file of a COCO, VOC, table or YOLO data set is mutated: the check has its say, and names it if that is all it says."
    kind, data, rng = t.pick(("coco", "voc", "csv", "yolo")), t.folder / "data", t.rng
    if kind == "coco":
        path = Path(shutil.copytree(t.made.boxes, data)) / "annotations.json"
        text = path.read_text()
        new = json.dumps(mutated(json.loads(text), rng)).encode() if rng.random() < 0.6 else hostile_text(text, rng)
    if kind == "voc":
        path = voc(data, lists=dict(train=range(8), val=range(8, 12))) / rng.choice(("Annotations/3.xml", "Annotations/3.xml", "ImageSets/Main/train.txt"))
        text = path.read_text()
        evil = rng.choice(ENTITIES) + text.replace("cat", "&a9;")
        new = evil.encode() if path.suffix == ".xml" and rng.random() < 0.2 else hostile_text(text, rng)
    if kind in ("csv", "yolo"):
        for i in range(12): put(data / "images" / f"{i}.png", encoded(scene(i)))
    if kind == "csv":
        text = "filename,label\n" + "".join(f"images/{i}.png,{('cat', 'dog')[i % 2]}\n" for i in range(12))
        path, new = data / "labels.csv", hostile_text(text, rng)
    if kind == "yolo":
        for i in range(12): put(data / "labels" / f"{i}.txt", f"{i % 2} 0.5 0.5 0.25 0.25\n".encode())
        about = put(data / "data.yaml", b"train: images\nval: images\nnames: [cat, dog]\n")
        path = rng.choice((about, data / "labels" / "3.txt"))
        new = hostile_text(path.read_text(), rng)
    put(path, new)
    with unchanged(data): ran = t.course("data", "check", data)
    if ran.status == 2 and path.name not in ran.last and str(data) not in ran.last:
        raise Failed(f"does not name '{path.name}': {shown(ran.last)}")


# ---- images

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"


def tiny_bomb(rng: Random) -> bytes:
    "A few bytes that say that they are a very large image."
    canvas = b"\x10\0\0\0" + struct.pack("<I", 16382)[:3] * 2
    webp = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + b"VP8L" + struct.pack("<I", 5) + b"\x2f\xff\xff\xff\x0f\0"
    gif = b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + bytes(6) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;"
    bmp = b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 30000, 30000, 1, 24, 0, 0, 0, 0, 0, 0)
    return rng.choice((bomb(), b"RIFF" + struct.pack("<I", len(webp)) + webp, gif, bmp, b"P6 40000 40000 255\n"))


def hostile_image(rng: Random) -> tuple[str, bytes]:
    "An ending, and the bytes of an image that is damaged, a bomb, of another format, or no image at all."
    kind = rng.choice(("png", "jpeg", "webp", "bmp", "tiff", "gif"))
    image = Image.fromarray(scene(rng.randrange(10**6))).convert(rng.choice(("RGB", "L", "RGB", "P" if kind in ("png", "gif") else "RGB")))
    data, ending = encoded(image, kind), {"jpeg": "jpg", "gif": "png"}.get(kind, kind)
    how = rng.choice(("damaged", "damaged", "damaged", "damaged", "bomb", "ending", "eps", "good"))
    if how == "damaged": data = damaged(data, rng)
    if how == "bomb": data = tiny_bomb(rng)
    if how in ("ending", "bomb"): ending = rng.choice(("png", "jpg", "webp", "bmp", "tif"))
    if how == "eps": ending, data = "jpg", EPS
    return ending, data


def images(t: Trial) -> None:
    "Ten mutated images among good ones: the check and a model read what can be read, and name the rest."
    job, data = t.pick(("cnn", "svm", "ssd")), Path(shutil.copytree(t.made.photos, t.folder / "data"))
    for i in range(10):
        ending, content = hostile_image(t.rng)
        put(data / t.rng.choice(("apple", "lemon")) / f"bad{i}.{ending}", content)
    with unchanged(data):
        t.course("data", "check", data, limit=20)
        t.course("predict", t.made.bundle(job), data, "--out", t.folder / "p.json", limit=20, ok=(0,))
    rows = json.loads((t.folder / "p.json").read_text(encoding="utf-8"))
    wrong = [row["file"] for row in rows if len({"error", "predictions", "detections"} & set(row)) != 1]
    if len(rows) != 38 or wrong: raise Failed(f"{len(rows)} rows for 38 images; {', '.join(wrong[:3])}")
