"""How far work has come, told in a log."""

import logging

from bricks_core.progress import Progress


def lines(caplog):
    return [record.getMessage() for record in caplog.records]


def test_the_last_line_is_not_told_twice(caplog):
    caplog.set_level(logging.INFO, "bricks")
    with Progress("clip") as progress:
        progress.begin(4, done=4, unit="videos")
    assert lines(caplog) == ["clip: 4/4 videos"]


def test_the_end_is_told_where_something_was_done(caplog):
    caplog.set_level(logging.INFO, "bricks")
    with Progress("clip") as progress:
        progress.begin(2, unit="videos")
        progress.advance(note="a")
        progress.advance(note="b")
    assert lines(caplog)[0] == "clip: 0/2 videos"
    assert lines(caplog)[-1].startswith("clip: 2/2 videos")
    assert len(lines(caplog)) == 3
