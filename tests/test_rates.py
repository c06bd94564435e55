"The range test: reads a rate off a curve, leaves model and randomness alone, and says so where there is nothing to read."
import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import net, one_thread, splits, vector
from torch import nn

from course_lib.core import CourseError
from course_lib.data import SINGLE
from course_lib.loop import Callback, Job, learn
from course_lib.rates import DECADES, OneEpoch, Watch, copied, find_rate, rising, smoothed, suggest
from course_lib.training import Recipe, tasks

__all__ = ["one_thread", "splits"]  # fixtures
RATES = list(np.geomspace(1e-6, 10, 100))
CALM = dict(batch_size=16, seed=3, precision="fp32")


def curve(noise=0.01, start=50, least=70):
    "Losses that are 2, fall from one step to another to 1, and rise."
    place, rng = np.arange(100), np.random.default_rng(0)
    fall = np.clip((place - start) / (least - start), 0, 1)
    return list(2 - fall + np.clip(place - least, 0, None) / 10 + noise * rng.standard_normal(100))


def test_the_schedule_rises_by_one_factor_to_the_whole():
    shares = [rising(step, 100, (), 0) for step in range(100)]
    assert shares[0] == pytest.approx(10.0**-DECADES) and shares[-1] == 1 and np.allclose(np.diff(np.log(shares), 2), 0)
    assert rising(0, 1, (), 0) > 0


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.1])
def test_the_suggestion_is_four_fifths_down_the_fall(noise):
    step = RATES.index(suggest(RATES, curve(noise), False))
    assert 63 <= step <= 69  # of a fall from 50 to 70; smoothing rounds the minimum


def test_smoothing_keeps_a_constant_and_does_not_lag():
    assert np.allclose(smoothed([3.0] * 30), 3)
    line = np.arange(40.0)
    assert np.allclose(smoothed(list(line))[12:-12], line[12:-12], atol=1e-3)


@pytest.mark.parametrize("losses, exploded, says", [([2.3], True, "after 1 steps"), ([], True, "after 0 steps"),
                                                    (curve(0.3, 90, 200)[:60], False, "never falls"), (curve()[:69], False, "raise `highest`")])
def test_a_curve_that_cannot_be_read_is_one_line(losses, exploded, says):
    with pytest.raises(CourseError, match=f"range test: .*{says}") as why: suggest(RATES[:len(losses)], losses, exploded)
    assert "\n" not in str(why.value)


def test_a_fall_that_ends_in_an_explosion_can_be_read(): assert suggest(RATES[:71], curve()[:71], True) < RATES[70]


def test_model_randomness_and_folder_stay_as_they_were(splits, tmp_path):
    called = []

    class Told(Callback):
        def before_training(self, run): called.append(run)

    model = net()
    before, kinds = vector(model), [type(layer) for layer in model.modules()]
    job = Job(model, splits, Recipe(ema=0.9, keep="best", early_stopping_patience=1, schedule="plateau", **CALM), 32,
              folder=tmp_path / "run", callbacks=(Told(),))
    job.task = tasks[SINGLE](splits, 32, job.recipe)
    was = dict(vars(job.task))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
    found = find_rate(job)
    assert torch.equal(vector(model), before) and [type(layer) for layer in model.modules()] == kinds and model.training
    assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all() and torch.equal(torch.get_rng_state(), states[2])
    assert not (tmp_path / "run").exists() and not called and vars(job.task) == was
    assert job.recipe.learning_rate == 0.003 and find_rate(job).losses == found.losses


@pytest.mark.parametrize("optimizer, low, high", [("adamw", 1e-3, 0.2), ("sgd", 3e-3, 1.0)])
def test_the_suggestion_trains_a_small_network(optimizer, low, high, splits):
    found = find_rate(Job(net(dropout=0.0), splits, Recipe(optimizer=optimizer, **CALM), 32))
    assert low < found.suggestion < high and len(found.rates) == len(found.losses) <= 100
    model, recipe = net(dropout=0.0), Recipe(epochs=8, optimizer=optimizer, learning_rate=found.suggestion, **CALM)
    assert learn(Job(model, splits, recipe, 32)).scores[-1] > 0.8
    assert str(found).startswith(f"learning rate {found.suggestion:.2g}: ")


def test_it_ends_where_the_loss_explodes_and_finds_what_a_quadratic_allows(splits):
    "Logits are all zero but for one weight w, and the loss is w squared: steps of SGD diverge for rates above 1."
    class Square(tasks[SINGLE]):
        def loss(self, outputs, targets): return outputs[0, 0] ** 2 + 0.1

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.tensor([3.0]))

        def forward(self, images): return self.w.expand(len(images), 3)

    job = Job(One(), splits, Recipe(optimizer="sgd", momentum=0.0, weight_decay=0.0, **CALM), 32)
    job.task = Square(splits, 32, job.recipe)
    found = find_rate(job)
    assert 1e-2 < found.suggestion < 1 and 1 < found.rates[-1] < 10 and len(found.losses) < 100


def test_the_loop_sees_one_epoch_of_as_many_steps(splits):
    loader = tasks[SINGLE](splits, 32, Recipe(**CALM)).loader(splits.train, torch.device("cpu"), True)
    long, short = OneEpoch(loader, 20), OneEpoch(loader, 3)
    assert len(loader) == 6 and len(long) == 20 and len(short) == 3
    for step, place in ((0, (0, 0)), (5, (0, 5)), (6, (1, 0)), (19, (3, 1))):
        assert torch.equal(long.batch(0, step)[0], loader.batch(*place)[0]) and long.files(0, step) == loader.files(*place)


def test_what_cannot_be_read_is_an_error(splits):
    broken = net()
    with torch.no_grad(): broken[-1].bias.fill_(math.nan)
    with pytest.raises(CourseError, match="after 0 steps the loss is not finite"): find_rate(Job(broken, splits, Recipe(**CALM), 32))
    frozen = net(norm=False, dropout=0.0)
    for p in frozen[:-1].parameters(): p.requires_grad = False
    with torch.no_grad():
        for p in frozen[0].parameters(): p.zero_()  # its answers do not depend on the image
    noise = replace(splits, train=replace(splits.train, targets=np.random.default_rng(0).permutation(splits.train.targets).tolist()))
    with torch.no_grad():
        for p in frozen[-1].parameters(): p.zero_()
    with pytest.raises(CourseError, match="never falls"): find_rate(Job(frozen, noise, Recipe(**CALM), 32))
    with pytest.raises(CourseError, match="empty"): find_rate(Job(net(), replace(splits, train=splits.train.subset([])), Recipe(**CALM), 32))
    with pytest.raises(CourseError, match="steps=3"): find_rate(Job(net(), splits, Recipe(**CALM), 32), steps=3)


def test_shares_of_the_rate_are_copied_too():
    model = net()
    model[0].weight.lr_scale = 0.25
    own = copied(model)
    assert own[0].weight.lr_scale == 0.25 and own[0].weight is not model[0].weight and torch.equal(vector(own), vector(model))


def test_the_figure_says_what_it_shows(splits):
    found = find_rate(Job(net(), splits, Recipe(**CALM), 32))
    ax, = found.plot().axes
    assert ax.get_xscale() == "log" and ax.get_xlabel() == "learning rate" and ax.get_ylabel() == "training loss" and ax.get_title()
    assert f"suggested: {found.suggestion:.2g}" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_watch_ends_at_four_times_the_least():
    class Run:
        class accelerator:
            @staticmethod
            def reduce(loss, how): return loss
        train = None
    watch = Watch(9)
    watch.before_training(Run)
    for value in (1.0, 1.0, 3.0): watch.add((0, 0, 0.1), torch.tensor(value))
    with pytest.raises(Exception, match="^$"): watch.add((0, 0, 0.1), torch.tensor(40.0))
    assert watch.losses == [1, 1, 3, 40] and watch.rates == [0.1] * 4
