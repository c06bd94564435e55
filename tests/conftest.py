"What several tests share: the notebooks, run once per session, and the table of what they cost."
from pathlib import Path

import pytest

from course_lib.notebooks import budget, chapters, is_lesson, read, run, with_student, with_trials, wrong_answers

PATHS = chapters()
LESSONS = [path for path in PATHS if is_lesson(path)]
MUTANTS = Path(__file__).parent / "mutants"  # wrong answers, by lesson
COST = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--profile", default="smoke", help="run the notebooks in this profile, and compare with its bands")


@pytest.fixture(scope="session")
def ran(request):
    """Every notebook that a selected test asks for, run in the chosen profile, with trials of wrong answers behind its
    checks, and of the blank edition behind all: {name: Run}. The lines that the runner prints are shown meanwhile."""
    def edit(nb, path): return with_student(with_trials(nb, wrong_answers(MUTANTS / f"{path.stem}.py")))
    items = [item for item in request.session.items if "ran" in item.fixturenames]
    only = sorted({item.callspec.params["path"].stem for item in items})
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nnotebooks, to build/tests:")
        runs = run(request.config.getoption("--profile"), only, out="build/tests", edit=edit)
    return request.config.stash.setdefault(COST, {run_.name: run_ for run_ in runs})


def pytest_terminal_summary(terminalreporter, config):
    "After the tests: what each notebook cost, beside the budget in its last cell."
    runs = config.stash.get(COST, {})
    if not runs: return
    profile = config.getoption("--profile")
    terminalreporter.section(f"cost of the notebooks in the {profile} profile, with the laptop profile's budget")
    for path in PATHS:
        if path.stem not in runs: continue
        seconds, memory = budget(read(path))
        took, used = runs[path.stem].seconds, runs[path.stem].report.get("cost", {}).get("memory_mb", "?")
        terminalreporter.write_line(f"{path.stem:<18}{took:>6.1f} of {seconds:>3} s {used:>6} of {memory:>4} MB")
