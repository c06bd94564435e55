"""The course beside ultralytics and fastai, step by step: `python tests/against_peers.py --peers PYTHON`.

PYTHON is that of an environment with `ultralytics` and `fastai`. All three get the same drawn streets in class folders, random
weights, one thread and no network that they would need. Each step is a process of its own; printed are its exit status, the CPU
seconds of it and its children, the lines that it writes into a pipe, and for a mistake the last of them. It is a command and no
test, because the peers are no requirements of this project and it takes minutes."""
import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from course_lib.data import load

COURSE, YOLO, FASTAI = "course", "ultralytics", "fastai"
LEARN = """from fastai.vision.all import *
dls = ImageDataLoaders.from_folder('{data}', train='train', valid='val', item_tfms=Resize({size}), bs={batch}, num_workers=0)
learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)
"""
TRAIN = "learn.fit_one_cycle({epochs}, {rate}); learn.export('{out}.pkl')"
OPEN = "from fastai.vision.all import *; learn = load_learner('photos/{model}.pkl'); "


def course(line): return [sys.executable, "-m", "course_lib", *line.split()]


def yolo(line): return f"{{peers}}/yolo classify {line} device=cpu".split()


def fastai(code, **options):
    defaults = dict(data="photos", size=64, batch=16, epochs=3, rate=0.001, out="model", model="model")
    return ["{peers}/python", "-c", code.format(**defaults | options)]


def make_photos(root):
    "Drawn streets in class folders, in train, val and test; the path of a test image."
    splits = load("streets?n=200&valid=50&test=50&size=96", seed=0)
    for part, images in zip(("train", "val", "test"), (splits.train, splits.valid, splits.test)):
        for i, target in enumerate(images.targets):
            path = Path(root, part, splits.classes[target], f"{i:04}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.read(i)).save(path)
    return sorted(Path(root, "test").rglob("*.png"))[0]


def run(argv, folder, peers):
    "Exit status, CPU seconds, lines, and the last line of a command."
    argv = [part.replace("{peers}", str(peers)) for part in argv]
    quiet = dict(OMP_NUM_THREADS="1", YOLO_OFFLINE="1", YOLO_CONFIG_DIR=str(folder), MPLBACKEND="agg")
    done = subprocess.Popen(argv, cwd=folder, env=os.environ | quiet, text=True, errors="replace",
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = done.stdout.read()
    _, status, used = os.wait4(done.pid, 0)
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, len(lines), lines[-1] if lines else ""


def megabytes(path):
    "Of a file, or of all files in a folder."
    return sum(one.stat().st_size for one in [path, *path.rglob("*")] if one.is_file()) / 1e6


def steps(photo):
    "What people do first: name -> the command of each."
    weights = "model=runs/classify/train/weights/last.pt"
    return {
        "train 3 epochs": (course("train cnn --data photos --epochs 3 --input-size 64 --batch-size 16 --out model"),
                           yolo("train model=yolo11n-cls.yaml data=photos epochs=3 imgsz=64 batch=16 workers=0"),
                           fastai(LEARN + TRAIN)),
        "train again, same words": (
            course("train cnn --data photos --epochs 1 --input-size 64 --batch-size 16 --out model"),
            yolo("train model=yolo11n-cls.yaml data=photos epochs=1 imgsz=64 batch=16 workers=0"),
            fastai(LEARN + TRAIN, epochs=1)),
        "evaluate": (course("evaluate model --data photos"), yolo(f"val {weights} data=photos imgsz=64 workers=0"),
                     fastai(LEARN + "print(load_learner('photos/model.pkl').validate(dl=dls.valid))")),
        "predict one file": (course(f"predict model {photo}"), yolo(f"predict {weights} source={photo} imgsz=64"),
                             fastai(OPEN + f"print(learn.predict('{photo}'))")),
        "predict a folder": (course(f"predict model {photo.parent}"),
                             yolo(f"predict {weights} source={photo.parent} imgsz=64"),
                             fastai(OPEN + f"print(learn.predict('{photo.parent}'))")),
    }


def mistakes():
    "Ten typical mistakes: name -> the command of each, or None where there is no such mistake."
    cnn, net = "train cnn --data", "train model=yolo11n-cls.yaml workers=0 imgsz=64 epochs=1"
    return {
        "data misspelt": (course(f"{cnn} fotos"), yolo(f"{net} data=fotos"), fastai(LEARN, data="fotos")),
        "no images": (course(f"{cnn} empty"), yolo(f"{net} data={{root}}/empty"), fastai(LEARN, data="empty")),
        "option misspelt": (course(f"{cnn} photos --epoch 3"), yolo(f"{net} data=photos epoch=3"),
                            fastai(LEARN + "learn.fit_one_cycle(1, epoch=3)")),
        "number in words": (course(f"{cnn} photos --epochs three"), yolo(f"{net} data=photos epochs=three"),
                            fastai(LEARN + "learn.fit_one_cycle('three')")),
        "model misspelt": (course("train cmn --data photos"), yolo("train model=yolo11m-csl.yaml data=photos"),
                           fastai(LEARN.replace("resnet18", "resnet81"))),
        "negative batch": (course(f"{cnn} photos --batch-size -16"), yolo(f"{net} data=photos batch=-16"),
                           fastai(LEARN, batch=-16)),
        "size 0": (course(f"{cnn} photos --input-size 0"), yolo(f"{net} data=photos imgsz=0"), fastai(LEARN, size=0)),
        "image missing": (course("predict model nowhere.jpg"),
                          yolo("predict model=runs/classify/train/weights/last.pt source=nowhere.jpg"),
                          fastai(OPEN + "print(learn.predict('nowhere.jpg'))")),
        "no image inside": (course("predict model text.jpg"),
                            yolo("predict model=runs/classify/train/weights/last.pt source=text.jpg"),
                            fastai(OPEN + "print(learn.predict('text.jpg'))")),
        "model damaged": (course("predict damaged text.jpg"), yolo("predict model=damaged.pt source=text.jpg"),
                          fastai(OPEN + "pass", model="damaged")),
    }


def prepare_mistakes(root):
    "A file that is no image, an empty folder, and a damaged model for each."
    (root / "empty").mkdir()
    (root / "text.jpg").write_text("no image")
    (root / "damaged").mkdir()
    for path in (root / "model").iterdir(): (root / "damaged" / path.name).write_bytes(path.read_bytes()[:50])
    for path in (root / "damaged.pt", root / "photos" / "damaged.pkl"): path.write_bytes(b"damaged")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="the python of an environment with the peers")
    peers = parser.parse_args().peers.absolute().parent
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        photo = make_photos(root / "photos").relative_to(root)
        print("| step | " + " | ".join(f"{name}: status, CPU s, lines" for name in (COURSE, YOLO, FASTAI)) + " |")
        for step, commands in steps(photo).items():
            found = [run(argv, root, peers) for argv in commands]
            print(f"| {step} | " + " | ".join(f"{rc}, {cpu:.1f}, {n}" for rc, cpu, n, _ in found) + " |", flush=True)
        for name in ("model", "model.run", "runs/classify/train", "photos/model.pkl"):
            print(f"left in {name}: {megabytes(root / name):.1f} MB")
        prepare_mistakes(root)
        for mistake, commands in mistakes().items():
            print(f"\n{mistake}")
            for name, argv in zip((COURSE, YOLO, FASTAI), commands):
                rc, _, n, last = run([part.replace("{root}", str(root)) for part in argv], root, peers)
                print(f"  {name:<12} status {rc}, {n:>3} lines: {last[:200]}", flush=True)


if __name__ == "__main__": main()
