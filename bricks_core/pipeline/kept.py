"""A run keeps what it has finished, whichever version of Bricks looks at it later.

A stage's version is in its cache key, so a version that raises it finds nothing of before. What the run points to is
its answer all the same, where the key is the very one that the version which made it would ask for now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from bricks_core.errors import CorruptManifest
from bricks_core.pipeline.resolve import Address, Find, Found, Resolver, pending_again
from bricks_core.spec.run import BrickRun
from bricks_core.spec.stages import Stage, until
from bricks_core.storage.artifacts import find_manifest
from bricks_core.storage.store import Store


class KeptResolver(Resolver):
    """Looks a run's stages up in the versions that the run began with, or that they were made by."""

    def __init__(
        self,
        run: BrickRun,
        store: Store,
        versions: Mapping[str, int],
        *,
        frozen: bool = False,
        find: Find = find_manifest,
    ):
        """`versions`: of stages, by name; of those left out, this code's."""
        super().__init__(run, store, frozen=frozen, find=find)
        self._versions = versions

    def address(self, stage: Stage, found: Found, *, kept: bool = True) -> Address:
        address = super().address(replace(stage, version=self._versions.get(stage.name, stage.version)), found)
        for pointers in self._pointers:
            pointer = pointers.get(stage.name)
            if pointer is None or pointer.cache_key == address.cache_key:
                continue
            try:
                manifest = self._find(self._store, stage.name, pointer.digest)
            except CorruptManifest:
                continue
            if manifest is None or manifest.stage_version == address.stage.version:
                continue
            before = super().address(replace(stage, version=manifest.stage_version), found)
            if before.cache_key == pointer.cache_key:
                return replace(before, digest=pointer.digest)
        return address


def finished(run: BrickRun, store: Store, versions: Mapping[str, int], find: Find = find_manifest) -> Found:
    """As `resolve.finished`, for a run that began with these versions."""
    resolver, found = KeptResolver(run, store, versions, frozen=True, find=find), Found()
    for stage in until(None):
        if getattr(run.spec, stage.name) is None:
            break
        if stage.name == "ingest" and not resolver.has_looked_at(stage, run.spec.ingest):
            break
        address = resolver.address(stage, found)
        try:
            manifest = resolver.find(address)
        except CorruptManifest:  # the stage's own pods mend it, when they are run again
            break
        if manifest is None or pending_again(run, manifest):
            break
        found[stage.name] = address, manifest
    return found
