"One trial: a command in a forked child, what became of it, and whether that is what the library promises."
import os
import random
import re
import resource
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST = 1000       # MB that a command on small or hostile input may need, above what its imports need
PATIENCE = 6      # a limit in seconds is of processor time; on the clock of a busy machine it is so many times longer
RAW = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")  # what a terminal obeys instead of showing


class Failed(Exception):
    "A promise was broken: the message says which, on one line."


class Skipped(Exception):
    "The trial cannot be made on this machine: the message says why."


@dataclass
class Ran:
    "What became of a command."
    words: str      # the command
    status: int     # its exit status; of a signal the negative number
    out: str
    err: str
    seconds: float  # on the clock, since it began
    cpu: float      # seconds of processor time
    memory: int     # MB at most, above what the imports need
    late: bool      # it was killed as it did not end
    heirs: bool     # processes that it started were still there

    @property
    def last(self) -> str:
        "The last line on standard error."
        return next(iter(self.err.strip().splitlines()[-1:]), "")


def judge(
    ran: Ran,
    ok: tuple = (0, 1, 2),    # exit statuses
    limit: float = 10,        # seconds of processor time
    memory: int = MOST,       # MB
    sent: int | None = None,  # a signal that was sent to it
) -> str:
    "Which promise a command broke, or ''."
    if ran.late or ran.cpu > limit: return f"needs over {limit} s"
    if "Traceback (most" in ran.err: return f"a traceback that ends in: {ran.last}"
    if ran.status < 0 and ran.status != -(sent or 0): return f"died of signal {-ran.status}"
    if ran.status >= 0 and ran.status not in ok: return f"status {ran.status}, not {ok}: {ran.last}"
    if ran.memory > memory: return f"took {ran.memory} MB, over {memory}"
    if raw := RAW.search(ran.out + ran.err): return f"prints a raw {raw[0]!r}"
    if ran.heirs and not sent: return "left a process behind"
    if ran.status == 2 and not ran.last: return "status 2 without a word"
    return ""


class Child:
    "A command, or a function, that runs in a forked child of this process, which has imported everything."
    def __init__(self,
        work: list | Callable[[], int | None],  # words behind `course`, or what to call
        logs: Path,             # a prefix of the names of the files that get its output
        cwd: Path,
        limit: float = 10,      # seconds of processor time
        cold: bool = False,     # a process of its own that imports everything, as a user starts it
        **env: str,
    ):
        self.work, self.limit, self.late = work, limit, False
        self.words = " ".join(map(str, work)) if isinstance(work, list) else work.__name__
        self.logs = [Path(f"{logs}.out"), Path(f"{logs}.err")]
        self.base = _memory()
        sys.stdout.flush()
        read, write = os.pipe()
        self.began = time.monotonic()
        self.pid = os.fork()
        if not self.pid: self._be_it(cwd, cold, env, write)
        os.close(write)
        os.read(read, 1)  # it is about to begin
        os.close(read)

    def _be_it(self, cwd: Path, cold: bool, env: dict, write: int) -> None:
        "In the child: run, and leave without what the parent would do at its own end."
        status = 1
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            for number, path in enumerate(self.logs, 1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
            os.environ.update({name: str(value) for name, value in env.items()})
            os.chdir(cwd)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_CPU, (int(self.limit * 2) + 5,) * 2)
            resource.setrlimit(resource.RLIMIT_AS, (_memory("vms") * 2**20 + 2**33,) * 2)  # a bomb harms nobody else
            os.write(write, b".")
            os.close(write)
            status = self._work(cold)
        except SystemExit as stop: status = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
        except BaseException: traceback.print_exc()
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            for stream in (sys.stdout, sys.stderr): stream.flush()
            os._exit(status or 0)

    def _work(self, cold: bool) -> int | None:
        if not isinstance(self.work, list): return self.work()
        from course_lib.stopping import start
        words = [str(word) for word in self.work]
        if not cold:
            sys.argv[1:] = words
            start()
        os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        os.execv(sys.executable, [sys.executable, "-m", "course_lib", *words])

    def kill(self, number: int = signal.SIGKILL) -> None:
        "Send it a signal. It is not reaped yet, so the number is still its own."
        os.kill(self.pid, number)

    def wait(self) -> Ran:
        "What became of it; it is killed if that takes far too long."
        until = self.began + PATIENCE * self.limit
        while not (ended := os.wait4(self.pid, os.WNOHANG))[0]:
            if not self.late and time.monotonic() > until: self.late = not self.kill()
            time.sleep(0.002)
        seconds, (_, status, used) = time.monotonic() - self.began, ended
        try: heirs = not os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError: heirs = False
        out, err = (_text(path) for path in self.logs)
        return Ran(self.words, os.waitstatus_to_exitcode(status), out, err, seconds, used.ru_utime + used.ru_stime,
                   used.ru_maxrss // 2**10 - self.base, self.late, heirs)


def _memory(kind: str = "rss") -> int:
    "MB that this process holds, which a forked child begins with."
    import psutil
    return getattr(psutil.Process().memory_info(), kind) // 2**20


def _text(path: Path) -> str:
    with open(path, encoding="utf-8", errors="replace", newline="") as file: return file.read(2**20)


class Trial:
    "A trial of a class: its own random numbers, an empty folder, a cold cache, and what all trials share."
    def __init__(self,
        name: str,     # of the class
        seed: int,
        number: int,   # from 0
        folder: Path,  # an empty one
        made,          # see `made.Made`
    ):
        self.rng, self.number, self.made = random.Random(f"{seed} {name} {number}"), number, made
        self.logs, self.ran, self.notes, self.kind = folder / "logs", [], [], ""
        self.folder, self.home = folder / "work", folder / "home"
        for path in (self.logs, self.folder, self.home): path.mkdir(parents=True)

    def pick(self, kinds: tuple[str, ...]) -> str:
        "The kind of this trial: over the trials of a class each has its turn."
        self.kind = kinds[self.number % len(kinds)]
        return self.kind

    def start(self, *words, work: Callable | None = None, **how) -> Child:
        "Begin a command, or a function."
        how = dict(cwd=self.folder, COURSE_HOME=self.home) | how
        self.ran.append(Child(work or list(words), self.logs / str(len(self.ran)), **how))
        return self.ran[-1]

    def course(self, *words, limit: float = 10, ok: tuple = (0, 1, 2), memory: int = MOST, **how) -> Ran:
        "Run a command to its end. Failed if it breaks a promise."
        ran = self.start(*words, limit=limit, **how).wait()
        self.must(ran, ok, limit, memory)
        return ran

    def must(self, ran: Ran, *how, **more) -> None:
        "Failed if a command broke a promise."
        if broken := judge(ran, *how, **more): raise Failed(f"{broken}: `{shown(ran.words)}`")

    def refused(self, *words, **how) -> Ran:
        "Run a command that has to end in one line and status 2."
        ran = self.course(*words, ok=(2,), **how)
        if not ran.last.startswith("course"): raise Failed(f"no line for its user, but: {ran.last}")
        return ran


def shown(words: str) -> str:
    "On one line, and not too long."
    text = words.encode("unicode_escape").decode()
    return text if len(text) < 200 else f"{text[:90]} ... {text[-90:]}"


def tree(path: Path) -> dict:
    "All that is at a path and below it: kinds, links and the content of files."
    path, found = Path(path), {}
    for each in [path, *(sorted(path.rglob("*")) if path.is_dir() else ())]:
        if not os.path.lexists(each): continue
        told = os.lstat(each)
        what = told.st_rdev if stat.S_ISCHR(told.st_mode) else ""
        if stat.S_ISREG(told.st_mode): what = sha1(each.read_bytes()).hexdigest()
        if stat.S_ISLNK(told.st_mode): what = os.readlink(each)
        found[str(each.relative_to(path))] = (stat.S_IFMT(told.st_mode), what)
    return found


@contextmanager
def unchanged(*paths: Path):
    "Failed if what is at these paths is another afterwards."
    before = [tree(path) for path in paths]
    yield
    for path, was in zip(paths, before):
        now = tree(path)
        if now == was: continue
        other = sorted(name for name in {*was, *now} if was.get(name) != now.get(name))
        raise Failed(f"'{Path(path).name}' was changed: {shown(', '.join(other[:3]))}")


def no_leftovers(folder: Path) -> None:
    "Failed if a command that came to its end left unfinished files or folders in a folder."
    left = [path.name for path in Path(folder).iterdir()
            if path.name.endswith((".part", ".old")) or path.name[0] == "." and not path.name.endswith(".lock")]
    if left: raise Failed(f"left {', '.join(sorted(left)[:3])}")
