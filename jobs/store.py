"""A store itself: bricks store upgrade | compact"""

from __future__ import annotations

from typing import Annotated

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
