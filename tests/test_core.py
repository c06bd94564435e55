"Names and plug-ins of course_lib.core; figures that keep their colours and can be read (course_lib.figures)."
import io
import logging
import os
import subprocess
import sys
import textwrap

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from course_lib.cli import main
from course_lib.core import CourseError, Registry, import_file, library_sources, models, report, sources, within

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib import patheffects  # noqa: E402

from course_lib.figures import alt, hard_to_read, smallest  # noqa: E402


def fresh(code, *paths, **options):
    "What a new Python process prints that runs the code, with these folders on its path."
    path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, encoding="utf-8",
                          env={**os.environ, "PYTHONPATH": path}, **options)


# ---- names

def test_a_mistyped_name_imports_no_torch_and_a_listed_name_neither():
    ran = fresh("""
        import sys
        from course_lib.core import CourseError, models, sources
        try: models["cmn"]
        except CourseError as error: print(error)
        try: sources["steets"]
        except CourseError as error: print(error)
        print("cnn" in models.names(), "streets" in sources.names())
        print([name for name in ("torch", "sklearn", "matplotlib", "cv2") if name in sys.modules])
    """)
    assert ran.stdout.splitlines() == ["unknown model 'cmn': did you mean 'cnn'?",
                                       "unknown path or data set 'steets': did you mean 'streets'?",
                                       "True True", "[]"], ran.stderr


@pytest.mark.parametrize("registry", [models, sources], ids=lambda registry: registry.kind)
def test_every_name_that_is_read_from_the_text_is_there_and_no_other(registry):
    homes = registry.homes()
    registry.discover()
    own = {name for name, thing in registry.items() if thing.__module__.startswith("course_lib.")}
    assert own == set(homes)
    assert all(f"course_lib.{homes[name]}" in sys.modules for name in own)


def test_a_name_far_from_all_others_lists_them():
    shapes = Registry("shape")
    for name in ("square", "circle"): shapes.register(name)(lambda: None)
    with pytest.raises(CourseError, match="^unknown shape 'zzz': choose from: circle, square$"): shapes["zzz"]
    with pytest.raises(CourseError, match="did you mean 'square'"): shapes["sqare"]
    assert "zzz" not in shapes and shapes.get("zzz") is None  # asking leaves nothing behind


def test_a_second_registration_warns_and_wins(caplog):
    shapes = Registry("shape")
    def square(): return 4
    def other(): return 5
    shapes.register("square")(square)
    shapes.register("square")(square)  # a cell that is run again
    assert caplog.records == []
    shapes.register("square")(other)
    assert shapes["square"] is other
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "shape 'square'" in record.getMessage() and record.getMessage().count("square") >= 2
    assert "other replaces" in record.getMessage()


def test_what_comes_from_outside_stays_when_the_library_registers_the_same_name_later(caplog):
    shapes = Registry("shape")
    def mine(): return 4
    def theirs(): return 5
    theirs.__module__ = "course_lib.shapes"
    shapes.register("square")(mine)
    shapes.register("square")(theirs)
    assert shapes["square"] is mine
    [record] = caplog.records
    assert "mine replaces course_lib.shapes" in record.getMessage()


def test_within_names_the_option():
    within(0, 1, dropout=0.5, other=0)
    for value in (1.5, "half", None, float("nan")):
        with pytest.raises(CourseError, match=f"dropout={value}: use a number from 0 to 1"): within(0, 1, dropout=value)


# ---- plug-ins

PLUGIN = """
from course_lib.core import models

@models.register("always-robin")
def always_robin(splits):
    return "robin"
"""


def test_a_file_plugs_in(tmp_path):
    (tmp_path / "birds.py").write_text(PLUGIN)
    ran = fresh(f"""
        from course_lib.core import import_file, models
        import_file({str(tmp_path / 'birds.py')!r})
        print(models["always-robin"](None), "always-robin" in models.names(), "cnn" in models.names())
    """)
    assert ran.stdout.split() == ["robin", "True", "True"], ran.stderr


def installed(folder, module, entry):
    "A folder that looks like an installed package with an entry point of the group `course_lib`."
    (folder / "birds.py").write_text(module)
    info = folder / "birds-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: birds\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[course_lib]\nbirds = {entry}\n")
    return folder


def test_an_installed_package_plugs_in_and_the_librarys_names_do_not_wait_for_it(tmp_path):
    ran = fresh("""
        import sys
        from course_lib.core import formats, models
        formats["pipeline"]
        print("birds" in sys.modules)
        print(models["always-robin"](None), "always-robin" in models.names())
    """, installed(tmp_path, PLUGIN, "birds"))
    assert ran.stdout.split() == ["False", "robin", "True"], ran.stderr


def test_a_broken_package_is_named(tmp_path):
    ran = fresh("""
        from course_lib.core import CourseError, models
        try: models["always-robin"]
        except CourseError as error: print(error)
    """, installed(tmp_path, "1 / 0", "birds"))
    assert ran.stdout.startswith("the plug-in 'birds' (birds) cannot be imported: division by zero"), ran.stderr


def test_a_file_that_cannot_be_imported_is_refused(tmp_path):
    before = dict(sys.modules)
    for name, text, words in (("broken.py", "1 / 0", "ZeroDivisionError"), ("text.txt", PLUGIN, "must end in .py"),
                              ("json.py", PLUGIN, "another Python module"), ("sys.py", PLUGIN, "another Python module"),
                              ("numpy.py", PLUGIN, "another Python module"), ("no.py", None, "there is no file")):
        if text is not None: (tmp_path / name).write_text(text)
        with pytest.raises(CourseError, match=words): import_file(tmp_path / name)
    assert all(sys.modules.get(name) is before.get(name) for name in ("broken", "text", "json", "sys", "numpy", "no"))


def test_the_text_of_every_module_is_searched():
    assert {"core", "cnn", "streets"} <= set(library_sources())
    assert not any(name.startswith("_") for name in library_sources())


# ---- results

def test_a_report_is_data(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, **how: shown.append(data))
    report(accuracy=np.float32(0.5), images=np.int64(7), name="x")
    [data] = shown
    stored = data["application/vnd.course.result+json"]
    assert stored["results"] == dict(accuracy=0.5, images=7, name="x")
    assert type(stored["results"]["images"]) is int and stored["cost"]["memory_mb"] > 20
    assert data["text/plain"].splitlines()[0].split() == ["accuracy", "0.5"]


# ---- figures: colours

def figure_of(image):
    fig, ax = plt.subplots()
    ax.imshow(image)
    return fig


def as_png(fig):
    fig.savefig(file := io.BytesIO(), format="png", dpi=110)
    plt.close(fig)
    return file.getvalue()


def opened(data): return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def test_a_photo_keeps_its_colours():
    "A blue truck at night became teal when figures had 256 colours: a JPEG may blur, but no area changes its colour."
    png = as_png(figure_of(load_sample_images().images[1]))
    kind, data = smallest(png)
    assert kind == "image/jpeg" and len(data) < len(png)
    few = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).convert("RGB")
    def blocks(image): return image[:528, :704].reshape(66, 8, 88, 8, 3).mean((1, 3))  # the colour of 8 x 8 pixels
    moved = abs(blocks(opened(data)) - blocks(opened(png))).max()
    assert moved < 4 and moved < abs(blocks(np.asarray(few)) - blocks(opened(png))).max() / 4


def test_a_drawing_of_many_colours_keeps_them_all():
    rows, columns = np.mgrid[0:200, 0:300]
    image = np.stack([columns * 255 // 299, rows * 255 // 199, (rows + columns) % 256], 2).astype(np.uint8)
    png = as_png(figure_of(image))
    assert smallest(png) == ("image/png", png)


def test_a_plot_becomes_a_small_png_that_looks_the_same():
    fig, ax = plt.subplots()
    for k in range(3): ax.plot(np.sin(np.arange(50) / (k + 3)), label=str(k))
    ax.legend()
    png = as_png(fig)
    kind, data = smallest(png)
    assert kind == "image/png" and len(data) < len(png)
    assert abs(opened(data) - opened(png)).max() < 100 and np.quantile(abs(opened(data) - opened(png)), 0.999) <= 24


def test_alt_stores_description_troubles_and_closes(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, metadata=None, raw=False: shown.append((data, metadata)))
    fig, ax = plt.subplots()
    ax.set_title("pale", color="yellow")
    alt(fig, "a plot where 1 < 2")
    [(data, metadata), (caption, _)] = shown
    assert data["text/plain"] == metadata["image/png"]["alt"] == "a plot where 1 < 2"
    assert caption["text/html"] == "<small>a plot where 1 &lt; 2</small>"
    assert metadata["image/png"]["hard_to_read"] == ["'pale' has a contrast of 1.1 to 1"]
    assert not plt.fignum_exists(fig.number)


# ---- figures: what is hard to read

REFUSED, FINE = {}, {}


def refused(*words):
    "A figure in whose list of troubles there is a line with these words."
    def add(draw):
        REFUSED[draw.__name__] = draw, words
        return draw
    return add


def fine(draw):
    FINE[draw.__name__] = draw
    return draw


def axes(**how): return plt.subplots(figsize=(4, 3), **how)[1]


def noise(seed=0): return np.random.default_rng(seed).random((40, 40, 3))


@refused("collide", "'motorcycle'")
def labels_without_room(): axes().set_xticks(range(6), ["motorcycle"] * 6)


@refused("collide", "'motorcycle'")
def slanted_labels_without_room(): axes().set_xticks(range(40), ["motorcycle"] * 40, rotation=45, ha="right")


@refused("collide", "'all of it'", "'a part'")
def a_suptitle_over_a_title():
    ax = axes()
    ax.set_title("a part")
    ax.figure.suptitle("all of it", y=0.92)


@refused("collide", "'motorcycle'")
def titles_that_touch():
    fig, many = plt.subplots(1, 6, figsize=(5, 1))
    for ax in many: ax.set_title("motorcycle", fontsize=9)
    for ax in many: ax.axis("off")


@refused("contrast of 3.9", "'chance'")
def grey_on_white(): axes().text(0.5, 0.5, "chance", color="grey")


@refused("contrast", "'chance'")
def half_transparent(): axes().text(0.5, 0.5, "chance", alpha=0.3)


@refused("contrast of 1.0", "'chance'")
def white_on_white(): axes().text(0.5, 0.5, "chance", color="white")


@refused("contrast", "'chance'")
def pale_beside_the_axes(): axes().text(1.5, 0.5, "chance", color="lightgrey")


@refused("contrast", "'car 97 %'")
def red_on_a_photo():
    ax = axes()
    ax.imshow(noise())
    ax.text(5, 10, "car 97 %", color="red")


@refused("contrast", "'car 97 %'")
def white_with_a_pale_outline():
    ax = axes()
    ax.imshow(np.full((40, 40, 3), 0.9))
    ax.text(5, 10, "car 97 %", color="white", path_effects=[patheffects.withStroke(linewidth=2, foreground="silver")])


@refused("contrast", "'0'")
def a_pale_tick(): axes().set_xticks([0, 1], ["0", "1"], color="gold")


@refused("contrast", "'run'")
def a_pale_legend():
    ax = axes()
    ax.plot([1, 2], label="run")
    ax.legend(labelcolor="gold")


@fine
def slanted_labels(): axes().set_xticks(range(12), ["motorcycle"] * 12, rotation=45, ha="right")


@fine
def upright_labels(): axes().set_xticks(range(12), ["motorcycle"] * 12, rotation=90)


@fine
def outlined_and_boxed_on_a_photo():
    ax = axes()
    ax.imshow(noise())
    ax.text(2, 10, "car 97 %", color="white", path_effects=[patheffects.withStroke(linewidth=3, foreground="black")])
    ax.text(2, 20, "bus 51 %", color="white", bbox=dict(facecolor="black", pad=1))


@fine
def white_on_dark_and_black_on_light():
    ax = axes()
    ax.imshow([[0.0, 1.0]], cmap="Blues_r")
    ax.text(0, 0, "dark", color="white", ha="center")
    ax.text(1, 0, "light", color="black", ha="center")


@fine
def a_legend_over_lines():
    ax = axes()
    for k in range(5): ax.plot(noise(k)[0, :, 0], label=f"run {k}")
    ax.legend(loc="center")


@fine
def logarithmic():
    ax = axes()
    ax.loglog([1e-5, 1e3], [1, 1e6])
    ax.grid(which="both")


@fine
def hardly_a_decade(): axes().semilogx([2, 7], [1, 2])


@fine
def a_colour_bar():
    ax = axes()
    ax.figure.colorbar(ax.imshow(noise()[..., 0]), label="loss")


@fine
def two_axes_in_one_place():
    ax = axes()
    other = ax.twinx()
    ax.set(xlabel="epoch", ylabel="loss")
    other.set(xlabel="not drawn", ylabel="accuracy", ylim=(0, 100))


@fine
def hidden_parts():
    ax = axes()
    ax.set_title("seen")
    hidden = ax.figure.add_axes(ax.get_position())
    hidden.set_title("unseen")
    hidden.set_visible(False)
    off = ax.figure.add_axes(ax.get_position())
    off.set(xlabel="unseen", ylabel="unseen")
    off.axis("off")
    ax.text(0.5, 0.5, "unseen", color="white").set_visible(False)
    ax.text(0.5, 0.5, " ", color="white")


@fine
def an_arrow_over_a_text():
    ax = axes()
    ax.annotate("from here", (0.9, 0.9), (0.05, 0.05), arrowprops=dict(arrowstyle="->"))
    ax.text(0.4, 0.6, "not in its way")


@fine
def titles_of_two_lines():
    fig, many = plt.subplots(2, 4, figsize=(7, 4))
    for ax in many.flat: ax.set_title("truth: car\nmodel: bus 97 %", fontsize=8)
    for ax in many.flat: ax.axis("off")


@fine
def a_grid_of_axes():
    fig, many = plt.subplots(2, 2, layout="constrained", sharex=True)
    for ax in many.flat: ax.set(title="a title", xlabel="epoch", ylabel="loss")
    fig.suptitle("all of it")


@fine
def names_on_a_line():
    ax = axes()
    ax.axhline(0.5, color="black", lw=1)
    ax.text(0.5, 0.5, "chance", va="center")


@fine
def bars_with_numbers():
    ax = axes()
    ax.bar_label(ax.bar(range(3), [1, 2, 3], color="steelblue"))
    ax.invert_yaxis()


@fine
def formulas(): axes().set(title=r"$\sum_i x_i^2$", ylabel="$p$")


@fine
def large_numbers(): axes().plot([1e9, 1e9 + 1], [1e-7, 2e-7])


def state(fig):
    texts = fig.findobj(matplotlib.text.Text)
    return [(text.get_text(), text.get_color(), text.get_rotation()) for text in texts]


@pytest.mark.parametrize("name", REFUSED)
def test_what_nobody_can_read_is_refused(name):
    draw, words = REFUSED[name]
    draw()
    fig = plt.gcf()
    fig.canvas.draw()
    before = state(fig)
    troubles = hard_to_read(fig)
    plt.close(fig)
    assert any(all(word in line for word in words) for line in troubles), troubles
    assert state(fig) == before  # looking changes nothing


@pytest.mark.parametrize("name", FINE)
@pytest.mark.filterwarnings("error")
def test_no_false_alarms(name):
    FINE[name]()
    fig = plt.gcf()
    troubles = hard_to_read(fig)
    plt.close(fig)
    assert troubles == []


def test_a_package_that_only_some_need_is_named_with_its_extra(monkeypatch, capsys, tmp_path):
    for name in ("course_lib.streets", "course_lib.painting", "course_lib.scenery"): monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.delitem(sources, "streets", raising=False)
    assert main(["data", "list"]) == 0 and "pip install 'course_lib[streets]'" in capsys.readouterr().out
    assert main(["train", "svm", "--out", str(tmp_path / "m")]) == 2
    assert "'streets' needs the package cv2, which is not installed: pip install 'course_lib[streets]'" in capsys.readouterr().err
