"""A checkpoint of another tool becomes a folder of ours: safetensors, the network's shape, and where it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bricks_core.errors import UsageError
from bricks_core.exchange.checkpoints.checkpoint import (
    Checkpoint,
    DtypeName,
    Network,
    goes_with,
    in_dtype,
    network_of,
    open_checkpoint,
    type_named,
)
from bricks_core.exchange.checkpoints.new_folder import new_folder
from bricks_core.models.beside import CONFIG, PROVENANCE
from bricks_core.models.pretrained import explained
from bricks_core.models.tensor_files import Tensors, write_safetensors
from bricks_core.models.weights import read_config
from bricks_core.progress import Progress
from bricks_core.storage.hashes import sha256_of_file
from bricks_core.storage.store import Store, check_key
from bricks_core.storage.trainings import EMA, WEIGHTS

OURS = (WEIGHTS, EMA, CONFIG, PROVENANCE)
"""Names by which a folder is known to be a checkpoint of ours."""


@dataclass(frozen=True)
class Imported:
    """What came of it."""

    checkpoint: Checkpoint
    network: Network
    out: Path
    was_there: bool
    """The very same had been imported before."""


def import_checkpoint(
    source: str,
    out: Path,
    *,
    revision: str = "",
    config: Path | None = None,
    dtype: DtypeName = "stored",
    force: bool = False,
) -> Imported:
    """Read a checkpoint of any layout that checkpoint.py lists, or of the hub, and write it as ours.

    config   describes the network instead of what lies beside the weights
    dtype    of weights and EMA

    Raises:
        UsageError: nothing is there, or `out` is in the way.
        DataError: it is damaged, or no network; names the first file or tensor that is wrong.
        ServiceUnavailable: it is on the hub, and that is away.
    """
    place, commit = _fetched(source, revision)
    checkpoint = open_checkpoint(place, source)
    network = network_of(checkpoint, read_config(config) if config else None)
    if out.absolute() == place.absolute():
        raise UsageError(f"{out} is what is read: give --out another folder.")
    with new_folder(out, force=force, known_by=OURS) as folder, Progress("import") as progress:
        written: dict[str, Tensors] = {WEIGHTS: network.weights} | ({EMA: network.ema} if network.ema else {})
        progress.begin(sum(len(each.headings) for each in written.values()) + len(checkpoint.files), unit="tensors")
        for name, tensors in written.items():
            headings = in_dtype(tensors.headings, type_named(dtype), network.exact)
            write_safetensors(folder.path / name, headings, tensors.read, lambda each: progress.advance(note=each))
        (folder.path / CONFIG).write_text(json.dumps(network.config, indent=1) + "\n", encoding="utf-8")
        provenance = _provenance(source, commit, checkpoint, network, place, progress.advance)
        (folder.path / PROVENANCE).write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
    return Imported(checkpoint, network, out, folder.was_there)


def put_into(store: Store, key: str, imported: Imported, *, force: bool = False) -> None:
    """Copy what was imported into the store, under a key that train.init_from can name from any pod.

    A run's digests hold the key and not what is under it, so that what is there is replaced with `force` alone.

    Raises:
        UsageError: other weights are there, or the key belongs to artifacts or runs.
    """
    key = key.rstrip("/")
    if check_key(key).split("/")[0] in ("artifacts", "runs"):
        raise UsageError(
            f"{key} is where the store keeps what runs make: write a key such as weights/{imported.out.name}."
        )
    weights = f"{key}/{WEIGHTS}"
    if store.head(weights) is not None:
        if store.sha256(weights) == sha256_of_file(imported.out / WEIGHTS):
            return
        if not force:
            raise UsageError(
                f"{weights} holds other weights in {store.uri}, and runs that name the key count on them: write "
                "another key, or replace them with --force."
            )
    for name in (CONFIG, PROVENANCE, EMA, WEIGHTS):  # the weights last: they are what training looks for
        if (imported.out / name).exists():
            store.put_file(f"{key}/{name}", imported.out / name)


def _fetched(source: str, revision: str) -> tuple[Path, str]:
    """Where the source lies on this disk, and for one of the hub the commit that it is."""
    place = Path(source).expanduser()
    if place.exists() or source.startswith((".", "/", "~")) or source.count("/") != 1:
        if revision:
            raise UsageError(f"{source} is no hub id, so it has no revision: leave --revision out.")
        return place, ""
    from huggingface_hub import snapshot_download

    # Weights and what describes them; never code, nor pickles.
    patterns = ["config.json", "model_index.json", "*.safetensors", "*.safetensors.index.json"]
    patterns += [f"transformer/{pattern}" for pattern in patterns]
    with explained("The checkpoint", source):
        place = Path(snapshot_download(source, revision=revision or None, allow_patterns=patterns))
    return place, place.name


def _provenance(
    source: str, commit: str, checkpoint: Checkpoint, network: Network, place: Path, advance: Callable[[], None]
) -> dict[str, Any]:
    """Where a checkpoint is from and what was done to it. The same import writes the same."""
    files = []
    for file in checkpoint.files:
        name = file.relative_to(place).as_posix() if place.is_dir() else file.name
        files.append({"file": name, "size_bytes": file.stat().st_size, "sha256": sha256_of_file(file)})
        advance()
    return {
        "from": source,
        "layout": checkpoint.layout,
        "revision": commit or None,
        "files": files,
        "config": "inferred from the tensors" if network.inferred else "given",
        "assumed": list(network.assumed),
        "dropped": list(network.dropped),
        "resized": list(network.resized),
        "left_out": list(checkpoint.left_out),
        "running_states": checkpoint.running,
    } | goes_with(checkpoint, checkpoint.told_weights)
