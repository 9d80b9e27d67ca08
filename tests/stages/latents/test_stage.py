"""Kept clips and accepted captions become packs and their index."""

from __future__ import annotations

import itertools
import signal
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import T5EncoderModel

from bricks_core.errors import DataError
from bricks_core.models.text_encoder import UMT5, HashedWords
from bricks_core.models.vae import PatchDct, SdVae, WanVae
from bricks_core.progress import Progress
from bricks_core.spec.caption import Caption, CaptionSpec
from bricks_core.spec.clip import Clip, ClipSpec, Image
from bricks_core.spec.items import ItemKey, recipe
from bricks_core.spec.latents import CodecSpec, Latent, LatentsSpec, TextSpec
from bricks_core.spec.manifest import Manifest, content_id
from bricks_core.spec.score import Score, ScoreSpec
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Strict
from bricks_core.stages.latents import stage
from bricks_core.stages.latents.packing import RECORDS_AT_ONCE
from bricks_core.storage.artifacts import Artifact, open_artifact, problems, reopen
from bricks_core.storage.places import open_store
from bricks_core.storage.shards import Packs, one_encoder
from bricks_core.storage.store import Store
from bricks_core.storage.work import Joined, Work
from bricks_core.video.read import read_rgb
from bricks_core.video.resize import fit
from bricks_core.video.write import jpeg, write_mp4
from tests.s3_server import BUCKET, S3Server
from tests.stages.latents.apart import encode_apart

SPEC = LatentsSpec(resolutions=["48x80", "24x40"], codec=CodecSpec(chunk_frames=8))
SMALL_PACKS = SPEC.model_copy(update={"pack_bytes": 1 << 16})


def moving_square(num_frames: int, height: int, width: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A square that crosses a shaded ground. uint8 (num_frames, height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    ground = np.stack([80 + 60 * y / height, 90 + 40 * x / width, 100 + 0 * x], axis=-1)
    frames = np.repeat(ground[None], num_frames, axis=0)
    side = height // 3
    for index in range(num_frames):
        left = round((width - side) * index / num_frames)
        frames[index, height // 3 : height // 3 + side, left : left + side] = colour
    return frames.astype(np.uint8)


@dataclass
class World:
    """Finished clip, score and caption artifacts in a real store, to encode from."""

    folder: Path
    store: Store
    digest: str = "0" * 32
    clips: dict[str, Clip] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)
    items: list[ItemKey] = field(default_factory=list)

    def add(
        self,
        name: str,
        num_frames: int = 12,
        size: tuple[int, int] = (96, 160),
        *,
        colour: tuple[int, int, int] = (200, 40, 30),
        kept: bool = True,
        split: str = "train",
        status: str = "ok",
        image_status: str = "ok",
        text: str = "",
    ) -> Clip:
        """A clip of one square, its middle frame, and what the stages before made of them."""
        identity, video = content_id(name), content_id("video", name)
        frames = moving_square(num_frames, *size, colour)
        work = self.work("clip", ClipSpec())
        file, picture = self.folder / f"{identity}.mp4", self.folder / f"{identity}.jpg"
        write_mp4(file, frames, 12.5)
        picture.write_bytes(jpeg(frames[num_frames // 2]))
        made = recipe("clip", source=name, num_frames=num_frames, size=size)
        files = work.items.put_file(made.key, file, ".mp4"), work.items.put_file(made.key, picture, ".jpg")
        work.items.put(made, {}, files)
        facts = {"video_id": video, "height_px": size[0], "width_px": size[1]}
        facts |= {"source_sha256": "0" * 64, "item": "/".join(made.key)}
        span = {"first_frame": 0, "end_frame": num_frames, "num_frames": num_frames, "fps": 12.5}
        clip = Clip(id=identity, **facts, **span, **files[0].model_dump())
        image_id = content_id("image", name)
        image = Image(id=image_id, clip_id=identity, frame=num_frames // 2, **facts, **files[1].model_dump())
        self.items.append(made.key)
        self.clips[identity], self.images[identity] = clip, image
        self.scores.append(score(identity, video, kept, split))
        for row, state, words in (
            (clip, status, text or f"The {name} square moves."),
            (image, image_status, text or f"A {name} square."),
        ):
            self.captions.append(
                Caption(
                    id=row.id,
                    clip_id=identity,
                    kind="video" if row is clip else "image",
                    status=state,
                    text=words if state == "ok" else "",
                    num_words=len(words.split()),
                    by="measured",
                )
            )
        return clip

    def caption(self, name: str, text: str) -> None:
        """Give a clip another caption."""
        place = next(place for place, row in enumerate(self.captions) if row.id == content_id(name))
        changes = {"text": text, "num_words": len(text.split())}
        self.captions[place] = self.captions[place].model_copy(update=changes)

    def rename(self) -> None:
        """Give every film and clip another id, as if the films had moved to another folder."""
        for clip, image in zip(self.clips.values(), self.images.values(), strict=True):
            for rows in (self.scores, self.captions):
                for place, row in enumerate(rows):
                    new = {"id": f"new-{row.id}"} | ({"clip_id": f"new-{clip.id}"} if hasattr(row, "clip_id") else {})
                    if row.id in (clip.id, image.id):
                        rows[place] = row.model_copy(update=new)
            renamed = {"id": f"new-{clip.id}", "video_id": "another"}
            self.clips[clip.id] = clip.model_copy(update=renamed)
            renamed = {"id": f"new-{image.id}", "clip_id": f"new-{clip.id}", "video_id": "another"}
            self.images[clip.id] = image.model_copy(update=renamed)

    def work(self, name: str, spec: Strict, inputs: dict[str, Artifact] | None = None, **settings) -> Work:
        return Work(self.store, STAGES[name], spec, self.digest, {}, inputs or {}, Progress(name), **settings)

    def finish_inputs(self) -> dict[str, Artifact]:
        """Commit the stages before, under a digest of their own every time."""

        def by_id(rows):
            return sorted(rows, key=lambda row: row.id)

        self.digest = f"{int(self.digest, 16) + 1:032x}"
        tables = {"shots": [], "clips": by_id(self.clips.values()), "images": by_id(self.images.values())}
        cut = self.work("clip", ClipSpec())
        cut.items.load(self.items)
        cut.commit(Joined(tables, self.items))
        self.work("score", ScoreSpec()).commit(Joined({"scores": by_id(self.scores)}))
        self.work("caption", CaptionSpec()).commit(Joined({"captions": by_id(self.captions)}))
        return {name: open_artifact(self.store, name, self.digest) for name in ("clip", "score", "caption")}

    def encode(self, spec: LatentsSpec = SPEC, num_shards: int = 1) -> Manifest:
        """Run the stage over all shards and commit it."""
        inputs = self.finish_inputs()
        for shard in range(num_shards):
            stage.run(spec, self.work("latents", spec, inputs, shard=shard, num_shards=num_shards))
        work = self.work("latents", spec, inputs)
        assert work.pending(stage.tasks(spec, work)) == []
        return work.commit(stage.join(spec, work))

    def rows(self) -> list[Latent]:
        return list(open_artifact(self.store, "latents", self.digest).rows("latents", Latent))

    def packs(self) -> Packs:
        return Packs(lambda key: Path(self.store.uri) / key)

    def stored_packs(self) -> dict[str, str]:
        return {entry.key: entry.etag for entry in self.store.list("items/pack/")}

    def recorded(self) -> dict[ItemKey, str]:
        """Records of latents and texts that are in the store."""
        entries = (entry for kind in ("latent", "text") for entry in self.store.list(f"items/{kind}/"))
        return {ItemKey(entry.key.split("/")[1], Path(entry.key).stem): entry.etag for entry in entries}


def score(identity: str, video: str, kept: bool, split: str) -> Score:
    numbers = {name: 1 for name, each in Score.model_fields.items() if each.annotation in (int, float)}
    state = {"state": "kept" if kept else "dropped", "reasons": [] if kept else ["too still"], "split": split}
    return Score(id=identity, video_id=video, perceptual_hash=["0" * 16] * 3, **numbers, **state)


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "files").mkdir()
    return World(tmp_path / "files", open_store(str(tmp_path / "store")))


@pytest.fixture
def another(tmp_path: Path) -> World:
    """Another one, in a store of its own."""
    (tmp_path / "again").mkdir()
    return World(tmp_path / "again", open_store(str(tmp_path / "another")))


@dataclass
class Encoded:
    """What went through the encoders."""

    num_frames: int = 0
    texts: list[str] = field(default_factory=list)

    def taken(self) -> Encoded:
        """What did so since it was asked last."""
        taken = Encoded(self.num_frames, sorted(self.texts))
        self.num_frames, self.texts = 0, []
        return taken


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Encoded:
    """Counts what the built-in encoders are given."""
    found, pixels, words = Encoded(), PatchDct.encode, HashedWords.encode

    def encode(codec, frames):
        found.num_frames += len(frames)
        return pixels(codec, frames)

    def encode_words(encoder, texts):
        found.texts += texts
        return words(encoder, texts)

    monkeypatch.setattr(PatchDct, "encode", encode)
    monkeypatch.setattr(HashedWords, "encode", encode_words)
    return found


def latents_of(spec: LatentsSpec, work: Work) -> list[ItemKey]:
    return [key for task in stage.tasks(spec, work) for key in task.keys if key.kind == "latent"]


def psnr(pixels: torch.Tensor, frames: np.ndarray) -> float:
    original = torch.from_numpy(frames).permute(0, 3, 1, 2) / 127.5 - 1
    return float(10 * torch.log10(4 / (pixels.clamp(-1, 1) - original).square().mean()))


def test_all_frames_of_a_clip_are_encoded_at_every_resolution(world):
    clip = world.add("red", num_frames=21)
    world.encode()
    rows = [row for row in world.rows() if row.kind == "video"]
    assert sorted((row.resolution, row.num_frames, row.latent_height, row.latent_width) for row in rows) == [
        ("24x40", 21, 3, 5),
        ("48x80", 21, 6, 10),
    ]
    with open_artifact(world.store, "clip", world.digest).local(clip.key) as file:
        decoded = read_rgb(file)
    for row in rows:
        frames = fit(decoded, row.height_px, row.width_px)
        latents = world.packs().window(row, 0, row.num_frames)
        np.testing.assert_allclose(latents, PatchDct().encode(frames).half().numpy(), atol=2e-3)
        assert (row.clip_id, row.video_id, row.fps) == (clip.id, clip.video_id, 12.5)


def test_decoded_latents_show_the_clip_frame_by_frame(world):
    world.add("red", num_frames=21)
    world.encode(LatentsSpec(resolutions=["96x160"], codec=CodecSpec(chunk_frames=8)))
    (row,) = (row for row in world.rows() if row.kind == "video")
    pixels = PatchDct().decode(torch.from_numpy(world.packs().window(row, 0, 21)))
    frames = moving_square(21, 96, 160, (200, 40, 30))
    assert psnr(pixels, frames) > 22
    # Any other frame is further away: nothing was shifted between the file and the pack.
    for index in (0, 7, 8, 20):
        near = [psnr(pixels[index : index + 1], frames[other : other + 1]) for other in range(21)]
        assert int(np.argmax(near)) == index


def test_an_image_is_a_clip_of_one_frame_with_its_own_caption(world):
    world.add("red")
    world.encode()
    images = [row for row in world.rows() if row.kind == "image"]
    assert {(row.num_frames, row.caption, row.fps) for row in images} == {(1, "A red square.", 120.0)}
    assert len({row.id for row in world.rows()}) == 4
    world.packs().window(images[0], 0, 1)


def test_images_can_be_left_out(world):
    world.add("red")
    world.encode(SPEC.model_copy(update={"images": False}))
    assert {row.kind for row in world.rows()} == {"video"}


def test_only_kept_clips_with_accepted_captions_go_on(world):
    world.add("red")
    world.add("dropped", kept=False)
    world.add("refused", status="rejected", image_status="failed")
    only_image = world.add("still", status="no_movement")
    only_clip = world.add("blurred", image_status="not_enough_information")
    manifest = world.encode(LatentsSpec(resolutions=["24x40"]))
    found = {(row.clip_id, row.kind) for row in world.rows()}
    red = content_id("red")
    assert found == {(red, "video"), (red, "image"), (only_image.id, "image"), (only_clip.id, "video")}
    assert manifest.counts["clips of 24x40, train"] == 2
    assert manifest.counts["images of 24x40, train"] == 2
    assert manifest.counts["frames"] == 2 * 12 + 2


def test_a_clip_too_small_for_a_resolution_is_counted_not_enlarged(world):
    world.add("red")
    world.add("small", size=(32, 64))
    manifest = world.encode()
    small = content_id("small")
    assert {row.resolution for row in world.rows() if row.clip_id == small} == {"24x40"}
    assert manifest.counts["too small for 48x80"] == 2  # the clip and its image


def test_features_of_a_caption_are_stored_at_their_length_and_once(world):
    world.add("red", text="Bricks fall on blue ground.")
    world.add("blue", text="Bricks fall on blue ground.")
    world.add("green", text="A long caption about a small figure that walks to the left.")
    world.encode(LatentsSpec(resolutions=["24x40"]))
    rows = {row.clip_id: row for row in world.rows() if row.kind == "video"}
    red, blue, green = (rows[content_id(name)] for name in ("red", "blue", "green"))
    assert red.text_offset_bytes == blue.text_offset_bytes
    assert (red.num_tokens, green.num_tokens) == (6, 13)
    expected = HashedWords().encode([red.caption])[0]
    np.testing.assert_array_equal(world.packs().text(blue), expected.astype(np.float16))


def content(world: World) -> list[tuple]:
    """All that must be the same whoever did the work: rows but for the places in packs, and what lies there."""
    packs, places = world.packs(), {name for name in Latent.model_fields if "offset" in name or name.endswith("pack")}
    return [
        (
            row.model_dump(exclude=places),
            packs.window(row, 0, row.num_frames).tobytes(),
            packs.text(row).tobytes(),
            packs.empty_text(row).tobytes(),
        )
        for row in world.rows()
    ]


def packs_of(world: World) -> set[str]:
    """Packs that the index leads to."""
    return {pack for row in world.rows() for pack in (row.pack, row.text_pack, row.empty_text_pack)}


def many(world: World) -> World:
    for index in range(5):
        world.add(f"number {index}", num_frames=40 + index, split="held_out" if index == 2 else "train")
    return world


def test_shards_leave_the_same_latents_as_one_process(world, another):
    one, sharded = many(world).encode(SMALL_PACKS), many(another).encode(SMALL_PACKS, num_shards=3)
    assert content(world) == content(another)
    assert one.read_as == sharded.read_as
    assert one.counts == sharded.counts
    assert len({row.pack for row in world.rows()}) > 4


def test_how_large_packs_are_changes_nothing_but_packs(world, another):
    small, large = many(world).encode(SMALL_PACKS), many(another).encode()
    assert content(world) == content(another)
    assert small.read_as == large.read_as
    assert small.counts == large.counts
    # Clips and images at two sizes, and texts.
    assert packs_of(another) == another.stored_packs().keys()
    assert len(packs_of(another)) == 5 < len(packs_of(world))


def test_the_same_work_makes_the_same_packs(world, another):
    many(world).encode(SMALL_PACKS)
    many(another).encode(SMALL_PACKS)
    assert world.stored_packs().keys() == another.stored_packs().keys()
    assert world.rows() == another.rows()


def test_the_index_is_sorted_by_id_and_of_one_encoder(world):
    for index in range(4):
        world.add(f"number {index}")
    world.encode()
    rows = world.rows()
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert one_encoder(rows) == (PatchDct.id, HashedWords().id)


def test_what_is_done_is_not_encoded_again(world, encoded):
    inputs = many(world).finish_inputs()
    stage.run(SMALL_PACKS, world.work("latents", SMALL_PACKS, inputs, shard=0, num_shards=2))
    before, first = world.stored_packs(), encoded.taken()
    world.encode(SMALL_PACKS)
    assert 0 < len(before) < len(world.stored_packs())
    assert before.items() <= world.stored_packs().items()
    second = encoded.taken()
    assert first.num_frames + second.num_frames == 2 * sum(41 + index for index in range(5))
    assert sorted(first.texts + second.texts) == sorted({row.caption for row in world.rows()} | {""})
    world.encode(SMALL_PACKS)
    assert encoded.taken() == Encoded()


# ------------------------------------------------------------------------------------------------ what a change costs


def test_a_clip_more_is_encoded_alone(world, encoded):
    many(world).encode()
    before, rows = world.stored_packs(), {row.id: row for row in world.rows()}
    encoded.taken()
    world.add("green", num_frames=20)
    world.encode()
    # The clip and its image at both sizes, and their captions.
    assert encoded.taken() == Encoded(2 * 21, ["A green square.", "The green square moves."])
    after = {row.id: row for row in world.rows()}
    assert len(after) == len(rows) + 4
    assert {name: after[name] for name in rows} == rows
    assert before.items() <= world.stored_packs().items()


def test_a_clip_that_is_gone_and_comes_back_costs_nothing(world, encoded):
    before = many(world).encode().read_as
    score = world.scores.pop()
    assert world.encode().read_as != before
    world.scores.append(score)
    encoded.taken()
    assert world.encode().read_as == before
    assert encoded.taken() == Encoded()


def test_an_edited_caption_encodes_one_text_and_no_clip(world, encoded):
    before = many(world).encode().read_as
    packs = {row.pack for row in world.rows()}
    encoded.taken()
    world.caption("number 3", "A blue car stops.")
    assert world.encode().read_as != before
    assert encoded.taken() == Encoded(0, ["A blue car stops."])
    assert {row.pack for row in world.rows()} == packs
    row = next(row for row in world.rows() if row.caption == "A blue car stops.")
    assert row.clip_id == content_id("number 3")
    expected = HashedWords().encode([row.caption])[0]
    np.testing.assert_array_equal(world.packs().text(row), expected.astype(np.float16))


def test_another_side_of_the_split_makes_no_pack_and_another_training(world, encoded):
    before = many(world).encode()
    packs = world.stored_packs()
    world.scores[0] = world.scores[0].model_copy(update={"split": "held_out"})
    encoded.taken()
    after = world.encode()
    assert encoded.taken() == Encoded()
    assert world.stored_packs() == packs
    assert {row.split for row in world.rows() if row.clip_id == world.scores[0].id} == {"held_out"}
    assert after.read_as != before.read_as


def test_other_names_of_films_and_clips_change_neither_packs_nor_what_training_reads(world, encoded):
    before, ids = many(world).encode(), [row.id for row in world.rows()]
    encoded.taken()
    world.rename()
    after = world.encode()
    assert encoded.taken() == Encoded()
    assert after.read_as == before.read_as
    assert [row.id for row in world.rows()] == ids
    assert {row.video_id for row in world.rows()} == {"another"}


def test_another_name_of_a_size_is_a_row_more_and_encodes_nothing(world, encoded):
    world.add("red", size=(144, 256))
    world.encode(LatentsSpec(resolutions=["144x256"]))
    encoded.taken()
    world.encode(LatentsSpec(resolutions=["144x256", "144p"]))
    assert encoded.taken() == Encoded()
    assert sorted((row.resolution, row.kind) for row in world.rows()) == [
        ("144p", "image"),
        ("144p", "video"),
        ("144x256", "image"),
        ("144x256", "video"),
    ]
    assert len({row.item for row in world.rows()}) == 2


def test_a_resolution_more_encodes_clips_at_that_one_and_no_text(world, encoded):
    many(world).encode(LatentsSpec(resolutions=["24x40"]))
    encoded.taken()
    world.encode(LatentsSpec(resolutions=["24x40", "48x80"]))
    assert encoded.taken() == Encoded(sum(41 + index for index in range(5)))


@pytest.mark.parametrize("what", ["codec", "text"])
def test_other_weights_in_the_same_folder_are_another_encoder(world, what):
    inputs = many(world).finish_inputs()
    keys = []
    for weights in ({}, {f"{what}.model": "1" * 64}, {f"{what}.model": "2" * 64}):
        work = world.work("latents", SPEC, inputs, fingerprints=weights)
        keys.append({key for task in stage.tasks(SPEC, work) for key in task.keys})
    changed = "latent" if what == "codec" else "text"
    for one, other in itertools.combinations(keys, 2):
        assert {key.kind for key in one ^ other} == {changed}
        assert {key.kind for key in one & other} == {"latent", "text"} - {changed}


def test_a_film_that_was_given_twice_is_encoded_once_and_never_trained_on_where_it_is_held_out(world, encoded):
    clip = world.add("red")
    twin = clip.model_copy(update={"id": "0" * 16, "video_id": "twin"})
    world.clips["twin"], world.images["twin"] = twin, world.images[clip.id].model_copy(update={"id": "1" * 16})
    world.scores.append(score(twin.id, "twin", True, "held_out"))
    world.captions.append(world.captions[0].model_copy(update={"id": twin.id, "clip_id": twin.id}))
    world.encode(LatentsSpec(resolutions=["24x40"], images=False))
    assert encoded.taken().num_frames == 12
    assert [row.split for row in world.rows()] == ["held_out"]


def test_a_damaged_pack_is_rebuilt_alone(world, encoded):
    many(world).encode(SMALL_PACKS)
    before, packs, rows = content(world), world.stored_packs(), world.rows()
    damaged = rows[0].pack
    lost = {row.item: row.num_frames for row in rows if row.pack == damaged}
    file = Path(world.store.uri) / damaged
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    encoded.taken()
    manifest = open_artifact(world.store, "latents", world.digest).manifest
    wrong = problems(world.store, manifest, items=True)
    assert [each.key for each in wrong] == [damaged]
    assert {key.key for key in reopen(world.store, "latents", world.digest, [damaged])} == lost.keys()
    world.encode(SMALL_PACKS)
    assert encoded.taken() == Encoded(sum(lost.values()))
    assert content(world) == before
    assert packs.keys() == world.stored_packs().keys()


def test_every_table_is_read_once(world, monkeypatch):
    many(world)
    inputs, asked = world.finish_inputs(), Counter()
    rows = Artifact.rows

    def counting(artifact, table, row):
        asked[table] += 1
        return rows(artifact, table, row)

    monkeypatch.setattr(Artifact, "rows", counting)
    work = world.work("latents", SMALL_PACKS, inputs)
    stage.run(SMALL_PACKS, work)
    assert asked == dict.fromkeys(("captions", "scores", "clips", "images"), 1)
    asked.clear()
    work.commit(stage.join(SMALL_PACKS, work))
    assert asked == dict.fromkeys(("captions", "scores", "clips", "images"), 1)


# ------------------------------------------------------------------------------------- at the same time, and killed


def counted(log: Path) -> tuple[int, int]:
    """Frames and texts that were encoded apart."""
    lines = Counter(log.read_text(encoding="utf-8").split())
    return lines["frame"], lines["text"]


ALL_FRAMES, ALL_TEXTS = 2 * sum(41 + index for index in range(5)), 11


def test_two_processes_that_come_to_the_same_work_encode_everything_once(world, another, tmp_path):
    many(world).finish_inputs()
    assert encode_apart(world.store.uri, SMALL_PACKS, [world.digest] * 2, log=tmp_path / "log") == [0, 0]
    assert counted(tmp_path / "log") == (ALL_FRAMES, ALL_TEXTS)
    assert list(world.store.list("claims/")) == []
    world.encode(SMALL_PACKS)
    many(another).encode(SMALL_PACKS)
    assert content(world) == content(another)


def test_two_runs_with_some_clips_in_common_encode_each_once_in_shards(world, tmp_path):
    many(world).finish_inputs()
    first = world.digest
    world.add("green", num_frames=20)
    world.captions, world.scores = world.captions[2:], world.scores[1:]
    world.finish_inputs()
    codes = encode_apart(world.store.uri, SMALL_PACKS, [first, world.digest], shards=2, log=tmp_path / "log")
    assert codes == [0] * 4
    assert counted(tmp_path / "log") == (ALL_FRAMES + 2 * 21, ALL_TEXTS + 2)


@pytest.mark.parametrize("kill_at", [1, 14])
def test_when_one_of_two_is_killed_the_other_does_the_rest(world, another, tmp_path, kill_at):
    many(world).finish_inputs()
    codes = encode_apart(world.store.uri, SMALL_PACKS, [world.digest] * 2, kill_at=kill_at, log=tmp_path / "log")
    assert codes[1] == 0
    assert len(world.recorded()) == 20 + ALL_TEXTS
    frames, texts = counted(tmp_path / "log")
    # At most the pack in hand was encoded twice.
    assert ALL_FRAMES <= frames <= ALL_FRAMES + 5 * 45
    assert ALL_TEXTS <= texts <= ALL_TEXTS + 1
    world.encode(SMALL_PACKS)
    many(another).encode(SMALL_PACKS)
    assert content(world) == content(another)


def test_two_runs_in_shards_over_s3_encode_each_once(tmp_path, monkeypatch):
    server = S3Server()
    server.start()
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        world = many(World(tmp_path, open_store(f"s3://{BUCKET}/shared")))
        world.finish_inputs()
        first = world.digest
        world.add("green", num_frames=20)
        world.finish_inputs()
        codes = encode_apart(
            world.store.uri,
            SMALL_PACKS,
            [first, world.digest],
            shards=2,
            log=tmp_path / "log",
            environment=server.environment,
        )
        assert codes == [0] * 4
        assert counted(tmp_path / "log") == (ALL_FRAMES + 2 * 21, ALL_TEXTS + 2)
        assert list(world.store.list("claims/")) == []
    finally:
        server.kill()


@pytest.mark.parametrize("kill_at", [1, 3, 7, 12, 20, 31])
def test_a_kill_loses_at_most_the_pack_in_hand(world, another, encoded, kill_at):
    many(world).finish_inputs()
    assert encode_apart(world.store.uri, SMALL_PACKS, [world.digest], kill_at=kill_at) == [-signal.SIGKILL]
    before = world.recorded()
    assert kill_at - 1 - RECORDS_AT_ONCE <= len(before) < kill_at
    world.encode(SMALL_PACKS)
    # What had a record was not encoded again.
    taken, frames = encoded.taken(), {row.item: row.num_frames for row in world.rows()}
    assert taken.num_frames == ALL_FRAMES - sum(frames[key.key] for key in before if key.kind == "latent")
    assert len(taken.texts) == ALL_TEXTS - sum(key.kind == "text" for key in before)
    assert before.items() <= world.recorded().items()
    many(another).encode(SMALL_PACKS)
    assert content(world) == content(another)


# ---------------------------------------------------------------------------------------------------------- encoders


def test_the_published_kinds_of_encoders_go_through_the_same_stage(
    world, tiny_vae: Callable[..., Path], tiny_t5: Callable[..., Path], tmp_path
):
    world.add("red", text="A red brick car drives to the left.")
    vae, t5 = tiny_vae(tmp_path / "tiny-vae"), tiny_t5(tmp_path / "tiny-t5")
    spec = LatentsSpec(
        resolutions=["24x40"],
        codec=CodecSpec(kind="sd-vae", model=str(vae), chunk_frames=5),
        text=TextSpec(kind="t5", model=str(t5)),
    )
    world.encode(spec)
    row = next(row for row in world.rows() if row.kind == "video")
    assert row.codec.startswith("sd-vae:tiny-vae:")
    assert row.text_encoder.startswith("t5:tiny-t5:")
    assert row.text_width == 32
    with open_artifact(world.store, "clip", world.digest).local(world.clips[row.clip_id].key) as file:
        frames = fit(read_rgb(file), 24, 40)
    expected = SdVae(str(vae)).encode(frames).numpy()
    np.testing.assert_allclose(world.packs().window(row, 0, 12), expected, atol=5e-3)
    assert world.packs().text(row).shape == (row.num_tokens, 32)


def test_a_codec_that_shrinks_time_is_given_every_clip_by_itself(world, tiny_wan: Callable[..., Path], tmp_path):
    colours = {"red": (200, 40, 30), "green": (40, 180, 60), "blue": (30, 40, 200)}
    for (name, colour), num_frames in zip(colours.items(), (12, 13, 3), strict=True):
        world.add(name, num_frames=num_frames, colour=colour)
    folder = tiny_wan(tmp_path / "tiny-wan")
    spec = LatentsSpec(
        resolutions=["32x48"],
        codec=CodecSpec(kind="wan-vae", model=str(folder), chunk_frames=2),
        text=TextSpec(kind="umt5", model=str(folder), max_tokens=512),
    )
    world.encode(spec)
    rows = world.rows()
    codec, encoder = WanVae(str(folder)), UMT5(str(folder), max_tokens=512)
    assert {(row.codec, row.text_encoder) for row in rows} == {(codec.id, encoder.id)}
    # The last frames that make no whole latent are left out.
    assert sorted((row.kind, row.num_frames, row.num_latents) for row in rows) == [
        *[("image", 1, 1)] * 3,
        ("video", 1, 1),
        ("video", 9, 3),
        ("video", 13, 4),
    ]
    for row in rows:
        assert (row.latent_channels, row.time_stride, row.latent_height, row.latent_width) == (16, 4, 4, 6)
        np.testing.assert_array_equal(world.packs().empty_text(row), encoder.encode([""])[0].astype(np.float16))
        if row.kind == "video":
            with open_artifact(world.store, "clip", world.digest).local(world.clips[row.clip_id].key) as file:
                frames = fit(read_rgb(file), 32, 48)
            expected = codec.encode(frames[: row.num_frames]).numpy()
            np.testing.assert_allclose(world.packs().window(row, 0, row.num_frames), expected, atol=5e-3)


def test_a_clip_with_other_frames_than_its_row_says_is_named_by_such_a_codec_too(world, tiny_wan, tmp_path):
    clip = world.add("red", num_frames=13)
    world.clips[clip.id] = clip.model_copy(update={"num_frames": 12})
    codec = CodecSpec(kind="wan-vae", model=str(tiny_wan(tmp_path / "tiny-wan")))
    with pytest.raises(DataError, match=f"Clip {clip.id} has 13 frames, its row says 12"):
        world.encode(LatentsSpec(resolutions=["32x48"], codec=codec, images=False))


def test_nothing_to_encode_is_said_with_its_reasons(world):
    world.add("dropped", kept=False)
    world.add("refused", status="rejected", image_status="failed")
    world.add("small", size=(32, 64))
    spec = LatentsSpec(resolutions=["96x160"])
    with pytest.raises(
        DataError,
        match=r"No clip is left to encode: 2 clips were kept by the filter, 2 captions were not accepted, .* 2 clips "
        r"and images that have both, 2 too small for 96x160\. Loosen score\.filter",
    ):
        stage.run(spec, world.work("latents", spec, world.finish_inputs()))


def test_a_clip_with_other_frames_than_its_row_says_is_named(world):
    clip = world.add("red", num_frames=12)
    world.clips[clip.id] = clip.model_copy(update={"num_frames": 11})
    with pytest.raises(DataError, match=f"Clip {clip.id} has 12 frames, its row says 11"):
        world.encode(SPEC.model_copy(update={"images": False}))
    assert not world.stored_packs()
    assert not list(world.store.list("items/latent/"))


def test_an_encoder_that_fails_leaves_no_record_no_pack_no_claim_and_no_thread(world, tiny_t5, tmp_path):
    for index in range(3):
        world.add(f"number {index}", num_frames=60)
    folder = tiny_t5(tmp_path / "loud")
    network = T5EncoderModel.from_pretrained(folder)
    with torch.no_grad():
        network.encoder.final_layer_norm.weight.fill_(60000.0)
    network.save_pretrained(folder)
    spec = SPEC.model_copy(update={"text": TextSpec(kind="t5", model=str(folder), dtype="float16")})
    work = world.work("latents", spec, world.finish_inputs())
    with pytest.raises(DataError, match="overflows on the caption"):
        stage.run(spec, work)
    assert list(world.store.list("items/text/")) == []
    assert list(world.store.list("claims/")) == []
    assert {row.objects[0].key for row in map(work.items.need, latents_of(spec, work))} == world.stored_packs().keys()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("decode")]


def test_memory_does_not_grow_with_the_number_of_clips(tmp_path):
    spec = LatentsSpec(resolutions=["96x160"], codec=CodecSpec(chunk_frames=8))

    def peak(name: str, num_clips: int) -> int:
        (tmp_path / name).mkdir()
        world = World(tmp_path / name, open_store(str(tmp_path / f"store-{name}")))
        for index in range(num_clips):
            world.add(f"number {index}", num_frames=30, text="A square moves.")
        work = world.work("latents", spec, world.finish_inputs())
        tracemalloc.start()
        try:
            stage.run(spec, work)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak("warm", 1)  # what is loaded once
    one_clip_bytes = 30 * 96 * 160 * 3
    assert peak("many", 12) < peak("few", 2) + one_clip_bytes
