# %% learning_weights: the first stages in place of the last
def learning(groups, last, width, K):
    return sum(p.numel() for group in groups[:last] for p in group) + (width + 1) * K

# %% learning_weights: a head without biases
def learning(groups, last, width, K):
    return sum(p.numel() for group in groups[len(groups) - last:] for p in group) + width * K

# %% learning_weights: with last = 0 the slice [-0:] takes all stages
def learning(groups, last, width, K):
    return sum(p.numel() for group in groups[-last:] for p in group) + (width + 1) * K

# %% nearest_class_mean: always the first class
def nearest_mean(train, targets, test):
    return np.zeros(len(test), int)

# %% nearest_class_mean: the farthest mean
def nearest_mean(train, targets, test):
    means = np.stack([train[targets == k].mean(0) for k in range(targets.max() + 1)])
    return (test @ means.T).argmin(1)

# %% unlearning: invented numbers
def gentle_and_harsh(rate):
    return [0.9, 0.1]

# %% unlearning: twice the same training
def gentle_and_harsh(rate):
    little = replace(splits, train=few(splits.train, shots[0]))
    one = models["transfer"](little, backbone=backbone, enlarge=enlarge, input_size=input_size, epochs=epochs, seed=seed, device=device,
                             learning_rate=30 * rate).about["valid_accuracy"]
    return [one, one]
