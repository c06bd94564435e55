"Every option of every model does what it says, or is refused in a line that says what works instead."
import inspect
from typing import Literal, get_origin

import numpy as np
import pytest

from course_lib import predictors
from course_lib.cli import CONDITIONS, main
from course_lib.core import CourseError, models, networks
from course_lib.data import load, pixels
from course_lib.options import choices, several
from course_lib.streets import CONDITIONS as DRAWN
from course_lib.training import Recipe

MODELS = [name for name in sorted(models.discover()) if models[name].__module__.startswith("course_lib.")]
GENERAL = {"splits", "folder", "seed"}  # what `course train` gives by itself


def options(model): return {name: one for name, one in inspect.signature(models[model]).parameters.items() if name not in GENERAL}


def other(option):
    "A value of an option that is not its default, as text for the command line."
    known = choices(option.annotation)
    if several(option.annotation): return "near" if option.default == "ssd" else "flip"
    if known: return str(next(value for value in known if value != option.default))
    if option.name == "progressive_resizing": return "0.5"
    if option.name in ("members", "features", "scales", "backbone"): return dict(members="resnet18,resnet34", scales="0,1").get(option.name, "resnet18")
    if isinstance(option.default, float) or "float" in str(option.annotation): return "0.25"
    return "2"


EACH = [(model, name) for model in MODELS for name in options(model)]


@pytest.mark.parametrize("model, name", EACH, ids=lambda word: word)
def test_what_is_asked_for_arrives_or_is_refused(model, name, tmp_path, monkeypatch, capsys):
    option = options(model)[name]
    words, value = [f"--{name.replace('_', '-')}", other(option)], other(option)
    if option.annotation is bool: words, value = [f"--{'no-' if option.default else ''}{name.replace('_', '-')}"], not option.default
    arrived = {}

    class Stop(CourseError): "In place of a training."

    def stop(*_, **asked):
        arrived.update(asked)
        raise Stop("far enough")
    monkeypatch.setattr(predictors, "train_network", stop)
    if model not in networks: monkeypatch.setitem(models, model, same_signature(stop, models[model]))
    spec = f"streets?n=5&valid=5&test=5&size=32&view={'detection' if model == 'ssd' else 'multi' if model == 'multilabel' else 'single'}"
    assert main(["train", model, "--data", spec, "--out", str(tmp_path / "b"), *words]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    idle = {"balance": "loss=weighted", "momentum": "adamw", "weight_decay": "muon", "plateau_patience": "schedule=plateau"}
    if "does nothing" in said: assert name in said and idle[name] in said and not arrived
    else: assert "far enough" in said and str(arrived[name]) == str(value), said


def same_signature(function, model):
    function.__signature__, function.__doc__ = inspect.signature(model), model.__doc__
    function.documented_in = (model,)
    return function


@pytest.mark.parametrize("model", MODELS)
def test_help_lists_the_choices_and_another_is_refused(model, capsys):
    with pytest.raises(SystemExit): main(["train", model, "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, option in options(model).items():
        flag, known = f"--{name.replace('_', '-')}", choices(option.annotation)
        assert flag in text
        if several(option.annotation): assert f"of {', '.join(known)}" in text
        elif known:
            assert f"{flag} {{{','.join(map(str, known))}}}" in text
            with pytest.raises(SystemExit): main(["train", model, flag, "nonsense"])
            assert "invalid" in capsys.readouterr().err
    named = {name for name, one in options(model).items() if get_origin(one.annotation) is Literal}
    assert named & {"kernel", "device"} or model == "forest"


def test_the_conditions_in_the_help_are_those_that_are_drawn(): assert set(CONDITIONS) == {*DRAWN, "mixed"}


FROZEN = dict(strategy="frozen", weights="none", enlarge=32, input_size=32, batch_size=10)
IDLE = [
    ("transfer", dict(epochs=3), "head_epochs"), ("transfer", dict(learning_rate=0.1), "head_lr"), ("transfer", dict(warmup=1.0), "head"),
    ("transfer", dict(augment="flip,shift,mixup"), "augment=flip"), ("transfer", dict(progressive_resizing=0.5), "strategy=full"),
    ("transfer", dict(accumulate=2), "strategy=full"), ("transfer", dict(stage_lr_decay=0.5), "strategy=full"), ("transfer", dict(channels_last=False), "strategy"),
    ("multilabel", dict(epochs=3), "head_epochs"), ("multilabel", dict(augment="shift"), "augment=flip"),
    ("ensemble", dict(epochs=3), "head_epochs"), ("ensemble", dict(join="logits", strategy="full"), "join=vote"),
    ("ensemble", dict(join="regularized", strategy="frozen", epochs=3), "head_epochs"),
    ("hybrid", dict(augment="shift"), "augment=flip"), ("hybrid", dict(stage_lr_decay=0.5), "strategy=full"), ("hybrid", dict(checkpointing=True), "strategy"),
    ("ssd", dict(weights="none", frozen=2), "weights=none"), ("ssd", dict(weights="none", backbone_lr_scale=0.5), "weights=none"),
    ("cnn", dict(momentum=0.8), "sgd"), ("resnet", dict(weight_decay=0.1), "adamw"), ("cnn", dict(plateau_patience=1), "schedule=plateau"),
    ("cnn", dict(loss="focal", label_smoothing=0.1), "leave out loss"), ("cnn", dict(loss="focal", balance="loss"), "balance=sampling"),
    ("multilabel", dict(balance="loss"), "loss=weighted"),
    ("svm", dict(kernel="linear", gamma=0.3), "kernel=rbf"), ("svm", dict(kernel="linear", landmarks=9), "kernel=rbf"),
    ("svm", dict(features="hog", atoms=50), "features=patches")]


@pytest.mark.parametrize("model, asked, advice", IDLE, ids=lambda value: value if isinstance(value, str) else ",".join(value))
def test_what_would_do_nothing_is_refused_with_advice(model, asked, advice):
    data = load(f"streets?n=10&valid=5&test=5&size=32&view={'detection' if model == 'ssd' else 'multi' if model == 'multilabel' else 'single'}")
    frozen = FROZEN if "strategy" in options(model) else {}
    with pytest.raises(CourseError, match=f"does nothing .*{advice}"): models[model](data, **frozen | asked)


# ---- what is not refused changes the model, bit by bit

FASTER_OR_SMALLER = {"device", "resume", "channels_last", "precision", "accumulate"}  # not what the weights are in the end
WITH = dict(momentum=dict(optimizer="sgd"), plateau_patience=dict(schedule="plateau", epochs=4, learning_rate=1.0),
            early_stopping_patience=dict(epochs=6, learning_rate=1.0))  # an option -> what has to go with it
VALUES = dict(grad_clip=1e-3, ema=0.9, epochs=3, warmup=1.0, plateau_patience=0, early_stopping_patience=1, batch_size=7, learning_rate=0.05,
              weight_decay=5.0, label_smoothing=0.3, momentum=0.1, progressive_resizing=0.5, dropout=0.5, tta=2, head_epochs=3,
              head_lr=0.03, keep="best", augment="flip", optimizer="sgd", schedule="constant", with_valid=True, size="large",
              input_size=24, enlarge=48, backbone="resnet34", balance="sampling", find_lr=True)


@pytest.fixture(scope="module")
def streets(): return load("streets?n=20&valid=10&test=10&size=32")


def answers(model, splits, **asked):
    "What a model says about the test images, and the history of its training."
    made = models[model](splits, **asked)
    return made.predict_proba(np.array(pixels(splits.test, made.size))), len(made.about["history"])


@pytest.mark.parametrize("name", [name for name in options("cnn") if name not in FASTER_OR_SMALLER | {"loss"}])
def test_every_option_of_a_plain_network_changes_it(name, streets):
    base = dict(size="small", epochs=2, batch_size=10, learning_rate=0.01, input_size=32) | WITH.get(name, {})
    if name == "keep": base |= dict(epochs=6, learning_rate=0.1)
    if name == "find_lr": del base["learning_rate"]  # it finds one
    (before, epochs), (after, others) = answers("cnn", streets, **base), answers("cnn", streets, **base | {name: VALUES[name]})
    assert not np.array_equal(before, after) or epochs != others, name


@pytest.mark.parametrize("name", [name for name in options("transfer") if name not in FASTER_OR_SMALLER | {"loss", "strategy", "weights"}])
def test_every_option_under_frozen_changes_the_model_or_is_refused(name, streets):
    base = FROZEN | dict(head_epochs=2, backbone="resnet18") | {key: value for key, value in WITH.get(name, {}).items() if key in ("optimizer", "schedule")}
    if name in ("early_stopping_patience", "plateau_patience"): base |= dict(head_epochs=8, head_lr=1.0)
    if name == "keep": base |= dict(head_epochs=8, head_lr=0.03)  # here the first epoch is the best
    before = answers("transfer", streets, **base)
    value = "" if name == "augment" else VALUES.get(name, 0.5)
    try: after = answers("transfer", streets, **base | {name: value})
    except CourseError as why: assert "does nothing" in str(why) and name in str(why)
    else: assert not np.array_equal(before[0], after[0]) or before[1] != after[1], name


def test_no_field_of_a_recipe_is_forgotten():
    assert {name for name in inspect.signature(Recipe).parameters if name != "seed"} <= set(options("cnn"))


@pytest.mark.parametrize("words, says", [(["data", "check", "x", "--json", "--most", "3"], "--most does nothing with --json")])
def test_other_commands_refuse_what_does_nothing(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    assert main(words) == 2 and says in capsys.readouterr().err
