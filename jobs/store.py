"""A store itself: bricks store upgrade | compact | copy"""

from __future__ import annotations

import shlex
from typing import Annotated, Literal

import typer

from jobs.entry_point import DEFAULT_STORE, StoreFlag, VerboseFlag, commands

app = commands("A store itself.")


@app.callback()
def _store() -> None:
    """A store itself."""


@app.command()
def upgrade(
    store: StoreFlag = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    no_decode: Annotated[
        bool, typer.Option("--no-decode", help="Open no clip: answers about several frames are then left.")
    ] = False,
    verbose: VerboseFlag = False,
) -> None:
    """Make use of what an earlier version of Bricks left, so that nothing is done, or paid for, again.

    Files stay where they lie. Can be called again at any time.
    """
    from bricks_core.pipeline.screen import upgrade_screen
    from bricks_core.pipeline.upgrade import upgrade as make_items
    from bricks_core.progress import configure_logging
    from bricks_core.storage.places import open_existing

    configure_logging(verbose)
    opened = open_existing(store)
    made = make_items(opened, dry_run=dry_run, decode=not no_decode, tell=lambda line: typer.echo(line, err=True))
    upgrade_screen(made, dry_run=dry_run)


@app.command()
def compact(
    run: Annotated[str, typer.Argument(help="The run whose latents are compacted, by name.", metavar="RUN")],
    store: StoreFlag = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    verbose: VerboseFlag = False,
) -> None:
    """Copy a run's latents from many small packs into a few large ones. Nothing is encoded.

    Can be called again at any time, and while runs are under way.
    """
    from bricks_core.pipeline.compact import compact as compact_packs
    from bricks_core.pipeline.screen import compact_screen
    from bricks_core.progress import configure_logging
    from bricks_core.storage.places import open_existing

    configure_logging(verbose)
    opened = open_existing(store)
    done = compact_packs(opened, run, dry_run=dry_run, tell=lambda line: typer.echo(line, err=True))
    compact_screen(done, dry_run=dry_run)


@app.command()
def copy(
    run: Annotated[str, typer.Argument(help="The run to copy, by name.", metavar="RUN")],
    to: Annotated[str, typer.Option("--to", help="The other store: a folder or s3://bucket/prefix.", metavar="URI")],
    with_: Annotated[
        Literal["items"] | None,
        typer.Option("--with", help="items: also every answer made from the run's films, with its record."),
    ] = None,
    store: StoreFlag = DEFAULT_STORE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be sent.")] = False,
    verbose: VerboseFlag = False,
) -> None:
    """Copy a run to another store, where the same run goes on; also to keep a backup.

    Its artifacts go over with all files that they name, and the states of its training: enough to show it, make films
    with it, export it, train on and change settings of its last stages. With --with items also whatever else was made
    from its films, such as paid answers under other settings or of a stage that is not finished: all that a later
    change would find here.

    Every object is checked against its sha256. Can be stopped and called again at any time: what is there is not sent
    again.
    """
    from bricks_core.pipeline.transfer import copy_run, words_of
    from bricks_core.progress import configure_logging
    from bricks_core.storage.places import open_existing, open_store

    configure_logging(verbose)
    source, target = open_existing(store), open_store(to)
    copied = copy_run(source, target, run, with_items=with_ is not None, dry_run=dry_run)
    for line in words_of(copied, target.uri, with_items=with_ is not None, dry_run=dry_run):
        typer.echo(line)
    if not dry_run:
        typer.echo(f"\nNext\n  bricks run FILE --store {shlex.quote(target.uri)}")
