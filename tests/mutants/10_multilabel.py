# %% macro_and_micro: the two changed places
def macro_micro(tp, fp, fn):
    def f1(tp, fp, fn): return 2 * tp / (2 * tp + fp + fn)
    return f1(tp.sum(), fp.sum(), fn.sum()), f1(tp, fp, fn).mean()

# %% macro_and_micro: accuracy in place of F1
def macro_micro(tp, fp, fn):
    return (tp / (tp + fp + fn)).mean(), tp.sum() / (tp.sum() + fp.sum() + fn.sum())

# %% margin_loss: the margin lowers the present classes, too
def with_margin(logits, targets, share=None, margin=0.05):
    p = (logits.sigmoid() - margin).clamp(min=1e-6)
    return (-targets * p.log() - (1 - targets) * torch.log1p(-p)).mean()

# %% margin_loss: no margin at all
def with_margin(logits, targets, share=None, margin=0.05):
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits))

# %% margin_loss: the margin is added instead of taken away
def with_margin(logits, targets, share=None, margin=0.05):
    p = (logits.sigmoid() + margin).clamp(max=1 - 1e-6)
    return (-targets * F.logsigmoid(logits) - (1 - targets) * torch.log1p(-p)).mean()

# %% images_for_a_threshold: thresholds from the test images
numbers = [1, 2, 4, 8, 16, 64, len(on_valid)]


def f1_by_images(numbers, draws=20):
    def once(n, rng):
        some = rng.permutation(len(on_test))[:n]
        return label_scores(truth["test"], on_test, best_thresholds(truth["test"][some], on_test[some]), classes)["f1"]
    return [np.mean([once(n, np.random.default_rng(i)) for i in range(draws)]) for n in numbers]


gained = np.array(f1_by_images(numbers)) - half["f1"]
enough = numbers[int((gained >= gained[-1] / 2).argmax())]

# %% images_for_a_threshold: all images are enough, said without looking
numbers = [1, 2, 4, 8, 16, 64, len(on_valid)]


def f1_by_images(numbers, draws=20):
    return [half["f1"] for n in numbers]


enough = numbers[-1]

# %% own_photos: the least confident mistake first
def learn_photos(folder):
    own = load(folder, seed)
    return own, models["transfer"](own, backbone=backbone, enlarge=64, strategy="frozen", seed=seed, device=device)

def confident_mistakes(probabilities, targets):
    wrong = np.flatnonzero(probabilities.argmax(1) != np.asarray(targets))
    return wrong[np.argsort(probabilities[wrong].max(1))]

# %% own_photos: right answers, too
def learn_photos(folder):
    own = load(folder, seed)
    return own, models["transfer"](own, backbone=backbone, enlarge=64, strategy="frozen", seed=seed, device=device)

def confident_mistakes(probabilities, targets):
    return np.argsort(-probabilities.max(1))

# %% own_photos: sorted by the probability of the right class
def learn_photos(folder):
    own = load(folder, seed)
    return own, models["transfer"](own, backbone=backbone, enlarge=64, strategy="frozen", seed=seed, device=device)

def confident_mistakes(probabilities, targets):
    wrong = np.flatnonzero(probabilities.argmax(1) != np.asarray(targets))
    return wrong[np.argsort(-probabilities[wrong, np.asarray(targets)[wrong]])]

# %% own_photos: places within the mistakes instead of numbers of images
def learn_photos(folder):
    own = load(folder, seed)
    return own, models["transfer"](own, backbone=backbone, enlarge=64, strategy="frozen", seed=seed, device=device)

def confident_mistakes(probabilities, targets):
    wrong = np.flatnonzero(probabilities.argmax(1) != np.asarray(targets))
    return np.argsort(-probabilities[wrong].max(1))
