"""What every entry point does the same: flags, logging, signals, and an exit code for every end."""

from __future__ import annotations

import codecs
import errno
import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from bricks_core.errors import BricksError, Stopped, UsageError

DEFAULT_STORE = "bricks-store"

# typer carries a click of its own; this is its class for a wrong flag, wherever it lives.
_WrongFlag: type[Exception] = typer.BadParameter.__mro__[1]

StoreFlag = Annotated[
    str,
    typer.Option(
        "--store",
        envvar="BRICKS_STORE",
        help="Where artifacts live: a folder or s3://bucket/prefix.",
        show_default=True,
        metavar="URI",
    ),
]
SetFlag = Annotated[
    list[str],
    typer.Option("--set", help="Override a field: --set caption.max_sentences=3. Repeatable.", metavar="FIELD=VALUE"),
]
VerboseFlag = Annotated[bool, typer.Option("--verbose", "-v", help="Tell more on standard error.")]


def commands(help: str | None) -> typer.Typer:
    """A command line of several commands, to be served alone or hung into another."""
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def serve(app: typer.Typer) -> NoReturn:
    """Run a command line and leave with its exit code: one sentence for what a user can mend, a trace for our bugs."""
    name = Path(sys.argv[0]).stem
    _in_utf8()
    try:
        listen()
        app(standalone_mode=False)
        sys.stdout.flush()
    except (BricksError, Stopped) as error:
        _leave(error.exit_code, f"{name}: {error}")
    except _WrongFlag as error:
        # Names the flag, which `message` alone does not.
        message = str(error.format_message() if hasattr(error, "format_message") else error)
        if message.startswith("Usage:"):  # no command was given: this is the help
            _leave(UsageError.exit_code, message)
        message = message.rstrip(".")
        _leave(UsageError.exit_code, f"{name}: {message}{'' if message.endswith('?') else '.'} Try {name} --help.")
    except typer.Exit as error:
        _leave(error.exit_code)
    except typer.Abort:
        _leave(128 + signal.SIGINT)
    except BrokenPipeError:
        # Whoever read our output has seen enough (head, less). Not an error; keep Python from flushing into the void.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _leave(0)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            # A name that was given: whatever asks first whether it is there is told this instead of no.
            start = str(error.filename)[:60]
            _leave(UsageError.exit_code, f"{name}: A path is longer than a file system allows: {start}... Shorten it.")
        traceback.print_exc()
        _leave(70, f"{name}: this is a bug in Bricks. Please report it with the lines above.")
    _leave(0)


def _in_utf8() -> None:
    """Text is UTF-8 in all we read, write and name, whatever the locale; only the terminal keeps its own encoding.

    Files name their encoding where they are opened. What cannot be named there are names in the file system: under
    another locale, `für.mp4` of the run file is no film on the disk, or cannot be asked for at all. So Python starts
    again in its UTF-8 mode, which becomes its default in 3.15 (PEP 686).
    """
    if sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        terminal = {"PYTHONIOENCODING": f"{sys.stdout.encoding}:{sys.stdout.errors}"} if sys.stdout else {}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | terminal | {"PYTHONUTF8": "1"})
    codecs.register_error("plain signs", _plain_signs)
    if isinstance(sys.stdout, io.TextIOWrapper):  # standard error writes escapes by itself
        sys.stdout.reconfigure(errors="plain signs")


def _plain_signs(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = {"→": ">", "—": "-", "–": "-", "…": ".", "✓": "+", "▸": ">"}  # of one character each: tables stay straight
    return "".join(signs.get(each, "?") for each in error.object[error.start : error.end]), error.end


def stage_entry_point(stage: str, what: str | None) -> Callable[[], NoReturn]:
    """The entry point of a stage: python -m jobs.<stage> --run FILE [--shard I --num-shards N | --commit]."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

    @app.command(help=what)
    def main(
        run: Annotated[Path, typer.Option("--run", help="The run's YAML.", metavar="FILE")],
        store: StoreFlag = DEFAULT_STORE,
        overrides: SetFlag = [],  # noqa: B006 (typer reads it)
        shard: Annotated[int, typer.Option(help="Which shard, from 0.", min=0, envvar="JOB_COMPLETION_INDEX")] = 0,
        num_shards: Annotated[int, typer.Option(help="Of how many.", min=1)] = 1,
        commit: Annotated[bool, typer.Option("--commit", help="Only join finished shards and commit.")] = False,
        verbose: VerboseFlag = False,
    ) -> None:
        from bricks_core.pipeline.local import run_alone
        from bricks_core.progress import configure_logging
        from bricks_core.spec.run import load_run
        from bricks_core.spec.stages import STAGES
        from bricks_core.storage.places import open_store

        configure_logging(verbose)
        _bound_processes()
        if shard >= num_shards:
            raise UsageError(f"--shard {shard} of --num-shards {num_shards} is none: shards count from 0.")
        if num_shards > 1 and not STAGES[stage].sharded:
            raise UsageError(f"{stage} is not cut into shards; leave --num-shards out.")
        loaded = load_run(run, overrides)
        manifest = run_alone(loaded, open_store(store), stage, shard=shard, num_shards=num_shards, commit=commit)
        if manifest:
            typer.echo(f"artifacts/{manifest.stage}/{manifest.digest}")

    return lambda: serve(app)


def _bound_processes() -> None:
    """At most BRICKS_MAX_PROCESSES processes and threads of this user: a pod's manifest cannot say it."""
    if wanted := os.environ.get("BRICKS_MAX_PROCESSES"):
        if not wanted.isdigit():
            raise UsageError(f"BRICKS_MAX_PROCESSES is {wanted!r}: write a number, such as 4096.")
        _, most = resource.getrlimit(resource.RLIMIT_NPROC)
        limit = int(wanted) if most == resource.RLIM_INFINITY else min(int(wanted), most)
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


def listen() -> None:
    """Let SIGTERM and SIGINT raise Stopped: each once, so that whoever goes on after one listens again."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, _stop)


def _stop(signal_number: int, frame: Any) -> None:
    # Everything is written whole or not at all, so the work can be left at any line.
    signal.signal(signal_number, signal.SIG_IGN)
    raise Stopped(signal_number)


def _leave(code: int, words: str = "") -> NoReturn:
    if words:
        print(words, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: library threads that never end (a loader, a client's pool) must not keep a finished Job alive.
    os._exit(code)
