"JupyterLab in a browser, as `make lab` opens it. These tests need playwright and a Chromium; elsewhere they are skipped."
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from course_lib.notebooks import for_lab, write_student

ROOT = Path(__file__).parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright")
if not CHROMIUM: pytest.skip("needs Chromium", allow_module_level=True)

CELLS = """
import matplotlib.pyplot as plt, os, time
os.environ.pop("TQDM_DISABLE", None)
from course_lib.core import progress
from course_lib.figures import alt
for _ in progress(range(30), "outer", delay=0):
    for _ in progress(range(3), "inner", delay=0): time.sleep(.01)
#%%
alt(plt.figure(figsize=(3, 2)), "an empty figure for this test")
#%%
print("the last " + "of all")
"""


def notebook(cells):
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, outputs=[], execution_count=None, source=code.strip()) for i, code in enumerate(cells)]
    return for_lab(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    "The address of a JupyterLab with the lessons and a notebook of this test."
    root = tmp_path_factory.mktemp("lab")
    write_student(root / "my-course")
    (root / "my-course" / "mine.ipynb").write_text(json.dumps(notebook(CELLS.split("#%%"))))
    (root / "README.md").write_text("# read me")
    workspaces = root / "workspaces"
    workspaces.mkdir()
    shutil.copy(ROOT / "lab" / "workspace.json", workspaces / "default-37a8.jupyterlab-workspace")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(root / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = {**os.environ, **own, "JUPYTERLAB_WORKSPACES_DIR": str(workspaces), "JUPYTERLAB_SETTINGS_DIR": str(root / "settings")}
    words = [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}", "--ip=127.0.0.1", "--IdentityProvider.token=",
             "--ServerApp.root_dir=.", "--LabApp.extension_manager=readonly", *(["--allow-root"] if os.name != "nt" and os.getuid() == 0 else [])]
    server = subprocess.Popen(words, cwd=root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}/lab/tree/"
    try:
        for _ in range(240):
            try: urllib.request.urlopen(address, timeout=5)
            except OSError: time.sleep(0.5)
            else: break
        else: pytest.fail("JupyterLab does not answer")
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, lab):
    "A laptop's window, and a function that opens a file in it."
    page = browser.new_page(viewport=dict(width=1366, height=768))
    page.set_default_timeout(180_000)

    def opened(name):
        page.goto(lab + name)
        page.wait_for_selector(f".lm-DockPanel .lm-TabBar-tab.lm-mod-current.jp-mod-current >> text={Path(name).name}")
        page.click(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-Cell")
        page.wait_for_selector("text=Python 3 (ipykernel) | Idle")
        return page

    yield opened
    page.close()


def test_a_lesson_opens_with_its_contents_and_no_line_cut_off(page):
    shown = page("my-course/01_data.ipynb")
    shown.wait_for_selector(".jp-TableOfContents-content >> text=Splits")
    cut = "[...document.querySelectorAll('.jp-CodeCell .cm-scroller')].filter(one => one.scrollWidth > one.clientWidth + 1).length"
    assert shown.evaluate(cut) == 0
    assert shown.evaluate("document.querySelectorAll('.jp-CodeCell .jp-Placeholder').length") >= 3  # imports are folded
    assert shown.evaluate("document.querySelectorAll('.jp-mod-dirty').length") == 0  # nothing to save: nobody has changed it


def test_bars_leave_nothing_and_figures_are_described(page):
    shown = page("my-course/mine.ipynb")
    shown.click('.lm-MenuBar-itemLabel >> text="Run"')
    shown.click('.lm-Menu-itemLabel >> text="Run All Cells"')
    shown.wait_for_selector(".jp-OutputArea-output >> text=the last of all")
    assert shown.evaluate("document.querySelectorAll('[data-mime-type*=stderr]').length") == 0
    left = "[...document.querySelectorAll('.jp-Cell')[0].querySelectorAll('.jp-OutputArea-output')].map(one => one.innerText.trim()).join('')"
    assert shown.evaluate(left) == ""
    height = "document.querySelectorAll('.jp-Cell')[0].querySelector('.jp-Cell-outputWrapper')?.offsetHeight || 0"
    assert shown.evaluate(height) <= 24  # two empty outputs
    assert shown.evaluate("document.querySelectorAll('.jp-OutputArea img').length") == 1
    assert shown.evaluate("(image => image.naturalWidth / image.width)(document.querySelector('.jp-OutputArea img'))") == pytest.approx(2, abs=0.05)
    assert "an empty figure for this test" in shown.inner_text(".jp-Cell:nth-of-type(2) .jp-OutputArea >> text=an empty figure")
