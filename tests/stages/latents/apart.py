"""Encoding in a process of its own, that can be killed at a chosen moment, or share the work with others."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

from bricks_core.progress import Progress
from bricks_core.spec.latents import LatentsSpec
from bricks_core.spec.stages import STAGES
from bricks_core.storage.artifacts import open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.work import Work

# A server process imports torch once, and every process is forked from it.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["bricks_core.stages.latents.stage"])


def encode_apart(
    uri: str,
    spec: LatentsSpec,
    digests: list[str],
    *,
    shards: int = 1,
    kill_at: int = 0,
    log: Path | None = None,
    environment: dict[str, str] | None = None,
) -> list[int]:
    """Encode in processes that run at the same time. Returns their exit codes.

    `digests`: of the inputs, one for each process, or for all shards. `kill_at`: sends SIGKILL to the first one
    before its n-th record. `log`: is given a line for each picture and each text that is encoded.
    """
    started = []
    for digest in digests:
        for shard in range(shards):
            arguments = (
                uri,
                spec.model_dump_json(),
                digest,
                shard,
                shards,
                0 if started else kill_at,
                str(log or os.devnull),
                environment or {},
            )
            process = CONTEXT.Process(target=_encode, args=arguments)
            process.start()
            started.append(process)
    for process in started:
        process.join()
    return [process.exitcode or 0 for process in started]


def _encode(
    uri: str,
    spec_json: str,
    digest: str,
    shard: int,
    num_shards: int,
    kill_at: int,
    log: str,
    environment: dict[str, str],
) -> None:
    os.environ.update(environment)
    import torch

    from bricks_core.models.text_encoder import HashedWords
    from bricks_core.models.vae import PatchDct
    from bricks_core.stages.latents import stage

    torch.set_num_threads(1)
    spec, store = LatentsSpec.model_validate_json(spec_json), open_store(uri)
    inputs = {name: open_artifact(store, name, digest) for name in ("clip", "score", "caption")}
    work = Work(
        store, STAGES["latents"], spec, digest, {}, inputs, Progress("latents"), shard=shard, num_shards=num_shards
    )
    records = 0
    put, pixels, words = store.put, PatchDct.encode, HashedWords.encode

    def noted(line: str, num: int) -> None:
        # One write of a few bytes at the end of a file is whole, whoever else writes.
        with open(log, "ab", buffering=0) as file:
            file.write(f"{line}\n".encode() * num)

    def counting_put(key: str, data: bytes, **how: Any) -> bool:
        nonlocal records
        records += key.startswith(("items/latent/", "items/text/"))
        if records == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return put(key, data, **how)

    def encode(codec: PatchDct, frames: Any) -> Any:
        noted("frame", len(frames))
        return pixels(codec, frames)

    def encode_words(encoder: HashedWords, texts: list[str]) -> Any:
        noted("text", len(texts))
        return words(encoder, texts)

    if kill_at:
        store.put = counting_put  # type: ignore[method-assign, assignment]
    PatchDct.encode, HashedWords.encode = encode, encode_words  # type: ignore[method-assign]
    stage.run(spec, work)
