"Wrong answers to the exercises of nbs/06_cnn.ipynb, each of which its check cell must refuse."

# %% by_pencil: without the padding there is only one position
by_pencil = [[1]]

# %% by_pencil: stride 1 in place of 2
by_pencil = [[0, -2, -1], [-1, 1, 7], [0, 0, 3]]

# %% by_pencil: the filter was turned by half a turn
by_pencil = [[2, -1], [0, 5]]

# %% by_pencil: one sum is wrong
by_pencil = [[0, -1], [0, 2]]

# %% far: the field of the four blocks, without the units
far = receptive_field([(3, 1), (2, 2)] * 4)

# %% far: one convolution in each unit
far = receptive_field([(3, 1), (2, 2), (3, 1)] * 4)

# %% far: the sides of all filters added up, without the jump
far = 1 + 4 * (2 + 1 + 2 + 2)

# %% by_matrix: rows and columns of the output exchanged
def by_matrix(x, w):
    k = w.shape[-1]
    return (w.flatten(1) @ F.unfold(x, k)).unflatten(2, (x.shape[3] - k + 1, x.shape[2] - k + 1))

# %% by_matrix: the filter turned by half a turn, as in signal processing
def by_matrix(x, w):
    k = w.shape[-1]
    out = w.flip(2, 3).flatten(1) @ F.unfold(x, k)
    return out.unflatten(2, (x.shape[2] - k + 1, x.shape[3] - k + 1))

# %% by_matrix: the weights in the order of places, then channels
def by_matrix(x, w):
    k = w.shape[-1]
    out = w.permute(0, 2, 3, 1).flatten(1) @ F.unfold(x, k)
    return out.unflatten(2, (x.shape[2] - k + 1, x.shape[3] - k + 1))

# %% by_matrix: the positions are left in one dimension
def by_matrix(x, w):
    return w.flatten(1) @ F.unfold(x, w.shape[-1])

# %% normalize: the batch's own statistics in evaluation, too
def normalize(x, running_mean, running_variance, training):
    mean = x.mean((0, 2, 3), keepdim=True)
    variance = x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()

# %% normalize: the running averages in training, too
def normalize(x, running_mean, running_variance, training):
    return (x - running_mean[:, None, None]) / (running_variance[:, None, None] + 1e-5).sqrt()

# %% normalize: each image by itself
def normalize(x, running_mean, running_variance, training):
    mean, variance = running_mean[:, None, None], running_variance[:, None, None]
    if training:
        mean = x.mean((2, 3), keepdim=True)
        variance = x.var((2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()

# %% normalize: the unbiased variance of the batch
def normalize(x, running_mean, running_variance, training):
    mean, variance = running_mean[:, None, None], running_variance[:, None, None]
    if training:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = x.var((0, 2, 3), keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()

# %% normalize: divides by the variance, not by its root
def normalize(x, running_mean, running_variance, training):
    mean, variance = running_mean[:, None, None], running_variance[:, None, None]
    if training:
        mean = x.mean((0, 2, 3), keepdim=True)
        variance = x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5)

# %% occlusion: rows and columns exchanged
def occlusion(predict, image, label, cells=4):
    step = len(image) // cells
    heat = np.zeros((cells, cells))
    for i, j in np.ndindex(cells, cells):
        covered = image.copy()
        covered[j * step:(j + 1) * step, i * step:(i + 1) * step] = 128
        heat[i, j] = predict(covered[None])[0, label]
    return heat

# %% occlusion: the squares stay covered, one after the other
def occlusion(predict, image, label, cells=4):
    step = len(image) // cells
    heat = np.zeros((cells, cells))
    covered = image.copy()
    for i, j in np.ndindex(cells, cells):
        covered[i * step:(i + 1) * step, j * step:(j + 1) * step] = 128
        heat[i, j] = predict(covered[None])[0, label]
    return heat

# %% occlusion: paints the image itself
def occlusion(predict, image, label, cells=4):
    step = len(image) // cells
    heat = np.zeros((cells, cells))
    for i, j in np.ndindex(cells, cells):
        image[i * step:(i + 1) * step, j * step:(j + 1) * step] = 128
        heat[i, j] = predict(image[None])[0, label]
    return heat

# %% occlusion: the most probable class in place of the true one
def occlusion(predict, image, label, cells=4):
    step = len(image) // cells
    heat = np.zeros((cells, cells))
    for i, j in np.ndindex(cells, cells):
        covered = image.copy()
        covered[i * step:(i + 1) * step, j * step:(j + 1) * step] = 128
        heat[i, j] = predict(covered[None])[0].max()
    return heat

# %% occlusion: everything but the square is covered
def occlusion(predict, image, label, cells=4):
    step = len(image) // cells
    heat = np.zeros((cells, cells))
    for i, j in np.ndindex(cells, cells):
        covered = np.full_like(image, 128)
        part = slice(i * step, (i + 1) * step), slice(j * step, (j + 1) * step)
        covered[part] = image[part]
        heat[i, j] = predict(covered[None])[0, label]
    return heat
