"The command line as its users meet it: what works, what it says when it cannot, and what a kill leaves behind."
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from making import encoded, put, scene, vouched
from PIL import Image
from sklearn.datasets import load_digits

from course_lib import combine, data
from course_lib.cli import Harmless, main
from course_lib.core import argument_comments, models, networks, open_bundle


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    "A folder of scanned digits, three classes of 40."
    root = tmp_path_factory.mktemp("data") / "some digits"
    scans = load_digits()
    for k in range(3):
        (root / f"ziffer {k} ü").mkdir(parents=True)
        for i, scan in enumerate(scans.images[scans.target == k][:40]):
            Image.fromarray((scan * 15.9).astype("uint8")).resize((32, 32)).save(root / f"ziffer {k} ü" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def bundle(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "svm"
    assert main(["train", "svm", "--data", str(digits), "--out", str(out)]) == 0
    return out


def one_line(capsys, *argv):
    "The single line on standard error with which a command refuses, with status 2."
    try: status = main([str(word) for word in argv])
    except SystemExit as stop: status = stop.code
    out, err = capsys.readouterr()
    assert status == 2 and out == "" and len(err.strip().splitlines()) == 1, (status, out, err)
    return err


def test_evaluate_prints_accuracy_and_time(digits, bundle, capsys):
    assert main(["evaluate", str(bundle), "--data", str(digits), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] > 0.8 and result["seconds"] > 0 and result["images"] > 10 and result["split"] == "test"
    assert main(["evaluate", str(bundle), "--data", str(digits), "--split", "valid"]) == 0
    said = capsys.readouterr()
    assert "accuracy" in said.out and "has learnt from these images" in said.err  # `refit`: from the validation images too


def test_predict_reads_a_folder_a_zip_and_a_image(digits, bundle, tmp_path, capsys):
    folder = tmp_path / "new"
    shutil.copytree(digits / "ziffer 0 ü", folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff no image")
    assert main(["predict", str(bundle), str(folder), "--out", str(tmp_path / "p.json"), "--top-k", "2"]) == 0
    rows = {row["file"]: row for row in json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))}
    assert len(rows) == 41 and "error" in rows["broken.jpg"]
    likely = [row["predictions"] for name, row in rows.items() if name != "broken.jpg"]
    assert all(len(p) == 2 and p[0]["probability"] >= p[1]["probability"] for p in likely)
    assert np.mean([p[0]["label"] == "ziffer 0 ü" for p in likely]) > 0.8
    shutil.make_archive(str(tmp_path / "new"), "zip", folder)
    for where in (tmp_path / "new.zip", folder / "3.png"):
        capsys.readouterr()
        assert main(["predict", str(bundle), str(where)]) == 0
        assert f"3.png: {rows['3.png']['predictions'][0]['label']}" in capsys.readouterr().out
    assert main(["predict", str(bundle), str(folder / "broken.jpg")]) == 2


def test_threshold_hides_the_unlikely(digits, bundle, tmp_path):
    out = tmp_path / "p.json"
    assert main(["predict", str(bundle), str(digits), "--threshold", "0.5", "--out", str(out)]) == 0
    found = [p["probability"] for row in json.loads(out.read_text(encoding="utf-8")) for p in row["predictions"]]
    assert found and min(found) >= 0.5


@pytest.mark.parametrize("words, says", [
    (["train", "swm"], "did you mean 'svm'"),
    (["train"], "train --list"),
    (["train", "svm", "--data", "no/such"], "check the path"),
    (["train", "svm", "--data", "stretes"], "did you mean 'streets'"),
    (["train", "svm", "--input-size", "big"], "invalid int value"),
    (["train", "svm", "--colour", "red"], "unrecognized"),
    (["train", "cnn", "--epoch", "3"], "unrecognized arguments: --epoch 3: did you mean '--epochs'?; see `course train cnn --help`"),
    (["train", "cnn", "--leaning-rate=3"], "did you mean '--learning-rate'?"),
    (["data", "check", "x", "--fixx", "y"], "did you mean '--fix'?; see `course data check --help`"),
    (["predict", "m", "a.jpg", "--thres", "1"], "unrecognized arguments: --thres 1: did you mean '--threshold'?; see `course predict --help`"),
    (["train", "svm", "--seed", "-1"], "--seed"),
    (["train", "--data", "no/such", "svm"], "check the path"),
    (["train", "ssd", "--label-smoothing", "0.1"], "unrecognized"),
    (["predict", "no-bundle", ""], "course train"),
    (["notebooks", "run", "--jobs", "-1"], "jobs=-1"),
    (["evaluate", "no-bundle", "--data", "streets"], "course train"),
    (["predict", "no-bundle", "x.jpg"], "course train"),
    (["data", "check", "no/such"], "check the path"),
    (["data", "render", "--out", "x", "--view", "bird"], "detection"),
    (["notebooks", "run", "--profile", "tpu"], "unknown profile"),
    (["dance"], "invalid choice"),
    ([], "required"),
])
def test_mistakes_end_in_one_line(words, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert says in one_line(capsys, *words)


def test_a_folder_that_is_near_wins_over_the_name_of_a_data_set(tmp_path, monkeypatch, capsys):
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path)
    for words in (["data", "check", "fotos"], ["train", "svm", "--data", "fotos"]):
        assert "no data set or folder 'fotos': did you mean 'photos'?" in one_line(capsys, *words)


def test_short_names_of_options_mean_the_same(tmp_path, capsys):
    words = ["train", "cnn", "--data", "streets?n=20&valid=5&test=5", "--size", "small", "--epochs", "1"]
    for i, more in enumerate((["--learning-rate", "0.02", "--weight-decay", "0.1", "--batch-size", "10", "--input-size", "32"],
                              ["--lr", "0.02", "--wd", "0.1", "--batch", "10", "--imgsz", "32"])):
        assert main([*words, *more, "--out", str(tmp_path / f"{i}")]) == 0
    assert open_bundle(tmp_path / "0").meta["arguments"] == open_bundle(tmp_path / "1").meta["arguments"]


def test_the_version_is_said(capsys):
    with pytest.raises(SystemExit, match="0"): main(["--version"])
    assert re.fullmatch(r"course \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_a_terminal_obeys_progress_bars_only(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "__stdout__", out)
    for text in ("\r 50%|##  | 5/10", "\n\n\x1b[A", "a\x1b[2Jb\n", "\rname\u202e"):
        for stream in (out, err): Harmless(stream).write(text)
    assert err.getvalue() == "\r 50%|##  | 5/10\n\n\x1b[Aa\\x1b[2Jb\n\rname\\u202e"
    assert not re.search("[\r\x1b\u202e]", out.getvalue()) and out.getvalue().count("\n") == 3


@pytest.mark.parametrize("words, says", [
    (["cnn", "--dropout", "2"], "dropout=2.0: use a number from 0 to 1"),
    (["resnet", "--blocks", "-1"], "blocks=-1"),
    (["densenet", "--layers", "0"], "layers=0"),
    (["cnn", "--input-size", "0"], "input_size=0"),
    (["transfer", "--enlarge", "-5", "--weights", "none"], "enlarge=-5"),
    (["transfer", "--stage-lr-decay", "-1", "--weights", "none"], "stage_lr_decay=-1"),
])
def test_numbers_that_make_no_sense_are_refused_before_training(words, says, tmp_path, capsys):
    assert main(["train", *words, "--out", str(tmp_path / "b")]) == 2
    assert says in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("others, says", [({}, "not a bundle"), ({"model.json": '{"format": "layers-model"}'}, "not a bundle"),
                                          ({"model.json": '{"bundle": 1, "files": {"pipeline.json": ""}}'}, "other files in it")])
def test_nothing_but_a_bundle_is_replaced(others, says, digits, tmp_path, capsys):
    for name, text in others.items(): (tmp_path / name).write_text(text)
    (tmp_path / "thesis.txt").write_text("three years of work")
    assert says in one_line(capsys, "train", "svm", "--data", digits, "--out", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


def test_a_bundle_can_be_written_here_and_behind_a_link_and_again(digits, tmp_path, monkeypatch, capsys):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "here", target_is_directory=True)
    words = ["train", "forest", "--trees", "3", "--data", str(digits), "--out"]
    for place, out in (("here", "."), ("", str(tmp_path / "link")), ("", str(tmp_path / "link"))):
        monkeypatch.chdir(tmp_path / place)
        assert main([*words, out, "--replace"]) == 0
        assert open_bundle(tmp_path / "here").meta["architecture"] == "forest" and (tmp_path / "link").is_symlink()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path / "here")
    capsys.readouterr()
    assert "the folder you are in" in one_line(capsys, *words, ".", "--replace")
    monkeypatch.chdir(tmp_path)
    assert "nothing can be written" in one_line(capsys, "train", "svm", "--data", digits, "--out", tmp_path / "file" / "b")


def test_predictions_never_replace_images(digits, bundle, tmp_path, capsys):
    image = tmp_path / "1.png"
    shutil.copy(digits / "ziffer 1 ü" / "1.png", image)
    before = image.read_bytes()
    for source in (image, tmp_path): assert "originals" in one_line(capsys, "predict", bundle, source, "--out", image)
    assert image.read_bytes() == before
    assert main(["predict", str(bundle), str(image), "--out", str(tmp_path / "new" / "p.json")]) == 0
    assert json.loads((tmp_path / "new" / "p.json").read_text(encoding="utf-8"))[0]["predictions"]


def test_images_below_a_single_folder_are_named_from_the_given_path_and_safe(digits, bundle, tmp_path, capsys):
    inner = tmp_path / "holiday" / "2024" / "day 1"
    inner.mkdir(parents=True)
    shutil.copy(digits / "ziffer 1 ü" / "1.png", inner / "1.png")
    before = (inner / "1.png").read_bytes()
    assert "originals" in one_line(capsys, "predict", bundle, tmp_path / "holiday", "--out", inner / "1.png")
    assert (inner / "1.png").read_bytes() == before
    assert main(["predict", str(bundle), str(tmp_path / "holiday"), "--out", str(tmp_path / "p.json")]) == 0
    assert json.loads((tmp_path / "p.json").read_text(encoding="utf-8"))[0]["file"] == "2024/day 1/1.png"


def test_predictions_never_go_into_the_bundle(digits, bundle, capsys):
    before = (bundle / "model.json").read_bytes()
    for name in ("model.json", "new.json"):
        assert "bundle" in one_line(capsys, "predict", bundle, digits, "--out", bundle / name)
    assert (bundle / "model.json").read_bytes() == before and not (bundle / "new.json").exists()


def test_predict_says_how_many_images_it_cannot_read(digits, bundle, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("no image")
    assert main(["predict", str(bundle), str(tmp_path / "notes.txt"), "--out", str(tmp_path / "p.json")]) == 2
    assert "1 of them cannot be read" in capsys.readouterr().err
    assert main(["predict", str(bundle), str(digits), "--out", str(tmp_path / "p.json")]) == 0
    assert "cannot be read" not in capsys.readouterr().err


# ---- nothing is dropped without a word

@pytest.fixture
def untidy(digits, tmp_path):
    "Class folders with two broken images, a file of another format, and images outside train/."
    root = tmp_path / "untidy"
    for k in range(2): shutil.copytree(digits / f"ziffer {k} ü", root / "train" / str(k))
    for i in range(2): (root / "train" / "0" / f"{i}.png").write_bytes(b"no image")
    for i in range(3): put(root / "later" / "0" / f"{i}.png", encoded(scene(i)))
    put(root / "train" / "1" / "x.svg", b"<svg/>")
    return root


def test_train_and_evaluate_say_what_they_leave_out_by_kind(untidy, tmp_path, capsys):
    for words in (["train", "forest", "--trees", "3", "--out"], ["evaluate"]):
        assert main([*words, str(tmp_path / "m"), "--data", f"{untidy}?splits=yes"]) == 0
        said = capsys.readouterr().err.splitlines()
        assert "error: unreadable image (2), such as train/0/0.png: not an image" in said
        assert any(line.startswith("warning: no split (1), such as later: 3 images") for line in said), said
        assert any(line.startswith("warning: unknown format (1), such as train/1/x.svg:") for line in said)
        assert f"all of them: course data check '{untidy}?splits=yes'" in said and len(said) <= 7, said


def test_nothing_left_out_is_one_line(digits, bundle, capsys):
    assert main(["evaluate", str(bundle), "--data", str(digits)]) == 0
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_predict_counts_what_it_does_not_read_by_ending(digits, bundle, tmp_path, capsys):
    folder = tmp_path / "mixed"
    shutil.copytree(digits / "ziffer 1 ü", folder)
    for name in ("a.svg", "b.SVG", "notes", "deeper/c.xcf"): put(folder / name, b"something")
    assert main(["predict", str(bundle), str(folder)]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 40 and err.splitlines()[-1].endswith(": 2 .svg, 1 .xcf, 1 without ending")
    for image in folder.glob("*.png"): image.unlink()
    assert "only 2 .svg, 1 .xcf, 1 without ending" in one_line(capsys, "predict", bundle, folder)
    assert main(["predict", str(bundle), str(folder / "a.svg")]) == 2
    assert "convert it to jpg or png" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="these characters are no part of names on Windows")
def test_names_with_question_marks_and_line_breaks_work(digits, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = Path("odd?dir") / "set?n=3"
    for k, name in enumerate(("what?", "two\nlines")): shutil.copytree(digits / f"ziffer {k} ü", data / name)
    (data / "what?" / "0.png").rename(data / "what?" / "0\n?.png")
    assert main(["data", "check", str(data)]) == 0
    assert main(["train", "forest", "--trees", "3", "--data", f"{data}?valid=0.2", "--out", "m?"]) == 0
    assert main(["evaluate", "m?", "--data", f"{data}?valid=0.2"]) == 0
    out = capsys.readouterr().out
    assert r"two\nlines" in out and "\nlines" not in out
    assert main(["predict", "m?", str(data)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 80 and lines[-40].startswith(r"what?/0\n?.png: ")


def test_evaluate_does_not_mind_another_order_of_classes(digits, bundle, capsys, monkeypatch):
    load = data.load
    def turned(spec, **how):
        found = load(spec, **how)
        part = combine.reorder_classes(found.test, found.classes[::-1])
        assert [part.classes[k] for k in part.targets] == [found.classes[k] for k in found.test.targets]
        return replace(found, test=part, classes=part.classes)
    results = []
    for loader in (load, turned):
        with monkeypatch.context() as patch:
            patch.setattr(data, "load", loader)
            assert main(["evaluate", str(bundle), "--data", str(digits), "--json"]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0]["accuracy"] == results[1]["accuracy"] > 0.8 and results[0]["per_class"] == results[1]["per_class"]


@pytest.mark.parametrize("words, says", [(["--top-k", "0"], "top_k=0"), (["--threshold", "2"], "threshold=2.0"),
                                         (["--threshold", "nan"], "threshold=nan")])
def test_predict_takes_numbers_that_make_sense(words, says, digits, bundle, capsys):
    assert says in one_line(capsys, "predict", bundle, digits, *words)


def test_evaluate_looks_at_the_test_split_of_the_training(digits, tmp_path, capsys):
    assert main(["train", "forest", "--trees", "3", "--data", str(digits), "--seed", "1", "--out", str(tmp_path / "m")]) == 0
    found = {}
    for words in ([], ["--seed", "1"], ["--seed", "2"]):
        capsys.readouterr()
        assert main(["evaluate", str(tmp_path / "m"), "--data", str(digits), "--json", *words]) == 0
        out, err = capsys.readouterr()
        assert ("may have learnt" in err) == (words == ["--seed", "2"])
        found[tuple(words)] = json.loads(out)["per_class"]
    assert found[()] == found["--seed", "1"] != found["--seed", "2"]


def measured(capsys, bundle, data, *words):
    "The result of `evaluate`, and what it said on standard error."
    assert main(["evaluate", str(bundle), "--data", str(data), "--json", *words]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def held_out(digits, root, names=None):
    "Turned digits in class folders: images that no bundle has seen. names: of some of the classes."
    for path in sorted(Path(digits).rglob("*.png")):
        if names and path.parent.name not in names: continue
        (root / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).rotate(10).save(root / path.parent.name / path.name)
    return root, len(list(root.rglob("*.png")))


def test_new_data_without_splits_is_measured_as_a_whole(digits, bundle, tmp_path, capsys):
    "A-9: 15% of it were."
    new, n = held_out(digits, tmp_path / "new")
    result, err = measured(capsys, bundle, new)
    assert (result["split"], result["images"]) == ("all", n) and "measured on all images" in err
    assert measured(capsys, bundle, new, "--split", "test")[0]["images"] < n / 2
    result, err = measured(capsys, bundle, digits, "--split", "all")
    assert result["images"] == n and "has learnt from these images" in err
    for folder, split in (("test", "test"), ("val", "valid")):
        lone, _ = held_out(digits, tmp_path / folder / folder)
        result, _ = measured(capsys, bundle, lone.parent)
        assert (result["split"], result["images"]) == (split, n)


def test_some_of_the_classes_are_enough_to_measure(digits, bundle, tmp_path, capsys):
    names = sorted(path.name for path in Path(digits).iterdir() if path.is_dir())
    for some in (names[:1], names[1:]):
        new, n = held_out(digits, tmp_path / str(len(some)), some)
        result, err = measured(capsys, bundle, new)
        rest = [name for name in names if name not in some]
        assert result["images"] == n and f"not measured, as no image shows them: {', '.join(rest)}" in err
        assert [result["per_class"][name]["f1"] for name in rest] == [None] * len(rest)
        assert result["f1"] == pytest.approx(np.mean([result["per_class"][name]["f1"] for name in some]))
    assert measured(capsys, bundle, f"{digits}?classes={names[0]}")[0]["per_class"].keys() == set(names)


def test_other_classes_are_refused(bundle, tmp_path, capsys):
    for name, colour in (("a", "red"), ("b", "blue")):
        (tmp_path / name).mkdir()
        for i in range(5): Image.new("RGB", (8, 8 + i), colour).save(tmp_path / name / f"{i}.png")
    assert "not in both: a, b, ziffer 0" in one_line(capsys, "evaluate", bundle, "--data", tmp_path)


@pytest.mark.parametrize("damage, says", [
    (lambda b: (b / "model.json").write_text("{"), "damaged"),
    (lambda b: (b / "model.json").write_text('{"some": "json"}'), "another program"),
    (lambda b: (b / "model.json").unlink(), "no model.json"),
    (lambda b: weights(b).unlink(), "is missing"),
    (lambda b: weights(b).write_bytes(weights(b).read_bytes()[:-9]), "truncated or was altered"),
    (lambda b: (b / "model.json").write_text((b / "model.json").read_text().replace('"bundle": 2', '"bundle": 1')), "version 1"),
    (lambda b: (b / "model.json").write_text((b / "model.json").read_text().replace("ziffer 1", "ziffer 7")), "model.json was altered"),
    (lambda b: (b / "model.json").write_text("[" * 100_000), "damaged"),
    (lambda b: vouched(b, lambda meta: meta.update(format="pickle")), "pickle"),
    (lambda b: vouched(b, lambda meta: meta.update(format=["pipeline"])), "not of the type str"),
    (lambda b: (weights(b).write_bytes(b""), vouched(b, lambda meta: meta)), "cannot be read"),
])
def test_a_damaged_bundle_is_refused_with_the_reason(bundle, tmp_path, capsys, damage, says):
    copy = shutil.copytree(bundle, tmp_path / "copy")
    damage(copy)
    assert says in one_line(capsys, "predict", copy, "x.png")


def weights(bundle):
    return next(path for path in sorted(bundle.iterdir()) if path.name != "model.json")


def test_a_bundle_says_where_it_comes_from(bundle, digits):
    meta = open_bundle(bundle).meta
    assert meta["architecture"] == "svm" and meta["seed"] == 0 and meta["data"]["spec"] == str(digits)
    assert meta["metrics"]["valid_accuracy"] > 0.5 and meta["versions"]["scikit-learn"]


@pytest.mark.parametrize("name", models.names())
def test_every_argument_of_every_model_is_explained(name):
    import inspect
    arguments = list(inspect.signature(models[name]).parameters)
    if name in networks: arguments = arguments[1:]  # without the data, which is no option
    assert set(arguments) <= set(argument_comments(models[name]))


def test_render_writes_what_load_reads(tmp_path, capsys):
    for layout, view in (("voc", "detection"), ("coco", "detection"), ("folder", "single")):
        out = tmp_path / layout
        words = ["data", "render", "--view", view, "--format", layout, "--n", "60", "--size", "64", "--out", str(out)]
        assert main(words) == 0
        assert main(["data", "check", str(out)]) == 0, capsys.readouterr().out


def test_help_answers_without_loading_models():
    code = "import sys; from course_lib.cli import main\ntry: main(['--help'])\nexcept SystemExit as e: assert e.code == 0"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "COMMAND" in done.stdout


@pytest.mark.parametrize("buffering", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "unbuffered"])
def test_a_reader_who_leaves_is_no_error(buffering):
    code = "import sys; from course_lib.cli import main; sys.exit(main(['data', 'list']))"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"} | buffering
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def predictions(bundle, images):
    "What a bundle says of all images in a folder, to the last digit that is written."
    assert main(["predict", str(bundle), str(images), "--out", f"{bundle}.json"]) == 0
    return json.loads(Path(f"{bundle}.json").read_text(encoding="utf-8"))


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a POSIX signal")
def test_a_killed_training_leaves_nothing_half_made(digits, tmp_path, monkeypatch):
    command = [sys.executable, "-m", "course_lib", "train", "svm", "--replace", "--data", str(digits), "--out", str(tmp_path / "b")]
    monkeypatch.setenv("COURSE_HOME", str(tmp_path / "home"))
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    whole = time.perf_counter() - started
    expected = predictions(tmp_path / "b", digits)
    random.seed(0)
    for attempt in range(3):
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(whole * random.uniform(0.5, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (tmp_path / "b").exists(): assert predictions(tmp_path / "b", digits) == expected
    subprocess.run(command, check=True, capture_output=True)
    assert predictions(tmp_path / "b", digits) == expected


# ---- plug-ins

PLUGIN = '''
"A network and a loss of one's own, and nothing else."
import torch.nn.functional as F
from torch import nn
from course_lib.predictors import network
from course_lib.training import losses

@losses.register("squares")
def squares(logits, targets, class_shares):
    "The squared error of the probabilities (Brier 1950)."
    return (logits.softmax(1) - F.one_hot(targets, logits.shape[1])).square().sum(1).mean()

@network("mine", epochs=2)
def mine(
    classes: int,    # K
    width: int = 8,  # channels
):
    "A tiny network of my own."
    return nn.Sequential(nn.Conv2d(3, width, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, classes))
'''


def in_a_new_process(*words):
    "A command in a process of its own, where no plug-in was imported before."
    return subprocess.run([sys.executable, "-m", "course_lib", *map(str, words)], capture_output=True, text=True, timeout=200)


def test_a_network_and_a_loss_of_ones_own_on_the_command_line(digits, tmp_path):
    plugin, out = tmp_path / "mine.py", tmp_path / "own"
    plugin.write_text(PLUGIN)
    words = ["train", "mine", "--data", digits, "--out", out, "--width", 4, "--loss", "squares"]
    done = in_a_new_process("--import", plugin, *words)
    assert done.returncode == 0, done.stderr
    assert "mine" in in_a_new_process("--import", plugin, "train", "--list").stdout
    unknown = in_a_new_process(*words)
    assert unknown.returncode == 2 and "unknown model 'mine'" in unknown.stderr
    assert in_a_new_process("evaluate", out, "--data", digits, "--import", plugin).returncode == 0
    closed = in_a_new_process("evaluate", out, "--data", digits)
    assert closed.returncode == 2 and "--import FILE" in closed.stderr and len(closed.stderr.splitlines()) == 1


def test_an_installed_package_is_a_plug_in(digits, tmp_path):
    plugin = tmp_path / "package" / "somebodys.py"
    plugin.parent.mkdir()
    plugin.write_text(PLUGIN)
    about = tmp_path / "package" / "somebodys-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[course_lib]\nmine = somebodys\n")
    done = subprocess.run([sys.executable, "-m", "course_lib", "train", "mine", "--data", str(digits), "--out", str(tmp_path / "own")],
                          capture_output=True, text=True, timeout=200, env=dict(os.environ, PYTHONPATH=str(plugin.parent)))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", [["data", "check", "phtos"], ["train", "cnm"], ["train", "cnn", "--data", "streats"]])
def test_a_mistyped_name_imports_no_torch(words):
    code = f"import sys; from course_lib.cli import main; status = main({words}); print(status, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    said_torch = words[:2] == ["train", "cnn"]  # the model's options were asked for before the data
    assert done.stdout.split() == ["2", str(said_torch)] and "unknown" in done.stderr, done


def test_the_student_edition_from_the_command_line(tmp_path, capsys):
    assert main(["student", str(tmp_path / "mine")]) == 0
    assert "wrote" in capsys.readouterr().out and (tmp_path / "mine" / "00_start.ipynb").is_file()
    assert main(["student", str(tmp_path / "mine")]) == 0
    assert "as they are" in capsys.readouterr().out


def test_images_of_more_than_8_bits_are_predicted_by_the_scale_of_training(tmp_path, capsys):
    rng = np.random.default_rng(0)
    def grey(low, high): return encoded(Image.fromarray(rng.integers(low, high, (32, 32)).astype(np.uint16)))
    for i in range(12):
        put(tmp_path / "xray" / "dark" / f"{i}.png", grey(200, 1000))
        put(tmp_path / "xray" / "bright" / f"{i}.png", grey(2500, 4000))
    alone = put(tmp_path / "alone" / "1.png", grey(200, 1000))  # by its own scale it would be bright
    out = str(tmp_path / "m")
    assert main(["train", "forest", "--trees", "20", "--data", str(tmp_path / "xray"), "--out", out]) == 0
    assert json.loads((tmp_path / "m" / "model.json").read_text())["data"]["scales"] == {"whole": [0, 4095]}
    for path in (alone, alone.parent):
        capsys.readouterr()
        assert main(["predict", out, str(path)]) == 0
        assert capsys.readouterr().out.split(": ")[1].startswith("dark")
    for name in ("dark", "bright"):
        for i in range(6): put(tmp_path / "new" / name / f"{i}.png", grey(10, 500 if name == "dark" else 1000))
    assert main(["evaluate", out, "--data", str(tmp_path / "new")]) == 0
    assert "in training 0 was black and 4095 white, here 0 and 1023" in capsys.readouterr().err
