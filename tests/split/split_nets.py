"""Six small architectures, written out, as users write theirs."""

import torch
from torch import nn
from torch.nn import functional as F


class Block(nn.Module):
    """A residual block with an in-place activation and, where the size changes, a projection."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.down = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else None

    def forward(self, x):
        shortcut = x if self.down is None else self.down(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += shortcut
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.layer1 = nn.Sequential(Block(8, 8), Block(8, 8))
        self.layer2 = nn.Sequential(Block(8, 16, 2), Block(16, 16))
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.layer2(self.layer1(self.stem(x)))
        return self.fc(F.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1), 0.5, self.training))


class DenseNet(nn.Module):
    """Every layer sees all before it."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.block1 = nn.ModuleList([nn.Conv2d(8 + 4 * n, 4, 3, padding=1) for n in range(3)])
        self.transition = nn.Sequential(nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 8, 1), nn.AvgPool2d(2))
        self.block2 = nn.ModuleList([nn.Conv2d(8 + 4 * n, 4, 3, padding=1) for n in range(2)])
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        for layer in self.block1:
            x = torch.cat([x, F.relu(layer(x))], dim=1)
        x = self.transition(x)
        for layer in self.block2:
            x = torch.cat([x, F.relu(layer(x))], dim=1)
        return self.head(x.mean((2, 3)))


class UNet(nn.Module):
    """A skip from the first to the last stage; only the bottom could be cut, if the skip were not there."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 12, 3, 2, 1)
        self.bottom = nn.Conv2d(12, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.out = nn.Conv2d(12, 2, 1)

    def forward(self, x):
        skip = torch.relu(self.stem(x))
        deep = self.up(torch.relu(self.bottom(torch.relu(self.down(skip)))))
        return self.out(torch.cat((skip, deep), 1))


class Attention(nn.Module):
    def __init__(self, width, heads, dropout):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.dropout = heads, dropout

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, 0.1)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(0.1), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, 16))
        self.positions = nn.Parameter(torch.randn(1, 17, 16))
        self.layers = nn.ModuleList([Layer(16, 4) for _ in range(3)])
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x, return_tokens=False):
        batch = x.shape[0]
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(batch, -1, -1), x), dim=1) + self.positions
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return x if return_tokens else self.head(x.view(batch, -1, 16)[:, 0])


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.Sigmoid(), nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(1024, 5),
    )  # fmt: skip


def mlp():
    return nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Dropout(0.3), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))


def signal():
    return nn.Sequential(
        nn.Conv1d(2, 8, 9, 4), nn.ReLU6(), nn.MaxPool1d(2), nn.Conv1d(8, 8, 3), nn.Hardtanh(-2, 2), nn.Flatten(),
        nn.Linear(40, 4),
    )  # fmt: skip


IMAGES = (3, 16, 16)
NETS = {
    "cnn": (cnn, IMAGES),
    "resnet": (ResNet, IMAGES),
    "densenet": (DenseNet, IMAGES),
    "unet": (UNet, IMAGES),
    "vit": (VisionTransformer, IMAGES),
    "mlp": (mlp, (20,)),
    "signal": (signal, (2, 64)),
}


def net(name):
    """The network, its random weights always the same, and a batch of two inputs."""
    build, shape = NETS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
        for part in model.modules():  # statistics and scales that are not all zero and one
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.1)
                part.running_var.uniform_(0.5, 2)
        return model, torch.rand(2, *shape)
