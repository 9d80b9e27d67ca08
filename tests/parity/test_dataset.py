"""Tables that we write, read by upstream's own loader; its buckets and its batches, beside ours."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from bricks_core.exchange.datasets.dataset import Sample
from bricks_core.exchange.datasets.open_sora import OUR_COLUMNS, THEIR_COLUMNS, row_of, write_csv
from bricks_core.video.buckets import ClipSize, resolution
from bricks_core.video.open_sora import BatchSampler, Buckets, frames_from
from bricks_core.video.read import read_rgb
from bricks_core.video.resize import open_sora_image, open_sora_video
from bricks_core.video.write import write_mp4

MIXED = {
    "144p": {1: (1.0, 3), 16: (1.0, 2)},
    "240p": {1: (0.6, 2), 8: (0.7, 3), 24: (0.5, 2)},
    "360p": {1: (0.5, 2), 16: (0.5, 1)},
}
STAGE_3 = {
    "240p": {1: (0.8, 200), 16: (0.5, 22), 32: (0.5, 10), 64: (0.5, 6), 128: (0.5, 3)},
    "512": {1: (0.5, 120), 16: (0.5, 9), 32: (0.5, 4), 64: (0.5, 2), 128: (0.8, 1)},
    "480p": {1: (0.4, 80), 16: (0.6, 6), 32: (0.6, 3), 64: (0.6, 1), 128: (0.0, None)},
}
NUM_FRAMES, INTERVAL = 5, 3
CLIP = Sample(
    id="clip",
    kind="video",
    key="clips/clip.mp4",
    size_bytes=0,
    sha256="",
    text='A red brick car, "fast", drives to the left.\nIt stops.',
    caption_by="given",
    num_frames=NUM_FRAMES * INTERVAL + 1,  # so that its sample can begin at frame 0 alone
    height_px=90,
    width_px=160,
    fps=12.0,
    split="train",
    clip_id="clip",
    video_id="film",
    video_name="film.mp4",
    first_frame=0,
    end_frame=NUM_FRAMES * INTERVAL + 1,
    licence="CC0-1.0",
    credit="",
    consent="unknown",
)
IMAGE = replace(CLIP, id="image", kind="image", key="images/image.png", num_frames=1, fps=0.0, text="One brick.")


def write_table(folder, samples):
    table = folder / "meta.csv"
    write_csv(table, THEIR_COLUMNS + OUR_COLUMNS, (row_of(sample, folder) for sample in samples))
    return table


def test_upstream_s_loader_reads_our_table_and_makes_of_each_row_what_we_make(upstream, tmp_path):
    rng = np.random.default_rng(5)
    for name in ("clips", "images"):
        (tmp_path / name).mkdir()
    coarse = rng.integers(0, 255, (CLIP.num_frames, 9, 16, 3), np.uint8)
    write_mp4(tmp_path / "clips" / "clip.mp4", coarse.repeat(10, axis=1).repeat(10, axis=2), fps=12)
    picture = rng.integers(0, 255, (90, 160, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "images" / "image.png")
    table = write_table(tmp_path, [CLIP, IMAGE])
    dataset = upstream("opensora.datasets.datasets").VariableVideoTextDataset(
        data_path=str(table), frame_interval=INTERVAL, transform_name="resize_crop"
    )
    assert len(dataset) == 2
    assert [tuple(map(int, dataset.get_data_info(row))) for row in range(2)] == [
        (CLIP.num_frames, 90, 160),
        (1, 90, 160),
    ]

    size = resolution("64x96").size_for(90, 160)
    of_clip = dataset.getitem(f"0-{NUM_FRAMES}-64-96")
    frames = frames_from(0, CLIP.num_frames, NUM_FRAMES, INTERVAL)
    ours = open_sora_video(read_rgb(tmp_path / "clips" / "clip.mp4", frames), size.height_px, size.width_px)
    assert of_clip["text"] == CLIP.text
    # Two decoders' ways from YUV to RGB may differ by a step or two of 255.
    np.testing.assert_allclose(of_clip["video"].numpy(), ours.transpose(3, 0, 1, 2), atol=6 / 255)
    assert np.abs(of_clip["video"].numpy() - ours.transpose(3, 0, 1, 2)).mean() <= 2 / 255

    of_image = dataset.getitem("1-1-64-96")
    assert of_image["text"] == IMAGE.text
    assert of_image["fps"] == 120
    ours = open_sora_image(picture, size.height_px, size.width_px)
    np.testing.assert_allclose(of_image["video"].numpy()[:, 0], ours.transpose(2, 0, 1), atol=0.02)


@pytest.mark.parametrize("config", [MIXED, STAGE_3])
@pytest.mark.parametrize("frame_interval", [1, 3])
def test_upstream_gives_every_clip_the_bucket_that_we_say(upstream, config, frame_interval):
    theirs = upstream("opensora.datasets.bucket").Bucket(config)
    ours = Buckets(config, frame_interval)
    assert theirs.num_bucket == ours.num_buckets
    rng = random.Random(frame_interval)
    for _ in range(500):
        clip = ClipSize(rng.choice([1, *range(8, 400)]), rng.randrange(90, 1100), rng.randrange(90, 2000))
        seed = rng.randrange(10**6)
        given = theirs.get_bucket_id(*clip, frame_interval, seed)
        found = ours.of(clip, seed)
        assert given == (found and (found.resolution, found.num_frames, found.size.aspect))
        assert found is None or tuple(theirs.get_thw(given)) == (found.num_frames, *found.size[1:])


@pytest.mark.parametrize(("num_ranks", "drop_last"), [(1, True), (2, True), (3, False)])
def test_upstream_s_ranks_get_the_batches_that_we_say_from_any_step_on(upstream, tmp_path, num_ranks, drop_last):
    rng = random.Random(num_ranks)
    clips = [
        ClipSize(rng.choice([1, 9, 17, 25, 40]), rng.randrange(140, 900), rng.randrange(140, 900)) for _ in range(80)
    ]
    rows = [replace(CLIP, num_frames=clip[0], height_px=clip[1], width_px=clip[2]) for clip in clips]
    dataset = upstream("opensora.datasets.datasets").VariableVideoTextDataset(
        data_path=str(write_table(tmp_path, rows)), transform_name="resize_crop"
    )
    for rank in range(num_ranks):
        theirs = upstream("opensora.datasets.sampler").VariableVideoBatchSampler(
            dataset, MIXED, num_replicas=num_ranks, rank=rank, shuffle=True, seed=7, drop_last=drop_last
        )
        ours = BatchSampler(clips, Buckets(MIXED), seed=7, rank=rank, num_ranks=num_ranks, drop_last=drop_last)
        for sampler in (theirs, ours):
            sampler.set_epoch(1)
        assert list(theirs) == list(ours)
        for sampler in (theirs, ours):
            sampler.load_state_dict(ours.state_dict(5) | {"epoch": 1})
        assert list(theirs) == list(ours)
