"""Which items of earlier versions count as done for a run: those of the versions that it began its stages with."""

from __future__ import annotations

from collections.abc import Mapping

from bricks_core.errors import CorruptManifest
from bricks_core.pipeline.points import read_pointer
from bricks_core.spec.items import KINDS
from bricks_core.spec.manifest import Manifest, versions_of
from bricks_core.spec.stages import STAGES, Stage
from bricks_core.storage.artifacts import find_manifest
from bricks_core.storage.began import keep, keep_only_now, read_began
from bricks_core.storage.store import Store


def earlier_versions(store: Store, run: str, stage: Stage) -> dict[str, list[int]]:
    """The earlier versions of a stage's kinds that count as done for a run, by kind: those that it began the stage
    with, and has finished it with."""
    now = {kind: KINDS[kind].version for kind in stage.kinds}
    if set(now.values()) == {1}:
        return {}
    found = _versions(store, run, stage)
    earlier = {kind: [each for each in found[kind] if each < version] for kind, version in now.items()}
    return {kind: versions for kind, versions in earlier.items() if versions}


def begin(store: Store, run: str, stage: Stage, *, renew: bool = False) -> dict[str, list[int]]:
    """Keep that a run is at a stage with the versions of now; the earlier ones that count as done for it. `renew`: none
    does any more."""
    if renew:
        keep_only_now(store, run, stage)
        return {}
    earlier = earlier_versions(store, run, stage)
    keep(store, run, stage, {kind: [*earlier.get(kind, ()), KINDS[kind].version] for kind in stage.kinds})
    return earlier


def ended(store: Store, run: str, manifest: Manifest) -> None:
    """Keep which versions a finished stage is of, where the run had begun it with others."""
    stage = STAGES[manifest.stage]
    if stage.name in read_began(store, run).stages:
        keep(store, run, stage, _versions_in(manifest, stage))


def in_words(earlier: Mapping[str, list[int]]) -> list[str]:
    """What a stage that is to go on takes as done; nothing to tell where that is all of the versions of now."""
    raised = [f"{kind} {', '.join(map(str, each))} → {KINDS[kind].version}" for kind, each in earlier.items()]
    kept = "since it was begun: what is there stays, --renew makes it anew"
    return [f"{', '.join(raised)} {kept}"] if raised else []


def mixed_in_words(manifest: Manifest) -> list[str]:
    """Such as 'clips cut by version 1 (40) and 2 (12)', for each kind with items of an earlier version."""
    told = []
    for kind, versions in manifest.item_versions.items():
        *most, last = (f"{version} ({num:,})" for version, num in versions.items())
        what = KINDS[kind].what if kind in KINDS else kind
        told.append(f"{what} by version {' and '.join(filter(None, [', '.join(most), last]))}")
    return told


def _versions(store: Store, run: str, stage: Stage) -> dict[str, list[int]]:
    # Whoever writes this status has begun the stage: so it is looked for before the record, which others may write now.
    is_begun = store.head(f"runs/{run}/status/{stage.name}.json") is not None
    kept = read_began(store, run).stages.get(stage.name)
    found = [kept.kinds] if kept is not None else []
    if kept is None and is_begun:  # by a version of Bricks that kept no record: then all were at their first version
        found = [{kind: [1] for kind in stage.kinds}]
    pointer = read_pointer(store, run, stage.name)
    if pointer is not None:
        try:
            manifest = find_manifest(store, stage.name, pointer.digest)
        except CorruptManifest:
            manifest = None
        found += [_versions_in(manifest, stage)] if manifest is not None else []
    return {kind: sorted({each for kinds in found for each in kinds.get(kind, ())}) for kind in stage.kinds}


def _versions_in(manifest: Manifest, stage: Stage) -> dict[str, list[int]]:
    return {kind: versions_of(manifest, kind) for kind in stage.kinds}
