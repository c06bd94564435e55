"The longer run of attacks and faults (`make torture`): it works itself, and it sees what it is there to see."
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

TORTURE = Path(__file__).parent / "torture"
sys.path.append(str(TORTURE))

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="its trials are forked")


def torture(*words, **more):
    "Its rows, by class: the numbers of trials that were tried, held, failed and skipped."
    ran = subprocess.run([sys.executable, TORTURE, *words], capture_output=True, text=True, timeout=300, **more)
    assert ran.returncode in (0, 1) and not ran.stderr, ran.stderr
    rows = [line.split() for line in ran.stdout.splitlines() if line[0] != " "][1:]
    return {row[0]: [int(number) for number in row[1:5]] for row in rows}, ran


def test_every_class_makes_a_trial_that_holds_and_is_counted():
    rows, ran = torture("--trials", "1", "--minutes", "1")
    classes = {name: row for name, row in rows.items() if name != "all"}
    assert len(classes) == 11 and all(tried == 1 for tried, *_ in classes.values())
    assert rows["all"] == [sum(column) for column in zip(*classes.values())]
    assert all(tried == held + failed + skipped for tried, held, failed, skipped in rows.values())
    assert rows["all"][2] == 0 and ran.returncode == 0, ran.stdout


def test_a_trial_that_failed_is_made_again_alone(tmp_path):
    "A number of a class of its own, here one that holds: what its commands said, and its folder stays."
    rows, ran = torture("--only", "zips", "--number", "2", "--seed", "7", env={**os.environ, "TMPDIR": str(tmp_path)})
    assert rows["zips"][0] == 1 and "$ course data check" in ran.stdout
    left = Path(ran.stdout.split("left as it is: ")[1].splitlines()[0])
    assert (left / "work" / "data.zip").is_file()


def test_it_sees_each_way_to_break_a_promise():
    from trial import Ran, judge
    fine = Ran("data check x", 0, "fine\n", "", 1.0, 1.0, 100, False, False)
    assert judge(fine) == ""
    bad = dict(late=True), dict(cpu=99), dict(memory=2000), dict(status=-11), dict(status=3), dict(heirs=True), dict(status=2)
    assert all(judge(replace(fine, **one)) for one in bad)
    assert judge(replace(fine, status=1, err="Traceback (most recent call last):\nKeyError: 'x'\n"))
    for raw in "\x1b[2J", "\x07", "\r\x1b[K", "\u202e", "\u2066", "\x9b": assert "raw" in judge(replace(fine, out=raw))
    assert judge(replace(fine, status=-9)) and judge(replace(fine, status=-9), sent=9) == ""


def test_a_child_that_hangs_swallows_memory_or_leaves_a_process_is_seen(tmp_path):
    script = "\n".join((
        "import os, sys, time", "from pathlib import Path", f"sys.path.insert(0, {str(TORTURE)!r})",
        "from trial import Child, judge",
        "def hang(): time.sleep(60)", "def swallow(): return len(b'x' * (3 * 2**29)) // 2**40",
        "def leave():\n    if not os.fork(): time.sleep(60)",
        "def interrupted(): os.kill(os.getpid(), 11)", "def fine(): print('fine')",
        f"for work in (fine, hang, swallow, leave, interrupted): print(judge(Child(work, {str(tmp_path / 'log')!r}, Path('.'), limit=1).wait(), limit=9))"))
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    lines = said.stdout.splitlines()
    assert lines[0] == "" and all(what in line for what, line in zip(("needs over", "MB", "process", "signal 11"), lines[1:])), said
