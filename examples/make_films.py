"""Make generated brick films, for the quickstart and for tests.

    python examples/make_films.py OUT_DIR [--films 12] [--seed 1] [--scenes 8] [--height 180] [--look brick|plain]

leaves film_00.mp4, film_01.mp4, ... (H.264, 24 frames/s, every photo held for two frames) and beside each its truth,
film_00.json. The same arguments and library versions leave the same bytes. A film that exists whole is not made again.

Every film: a title card, scenes of eight kinds (drive, walk, build, jump, slide, launch, pan, talk) in daylight, at
sunset or at night, one scene too short to be a clip, one in which nothing moves, and an end card. Camera and exposure
shake a little from photo to photo; most scenes end in a hard cut, some in a fade or a dissolve.

With --look plain they are films of the world that examples/world was trained on: the same kinds of scenes, and nothing
else, with smooth things that move at 24 pictures a second.

The truth, in frames counted from 0, spans as [start, end):

    schema              "brickfilm/2"
    video               name of the mp4
    settings            what the film was made from: seed, index, num_scenes, height_px, fps, hold, odds and strengths
    look                brick or plain
    fps, width_px, height_px, num_frames
    cuts                [frame, ...]          first frame after every hard cut
    gradual             [{type, start, end}]  type: fade (half of it in the old scene, half in the new) or dissolve
                                              (the last photo of the old scene stays under the first of the new one)
    scenes              [{index, start, end,
      type              title, end, still or one of the eight kinds
      description       one sentence
      ground, light     colour of the ground; day, sunset, night or mist  (empty for cards)
      colours           colours of the actors, the first covers the most
      direction         of motion in the picture: left, right, up, down, none
      num_moving        things that move by themselves (0: only the camera or nothing)
      text              words shown                                       (cards only)
      picture_fps       new photos per second
      transition_in, transition_out}]         start, cut, fade, dissolve, end

Exit codes: 0 made, 64 wrong arguments, 73 the folder cannot be written.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from fractions import Fraction
from pathlib import Path
from typing import Any, NoReturn

import av
import numpy as np
from brickfilm.film import FilmSpec, frames
from brickfilm.looks import LOOKS

EXIT_USAGE, EXIT_CANNOT_WRITE = 64, 73
SCHEMA = "brickfilm/2"


def make_film(spec: FilmSpec, folder: Path) -> dict[str, Any] | None:
    """Write one film and its truth; None if both are already there, made from the same settings.

    Both are written aside and renamed, the truth last: a film with a truth is whole.
    """
    video = folder / f"film_{spec.index:02d}.mp4"
    told = video.with_suffix(".json")
    settings = dataclasses.asdict(spec)
    if video.exists() and told.exists() and _settings_of(told) == settings:
        return None
    told.unlink(missing_ok=True)
    width, height = spec.size_px
    head = {"schema": SCHEMA, "video": video.name, "settings": settings, "look": spec.look, "fps": spec.fps}
    truth: dict[str, Any] = {**head, "width_px": width, "height_px": height, "num_frames": 0}
    aside = folder / f".{video.stem}.part.mp4"
    try:
        encode(spec, aside, truth)
        aside.replace(video)
        draft = folder / f".{told.name}.part"
        draft.write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
        draft.replace(told)
    finally:
        aside.unlink(missing_ok=True)
    return truth


def _settings_of(told: Path) -> Any:
    try:
        return json.loads(told.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError):
        return None  # not a truth of ours: make the film anew


def encode(spec: FilmSpec, path: Path, truth: dict[str, Any]) -> None:
    """Draw and encode a film.

    One encoding thread, so that the bytes do not depend on the machine's cores; and no macroblock tree, with which they
    depend on what was in memory before, on CPUs with AVX-512 (bricks_core/video/write.py tells how). Without that tree
    x264 gives a still picture too little, unless all are quantised alike (qcomp).
    """
    tick = Fraction(1, spec.fps)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=spec.fps)
        stream.width, stream.height = spec.size_px
        stream.pix_fmt, stream.time_base, stream.thread_count = "yuv420p", tick, 1
        stream.codec_context.flags |= av.codec.context.Flags.bitexact
        stream.options = {"crf": "18", "preset": "veryfast", "g": str(5 * spec.fps), "x264-params": "mbtree=0:qcomp=1"}
        shown: np.ndarray | None = None
        frame: av.VideoFrame | None = None
        for i, picture in enumerate(frames(spec, truth)):
            if frame is None or picture is not shown:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="yuv420p")
                shown = picture
            frame.pts, frame.time_base = i, tick
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


class Arguments(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"make_films: {message}. See --help.", file=sys.stderr)
        raise SystemExit(EXIT_USAGE)


def parse(argv: list[str] | None) -> tuple[Path, list[FilmSpec]]:
    """The folder and the films asked for; a wrong argument ends with a sentence and exit code 64."""
    parser = Arguments(prog="make_films", description="Make generated brick films.")
    parser.add_argument("out_dir", type=Path, help="folder for the films; made if missing")
    parser.add_argument("--films", type=int, default=12, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="other numbers, other films (default %(default)s)")
    parser.add_argument("--scenes", type=int, default=8, help="moving scenes in a film (default %(default)s)")
    parser.add_argument("--height", type=int, default=180, help="pixels, even; the width follows at 16:9")
    parser.add_argument(
        "--photos", type=int, nargs=2, default=(24, 34), metavar=("MIN", "MAX"), help="photos in a scene, 12 a second"
    )
    parser.add_argument("--look", choices=sorted(LOOKS), default="brick", help="how it looks (default %(default)s)")
    given = parser.parse_args(argv)
    least, most = given.photos
    if not 1 <= given.films <= 100:
        parser.error(f"--films is {given.films}, but 1 to 100 can be made")
    if given.seed < 0:
        parser.error(f"--seed is {given.seed}, but a seed is 0 or more")
    if not 1 <= given.scenes <= 100:
        parser.error(f"--scenes is {given.scenes}, but a film has 1 to 100")
    if given.height % 2 or not 36 <= given.height <= 1080:
        parser.error(f"--height is {given.height}, but H.264 needs an even number, here from 36 to 1080")
    if not 16 <= least <= most <= 200:
        parser.error(f"--photos is {least} {most}, but 16 <= MIN <= MAX <= 200 must hold")
    settings = {"num_scenes": given.scenes, "height_px": given.height, "min_photos": least, "max_photos": most}
    make = FilmSpec.plain if given.look == "plain" else FilmSpec
    return given.out_dir, [make(given.seed, index, **settings) for index in range(given.films)]


def main(argv: list[str] | None = None) -> int:
    folder, specs = parse(argv)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for spec in specs:
            began = time.perf_counter()
            truth = make_film(spec, folder)
            name = folder / f"film_{spec.index:02d}.mp4"
            if truth is None:
                print(f"{name}: already made", flush=True)
                continue
            print(
                f"{name}: {truth['num_frames']} frames, {len(truth['scenes'])} scenes, {len(truth['cuts'])} cuts, "
                f"{len(truth['gradual'])} gradual, {name.stat().st_size // 1024} KiB, "
                f"{time.perf_counter() - began:.1f} s",
                flush=True,
            )
    except OSError as error:
        print(f"make_films: {folder} cannot be written ({error.strerror}); give another folder.", file=sys.stderr)
        return EXIT_CANNOT_WRITE
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
