"""Datasets out and in: python -m jobs.dataset export RUN --format open-sora --out FOLDER"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from jobs.entry_point import DEFAULT_STORE, StoreFlag, VerboseFlag, commands, serve

app = commands("Datasets to other tools and from them: docs/dataset.md.")


class Format(StrEnum):
    """Whom an export is for."""

    OPEN_SORA = "open-sora"
    WEBDATASET = "webdataset"
    HUGGING_FACE = "hugging-face"


@app.command("export")
def export(
    run: Annotated[str, typer.Argument(help="A run with captions, by its name.", metavar="RUN")],
    what: Annotated[Format, typer.Option("--format", help="For which tool.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder, or an earlier export's.", metavar="FOLDER")],
    store: StoreFlag = DEFAULT_STORE,
    shard_bytes: Annotated[int, typer.Option(help="webdataset: how large a tar may become.", min=1 << 16)] = 1 << 30,
    verbose: VerboseFlag = False,
) -> None:
    """Write a run's kept clips and images that have an accepted caption. Stopped, the same command goes on."""
    from bricks_core.exchange.datasets.export import export_dataset
    from bricks_core.progress import configure_logging
    from bricks_core.storage.places import open_existing

    configure_logging(verbose)
    export_dataset(open_existing(store), run, what.value, out, shard_bytes=shard_bytes)


@app.command("import")
def import_table(
    table: Annotated[str, typer.Argument(help="A .csv or .parquet with the columns path and text.", metavar="TABLE")],
    name: Annotated[str, typer.Option("--name", help="The new run's name.", metavar="NAME")],
    out: Annotated[Path, typer.Option("--out", help="The run file to write.", metavar="FILE")],
    verbose: VerboseFlag = False,
) -> None:
    """Check a table of clips with captions, such as Open-Sora's, and write a run file that uses them."""
    from bricks_core.exchange.datasets.bring_in import check_table, write_run_file
    from bricks_core.exchange.datasets.screen import imported_screen
    from bricks_core.progress import Progress, configure_logging

    configure_logging(verbose)
    with Progress("import") as progress:
        checked = check_table(table, progress)
    write_run_file(out, name, table)
    imported_screen(checked, name, out)


def main() -> NoReturn:
    serve(app)


if __name__ == "__main__":
    main()
