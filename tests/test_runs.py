"What a training shows while it goes on, what it leaves, and where."
import csv
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from making import class_folders
from PIL import Image

from course_lib import evaluate, fit, load, open_model, runs, train
from course_lib.cli import main
from course_lib.core import CourseError, models, networks, open_bundle
from course_lib.loop import History
from course_lib.predictions import asking
from course_lib.predictors import about_training
from course_lib.runs import LEFT, place_for, verdict, with_best, words_of
from course_lib.training import Recipe
from course_lib.transfer import joined

DATA = "streets?n=40&valid=20&test=10"
QUICK = ["--size", "small", "--epochs", "2", "--batch-size", "10", "--device", "cpu"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- where a run goes

def test_runs_are_numbered_and_nothing_is_replaced_without_a_word(here, capsys):
    for out in ("model", "model-2", "model-3"):
        assert main(["train", "svm", "--data", DATA]) == 0
        assert f"saved in {out}\n" in capsys.readouterr().out and (here / out / "model.json").is_file()
    before = (here / "model" / "model.json").read_bytes()
    assert main(["train", "svm", "--data", DATA, "--out", "model"]) == 2
    assert "is a model already: add --replace" in capsys.readouterr().err
    assert (here / "model" / "model.json").read_bytes() == before
    assert main(["train", "forest", "--trees", "3", "--data", DATA, "--out", "model", "--replace"]) == 0
    assert open_bundle("model").meta["architecture"] == "forest"


def test_a_run_that_is_under_way_has_taken_its_name(here):
    (here / "model.run").mkdir()
    assert place_for(None).name == "model-2"
    (here / "model.run" / "checkpoint.pt").touch()
    assert place_for(None).name == "model-2" and place_for(None, resume=True).name == "model"
    (here / "model-2").mkdir()
    (here / "model-3.run").mkdir()
    assert place_for(None).name == "model-4" and place_for(None, resume=True).name == "model"
    (here / "model-3.run" / "done.pt").touch()
    assert place_for(None, resume=True).name == "model-3" and place_for("model", resume=True).name == "model"


def test_several_processes_agree_on_a_name(here, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    (here / "model.run").mkdir()  # another process was faster
    assert place_for(None).name == "model"


def test_a_new_run_in_an_old_place_leaves_none_of_the_old_figures(here):
    train("cnn", DATA, out="m", size="small", epochs=2)
    (here / "m.run" / "mine.txt").write_text("my notes")
    (here / "m.run" / "precision_recall.png").touch()  # of another kind of model
    train("svm", DATA, out="m", replace=True)
    left = {path.name for path in (here / "m.run").iterdir()}
    assert "mine.txt" in left and left.isdisjoint({"curves.png", "metrics.csv", "precision_recall.png"})
    assert not any(name.startswith("events.out") for name in left)


def test_a_folder_of_somebody_else_keeps_its_files(here):
    (here / "m.run").mkdir()
    for name in ("args.yaml", "curves.png"): (here / "m.run" / name).write_text("mine")
    runs._clear(here / "m.run", resume=False)
    assert (here / "m.run" / "curves.png").read_text() == "mine"


# ---- what it leaves

def left_by(folder): return {path.name for path in Path(folder).iterdir()} & set(LEFT)


def test_a_classifier_leaves_figures_and_tables(here):
    train("cnn", DATA, out="m", size="small", epochs=3)
    assert left_by("m.run") >= {"args.yaml", "metrics.csv", "curves.png", "confusion.png", "predictions.png"}
    rows = list(csv.DictReader(Path("m.run/metrics.csv").open()))
    known = open_bundle("m").meta["about"]["history"]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["train_loss"]) for row in rows] == [row["train_loss"] for row in known]
    for name in left_by("m.run"):
        if name.endswith(".png"): assert np.asarray(Image.open(f"m.run/{name}").convert("L")).std() > 5
    assert not list(Path("m.run").glob("*.pt"))


def test_every_task_leaves_its_figures(here):
    train("cnn", "streets?view=multi&n=40&valid=20&test=10", out="several", size="small", epochs=1)
    train("ssd", "streets?view=detection&n=8&valid=5&test=5&size=96", out="boxes", epochs=1, weights="none", input_size=96)
    assert "precision_recall.png" in left_by("several.run") and "confusion.png" not in left_by("several.run")
    assert {"predictions.png", "curves.png"} <= left_by("boxes.run") and "confusion.png" not in left_by("boxes.run")


def test_steps_have_their_own_curves_and_all_together(here):
    train("transfer", DATA, out="t", weights="none", enlarge=32, strategy="progressive", epochs=2, head_epochs=2)
    assert {"metrics.csv", "curves.png"} <= left_by("t.run") and (here / "t.run" / "head" / "curves.png").is_file()
    rows = list(csv.DictReader(Path("t.run/metrics.csv").open()))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1)) and len(rows) >= 4


def test_without_validation_images_there_are_no_figures_of_predictions(here):
    train("cnn", DATA, out="m", size="small", epochs=1, with_valid=True)
    assert left_by("m.run") == {"args.yaml", "metrics.csv", "curves.png"}


def test_names_of_classes_are_drawn_whatever_they_hold(here):
    class_folders(here / "d", ("a_$x^$", "猫\x1b[2J", "x" * 100), n=12)
    train("svm", "d", out="m")
    assert "confusion.png" in left_by("m.run")


def test_a_figure_that_cannot_be_written_does_not_cost_the_model(here, caplog, monkeypatch):
    def full(*_): raise CourseError("no space")
    monkeypatch.setattr(runs, "write_figure", full)
    train("svm", DATA, out="m")
    assert open_model("m") and "its figures are not: no space" in caplog.text


# ---- the arguments

def test_the_arguments_repeat_the_run(here, capsys):
    assert main(["train", "cnn", "--data", DATA, "--seed", "3", *QUICK, "--dropout", "0.1", "--no-channels-last"]) == 0
    said = yaml.safe_load(Path("model.run/args.yaml").read_text())
    assert said["model"] == "cnn" and said["data"] == DATA and said["dropout"] == 0.1 and said["channels_last"] is False
    assert main(["train", "--config", "model.run/args.yaml"]) == 0
    first, second = (open_bundle(name) for name in ("model", "model-2"))
    assert first.meta["files"] == second.meta["files"] and first.meta["arguments"] == second.meta["arguments"]
    assert main(["train", "cnn", "--config", "model.run/args.yaml", "--dropout", "0.4", "--channels-last"]) == 0
    assert open_bundle("model-3").meta["arguments"]["dropout"] == 0.4
    assert open_bundle("model-3").meta["arguments"]["channels_last"] is True
    capsys.readouterr()
    assert main(["train", "svm", "--config", "model.run/args.yaml"]) == 2
    assert "is of the model cnn, not svm" in capsys.readouterr().err


@pytest.mark.parametrize("text, says", [("- a\n", "names no model"), ("model: [cnn]\n", "names no model"), ("a: {b\n", "is no yaml"),
                                        ("model: cnn\nepochs: [1, 2]\n", "epochs has several values"), ("\xff", "names no model")])
def test_a_file_that_is_no_table_of_options_is_refused(text, says, here):
    Path("a.yaml").write_text(text)
    with pytest.raises(CourseError, match=says): words_of("a.yaml")


@pytest.mark.parametrize("text, says", [("model: cnn\nepoch: 1\n", "did you mean '--epochs'"), ("model: cnm\n", "did you mean 'cnn'"),
                                        ("model: cnn\nepochs: many\n", "invalid int value")])
def test_a_mistake_in_the_file_is_one_of_the_command(text, says, here, capsys):
    Path("a.yaml").write_text(text)
    try: status = main(["train", "--config", "a.yaml"])
    except SystemExit as stop: status = stop.code
    assert status == 2 and says in capsys.readouterr().err


def test_the_python_function_takes_the_same_options(here):
    for options, says in ((dict(epoch=3), "cnn has no option 'epoch': did you mean 'epochs'"), (dict(xyz=1), "choose from")):
        with pytest.raises(CourseError, match=says): train("cnn", DATA, **options)
    with pytest.raises(CourseError, match="did you mean 'cnn'"): train("cmn", DATA)


# ---- which weights are kept

def test_the_best_weights_are_kept_where_there_are_validation_images(here):
    splits = load("streets?n=40&valid=50&test=10")
    assert with_best(models["cnn"], load(DATA), {}) == {}  # of 20 images the best epoch is luck
    assert with_best(models["cnn"], splits, {}) == dict(keep="best")
    assert with_best(models["cnn"], splits, dict(keep="last")) == dict(keep="last")
    assert with_best(models["cnn"], splits, dict(with_valid=True)) == dict(with_valid=True)
    assert with_best(models["svm"], splits, {}) == {}
    assert train("cnn", splits, size="small", epochs=1).about["recipe"]["keep"] == "best"


def test_a_score_of_an_earlier_step_is_not_that_of_the_model():
    steps = [History("accuracy", [dict(epoch=i + 1, accuracy=a) for i, a in enumerate(row)]) for row in ([0.2, 0.9], [0.5, 0.7, 0.6])]
    whole = joined(steps)
    job = SimpleNamespace(model=networks["cnn"](2), recipe=Recipe(keep="best"), splits=SimpleNamespace(train=[0]))
    assert about_training(job, whole)["valid_accuracy"] == 0.7
    job.recipe = Recipe()
    assert about_training(job, whole)["valid_accuracy"] == 0.6
    assert [row["epoch"] for row in whole.rows] == [1, 2, 3, 4, 5] and whole.before == 2


@pytest.mark.parametrize("metrics, says", [
    (dict(valid_accuracy=0.75), ": accuracy 75.0% on validation images, 50.0% by always saying b, 50.0% by chance"),
    (dict(valid_accuracy=0.51), ": accuracy 51.0% on validation images, 50.0% by always saying b, 50.0% by chance (not clearly better"),
    (dict(valid_accuracy=0.2), ": accuracy 20.0% on validation images, 50.0% by always saying b, 50.0% by chance (not clearly better"),
    (dict(valid_accuracy=None), ""), (dict(train_seconds=1.0), "")])
def test_a_score_stands_beside_that_of_guessing(metrics, says):
    class Part(list): targets = property(list)
    splits = SimpleNamespace(task="single-label", classes=["a", "b"], train=Part([0, 1, 1]), valid=Part([1, 0] * 50))
    said = verdict(splits, metrics)
    assert said.startswith(says) and bool(said) == bool(says) and ("better than guessing" in said) == ("clearly" in says)
    assert verdict(SimpleNamespace(task="detection"), dict(valid_map=0.25)) == ": map 0.250 on validation images"
    assert "it finds nothing" in verdict(SimpleNamespace(task="detection"), dict(valid_map=0.0))
    assert verdict(splits, dict(valid_f1=0.5, valid_rows=[1])) == ": f1 0.500 on validation images"  # a plug-in's


# ---- a network of one's own

def test_what_fit_gives_back_evaluates_predicts_and_saves(here):
    splits = load(DATA)
    done = fit(networks["cnn"](len(splits.classes), size="small"), splits, Recipe(epochs=2))
    assert evaluate(done.predictor, splits)["accuracy"] == done.predictor.evaluate(splits.test)["accuracy"]
    done.predictor.save("m")
    for a, b in zip(done.predictor.predict(splits.test), open_model("m").predict(splits.test)):
        assert np.array_equal(a.probabilities, b.probabilities)
    assert len(repr(done)) < 200 and len(repr(splits)) < 200 and len(repr(splits.train)) < 200
    with pytest.raises(CourseError, match="is not of one training"): _ = History().predictor


def test_a_bundle_that_could_not_be_opened_again_is_refused(here):
    from torch import nn
    splits = load(DATA)
    own = fit(nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 5)), splits, Recipe(epochs=1))
    assert own.predictor.evaluate(splits.test)["images"] == 10
    with pytest.raises(CourseError, match="unknown network 'Sequential'.*decorate"): own.predictor.save("m")
    other = fit(networks["cnn"](5, size="small"), splits, Recipe(epochs=1)).predictor
    other.arguments = dict(size="base")
    with pytest.raises(CourseError, match="'cnn' makes another"): other.save("m")
    other.arguments = dict(depth=3)
    with pytest.raises(CourseError, match="depth"): other.save("m")
    assert not (here / "m").exists()


def test_evaluate_takes_a_bundle_a_model_and_one_split(here, caplog):
    model = train("svm", DATA, out="m")
    scores = [evaluate("m", DATA), evaluate(Path("m"), load(DATA)), evaluate(model, DATA), evaluate(model, load(DATA).test)]
    assert len({found["accuracy"] for found in scores}) == 1 and scores[0]["split"] == "test"
    assert evaluate("m", DATA, split="train")["images"] == 40 and "has learnt from these images" in caplog.text
    with pytest.raises(CourseError, match="is for single-label data"): evaluate("m", "streets?view=multi&n=9&valid=5&test=5")


# ---- what is seen while it goes on

COMMAND = [sys.executable, "-m", "course_lib", "train", "cnn", "--data", DATA, *QUICK]
LINE = re.compile(r"epoch (\d)/2: loss \d\.\d{3}, accuracy [01]\.\d{3}( \(the best so far\))?, \d+\.\d s(, about \d+ s left)?")


def lines_of(text): return [line for line in (LINE.fullmatch(part.strip()) for part in text.splitlines()) if line]


def test_a_pipe_and_a_file_get_a_line_for_each_epoch_and_nothing_else(here):
    with open("log", "w") as log: assert subprocess.run(COMMAND, stdout=log, stderr=subprocess.STDOUT, timeout=300).returncode == 0
    text = Path("log").read_text()
    assert [line[1] for line in lines_of(text)] == ["1", "2"] and not re.search(r"[\r\x1b]|it/s|%\|", text)
    first, last = text.splitlines()[0], text.splitlines()[-2:]
    assert first.startswith("streets?") and "accuracy" in last[0] and "saved in model" in last[0]
    assert "model.run has args.yaml, metrics.csv, curves.png, confusion.png" in last[1]
    assert last[1].endswith("tensorboard --logdir model.run")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no pty")
def test_a_terminal_keeps_the_lines_and_erases_the_bars(here):
    main_end, side = pty.openpty()
    process = subprocess.Popen(COMMAND, stdout=side, stderr=side, stdin=side, close_fds=True)
    os.close(side)
    seen = b""
    while True:
        try: part = os.read(main_end, 4096)
        except OSError: break  # Linux says so when the other end is closed
        if not part: break
        seen += part
    assert process.wait(timeout=300) == 0
    screen = [line.rsplit("\r", 1)[-1] for line in seen.decode().replace("\r\n", "\n").replace("\x1b[A", "").split("\n")]
    assert [line[1] for line in lines_of("\n".join(screen))] == ["1", "2"]
    assert not any("it/s" in line or "%|" in line for line in screen)


def test_evaluate_draws_what_it_measured(here, capsys):
    train("svm", DATA, out="m")
    assert main(["evaluate", "m", "--data", DATA, "--figures", "drawn"]) == 0
    assert {path.name for path in Path("drawn").iterdir()} - {"mistakes.png"} == {"confusion.png", "predictions.png"}


def test_long_names_of_scores_stand_apart():
    from course_lib.cli import score_table
    row = dict(precision=0.5, recall=None, average_precision=0.25, images=3)
    head, line = score_table(dict(per_class=dict(a=row), images=3, seconds=1.0, images_per_second=3.0)).splitlines()[:2]
    assert head.split() == ["class", *row] and line.split() == ["a", "0.500", "-", "0.250", "3"] and len(head) == len(line)


def test_fit_says_what_it_learns_from():
    with pytest.raises(CourseError, match="not from list.*from_dataset"): fit(networks["cnn"](2), [(0, 1)])


# ---- a learning rate on request

def test_a_range_test_finds_the_rate_of_the_run(here, capsys):
    assert main(["train", "cnn", "--data", DATA, *QUICK, "--find-lr", "--out", "m"]) == 0
    said = re.search(r"range test: learning rate (\S+):", capsys.readouterr().err)[1]
    used = open_bundle("m").meta["about"]["recipe"]["learning_rate"]
    assert f"{used:.2g}" == said and "learning_rate.png" in left_by("m.run")
    assert main(["train", "--config", "m.run/args.yaml", "--out", "n"]) == 0
    assert open_bundle("n").meta["files"] == open_bundle("m").meta["files"]
    assert main(["train", "cnn", "--data", DATA, "--find-lr", "--lr", "0.1"]) == 2
    assert "does nothing with find_lr" in capsys.readouterr().err
    with pytest.raises(SystemExit): main(["train", "transfer", "--find-lr"])  # it loads weights first, and learns in steps


# ---- what others bring, and what others do meanwhile

PLAIN = '''
import numpy as np
from course_lib.core import formats, models, save_bundle

class Plain:
    "A model with nothing but what the protocol asks for."
    task, about = "single-label", {}
    def __init__(self, classes): self.classes, self.size = classes, 8
    def predict_proba(self, images): return np.tile(np.eye(len(self.classes))[0], (len(images), 1))
    def save(self, folder, **meta):
        meta |= dict(format="plain", classes=self.classes, task=self.task, input_size=8)
        return save_bundle(folder, meta, lambda part: (part / "nothing").write_text(""))

@formats.register("plain")
def opened(bundle): return Plain(bundle.meta["classes"])

@models.register("plain")
def plain(splits, seed: int = 0): return Plain(splits.classes)
'''


def test_a_model_of_a_plug_in_needs_no_more_than_the_protocol(here):
    Path("mine.py").write_text(PLAIN)
    class_folders(here / "d", n=12)
    for words in (["train", "plain", "--data", "d", "--out", "m"], ["evaluate", "m", "--data", "d", "--device", "cpu"],
                  ["predict", "m", "d", "--out", "p.csv"], ["evaluate", "m", "--data", "d", "--figures", "f"]):
        done = subprocess.run([sys.executable, "-m", "course_lib", "--import", "mine.py", *words], capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
    assert "confusion.png" in left_by("m.run") and {row["label"] for row in csv.DictReader(open("p.csv"))} == {"cat", "dog"}


def test_a_detector_of_a_plug_in_answers_in_pixels_of_the_image():
    class Finder:
        classes, size, task, threshold = ["a", "b"], 10, "detection", 0.5
        def detect(self, images, least):
            assert all(image.shape == (10, 10, 3) for image in images)
            return [dict(boxes=np.array([[1, 2, 5, 10], [0, 0, 1, 1.0]]), labels=np.array([2, 1]), scores=np.array([0.9, 0.4]))] * len(images)
    one, = asking(Finder()).predict(np.zeros((20, 50, 3), np.uint8))
    assert one.labels == ["b"] and one.boxes.tolist() == [[5, 4, 25, 20]] and one.size == (50, 20)


def test_a_bundle_that_came_meanwhile_is_not_replaced(here):
    splits = load(DATA)
    out = place_for("m")
    train("forest", splits, out="m", trees=3)  # another process was faster, and has finished
    with pytest.raises(CourseError, match="is a model already"): runs.train_into(out, "svm", splits, dict(seed=0))
    assert open_bundle("m").meta["architecture"] == "forest"
