"""A computer-vision course that runs on a laptop, and the small library that falls out of it.

    from course_lib import load, train, evaluate, open_model

    model = train("transfer", "photos", out="model")    # a folder with a folder for each class
    print(evaluate(model, "photos")["accuracy"])        # on its test images
    open_model("model").predict("holiday/*.jpg")        # labels, probabilities; .to_df(), .plot()

A network of your own learns by `fit(network, splits, Recipe(epochs=20))`. `help(models["cnn"])` lists a model's options.
What stands here is imported when it is asked for: `import course_lib` itself takes no time.
"""
from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for editors and type checkers
    from course_lib.core import CourseError as CourseError, models as models, networks as networks
    from course_lib.core import open_model as open_model
    from course_lib.data import Images as Images, Splits as Splits, load as load
    from course_lib.loop import fit as fit
    from course_lib.memory import from_arrays as from_arrays, from_dataframe as from_dataframe
    from course_lib.memory import from_dataset as from_dataset
    from course_lib.predictions import Prediction as Prediction, Predictions as Predictions
    from course_lib.predictors import network as network
    from course_lib.runs import evaluate as evaluate, train as train
    from course_lib.training import Recipe as Recipe

_HOMES = dict(
    CourseError="core", models="core", networks="core", open_model="core",
    Images="data", Splits="data", load="data",
    from_arrays="memory", from_dataframe="memory", from_dataset="memory",
    Prediction="predictions", Predictions="predictions",
    Recipe="training", fit="loop", network="predictors",
    evaluate="runs", train="runs")
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES: raise AttributeError(f"module 'course_lib' has no attribute '{name}'")
    return getattr(import_module(f"course_lib.{_HOMES[name]}"), name)


def __dir__(): return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
