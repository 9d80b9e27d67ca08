"""STDiT2, the space-time diffusion transformer of Open-Sora 1.1, whole in this file.

It reads noisy latents, a timestep, a caption, and what the video is (frames, pixels, frame rate), and predicts the
noise and how to spread the variance. Numbers in brackets are sections of the specification, docs/stdit2.md; names of
modules are those of the published checkpoint, so that it loads as it is [8].

    latents ── patches ─┐
    timestep ─ shifts, scales, gates ─► depth x (space, time, caption, MLP) ── final layer ── noise, variance
    caption ── projection ─┘

Sources: DiT blocks with adaLN-Zero, arXiv:2212.09748 section 3.2. Attention, arXiv:1706.03762 eq. 1. One table of
shifts and scales per block beside one shared projection (adaLN-single), arXiv:2310.00426 section 2.3. Rotary positions,
arXiv:2104.09864 section 3.4. RMS norm of queries and keys, arXiv:1910.07467 eq. 4 and arXiv:2302.05442 section 2.

Letters:
    B  samples              H, W  height and width of the latents      D  width of the network (hidden_size)
    T  frames               h, w  the same in patches                  N  heads of an attention
    S  patches of a frame   L     tokens of a caption                  d  width of a head, D / N
    F  T where frames differ (some are clean), else 1                  M  sequences that attend within themselves
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn

from bricks_core.errors import SpecError

SINUSOID_WIDTH = 256
NORM_EPSILON = 1e-6


# ---------------------------------------------------------------------------------------------- positions and scalars


def sinusoid(value: Tensor) -> Tensor:
    """Scalars as waves of 128 frequencies, cosines first, float32.  (M,) -> (M, 256)  [3]"""
    angle = value.float()[:, None] * _wave_frequencies(value.device)
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


@functools.lru_cache
def _wave_frequencies(device: torch.device) -> Tensor:
    """10000^(-j / 128) as the reference has it, on any processor: at 999 radians its last bit shows.  -> (128,)

    The exponent is float32, its exp rounded to float32. exp of Intel's library, with which the reference's numbers were
    made, rounds three of them up that lie 0.47 to 0.50 of the last place above the next smaller one.
    """
    half = SINUSOID_WIDTH // 2
    with torch.inference_mode(False):
        exponent = -math.log(10000.0) * torch.arange(half, dtype=torch.float32) / half
        frequency = torch.exp(exponent.double()).float()
        rounded_up = torch.tensor([13, 44, 119])
        frequency[rounded_up] = torch.nextafter(frequency[rounded_up], torch.tensor(1.0))
        return frequency.to(device)


@functools.lru_cache(maxsize=64)
def position_embedding(
    width: int, grid: tuple[int, int], pixels: tuple[float, float], input_sq_size: int, device: torch.device
) -> Tensor:
    """Where every patch of a frame is, in float32; shared between callers, not to be changed.  -> (S, D)  [3]

    Coordinates are scaled so that frames of any pixel size and shape lie on comparable grids. The half of the column
    comes before the half of the row, as the published weights expect.
    """
    rows, columns = grid
    scale = math.sqrt(pixels[0] * pixels[1]) / input_sq_size
    side = round(math.sqrt(rows * columns))
    with torch.inference_mode(False):  # what is made within it could not be used for training afterwards
        frequency = 10000.0 ** (-2 * torch.arange(width // 4, dtype=torch.float64) / (width // 2))

        def waves(count: int) -> Tensor:
            angle = (torch.arange(count, dtype=torch.float64) / scale * (side / count))[:, None] * frequency
            return torch.cat([angle.sin(), angle.cos()], dim=-1)

        row = waves(rows)[:, None].expand(rows, columns, -1)
        column = waves(columns)[None].expand(rows, columns, -1)
        return torch.cat([column, row], dim=-1).reshape(rows * columns, width).float().to(device)


class RotaryEmbedding(nn.Module):
    """The frequencies by which queries and keys of temporal attention turn from frame to frame [4]."""

    def __init__(self, head_width: int):
        super().__init__()
        # Kept in the checkpoint, never trained. Stored values are used as they are: the published ones may be rounded.
        frequency = 10000.0 ** (-2 * torch.arange(head_width // 2, dtype=torch.float64) / head_width)
        self.freqs = nn.Parameter(frequency.float(), requires_grad=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RotaryEmbedding:
        # Cast with the rest to bfloat16, they would put the angle of frame 63 off by up to 0.22 rad [21]. Moved, they
        # are; what is asked to be as coarse as the weights is rounded when it is used.
        exact = self.freqs.data
        super()._apply(fn, recurse)
        if self.freqs.dtype != torch.float32:
            self.freqs.data = exact.to(self.freqs.device)
        return self

    def forward(self, num_frames: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine of every frame's angles, which are computed in `dtype`.  -> two (T, d / 2), float32"""
        frame = torch.arange(num_frames, device=self.freqs.device, dtype=dtype)
        angle = (frame[:, None] * self.freqs.to(dtype)).float()
        return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the channel pairs (0, 1), (2, 3), ... by each frame's angles.  (M, N, T, d) -> (M, N, T, d)

    arXiv:2104.09864 eq. 34.
    """
    cos, sin = rotation
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2).to(x.dtype)


class ScalarEmbedder(nn.Module):
    """A number becomes a vector.  (M,) -> (M, width)  [3]"""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(SINUSOID_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, value: Tensor) -> Tensor:
        embedded: Tensor = self.mlp(sinusoid(value).to(next(self.mlp.parameters()).dtype))
        return embedded


# ---------------------------------------------------------------------------------------------------------- attention


def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d) v, with the softmax in float32.  (M, N, _, d) each -> (M, N, queries, d)

    key_mask (M, keys) bool: False hides a key; every row needs a True.  arXiv:1706.03762 eq. 1.
    """
    visible = None if key_mask is None else key_mask[:, None, None]
    if fused_attention_suits(q, k):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
    return attention_by_products(q, k, v, visible)


def attention_by_products(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """The same, with the whole matrix of weights in memory."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if visible is not None:
        scores = scores.masked_fill(~visible, float("-inf"))
    return scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v


def fused_attention_suits(q: Tensor, k: Tensor) -> bool:
    """Whether torch's fused kernels can do this attention, and quickly."""
    if q.device.type == "cuda":
        # The kernels put M on an axis of the launch grid that ends at 65,535 (pytorch/pytorch issue 142228);
        # temporal attention over a batch of images is beyond that.
        return q.shape[0] < 65536
    # The CPU's bfloat16 kernel takes twice to ten times as long, backwards, as two plain products when keys are few
    # (benchmarks/stdit2_step.py); with many keys the plain way would store too large a matrix.
    return q.dtype != torch.bfloat16 or k.shape[-2] > 256


class RMSNorm(nn.Module):
    """v / √(mean v² + ε) times a weight per channel, over the last axis; mean in float32.  arXiv:1910.07467 eq. 4"""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        # One kernel, as long as the types agree (under autocast the weight's would be wider).
        return F.rms_norm(x, x.shape[-1:], self.weight.to(x.dtype), NORM_EPSILON)


class SelfAttention(nn.Module):
    """Tokens of one sequence look at each other: patches of a frame, or frames of a patch.  (M, _, D) -> (M, _, D)"""

    def __init__(self, width: int, num_heads: int, qk_norm: bool):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm: nn.Module = RMSNorm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm: nn.Module = RMSNorm(width // num_heads) if qk_norm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor] | None = None) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "M tokens (three N d) -> three M N tokens d", three=3, N=self.num_heads)
        if rotation is not None:  # before the norm: the published weights were trained so [20]
            q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = attention(self.q_norm(q), self.k_norm(k), v)
        projected: Tensor = self.proj(rearrange(mixed, "M N tokens d -> M tokens (N d)"))
        return projected


class CrossAttention(nn.Module):
    """Every token of a video looks at its caption.  (B, T S, D), (B, L, D), (B, L) -> (B, T S, D)"""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, caption: Tensor, caption_mask: Tensor | None) -> Tensor:
        q = rearrange(self.q_linear(x), "B TS (N d) -> B N TS d", N=self.num_heads)
        k, v = rearrange(self.kv_linear(caption), "B L (two N d) -> two B N L d", two=2, N=self.num_heads)
        mixed = attention(q, k, v, caption_mask)
        projected: Tensor = self.proj(rearrange(mixed, "B N TS d -> B TS (N d)"))
        return projected


# ------------------------------------------------------------------------------------------------------------- blocks


class ModulatedNorm(nn.Module):
    """Layer norm without weights, then x (1 + scale) + shift.  (..., D), (..., D), (..., D) -> (..., D)"""

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPSILON) * (1 + scale) + shift


class MLP(nn.Module):
    """Two linear maps with a GELU (tanh form) between them."""

    def __init__(self, width: int, inner_width: int, out_width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, inner_width)
        self.fc2 = nn.Linear(inner_width, out_width)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return y


class Block(nn.Module):
    """Attention in space, in time, to the caption, then an MLP.  (B, T, S, D) -> (B, T, S, D)  [4]"""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, qk_norm: bool):
        super().__init__()
        self.norm1 = ModulatedNorm()
        self.attn = SelfAttention(width, num_heads, qk_norm)
        self.norm_temp = ModulatedNorm()
        self.attn_temp = SelfAttention(width, num_heads, qk_norm)
        self.cross_attn = CrossAttention(width, num_heads)
        self.norm2 = ModulatedNorm()
        self.mlp = MLP(width, int(width * mlp_ratio), width)
        self.scale_shift_table = nn.Parameter(torch.empty(6, width))
        self.scale_shift_table_temporal = nn.Parameter(torch.empty(3, width))

    def forward(
        self,
        x: Tensor,  # (B, T, S, D)
        caption: Tensor,  # (B, L, D)
        caption_mask: Tensor | None,  # (B, L) bool
        spatial: Tensor,  # (B, F, 6, D): shift, scale, gate of the attention in space, then of the MLP
        temporal: Tensor,  # (B, F, 3, D): shift, scale, gate of the attention in time
        rotation: tuple[Tensor, Tensor],  # cosine and sine, (T, d / 2) each
    ) -> Tensor:
        frames, patches = x.shape[1:3]
        # (B, F, 6, D) -> six of (B, F, 1, D): the same for all patches of a frame
        shift_s, scale_s, gate_s, shift_m, scale_m, gate_m = (self.scale_shift_table + spatial).split(1, dim=2)
        shift_t, scale_t, gate_t = (self.scale_shift_table_temporal + temporal).split(1, dim=2)

        in_space = self.attn(self.norm1(x, shift_s, scale_s).flatten(0, 1))
        x = x + gate_s * in_space.unflatten(0, (-1, frames))

        in_time = self.attn_temp(rearrange(self.norm_temp(x, shift_t, scale_t), "B T S D -> (B S) T D"), rotation)
        x = x + gate_t * rearrange(in_time, "(B S) T D -> B T S D", S=patches)

        x = x + self.cross_attn(x.flatten(1, 2), caption, caption_mask).unflatten(1, (frames, patches))

        return x + gate_m * self.mlp(self.norm2(x, shift_m, scale_m))


class FinalLayer(nn.Module):
    """Tokens become patches of the answer.  (B, T, S, D) -> (B, T, S, patch numbers x out_channels)  [5, 6]"""

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.norm_final = ModulatedNorm()
        self.linear = nn.Linear(width, out_width)
        self.scale_shift_table = nn.Parameter(torch.empty(2, width))

    def forward(self, x: Tensor, t: Tensor, clean: tuple[Tensor, Tensor] | None) -> Tensor:
        """t (B, D). clean: x_mask (B, T) and the vector (B, D) that modulates the frames where it is False."""
        x = self._modulated(x, t)
        if clean is not None:
            # The reference norms what is normed already, and this time with the size in the vector. No loss sees these
            # frames, but a sampler does once per clean frame, so the published weights keep their numbers [6, 20].
            x_mask, vector = clean
            x = torch.where(x_mask[:, :, None, None], x, self._modulated(x, vector))
        y: Tensor = self.linear(x)
        return y

    def _modulated(self, x: Tensor, vector: Tensor) -> Tensor:
        shift, scale = (self.scale_shift_table + vector[:, None])[:, None, None].unbind(dim=3)  # (B, 1, 1, D) each
        modulated: Tensor = self.norm_final(x, shift, scale)
        return modulated


# ------------------------------------------------------------------------------------------------------------- inputs


class PatchProjection(nn.Conv3d):
    """A convolution whose kernel is its stride is one linear map of every patch.  (..., C ph pw) -> (..., D)"""

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.weight.flatten(1), self.bias)


class PatchEmbedding(nn.Module):
    """Patches of latents become tokens.  (B, C, T, H, W) -> (B, T, S, D)  [3]"""

    def __init__(self, patch_size: tuple[int, int, int], in_channels: int, width: int):
        super().__init__()
        self.patch_size = tuple(patch_size)  # a list where it comes from JSON
        self.proj = PatchProjection(in_channels, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        _, rows, columns = self.patch_size
        x = F.pad(x, (0, -x.shape[-1] % columns, 0, -x.shape[-2] % rows))
        patches = rearrange(x, "B C T (h ph) (w pw) -> B T (h w) (C ph pw)", ph=rows, pw=columns)
        tokens: Tensor = self.proj(patches)
        return tokens


class CaptionEmbedding(nn.Module):
    """Features of a caption become tokens; a dropped caption becomes the null caption.  (B, L, _) -> (B, L, D)  [3]"""

    y_embedding: Tensor

    def __init__(self, caption_channels: int, width: int, num_tokens: int):
        super().__init__()
        self.y_proj = MLP(caption_channels, width, width)
        # A buffer: saved, never trained, left out of the EMA.
        self.register_buffer("y_embedding", torch.empty(num_tokens, caption_channels))

    def forward(self, y: Tensor, drop: Tensor | None = None) -> Tensor:
        if drop is not None:
            # The mask stays that of the caption it replaces, so rows behind that caption's end are never seen, and a
            # batch may be padded to its own longest caption instead of to all tokens.
            y = torch.where(drop.bool()[:, None, None], self.y_embedding[: y.shape[1]].to(y.dtype), y)
        embedded: Tensor = self.y_proj(y)
        return embedded


# ------------------------------------------------------------------------------------------------------------ network


class STDiT2(ModelMixin, ConfigMixin):
    """Noisy latents, timestep and caption -> the noise in them.  [2]

    The defaults are STDiT2-XL/2 with 768 million numbers [1]. A model of diffusers: `from_pretrained`,
    `save_pretrained`, `enable_gradient_checkpointing`, `compile_repeated_blocks` and `config` are its own.

    hidden_size, depth, num_heads, mlp_ratio    D, blocks, N, and the inner width of an MLP as a multiple of D
    patch_size            frames, rows and columns of latents in one token
    in_channels           of the latents
    pred_sigma            predict the variance too: twice as many channels come out as go in
    caption_channels      width of the caption features
    model_max_length      tokens of the longest caption: the rows of the null caption
    class_dropout_prob    how often training drops a caption; the network draws nothing itself: see `drop` of `forward`
    qk_norm               RMS-normalise queries and keys of both self-attentions
    input_sq_size         side of the square image (pixels) whose grid of positions has scale 1
    freeze                not_temporal trains temporal attention alone; text keeps the cross-attention as it is [7]
    conditioning_dtype    how exactly timestep, size, frame count, frame rate and rotary angles are known. `weights`
                          first rounds them to the weights' type, as the reference does: in bfloat16 timestep 999
                          becomes 1000. For comparing with it only [21]

    Fields that the reference stores and never uses, and its choices of kernel, are left out. Raises SpecError: such a
    network cannot be built.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]
    _repeated_blocks = ["Block"]
    _keep_in_fp32_modules = ["rope"]  # when loaded in another type; RotaryEmbedding sees to it when cast

    @register_to_config
    def __init__(
        self,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        in_channels: int = 4,
        pred_sigma: bool = True,
        mlp_ratio: float = 4.0,
        caption_channels: int = 4096,
        model_max_length: int = 200,
        class_dropout_prob: float = 0.1,
        qk_norm: bool = True,
        input_sq_size: int = 512,
        freeze: Literal["not_temporal", "text"] | None = None,
        conditioning_dtype: Literal["float32", "weights"] = "float32",
    ):
        super().__init__()
        if hidden_size % 12 or hidden_size % (2 * num_heads):
            raise SpecError(
                f"A network of width {hidden_size} with {num_heads} heads cannot be built: hidden_size must divide by "
                "12 and by twice num_heads. Choose another of the two."
            )
        if patch_size[0] != 1:
            raise SpecError(f"patch_size {tuple(patch_size)} joins frames; write 1 for the first number.")
        self.gradient_checkpointing = False
        width = hidden_size
        self.out_channels = in_channels * (2 if pred_sigma else 1)
        self.x_embedder = PatchEmbedding(patch_size, in_channels, width)
        self.t_embedder = ScalarEmbedder(width)
        self.t_block = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.t_block_temp = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        self.y_embedder = CaptionEmbedding(caption_channels, width, model_max_length)
        self.rope = RotaryEmbedding(width // num_heads)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio, qk_norm) for _ in range(depth))
        self.final_layer = FinalLayer(width, math.prod(patch_size) * self.out_channels)
        self.csize_embedder = ScalarEmbedder(width // 3)
        self.ar_embedder = ScalarEmbedder(width // 3)
        self.fl_embedder = ScalarEmbedder(width)
        self.fps_embedder = ScalarEmbedder(width)
        self.initialize_weights()
        self.apply_freeze()

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        y: Tensor,
        mask: Tensor | None = None,
        x_mask: Tensor | None = None,
        *,
        num_frames: Tensor,
        height: Tensor,
        width: Tensor,
        ar: Tensor,
        fps: Tensor,
        drop: Tensor | None = None,
    ) -> Tensor:
        """(B, 4, T, H, W) -> (B, 8, T, H, W) in float32: noise, then where the variance lies between its two bounds.

        x           (B, 4, T, H, W)   noisy latents
        timestep    (B,)              0 to 999, on the scale of all 1000 steps
        y           (B, 1, L, caption_channels), L at most model_max_length
        mask        (B', L) 0 or 1    tokens of the caption that are there, at least one; none given: all
        x_mask      (B, T) bool       False: this frame is clean, a condition; none given: all are generated
        num_frames, height, width (pixels of the video), ar (height / width), fps      (B',) each
        drop        (B,) bool         captions to replace by the null caption; none given: none, also in training, so
                                      that every random number is the caller's

        B' divides B: fewer rows are repeated as a whole. All samples of a batch have the pixel size of the first. The
        five numbers may stay on the CPU, then reading that pixel size does not wait for the GPU. Any autocast is
        honoured by blocks; what is computed once per sample, not per token, keeps the weights' type.
        """
        batch, _, frames = x.shape[:3]
        if y.shape[-2] > self.config.model_max_length:
            raise SpecError(
                f"Captions of {y.shape[-2]} tokens for a network that takes {self.config.model_max_length}: "
                "set latents.text.max_tokens to that, or the network's model_max_length to more."
            )
        patch_rows, patch_columns = self.config.patch_size[1:]
        grid = (math.ceil(x.shape[3] / patch_rows), math.ceil(x.shape[4] / patch_columns))
        pixels = (float(self._condition(height)[0]), float(self._condition(width)[0]))
        # Of weights only the type is asked here, never the place: offloaded ones are nowhere until their module runs.
        weight = self.x_embedder.proj.weight

        tokens = self.x_embedder(x.to(weight.dtype))
        position = position_embedding(self.config.hidden_size, grid, pixels, self.config.input_sq_size, x.device)
        tokens = tokens + position.to(tokens.dtype)

        with torch.autocast(x.device.type, enabled=False):
            t, t_clean, spatial, temporal, size = self._modulation(
                timestep.to(x.device), x_mask, num_frames=num_frames, height=height, width=width, ar=ar, fps=fps
            )
        caption = self.y_embedder(y.flatten(1, 2).to(weight.dtype), drop)
        caption_mask = None if mask is None else _tiled(mask.to(x.device) != 0, batch)
        exactness = torch.float32 if self.config.conditioning_dtype == "float32" else weight.dtype
        rotation = self.rope(frames, exactness)

        for block in self.blocks:
            given = (tokens, caption, caption_mask, spatial, temporal, rotation)
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = self._gradient_checkpointing_func(block, *given)
            else:
                tokens = block(*given)

        clean = None if x_mask is None or t_clean is None else (x_mask, t_clean + size)
        return self._unpatchified(self.final_layer(tokens, t, clean), grid, x.shape[3:])

    def _modulation(
        self, timestep: Tensor, x_mask: Tensor | None, **conditions: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor]:
        """Everything that depends on the sample and not on its tokens [3, 6].

        -> t (B, D) · t of clean frames or None · spatial (B, F, 6, D) · temporal (B, F, 3, D) · size (B, D)
        """
        timestep = self._condition(timestep)
        batch, device = len(timestep), timestep.device
        given = {name: _tiled(self._condition(value).to(device), batch) for name, value in conditions.items()}

        size = torch.cat(
            [
                self.csize_embedder(given["height"]),
                self.csize_embedder(given["width"]),
                self.ar_embedder(given["ar"]),
            ],
            dim=-1,
        )
        duration = self.fl_embedder(given["num_frames"]) + self.fps_embedder(given["fps"])

        def tables(t: Tensor) -> tuple[Tensor, Tensor]:  # (B, 1, 6, D) and (B, 1, 3, D)
            spatial = self.t_block(t + size).unflatten(-1, (6, -1))[:, None]
            return spatial, self.t_block_temp(t + duration).unflatten(-1, (3, -1))[:, None]

        t = self.t_embedder(timestep)
        spatial, temporal = tables(t)
        if x_mask is None:
            return t, None, spatial, temporal, size
        t_clean = self.t_embedder(torch.zeros_like(timestep))
        spatial_clean, temporal_clean = tables(t_clean)
        generated = x_mask[:, :, None, None]  # (B, T, 1, 1)
        spatial = torch.where(generated, spatial, spatial_clean)
        return t, t_clean, spatial, torch.where(generated, temporal, temporal_clean), size

    def _condition(self, value: Tensor) -> Tensor:
        """A condition as exactly as it may be known: see conditioning_dtype of STDiT2."""
        if self.config.conditioning_dtype == "weights":
            value = value.to(self.x_embedder.proj.weight.dtype)
        return value.float()

    def _unpatchified(self, patches: Tensor, grid: tuple[int, int], size: torch.Size) -> Tensor:
        """(B, T, S, ph pw 8) -> (B, 8, T, H, W) in float32, what was padded cut off [5]"""
        y = rearrange(
            patches.float(),
            "B T (h w) (ph pw C) -> B C T (h ph) (w pw)",
            h=grid[0],
            ph=self.config.patch_size[1],
            pw=self.config.patch_size[2],
        )
        return y[..., : size[0], : size[1]].contiguous()

    @torch.no_grad()
    def initialize_weights(self) -> None:
        """Draw all weights anew from torch's global generator [7]. The answer of a new network is 0 everywhere."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # Not by what the function returns: while diffusers loads a model it takes all of them away.
        nn.init.xavier_uniform_(self.x_embedder.proj.weight.view(self.config.hidden_size, -1))
        captions = self.y_embedder.y_proj
        for module in (*self.t_embedder.mlp, *self.t_block, *self.t_block_temp, captions.fc1, captions.fc2):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
        for name, parameter in self.named_parameters():
            if name.endswith(("cross_attn.proj.weight", "attn_temp.proj.weight", "final_layer.linear.weight")):
                nn.init.zeros_(parameter)  # their biases are 0 already
            if "scale_shift_table" in name:
                nn.init.normal_(parameter, std=self.config.hidden_size**-0.5)
        nn.init.normal_(self.y_embedder.y_embedding, std=self.config.caption_channels**-0.5)

    def apply_freeze(self) -> None:
        """Let train what `freeze` lets train [7]."""
        for name, parameter in self.named_parameters():
            frozen = {
                "not_temporal": "attn_temp" not in name,
                "text": "cross_attn" in name,
                None: False,
            }[self.config.freeze]
            parameter.requires_grad_(not frozen and name != "rope.freqs")


def _tiled(rows: Tensor, batch: int) -> Tensor:
    """Fewer rows than samples are repeated as a whole: 0, 1, 0, 1, ...  (B', ...) -> (B, ...)"""
    return rows if len(rows) == batch else rows.repeat(batch // len(rows), *[1] * (rows.dim() - 1))
