"Wrong answers to the exercises of nbs/08_recipes.ipynb, each of which its check cell must refuse."

# %% smoothed: the rest is shared out among the other classes only
def smoothed(targets, s, K):
    return F.one_hot(targets, K) * (1 - s) + (1 - F.one_hot(targets, K)) * s / (K - 1)

# %% smoothed: rows sum to less than 1
def smoothed(targets, s, K):
    return F.one_hot(targets, K) * (1 - s) + (1 - F.one_hot(targets, K)) * s / K

# %% smoothed: the strength is always 0.2
def smoothed(targets, s, K):
    return F.one_hot(targets, K) * 0.8 + 0.2 / K

# %% smoothed: no smoothing at all
def smoothed(targets, s, K):
    return F.one_hot(targets, K).float()

# %% negative: draws from torch's global generator
def negative(images, targets, rng, classes):
    chosen = torch.rand(len(images)) < 0.5
    return torch.where(chosen[:, None, None, None], 255 - images, images), targets

# %% negative: one chance for the whole batch
def negative(images, targets, rng, classes):
    return (255 - images if torch.rand(1, generator=rng) < 0.5 else images.clone()), targets

# %% negative: every image
def negative(images, targets, rng, classes):
    return 255 - images, targets

# %% negative: every second image, without any chance
def negative(images, targets, rng, classes):
    out = images.clone()
    out[::2] = 255 - out[::2]
    return out, targets

# %% negative: each pixel by itself
def negative(images, targets, rng, classes):
    chosen = torch.rand(images.shape, generator=rng) < 0.5
    return torch.where(chosen, 255 - images, images), targets

# %% negative: in place
def negative(images, targets, rng, classes):
    chosen = torch.rand(len(images), generator=rng) < 0.5
    images[chosen] = 255 - images[chosen]
    return images, targets

# %% misled: only runs of the same seed are compared
def misled(with_it, without):
    sign = np.sign(with_it.mean() - without.mean())
    n = min(len(with_it), len(without))
    return float(np.mean(sign * (with_it[:n] - without[:n]) <= 0))

# %% misled: pairs without a difference do not count
def misled(with_it, without):
    sign = np.sign(with_it.mean() - without.mean())
    return float(np.mean(sign * (with_it[:, None] - without[None, :]) < 0))

# %% misled: the share that points the right way
def misled(with_it, without):
    sign = np.sign(with_it.mean() - without.mean())
    return float(np.mean(sign * (with_it[:, None] - without[None, :]) > 0))

# %% misled: every trick is taken to help
def misled(with_it, without):
    return float(np.mean(with_it[:, None] - without[None, :] <= 0))

# %% misled: a number that fits the first example
def misled(with_it, without): return 0.25

# %% my_rate: where the loss of the range test is back at its start
my_rate = 1.0

def around(rate):
    def mean_score(one):
        recipes = [replace(sgd_recipe, learning_rate=one, seed=s) for s in seeds[:2]]
        return float(np.mean([score(splits, recipe, "valid") for recipe in recipes]))
    return {one: mean_score(one) for one in (rate / 10, rate, 10 * rate)}

# %% my_rate: where the loss is still level
my_rate = 1e-4

def around(rate):
    def mean_score(one):
        recipes = [replace(sgd_recipe, learning_rate=one, seed=s) for s in seeds[:2]]
        return float(np.mean([score(splits, recipe, "valid") for recipe in recipes]))
    return {one: mean_score(one) for one in (rate / 10, rate, 10 * rate)}

# %% my_rate: half of it and twice as much
my_rate = 0.03

def around(rate): return {one: 0.5 for one in (rate / 2, rate, 2 * rate)}

# %% my_rate: measured on the test images
my_rate = 0.03

def around(rate):
    def mean_score(one):
        recipes = [replace(sgd_recipe, learning_rate=one, seed=s) for s in seeds[:2]]
        return float(np.mean([score(splits, recipe, "test") for recipe in recipes]))
    return {one: mean_score(one) for one in (rate / 10, rate, 10 * rate)}
