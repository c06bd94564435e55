# %% at_a_threshold: above, without the threshold itself
def at_threshold(right, scores, objects, threshold):
    shown = [r for r, score in zip(right, scores) if score > threshold]
    return (sum(shown) / len(shown) if shown else 0.0), sum(shown) / objects

# %% at_a_threshold: precision and recall changed places
def at_threshold(right, scores, objects, threshold):
    shown = [r for r, score in zip(right, scores) if score >= threshold]
    return sum(shown) / objects, (sum(shown) / len(shown) if shown else 1.0)

# %% find_the_fault: the loss is not looked at
def find_the_fault(losses, found, truth):
    undone = {"none": found, "axes": [dict(one, boxes=one["boxes"][:, [1, 0, 3, 2]]) for one in found],
              "labels": [dict(one, labels=one["labels"] + 1) for one in found]}
    return max(undone, key=lambda name: ap50(undone[name], truth))

# %% find_the_fault: the labels are lowered once more
def find_the_fault(losses, found, truth):
    if not np.isfinite(losses).all() or losses[-1] > losses[0] / 2: return "rate"
    undone = {"none": found, "axes": [dict(one, boxes=one["boxes"][:, [1, 0, 3, 2]]) for one in found],
              "labels": [dict(one, labels=one["labels"] - 1) for one in found]}
    return max(undone, key=lambda name: ap50(undone[name], truth))

# %% find_the_fault: a good detector is accused, too
def find_the_fault(losses, found, truth):
    if not np.isfinite(losses).all() or losses[-1] > losses[0] / 2: return "rate"
    undone = {"axes": [dict(one, boxes=one["boxes"][:, [1, 0, 3, 2]]) for one in found],
              "labels": [dict(one, labels=one["labels"] + 1) for one in found]}
    return max(undone, key=lambda name: ap50(undone[name], truth))

# %% shifted_boxes: the share of the width
def largest_shift(width, enough):
    return width * (1 - enough)

# %% shifted_boxes: half of it
def largest_shift(width, enough):
    return width * (1 - enough) / (1 + enough) / 2
