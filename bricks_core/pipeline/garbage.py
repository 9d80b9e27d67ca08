"""What no run reaches any more."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from bricks_core.pipeline.plan import Pointer
from bricks_core.storage.artifacts import MANIFEST
from bricks_core.storage.store import Store


@dataclass(frozen=True)
class Garbage:
    """Artifacts of a store that no run reaches, and what reached ones there are."""

    artifacts: dict[str, int]
    """Prefix to size in bytes."""
    num_reached: int
    num_swept: int = 0
    """Pieces that killed writers had left behind."""

    @property
    def size_bytes(self) -> int:
        return sum(self.artifacts.values())


def collect(store: Store, *, delete: bool = False) -> Garbage:
    """Find, and with `delete` remove, every artifact that neither a run's pointer nor its inputs lead to.

    Work under way is reached too: a run points to what it wants before it begins.
    """
    reached = set()
    for entry in store.list("runs/"):
        if not entry.key.endswith(".json"):
            continue
        try:
            pointer = Pointer.model_validate_json(store.get(entry.key))
        except ValidationError:
            continue  # a run file or a status, not a pointer
        reached.add(pointer.digest)
        reached.update(pointer.inputs.values())
    sizes: dict[str, int] = {}
    keys: dict[str, list[str]] = {}
    prefixes = set()
    for entry in store.list("artifacts/"):
        _, stage, digest, _ = entry.key.split("/", 3)
        prefix = f"artifacts/{stage}/{digest}/"
        prefixes.add(prefix)
        if digest not in reached:
            sizes[prefix] = sizes.get(prefix, 0) + entry.size_bytes
            if delete:
                keys.setdefault(prefix, []).append(entry.key)
    for prefix, inside in keys.items():
        # The manifest goes first: half a deletion must look like an unfinished stage, not like a broken one.
        store.delete([prefix + MANIFEST])
        store.delete(inside)
    return Garbage(sizes, len(prefixes) - len(sizes), store.sweep() if delete else 0)
