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
def geometric(log_probs):
    return np.log(np.exp(log_probs).mean(0))

# %% geometric_mean: not normalised
def geometric(log_probs):
    return log_probs.mean(0)

# %% meta_learner_from_training_images: invented numbers
def two_meta_learners():
    return np.full(repeats, 0.6), np.full(repeats, 0.62)

# %% meta_learner_from_training_images: twice the same
def two_meta_learners():
    return found["two networks"][:, 4], found["two networks"][:, 4]
