"""Where things come from, and taking them down: bricks lineage | takedown"""

from __future__ import annotations

from typing import Annotated

import typer

from jobs.entry_point import DEFAULT_STORE, StoreFlag, VerboseFlag


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            help="RUN, RUN@STEP or a training for a checkpoint; a clip's id; or a film's name, path or sha256.",
            metavar="CHECKPOINT|CLIP|SOURCE",
        ),
    ],
    store: StoreFlag = DEFAULT_STORE,
    as_json: Annotated[bool, typer.Option("--json", help="For programs: everything, nothing cut.")] = False,
) -> None:
    """Where a checkpoint, a clip or a film comes from, and what came of it."""
    from bricks_core.pipeline.lineage import lineage as find_lineage
    from bricks_core.pipeline.lineage_screen import lineage_json, lineage_screen
    from bricks_core.storage.places import open_existing

    found = find_lineage(open_existing(store, what), what)
    if as_json:
        typer.echo(lineage_json(found))
    else:
        lineage_screen(found)


def takedown(
    source: Annotated[
        str,
        typer.Argument(help="A film's name, path, sha256 or video_id, or a file of it on this disk.", metavar="SOURCE"),
    ],
    store: StoreFlag = DEFAULT_STORE,
    delete: Annotated[bool, typer.Option("--delete", help="Really delete; without it, only say.")] = False,
    withdraw: Annotated[
        bool, typer.Option("--withdraw", help="With --delete: also the trainings that learnt from it, with samples.")
    ] = False,
    why: Annotated[str, typer.Option("--why", help="Kept in its mark, and told to whoever gives it again.")] = "",
    verbose: VerboseFlag = False,
) -> None:
    """Find all that was made of a film; delete it, and refuse that film from then on."""
    from bricks_core.errors import UsageError
    from bricks_core.pipeline.affected import find_affected
    from bricks_core.pipeline.lineage_screen import takedown_screen
    from bricks_core.pipeline.takedown import take_down
    from bricks_core.progress import configure_logging
    from bricks_core.storage.places import open_existing

    configure_logging(verbose)
    if (withdraw or why) and not delete:
        raise UsageError("--withdraw and --why go with --delete: without it nothing is written.")
    opened = open_existing(store, source)
    affected = find_affected(opened, source)
    if delete:
        take_down(opened, affected, why=why, withdraw=withdraw, tell=lambda line: typer.echo(line, err=True))
    takedown_screen(affected, opened, source, deleted=delete, withdrawn=withdraw)
