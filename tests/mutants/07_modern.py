"Wrong answers to the exercises of nbs/07_modern.ipynb, each of which its check cell must refuse."

# %% unit_parameters: the 1 x 1 convolution of x is forgotten
def unit_parameters(inputs, outputs):
    return 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs

# %% unit_parameters: a 1 x 1 convolution even where the channels stay
def unit_parameters(inputs, outputs):
    return 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs + inputs * outputs

# %% unit_parameters: both batch normalizations see the channels behind the convolutions, as in chapter 06
def unit_parameters(inputs, outputs):
    f = 4 * outputs + 9 * inputs * outputs + 9 * outputs * outputs
    return f + (inputs * outputs if inputs != outputs else 0)

# %% unit_parameters: convolutions with biases
def unit_parameters(inputs, outputs):
    f = 2 * inputs + 9 * inputs * outputs + 2 * outputs + 9 * outputs * outputs + 2 * outputs
    return f + (inputs * outputs if inputs != outputs else 0)

# %% PositionGate: minimum in place of the mean
class PositionGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        seen = torch.cat([x.amin(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return x * self.conv(seen).sigmoid()

# %% PositionGate: the first two channels in place of mean and maximum
class PositionGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x): return x * self.conv(x[:, :2]).sigmoid()

# %% PositionGate: maximum first, then mean
class PositionGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        seen = torch.cat([x.amax(1, keepdim=True), x.mean(1, keepdim=True)], 1)
        return x * self.conv(seen).sigmoid()

# %% PositionGate: mean and maximum over the positions, not over the channels
class PositionGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        seen = torch.stack([x.mean((2, 3)).mean(1), x.amax((2, 3)).amax(1)], 1)[:, :, None, None]
        return x * self.conv(seen.expand(-1, -1, *x.shape[2:])).sigmoid()

# %% PositionGate: the gate alone, without the maps
class PositionGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        return self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)).sigmoid()

# %% PositionGate: no sigmoid
class PositionGate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        return x * self.conv(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1))

# %% start_as_identity: nothing is set to zero
def start_as_identity(net): return net

# %% start_as_identity: the first convolution of each f, which then never gets a gradient
def start_as_identity(net):
    for unit in net.modules():
        if isinstance(unit, PreActBlock): nn.init.zeros_(unit.f[0][-1].weight)
    return net

# %% start_as_identity: both convolutions of each f
def start_as_identity(net):
    for unit in net.modules():
        if isinstance(unit, PreActBlock):
            nn.init.zeros_(unit.f[0][-1].weight)
            nn.init.zeros_(unit.f[-1][-1].weight)
    return net

# %% start_as_identity: every convolution of the network, the first one too
def start_as_identity(net):
    for module in net.modules():
        if isinstance(module, nn.Conv2d): nn.init.zeros_(module.weight)
    return net

# %% start_as_identity: the last unit only
def start_as_identity(net):
    unit = [m for m in net.modules() if isinstance(m, PreActBlock)][-1]
    nn.init.zeros_(unit.f[-1][-1].weight)
    return net

# %% start_as_identity: the network is not returned
def start_as_identity(net):
    for unit in net.modules():
        if isinstance(unit, PreActBlock): nn.init.zeros_(unit.f[-1][-1].weight)
