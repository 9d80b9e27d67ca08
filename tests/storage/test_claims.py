"""Claims: one does the work, whoever else comes; nobody's clock is trusted, and the dead are found out."""

import hashlib
import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bricks_core.errors import StoreUnavailable
from bricks_core.storage.claim import Claim, Holder, names_of
from bricks_core.storage.claims import Claims, batch_of, batch_of_claim
from bricks_core.storage.folder import FolderStore
from bricks_core.storage.in_threads import in_threads
from bricks_core.storage.places import open_store

FORK = multiprocessing.get_context("fork")
BATCH = "answer/3fa"
FIRST, SECOND, THIRD = (f"claims/answer/3fa-{n:06d}.json" for n in (1, 2, 3))
ELSEWHERE = Claim(
    owner="ab" * 16,
    host="node-7",
    pid=4711,
    process_start=1,
    boot_id="another",
    pid_namespace=1,
    since="2026-01-01T00:00:00+00:00",
    what="bricks run tiny",
)
LATE_S = 3600.0
"""For threads that renew: not within a test."""


class Clock:
    def __init__(self):
        self.now_s = 1000.0

    def __call__(self):
        return self.now_s


class Seam(FolderStore):
    """A folder where a test does something just before or after a `put`, once."""

    before_put = after_put = None

    def put(self, key, data, *, if_absent=False):
        hook, self.before_put = self.before_put, None
        if hook is not None:
            hook()
        answer = super().put(key, data, if_absent=if_absent)
        hook, self.after_put = self.after_put, None
        if hook is not None:
            hook()
        return answer


@pytest.fixture
def seam(tmp_path):
    return Seam(str(tmp_path / "store"), tmp_path / "store")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def some_claims(request):
    """some_claims(store, ...): a Claims object that renews nothing by itself, closed at the end."""
    made = []

    def make(store, what="", **settings):
        made.append(Claims(store, what, renew_s=LATE_S, **settings))
        return made[-1]

    yield make
    for claims in made:
        claims.close()


def keys(store):
    return [entry.key for entry in store.list("claims/")]


def put(store, key, claim):
    store.put(key, claim.model_dump_json().encode())


def watch(claims, clock, seconds, batch=BATCH):
    """Look for so long, every 10 s."""
    for _ in range(int(seconds / 10)):
        assert claims.holder(batch) is not None
        clock.now_s += 10


# One object of claims, and another


def test_the_second_is_told_who_is_at_it(store, some_claims):
    first, second = some_claims(store, "bricks run tiny"), some_claims(store)
    assert first.take(BATCH) is None
    holder = second.take(BATCH)
    assert (holder.pid, holder.what, holder.is_here) == (os.getpid(), "bricks run tiny", True)
    assert f"process {os.getpid()} on this machine" in str(holder)
    assert second.holder(BATCH) == holder == first.holder(BATCH)
    assert (first.held, second.held) == ([BATCH], [])
    assert keys(store) == [FIRST]


def test_what_is_released_is_free_and_leaves_nothing(store, some_claims):
    first, second = some_claims(store), some_claims(store)
    first.take(BATCH)
    assert second.take(BATCH) is not None
    first.release(BATCH)
    assert second.holder(BATCH) is None
    assert second.take(BATCH) is None
    assert first.take(BATCH) is not None
    second.release(BATCH)
    assert keys(store) == []


def test_what_is_taken_twice_is_released_twice(store, some_claims):
    first, second = some_claims(store), some_claims(store)
    assert [first.take(BATCH), first.take(BATCH)] == [None, None]
    first.release(BATCH)
    assert second.take(BATCH) is not None
    first.release(BATCH)
    assert second.take(BATCH) is None
    first.release(BATCH)  # not ours any more
    assert first.take(BATCH) is not None


def test_closing_releases_everything(store, some_claims):
    with some_claims(store) as claims:
        for batch in (BATCH, BATCH, "train/0123", "run/tiny"):
            claims.take(batch)
    assert keys(store) == []


def test_a_batch_is_not_taken_for_another_whose_name_goes_on(store, some_claims):
    first, second = some_claims(store), some_claims(store)
    assert first.take("run/a-b") is None
    assert first.take("run/a-000001") is None
    assert second.take("run/a") is None


@pytest.mark.parametrize("name", ["", "answer", "answer/", "/3fa", "answer/.3fa", "answer/3/f", "../x", "a/b\n"])
def test_what_cannot_be_a_batch_is_refused(store, some_claims, name):
    with pytest.raises(ValueError, match="no batch"):
        some_claims(store).take(name)


def test_the_batch_of_an_item_is_the_beginning_of_its_key():
    assert batch_of("answer", "3fa9" + "0" * 28) == BATCH


# The watcher's own clock


def test_an_owner_elsewhere_is_gone_after_90_s_without_a_beat(store, some_claims, clock):
    put(store, FIRST, ELSEWHERE)
    claims = some_claims(store, now=clock)
    holder = claims.take(BATCH)
    assert str(holder) == "bricks run tiny (process 4711 on node-7, since 2026-01-01T00:00:00+00:00)"
    watch(claims, clock, 80)
    assert claims.take(BATCH) == holder
    watch(claims, clock, 10)
    assert claims.take(BATCH) is None
    assert keys(store) == [SECOND]


def test_an_owner_that_renews_is_never_taken_over(store, some_claims, clock):
    owner, watcher = some_claims(store), some_claims(store, now=clock)
    owner.take(BATCH)
    for _ in range(10):
        watch(watcher, clock, 80)
        owner.renew()
        assert watcher.take(BATCH) is not None
    assert not owner.lost(BATCH)


def test_the_thread_renews(store, clock):
    with Claims(store, renew_s=0.01) as claims:
        claims.take(BATCH)
        first = store.get(FIRST)
        while store.get(FIRST) == first:  # an own thread does it: no more is asked of it here
            pass
    assert keys(store) == []


def test_a_watcher_that_slept_gives_the_owner_time_to_come_back(store, some_claims, clock):
    put(store, FIRST, ELSEWHERE)
    claims = some_claims(store, now=clock)
    assert claims.take(BATCH) is not None
    clock.now_s += 8 * 3600
    assert claims.take(BATCH) is not None
    put(store, FIRST, ELSEWHERE.model_copy(update={"beat": 1}))
    watch(claims, clock, 80)
    assert claims.take(BATCH) is not None


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"{}", b"[" * 5000, b"x" * 100_000])
def test_what_cannot_be_read_has_an_unknown_owner_and_goes_stale_too(store, some_claims, clock, content):
    store.put(FIRST, content)
    claims = some_claims(store, now=clock)
    assert claims.take(BATCH) == claims.holder(BATCH) == Holder(None, "unknown", 0, "", "", False, FIRST)
    watch(claims, clock, 90)
    assert claims.take(BATCH) is None


def test_who_meets_a_claim_that_cannot_be_read_is_told_which_and_the_way_out(store, some_claims):
    for key in ("claims/run/e-000001.json", FIRST):
        store.put(key, b"{")
    claims, said = some_claims(store), "claims/run/e-000001.json cannot be read: delete it if nobody is at the run"
    assert said in str(claims.take("run/e"))
    assert said in str(claims.holder("run/e"))
    assert f"{FIRST} cannot be read: delete it if nobody is at this work" in str(claims.take(BATCH))


@pytest.mark.parametrize("end", ["0000001", "000000", "00001", "1", "00000\u0661", "+00001", "000001 "])
def test_only_names_that_a_claim_is_given_count(store, some_claims, end):
    other = f"claims/{BATCH}-{end}.json"
    put(store, other, ELSEWHERE)
    claims = some_claims(store)
    assert batch_of_claim(other) is None
    assert claims.holder(BATCH) is None
    assert claims.take(BATCH) is None
    claims.renew()
    assert not claims.lost(BATCH)
    claims.release(BATCH)
    assert keys(store) == [other]


@given(st.integers(1, 10**30), st.sampled_from([BATCH, "run/a-b", "run/a-000001"]))
def test_the_name_of_a_claim_tells_its_batch(generation, batch):
    assert batch_of_claim(f"claims/{batch}-{generation:06d}.json") == batch


@given(st.binary(max_size=200) | st.integers(1, 100).map(lambda n: ELSEWHERE.model_dump_json()[:-n].encode()))
def test_other_bytes_are_no_claim(data):
    assert Claim.read(data) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"pid": 0},
        {"pid": 2**31},
        {"host": "a\x1b[2J"},
        {"what": "x" * 501},
        {"owner": "me"},
        {"beat": -1},
    ],
)
def test_a_claim_out_of_bounds_is_none(wrong):
    data = ELSEWHERE.model_copy(update=wrong).model_dump_json(warnings=False).encode()
    assert Claim.read(ELSEWHERE.model_dump_json().encode()) == ELSEWHERE
    assert Claim.read(data) is None


def test_words_for_people_lose_what_a_terminal_would_obey(store, some_claims):
    claims, other = some_claims(store, "bricks\x1b[2J run \ud800" + "x" * 600), some_claims(store)
    claims.take(BATCH)
    assert other.take(BATCH).what.startswith("bricks [2J run ?xxx")


# The dead


def in_a_child(work):
    """A process that does `work(say)`, and stays until it is killed; -> the process, and what it said."""
    inbox = FORK.SimpleQueue()

    def run():
        work(inbox.put)
        signal.pause()

    child = FORK.Process(target=run)
    child.start()
    return child, inbox.get()


@pytest.mark.parametrize("reaped", [True, False])
def test_a_killed_owner_on_this_machine_is_taken_over_at_once(place, store, some_claims, reaped):
    child, answer = in_a_child(lambda say: say(Claims(open_store(place)).take(BATCH)))
    claims = some_claims(store)
    try:
        assert answer is None
        assert claims.take(BATCH).pid == child.pid
    finally:
        os.kill(child.pid, signal.SIGKILL)
    if reaped:
        child.join()
    else:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert claims.take(BATCH) is None
    assert keys(store) == [SECOND]
    child.join()


def test_another_process_with_the_same_number_is_not_the_owner(store, some_claims):
    mine = Claim.of_this_process("ab" * 16, "")
    assert not mine.is_dead
    put(store, FIRST, mine.model_copy(update={"process_start": mine.process_start + 1}))
    assert some_claims(store).take(BATCH) is None


def test_processes_elsewhere_are_not_known_to_be_dead():
    mine = Claim.of_this_process("ab" * 16, "").model_copy(update={"process_start": 1, "pid": 2**31 - 1})
    assert mine.is_dead
    for other in ({"boot_id": "another"}, {"pid_namespace": 1}, {"process_start": None}, {"boot_id": None}):
        assert not mine.model_copy(update=other).is_dead


def test_a_dead_owners_many_generations_do_not_hold_anybody_up(store, some_claims):
    dead = Claim.of_this_process("ab" * 16, "").model_copy(update={"pid": 2**31 - 1})
    put(store, FIRST, ELSEWHERE)  # whoever took generation 2 knew it to be over
    put(store, SECOND, dead)
    assert some_claims(store).take(BATCH) is None
    assert keys(store) == [THIRD]


def test_only_the_second_generation_is_left_of_a_dead_owner(store, some_claims):
    put(store, SECOND, Claim.of_this_process("ab" * 16, "").model_copy(update={"pid": 2**31 - 1}))
    assert some_claims(store).take(BATCH) is None
    assert keys(store) == [THIRD]


def test_a_forked_child_holds_nothing_and_releases_nothing(store, some_claims, all_at_once):
    claims = some_claims(store)
    claims.take(BATCH)

    def child(_):
        claims.release(BATCH)
        held, owner, holder = claims.held, claims.owner, claims.take(BATCH)
        claims.close()
        return held, owner, holder

    [(held, owner, holder)] = all_at_once(1, child)
    assert held == []
    assert owner != claims.owner == holder.owner
    assert keys(store) == [FIRST]


# Races


def test_one_of_eight_takes_over_a_stale_claim(place, store, all_at_once):
    put(store, FIRST, ELSEWHERE)
    all_judge, all_tried = FORK.Barrier(8), FORK.Barrier(8)

    def racer(_):
        clock = Clock()
        claims = Claims(open_store(place), now=clock)
        watch(claims, clock, 90)
        all_judge.wait(60)
        holder = claims.take(BATCH)
        all_tried.wait(60)
        return holder is None

    assert sum(all_at_once(8, racer)) == 1


def test_many_that_take_and_release_never_have_it_together(place, tmp_path, all_at_once):
    all_done = FORK.Barrier(4)

    def racer(_):
        num_taken = 0
        with Claims(open_store(place)) as claims:
            while num_taken < 10:
                if claims.take(BATCH) is None:
                    (tmp_path / "inside").mkdir()  # fails when somebody else is
                    (tmp_path / "inside").rmdir()
                    claims.release(BATCH)
                    num_taken += 1
            all_done.wait(60)
        return num_taken

    assert all_at_once(4, racer) == [10] * 4


def test_a_taker_gives_way_to_one_that_came_between_its_look_and_its_put(seam, tmp_path, some_claims, clock):
    put(seam, FIRST, ELSEWHERE)
    taker, fresh = some_claims(seam, now=clock), some_claims(open_store(str(tmp_path / "store")), "fresh")
    watch(taker, clock, 90)

    def released_and_taken_anew():
        FolderStore.delete(seam, [FIRST])
        assert fresh.take(BATCH) is None

    seam.before_put = released_and_taken_anew
    assert taker.take(BATCH).what == "fresh"
    assert keys(seam) == [FIRST]
    fresh.renew()
    assert not fresh.lost(BATCH)


def test_a_taker_gives_way_to_an_owner_that_came_back_in_the_last_moment(seam, some_claims, clock):
    put(seam, FIRST, ELSEWHERE)
    taker = some_claims(seam, now=clock)
    watch(taker, clock, 90)
    seam.before_put = lambda: put(seam, FIRST, ELSEWHERE.model_copy(update={"beat": 1}))
    assert taker.take(BATCH).owner == ELSEWHERE.owner
    assert keys(seam) == [FIRST]


def test_what_is_released_while_another_looks_is_taken_by_it(seam, tmp_path, some_claims):
    owner, taker = some_claims(open_store(str(tmp_path / "store"))), some_claims(seam)
    owner.take(BATCH)
    seam.after_put = lambda: owner.release(BATCH)  # it was there, and is not any more
    assert taker.take(BATCH) is None
    assert keys(seam) == [FIRST]


def test_a_taker_that_is_stopped_in_the_middle_leaves_no_claim(seam, some_claims):
    def stopped():
        raise KeyboardInterrupt

    claims = some_claims(seam)
    seam.list = lambda prefix: stopped()
    with pytest.raises(KeyboardInterrupt):
        claims.take(BATCH)
    del seam.list
    assert keys(seam) == []


def test_what_was_written_by_a_put_that_failed_is_ours_the_next_time(seam, some_claims):
    def answer_lost():
        raise StoreUnavailable("No answer.")

    claims = some_claims(seam)
    seam.after_put = answer_lost
    with pytest.raises(StoreUnavailable):
        claims.take(BATCH)
    assert claims.take(BATCH) is None
    claims.release(BATCH)
    assert keys(seam) == []


def test_a_store_that_is_away_neither_stops_the_work_nor_the_renewals(seam, some_claims):
    def away():
        raise StoreUnavailable("No answer.")

    claims = some_claims(seam)
    claims.take(BATCH)
    before = seam.get(FIRST)
    seam.before_put = away
    claims.renew()
    assert seam.get(FIRST) == before
    claims.renew()
    assert seam.get(FIRST) != before
    seam.delete = lambda keys: away()
    claims.release(BATCH)
    assert claims.held == []


# An owner that comes back


def test_an_owner_that_was_taken_over_knows_at_its_next_renewal(store, some_claims, clock):
    owner, taker = some_claims(store), some_claims(store, now=clock)
    owner.take(BATCH)
    watch(taker, clock, 90)
    assert taker.take(BATCH) is None
    owner.renew()
    assert owner.lost(BATCH)
    assert owner.held == []
    assert owner.take(BATCH) is not None
    owner.release(BATCH)
    owner.close()
    assert keys(store) == [SECOND]
    assert not owner.lost(BATCH)


def test_an_owner_that_comes_back_does_not_touch_who_took_its_place_and_name(store, some_claims, clock):
    owner, taker, third = some_claims(store, now=clock), some_claims(store, now=clock), some_claims(store)
    owner.take(BATCH)
    watch(taker, clock, 90)
    taker.take(BATCH)
    taker.release(BATCH)
    third.take(BATCH)  # generation 1 again
    content = store.get(FIRST)
    owner.release(BATCH)  # has renewed nothing for 90 s, so it looks
    assert store.get(FIRST) == content


def test_what_was_lost_can_be_ours_again(store, some_claims, clock):
    owner, taker = some_claims(store), some_claims(store, now=clock)
    owner.take(BATCH)
    watch(taker, clock, 90)
    taker.take(BATCH)
    owner.renew()
    taker.release(BATCH)
    assert owner.take(BATCH) is None
    assert not owner.lost(BATCH)
    owner.release(BATCH)
    assert keys(store) == [FIRST]  # taken twice
    owner.release(BATCH)
    assert keys(store) == []


# Waiting for one


def test_whoever_waits_takes_the_others_answer(store, some_claims):
    owner, waiter = some_claims(store, "bricks run tiny"), some_claims(store)
    owner.take("train/0123")
    done, said = [], []
    assert not waiter.take_or_wait(
        "train/0123", lambda: bool(done), lambda holder: (said.append(holder.what), done.append(1)), poll_s=0.001
    )
    assert said == ["bricks run tiny"]


def test_whoever_waits_goes_on_when_the_owner_has_gone(store, some_claims):
    owner, waiter = some_claims(store), some_claims(store)
    owner.take("train/0123")
    assert waiter.take_or_wait("train/0123", lambda: False, lambda holder: owner.close(), poll_s=0.001)
    assert waiter.held == ["train/0123"]


def test_what_was_done_between_the_look_and_the_take_is_not_done_again(store, some_claims):
    claims, answers = some_claims(store), iter([False, True])
    assert not claims.take_or_wait("train/0123", lambda: next(answers))
    assert keys(store) == []


# Many tasks


class Task:
    """Not hashable, as a task of a stage may be."""

    __hash__ = None

    def __init__(self, name, *item_keys):
        self.name, self.keys = str(name), item_keys or (ItemName("answer", hashlib.sha256(b"%r" % name).hexdigest()),)

    @property
    def place(self):
        return f"items/{self.name}"


class ItemName:
    def __init__(self, kind, key):
        self.kind, self.key = kind, key


def done_in(store):
    def is_done(tasks):
        there = {entry.key for entry in store.list("items/")}
        return [task.place in there for task in tasks]

    return is_done


def nothing_done(tasks):
    return [False] * len(tasks)


def share(claims, store, tasks, **settings):
    return claims.each(tasks, lambda task: task.keys, done_in(store), poll_s=0.001, max_poll_s=0.01, **settings)


def work_through(place, log_file, num_tasks, num_threads=4, begun=lambda num: None):
    """Do all tasks as a stage does: in threads, each one's answer put when it is there. Every beginning is logged."""
    store, numbers = open_store(place), itertools.count(1)
    with Claims(store) as claims, log_file.open("a", buffering=1, encoding="utf-8") as log_lines:
        shared = share(claims, store, [Task(n) for n in range(num_tasks)])

        def do(task):
            with shared.doing(task):
                log_lines.write(f"{task.name}\n")
                begun(next(numbers))
                store.put(task.place, b"", if_absent=True)

        in_threads(do, shared, num_threads)


def test_two_processes_do_two_hundred_items_once_each(place, store, tmp_path, all_at_once):
    log_file = tmp_path / "begun"
    all_at_once(2, lambda _: work_through(place, log_file, 200))
    assert Counter(log_file.read_text(encoding="utf-8").split()) == Counter(map(str, range(200)))
    assert len(list(store.list("items/"))) == 200
    assert keys(store) == []


def test_a_killed_owner_costs_at_most_what_it_had_in_flight(place, store, tmp_path):
    log_file = tmp_path / "begun"

    def child(say):
        def begun(num):
            if num > 20:
                if num == 24:
                    say("four in flight")
                threading.Event().wait()

        work_through(place, log_file, 60, begun=begun)

    process, _ = in_a_child(child)
    process.kill()
    process.join()
    work_through(place, log_file, 60)
    counts = Counter(log_file.read_text(encoding="utf-8").split())
    assert set(counts) == set(map(str, range(60)))
    assert sum(counts.values()) == 64
    assert keys(store) == []


def same_batch(*names, digits="3fa"):
    return [Task(name, ItemName("answer", digits + f"{n:029x}")) for n, name in enumerate(names)]


def test_batches_are_claimed_when_their_tasks_are_asked_for_and_released_when_these_are_finished(store, some_claims):
    claims = some_claims(store)
    tasks = same_batch("a", "b") + same_batch("c", digits="3fb")
    shared = share(claims, store, tasks)
    coming = iter(shared)
    assert claims.held == []
    one = next(coming)
    assert len(claims.held) == 1
    two = next(coming)
    three = next(coming)
    assert claims.held == ["answer/3fa", "answer/3fb"]
    for task in (one, two, three):
        shared.finished(task)
    assert next(coming, None) is None
    assert claims.held == keys(store) == []


def test_what_another_has_done_meanwhile_does_not_come(store, some_claims):
    claims = some_claims(store)
    tasks = same_batch("a", "b", "c") + same_batch("d", digits="3fb")
    shared = share(claims, store, tasks)
    for task in (tasks[1], tasks[3]):
        store.put(task.place, b"")
    came = []
    for task in shared:
        came.append(task.name)
        shared.finished(task)
    assert came == ["a", "c"]
    assert keys(store) == []


def test_a_task_of_several_batches_has_all_of_them_or_none(store, some_claims):
    ours, theirs = some_claims(store), some_claims(store, "theirs")
    theirs.take("answer/fff")
    task = Task("film", ItemName("answer", "fff" + "0" * 29), ItemName("answer", "000" + "0" * 29))
    shared = share(ours, store, [task], wait=False)
    assert list(shared) == []
    assert [(task.name, holder.what) for task, holder in shared.left] == [("film", "theirs")]
    assert ours.held == []
    assert keys(store) == ["claims/answer/fff-000001.json"]


def test_what_others_hold_comes_last_and_their_answer_is_taken(store, some_claims):
    ours, theirs = some_claims(store), some_claims(store)
    theirs.take("answer/3fa")
    tasks = same_batch("a", "b") + same_batch("c", digits="3fb")
    came = []

    def is_done(asked):
        if came and not ours.held:  # only the others' work is left: now they finish half of it, and go
            store.put(tasks[0].place, b"")
            theirs.close()
        return done_in(store)(asked)

    shared = ours.each(tasks, lambda task: task.keys, is_done, poll_s=0.001)
    for task in shared:
        came.append(task.name)
        shared.finished(task)
    assert came == ["c", "b"]


def test_a_process_that_is_waited_for_is_named_once_since_its_first_claim():
    def held(**other):
        return Holder.of(ELSEWHERE.model_copy(update=other), FIRST)

    many = [held(since=f"2026-01-01T00:00:0{second}+00:00") for second in (2, 1, 3)]
    others = [held(pid=4712), held(host="node-8"), Holder.of(None, FIRST), Holder.of(None, SECOND)]
    names = names_of([*many, *others]).split("; ")
    assert len(names) == 5
    assert [each for each in names if "4711 on node-7" in each] == [str(many[1])]
    assert names_of(reversed([*many, *others])).split("; ") == names


def test_the_one_who_is_waited_for_is_named(store, some_claims, caplog, monkeypatch):
    monkeypatch.setattr("bricks_core.storage.sharing.SAY_AFTER_S", 0.0)
    ours, theirs = some_claims(store), some_claims(store, "bricks run tiny")
    theirs.take("answer/3fa")

    def is_done(asked):
        return [bool(caplog.records)] * len(asked)

    with caplog.at_level(logging.INFO, "bricks"):
        assert list(ours.each(same_batch("a", "b"), lambda task: task.keys, is_done, poll_s=0.001)) == []
    assert caplog.messages[0].startswith("Waiting for 2 that others are at: bricks run tiny (process ")


def test_an_error_is_not_kept_back_until_others_are_done(store, some_claims):
    ours, theirs = some_claims(store), some_claims(store)
    theirs.take("answer/3fa")
    shared = share(ours, store, same_batch("theirs") + same_batch("ours", digits="3fb"))

    def do(task):
        with shared.doing(task):
            raise OSError("no good")

    with pytest.raises(OSError, match="no good"):
        in_threads(do, shared, 2)
    assert ours.held == []


def test_the_rest_of_a_batch_that_was_lost_is_left_to_whoever_has_it(store, some_claims, clock):
    ours, theirs = some_claims(store), some_claims(store, now=clock)
    shared = share(ours, store, same_batch("a", "b", "c"), wait=False)
    came = iter(shared)
    first = next(came)
    watch(theirs, clock, 90)
    theirs.take("answer/3fa")
    ours.renew()
    assert list(came) == []
    assert {task.name for task, _ in shared.left} == {"a", "b", "c"} - {first.name}
    shared.finished(first)
    assert keys(store) == [SECOND]


def test_where_another_has_been_nothing_is_claimed_to_see_it(seam, some_claims):
    tasks = [Task(n) for n in range(300)]
    for task in tasks:
        seam.put(task.place, b"")
    claimed, take = [], Claims.take
    claims = some_claims(seam)
    claims.take = lambda batch: (claimed.append(batch), take(claims, batch))[1]
    assert list(share(claims, seam, tasks)) == []
    assert len(claimed) == 1


def test_two_processes_begin_at_different_places(store, some_claims):
    firsts = set()
    for _ in range(12):
        shared = share(some_claims(store), store, [Task(n) for n in range(300)])
        task = next(iter(shared))
        firsts.add(task.name)
        shared.finished(task)
    assert len(firsts) > 1
