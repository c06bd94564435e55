# %% hog_length: counts cells, as if blocks did not overlap
def hog_length(height, width, orientations=9, cell=8, block=2):
    return (height // cell) * (width // cell) * orientations

# %% hog_length: one block for each cell, also at the rim
def hog_length(height, width, orientations=9, cell=8, block=2):
    return (height // cell) * (width // cell) * block**2 * orientations

# %% hog_length: right for blocks of 2 cells only
def hog_length(height, width, orientations=9, cell=8, block=2):
    return (height // cell - 1) * (width // cell - 1) * 4 * orientations

# %% hog_length: rounds cells that do not fit up
def hog_length(height, width, orientations=9, cell=8, block=2):
    return (-(-height // cell) - block + 1) * (-(-width // cell) - block + 1) * block**2 * orientations

# %% joint: blue counts most
@extractors.register("joint")
def joint(images):
    red, green, blue = (levels(images).long() >> 6).unbind(1)
    return grid_histogram((16 * blue + 4 * green + red).unsqueeze(1), 64, 1)

# %% joint: the channels are still separate
@extractors.register("joint")
def joint(images):
    return color_histogram(images, bins=4, cells=1)

# %% joint: counts in place of shares
@extractors.register("joint")
def joint(images):
    red, green, blue = (levels(images).long() >> 6).unbind(1)
    return grid_histogram((16 * red + 4 * green + blue).unsqueeze(1), 64, 1) * images[0, 0].numel()

# %% joint: a grid of 2x2 parts, folded
@extractors.register("joint")
def joint(images):
    red, green, blue = (levels(images).long() >> 6).unbind(1)
    return grid_histogram((16 * red + 4 * green + blue).unsqueeze(1), 64, 2)[:, :64]

# %% night_quotient: three invented numbers, in the right order
def night_quotient(describe, day, night):
    name = getattr(getattr(describe, "__self__", None), "names", "hog")
    return {"hog": 0.6, "lbp": 0.8, "color": 1.3}[name]

# %% night_quotient: upside down
def night_quotient(describe, day, night):
    a, b = describe(day), describe(night)
    apart = [np.linalg.norm(a[i] - a[j]) for i in range(len(a)) for j in range(i)]
    return float(np.mean(apart) / np.linalg.norm(a - b, axis=1).mean())

# %% night_quotient: each scene counts as different from itself
def night_quotient(describe, day, night):
    a, b = describe(day), describe(night)
    apart = [np.linalg.norm(x - y) for x in a for y in a]
    return float(np.linalg.norm(a - b, axis=1).mean() / np.mean(apart))

# %% night_quotient: a distance alone, without a unit
def night_quotient(describe, day, night):
    return float(np.linalg.norm(describe(day) - describe(night), axis=1).mean())

# %% night_quotient: compares the pixels, whatever describes them
def night_quotient(describe, day, night):
    a, b = (np.asarray(x, float).reshape(len(x), -1) for x in (day, night))
    apart = [np.linalg.norm(a[i] - a[j]) for i in range(len(a)) for j in range(i)]
    return float(np.linalg.norm(a - b, axis=1).mean() / np.mean(apart))

# %% night_quotient: the distance between the mean images, not the mean distance
def night_quotient(describe, day, night):
    a, b = describe(day), describe(night)
    apart = [np.linalg.norm(a[i] - a[j]) for i in range(len(a)) for j in range(i)]
    return float(np.linalg.norm(a.mean(0) - b.mean(0)) / np.mean(apart))
