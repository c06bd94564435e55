"Downloads from a server on this machine, in the formats of the originals: once, checked, and failures."
import gzip
import hashlib
import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets
from torchvision.datasets import voc as voc_module

from course_lib.core import CourseError, home, sources
from course_lib.data import NAMES, SINGLE, load
from course_lib.files import describe, look
from course_lib.notebooks import checkout
from making import encoded, scene, voc_xml

ROOT = checkout()
SETS = ["cifar10", "cifar100", "fashion-mnist", "pets", "flowers102", "food101", "voc2007", "voc2012"]


# the archives, as small as they can be

def tar(files, mode="w:gz"):
    with tarfile.open(fileobj=(buffer := io.BytesIO()), mode=mode) as archive:
        for name, content in files.items():
            (info := tarfile.TarInfo(name)).size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def md5(content): return hashlib.md5(content).hexdigest()


def rows(n, start): return np.stack([scene(start + i, 32, 32).transpose(2, 0, 1).ravel() for i in range(n)])


def cifar(patch, url, kind, folder, parts, label_key, names_key, classes, meta):
    "CIFAR's pickled batches: 20 images of 2 classes in each part."
    def batch(start): return {"data": rows(20, start), label_key: [i % 2 for i in range(20)]}

    files = {part: pickle.dumps(batch(100 * n))
             for n, part in enumerate(parts)} | {meta: pickle.dumps({names_key: classes})}
    archive = tar({f"{folder}/{name}": content for name, content in files.items()})
    kind = getattr(datasets, kind)
    patch.setattr(kind, "url", f"{url}/{kind.filename}")
    patch.setattr(kind, "tgz_md5", md5(archive))
    *train, test = [[part, md5(files[part])] for part in parts]
    patch.setattr(kind, "train_list", train)
    patch.setattr(kind, "test_list", [test])
    patch.setattr(kind, "meta", dict(filename=meta, key=names_key, md5=md5(files[meta])))
    return {kind.filename: archive}


def fashion(patch, url):
    "Fashion-MNIST's gzipped idx files: 40 + 20 images of 10 classes."
    files = {}
    for part, n, start in (("train", 40, 0), ("t10k", 20, 500)):
        images = np.stack([scene(start + i, 28, 28)[..., 0] for i in range(n)])
        labels = np.arange(n) % 10
        files[f"{part}-images-idx3-ubyte.gz"] = struct.pack(">IIII", 2051, n, 28, 28) + images.tobytes()
        files[f"{part}-labels-idx1-ubyte.gz"] = struct.pack(">II", 2049,
                                                            n) + labels.astype(np.uint8).tobytes()
    files = {name: gzip.compress(content) for name, content in files.items()}
    patch.setattr(datasets.FashionMNIST, "mirrors", [f"{url}/"])
    patch.setattr(datasets.FashionMNIST, "resources",
                  [(name, md5(content)) for name, content in files.items()])
    return files


def pets(patch, url):
    lines = {part: [(f"{breed}_{n}", k) for k, breed in enumerate(("Abyssinian", "basset_hound"), 1)
                    for n in range(start, stop)]
             for part, start, stop in (("trainval", 0, 20), ("test", 20, 30))}
    names = [name for part in lines.values() for name, _ in part]
    images = tar({f"images/{name}.jpg": encoded(scene(i), "jpeg") for i, name in enumerate(names)})
    notes = tar({f"annotations/{part}.txt": "".join(f"{name} {k} {k} 1\n" for name, k in pairs).encode()
                 for part, pairs in lines.items()})
    files = {"images.tar.gz": images, "annotations.tar.gz": notes}
    patch.setattr(datasets.OxfordIIITPet, "_RESOURCES",
                  tuple((f"{url}/{n}", md5(content)) for n, content in files.items()))
    return files


def mat(**values):
    savemat(buffer := io.BytesIO(), values)
    return buffer.getvalue()


def flowers(patch, url):
    "Three images of each of 102 classes: one for each split."
    numbers = np.arange(1, 307)
    files = {"102flowers.tgz": tar({f"jpg/image_{n:05}.jpg": encoded(scene(int(n), 16, 16), "jpeg")
                                    for n in numbers}),
             "imagelabels.mat": mat(labels=(numbers - 1) % 102 + 1),
             "setid.mat": mat(trnid=numbers[:102], valid=numbers[102:204], tstid=numbers[204:])}
    kinds = dict(zip(("image", "label", "setid"), files, strict=True))
    patch.setattr(datasets.Flowers102, "_download_url_prefix", f"{url}/")
    patch.setattr(datasets.Flowers102, "_file_dict",
                  {kind: (name, md5(files[name])) for kind, name in kinds.items()})
    return files


def food(patch, url):
    lists = {part: {dish: [f"{dish}/{n}" for n in range(start, stop)] for dish in ("apple_pie", "waffles")}
             for part, start, stop in (("train", 0, 20), ("test", 20, 30))}
    names = [name for part in lists.values() for dish in part.values() for name in dish]
    files = {f"food-101/images/{name}.jpg": encoded(scene(i), "jpeg") for i, name in enumerate(names)}
    files |= {f"food-101/meta/{part}.json": json.dumps(content).encode() for part, content in lists.items()}
    archive = tar(files)
    patch.setattr(datasets.Food101, "_URL", f"{url}/food-101.tar.gz")
    patch.setattr(datasets.Food101, "_MD5", md5(archive))
    return {"food-101.tar.gz": archive}


def voc(patch, url, year):
    "VOC: Annotations, ImageSets and JPEGImages in this order, as in the originals."
    parts = dict(train=range(0, 8), val=range(8, 14), trainval=range(0, 14))
    archives = {year: tar(voc_files(year, range(14), parts), "w:")}
    if year == "2007":
        archives["2007-test"] = tar(voc_files(year, range(14, 20), dict(test=range(14, 20))), "w:")
    files = {}
    for key, content in archives.items():
        entry = dict(voc_module.DATASET_YEAR_DICT[key])
        files[entry["filename"]] = content
        patch.setitem(voc_module.DATASET_YEAR_DICT, key,
                      entry | dict(url=f"{url}/{entry['filename']}", md5=md5(content)))
    return files


def voc_files(year, numbers, parts):
    root = f"VOCdevkit/VOC{year}"
    # one per class too, which must not confuse
    lists = parts | {f"cat_{name}": part for name, part in parts.items()}
    return {**{f"{root}/Annotations/{n:06}.xml": voc_xml(filename=f"{n:06}.jpg").encode() for n in numbers},
            **{f"{root}/ImageSets/Main/{name}.txt": "".join(f"{n:06}{'  1' * ('_' in name)}\n"
                                                            for n in part).encode()
               for name, part in lists.items()},
            **{f"{root}/JPEGImages/{n:06}.jpg": encoded(scene(n), "jpeg") for n in numbers}}


MAKERS = {
    "cifar10": partial(cifar, kind="CIFAR10", folder="cifar-10-batches-py", label_key="labels",
                       names_key="label_names",
                       parts=[f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"],
                       classes=["airplane", "automobile"],
                       meta="batches.meta"),
    "cifar100": partial(cifar, kind="CIFAR100", folder="cifar-100-python", label_key="fine_labels",
                        names_key="fine_label_names",
                        parts=["train", "test"], classes=["apple", "aquarium_fish"], meta="meta"),
    "fashion-mnist": fashion, "pets": pets, "flowers102": flowers, "food101": food,
    "voc2007": partial(voc, year="2007"), "voc2012": partial(voc, year="2012"),
}
EXPECTED = {  # classes, and the images of train + valid, valid and test; None where it follows from shares
    "cifar10": (["airplane", "automobile"], 100, None, 20),
    "cifar100": (["apple", "aquarium_fish"], 20, None, 20),
    "fashion-mnist": (datasets.FashionMNIST.classes, 40, None, 20),
    "pets": (["Abyssinian", "Basset Hound"], 40, None, 20),
    "flowers102": (datasets.Flowers102.classes, 204, 102, 102),
    "food101": (["apple_pie", "waffles"], 40, None, 20),
    "voc2007": (["cat", "dog"], 14, 6, 6), "voc2012": (["cat", "dog"], 14, None, None),
}


# the server

class Server:
    "Serves `files`, counts requests, and fails in the way that `trouble` says."

    def __init__(self):
        self.files, self.trouble, self.asked = {}, "", Counter()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self): server.answer(self)
            do_HEAD = do_GET
            def log_message(self, *_): pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True).start()

    def answer(self, request):
        name = request.path.rpartition("/")[2]
        self.asked[name] += 1
        content = self.files.get(name)
        if self.trouble == "404" or content is None: return request.send_error(404)
        if self.trouble == "500": return request.send_error(500)
        if self.trouble == "no http": return request.wfile.write(b"220 ftp.example.org ready\r\n")
        if self.trouble == "hangs up": return request.connection.close()
        if self.trouble == "wrong content": content = content[:-1] + bytes([content[-1] ^ 1])
        if self.trouble == "login page": content = b"<html>Please log in</html>"
        request.send_response(200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[:len(content) // 2] if self.trouble == "cut short" else content)

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.close()


@pytest.fixture(params=SETS)
def name(request, server, tmp_path, monkeypatch):
    "A data set's name, after its archives were put on the server."
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    server.files = MAKERS[request.param](monkeypatch, server.url)
    return request.param


def check(name):
    "Load it, and compare with what the server has."
    classes, learn, valid, test = EXPECTED[name]
    splits = load(name)
    assert splits.classes == list(classes)
    sizes = [len(splits[part]) for part in NAMES]
    if name == "voc2012": assert sum(sizes) == learn and sizes[1] == 6 and min(sizes) > 0
    else: assert (sizes[0] + sizes[1], sizes[2]) == (learn, test) and 0 < sizes[1] < sizes[0] + 1
    assert valid in (None, sizes[1])
    for part in NAMES:
        image, target = splits[part][0]
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.std() > 10
        if splits.task == SINGLE: assert set(splits[part].targets) == set(range(len(classes)))
        else: np.testing.assert_array_equal(target["boxes"], [[1, 1, 20, 20], [5, 5, 30, 30]])
    return splits


def refused(name):
    "The one line that says why it cannot be had."
    with pytest.raises(CourseError) as caught: load(name)
    message = str(caught.value)
    assert "\n" not in message and "()" not in message
    assert f"datasets/{name}.md" in message and "'streets'" in message
    return message


def test_the_list_is_complete():
    assert {name for name, module in sources.homes().items() if module == "downloads"} == {*SETS, "digits"}
    assert set(MAKERS) == set(EXPECTED) == set(SETS)


def test_scans_need_no_download_and_are_split_by_seed():
    splits, again, other = load("digits"), load("digits"), load("digits", seed=1)
    assert splits.fingerprint == again.fingerprint != other.fingerprint and splits.classes == list("0123456789")
    names = [name for part in NAMES for name in splits[part].names]
    assert len(names) == len(set(names)) == 1797 and splits.made == NAMES
    image, target = splits.test[0]
    assert image.shape == (8, 8, 3) and image.dtype == np.uint8 and image.max() == 255 and 0 <= target < 10
    sizes = [len(load("digits?valid=0.1&test=0.3")[part]) / 1797 for part in NAMES]
    assert np.allclose(sizes, [0.6, 0.1, 0.3], atol=0.04)
    assert load("digits?classes=1,7").classes == ["1", "7"]
    for wrong in ("valid=0", "test=1", "valid=0.5&test=0.5", "test=nan"):
        with pytest.raises(CourseError, match="shares"): load(f"digits?{wrong}")


def test_names_are_known_without_importing_anything_for_it():
    code = """
import sys
from course_lib.core import CourseError, sources
print(*sources.names())
try: sources["cifer10"]
except CourseError as why: print(why)
print(*{"torch", "torchvision", "course_lib.downloads"} & set(sys.modules))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names, hint, imported = said.split("\n")[:3]
    assert set(SETS) <= set(names.split()) and "cifar10" in hint and imported == ""


@pytest.mark.parametrize("spec", SETS)
def test_each_says_what_it_is(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_HOME", str(tmp_path))
    source = sources[spec]
    assert source.name == spec and re.search(r"^[\d,]+ .*; \d+ [MG]B$", source.about) and not source.here
    (tmp_path / spec).mkdir()
    assert source.here


@pytest.mark.parametrize("option", ["self", "source", "loader", "path", "year", "tset"])
def test_an_unknown_option_is_refused_before_anything_is_fetched(option, name, server):
    with pytest.raises(CourseError, match=f"unknown data option '{option}'"): load(f"{name}?{option}=1")
    # whose options are those of a folder, read when it is there
    assert not server.asked or name.startswith("voc")


def test_a_download_happens_once(name, server):
    first = check(name)
    assert server.asked.keys() == server.files.keys()
    server.asked.clear()
    second = check(name)
    assert not server.asked and second.fingerprint == first.fingerprint
    assert [second[part].names for part in NAMES] == [first[part].names for part in NAMES]


def test_images_are_those_of_the_archive(name):
    splits = check(name)
    if name.startswith("cifar"):
        expected = {describe(scene(100 * n + i, 32, 32)).digest for n in range(6) for i in range(20)}
    elif name == "fashion-mnist": expected = {describe(np.repeat(scene(s, 28, 28)[..., :1], 3, 2)).digest
                                              for s in [*range(40), *range(500, 520)]}
    else: expected = {look(encoded(scene(n, *size), "jpeg")).digest for n in range(400)
                      for size in [(16, 16) if name == "flowers102" else (48, 64)]}
    found = [describe(splits[part].read(i)).digest for part in NAMES for i in range(len(splits[part]))]
    assert set(found) <= expected and len(set(found)) == len(found)
    for part in NAMES:  # worker processes get them by pickle
        again = pickle.loads(pickle.dumps(splits[part]))
        np.testing.assert_array_equal(again.read(0), splits[part].read(0))


TROUBLES = ["404", "500", "cut short", "wrong content", "login page", "hangs up", "no http"]


@pytest.mark.parametrize("trouble", TROUBLES)
def test_after_a_failure_the_next_try_works(name, server, trouble):
    server.trouble = trouble
    message = refused(name)
    if trouble in ("404", "500"): assert trouble in message
    server.trouble = ""
    check(name)


def test_the_second_file_may_fail_too(name, server):
    missing = list(server.files)[-1]
    content = server.files.pop(missing)
    assert "404" in refused(name)
    server.files[missing] = content
    check(name)


def test_nobody_there(name, server):
    server.close()
    assert re.search("refused|errno|connect", refused(name), re.I)


def test_a_kill_while_unpacking_leaves_nothing_half_done(name, server, monkeypatch):
    "The process ends when half of the last archive is unpacked."

    class Killed(BaseException): pass

    left = [file for file in server.files if ".t" in file]  # tar archives still to come

    def half(archive, path=".", whole=tarfile.TarFile.extractall, **how):
        left.pop()
        if left: return whole(archive, path, **how)
        whole(archive, path, members=archive.getmembers()[:len(archive.getmembers()) // 2], **how)
        raise Killed

    def cut(source, target=None, remove_finished=False):
        with open(str(source).removesuffix(".gz"), "wb") as file: file.write(b"\0" * 10)
        raise Killed

    with monkeypatch.context() as broken:
        broken.setattr(tarfile.TarFile, "extractall", half)
        if not left: broken.setattr("torchvision.datasets.utils._decompress", cut)
        with pytest.raises(Killed): load(name)
    check(name)


@pytest.mark.parametrize("name", ["pets", "voc2007"], indirect=True)
def test_two_at_once_download_once(name, server):
    with ThreadPoolExecutor(2) as pool: first, second = pool.map(check, [name, name])
    assert first.fingerprint == second.fingerprint
    twice = dict(server.asked)
    shutil.rmtree(home())
    server.asked.clear()
    check(name)
    assert server.asked == twice


PLACES = {  # where the cards say to put files that were fetched by hand
    "cifar10": "", "cifar100": "", "fashion-mnist": "FashionMNIST/raw", "pets": "oxford-iiit-pet",
    "flowers102": "flowers-102",
    "food101": "", "voc2007": "", "voc2012": "",
}


def originals(name):
    "The files that torchvision wants: (address, md5)."
    kind = getattr(datasets, sources[name].kind)
    if name.startswith("voc"):
        return [(e["url"], e["md5"]) for key, e in voc_module.DATASET_YEAR_DICT.items()
                if key.startswith(name[3:])]
    if name.startswith("cifar"): return [(kind.url, kind.tgz_md5)]
    if name == "fashion-mnist": return [(kind.mirrors[0] + file, md5) for file, md5 in kind.resources]
    if name == "flowers102":
        return [(kind._download_url_prefix + file, md5) for file, md5 in kind._file_dict.values()]
    return list(kind._RESOURCES) if name == "pets" else [(kind._URL, kind._MD5)]


@pytest.mark.parametrize("spec", SETS)
def test_the_card_has_the_addresses_and_checksums(spec):
    text = (ROOT / "datasets" / f"{spec}.md").read_text(encoding="utf-8")
    for url, checksum in originals(spec): assert url in text and checksum in text
    assert f"`{spec}`" in text and len(text.splitlines()) < 45
    assert all(word in text
               for word in ("Source", "Licence", "Authors", "Size", "Classes", "Splits", "wrong"))
    assert f"{spec}.md" in (ROOT / "datasets" / "README.md").read_text(encoding="utf-8")


def test_files_fetched_by_hand_need_no_server(name, server, tmp_path):
    folder = tmp_path / "home" / name / PLACES[name]
    folder.mkdir(parents=True)
    for file, content in server.files.items(): (folder / file).write_bytes(content)
    server.trouble = "404"
    check(name)
    text = (ROOT / "datasets" / f"{name}.md").read_text(encoding="utf-8")
    assert f"datasets/{name}/{PLACES[name]}".rstrip("/") in text
    assert [file for file in server.files if file not in text] == []
