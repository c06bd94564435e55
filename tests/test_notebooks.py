"Every notebook is a test: it runs, its results lie in their bands, its exercises can be solved, its outputs are fresh."
import ast
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import LESSONS, PATHS

from course_lib.core import CourseError, layouts, models, sources
from course_lib.notebooks import (as_student, band, blemishes, budget, checkout, code_cells, collect, glossary, interval, leaderboard,
                                  number_of, outside, overrides, parameters, prose, read, records, reported, run, source, stale, student, trials,
                                  uses, write, write_student)
from course_lib.notebooks import blank as blank_of

BASELINES = json.loads((Path(__file__).parent / "baselines.json").read_text(encoding="utf-8"))
def each(paths): return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


each_notebook, each_lesson = each(PATHS), each(LESSONS)
each_workshop = each([path for path in PATHS if path not in LESSONS])

LONG = {"05_training": 22}  # its five loops are functions to be read whole
EVERYDAY = ()  # terms that are also everyday words


# ---- run in the smoke profile, or in the one that --profile names

@each_notebook
def test_runs(path, ran):
    error = ran[path.stem].error
    assert not error, error


@each_notebook
def test_results_lie_in_their_bands(path, ran, pytestconfig):
    bands = BASELINES.get(pytestconfig.getoption("--profile"), {}).get(path.stem, {})
    if path not in LESSONS and not bands: pytest.skip("a workshop notebook without bands: its asserts are the test")
    found = outside(ran[path.stem].report.get("results", {}), bands)
    assert not found, "\n".join(found)


def test_every_band_has_a_notebook():
    assert {name for profile in BASELINES.values() for name in profile} <= {path.stem for path in PATHS}
    assert all(b["n"] >= 5 for profile in BASELINES.values() for bands in profile.values() for b in bands.values())


@each_lesson
def test_solutions_score_full(path, ran):
    passed, exercises = ran[path.stem].checks
    assert passed == exercises >= 3


@each_lesson
def test_checks_pass_twice_and_refuse_wrong_answers(path, ran):
    tried = trials(read(ran[path.stem].path))
    assert len(tried) == ran[path.stem].checks[1], "each check names its exercise: `# check: name`"
    for exercise, passed in tried.items():
        assert passed.pop("again"), f"{exercise}: the check fails when it is run twice"
        assert len(passed) >= 3, f"{exercise}: tests/mutants/{path.stem}.py has fewer than two wrong answers"
        accepted = [why for why, ok in passed.items() if ok]
        assert not accepted, f"{exercise} accepts: {accepted}"


@each_lesson
def test_blank_student_edition_scores_zero(path, ran):
    tried = as_student(read(ran[path.stem].path))
    assert not tried["error"], f"only a check cell may need a solution: {tried['error']}"
    assert tried["passed"] == 0, "a check passes without a solution"


def test_a_student_edition_runs_as_a_learner_has_it(pytestconfig):
    done = run(pytestconfig.getoption("--profile"), ["00"], out="build/tests/blank", edit=lambda nb, path: student(nb))[0]
    assert not done.error and done.checks[0] == 0 < done.checks[1]


@each_notebook
def test_keeps_its_budget(path, ran):
    (seconds, memory), cost = budget(read(path)), ran[path.stem].report["cost"]
    assert cost["seconds"] <= 2 * seconds, "far over the seconds in its last cell"
    assert cost["memory_mb"] <= 1.25 * memory, "far over the memory in its last cell"


@pytest.mark.parametrize("profile", [path.stem for path in (checkout() / "nbs" / "profiles").glob("*.json")])
def test_profiles_name_real_parameters(profile):
    overrides(profile)


# ---- as stored

@each_notebook
def test_anatomy(path):
    nb = read(path)
    first, code = nb["cells"][0], [source(cell) for cell in code_cells(nb)]
    assert (first["cell_type"], source(first).split(" · ")[0]) == ("markdown", f"# {number_of(path)}")
    assert "seed" in parameters(nb), "the first code cell needs the tag `parameters`, and a line `seed = 0`"
    assert "report(" in code[-1] and all(budget(nb)), "the last cell says '# budget: N seconds, N MB' and reports"
    for text in code: ast.parse(text)


@each_lesson
def test_anatomy_of_a_lesson(path):
    nb = read(path)
    code, texts = [source(cell) for cell in code_cells(nb)], prose(nb)
    assert re.search(r"Study time: about \d+ minutes to read, \d+ minutes for the exercises", texts[0])
    exercises = [re.match(r"# exercise: (\w+)", text)[1] for text in code if "### BEGIN SOLUTION" in text]
    checks = [re.match(r"# check: (\w+)", text)[1] for text in code if text.startswith("# check")]
    assert exercises == checks and len(exercises) >= 3
    for text in code:
        if "### BEGIN SOLUTION" not in text: continue
        scaffold = blank_of(text)
        assert "def " in scaffold or "= None" in scaffold, f"no scaffold: {text.splitlines()[0]}"
        ast.parse(scaffold)
    assert sum(text.count("<details>") for text in texts) >= 4, "at least four recall questions with folded answers"


@each_workshop
def test_a_workshop_notebook_has_no_exercises(path):
    assert not any(re.search(r"^\s*### BEGIN SOLUTION$", source(cell), re.M) for cell in code_cells(read(path)))


@each_notebook
def test_every_mention_of_a_chapter_is_a_link_and_every_link_resolves(path):
    for text in prose(read(path)):
        bare = re.sub(r"\[[^\]]*\]\([^)]*\)", "", text)
        assert not re.search(r"\bchapters? \d\d", bare, re.I), f"not a link: {re.search('.{30}chapters? .{20}', bare, re.I | re.S)}"
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"https?://|#", target): continue
            assert (path.parent / target.partition("#")[0]).exists(), f"leads nowhere: {target}"


# ---- sizes

def exported(cell): return re.match(r"(#\|[^\n]*\n)*#\| *export\b", source(cell)) is not None


def lines_of(cell): return [line for line in source(cell).splitlines() if line.strip() and not line.startswith("#|")]


@each_lesson
def test_a_lessons_module_can_be_read_in_one_sitting(path):
    assert sum(len(lines_of(cell)) for cell in code_cells(read(path)) if exported(cell)) <= 350


@each_notebook
def test_no_long_stretch_of_library_without_a_sentence(path):
    stretch = 0
    for cell in read(path)["cells"]:
        stretch = 0 if cell["cell_type"] == "markdown" else stretch + (len(lines_of(cell)) if exported(cell) else 0)
        alone = stretch == len(lines_of(cell))
        assert stretch <= 60 or alone and stretch <= 90, f"{stretch} exported lines up to: {lines_of(cell)[0]}"


@each_lesson
def test_cells_are_short(path):
    for cell in code_cells(read(path)):
        if exported(cell) or not lines_of(cell) or "### BEGIN SOLUTION" in source(cell) or "parameters" in cell["metadata"].get("tags", []): continue
        assert len(lines_of(cell)) <= LONG.get(path.stem, 16), f"{len(lines_of(cell))} lines: {lines_of(cell)[0]}"


@each_notebook
def test_a_long_cell_of_the_library_is_a_single_definition(path):
    for cell in filter(exported, code_cells(read(path))):
        if len(lines_of(cell)) <= 25: continue
        definitions = [isinstance(node, (ast.FunctionDef, ast.ClassDef)) for node in ast.parse(source(cell)).body]
        assert (True, True) not in itertools.pairwise(definitions), f"{len(lines_of(cell))} lines: {lines_of(cell)[0]}"


@each_notebook
def test_lines_fit_on_a_page(path):
    wide = [line for cell in code_cells(read(path)) for line in source(cell).splitlines() if len(line) > 110]
    assert not wide, wide[0]


# ---- words

TERMS = {name: (path, cell, place) for path in reversed(LESSONS) for cell, text in enumerate(prose(read(path)))
         for place, name in [(m.start(), m[1]) for m in re.finditer(r'<dfn id="([a-z0-9-]+)">', text)]}
NEEDED = ("loss softmax cross-entropy negative-log-likelihood gradient-descent momentum adamw weight-decay overfitting precision recall "
          "f1 pca decision-tree random-forest relu batch-normalization convolution hog validation-split confusion-matrix").split()


def test_the_glossary_has_what_a_beginner_needs_and_is_up_to_date():
    assert set(NEEDED) <= TERMS.keys(), set(NEEDED) - TERMS.keys()
    assert (checkout() / "nbs" / "glossary.md").read_text(encoding="utf-8") == glossary(), "run `make notebooks`"


@each_lesson
def test_no_term_is_used_before_it_is_explained(path):
    early = []
    for name, (home, cell, place) in TERMS.items():
        word = re.compile(rf"(?<![\w`-]){re.escape(name).replace(chr(92) + '-', '[ -]')}(?:s|es)?(?![\w`-])", re.I)
        for number, text in list(enumerate(prose(read(path))))[1:]:  # the first cell promises what will be explained
            if (path, number) >= (home, cell) or name in EVERYDAY: continue
            for paragraph in text.split("\n\n"):
                plain = re.sub(r"^#.*$|<dfn[^>]*>[^<]*</dfn>|`[^`]*`|\]\([^)]*\)", "", paragraph, flags=re.M)
                if word.search(plain) and home.name not in paragraph:
                    early.append(f"'{name}' before {home.stem} explains it: {paragraph[:100]!r}")
    assert not early, "\n".join(early)


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


@pytest.mark.parametrize("registry", [models, sources, layouts], ids=lambda registry: registry.kind)
def test_the_name_of_a_model_or_data_set_counts_as_an_import(registry):
    own = registry.homes()
    assert own
    for name, module in own.items(): assert module in uses(f"spec = '{name}?n=5'")


def test_readme_shows_the_leaderboard_of_the_stored_outputs():
    text = (checkout() / "README.md").read_text(encoding="utf-8")
    table = leaderboard(collect(checkout() / "nbs"))
    assert table in text, "run `make notebooks`"
    assert records(checkout() / "nbs" / "results") in text, "run `make notebooks`"


def test_the_interval_by_hand():
    near = lambda ends, low, high: ends == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert near(interval([0.9], 100), 0.8256, 0.9448)  # (0.9 + 0.0192 -+ 1.96 sqrt(0.0009 + 0.0000960)) / 1.0384
    assert near(interval([0.88, 0.90, 0.92], 100), 0.9 - 0.08944, 0.9 + 0.06688)  # 0.04968 for the seeds, squares added
    assert near(interval([0.88, 0.90, 0.92], 10**9), 0.9 - 0.04968, 0.9 + 0.04968)
    assert near(interval([0.5, 0.5], 96), 0.5 - 0.09808, 0.5 + 0.09808)  # equal seeds: only the images are left
    assert interval([1.0] * 3, 43)[1] == 1 and interval([0.0], 43)[0] == 0 and interval([0.9, 0.99, 1.0], 43)[1] == 1
    low, high = interval([[0.9, 0.9], [0.8, 0.8]], 100)
    assert low.shape == high.shape == (2,) and low[0] == interval([0.9, 0.9], 100)[0]


def test_records_tell_the_looks_at_the_test_images(tmp_path):
    run = lambda model, **more: dict(model=model, data="here/voc.zip?test=0.2", seed=0, options={}, images=dict(test=100),
                                     test_accuracy=0.9, train_seconds=60, about={}) | more
    def table(*runs):
        (tmp_path / "r.json").write_text(json.dumps(dict(runs=runs)))
        return [" ".join(line.split()) for line in records(tmp_path).partition("```")[0].splitlines() if line]
    assert len(table(run("a"), run("b", looks=1, chosen_after_look=""))) == 4
    same, other = dict(looks=3, chosen_after_look="the form"), dict(looks=2)
    head, _, a, b, c, d, *rest = table(run("a", **same), run("b", **same), run("c", **other), run("d"))
    assert a == r"| 1 | voc | 100 | a | accuracy | 90.0% | 82.6 to 94.5 | 1 | 3\* | 1.0 |" and len(a.split("|")) == len(head.split("|"))
    assert c.split(" | ")[8] == r"2\*" and d.split(" | ")[8] == "1"
    note = "Chosen after an earlier look at these test images: the form (runs 1, 2); not recorded (run 3)."
    assert rest == [rf"\* {note}"]


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


def test_the_student_edition_keeps_what_is_there(tmp_path):
    new, kept = write_student(tmp_path / "mine")
    assert {path.name for path in new} == {path.name for path in PATHS} and not kept
    lesson = tmp_path / "mine" / LESSONS[0].name
    text = lesson.read_text(encoding="utf-8")
    assert "BEGIN SOLUTION" not in text and not any(cell["outputs"] for cell in code_cells(read(lesson)))
    lesson.write_text(text + " ", encoding="utf-8")
    (tmp_path / "mine" / PATHS[-1].name).unlink()
    new, kept = write_student(tmp_path / "mine")
    assert [path.name for path in new] == [PATHS[-1].name] and len(kept) == len(PATHS) - 1
    assert lesson.read_text(encoding="utf-8") == text + " "
    with pytest.raises(CourseError, match="holds the course itself"): write_student(checkout() / "nbs")
