"""Kept clips and accepted captions become packs and their index."""

from __future__ import annotations

import threading
import tracemalloc
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
from bricks_core.spec.clip import Clip, ClipSpec, Image, Shot
from bricks_core.spec.latents import CodecSpec, Latent, LatentsSpec, TextSpec
from bricks_core.spec.manifest import Manifest, content_id
from bricks_core.spec.score import Score, ScoreSpec
from bricks_core.spec.stages import STAGES
from bricks_core.spec.strict import Strict
from bricks_core.stages.latents import stage
from bricks_core.storage.artifacts import Artifact, open_artifact
from bricks_core.storage.places import open_store
from bricks_core.storage.shards import Packs, one_encoder
from bricks_core.storage.store import Store
from bricks_core.storage.work import Work
from bricks_core.video.read import read_rgb
from bricks_core.video.resize import fit
from bricks_core.video.write import jpeg, write_mp4

SPEC = LatentsSpec(resolutions=["48x80", "24x40"], codec=CodecSpec(chunk_frames=8))
DIGEST = "e" * 32


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
    clips: dict[str, Clip] = field(default_factory=dict)
    images: dict[str, Image] = field(default_factory=dict)
    scores: list[Score] = field(default_factory=list)
    captions: list[Caption] = field(default_factory=list)
    _files: list = field(default_factory=list)

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
        facts = {"video_id": video, "height_px": size[0], "width_px": size[1]}
        stored = work.put_file(f"clips/{identity}.mp4", file)
        cut = {"first_frame": 0, "end_frame": num_frames, "num_frames": num_frames, "fps": 12.5}
        where = {"key": stored.key, "size_bytes": stored.size_bytes, "sha256": stored.sha256}
        clip = Clip(id=identity, **facts, **cut, **where)
        stored_picture = work.put_file(f"images/{identity}.jpg", picture)
        where = {"key": stored_picture.key, "size_bytes": stored_picture.size_bytes, "sha256": stored_picture.sha256}
        image = Image(id=content_id("image", name), clip_id=identity, frame=num_frames // 2, **facts, **where)
        self._files += [stored, stored_picture]
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

    def work(self, name: str, spec: Strict, inputs: dict[str, Artifact] | None = None, **settings) -> Work:
        return Work(self.store, STAGES[name], spec, DIGEST, {}, inputs or {}, Progress(name), **settings)

    def finish_inputs(self) -> dict[str, Artifact]:
        def by_id(rows):
            return sorted(rows, key=lambda row: row.id)

        shots = [
            Shot(id=clip.id, video_id=clip.video_id, first_frame=0, end_frame=clip.num_frames, state="clip")
            for clip in by_id(self.clips.values())
        ]
        tables = {"shots": shots, "clips": by_id(self.clips.values()), "images": by_id(self.images.values())}
        self.work("clip", ClipSpec()).commit(tables, objects=self._files)
        self.work("score", ScoreSpec()).commit({"scores": by_id(self.scores)})
        self.work("caption", CaptionSpec()).commit({"captions": by_id(self.captions)})
        return {name: open_artifact(self.store, name, DIGEST) for name in ("clip", "score", "caption")}

    def encode(self, spec: LatentsSpec = SPEC, num_shards: int = 1) -> Manifest:
        """Run the stage over all shards and commit it."""
        inputs = self.finish_inputs()
        for shard in range(num_shards):
            stage.run(spec, self.work("latents", spec, inputs, shard=shard, num_shards=num_shards))
        work = self.work("latents", spec, inputs)
        assert work.missing([item.id for item in stage.items(spec, work)]) == []
        joined = stage.join(spec, work)
        return work.commit(joined.tables, objects=joined.objects, counts=joined.counts)

    def rows(self) -> list[Latent]:
        return list(open_artifact(self.store, "latents", DIGEST).rows("latents", Latent))

    def packs(self) -> Packs:
        root = Path(self.store.uri) / "artifacts" / "latents" / DIGEST
        return Packs(lambda key: root / key)


def score(identity: str, video: str, kept: bool, split: str) -> Score:
    numbers = {name: 1 for name, each in Score.model_fields.items() if each.annotation in (int, float)}
    state = {"state": "kept" if kept else "dropped", "reasons": [] if kept else ["too still"], "split": split}
    return Score(id=identity, video_id=video, perceptual_hash=["0" * 16] * 3, **numbers, **state)


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "files").mkdir()
    return World(tmp_path / "files", open_store(str(tmp_path / "store")))


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
    with open_artifact(world.store, "clip", DIGEST).local(clip.key) as file:
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


def test_held_out_clips_have_packs_of_their_own(world):
    world.add("red")
    world.add("blue", split="held_out")
    world.encode()
    sides: dict[str, set[str]] = {}
    for row in world.rows():
        sides.setdefault(row.pack, set()).add(row.split)
    assert all(len(side) == 1 for side in sides.values())
    assert {row.split for row in world.rows() if row.clip_id == content_id("blue")} == {"held_out"}


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


def snapshot(world: World, manifest: Manifest):
    """All that must be the same whoever did the work."""
    return manifest.model_dump(exclude={"started_at", "finished_at", "host"}), world.rows()


def test_shards_leave_the_same_artifact_as_one_process(world, tmp_path):
    (tmp_path / "again").mkdir()
    sharded = World(tmp_path / "again", open_store(str(tmp_path / "sharded")))
    for each in (world, sharded):
        for index in range(5):
            each.add(f"number {index}", num_frames=15 + index, split="held_out" if index == 2 else "train")
    spec = SPEC.model_copy(update={"pack_bytes": 1 << 18})
    assert snapshot(world, world.encode(spec)) == snapshot(sharded, sharded.encode(spec, num_shards=3))
    assert len({row.pack for row in world.rows()}) > 5


def test_the_index_is_sorted_by_id_and_of_one_encoder(world):
    for index in range(4):
        world.add(f"number {index}")
    world.encode()
    rows = world.rows()
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert one_encoder(rows) == (PatchDct.id, HashedWords().id)


def test_a_pack_that_is_done_is_not_encoded_again(world):
    for index in range(4):
        world.add(f"number {index}")
    spec = SPEC.model_copy(update={"pack_bytes": 1 << 17})
    inputs = world.finish_inputs()
    stage.run(spec, world.work("latents", spec, inputs, shard=0, num_shards=2))
    prefix = f"artifacts/latents/{DIGEST}/packs/"
    before = {entry.key: entry.etag for entry in world.store.list(prefix)}
    world.encode(spec)
    after = {entry.key: entry.etag for entry in world.store.list(prefix)}
    assert 0 < len(before) < len(after)
    assert {key: after[key] for key in before} == before


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
    with open_artifact(world.store, "clip", DIGEST).local(world.clips[row.clip_id].key) as file:
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
            with open_artifact(world.store, "clip", DIGEST).local(world.clips[row.clip_id].key) as file:
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
        world.encode()
    assert not list(world.store.list(f"artifacts/latents/{DIGEST}/parts/{content_id('x')}"))


def test_an_encoder_that_fails_leaves_no_part_no_file_and_no_thread(world, tiny_t5, tmp_path):
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
    assert list(world.store.list(f"artifacts/latents/{DIGEST}/")) == []
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
