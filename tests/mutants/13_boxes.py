"Wrong answers to the exercises of nbs/13_boxes.ipynb, each of which its check cell must refuse."

# %% count: the larger square is forgotten
def count(maps, ratios):
    return sum(rows * columns * (1 + 2 * len(own)) for (rows, columns), own in zip(maps, ratios))

# %% count: one box for each ratio in place of two
def count(maps, ratios):
    return sum(rows * columns * (2 + len(own)) for (rows, columns), own in zip(maps, ratios))

# %% count: every map is taken for a square
def count(maps, ratios):
    return sum(rows * rows * (2 + 2 * len(own)) for (rows, columns), own in zip(maps, ratios))

# %% linear_soft_nms: the others are removed, as by NMS
def linear_soft_nms(boxes, scores, threshold=0.3):
    out = torch.zeros_like(scores)
    kept = nms_by_hand(boxes, scores.tolist(), threshold)
    out[kept] = scores[kept]
    return out

# %% linear_soft_nms: in the order of the first scores, not of the new ones
def linear_soft_nms(boxes, scores, threshold=0.3):
    scores = scores.clone()
    order = scores.argsort(descending=True).tolist()
    for place, best in enumerate(order):
        for i in order[place + 1:]:
            overlap = iou(boxes[best:best + 1], boxes[i:i + 1]).item()
            if overlap > threshold: scores[i] *= 1 - overlap
    return scores

# %% linear_soft_nms: only the best box of all lowers the others
def linear_soft_nms(boxes, scores, threshold=0.3):
    scores = scores.clone()
    if not len(scores): return scores
    best = scores.argmax().item()
    for i in range(len(boxes)):
        overlap = iou(boxes[best:best + 1], boxes[i:i + 1]).item()
        if i != best and overlap > threshold: scores[i] *= 1 - overlap
    return scores

# %% linear_soft_nms: multiplied by the IoU
def linear_soft_nms(boxes, scores, threshold=0.3):
    scores, left = scores.clone(), list(range(len(boxes)))
    while left:
        best = max(left, key=lambda i: scores[i].item())
        left.remove(best)
        for i in left:
            overlap = iou(boxes[best:best + 1], boxes[i:i + 1]).item()
            if overlap > threshold: scores[i] *= overlap
    return scores

# %% linear_soft_nms: the scores that came in are changed
def linear_soft_nms(boxes, scores, threshold=0.3):
    left = list(range(len(boxes)))
    while left:
        best = max(left, key=lambda i: scores[i].item())
        left.remove(best)
        for i in left:
            overlap = iou(boxes[best:best + 1], boxes[i:i + 1]).item()
            if overlap > threshold: scores[i] *= 1 - overlap
    return scores

# %% better_scales: the usual ones
def better_scales():
    return SSDLITE["scales"]

# %% better_scales: the best layout of the lesson once more
def better_scales():
    return layouts["SSDLite320, from 0.05"]["scales"]

# %% better_scales: smaller is better
def better_scales():
    return linear_scales(6, 0.01, 0.3)

# %% better_scales: six scales for six maps
def better_scales():
    return linear_scales(6, 0.1, 0.9)[:6]
