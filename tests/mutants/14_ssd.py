"Wrong answers to the exercises of nbs/14_ssd.ipynb, each of which its check cell must refuse."

# %% head_weights: the biases are forgotten
def head_weights(widths, boxes, classes):
    return sum(9 * width * n * (4 + classes + 1) for width, n in zip(widths, boxes))

# %% head_weights: the background is forgotten
def head_weights(widths, boxes, classes):
    return sum((9 * width + 1) * n * (4 + classes) for width, n in zip(widths, boxes))

# %% head_weights: four offsets for each class
def head_weights(widths, boxes, classes):
    return sum((9 * width + 1) * n * 5 * (classes + 1) for width, n in zip(widths, boxes))

# %% focal: a mean over all anchors
def focal(conf, wanted, gamma=2.0):
    cross = F.cross_entropy(conf.flatten(0, 1), wanted.flatten(), reduction="none")
    return ((1 - (-cross).exp()) ** gamma * cross).mean()

# %% focal: weighted by p, not by 1 - p
def focal(conf, wanted, gamma=2.0):
    cross = F.cross_entropy(conf.flatten(0, 1), wanted.flatten(), reduction="none")
    return ((-cross).exp() ** gamma * cross).sum() / (wanted > 0).sum().clamp(min=1)

# %% focal: not divided by the anchors with an object
def focal(conf, wanted, gamma=2.0):
    cross = F.cross_entropy(conf.flatten(0, 1), wanted.flatten(), reduction="none")
    return ((1 - (-cross).exp()) ** gamma * cross).sum()

# %% focal: divided by zero without objects
def focal(conf, wanted, gamma=2.0):
    cross = F.cross_entropy(conf.flatten(0, 1), wanted.flatten(), reduction="none")
    return ((1 - (-cross).exp()) ** gamma * cross).sum() / (wanted > 0).sum()

# %% focal: the background does not count
def focal(conf, wanted, gamma=2.0):
    cross = F.cross_entropy(conf.flatten(0, 1), wanted.flatten(), reduction="none") * (wanted.flatten() > 0)
    return ((1 - (-cross).exp()) ** gamma * cross).sum() / (wanted > 0).sum().clamp(min=1)

# %% background_bias: as for two classes, by the sigmoid
def background_bias(classes, probability=0.99):
    return math.log(probability / (1 - probability))

# %% background_bias: the other sign
def background_bias(classes, probability=0.99):
    return -math.log(classes * probability / (1 - probability))

# %% background_bias: divided by the classes, not multiplied
def background_bias(classes, probability=0.99):
    return math.log(probability / (1 - probability) / classes)
