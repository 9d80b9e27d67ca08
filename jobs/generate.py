"""Make films from prompts: python -m jobs.generate MODEL --prompt TEXT (also: bricks generate)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

from bricks_core.errors import UsageError
from jobs.entry_point import DEFAULT_STORE, StoreFlag, VerboseFlag, serve

Wish = typer.Option


def generate(
    model: Annotated[
        str,
        typer.Argument(
            help="A run, RUN/train or train/DIGEST in the store; a folder or file of weights; or a hub id.",
            metavar="MODEL",
        ),
    ],
    prompt: Annotated[list[str], Wish(help="What is to be seen. Repeatable.", metavar="TEXT")] = [],  # noqa: B006
    prompts: Annotated[Path | None, Wish(help="A file with a prompt on each line.", metavar="FILE")] = None,
    out: Annotated[Path, Wish(help="Where films go.", metavar="FOLDER")] = Path("generated"),
    frames: Annotated[int | None, Wish(help="Frames of a clip; 1 makes a picture.", min=1)] = None,
    size: Annotated[str | None, Wish(help="Height x width in pixels, such as 240x424.", metavar="HxW")] = None,
    resolution: Annotated[str | None, Wish(help="Or a class, such as 360p.", metavar="NAME")] = None,
    aspect: Annotated[str | None, Wish(help="Of that class: 16:9, 1:1, or a ratio of its table.")] = None,
    fps: Annotated[float | None, Wish(help="Effective frames per second: told to the model, and the film's.")] = None,
    seed: Annotated[
        int, Wish(help="Of the noise; further samples of a prompt have the next ones.", min=0, max=2**62)
    ] = 42,
    samples: Annotated[int, Wish(help="Films of each prompt.", min=1)] = 1,
    steps: Annotated[int | None, Wish(help="Of sampling. Default: 25; iddpm 100.", min=1, max=1000)] = None,
    sampler: Annotated[str | None, Wish(help="unipc, dpm-solver++, or iddpm as the reference.", metavar="NAME")] = None,
    guidance: Annotated[float | None, Wish(help="How far the prompt leads; 1 adds nothing. Default: 7.")] = None,
    guided_channels: Annotated[int | None, Wish(help="Latent channels it leads, 3 or 4.", min=1, max=4)] = None,
    image: Annotated[str | None, Wish(help="The film begins with this picture.", metavar="FILE")] = None,
    last_image: Annotated[str | None, Wish(help="The film ends with this picture.", metavar="FILE")] = None,
    video: Annotated[str | None, Wish(help="The film goes on from this one's end.", metavar="FILE")] = None,
    reference: Annotated[
        list[str], Wish(help="A picture or film for --condition. Repeatable: 0, 1, ...", metavar="FILE")
    ] = [],  # noqa: B006
    condition: Annotated[
        str | None, Wish(help='Open-Sora\'s mask strategy, such as "0;0,1,0,-1,1".', metavar="TEXT")
    ] = None,
    loops: Annotated[int, Wish(help="Clips, each going on from the one before.", min=1)] = 1,
    condition_frames: Annotated[
        int | None,
        Wish(help="Frames taken over from the clip before, or from --video. Default: a quarter.", min=1),
    ] = None,
    step: Annotated[int | None, Wish(help="Of a run: the checkpoint after it. Default: the last.", min=0)] = None,
    weights: Annotated[Literal["raw", "ema"] | None, Wish(help="Default: ema where there is one.")] = None,
    vae: Annotated[
        str | None, Wish(help="Of weights: hub id, folder or patch-dct. Default: what they tell.", metavar="MODEL")
    ] = None,
    text_encoder: Annotated[
        str | None, Wish(help="Of weights: hub id, folder or hashed-words. Default: what they tell.", metavar="MODEL")
    ] = None,
    revision: Annotated[str, Wish(help="Of a hub id: a branch, tag or commit.")] = "",
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None, Wish(help="Default: bfloat16 on a GPU, else float32.")
    ] = None,
    device: Annotated[str | None, Wish(help="cpu, cuda, cuda:1, ... Default: a GPU if there is one.")] = None,
    sheet: Annotated[bool, Wish("--sheet", help="Also make a contact sheet of all films.")] = False,
    clean: Annotated[bool, Wish("--clean/--no-clean", help="Clean prompts as Open-Sora does.")] = True,
    store: StoreFlag = DEFAULT_STORE,
    verbose: VerboseFlag = False,
) -> None:
    """Make films from prompts."""
    from bricks_core.progress import configure_logging

    configure_logging(verbose)
    if bool(prompt) == (prompts is not None):
        raise UsageError('Say what is to be seen: --prompt "A red car", or --prompts FILE with one on each line.')
    if fps is not None and not 0.001 <= fps <= 1000:
        raise UsageError(f"--fps {fps:g} cannot be meant: choose a number from 0.001 to 1000.")
    if guidance is not None and not 0 <= guidance < math.inf:
        raise UsageError(f"--guidance {guidance:g} cannot be meant: choose a number from 0 on; 7 is usual.")
    from bricks_core.diffusion.conditions import parse_mask_strategy
    from bricks_core.diffusion.model import Choice
    from bricks_core.diffusion.prompts import parse_prompt, read_prompts
    from bricks_core.generate.films import Beginnings
    from bricks_core.generate.generate import Steps, Wishes
    from bricks_core.generate.generate import generate as make
    from bricks_core.generate.shape import Asked
    from bricks_core.storage.places import open_store

    read = read_prompts(prompts) if prompts else [parse_prompt(each) for each in prompt]
    given = parse_mask_strategy(condition) if condition else ()
    wishes = Wishes(
        model,
        tuple(read),
        out,
        Choice(step, weights, vae, text_encoder, revision),
        Asked(frames, size, resolution, aspect, fps),
        Beginnings(image, last_image, video, tuple(reference), given, loops, condition_frames),
        Steps(sampler, steps, guidance, guided_channels),
        seed,
        samples,
        clean,
        dtype,
        device,
        sheet,
    )
    make(wishes, lambda: open_store(store), typer.echo)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
app.command()(generate)


def main() -> NoReturn:
    serve(app)


if __name__ == "__main__":
    main()
