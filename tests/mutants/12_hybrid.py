# %% sides_of_maps: rounded down
def sides(size):
    found = [size // 16]
    while len(found) < SCALES: found.append(found[-1] // 2)
    return found

# %% sides_of_maps: five maps
def sides(size):
    found = [-(-size // 16)]
    while len(found) < SCALES - 1: found.append(-(-found[-1] // 2))
    return found

# %% generalised_mean: the root is missing
def generalised_mean(x, p, least=1e-6):
    return x.clamp(min=least).pow(p).mean((2, 3))

# %% generalised_mean: the plain mean
def generalised_mean(x, p, least=1e-6):
    return x.mean((2, 3))

# %% generalised_mean: the largest value
def generalised_mean(x, p, least=1e-6):
    return x.clamp(min=least).amax((2, 3))

# %% half_a_network: all scales
judged = replace(splits, test=some(full.valid, judge_images))


def half_a_network():
    model = runs["hybrid"][0][0]
    return count(model), accuracy(model, judged, input_size), accuracy(runs["MobileNet alone"][0][0], judged, input_size)

# %% half_a_network: invented numbers
judged = replace(splits, test=some(full.valid, judge_images))


def half_a_network():
    return 100_000, 0.5, 0.5
