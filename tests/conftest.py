"What several tests share: the notebooks, run once per session, and the table of what they cost."
import re

import pytest

from course_lib.notebooks import chapters, read, run, source, student

PATHS = chapters()
COST = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--profile", default="smoke", help="run the notebooks in this profile, and compare with its bands")


@pytest.fixture(scope="session")
def ran(request):
    "Every notebook, run in the chosen profile: {name: Run}. The lines it prints are shown while it works."
    return request.config.stash.setdefault(COST, _run(request, "build/tests"))


@pytest.fixture(scope="session")
def blank(request):
    "Every notebook's student edition, its solutions taken out, run in the chosen profile: {name: Run}."
    return _run(request, "build/tests/blank", edit=student)


def _run(request, out, **how):
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nnotebooks, to {out}:")
        return {run_.name: run_ for run_ in run(request.config.getoption("--profile"), out=out, **how)}


def budget(path):
    "Seconds and MB that the notebook's first cell promises for the laptop profile; zeros if it does not say."
    text = source(read(path)["cells"][0])
    found = re.search(r"Budget:\D*(\d+) *(s|min)\w*,\D*?(\d+(?:\.\d+)?) *(MB|GB)", text)
    if not found: return 0, 0
    return int(found[1]) * (60 if found[2] == "min" else 1), float(found[3]) * (1024 if found[4] == "GB" else 1)


def pytest_terminal_summary(terminalreporter, config):
    "After the tests: what each notebook cost, beside the budget in its first cell."
    runs = config.stash.get(COST, {})
    if not runs: return
    profile = config.getoption("--profile")
    terminalreporter.section(f"cost of the notebooks in the {profile} profile, with the laptop profile's budget")
    for path in PATHS:
        seconds, memory = budget(path)
        took, used = runs[path.stem].seconds, runs[path.stem].report.get("cost", {}).get("memory_mb", "?")
        terminalreporter.write_line(f"{path.stem:<18}{took:>6.1f} of {seconds:>3} s {used:>6} of {memory:>4.0f} MB")
