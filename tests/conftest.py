"What several tests share: the notebooks, run once per session, and the table of what they cost."
from pathlib import Path

import pytest

from course_lib.notebooks import budget, chapters, is_lesson, read, run, student, with_trials, wrong_answers

PATHS = chapters()
LESSONS = [path for path in PATHS if is_lesson(path)]
MUTANTS = Path(__file__).parent / "mutants"  # wrong answers, by lesson
COST = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption("--profile", default="smoke", help="run the notebooks in this profile, and compare with its bands")


@pytest.fixture(scope="session")
def ran(request):
    """Every notebook that a selected test asks for, run in the chosen profile, with trials of wrong answers behind its
    checks: {name: Run}."""
    def edit(nb, path): return with_trials(nb, wrong_answers(MUTANTS / f"{path.stem}.py"))
    only = _asked_for(request, "ran")
    return request.config.stash.setdefault(COST, _run(request, "build/tests", only=only, edit=edit))


@pytest.fixture(scope="session")
def blank(request):
    "The student editions, without solutions, of the lessons that a selected test asks for: {name: Run}."
    only = _asked_for(request, "blank")
    return _run(request, "build/tests/blank", only=only, edit=lambda nb, path: student(nb))


def _asked_for(request, fixture):
    "The names of the notebooks on which the selected tests use a fixture."
    items = [item for item in request.session.items if fixture in item.fixturenames]
    return sorted({item.callspec.params["path"].stem for item in items})


def _run(request, out, **how):
    "The lines that the runner prints are shown while it works."
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nnotebooks, to {out}:")
        return {run_.name: run_ for run_ in run(request.config.getoption("--profile"), out=out, **how)}


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
