"Every notebook is a test: it runs, its results lie in their bands, its exercises can be solved, its outputs are fresh."
import ast
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import PATHS, budget

from course_lib.core import CourseError, models, sources
from course_lib.notebooks import (band, blemishes, checkout, code_cells, collect, leaderboard, outside, overrides,
                                  parameters, read, records, reported, run, source, stale, uses, write)

BASELINES = json.loads((Path(__file__).parent / "baselines.json").read_text(encoding="utf-8"))
each_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


# ---- run in the smoke profile, or in the one that --profile names

@each_notebook
def test_runs(path, ran):
    error = ran[path.stem].error
    assert not error, error


@each_notebook
def test_results_lie_in_their_bands(path, ran, pytestconfig):
    bands = BASELINES.get(pytestconfig.getoption("--profile"), {}).get(path.stem, {})
    found = outside(ran[path.stem].report.get("results", {}), bands)
    assert not found, "\n".join(found)


def test_every_band_has_a_notebook():
    assert {name for profile in BASELINES.values() for name in profile} <= {path.stem for path in PATHS}
    assert all(b["n"] >= 5 for profile in BASELINES.values() for bands in profile.values() for b in bands.values())


@each_notebook
def test_solutions_score_full(path, ran):
    passed, exercises = ran[path.stem].checks
    assert passed == exercises >= 3


@each_notebook
def test_blank_student_edition_scores_zero(path, blank):
    error, (passed, _) = blank[path.stem].error, blank[path.stem].checks
    assert not error, f"only a check cell may need a solution: {error}"
    assert passed == 0, "a check passes without a solution"


@each_notebook
def test_keeps_its_budget(path, ran):
    (seconds, memory), cost = budget(path), ran[path.stem].report["cost"]
    assert cost["seconds"] <= 2 * seconds, "far over the seconds in its first cell"
    assert cost["memory_mb"] <= 1.25 * memory, "far over the memory in its first cell"


@pytest.mark.parametrize("profile", [path.stem for path in (checkout() / "nbs" / "profiles").glob("*.json")])
def test_profiles_name_real_parameters(profile):
    overrides(profile)


# ---- as stored

@each_notebook
def test_anatomy(path):
    nb = read(path)
    first, code = nb["cells"][0], [source(cell) for cell in code_cells(nb)]
    assert (first["cell_type"], source(first)[:7]) == ("markdown", f"# {path.stem[:2]} · ")
    seconds, memory = budget(path)
    assert seconds and memory, "the first cell says 'Budget: N seconds, N MB'"
    assert "seed" in parameters(nb)
    assert "report(" in code[-1]
    for before, cell in zip(code, code[1:]):
        if cell.startswith("# check"): assert "### BEGIN SOLUTION" in before and "### END SOLUTION" in before
    assert sum(text.count("### BEGIN SOLUTION\n") for text in code) >= 3
    for text in code: ast.parse(text)


@each_notebook
def test_stored_outputs_are_complete_and_fit_to_be_read(path):
    nb = read(path)
    results, found = reported(nb).get("results"), blemishes(nb)
    assert results, "stored without outputs: run `make notebooks`"
    assert not found, "\n".join(found)
    assert path.stat().st_size < 1_000_000


@each_notebook
def test_stored_outputs_belong_to_the_code(path):
    old = stale(read(path))
    assert not old, "code changed after the outputs were made: run `make notebooks`"


@each_notebook
def test_stored_results_lie_in_the_bands_of_the_laptop_profile(path):
    if "cpu" not in BASELINES: pytest.skip("no bands for the laptop profile: `make baselines PROFILE=cpu`")
    found = outside(reported(read(path)).get("results", {}), BASELINES["cpu"].get(path.stem, {}))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("registry", [models, sources], ids=lambda registry: registry.kind)
def test_the_name_of_a_model_or_data_set_counts_as_an_import(registry):
    registry.discover()
    own = {name: maker.__module__.split(".") for name, maker in registry.items() if maker.__module__.startswith("course_lib.")}
    assert own
    for name, (_, module) in own.items(): assert module in uses(f"spec = '{name}?n=5'")


def test_readme_shows_the_leaderboard_of_the_stored_outputs():
    text = (checkout() / "README.md").read_text(encoding="utf-8")
    table = leaderboard(collect(checkout() / "nbs"))
    assert table in text and "figures/leaderboard.svg" in text, "run `make notebooks`"
    assert records(checkout() / "nbs" / "results") in text, "run `make notebooks`"
    assert (checkout() / "figures" / "leaderboard.svg").is_file()


# ---- the runner itself

def make(folder, name, *sources, tags=("parameters",)):
    cells = [dict(cell_type="code", id=f"c{i}", source=text, outputs=[], execution_count=None,
                  metadata=dict(tags=list(tags)) if i == 0 else {}) for i, text in enumerate(sources)]
    kernel = dict(name="python3", display_name="python3", language="python")
    folder.mkdir(exist_ok=True)
    return write(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5), folder / name)


def test_a_dead_kernel_a_hanging_one_a_good_one_and_a_wrong_one(tmp_path):
    make(tmp_path / "nbs", "01_dies.ipynb", "seed = 0", "import os; os._exit(3)")
    make(tmp_path / "nbs", "02_hangs.ipynb", "seed = 0", "import time\nwhile True: time.sleep(1)")
    make(tmp_path / "nbs", "03_good.ipynb", "seed = 0", "from course_lib.core import report; report(seed=seed)")
    make(tmp_path / "nbs", "04_wrong.ipynb", "seed = 0", "good = 1\nif good\n    x = 2")
    dies, hangs, good, wrong = run(folder=tmp_path / "nbs", jobs=4, timeout=40, values=dict(seed=7))
    assert dies.error.startswith("cell [2]: import os; os._exit(3)") and "died" in dies.error
    assert hangs.error == "cell [2]: import time\nstopped after 40 seconds"
    assert wrong.error.startswith("cell [2]: if good\nSyntaxError")
    assert good.error == "" and good.report["results"] == {"seed": 7}


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C cannot be sent to a child on Windows")
def test_ctrl_c_leaves_no_process_behind(tmp_path):
    make(tmp_path / "nbs", "01_waits.ipynb", "seed = 0", "open('started', 'w').close()", "import time\ntime.sleep(99)")
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell ignores it
    code += f"from course_lib.notebooks import run; run(folder={str(tmp_path / 'nbs')!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while not (tmp_path / "nbs" / "started").exists(): time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert len(started) >= 2 and psutil.wait_procs(started, timeout=20)[1] == []


def test_mistakes_end_in_one_line(tmp_path):
    make(tmp_path / "nbs", "01_a.ipynb", "seed = 0")
    (tmp_path / "nbs" / "profiles").mkdir()
    (tmp_path / "nbs" / "profiles" / "wrong.json").write_text('{"02_b": {"seed": 1}}')
    for how, words in [(dict(profile="nope"), "unknown profile 'nope': choose from cpu, wrong"),
                       (dict(profile="wrong"), "there is no notebook '02_b'"),
                       (dict(only=["7"]), "no notebook '7': choose from 01_a")]:
        with pytest.raises(CourseError, match=words): run(folder=tmp_path / "nbs", **how)


def test_gpu_profile_stops_without_a_gpu():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available(): pytest.skip("this machine has a GPU")
    with pytest.raises(CourseError, match="needs a CUDA GPU"): run("gpu")


def test_bands():
    assert outside(dict(n=5), dict(n=band("n", [5, 5, 5]))) == []
    assert outside(dict(n=6), dict(n=band("n", [5, 5, 5]))) != []
    accuracy = band("svm_accuracy", [0.5, 0.5, 0.5])
    assert (accuracy["lo"], accuracy["hi"]) == (0.48, 0.52)
    assert outside(dict(svm_accuracy=float("nan")), dict(svm_accuracy=accuracy)) != []
    assert outside(dict(hog_error=2e-7), dict(hog_error=band("hog_error", [1e-7, 1e-8]))) == []
