"""How long `course data check` takes, beside what it could take at the least: `python tests/speed_of_check.py --images 10000`.

It draws JPEGs of 500 x 375 pixels into a folder of its own and measures, each time in a new process: decoding all of them with
Pillow in one thread per processor; looking at each as the check does, in threads and in processes; the first check, which
decodes, hashes and compares them; `Image.open` of each, with and
without decoding; the second check, which finds the index of the first. Medians, ratios and peak memory are printed. It is a
command and no test, because it takes minutes and wants a quiet computer."""
import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import repeat
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

CLASSES = ("bark", "gravel", "moss", "sand")
GOALS = dict(first=1.3, second=5.0)


def photo(seed, width=500, height=375):
    "The bytes of a JPEG with detail of all sizes, as a photo has: each octave is half as strong as the one below."
    rng, image = np.random.default_rng(seed), np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):
        noise = rng.normal(size=(3 * 2**octave // 4 + 1, 2**octave + 1, 3)).astype(np.float32)
        layers = [Image.fromarray(noise[..., k]).resize((width, height), Image.Resampling.BICUBIC) for k in range(3)]
        image += np.stack(layers, axis=2) * 2.0 ** (6.3 - 0.6 * octave)
    image = (image + rng.uniform(90, 160)).clip(0, 255).astype(np.uint8)
    Image.fromarray(image).save(buffer := io.BytesIO(), format="jpeg", quality=88)
    return buffer.getvalue()


def draw(number, root):
    path = Path(root) / CLASSES[number % len(CLASSES)] / f"{number:06}.jpg"
    path.write_bytes(photo(number))


def paths(root): return sorted(Path(root).rglob("*.jpg"))


def decode(path):
    with Image.open(path) as image: image.load()


def threaded(root):
    with ThreadPoolExecutor(os.cpu_count()) as pool: return sum(1 for _ in pool.map(decode, paths(root)))


def opened(root):
    for path in paths(root):
        with Image.open(path) as image: assert image.size
    return len(paths(root))


def decoded(root):
    for path in paths(root): decode(path)
    return len(paths(root))


def check(root):
    from course_lib.doctor import check
    return sum(n for row in check(str(root)).counts.values() for n in row.values())


def looked(pool, root, size=50):
    "Look at each image as the doctor does, in the processes or threads of a pool."
    known = paths(root)
    return sum(pool.map(look_at_all, [known[i:i + size] for i in range(0, len(known), size)]))


def look_at_all(some):
    from course_lib.files import look
    return len([look(path.read_bytes()) for path in some])


def in_threads(root):
    with ThreadPoolExecutor(os.cpu_count()) as pool: return looked(pool, root)


def in_processes(root):
    with ProcessPoolExecutor(os.cpu_count()) as pool: return looked(pool, root)


WORKS = dict(threaded=threaded, threads=in_threads, processes=in_processes, first=check, opened=opened, decoded=decoded, second=check)


def measure(work, root):
    "Print the seconds that a work takes in this process, imports not counted, and the peak of memory."
    from course_lib import doctor  # noqa: F401 - imported before the clock starts
    from course_lib.core import layouts, peak_memory
    layouts.discover()
    before, started = peak_memory(), time.perf_counter()
    count = WORKS[work](root)
    print(json.dumps(dict(count=count, seconds=time.perf_counter() - started, before=before, peak=peak_memory())))


def measured(work, root, home):
    command = [sys.executable, __file__, "--measure", work, "--folder", str(root)]
    done = subprocess.run(command, env={**os.environ, "COURSE_HOME": str(home), "TQDM_DISABLE": "1"}, check=True, capture_output=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the images are, or are drawn to; a folder that vanishes by default")
    parser.add_argument("--measure", choices=WORKS, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.measure: return measure(told.measure, told.folder)
    scratch = Path(tempfile.mkdtemp())
    try: compare(told, told.folder or scratch / "photos", scratch)
    finally: shutil.rmtree(scratch, ignore_errors=True)


def compare(told, root, scratch):
    if not root.exists():
        for name in CLASSES: (root / name).mkdir(parents=True)
        with ProcessPoolExecutor() as pool: list(pool.map(draw, range(told.images), repeat(root), chunksize=50))
    size = sum(path.stat().st_size for path in paths(root))
    print(f"{len(paths(root))} JPEGs of {size / len(paths(root)) / 1e3:.0f} kB, {os.cpu_count()} processors")
    found = {work: [] for work in WORKS}
    for n in range(told.rounds):
        for work in WORKS: found[work].append(measured(work, root, scratch / f"home {n}"))
    seconds = {work: median(one["seconds"] for one in several) for work, several in found.items()}
    for work, several in found.items():
        memory = max(one["peak"] for one in several)
        print(f"{work:<10}{seconds[work]:>9.2f} s{memory:>7} MB, {max(one['peak'] - one['before'] for one in several)} of them for the work")
    for pool in ("threads", "processes"): print(f"looking in {pool} / decoding in threads  {seconds[pool] / seconds['threaded']:.2f}")
    print(f"first check / decoding in threads  {seconds['first'] / seconds['threaded']:.2f}  (goal: at most {GOALS['first']})")
    print(f"decoding in turn / second check    {seconds['decoded'] / seconds['second']:.2f}  (goal: at least {GOALS['second']})")
    print(f"opening in turn / second check     {seconds['opened'] / seconds['second']:.2f}")


if __name__ == "__main__": main()
