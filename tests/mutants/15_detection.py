# %% at_a_threshold: above, without the threshold itself
def at_threshold(right, scores, objects, threshold):
    shown = [r for r, score in zip(right, scores) if score > threshold]
    return (sum(shown) / len(shown) if shown else 0.0), sum(shown) / objects

# %% at_a_threshold: precision and recall changed places
def at_threshold(right, scores, objects, threshold):
    shown = [r for r, score in zip(right, scores) if score >= threshold]
    return sum(shown) / objects, (sum(shown) / len(shown) if shown else 1.0)

# %% soft_nms: the hard one
def soft_nms(boxes, scores, sigma=0.5):
    from course_lib.boxes import nms
    kept = nms(boxes, scores, torch.zeros(len(scores), dtype=torch.long), torch.zeros(len(scores), dtype=torch.long), 0.45, 100)
    new = torch.zeros(len(scores))
    new[kept] = scores[kept]
    return new

# %% soft_nms: IoU without the square
def soft_nms(boxes, scores, sigma=0.5):
    scores, left, new = scores.clone(), list(range(len(scores))), torch.zeros(len(scores))
    while left:
        best = max(left, key=lambda m: scores[m])
        left.remove(best)
        new[best] = scores[best]
        if left: scores[left] *= (-iou(boxes[best:best + 1], boxes[left])[0] / sigma).exp()
    return new

# %% soft_nms: nothing is lowered
def soft_nms(boxes, scores, sigma=0.5):
    return scores

# %% shifted_boxes: the share of the width
def largest_shift(width, enough):
    return width * (1 - enough)

# %% shifted_boxes: half of it
def largest_shift(width, enough):
    return width * (1 - enough) / (1 + enough) / 2
