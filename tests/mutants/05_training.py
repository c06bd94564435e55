"Wrong answers to the exercises of 05_training: each must be refused by its check."
# ruff: noqa
# %% cross_entropy: the logarithm to base 2
def cross_entropy(logits, labels):
    moved = logits - logits.max(1, keepdims=True)
    p = np.exp(moved) / np.exp(moved).sum(1, keepdims=True)
    return -np.log2(p[np.arange(len(labels)), labels]).mean()
# %% cross_entropy: the sum of the images in place of their mean
def cross_entropy(logits, labels):
    moved = logits - logits.max(1, keepdims=True)
    log_p = moved - np.log(np.exp(moved).sum(1, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].sum()
# %% cross_entropy: large logits overflow
def cross_entropy(logits, labels):
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels]).mean()
# %% cross_entropy: large logits are clipped away
def cross_entropy(logits, labels):
    p = np.exp(logits.clip(-50, 50)) / np.exp(logits.clip(-50, 50)).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels] + 1e-12).mean()
# %% cross_entropy: softmax over the batch, not over the classes
def cross_entropy(logits, labels):
    moved = logits - logits.max(0, keepdims=True)
    log_p = moved - np.log(np.exp(moved).sum(0, keepdims=True))
    return -log_p[np.arange(len(labels)), labels].mean()
# %% cross_entropy: one minus the probability, without a logarithm
def cross_entropy(logits, labels):
    moved = logits - logits.max(1, keepdims=True)
    p = np.exp(moved) / np.exp(moved).sum(1, keepdims=True)
    return (1 - p[np.arange(len(labels)), labels]).mean()
# %% cross_entropy: the logarithm of the mean probability
def cross_entropy(logits, labels):
    moved = logits - logits.max(1, keepdims=True)
    p = np.exp(moved) / np.exp(moved).sum(1, keepdims=True)
    return -np.log(p[np.arange(len(labels)), labels].mean())
# %% momentum_step: the old velocity is forgotten
def momentum_step(weight, gradient, velocity, rate, beta):
    return weight - rate * gradient, gradient
# %% momentum_step: the weight moves before the velocity is new
def momentum_step(weight, gradient, velocity, rate, beta):
    return weight - rate * velocity, beta * velocity + gradient
# %% momentum_step: a running mean, as in Adam
def momentum_step(weight, gradient, velocity, rate, beta):
    velocity = beta * velocity + (1 - beta) * gradient
    return weight - rate * velocity, velocity
# %% momentum_step: uphill
def momentum_step(weight, gradient, velocity, rate, beta):
    velocity = beta * velocity + gradient
    return weight + rate * velocity, velocity
# %% momentum_step: beta is 0.9 whatever is asked for
def momentum_step(weight, gradient, velocity, rate, beta):
    velocity = 0.9 * velocity + gradient
    return weight - rate * velocity, velocity
# %% stairs: the first step of each stair is one too late
@schedules.register("stairs")
def stairs(step, steps, scores, patience):
    if step <= steps / 2: return 1.0
    if step <= 3 * steps / 4: return 0.1
    return 0.01
# %% stairs: for runs of one hundred steps only
@schedules.register("stairs")
def stairs(step, steps, scores, patience):
    return 1.0 if step < 50 else 0.1 if step < 75 else 0.01
# %% stairs: the second drop to a half of the first
@schedules.register("stairs")
def stairs(step, steps, scores, patience):
    return 1.0 if step < steps / 2 else 0.1 if step < 3 * steps / 4 else 0.05
# %% stairs: a drop after each third
@schedules.register("stairs")
def stairs(step, steps, scores, patience):
    return 0.1 ** (3 * step // steps)
# %% loss_curves: three numbers that were invented
def loss_curves(rates):
    return {1e-2: 0, 1e-5: 1, 10.0: 1}
# %% loss_curves: curves that were invented
def loss_curves(rates):
    steps = 2 * -(-len(few.train) // batch_size)
    ends = {1e-5: 1.6, 1e-2: 0.0, 10.0: 1.7}
    return {rate: list(np.linspace(math.log(K), ends[rate], steps)) for rate in rates}
# %% loss_curves: better invented
def loss_curves(rates):
    steps = 2 * -(-len(few.train) // batch_size)
    ends = {1e-5: 1.6, 1e-2: 1.0, 10.0: 40.0}
    return {rate: list(np.linspace(math.log(K), ends[rate], steps)) for rate in rates}
# %% loss_curves: one network goes on from rate to rate
def loss_curves(rates):
    model = small_network(seed)
    return {rate: loop_1(model, few, 2, lr=rate) for rate in rates}
# %% loss_curves: another network for each rate
def loss_curves(rates):
    return {rate: loop_1(small_network(seed + i), few, 2, lr=rate) for i, rate in enumerate(rates)}
# %% loss_curves: the rate is not used
def loss_curves(rates):
    return {rate: loop_1(small_network(seed), few, 2) for rate in rates}
# %% loss_curves: a single epoch
def loss_curves(rates):
    return {rate: loop_1(small_network(seed), few, 1, lr=rate) for rate in rates}
