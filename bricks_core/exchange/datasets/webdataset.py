"""Tar files as the webdataset library streams them: of each sample <id>.mp4 or .jpg, <id>.txt and <id>.json in a row.

The same dataset makes the same bytes: samples in the order of their ids, and no times, owners or modes of this machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bricks_core.exchange.datasets.dataset import Dataset, Sample
from bricks_core.exchange.datasets.export_folder import ExportFolder
from bricks_core.progress import Progress
from bricks_core.spec.manifest import canonical_json
from bricks_core.storage.artifacts import Artifact
from bricks_core.storage.hashes import sha256_of_file

SPLITS = ("train", "held_out")
TABLE = "shards.json"
_BLOCK_BYTES = 512


def export_webdataset(dataset: Dataset, folder: ExportFolder, progress: Progress, shard_bytes: int) -> str:
    """Shards of each side of the split, train-000000.tar and so on; the list of them last. Returns the list's name.

    A shard is closed before the sample that would make it larger than `shard_bytes`.
    """
    # What an earlier, killed export finished; a shard is known by all that is in it.
    known = {each["file"]: each for each in folder.about.get("shards", [])}
    shards = []
    for split in SPLITS:
        of_split = (sample for sample in dataset.samples() if sample.split == split)
        for place, members in enumerate(_shards(of_split, shard_bytes)):
            name = f"{split}-{place:06d}.tar"
            content = hashlib.sha256(canonical_json([[s.key, s.text, s.facts()] for s in members])).hexdigest()
            shard = known.get(name, {})
            if shard.get("content") == content and folder.has(
                name, size_bytes=shard["size_bytes"], sha256=shard["sha256"]
            ):
                folder.count(True)
            else:
                file = folder.write(name, lambda aside, members=members: _write(aside, members, dataset.clip))  # type: ignore[misc]
                shard = {"file": name, "split": split, "num_samples": len(members), "content": content}
                shard |= {"size_bytes": file.stat().st_size, "sha256": sha256_of_file(file)}
                folder.count(False)
            shards.append(shard)
            known.pop(name, None)
            folder.tell(shards=[*shards, *known.values()])
            progress.advance(len(members), note=name)
    wanted = {shard["file"] for shard in shards}
    for file in folder.path.glob("*-??????.tar"):
        if file.name not in wanted:
            file.unlink()
    folder.tell(shards=shards)
    listed = [{key: shard[key] for key in ("file", "split", "num_samples", "size_bytes", "sha256")} for shard in shards]
    folder.write(TABLE, lambda file: file.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8"))
    return TABLE


def _shards(samples: Iterable[Sample], shard_bytes: int) -> Iterator[list[Sample]]:
    members: list[Sample] = []
    size_bytes = 0
    for sample in samples:
        taken = _taken_bytes(sample)
        if members and size_bytes + taken > shard_bytes:
            yield members
            members, size_bytes = [], 0
        members.append(sample)
        size_bytes += taken
    if members:
        yield members


def _taken_bytes(sample: Sample) -> int:
    """What a sample takes in a tar: three files, each with a head, filled up to whole blocks."""
    sizes = (sample.size_bytes, len(sample.text.encode()), len(_json(sample)))
    return sum(_BLOCK_BYTES + -(-size // _BLOCK_BYTES) * _BLOCK_BYTES for size in sizes)


def _json(sample: Sample) -> bytes:
    return json.dumps({"kind": sample.kind, **sample.facts()}, ensure_ascii=False, sort_keys=True).encode()


def _write(path: Path, samples: list[Sample], clip: Artifact) -> None:
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            with clip.local(sample.key) as file, file.open("rb") as opened:
                tar.addfile(_member(f"{sample.id}{sample.suffix}", sample.size_bytes), opened)
            for suffix, data in ((".txt", sample.text.encode()), (".json", _json(sample))):
                tar.addfile(_member(sample.id + suffix, len(data)), io.BytesIO(data))


def _member(name: str, size_bytes: int) -> tarfile.TarInfo:
    """A file's head, which says nothing of this machine (TarInfo's own defaults: no time, no owner, mode 644)."""
    member = tarfile.TarInfo(name)
    member.size = size_bytes
    return member
