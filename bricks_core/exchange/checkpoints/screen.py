"""What a person sees of checkpoints: what one holds, and what came of bringing one in or out."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from bricks_core.errors import DataError
from bricks_core.exchange.checkpoints.bring_in import Imported
from bricks_core.exchange.checkpoints.checkpoint import Checkpoint, Layout, Network, shaped
from bricks_core.exchange.checkpoints.export import Exported
from bricks_core.models.tensor_files import Heading, Tensors
from bricks_core.models.weights import differences, expected_headings
from bricks_core.pipeline import layout

LAYOUTS: dict[Layout, str] = {
    "bricks": "a checkpoint of Bricks",
    "open-sora-hub": "a model folder as Open-Sora publishes it",
    "open-sora-training": "a training checkpoint of Open-Sora",
    "diffusers": "a folder of diffusers",
    "file": "a file of weights",
}

_PARTS = {
    r"x_embedder\.": "patches (x_embedder)",
    r"t_embedder\.": "timestep (t_embedder)",
    r"t_block\.": "modulation in space (t_block)",
    r"t_block_temp\.": "modulation in time (t_block_temp)",
    r"y_embedder\.": "caption and null caption (y_embedder)",
    r"rope\.": "rotary frequencies (rope)",
    r"blocks\.\d+\.attn\.": "blocks: attention in space (attn)",
    r"blocks\.\d+\.attn_temp\.": "blocks: attention in time (attn_temp)",
    r"blocks\.\d+\.cross_attn\.": "blocks: attention to the caption (cross_attn)",
    r"blocks\.\d+\.mlp\.": "blocks: MLP (mlp)",
    r"blocks\.\d+\.scale_shift_table": "blocks: shifts, scales, gates (scale_shift_table…)",
    r"final_layer\.": "final layer (final_layer)",
    r"(csize|ar)_embedder\.": "size and shape (csize_embedder, ar_embedder)",
    r"(fl|fps)_embedder\.": "frames and rate (fl_embedder, fps_embedder)",
}
_WEIGHTS = {"ema": "EMA weights", "raw": "raw weights", None: "the weights that it has"}
UNKNOWN = "unknown to this network"
SHOWN = 20


def show_checkpoint(checkpoint: Checkpoint, *, all_tensors: bool) -> None:
    """What a checkpoint is and holds, by part, and what differs from what it should hold.

    Raises DataError: something does.
    """
    console = layout.console()
    try:
        network, why = shaped(checkpoint), ""
    except DataError as error:
        network, why = None, str(error)
    facts = {"checkpoint": f"{checkpoint.name}, {LAYOUTS[checkpoint.layout]}"}
    if network:
        facts["config"] = _shape_in_words(network)
    facts["weights"] = _tensors_in_words(checkpoint.weights)
    facts["EMA"] = _tensors_in_words(checkpoint.ema) if checkpoint.ema else "none"
    facts["step"] = "not known" if checkpoint.step is None else f"{checkpoint.step:,}"
    facts |= _told(checkpoint)
    if checkpoint.left_out:
        facts["beside it"] = "\n".join(checkpoint.left_out)
    console.print(layout.facts(facts))
    expected = network.expected if network else {}
    console.print(_parts(checkpoint.weights, expected, network is None or network.is_stdit2))
    if all_tensors:
        console.print(_all(checkpoint.weights))
    if network is None:
        raise DataError(why)
    _tell_differences(console, network, expected, all_tensors)


def _tell_differences(console: Console, network: Network, expected: Mapping[str, Heading], all_of_them: bool) -> None:
    wrong = differences(expected, network.weights.headings)
    if network.ema:
        wrong += [f"EMA: {each}" for each in differences(expected, network.ema.headings)]
    for each in (*network.dropped, *network.resized):
        console.print(f"{each}: {'put right' if ':' in each else 'of an old version, passed over'} when it is used.")
    if not wrong:
        is_full = network.is_stdit2 and expected == expected_headings({})
        own = "a network of this shape" if network.inferred else "the network that its config describes"
        size = "STDiT2-XL/2, the published size," if is_full else own
        console.print(f"Every tensor of {size} is there, and no other.", style="green")
        return
    for each in wrong if all_of_them else wrong[:SHOWN]:
        console.print(f"  {each}", style="red", highlight=False)
    raise DataError(
        f"{len(wrong)} tensors are not those of {'its tensors’ own shape' if network.inferred else 'its config.json'}"
        f"{'' if all_of_them or len(wrong) <= SHOWN else f', of which {SHOWN} are listed; --tensors lists all'}: "
        f"the first is {wrong[0]}."
    )


def tell_imported(imported: Imported, key: str = "") -> None:
    """What was brought in, what was done to it, and where to go on. `key`: where it also is in the store."""
    console, network, checkpoint = layout.console(), imported.network, imported.checkpoint
    facts = {"imported": f"{checkpoint.name}, {LAYOUTS[checkpoint.layout]}", "config": _shape_in_words(network)}
    facts["weights"] = _tensors_in_words(network.weights)
    facts["EMA"] = _tensors_in_words(network.ema) if network.ema else "none"
    if checkpoint.step is not None:
        facts["step"] = f"{checkpoint.step:,}"
    facts |= _told(checkpoint)
    if network.dropped:
        facts["dropped"] = f"{', '.join(network.dropped)} (of an old version; computed since)"
    if network.resized:
        facts["resized"] = "\n".join(network.resized)
    if checkpoint.left_out:
        facts["left out"] = "\n".join(checkpoint.left_out)
    facts["lies in"] = f"{imported.out}{' (the very same was there already)' if imported.was_there else ''}"
    console.print(layout.facts(facts))
    console.print(f"bricks generate {shlex.quote(str(imported.out))} makes videos with it,")
    console.print(f"and with train.init_from: {key.rstrip('/') or imported.out} a run fine-tunes it.")


def tell_exported(exported: Exported) -> None:
    """What was written, and what the other tool needs besides."""
    console, out = layout.console(), exported.out
    types = "in the types they had" if exported.dtype == "stored" else exported.dtype
    facts = {
        "exported": f"{exported.checkpoint.name}, {_WEIGHTS[exported.weights]}, {types}",
        "as": exported.format,
    } | _told(exported.checkpoint)
    if exported.format == "open-sora-training":
        facts["model/"] = f"{types}, in shards of at most 1024 MB"
        facts["ema.pt"] = "float32, the EMA" if exported.network.ema else "float32, the weights: there is no EMA"
        facts["missing"] = (
            "optimizer/, which upstream's --load asks for: to go on there, give the folder as weights "
            "(model.from_pretrained, or --ckpt-path), which reads model/ alone"
        )
    if exported.format == "diffusers":
        parts = [name for name in ("vae", "text_encoder", "tokenizer") if not (out / name).is_dir()]
        encoders = exported.checkpoint.encoders
        if encoders is not None and encoders.codec.kind == "patch-dct" and "vae" in parts:
            facts["codec"] = (
                "patch-dct, which is built into Bricks: the folder has no VAE of diffusers, and bricks generate "
                f"{shlex.quote(str(out))} makes videos with it"
            )
            parts = [] if encoders.text.kind == "hashed-words" else parts[1:]
        if parts:
            facts["missing"] = (
                f"{', '.join(parts)}: put them in with --vae and --text-encoder, or give them to from_pretrained"
            )
    facts["lies in"] = f"{out}{' (the very same was there already)' if exported.was_there else ''}"
    console.print(layout.facts(facts))
    for file in sorted(file for file in out.rglob("*") if file.is_file()):
        console.print(f"  {file.stat().st_size:>13,} bytes  {file.relative_to(out)}", highlight=False)


def _told(checkpoint: Checkpoint) -> dict[str, str]:
    """What is known of its training, and of what it goes with."""
    facts = {}
    if checkpoint.training:
        facts["training"] = checkpoint.training
    if checkpoint.encoders:
        codec, text = checkpoint.encoders.codec, checkpoint.encoders.text
        facts["goes with"] = " and ".join(" ".join(filter(None, [each.kind, each.model])) for each in (codec, text))
    return facts


# -------------------------------------------------------------------------------------------------------------- tables


def _parts(tensors: Tensors, expected: Mapping[str, Heading], is_stdit2: bool) -> Table:
    part_of = _part_of if is_stdit2 else _place_of
    parts: dict[str, list[Heading]] = {}
    for name, heading in tensors.headings.items():
        parts.setdefault(part_of(name), []).append(heading)
    num_blocks = len({name.split(".")[1] for name in tensors.headings if re.match(r"blocks\.\d+\.", name)})
    table = _table("part", "tensors", "numbers", "in each block", "bytes", "type")

    def row(name: str, headings: list[Heading], each: str = "") -> None:
        numbers, size_bytes = (sum(getattr(each, what) for each in headings) for what in ("numbers", "size_bytes"))
        types = ", ".join(sorted({_dtype(heading) for heading in headings}))
        table.add_row(name, f"{len(headings):,}", f"{numbers:,}", each, f"{size_bytes:,}", types)

    in_blocks = 0
    for part in (*_PARTS.values(), UNKNOWN) if is_stdit2 else sorted(parts):
        if part in parts:
            numbers = sum(heading.numbers for heading in parts[part]) if part.startswith("blocks:") else 0
            in_blocks += numbers
            row(part, parts[part], f"{numbers / num_blocks:,.0f}" if numbers else "")
    table.add_section()
    row("all", list(tensors.headings.values()), f"{in_blocks / num_blocks:,.0f} x {num_blocks}" if num_blocks else "")
    if expected and len(expected) != len(tensors.headings):
        row("expected", list(expected.values()))
    return table


def _all(tensors: Tensors) -> Table:
    table = _table("tensor", "shape", "numbers", "bytes", "type")
    for name, heading in sorted(tensors.headings.items(), key=lambda item: _natural(item[0])):
        shape = " x ".join(map(str, heading.shape)) or "one number"
        table.add_row(name, shape, f"{heading.numbers:,}", f"{heading.size_bytes:,}", _dtype(heading))
    return table


def _natural(name: str) -> list[Any]:
    """blocks.2 before blocks.10."""
    return [(0, int(piece), "") if piece.isdigit() else (1, 0, piece) for piece in name.split(".")]


def _part_of(name: str) -> str:
    return next((part for pattern, part in _PARTS.items() if re.match(pattern, name)), UNKNOWN)


def _place_of(name: str) -> str:
    """The part of a network whose parts have no words here: its module, within all blocks together."""
    inside = re.match(r"blocks\.\d+\.(\w+)", name)
    return f"blocks: {inside[1]}" if inside else name.partition(".")[0]


def _tensors_in_words(tensors: Tensors) -> str:
    types = Counter(_dtype(heading) for heading in tensors.headings.values())
    (most, _), *others = types.most_common()
    besides = "".join(f", {number} of them {dtype}" for dtype, number in others)
    on_disk = f"{sum(file.stat().st_size for file in tensors.files):,} bytes in {len(tensors.files)} files"
    numbers = f"{len(tensors.headings):,} tensors, {tensors.numbers:,} numbers"
    return f"{numbers}, {most}{besides}; {on_disk.removesuffix('s') if len(tensors.files) == 1 else on_disk}"


def _dtype(heading: Heading) -> str:
    return str(heading.dtype).removeprefix("torch.")


def _shape_in_words(network: Network) -> str:
    left_out = {"conditioning_dtype", "architectures", *network.assumed}
    told = {name: value for name, value in network.shape.items() if name not in left_out and name[0] != "_"}
    fields = _fields(told) if network.is_stdit2 else f"Wan, {_fields(told)}"
    if not network.inferred:
        return f"given: {fields}"
    assumed = _fields({name: network.shape[name] for name in network.assumed})
    return f"read from the tensors: {fields}\nwhich no tensor shows, so as STDiT2-XL/2 has them: {assumed}"


def _fields(shape: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_value(value)}" for name, value in shape.items() if value is not None)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "x".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _table(first: str, *others: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="left" if name in ("type", "shape") else "right", no_wrap=True)
    return table
