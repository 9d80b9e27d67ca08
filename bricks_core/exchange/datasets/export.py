"""A run's dataset, written for another tool."""

from __future__ import annotations

from pathlib import Path

from bricks_core.errors import AlteredObject, DataError, NoSuchObject
from bricks_core.exchange.datasets.data_card import contents
from bricks_core.exchange.datasets.dataset import Dataset
from bricks_core.exchange.datasets.export_folder import claimed
from bricks_core.exchange.datasets.hugging_face import export_hugging_face
from bricks_core.exchange.datasets.open_sora import export_open_sora
from bricks_core.exchange.datasets.screen import exported_screen
from bricks_core.exchange.datasets.webdataset import export_webdataset
from bricks_core.progress import Progress
from bricks_core.storage.store import Store


def export_dataset(store: Store, run: str, what: str, out: Path, *, shard_bytes: int = 1 << 30) -> None:
    """Write a run's dataset into a folder, and tell what came of it.

    Args:
        what: open-sora, webdataset or hugging-face.

    Raises:
        DataError: the run has no captions, or not one that was accepted, or its artifacts are not whole.
        SpecError, TryLater: the folder is not ours to write into.
    """
    try:
        _export(store, run, what, out, shard_bytes)
    except (AlteredObject, NoSuchObject) as error:
        raise DataError(f"{error} bricks run with the run's file makes it again; then export once more.") from None


def _export(store: Store, run: str, what: str, out: Path, shard_bytes: int) -> None:
    dataset = Dataset.of(store, run)
    counted = contents(dataset)
    if not counted.num_samples:
        raise DataError(f"Run {run} has no clip or image with an accepted caption: bricks show {run}/caption says why.")
    with claimed(out, what=what, run=run) as folder, Progress("export") as progress:
        progress.begin(counted.num_samples, unit="clips and images")
        folder.tell(captions=dataset.caption.manifest.digest, finished=False)
        match what:
            case "open-sora":
                table = export_open_sora(dataset, folder, progress)
            case "webdataset":
                table = export_webdataset(dataset, folder, progress, shard_bytes)
            case "hugging-face":
                table = export_hugging_face(dataset, folder, progress)
            case _:
                raise ValueError(what)
        folder.tell(finished=True)
    exported_screen(dataset, counted, folder, what, out / table)
