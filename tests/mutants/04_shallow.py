# %% rates: rows and columns exchanged, precision is taken for recall
def rates(confusion):
    right = np.diag(confusion)
    precision = right / np.maximum(np.sum(confusion, axis=1), 1)
    recall = right / np.maximum(np.sum(confusion, axis=0), 1)
    f1 = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)
    return precision, recall, f1

# %% rates: a class without answers gets nan
def rates(confusion):
    right = np.diag(confusion)
    with np.errstate(all="ignore"):
        precision = right / np.sum(confusion, axis=0)
        recall = right / np.sum(confusion, axis=1)
        return precision, recall, 2 * precision * recall / (precision + recall)

# %% rates: F1 as the plain mean of precision and recall
def rates(confusion):
    right = np.diag(confusion)
    precision = right / np.maximum(np.sum(confusion, axis=0), 1)
    recall = right / np.maximum(np.sum(confusion, axis=1), 1)
    return precision, recall, (precision + recall) / 2

# %% rates: one number for all classes, which is the accuracy three times
def rates(confusion):
    share = np.trace(confusion) / np.sum(confusion)
    return share, share, share

# %% best_split: the two sides count alike, whatever their sizes
def best_split(x, y):
    def gini(labels): return 1 - ((np.bincount(labels) / len(labels)) ** 2).sum()
    order = np.argsort(x)
    x, y = np.asarray(x)[order], np.asarray(y)[order]
    best = None, np.inf
    for k in range(1, len(x)):
        if x[k] == x[k - 1]: continue
        impurity = (gini(y[:k]) + gini(y[k:])) / 2
        if impurity < best[1]: best = (x[k - 1] + x[k]) / 2, impurity
    return best

# %% best_split: separates images whose numbers are equal
def best_split(x, y):
    def gini(labels): return 1 - ((np.bincount(labels) / len(labels)) ** 2).sum()
    order = np.argsort(x, kind="stable")
    x, y = np.asarray(x)[order], np.asarray(y)[order]
    best = None, np.inf
    for k in range(1, len(x)):
        impurity = (k * gini(y[:k]) + (len(y) - k) * gini(y[k:])) / len(y)
        if impurity < best[1]: best = (x[k - 1] + x[k]) / 2, impurity
    return best

# %% best_split: numbers are not sorted
def best_split(x, y):
    def gini(labels): return 1 - ((np.bincount(labels) / len(labels)) ** 2).sum()
    best = None, np.inf
    for k in range(1, len(x)):
        if x[k] == x[k - 1]: continue
        impurity = (k * gini(y[:k]) + (len(y) - k) * gini(y[k:])) / len(y)
        if impurity < best[1]: best = (x[k - 1] + x[k]) / 2, impurity
    return best

# %% best_split: counts mistakes in place of Gini's impurity
def best_split(x, y):
    def mistakes(labels): return 1 - np.bincount(labels).max() / len(labels)
    order = np.argsort(x)
    x, y = np.asarray(x)[order], np.asarray(y)[order]
    best = None, np.inf
    for k in range(1, len(x)):
        if x[k] == x[k - 1]: continue
        impurity = (k * mistakes(y[:k]) + (len(y) - k) * mistakes(y[k:])) / len(y)
        if impurity < best[1]: best = (x[k - 1] + x[k]) / 2, impurity
    return best

# %% best_split: the value is the last number on the left, not halfway
def best_split(x, y):
    def gini(labels): return 1 - ((np.bincount(labels) / len(labels)) ** 2).sum()
    order = np.argsort(x)
    x, y = np.asarray(x)[order], np.asarray(y)[order]
    best = None, np.inf
    for k in range(1, len(x)):
        if x[k] == x[k - 1]: continue
        impurity = (k * gini(y[:k]) + (len(y) - k) * gini(y[k:])) / len(y)
        if impurity < best[1]: best = x[k - 1], impurity
    return best

# %% trained: one machine, trained on everything, four times
machine = rbf(every).fit(joined(every, "train"), truth("train"))
trained = [machine] * 4

# %% trained: the most images first
trained = []
for part in (1, 2, 4, 8):
    first = slice(0, len(truth("train")) // part)
    trained.append(rbf(every).fit(joined(every, "train")[first], truth("train")[first]))

# %% trained: the last images in place of the first
trained = []
for part in (8, 4, 2, 1):
    few = len(truth("train")) // part
    trained.append(rbf(every).fit(joined(every, "train")[-few:], truth("train")[-few:]))

# %% trained: the classes of other images
trained = []
for part in (8, 4, 2, 1):
    few = len(truth("train")) // part
    trained.append(rbf(every).fit(joined(every, "train")[:few], truth("train")[::-1][:few]))

# %% trained: trained on validation images
trained = []
for part in (8, 4, 2, 1):
    few = len(truth("train")) // part
    trained.append(rbf(every).fit(joined(every, "judge")[:few], truth("judge")[:few]))

# %% trained: accuracies that were invented, as the old check accepted numbers
trained = [0.35, 0.4, 0.45, 0.5]

# %% worst_pair: one direction only
def worst_pair(confusion):
    errors = confusion * (1 - np.eye(len(confusion), dtype=int))
    truth, answer = np.unravel_index(errors.argmax(), errors.shape)
    return int(truth), int(answer), errors[truth, answer] / errors.sum()

# %% worst_pair: the share of all images
def worst_pair(confusion):
    errors = confusion * (1 - np.eye(len(confusion), dtype=int))
    both = errors + errors.T
    truth, answer = np.unravel_index(both.argmax(), both.shape)
    if errors[truth, answer] < errors[answer, truth]: truth, answer = answer, truth
    return int(truth), int(answer), both[truth, answer] / confusion.sum()

# %% worst_pair: rows and columns exchanged
def worst_pair(confusion):
    errors = confusion.T * (1 - np.eye(len(confusion), dtype=int))
    both = errors + errors.T
    truth, answer = np.unravel_index(both.argmax(), both.shape)
    if errors[truth, answer] < errors[answer, truth]: truth, answer = answer, truth
    return int(truth), int(answer), both[truth, answer] / errors.sum()

# %% worst_pair: the direction is not compared
def worst_pair(confusion):
    errors = confusion * (1 - np.eye(len(confusion), dtype=int))
    both = errors + errors.T
    truth, answer = np.unravel_index(both.argmax(), both.shape)
    return int(truth), int(answer), both[truth, answer] / errors.sum()
