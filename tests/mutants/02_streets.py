# %% pixels_tall: forgets the side of the image, so it answers in image sides
def pixels_tall(metres, distance, focal, side):
    return focal * metres / distance

# %% pixels_tall: shrinks with the square of the distance, as the area does
def pixels_tall(metres, distance, focal, side):
    return side * focal * metres / distance ** 2

# %% pixels_tall: a longer focal length makes things smaller
def pixels_tall(metres, distance, focal, side):
    return side * metres / (focal * distance)

# %% pixels_tall: the place of the head, not the distance from feet to head
def pixels_tall(metres, distance, focal, side):
    return side * (.4 - focal * (metres - 1.6) / distance)

# %% visible_share: the wrong order, far objects hide near ones
def visible_share(masks):
    shares = np.zeros(len(masks))
    taken = np.zeros(masks.shape[1:], bool)
    for i in range(len(masks)):
        if masks[i].any(): shares[i] = (masks[i] & ~taken).sum() / masks[i].sum()
        taken |= masks[i]
    return shares

# %% visible_share: counts a pixel twice that two nearer objects cover
def visible_share(masks):
    areas = np.maximum(masks.sum((1, 2)), 1)
    covered = [sum((masks[i] & nearer).sum() for nearer in masks[i + 1:]) for i in range(len(masks))]
    return np.maximum(masks.sum((1, 2)) - covered, 0) / areas

# %% visible_share: the share of the image, not of the object
def visible_share(masks):
    shares = np.zeros(len(masks))
    taken = np.zeros(masks.shape[1:], bool)
    for i in reversed(range(len(masks))):
        shares[i] = (masks[i] & ~taken).mean()
        taken |= masks[i]
    return shares

# %% visible_share: changes the masks that it is given
def visible_share(masks):
    areas = np.maximum(masks.sum((1, 2)), 1)
    for i in reversed(range(len(masks))): masks[:i] &= ~masks[i]
    return masks.sum((1, 2)) / areas

# %% visible_share: only the next nearer object hides something
def visible_share(masks):
    shares = np.zeros(len(masks))
    for i in range(len(masks)):
        nearer = masks[i + 1] if i + 1 < len(masks) else np.zeros_like(masks[i])
        if masks[i].any(): shares[i] = (masks[i] & ~nearer).sum() / masks[i].sum()
    return shares

# %% nearest_mean: the class of the most similar training image
def nearest_mean(numbers, classes, new):
    return classes[((new[:, None] - numbers) ** 2).sum(2).argmin(1)]

# %% nearest_mean: positions of the classes in place of their numbers
def nearest_mean(numbers, classes, new):
    means = np.stack([numbers[classes == kind].mean(0) for kind in np.unique(classes)])
    return ((new[:, None] - means) ** 2).sum(2).argmin(1)

# %% nearest_mean: the sum of the absolute differences is no length
def nearest_mean(numbers, classes, new):
    kinds = np.unique(classes)
    means = np.stack([numbers[classes == kind].mean(0) for kind in kinds])
    return kinds[np.abs(new[:, None] - means).sum(2).argmin(1)]

# %% nearest_mean: the median of a class, not its mean
def nearest_mean(numbers, classes, new):
    kinds = np.unique(classes)
    means = np.stack([np.median(numbers[classes == kind], 0) for kind in kinds])
    return kinds[((new[:, None] - means) ** 2).sum(2).argmin(1)]

# %% nearest_mean: the first training image of a class stands for all
def nearest_mean(numbers, classes, new):
    kinds, first = np.unique(classes, return_index=True)
    return kinds[((new[:, None] - numbers[first]) ** 2).sum(2).argmin(1)]
