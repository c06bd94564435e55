"Several backbones together: joined heads, votes, meta-learners, and what decides about them."
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from course_lib import device, ensembles
from course_lib.cli import main
from course_lib.core import CourseError, models, open_model
from course_lib.data import load, pixels, to_float
from course_lib.ensembles import MLPHead, ConcatBackbones, joins, meta_learner, member_log_probs, vote_weights
from course_lib.evaluation import evaluate
from course_lib.weights import RAW
from course_lib.transfer import Backbone, embed, learn_transfer

MEMBERS = ["mobilenet_v2", "timm:tf_efficientnet_lite0"]
TINY = dict(members=",".join(MEMBERS), enlarge=32, input_size=32, weights="none", strategy="frozen", batch_size=10, head_epochs=2)


@pytest.fixture(scope="module")
def splits(): return load("streets?n=40&valid=30&test=20&size=32")


def log_probs(seed, M=3, N=50, K=4):
    "Logarithms of probabilities, [M, N, K], the first member better than the others, and the truth, [N]."
    rng = np.random.default_rng(seed)
    truth, z = rng.integers(K, size=N), rng.normal(size=(M, N, K))
    z[0, np.arange(N), truth] += 2
    return torch.tensor(z).log_softmax(2).numpy(), truth


def weights_of(model): return {name: value.clone() for name, value in model.state_dict().items()}


def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- side by side

def test_together_says_what_each_says(splits):
    parts = [Backbone(name, 32) for name in MEMBERS]
    both, images = ConcatBackbones(parts).eval(), np.array(pixels(splits.test, 32))
    batch = to_float(torch.from_numpy(images).permute(0, 3, 1, 2), *RAW)
    with torch.inference_mode(): expected = torch.cat([part(batch) for part in parts], 1)
    with torch.inference_mode(): assert torch.equal(both(batch), expected)
    assert both.width == sum(both.widths) == expected.shape[1]
    differs = torch.tensor(embed(both, images)[:, 0]) - expected  # in half precision, where the machine has it
    assert differs.norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("name", MEMBERS + ["resnet50", "vgg16"])
def test_a_whole_backbone_keeps_its_head(name):
    torch.manual_seed(0)
    whole, bare = Backbone(name, 64, whole=True).eval(), Backbone(name, 64).eval()
    with torch.inference_mode(): assert whole(torch.rand(2, 3, 48, 48)).shape == (2, 1000)
    assert whole.width == 1000 and bare.width != 1000
    assert sum(p.numel() for p in whole.parameters()) == sum(p.numel() for p in bare.parameters()) + 1001000 + 1000 * (bare.width - 1000)


def test_the_regularized_head_is_as_described():
    "Each embedding to 1024 with LayerNorm and dropout 0.5, then 2048 to 1024 to 512 to the classes."
    head = MLPHead([1280, 576], 3)
    linear = [(m.in_features, m.out_features) for m in head.modules() if isinstance(m, nn.Linear)]
    assert linear == [(1280, 1024), (576, 1024), (2048, 1024), (1024, 512), (512, 3)]
    kinds = [type(m).__name__ for m in head.project[0]]
    assert kinds == ["Linear", "LayerNorm", "Dropout"] and all(m.p == 0.5 for m in head.modules() if isinstance(m, nn.Dropout))
    x = torch.randn(4, 1856)
    assert not torch.equal(head.train()(x), head(x)) and torch.equal(head.eval()(x), head(x))
    moved = x.clone()
    moved[:, :1280] = moved[:, :1280] * 100
    assert not torch.allclose(head(moved), head(x)), "the first embedding is heard"


# ---- votes

@pytest.mark.parametrize("seed", range(5))
def test_no_other_weights_make_the_truth_likelier(seed):
    said, truth = log_probs(seed)
    likelihood = lambda w: np.log(np.tensordot(w, np.exp(said), 1)[np.arange(50), truth]).mean()
    found = vote_weights(said, truth, rounds=3000)
    assert np.isclose(found.sum(), 1) and (found >= 0).all() and found.argmax() == 0
    grid = [np.array([a, b, 20 - a - b]) / 20 for a, b in itertools.product(range(21), repeat=2) if a + b <= 20]
    assert likelihood(found) >= max(map(likelihood, grid)) - 1e-6


@pytest.mark.parametrize("K", [2, 3, 4])
def test_the_meta_learner_is_scikit_learns(K):
    said, truth = log_probs(0, K=K)
    weight, bias = meta_learner(said, truth)
    flat = said.transpose(1, 0, 2).reshape(50, -1)
    theirs = LogisticRegression(C=0.1, max_iter=2000).fit(flat, truth).predict_proba(flat)
    assert np.allclose(torch.tensor(flat @ weight.T + bias).softmax(1), theirs, atol=1e-6)


def test_the_meta_learner_never_names_a_class_it_has_not_seen():
    said, truth = log_probs(0)
    for left in ([0, 1, 3], [0, 3]):
        kept = np.isin(truth, left)
        weight, bias = meta_learner(said[:, kept], truth[kept])
        assert set((said.transpose(1, 0, 2).reshape(50, -1) @ weight.T + bias).argmax(1)) <= set(left)
    with pytest.raises(CourseError, match="one class only"): meta_learner(said, np.zeros(50, int))


def test_votes_by_hand():
    said = torch.log(torch.tensor([[[0.9, 0.1]], [[0.2, 0.8]]]))  # [2, 1, 2]
    for join, expected in (("vote", [[0.55, 0.45]]), ("weighted", [[0.76, 0.24]])):
        model = joins[join](MEMBERS, 2, 32)
        model.log_probs = lambda images: said
        if join == "weighted": model.shares.copy_(torch.tensor([0.8, 0.2]))
        assert torch.allclose(model(None).exp(), torch.tensor(expected))
    model = joins["stack"](MEMBERS, 2, 32)
    model.log_probs = lambda images: said
    with torch.no_grad():
        model.meta_learner.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1.0]]))
        model.meta_learner.bias.zero_()
        assert torch.allclose(model(None).exp(), torch.tensor([[0.9, 0.8]])), "first member's first class, second's second"


# ---- the model

@pytest.mark.parametrize("join", ["vote", "weighted", "stack", "logits", "regularized"])
def test_every_join_trains_and_comes_back(splits, tmp_path, join):
    made, images = models["ensemble"](splits, join=join, **TINY), np.array(pixels(splits.test, 32))
    again = open_model(made.save(tmp_path / "b"))
    assert np.array_equal(made.predict_proba(images), again.predict_proba(images))
    assert evaluate(again, splits.test)["images"] == 20 and np.allclose(made.predict_proba(images).sum(1), 1)


def test_it_comes_back_to_the_bit_in_float32_too(splits, tmp_path, monkeypatch):
    "There the order of a sum depends on how the weights lie in memory; frozen ones are not laid out by training."
    monkeypatch.setattr(device, "fast_type", lambda *numbers: torch.float32)
    made, images = models["ensemble"](splits, join="vote", **TINY), np.array(pixels(splits.test, 32))
    again = open_model(made.save(tmp_path / "b"))
    assert np.array_equal(made.predict_proba(images), again.predict_proba(images))


@pytest.mark.parametrize("join", ["vote", "weighted", "stack"])
def test_joining_is_settled_on_validation_images_alone(splits, join):
    "Other test labels change nothing; other validation labels change the meta-learner and the weights, but no member."
    other = lambda part: replace(part, targets=[(t + 1) % 5 for t in part.targets], key=part.key + "x")
    made = weights_of(models["ensemble"](splits, join=join, **TINY).model)
    assert same(made, weights_of(models["ensemble"](replace(splits, test=other(splits.test)), join=join, **TINY).model))
    changed = weights_of(models["ensemble"](replace(splits, valid=other(splits.valid)), join=join, **TINY).model)
    members = lambda state: {name: value for name, value in state.items() if name.startswith("members")}
    assert same(members(made), members(changed)) and (join == "vote") == same(made, changed)


def test_the_meta_learner_hears_the_validation_images(splits):
    made = models["ensemble"](splits, join="stack", **TINY).model
    weight, bias = meta_learner(member_log_probs(made, splits.valid, 32), np.array(splits.valid.targets))
    assert np.allclose(made.meta_learner.weight.detach(), weight, atol=1e-4) and np.allclose(made.meta_learner.bias.detach(), bias, atol=1e-4)


def test_a_finished_member_is_not_trained_again(splits, tmp_path, monkeypatch):
    calls = []
    def counted(model, *rest, **more):
        calls.append(model)
        if len(calls) == 2: raise KeyboardInterrupt
        return learn_transfer(model, *rest, **more)
    whole = models["ensemble"](splits, join="stack", **TINY)
    monkeypatch.setattr(ensembles, "learn_transfer", counted)
    with pytest.raises(KeyboardInterrupt): models["ensemble"](splits, join="stack", folder=tmp_path / "run", **TINY)
    kept = [path.read_bytes() for path in (tmp_path / "run").rglob("done.pt")]
    for other, says in (({}, "--resume"), (dict(resume=True, head_epochs=3), "head_epochs=2, not 3"), (dict(resume=True, enlarge=48), "enlarge=32"),
                        (dict(resume=True, members=",".join(MEMBERS[::-1])), "members="), (dict(resume=True, seed=1), "seed=0, not 1")):
        with pytest.raises(CourseError, match=says):
            models["ensemble"](splits, join="stack", folder=tmp_path / "run", **TINY | other)
    changed = replace(splits, train=splits.train.subset(range(20)))
    with pytest.raises(CourseError, match="data="): models["ensemble"](changed, join="stack", folder=tmp_path / "run", resume=True, **TINY)
    assert kept == [path.read_bytes() for path in (tmp_path / "run").rglob("done.pt")] != [] and len(calls) == 2
    resumed = models["ensemble"](splits, join="stack", folder=tmp_path / "run", resume=True, **TINY)
    assert len(calls) == 3 and same(weights_of(whole.model), weights_of(resumed.model))
    resumed.save(tmp_path / "model")
    assert not list((tmp_path / "run").rglob("done.pt"))


def test_what_is_refused(splits):
    for options, why in ((dict(members="mobilenet_v2"), "two backbones or more"), (dict(join="votes"), "did you mean 'vote'"),
                         (dict(members="mobilenet_v2,mobilnet_v2"), "did you mean")):
        with pytest.raises(CourseError, match=why): models["ensemble"](splits, **TINY | options)
    without = replace(splits, valid=splits.valid.subset([]))
    for join in ("weighted", "stack"):
        with pytest.raises(CourseError, match="use join=vote"): models["ensemble"](without, join=join, **TINY)
    assert models["ensemble"](without, join="vote", **TINY).temperature == 1
    with pytest.raises(CourseError, match="chapter 10"): models["ensemble"](load("streets?view=multi&n=10"), **TINY)


def test_command_line(tmp_path, capsys):
    options = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    spec = "streets?n=20&valid=20&test=10&size=32"
    assert main(["train", "ensemble", "--data", spec, "--out", str(tmp_path / "b"), "--join", "stack", *options]) == 0
    assert main(["evaluate", str(tmp_path / "b"), "--data", spec]) == 0 and "accuracy" in capsys.readouterr().out
