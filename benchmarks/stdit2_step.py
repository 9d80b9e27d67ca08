"""A training pass of the transformer: ours against a plain one written from the specification, in the same run.

    python -m benchmarks.stdit2_step [--save] [--repeats 5]

The plain network below follows docs/stdit2.md line by line, as one would write it first: products and a float32 softmax
for every attention, one caption at a time, positions made anew, and shifts, scales and gates of clean frames computed
in every block and chosen token by token. Both read the same weights; outputs and gradients are compared, in float32,
before anything is timed, so a ratio of something else cannot be reported.

A second table times both ways of attention, torch's fused kernel and two products, and says which the network takes.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.record import flags, keep
from bricks_core.models.stdit2 import STDiT2, attention_by_products, fused_attention_suits

CONFIG: dict[str, Any] = {
    "hidden_size": 288,
    "depth": 2,
    "num_heads": 4,
    "caption_channels": 256,
    "model_max_length": 120,
}
Arguments = dict[str, Tensor]
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    name: str
    samples: int
    frames: int
    latent_size: tuple[int, int]
    clean_frames: bool
    dtype: torch.dtype

    @property
    def num_tokens(self) -> int:
        rows, columns = (math.ceil(size / 2) for size in self.latent_size)
        return self.samples * self.frames * rows * columns


CASES = [
    Case("32 images 144p", 32, 1, (18, 32), False, torch.float32),
    Case("8 frames 144p", 2, 8, (18, 32), False, torch.float32),
    Case("8 frames 144p, clean frames", 2, 8, (18, 32), True, torch.float32),
    Case("8 frames 240p, clean frames", 1, 8, (30, 53), True, torch.float32),
    Case("8 frames 144p, clean frames", 2, 8, (18, 32), True, torch.bfloat16),
    Case("8 frames 240p, clean frames", 1, 8, (30, 53), True, torch.bfloat16),
]


def main() -> None:
    """Check, measure, print a table, and with --save keep one line under benchmarks/results."""
    parser = flags(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = [measure(case, options.repeats) for case in CASES]
    show("forward + backward, one thread", results)
    attentions = [
        measure_attention(keys, dtype, options.repeats) for dtype in DTYPES for keys in (8, 32, 144, 256, 920)
    ]
    show("attention, forward + backward, one thread", attentions)
    found = {"network": CONFIG, "repeats": options.repeats, "results": results, "attention": attentions}
    keep("stdit2_step", found, save=options.save)


def measure(case: Case, repeats: int) -> dict[str, object]:
    """Processor milliseconds of forward and backward, taking turns, so that a busy machine is busy for both."""
    model, arguments = build(case)
    weights: dict[str, Tensor] = dict(model.named_parameters())

    def ours() -> Tensor:
        return model(**arguments)

    def plainly() -> Tensor:
        return plain(model.config, weights, **arguments)

    difference = agree(model, ours, plainly)
    took: dict[Callable[[], Tensor], list[float]] = {ours: [], plainly: []}
    for _ in range(repeats + 1):
        for network, times in took.items():
            times.append(pass_ms(model, network, case.dtype))
    # The first of each warms up.
    ours_ms, plain_ms = took[ours][1:], took[plainly][1:]
    return {
        "case": case.name,
        "dtype": str(case.dtype).removeprefix("torch."),
        "num_tokens": case.num_tokens,
        "ours_ms": round(statistics.median(ours_ms), 1),
        "plain_ms": round(statistics.median(plain_ms), 1),
        "ratio": round(statistics.median(p / o for p, o in zip(plain_ms, ours_ms, strict=True)), 2),
        "largest_difference": difference,
    }


def pass_ms(model: STDiT2, network: Callable[[], Tensor], dtype: torch.dtype) -> float:
    """One forward and backward pass; processor time of one thread, which other processes do not lengthen."""
    model.zero_grad(set_to_none=True)
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        answer = network()
    answer.square().mean().backward()
    return (time.process_time() - start) * 1000


def agree(model: STDiT2, ours: Callable[[], Tensor], plainly: Callable[[], Tensor]) -> float:
    """The largest relative difference of outputs and gradients in float32, which must be that of rounding."""
    seen = []
    for network in (ours, plainly):
        model.zero_grad(set_to_none=True)
        answer = network()
        answer.square().mean().backward()
        seen.append([answer.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(seen[0]) == len(seen[1])
    # Against the tensor's own size; one that should be 0 (queries of a single frame) against the largest gradient's.
    floor = max(gradient.abs().max().item() for gradient in seen[1][1:]) * 1e-3
    worst = max(((a - b).abs().max() / b.abs().max().clamp(min=floor)).item() for a, b in zip(*seen, strict=True))
    assert worst < 1e-3, f"the two networks differ by {worst}: there is nothing to compare"
    return float(f"{worst:.1e}")


def build(case: Case) -> tuple[STDiT2, Arguments]:
    """The same network and batch at every run."""
    torch.manual_seed(0)
    model = STDiT2(**CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.normal_(std=0.05)
    samples, frames, (height, width) = case.samples, case.frames, case.latent_size
    arguments = {
        "x": torch.randn(samples, 4, frames, height, width),
        "timestep": torch.randint(0, 1000, (samples,)),
        "y": torch.randn(samples, 1, CONFIG["model_max_length"], CONFIG["caption_channels"]),
        "mask": torch.arange(CONFIG["model_max_length"]) < torch.randint(40, 120, (samples, 1)),
        "num_frames": torch.full((samples,), float(frames)),
        "height": torch.full((samples,), 8.0 * height),
        "width": torch.full((samples,), 8.0 * width),
        "ar": torch.full((samples,), height / width),
        "fps": torch.full((samples,), 8.0),
    }
    if case.clean_frames:
        arguments["x_mask"] = torch.arange(frames).expand(samples, frames) >= frames // 4
    return model, arguments


def measure_attention(num_keys: int, dtype: torch.dtype, repeats: int) -> dict[str, object]:
    """Both ways of self-attention over the same number of tokens, in sequences of `num_keys`."""
    q, k, v = (torch.randn(2048 // num_keys + 1, 4, num_keys, 72, dtype=dtype, requires_grad=True) for _ in range(3))
    ways: dict[str, Callable[[], Tensor]] = {
        "fused": lambda: F.scaled_dot_product_attention(q, k, v),
        "products": lambda: attention_by_products(q, k, v, None),
    }
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            start = time.process_time()
            way().float().sum().backward()
            took[name].append((time.process_time() - start) * 1000)
    milliseconds = {name: round(statistics.median(times[1:]), 1) for name, times in took.items()}
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "num_keys": num_keys,
        "fused_ms": milliseconds["fused"],
        "products_ms": milliseconds["products"],
        "taken": "fused" if fused_attention_suits(q, k) else "products",
    }


def show(title: str, rows: list[dict[str, object]]) -> None:
    table = Table(*rows[0], title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)


# -------------------------------------------------------------------------------- the plain network, section by section


def plain(c: Any, w: dict[str, Tensor], x: Tensor, timestep: Tensor, y: Tensor, **given: Tensor) -> Tensor:
    """STDiT2 of docs/stdit2.md sections 3 to 6. Arguments and answer are those of STDiT2.forward."""
    batch, _, frames, height, width = x.shape
    h, width_tokens = math.ceil(height / 2), math.ceil(width / 2)
    x = F.pad(x, (0, 2 * width_tokens - width, 0, 2 * h - height))
    tokens = F.conv3d(x, w["x_embedder.proj.weight"], w["x_embedder.proj.bias"], stride=c.patch_size)
    tokens = tokens.flatten(3).permute(0, 2, 3, 1)  # B T S C
    tokens = tokens + plain_positions(c, h, width_tokens, given["height"][0].item(), given["width"][0].item())

    t, t0 = plain_scalar(w, "t_embedder", timestep), plain_scalar(w, "t_embedder", torch.zeros_like(timestep))
    sizes = [plain_scalar(w, f"{part}_embedder", given[name]) for part, name in PLAIN_SIZES]
    s = torch.cat(sizes, dim=-1)
    r = plain_scalar(w, "fl_embedder", given["num_frames"]) + plain_scalar(w, "fps_embedder", given["fps"])
    spatial = [plain_linear(w, "t_block.1", F.silu(e + s)).reshape(batch, 6, -1) for e in (t, t0)]
    temporal = [plain_linear(w, "t_block_temp.1", F.silu(e + r)).reshape(batch, 3, -1) for e in (t, t0)]
    captions = [plain_caption(w, y[b, 0][given["mask"][b].bool()]) for b in range(batch)]

    x_mask = given.get("x_mask")
    for i in range(c.depth):
        tokens = plain_block(c, w, f"blocks.{i}", tokens, captions, spatial, temporal, x_mask)

    out = plain_modulate(tokens, *(w["final_layer.scale_shift_table"] + t[:, None]).unbind(1))
    if x_mask is not None:
        clean = plain_modulate(out, *(w["final_layer.scale_shift_table"] + (t0 + s)[:, None]).unbind(1))
        out = torch.where(x_mask[:, :, None, None], out, clean)
    out = plain_linear(w, "final_layer.linear", out).float()
    out = out.reshape(batch, frames, h, width_tokens, 2, 2, 2 * c.in_channels).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(batch, 2 * c.in_channels, frames, 2 * h, 2 * width_tokens)[..., :height, :width]


PLAIN_SIZES = (("csize", "height"), ("csize", "width"), ("ar", "ar"))


def plain_block(
    c: Any,
    w: dict[str, Tensor],
    name: str,
    x: Tensor,  # B T S C
    captions: list[Tensor],
    spatial: list[Tensor],
    temporal: list[Tensor],
    x_mask: Tensor | None,
) -> Tensor:
    """Section 4; of the two sets of vectors the second is for clean frames, section 6."""
    sets = [(w[f"{name}.scale_shift_table"] + p).unbind(1) for p in spatial]
    sets_temporal = [(w[f"{name}.scale_shift_table_temporal"] + q).unbind(1) for q in temporal]

    def chosen(noisy: Tensor, clean: Tensor) -> Tensor:
        return noisy if x_mask is None else torch.where(x_mask[:, :, None, None], noisy, clean)

    def modulated(shift: int, scale: int, of: list[tuple[Tensor, ...]]) -> Tensor:
        return chosen(*(plain_modulate(x, vectors[shift], vectors[scale]) for vectors in of))

    def gated(branch: Tensor, gate: int, of: list[tuple[Tensor, ...]]) -> Tensor:
        return chosen(*(vectors[gate][:, None, None] * branch for vectors in of))

    x = x + gated(plain_self_attention(c, w, f"{name}.attn", modulated(0, 1, sets), rotated=False), 2, sets)
    in_time = modulated(0, 1, sets_temporal).transpose(1, 2)
    mixed = plain_self_attention(c, w, f"{name}.attn_temp", in_time, rotated=True).transpose(1, 2)
    x = x + gated(mixed, 2, sets_temporal)
    x = x + plain_cross_attention(c, w, f"{name}.cross_attn", x, captions)
    inner = F.gelu(plain_linear(w, f"{name}.mlp.fc1", modulated(3, 4, sets)), approximate="tanh")
    return x + gated(plain_linear(w, f"{name}.mlp.fc2", inner), 5, sets)


def plain_self_attention(c: Any, w: dict[str, Tensor], name: str, x: Tensor, *, rotated: bool) -> Tensor:
    """Among the tokens of the third axis.  (B, _, tokens, C) -> the same"""
    b, outer, count, width = x.shape
    qkv = plain_linear(w, f"{name}.qkv", x).reshape(b, outer, count, 3, c.num_heads, width // c.num_heads)
    q, k, v = qkv.permute(3, 0, 1, 4, 2, 5)  # B _ heads tokens d
    if rotated:
        angle = torch.arange(count)[:, None] * w["rope.freqs"]
        q, k = plain_rotate(q, angle), plain_rotate(k, angle)
    q, k = plain_rms(q, w[f"{name}.q_norm.weight"]), plain_rms(k, w[f"{name}.k_norm.weight"])
    mixed = plain_attention(q, k, v).transpose(2, 3).reshape(b, outer, count, width)
    return plain_linear(w, f"{name}.proj", mixed)


def plain_cross_attention(c: Any, w: dict[str, Tensor], name: str, x: Tensor, captions: list[Tensor]) -> Tensor:
    b, frames, places, width = x.shape
    d = width // c.num_heads
    q = plain_linear(w, f"{name}.q_linear", x).reshape(b, frames * places, c.num_heads, d).transpose(1, 2)
    mixed = []
    for sample, caption in zip(q, captions, strict=True):
        k, v = plain_linear(w, f"{name}.kv_linear", caption).reshape(-1, 2, c.num_heads, d).permute(1, 2, 0, 3)
        mixed.append(plain_attention(sample, k, v).transpose(0, 1).reshape(frames, places, width))
    return plain_linear(w, f"{name}.proj", torch.stack(mixed))


def plain_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q @ k.transpose(-2, -1)).float() / math.sqrt(q.shape[-1])
    return scores.softmax(dim=-1).to(v.dtype) @ v


def plain_rotate(x: Tensor, angle: Tensor) -> Tensor:
    a, b = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)
    return turned.flatten(-2)


def plain_rms(x: Tensor, weight: Tensor) -> Tensor:
    return (x.float() * (x.float().square().mean(dim=-1, keepdim=True) + 1e-6) ** -0.5).to(x.dtype) * weight


def plain_modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    normal = (x - mean) / (x.var(dim=-1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    return normal * (1 + scale[:, None, None]) + shift[:, None, None]


def plain_linear(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def plain_scalar(w: dict[str, Tensor], name: str, value: Tensor) -> Tensor:
    angle = value.float()[:, None] * 10000.0 ** (-torch.arange(128) / 128)
    wave = torch.cat([angle.cos(), angle.sin()], dim=-1)
    return plain_linear(w, f"{name}.mlp.2", F.silu(plain_linear(w, f"{name}.mlp.0", wave)))


def plain_caption(w: dict[str, Tensor], features: Tensor) -> Tensor:
    inner = F.gelu(plain_linear(w, "y_embedder.y_proj.fc1", features), approximate="tanh")
    return plain_linear(w, "y_embedder.y_proj.fc2", inner)


def plain_positions(c: Any, rows: int, columns: int, height_px: float, width_px: float) -> Tensor:
    scale = math.sqrt(height_px * width_px) / c.input_sq_size
    side = round(math.sqrt(rows * columns))
    frequency = 10000.0 ** (-2 * torch.arange(c.hidden_size // 4) / (c.hidden_size // 2))
    row = (torch.arange(rows) / scale * side / rows)[:, None].expand(rows, columns).reshape(-1, 1) * frequency
    column = (torch.arange(columns) / scale * side / columns).expand(rows, columns).reshape(-1, 1) * frequency
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=-1)


if __name__ == "__main__":
    main()
