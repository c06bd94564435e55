"Ctrl-C ends the command in one line, with status 130, whatever it is doing."
import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to a child on Windows")

TRAIN = ["train", "cnn", "--data", "streets?n=300&valid=30&test=30", "--size", "small", "--epochs", "500"]


def started(words, **how):
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell ignores it
    code += "from course_lib.stopping import start; start()"
    return subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def stopped(process):
    "The status and the last line of a process that gets Ctrl-C now."
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    return process.returncode, err.splitlines()[-1]


@pytest.mark.parametrize("seed", range(8))
def test_ctrl_c_at_any_moment_of_a_training(tmp_path, seed):
    rng = random.Random(seed)
    process = started([*TRAIN, "--out", str(tmp_path / "model")])
    time.sleep(rng.choice((rng.uniform(0.3, 1), rng.uniform(1, 12))))
    if process.poll() is None: assert stopped(process) == (130, "course: stopped")
    assert not list(tmp_path.glob(".*.part"))


def test_ctrl_c_while_modules_are_imported():
    "As soon as the command has begun: what it imports first must not matter."
    code = "import sys, types, time\nfrom course_lib import stopping\n"
    code += "class Slow:\n    def find_spec(self, name, *_):\n        if name == 'course_lib.cli': print('x', flush=True); time.sleep(60)\n"
    code += "sys.meta_path.insert(0, Slow())\nstopping.start()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "x\n"
    assert stopped(process) == (130, "course: stopped")


@pytest.mark.parametrize("body", [
    "try: time.sleep(60)\n    except KeyboardInterrupt: raise RuntimeError('of a library')",  # it becomes another error
    "try: time.sleep(60)\n    except KeyboardInterrupt: time.sleep(60)",                       # it is swallowed
    "import hashlib\n    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)",                      # a long call into C
    "import subprocess\n    subprocess.Popen(['sleep', '61'])\n    hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"])
def test_ctrl_c_is_answered_whatever_the_main_thread_does(body):
    code = f"import sys, time, types, hashlib\nfrom course_lib import stopping\ndef main():\n    print('x', flush=True)\n    {body}\n"
    code += "cli = types.ModuleType('course_lib.cli')\ncli.main = main\nsys.modules['course_lib.cli'] = cli\nstopping.start()"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "x\n"
    time.sleep(0.3)
    children = psutil.Process(process.pid).children()
    assert stopped(process) == (130, "course: stopped")
    assert psutil.wait_procs(children, timeout=20)[1] == []
