"""The pocket's vision tower: eleven blocks of EfficientNet-Lite0, then three of attention.

EfficientNet-Lite0 (Apache-2.0, ImageNet-1k) is kept frozen, its batch norms folded into its
convolutions. Two of its maps, 40 x 12 x 12 unshuffled to 160 x 6 x 6 and 112 x 6 x 6, feed three
bidirectional blocks of width 128 that were trained with dense labels of what the pretraining
pictures show. Each 2 x 2 square of the 36 cells becomes one token: 9 tokens of 512. Importing this
file registers the tower with `AutoModel`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from undrift.run.pocket.sizes import PocketVisionConfig
from undrift.tuner.peft_internals import BaseModelOutputWithPooling

# (kernel, stride, expansion, channels out) of blocks 0 to 10; no squeeze and excitation, ReLU6.
BLOCKS = (
    (3, 1, 1, 16), (3, 2, 6, 24), (3, 1, 6, 24), (5, 2, 6, 40), (5, 1, 6, 40), (3, 2, 6, 80),
    (3, 1, 6, 80), (3, 1, 6, 80), (5, 1, 6, 112), (5, 1, 6, 112), (5, 1, 6, 112),
)  # fmt: skip
FINE, COARSE = 4, 10  # the blocks whose output is kept


def _same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Pad as TensorFlow's SAME does: the odd pixel goes right and below."""
    spare = [max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:]]
    return F.pad(
        x, (spare[1] // 2, spare[1] - spare[1] // 2, spare[0] // 2, spare[0] - spare[0] // 2)
    )


class MobileBlock(nn.Module):
    """Expand, depthwise, project; a residual where shapes allow."""

    def __init__(self, channels: int, kernel: int, stride: int, expansion: int, out: int):
        super().__init__()
        middle = channels * expansion
        self.kernel, self.stride, self.residual = kernel, stride, stride == 1 and channels == out
        self.expand = nn.Conv2d(channels, middle, 1) if expansion > 1 else None
        self.depthwise = nn.Conv2d(middle, middle, kernel, stride, groups=middle)
        self.project = nn.Conv2d(middle, out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C', H', W')."""
        z = x if self.expand is None else F.relu6(self.expand(x))
        z = F.relu6(self.depthwise(_same(z, self.kernel, self.stride)))
        z = self.project(z)
        return x + z if self.residual else z


class Trunk(nn.Module):
    """The frozen convolutional part: (B, 3, 96, 96) in [-1, 1] to (B, 36, 272)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, 2)
        channels, blocks = 32, []
        for kernel, stride, expansion, out in BLOCKS:
            blocks.append(MobileBlock(channels, kernel, stride, expansion, out))
            channels = out
        self.blocks = nn.ModuleList(blocks)

    def forward(self, pixels: Tensor) -> Tensor:
        """Both maps side by side, one row a cell."""
        x = F.relu6(self.stem(_same(pixels, 3, 2)))
        kept = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in (FINE, COARSE):
                kept.append(x)
        fine = F.pixel_unshuffle(kept[0], 2)  # (B, 160, 6, 6)
        return torch.cat([fine, kept[1]], dim=1).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """A pre-norm transformer block without a mask."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) to the same."""
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads).unbind(2)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        )
        x = x + self.out(mixed.transpose(1, 2).reshape(b, n, d))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class PocketVisionModel(PreTrainedModel):
    """The tower as transformers wants it."""

    config_class = PocketVisionConfig
    main_input_name = "pixel_values"

    def __init__(self, config: PocketVisionConfig):
        super().__init__(config)
        self.trunk = Trunk()
        self.embed = nn.Linear(272, config.width)
        self.position = nn.Parameter(torch.zeros(36, config.width))
        self.blocks = nn.ModuleList(
            Attention(config.width, config.heads) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width)
        self.post_init()

    def cells(self, maps: Tensor) -> Tensor:
        """The attention part alone: (B, 36, 272) to (B, 36, width)."""
        x = self.embed(maps) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Pixels (B, 3, 96, 96) in [-1, 1] to 9 tokens of 512 a picture."""
        with torch.no_grad():
            maps = self.trunk(pixel_values.to(self.embed.weight.dtype))
        tokens = merge_cells(self.cells(maps))
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=tokens.mean(1), hidden_states=(tokens,)
        )


def merge_cells(cells: Tensor) -> Tensor:
    """Each 2 x 2 square of a 6 x 6 grid as one token: (B, 36, d) to (B, 9, 4 d)."""
    b, _, d = cells.shape
    grid = cells.view(b, 3, 2, 3, 2, d).permute(0, 1, 3, 2, 4, 5)
    return grid.reshape(b, 9, 4 * d)


AutoModel.register(PocketVisionConfig, PocketVisionModel, exist_ok=True)
