# %% class_accuracy: adds up columns, which is the precision
def class_accuracy(confusion):
    return np.diag(confusion) / confusion.sum(axis=0)

# %% class_accuracy: the share of all images, not of the class's own
def class_accuracy(confusion):
    return np.diag(confusion) / confusion.sum()

# %% class_accuracy: one number for all classes
def class_accuracy(confusion):
    return np.diag(confusion).sum() / confusion.sum()

# %% class_accuracy: the counts themselves
def class_accuracy(confusion):
    return np.diag(confusion)

# %% top2_accuracy: takes the two least probable classes
def top2_accuracy(probabilities, labels):
    worst_two = np.argsort(probabilities, axis=1)[:, :2]
    return (worst_two == labels[:, None]).any(axis=1).mean()

# %% top2_accuracy: looks at the second place only
def top2_accuracy(probabilities, labels):
    return (np.argsort(probabilities, axis=1)[:, -2] == labels).mean()

# %% top2_accuracy: looks at the first place only
def top2_accuracy(probabilities, labels):
    return (probabilities.argmax(axis=1) == labels).mean()

# %% top2_accuracy: adds the places up, so that the mean is half of what it should be
def top2_accuracy(probabilities, labels):
    best_two = np.argsort(probabilities, axis=1)[:, -2:]
    return (best_two == labels[:, None]).mean()

# %% small_model: no second model, the first one again
small_model = model

# %% small_model: stops after one epoch
small_model = models["cnn"](splits, seed=seed, epochs=1, input_size=16)

# %% small_model: learns from the test images
from dataclasses import replace
small_model = models["cnn"](replace(splits, train=splits.test), seed=seed, epochs=epochs, input_size=16)

# %% small_model: the wrong size
small_model = models["cnn"](splits, seed=seed, epochs=1, input_size=32)
