# %% majority_vote: all three must be right
def majority(p):
    return p**3

# %% majority_vote: exactly two are right
def majority(p):
    return 3 * p**2 * (1 - p)

# %% majority_vote: one vote
def majority(p):
    return p

# %% geometric_mean: the arithmetic mean
def geometric(opinions):
    return np.log(np.exp(opinions).mean(0))

# %% geometric_mean: not normalised
def geometric(opinions):
    return opinions.mean(0)

# %% judge_from_training_images: invented numbers
def two_judges():
    return np.full(repeats, 0.6), np.full(repeats, 0.62)

# %% judge_from_training_images: twice the same
def two_judges():
    return found["two networks"][:, 4], found["two networks"][:, 4]
