"""The FixMatch step of benchmarks.step in PyTorch, channels_last.

Answers each line on standard input (a number of steps) with the seconds they took. Needs only PyTorch and, for
EfficientNet-Lite0, the package efficientnet-lite-pytorch.
"""

import sys
import time

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from torch import nn


class Block(nn.Module):
    """Pre-activation residual block with LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, activate_first: bool):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs, eps=1e-3, momentum=1e-3)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs, eps=1e-3, momentum=1e-3)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None
        self.activate_first = activate_first

    def forward(self, x):
        y = F.leaky_relu(self.norm1(x), 0.1, inplace=True)
        if self.activate_first:
            x = y
        y = F.leaky_relu(self.norm2(self.conv1(y)), 0.1, inplace=True)
        return (x if self.shortcut is None else self.shortcut(x)) + self.conv2(y)


class WideResNet(nn.Module):
    """WRN-28-2."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        widths = [16, 32, 64, 128]
        self.blocks = nn.Sequential(
            *(
                Block(widths[s] if b == 0 else widths[s + 1], widths[s + 1], 2 if s and b == 0 else 1, s == b == 0)
                for s in range(3)
                for b in range(4)
            )
        )
        self.norm = nn.BatchNorm2d(128, eps=1e-3, momentum=1e-3)
        self.head = nn.Linear(128, 10)

    def forward(self, x):
        x = F.leaky_relu(self.norm(self.blocks(self.stem(x))), 0.1, inplace=True)
        return self.head(x.mean((2, 3)))


def create(network: str) -> nn.Module:
    """Returns a network for 10 classes."""
    if network == 'wide_resnet':
        return WideResNet()
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name('efficientnet-lite0', num_classes=10)


def main(network: str, policy: str, batch_size: int, ratio: int, side: int) -> None:
    """Serves one line at a time.

    Args:
        network: 'wide_resnet' or 'efficientnet_lite0'.
        policy: 'joint' for one pass over all views, 'no_grad' for one of its own, without gradient, over the weak ones.
        batch_size: Labeled images in a step.
        ratio: Unlabeled images for a labeled one.
        side: Of the images, in pixels.
    """
    model = create(network).to(memory_format=torch.channels_last).train()
    ema = [p.detach().clone() for p in model.parameters()]
    kernels = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{'params': kernels, 'weight_decay': 5e-4}, {'params': others, 'weight_decay': 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.03, momentum=0.9, nesterov=True)
    sizes = [batch_size, ratio * batch_size, ratio * batch_size]
    images = torch.randn(sum(sizes), 3, side, side).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch_size,))

    def step():
        if policy == 'joint':
            labeled, strong, weak = model(images).split(sizes)
        else:
            labeled, strong = model(images[: sum(sizes[:2])]).split(sizes[:2])
            with torch.no_grad():
                weak = model(images[sum(sizes[:2]) :])
        confidence, guess = weak.detach().softmax(-1).max(-1)
        unlabeled = (F.cross_entropy(strong, guess, reduction='none') * (confidence >= 0.95)).mean()
        loss = F.cross_entropy(labeled, labels) + unlabeled
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(ema, list(model.parameters()), 0.001)

    print(f'PyTorch {torch.__version__}, channels_last, {torch.get_num_threads()} threads', flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - start, flush=True)


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
