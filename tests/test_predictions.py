"What a trained model says of an image, in whatever form the image comes."
import csv
import io
import json
import sys

import numpy as np
import pytest
import torch
from making import encoded, put, scene
from PIL import Image

from course_lib import train
from course_lib.cli import main
from course_lib.core import CourseError, open_model
from course_lib.data import load
from course_lib.predictions import Prediction, Predictions, items_of


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    "A small network that tells red images from green ones."
    root = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for k, name in enumerate(("green", "red")):
        for i in range(30):
            image = rng.integers(0, 60, (40, 48, 3), np.uint8)
            image[..., 1 - k] += 180
            put(root / "data" / name / f"{i}.png", encoded(image, "PNG"))
    made = train("cnn", root / "data", out=root / "model", size="small", epochs=12, batch_size=8, device="cpu", keep="last", dropout=0)
    assert made.evaluate(load(root / "data").test)["accuracy"] == 1
    return root / "model"


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    "A detector with random weights: what it says is wrong, and has the form of an answer."
    root = tmp_path_factory.mktemp("boxes")
    splits = load("streets?view=detection&n=8&valid=5&test=5&size=96")
    train("ssd", splits, out=root / "ssd", epochs=1, weights="none", input_size=96, device="cpu")
    return root / "ssd"


def red(height=40, width=48): return np.full((height, width, 3), (230, 30, 30), np.uint8)


# ---- forms of images

def forms(image):
    "One image in all forms that say the same."
    tensor = torch.from_numpy(image).permute(2, 0, 1)
    return dict(array=image, pil=Image.fromarray(image), tensor=tensor, unit=tensor / 255, floats=image / 255,
                half=(tensor / 255).double(), batch=image[None], tensors=tensor[None] / 255,
                several=[image], pair=(image,))


@pytest.mark.parametrize("form", forms(red()))
def test_every_form_of_an_image_gets_the_same_answer(form, model, tmp_path):
    predictor = open_model(model)
    put(tmp_path / "red.png", encoded(red(), "PNG"))
    from_file = predictor.predict(tmp_path / "red.png")[0]
    answer, = predictor.predict(forms(red())[form])
    assert answer.label == "red" and np.array_equal(answer.probabilities, from_file.probabilities)
    assert answer.size == (48, 40) and answer.read().shape == (40, 48, 3)


def test_grey_images_become_three_channels(model):
    for value in (np.full((4, 5), 7, np.uint8), np.full((4, 5, 1), 7, np.uint8), torch.full((1, 4, 5), 7, dtype=torch.uint8)):
        assert np.array_equal(items_of(value).items[0].read(), np.full((4, 5, 3), 7, np.uint8))


@pytest.mark.parametrize("wrong, says", [
    (np.zeros((3, 20, 30)), "transpose(1, 2, 0)"), (np.zeros((20, 30, 2)), "is no image"), (np.zeros((0, 4, 3)), "no pixels"),
    (np.full((4, 4), 2.5), "0 to 1 are expected"), (np.full((4, 4), -1), "it needs uint8"), (np.full((4, 4), np.nan), "are nan"),
    (7, "is no image"), (None, "is no image"), ([], "the list is empty"), (dict(a=1), "is no image"), (np.array(["x"]), "is no image"), ("", "predict what?"), ("http://a.b/c.jpg", "download the image first"),
    ("no/such.jpg", "no image, folder or zip 'no/such.jpg'"), ("no/such*.jpg", "no image matches")])
def test_what_is_no_image_is_refused_in_a_line(wrong, says):
    with pytest.raises(CourseError) as why: items_of(wrong)
    assert says in str(why.value) and "\n" not in str(why.value)


def test_a_list_may_mix_forms_and_keeps_their_order(model, tmp_path):
    put(tmp_path / "many" / "b.png", encoded(red(), "PNG"))
    put(tmp_path / "many" / "a.jpg", b"no image")
    put(tmp_path / "many" / "notes.txt", b"text")
    given = [red(), str(tmp_path / "many"), Image.fromarray(255 - red())]
    answers = open_model(model).predict(given, batch_size=1)
    assert [one.file for one in answers] == ["0", f"{tmp_path}/many/a.jpg", f"{tmp_path}/many/b.png", "2"]
    assert "in no format" in answers[1].error and answers[2].label == "red" and answers[1].label is None
    assert items_of(given).others == ["notes.txt"]


def test_a_split_and_batches_of_all_sizes_get_equal_answers(model):
    splits = load("streets?n=5&valid=7&test=5")
    predictor = open_model(model)
    known = predictor.predict(splits.valid)
    assert [one.file for one in known] == splits.valid.names
    for size in (1, 3, 100):
        again = predictor.predict(splits.valid, batch_size=size)
        assert all(np.allclose(a.probabilities, b.probabilities, atol=2e-3) for a, b in zip(known, again))
    assert known[:2].__class__ is Predictions and len(known[:2]) == 2


@pytest.mark.parametrize("how, says", [(dict(top_k=0), "top_k=0"), (dict(threshold=1.5), "threshold=1.5"), (dict(batch_size=0), "batch_size=0")])
def test_numbers_that_make_no_sense_are_refused(how, says, model):
    with pytest.raises(CourseError, match=says): open_model(model).predict(red(), **how)


# ---- forms of answers

def test_answers_become_tables(model, detector, tmp_path):
    pandas = pytest.importorskip("pandas")
    put(tmp_path / "bad.jpg", b"no image")
    answers = open_model(model).predict([red(), tmp_path / "bad.jpg"])
    frame = answers.to_df()
    assert list(frame.columns) == ["file", "label", "score", "error"] and len(frame) == 3
    assert frame.loc[0, "label"] == "red" and frame["error"].notna().sum() == 1
    assert list(csv.DictReader(io.StringIO(answers.to_csv())))[0]["label"] == "red"
    boxes = open_model(detector).predict(scene(1), threshold=0.0, top_k=3)
    assert list(boxes.to_df().columns) == ["file", "label", "score", "x1", "y1", "x2", "y2"] and len(boxes.to_df()) == 3
    assert isinstance(open_model(detector).predict(scene(1), threshold=1).to_df(), pandas.DataFrame)


def test_without_pandas_a_table_is_refused_in_a_line(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(CourseError, match="pip install pandas"): open_model(model).predict(red()).to_df()


def test_answers_show_themselves(model, detector):
    answers = open_model(model).predict([red()] * 12)
    assert repr(answers).count("\n") == 10 and "and 2 more" in repr(answers) and repr(answers[0]).startswith("0: red ")
    assert "\x1b" not in repr(Prediction("a\x1b[2J", ["b\x1b"], [0.5]))
    fig = answers.plot()
    assert sum(len(ax.images) for ax in fig.axes) == 12
    found = open_model(detector).predict(scene(2), threshold=0.0, top_k=2)
    assert found[0].drawn().ndim == 3 and found.plot().axes[0].get_title().endswith("2 objects")
    with pytest.raises(CourseError, match="no image"): Prediction("x", error="gone").drawn()
    for predictor in (open_model(model), open_model(detector)): assert len(repr(predictor)) < 200


def test_a_detector_answers_in_pixels_of_each_image(detector):
    predictor = open_model(detector)
    images = [scene(3), np.array(Image.fromarray(scene(3)).resize((150, 70)))]
    together = predictor.predict(images, threshold=0.0, top_k=5)
    for image, one in zip(images, together):
        alone = predictor.detect([image], 0.0)[0]
        assert np.allclose(one.boxes, alone["boxes"][:5], atol=0.5) and np.allclose(one.scores, alone["scores"][:5], atol=2e-3)
        assert one.boxes[:, 2].max() <= image.shape[1] + 1e-3 and one.boxes[:, 3].max() <= image.shape[0] + 1e-3
    assert all(score >= 0.3 for one in predictor.predict(images, threshold=0.3) for score in one.scores)


def test_sixteen_bits_are_shown_as_in_training(tmp_path):
    rng = np.random.default_rng(1)
    for k, name in enumerate(("dim", "light")):
        for i in range(20):
            values = rng.integers(0, 2000, (32, 32)).astype(np.uint16) + np.uint16(k * 2000)
            Image.fromarray(values).save(put(tmp_path / "d" / name / f"{i}.png", b""))
    for name in ("svm", "cnn"):
        options = dict(size="small", epochs=1) if name == "cnn" else {}
        made = train(name, tmp_path / "d", **options)
        made.save(tmp_path / name)  # without the command line
        again = open_model(tmp_path / name)
        assert {kind: list(scale) for kind, scale in made.scales.items()} == again.scales != {}
        one = tmp_path / "d" / "dim" / "0.png"
        assert np.array_equal(made.predict(one)[0].probabilities, again.predict(one)[0].probabilities)
        assert again.predict(one)[0].read().max() < 150  # by its own scale it would be white somewhere


# ---- the command

def test_the_command_takes_files_folders_patterns_and_writes_tables(model, tmp_path, capsys):
    for name in ("a", "b"):
        for i in range(3): put(tmp_path / name / f"{i}.png", encoded(red(), "PNG"))
    words = ["predict", str(model), str(tmp_path / "a" / "0.png"), str(tmp_path / "b"), f"{tmp_path}/a/[12].png", "--top-k", "1"]
    assert main([*words, "--device", "cpu", "--batch-size", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [f"{tmp_path}/a/0.png", *(f"{tmp_path}/b/{i}.png" for i in range(3)), f"{tmp_path}/a/1.png", f"{tmp_path}/a/2.png"]
    assert [line.split(": ")[0] for line in lines] == names and all(": red " in line for line in lines)
    assert main([*words, "--out", str(tmp_path / "p.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert [row["file"] for row in rows] == names and {row["label"] for row in rows} == {"red"}
    assert main([*words, "--out", str(tmp_path / "p.json")]) == 0
    assert [row["file"] for row in json.loads((tmp_path / "p.json").read_text())] == names


def test_parquet_holds_the_same_table(model, tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    put(tmp_path / "0.png", encoded(red(), "PNG"))
    assert main(["predict", str(model), str(tmp_path / "0.png"), "--out", str(tmp_path / "p.parquet")]) == 0
    assert pandas.read_parquet(tmp_path / "p.parquet").loc[0, "label"] == "red"


def test_drawn_images_of_two_folders_do_not_replace_each_other(detector, tmp_path, capsys):
    for name in ("a", "b"): put(tmp_path / name / "0.png", encoded(scene(4), "PNG"))
    words = ["predict", str(detector), str(tmp_path / "a"), str(tmp_path / "b"), "--draw", str(tmp_path / "out")]
    assert main(words) == 2
    assert "two images would be drawn to" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["forest", "cnn"])
def test_a_device_that_is_not_here_is_refused(kind, model, tmp_path, capsys):
    if torch.cuda.is_available(): pytest.skip("this machine has a GPU")
    if kind == "forest":
        train("forest", "streets?n=30&valid=10&test=10", trees=3).save(tmp_path / "forest")
        model = tmp_path / "forest"
    put(tmp_path / "0.png", encoded(red(), "PNG"))
    assert main(["predict", str(model), str(tmp_path / "0.png"), "--device", "cuda"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]  # a training before it may have spoken
    assert said.startswith("course: ") and ("not here" in said or "computes on the processor" in said)


# ---- videos

def film(path, frames):
    "Write frames as a video; False where OpenCV cannot."
    cv2 = pytest.importorskip("cv2")
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, frames[0].shape[1::-1])
    if not writer.isOpened(): pytest.skip("this OpenCV writes no video")
    for frame in frames: writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()


def test_a_video_is_answered_frame_by_frame(model, tmp_path):
    green = np.full((40, 48, 3), (30, 230, 30), np.uint8)
    film(tmp_path / "f.mp4", [red()] * 5 + [green] * 5 + [red()] * 3)
    answers = open_model(model).predict(tmp_path / "f.mp4", batch_size=2)
    assert [one.label for one in answers] == ["red"] * 5 + ["green"] * 5 + ["red"] * 3
    assert answers[7].file == f"{tmp_path}/f.mp4#7" and answers[7].size == (48, 40)
    assert answers[0].read()[..., 0].mean() > 200  # for whoever draws it, in the right order of colours


def test_frames_of_a_long_video_are_not_kept(model, tmp_path):
    from course_lib.predictions import _Film
    film(tmp_path / "f.mp4", [np.full((32, 32, 3), i, np.uint8) for i in range(200)])
    frames = _Film(tmp_path / "f.mp4")
    for i in (150, 3, 151, 199, 0): assert abs(frames.frame(i).mean() - i) < 12 and len(frames.early) <= 64
    with pytest.raises(OSError, match="ends at frame 200"): frames.frame(200)


def test_a_detector_draws_a_video(detector, tmp_path, capsys):
    cv2 = pytest.importorskip("cv2")
    film(tmp_path / "f.mp4", [scene(i, 96, 128) for i in range(11)])
    assert main(["predict", str(detector), str(tmp_path / "f.mp4"), "--threshold", "0.0", "--top-k", "2", "--draw", str(tmp_path / "d.mp4"),
                 "--out", str(tmp_path / "boxes.csv")]) == 0
    drawn = cv2.VideoCapture(str(tmp_path / "d.mp4"))
    assert drawn.get(cv2.CAP_PROP_FRAME_COUNT) == 11 and abs(drawn.get(cv2.CAP_PROP_FPS) - 10) < 0.1
    assert len({row["file"] for row in csv.DictReader((tmp_path / "boxes.csv").open())}) == 11
    before = (tmp_path / "f.mp4").read_bytes()
    assert main(["predict", str(detector), str(tmp_path / "f.mp4"), "--draw", str(tmp_path / "f.mp4")]) == 2
    assert "originals" in capsys.readouterr().err and (tmp_path / "f.mp4").read_bytes() == before


def test_what_is_no_video_is_refused(model, detector, tmp_path, capfd):
    put(tmp_path / "f.mp4", b"no video at all")
    with pytest.raises(CourseError, match="is no video that can be read"): open_model(model).predict(tmp_path / "f.mp4")
    film(tmp_path / "g.mp4", [red()] * 2)
    with pytest.raises(CourseError, match="looked at alone"): items_of([tmp_path / "g.mp4", red()])


class Camera:
    "Four images, and then nothing."
    def __init__(self, number): self.number, self.left = number, 4

    def isOpened(self): return self.number == 0

    def read(self):
        self.left -= 1
        return self.left >= 0, red()[..., ::-1]

    def release(self): pass


def test_a_camera_is_looked_through(model, tmp_path, capsys, monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    assert main(["predict", str(model), "--webcam", "--top-k", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[3].startswith("camera 0#3: red ")
    for words, says in ((["--webcam", "1"], "camera 1 does not answer"), (["x.jpg", "--webcam"], "name no images beside it"),
                        ([], "predict what?")):
        assert main(["predict", str(model), *words]) == 2 and says in capsys.readouterr().err
