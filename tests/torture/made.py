"What trials share: small data, one bundle of each kind, and what commands leave that nobody disturbs."
import json
import shutil
import zipfile
from functools import cached_property
from pathlib import Path

from making import FRUIT, encoded, fruit, fruit_scenes, put
from trial import Child, Ran, judge, tree

WORDS = dict(  # what is trained: each takes about a second or two
    svm=("train", "svm", "--replace", "--features", "color,hog", "--kernel", "linear"),
    forest=("train", "forest", "--replace", "--features", "color", "--trees", "5"),
    cnn=("train", "cnn", "--replace", "--epochs", "6", "--size", "small", "--batch-size", "8"),
    ssd=("train", "ssd", "--replace", "--weights", "none", "--input-size", "64", "--epochs", "3", "--batch-size", "8", "--width", "32",
         "--head", "lite", "--augment", "near"))


class Made:
    "Everything is made when it is first asked for, and stays."
    def __init__(self, folder: Path):
        self.folder, self.home, self.done = Path(folder), Path(folder) / "home", {}
        self.home.mkdir()

    @cached_property
    def photos(self) -> Path:
        "Class folders, 2 x 14 images of 32 pixels."
        for k, kind in enumerate(FRUIT):
            for i in range(14): put(self.folder / "photos" / kind / f"{i:02}.png", encoded(fruit(99 * k + i, [kind], 32)[0]))
        return self.folder / "photos"

    @cached_property
    def boxes(self) -> Path:
        "A COCO export of 16 images."
        images, rows, root = [], [], self.folder / "boxes"
        for i, (image, objects) in enumerate(fruit_scenes(16)):
            put(root / "images" / f"{i}.png", encoded(image))
            images.append(dict(id=i, file_name=f"{i}.png", width=len(image), height=len(image)))
            rows += [dict(id=len(rows) + k, image_id=i, category_id=FRUIT.index(kind), bbox=[a, b, c - a, d - b])
                     for k, (kind, (a, b, c, d)) in enumerate(objects)]
        whole = dict(images=images, annotations=rows, categories=[dict(id=k, name=kind) for k, kind in enumerate(FRUIT)])
        put(root / "annotations.json", json.dumps(whole).encode())
        return root

    def words(self, job: str, out: Path) -> list:
        "The command of a job, which writes to `out`."
        data = self.boxes if job == "ssd" else self.photos
        if job in WORDS: return [*WORDS[job], "--data", data, "--out", out]
        if job == "predict": return ["predict", self.bundle("svm"), data, "--out", out]
        return dict(check=["data", "check", data], fix=["data", "check", data, "--fix", out],
                    render=["data", "render", "--n", "40", "--size", "64", "--out", out])[job]

    def undisturbed(self, job: str) -> tuple[Ran, Path]:
        "How a job ends, and what it leaves. RuntimeError if it does not even work alone: nothing can be compared then."
        if job not in self.done:
            out = self.folder / job / "out"
            out.parent.mkdir()
            home = out.with_name("home")
            ran = Child(self.words(job, out), out.parent / "log", self.folder, limit=60, COURSE_HOME=home).wait()
            if why := judge(ran, (0, 1), limit=60): raise RuntimeError(f"`{ran.words}`, which nobody disturbs, {why}\n{ran.err}")
            self.done[job] = ran, out
        return self.done[job]

    def bundle(self, job: str) -> Path: return self.undisturbed(job)[1]

    def copy(self, job: str, to: Path) -> Path: return shutil.copytree(self.bundle(job), to)

    @cached_property
    def bomb(self) -> bytes:
        "A zip of one megabyte with an image of one gigabyte."
        path = self.folder / "bomb.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("cat/0.png", "w", force_zip64=True) as file:
            for _ in range(1024): file.write(bytes(2**20))
        return path.read_bytes()


def results(job: str, ran: Ran, out: Path) -> dict:
    "What has to be equal, bit for bit, however often a job is disturbed. A description holds seconds: it may differ."
    if job == "check": return {"": ran.out}
    return {name: what for name, what in tree(out).items() if name != "model.json"}
