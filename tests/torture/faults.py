"Faults of the world around a command: kills, other processes, full disks, taken paths, Ctrl-C."
import os
import shutil
import signal
import stat
import subprocess
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from made import results
from making import put
from trial import Child, Failed, Ran, Skipped, Trial, no_leftovers, shown, tree, unchanged

BUNDLES = ("cnn", "ssd", "svm")  # jobs whose result is a bundle


def whole(job: str, out: Path, *allowed: dict) -> None:
    "Failed if something lies at `out` and is not one of several whole results."
    from course_lib.core import CourseError, open_bundle
    if not os.path.lexists(out): return
    try: inside = job in BUNDLES and open_bundle(out)
    except CourseError as why: raise Failed(f"half a bundle: {why}") from None
    here = {name: what for name, what in tree(out).items() if name != "model.json" or not inside}
    if here not in allowed: raise Failed("what lies at --out is neither the old nor the new")


# ---- kills

def kills(t: Trial) -> None:
    "SIGKILL at random moments; then run again: the result is that of a run that nobody disturbed, bit for bit."
    kind = t.pick(("cnn", "saving", "svm", "fix", "ssd", "saving", "check", "render"))
    job = "cnn" if kind == "saving" else kind
    (alone, there), out = t.made.undisturbed(job), t.folder / "out"
    expected, old = results(job, alone, there), None
    if job in BUNDLES and t.rng.random() < 0.5:
        t.made.copy("svm" if job == "cnn" else "cnn", out)
        old = results(job, alone, out)
    words = t.made.words(job, out)
    for _ in range(t.rng.choice((1, 1, 2, 3))):
        again = ["--resume"] if job in ("cnn", "ssd") and out.with_name("out.run").exists() else []
        child = t.start(*words, *again, limit=60)
        if kind == "saving": _until_it_saves(child, out, alone.seconds)
        time.sleep(t.rng.uniform(0, 0.02 if kind == "saving" else alone.seconds))
        child.kill()
        t.must(child.wait(), sent=signal.SIGKILL, limit=60)
        if old and not out.exists(): raise Failed("the older bundle is gone")
        whole(job, out, old or expected, expected)
    if job in ("fix", "render"): shutil.rmtree(out, ignore_errors=True)  # it was done before the kill: they take new folders
    again = ["--resume"] if job in ("cnn", "ssd") else []
    ran = t.course(*words, *again, ok=(alone.status,), limit=60)
    if results(job, ran, out) != expected: raise Failed("other bits than those of a run without a kill")
    no_leftovers(t.folder)


def _until_it_saves(child: Child, out: Path, seconds: float) -> None:
    "Until something lies in a hidden folder beside `out`, or the process is gone."
    until = time.monotonic() + 10 * seconds
    while time.monotonic() < until:
        with suppress(FileNotFoundError):  # a folder that was there a moment ago
            if any(out.parent.glob(".*/*")): return
        if os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT): return


# ---- several processes

def together(t: Trial) -> None:
    "Two processes with one goal: one is refused in a line or both end well, and the result is that of one alone."
    kind, out = t.pick(("out", "cache", "fix", "reader")), t.folder / "out"
    if kind == "reader": return _reader(t, out)
    job = dict(out="cnn", cache="svm", fix="fix")[kind]
    alone, there = t.made.undisturbed(job)
    goals = [out, t.folder / "other"] if kind == "cache" else [out, out]
    if kind == "out" and t.rng.random() < 0.5: t.made.copy("svm", out)
    first = t.start(*t.made.words(job, goals[0]), limit=60)
    time.sleep(t.rng.choice((0, t.rng.uniform(0, alone.seconds))))
    both = [one.wait() for one in (t.start(*t.made.words(job, goals[1]), limit=60), first)]
    for ran in both:
        t.must(ran, ok=(0, 2) if kind != "cache" else (0,), limit=60)
        if ran.status == 2: _plain(ran)
    if all(ran.status for ran in both): raise Failed(f"both were refused: {shown(both[0].last)}; {shown(both[1].last)}")
    for goal in goals:
        if results(job, alone, goal) != results(job, alone, there): raise Failed("other bits than those of one process alone")
    no_leftovers(t.folder)


def _reader(t: Trial, out: Path) -> None:
    "One process replaces a bundle again and again, another opens it again and again."
    from course_lib.core import CourseError, open_bundle, save_bundle
    source, until = t.made.bundle("cnn"), time.monotonic() + 2
    t.made.copy("cnn", out)
    def write():
        meta = open_bundle(source).meta
        while time.monotonic() < until: save_bundle(out, meta, lambda part: shutil.copy(source / "weights.safetensors", part))
    def read():
        while time.monotonic() < until: open_bundle(out)
    both = [t.start(work=write), t.start(work=read)]
    for child in both: t.must(child.wait(), ok=(0,))
    try: open_bundle(out)
    except CourseError as why: raise Failed(f"{why}") from None
    no_leftovers(t.folder)


# ---- full disks

@contextmanager
def mounted(folder: Path, options: str):
    "A small file system of its own at a folder. Skipped where that cannot be."
    folder.mkdir(exist_ok=True)
    if not hasattr(os, "geteuid") or os.geteuid(): raise Skipped("only root can mount a small file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True).returncode:
        raise Skipped("no file system can be mounted here")
    try: yield folder
    finally: subprocess.run(["umount", "-l", folder], check=True)


def size(path: Path) -> int:
    "Kilobytes of all files below a path, each in whole pages."
    return sum(-(-each.stat().st_size // 4096) * 4 + 4 for each in [path, *path.rglob("*")])


def disk(t: Trial) -> None:
    "The disk fills up at a random place: one line with a remedy, and no older result is lost."
    kind = t.pick(("cache", "bundle", "checkpoint", "fix", "predict", "render"))
    job = dict(cache="svm", bundle="svm", checkpoint="cnn").get(kind, kind)
    there, home = t.made.undisturbed(job)[1], t.home
    need = size(there.with_name("home") if kind == "cache" else there) * (4 if kind == "checkpoint" else 1) + 4
    older = kind in ("bundle", "checkpoint") and t.rng.random() < 0.5
    room = int(t.rng.uniform(0.1, 1.1) * need) // 4 * 4 + 4 + (size(t.made.bundle("forest")) if older else 0)
    with mounted(t.folder / "small", f"size={room}k") as small:
        out = small / "out"
        if kind == "cache": home, out = small, t.folder / "out"
        if older: t.made.copy("forest", out)
        before = tree(out)
        ran = t.course(*t.made.words(job, out), ok=(0, 1, 2), COURSE_HOME=home, limit=60)
        lost = not os.path.lexists(out) or tree(out) != before
        if ran.status == 2:
            _plain(ran)
            if not any(word in ran.last.lower() for word in ("space", "full", "free")): raise Failed(f"no remedy in: {shown(ran.last)}")
            if older and lost: raise Failed("the older bundle is lost")
            if not older and kind != "cache" and os.path.lexists(out): raise Failed(f"leaves {out.name}")
        left = [path.name for path in small.rglob("*") if path.name.endswith((".part", ".old"))]
        if left: raise Failed(f"leaves {', '.join(left[:3])}")


# ---- taken paths

TAKEN = ("device", "part", "hard link", "fifo", "old", "file", "filled", "mount", "current", "symlink", "read-only")


def taken(t: Trial) -> None:
    "What lies at --out, or beside it, belongs to others: it is still there afterwards, and the very same thing."
    kind, images = t.pick(TAKEN), Path(shutil.copytree(t.made.photos, t.folder.parent / "photos"))
    with ExitStack() as stack:
        out, theirs = _occupied(kind, t.folder, images, stack)
        commands = [["train", "svm", "--replace", "--data", images, "--features", "color", "--out", out], ["data", "check", images, "--fix", out],
                    ["data", "render", "--n", "5", "--size", "32", "--out", out]]
        if kind in ("hard link", "device", "read-only"): commands.append(["predict", t.made.bundle("svm"), images, "--out", out])
        for words in t.rng.sample(commands, len(commands)):
            free = kind in ("part", "old", "current", "mount")  # an empty folder may be filled
            ok = (0,) if kind == "device" and words[0] == "predict" else (0, 1, 2) if free else (2,)  # a device may be written to
            before = _identity(theirs)
            with unchanged(images, *([] if kind in ("current", "mount") else [theirs])): ran = t.course(*words, ok=ok)
            if _identity(theirs) != before: raise Failed(f"{words[0]} puts another thing in its place")
            if ran.status == 2: _plain(ran)
            if kind in ("part", "old"): shutil.rmtree(out, ignore_errors=True)


def _occupied(kind: str, folder: Path, images: Path, stack: ExitStack) -> tuple[Path, Path]:
    "Put something of somebody else at a path, or beside it: the path, and what must stay."
    out, theirs = folder / "out", folder / "theirs"
    if kind == "current": return Path("."), folder
    if kind == "read-only": return (stack.enter_context(mounted(theirs, "size=4k,ro")) / "out", theirs)
    if kind == "mount": return (stack.enter_context(mounted(theirs, "size=400k")),) * 2
    if kind == "device":  # like /dev/null; never the real one, which root could rename away
        try: os.mknod(out, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except OSError: raise Skipped("no device can be made here") from None
    if kind == "hard link": os.link(images / "apple" / "03.png", out)
    if kind == "fifo": os.mkfifo(out)
    if kind == "file": put(out, b"a file of somebody else")
    if kind in ("device", "hard link", "fifo", "file"): return out, out
    put(theirs / "theirs.txt", b"theirs")
    if kind == "symlink": out.symlink_to(theirs)
    return (theirs, theirs) if kind == "filled" else (out, theirs if kind == "symlink" else theirs.rename(folder / f".out.{kind}"))


def _identity(path: Path) -> tuple:
    told = os.lstat(path)
    return told.st_dev, told.st_ino, told.st_mode, told.st_rdev


def _plain(ran: Ran) -> None:
    "Failed if a refusal is not a line for the user."
    if not ran.last.startswith("course") or "[Errno" in ran.last: raise Failed(f"says {shown(ran.last)}")


# ---- Ctrl-C

STOP = 5  # seconds until a command has stopped, on a busy machine; the report tells the median


def sigint(t: Trial) -> None:
    "SIGINT at a random moment: the last line is 'course: stopped' and the status 130, soon."
    job = t.pick(("cnn", "check", "svm", "render", "ssd", "fix", "predict"))
    cold, out = t.number % 4 == 3, t.folder / "out"
    alone = t.made.undisturbed(job)[0]
    child = t.start(*t.made.words(job, out), limit=60, cold=cold)
    time.sleep(t.rng.uniform(0.05, alone.seconds + 4 * cold))
    sent = time.monotonic()
    child.kill(signal.SIGINT)
    ran = child.wait()
    if cold and "course_lib" not in ran.err and ran.status: return  # Python itself was not up yet
    t.kind = f"cold {job}" if cold else job
    t.must(ran, ok=(alone.status, 130), limit=60)
    if ran.status == alone.status: return  # it had come to its end
    if ran.last != "course: stopped": raise Failed(f"status 130, but the last line is: {shown(ran.last)}")
    t.notes.append(time.monotonic() - sent)
    if t.notes[-1] > STOP: raise Failed(f"stops after {t.notes[-1]:.1f} s")
