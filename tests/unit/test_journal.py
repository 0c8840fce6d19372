"""The journal: what is recorded stays, is read by anyone at any time, and says where `up` goes on."""

import json
import multiprocessing
import os
import resource
import signal
import sqlite3
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stacklab.errors import Interrupted, StepFailed
from stacklab.event import Event
from stacklab.journal import Journal, JournalUnusable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "blue"
    folder.mkdir()
    return folder / "journal.db"


@pytest.fixture
def journal(path: Path) -> Iterator[Journal]:
    with Journal(path) as journal:
        yield journal


def kinds(journal: Journal) -> list[str]:
    return [event.type.removeprefix("stacklab.") for event in journal.read()]


def test_an_event_is_read_as_it_was_recorded(journal: Journal, path: Path) -> None:
    recorded = journal.record("stacklab.node.started", subject="controller", memory=8192, image=Path("/x"))
    with Journal(path) as other:
        assert other.read() == [recorded]
    assert recorded.data == {"memory": 8192, "image": "/x"}
    assert abs(datetime.now(UTC) - recorded.time) < timedelta(seconds=10)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_envelope_is_cloudevents_1_0(journal: Journal) -> None:
    event = Event(
        7, datetime(2025, 11, 21, 2, 49, tzinfo=UTC), "stacklab.node.started", "/stacklab/labs/blue", "c", {}
    )
    assert event.cloudevent() == {
        "specversion": "1.0",
        "id": "20251121T024900.000000Z-7",
        "source": "/stacklab/labs/blue",
        "type": "stacklab.node.started",
        "time": "2025-11-21T02:49:00.000000Z",
        "sequence": "0000000007",
        "subject": "c",
        "datacontenttype": "application/json",
        "data": {},
    }
    without = journal.record("stacklab.lab.created").cloudevent()
    assert "subject" not in without
    assert without["source"] == "/stacklab/labs/blue"
    json.dumps(without)


def test_reading_what_does_not_exist_gives_nothing_and_creates_nothing(journal: Journal, path: Path) -> None:
    assert journal.read() == []
    assert journal.newest() == 0
    assert not journal.passed("layer-1/boot")
    assert not path.exists()


def test_a_file_that_was_only_just_created_is_an_empty_journal(journal: Journal, path: Path) -> None:
    path.touch()
    assert journal.read() == []
    journal.record("stacklab.lab.created")
    assert kinds(journal) == ["lab.created"]


def test_reading_after_an_id(journal: Journal) -> None:
    first = journal.record("stacklab.a")
    second = journal.record("stacklab.b")
    assert journal.read(after=first.id) == [second]
    assert journal.newest() == second.id


@pytest.mark.parametrize("statement", ["UPDATE event SET type = 'x'", "DELETE FROM event"])
def test_nothing_is_changed_or_deleted(journal: Journal, path: Path, statement: str) -> None:
    journal.record("stacklab.a")
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        connection.execute(statement)
    connection.close()


# Steps


def test_a_step_that_passes(journal: Journal) -> None:
    with journal.step("boot", subject="controller", key="layer-1/boot", layer=1) as step:
        assert not journal.passed("layer-1/boot")
        step.note(changed=3)
    started, passed = journal.read()
    assert (started.type, passed.type) == ("stacklab.step.started", "stacklab.step.passed")
    assert started.data == {"name": "boot", "key": "layer-1/boot", "layer": 1}
    assert passed.data == started.data | {"changed": 3, "step": started.id, "seconds": passed.data["seconds"]}
    assert 0 <= passed.data["seconds"] < 5
    assert passed.subject == "controller"
    assert journal.passed("layer-1/boot")
    assert not journal.passed("layer-1")


def test_a_step_that_fails_keeps_its_error_and_raises_it(journal: Journal) -> None:
    with pytest.raises(StepFailed), journal.step("boot", key="boot"):
        raise StepFailed("no answer", detail="line 1\nline 2", hint="stacklab ssh controller")
    failed = journal.read()[-1]
    assert failed.type == "stacklab.step.failed"
    assert failed.data["error"] == "no answer"
    assert failed.data["detail"] == "line 1\nline 2"
    assert failed.data["hint"] == "stacklab ssh controller"
    assert not journal.passed("boot")


def test_a_bug_in_a_step_is_recorded_with_its_kind(journal: Journal) -> None:
    with pytest.raises(ZeroDivisionError), journal.step("boot"):
        1 / 0  # noqa: B018
    assert journal.read()[-1].data["error"] == "ZeroDivisionError: division by zero"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted("stopped"), SystemExit(1)])
def test_a_step_that_is_stopped_is_interrupted_not_failed(journal: Journal, stop: BaseException) -> None:
    with pytest.raises(type(stop)), journal.step("boot", key="boot"):
        raise stop
    assert kinds(journal) == ["step.started", "step.interrupted"]
    assert not journal.passed("boot")


def test_passed_listens_to_the_newest_word(journal: Journal) -> None:
    with journal.step("boot", key="boot"):
        pass
    journal.record("stacklab.check.skipped", key="boot")
    assert journal.passed("boot")
    journal.record("stacklab.step.started", key="boot")  # and then the process was killed
    assert not journal.passed("boot")


def test_forget_takes_a_prefix_and_is_itself_recorded(journal: Journal) -> None:
    keys = ["layer-1/boot", "layer-1/apply", "layer-2/boot", "layer_1/boot"]
    for key in keys:
        with journal.step("x", key=key):
            pass
    journal.forget("layer-1/")
    assert [journal.passed(key) for key in keys] == [False, False, True, True]
    assert kinds(journal)[-1] == "step.forgotten"
    with journal.step("x", key="layer-1/boot"):
        pass
    assert journal.passed("layer-1/boot")
    journal.forget("")
    assert not any(map(journal.passed, keys))


def test_a_step_without_a_key_never_counts_as_passed(journal: Journal) -> None:
    with journal.step("look"):
        pass
    assert not journal.passed("")


# Readers and listeners


def test_listeners_hear_each_event_in_order_until_they_leave(journal: Journal) -> None:
    heard: list[int] = []
    leave = journal.subscribe(lambda event: heard.append(event.id))
    threads = [
        threading.Thread(target=lambda: [journal.record("stacklab.a") for _ in range(50)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    leave()
    leave()
    journal.record("stacklab.b")
    assert heard == list(range(1, 201))


def test_a_listener_that_fails_is_dropped_and_the_work_goes_on(journal: Journal) -> None:
    calls: list[Event] = []

    def broken(event: Event) -> None:
        calls.append(event)
        raise RuntimeError("the terminal is gone")

    journal.subscribe(broken)
    journal.record("stacklab.a")
    journal.record("stacklab.b")
    assert len(calls) == 1
    assert kinds(journal) == ["a", "b"]


def write_events(path: Path, count: int) -> None:
    with Journal(path) as journal:
        for number in range(count):
            journal.record("stacklab.written", number=number)


def test_a_reader_follows_while_other_processes_write(journal: Journal, path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_events, args=(path, 100)) for _ in range(2)]
    for writer in writers:
        writer.start()
    done = lambda: not any(writer.is_alive() for writer in writers)  # noqa: E731
    events = list(journal.follow(poll=0.02, until=done))
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert [event.id for event in events] == list(range(1, 201))


def test_several_may_make_it_at_the_same_moment(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        together.wait()
        write_events(path, 1)

    together = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for number in range(100):
            list(pool.map(write, [tmp_path / f"{number}.db"] * 4))


def write_and_die(path: Path) -> None:
    journal = Journal(path)
    with journal.step("boot", key="boot"):
        journal.record("stacklab.a")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_process_loses_nothing_that_it_recorded(journal: Journal, path: Path) -> None:
    writer = multiprocessing.get_context("spawn").Process(target=write_and_die, args=(path,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    assert kinds(journal) == ["step.started", "a"]
    assert not journal.passed("boot")


def test_following_ends_when_the_lab_is_destroyed(journal: Journal, path: Path) -> None:
    journal.record("stacklab.a")
    events = journal.follow(poll=0.01)
    assert next(events).type == "stacklab.a"
    threading.Timer(0.05, path.unlink).start()
    assert list(events) == []


# Files that are no journal


def assert_unusable(path: Path, words: str, *, hint: str = "") -> None:
    uses: list[Callable[[Journal], object]] = [
        lambda journal: journal.read(),
        lambda journal: journal.record("stacklab.a"),
        lambda journal: journal.passed("x"),
    ]
    for use in uses:
        with Journal(path) as journal, pytest.raises(JournalUnusable, match=words) as caught:
            use(journal)
        assert str(path) in caught.value.message
        assert hint in caught.value.hint


def test_a_file_of_another_kind_is_named(path: Path) -> None:
    path.write_text("not a journal at all\n" * 100)
    assert_unusable(path, "damaged", hint=f"mv {path}")


def test_a_truncated_file_is_named(journal: Journal, path: Path) -> None:
    for _ in range(500):
        journal.record("stacklab.a", text="x" * 100)
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with Journal(path) as cut, pytest.raises(JournalUnusable, match="damaged"):
        cut.read()


def test_a_header_cut_short_is_named(journal: Journal, path: Path) -> None:
    journal.record("stacklab.a")
    journal.close()
    path.write_bytes(path.read_bytes()[:50])
    assert_unusable(path, "damaged")


def test_a_write_ahead_log_cut_in_the_middle_loses_only_its_end(journal: Journal, path: Path) -> None:
    for _ in range(10):
        journal.record("stacklab.a")
    log = path.with_name("journal.db-wal")
    copy = path.parent / "copy"
    copy.mkdir()
    (copy / "journal.db").write_bytes(path.read_bytes())
    (copy / "journal.db-wal").write_bytes(log.read_bytes()[:-1000])
    with Journal(copy / "journal.db") as survivor:
        assert [event.id for event in survivor.read()] == list(range(1, 10))
        assert survivor.record("stacklab.b").id == 10


def test_another_sqlite_file_and_a_newer_journal_are_refused(journal: Journal, path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert_unusable(path, "not a journal")
    path.unlink()
    journal.record("stacklab.a")
    journal.close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert_unusable(path, "newer stacklab")


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path / "gone" / "journal.db") as journal:
        assert journal.read() == []
        with pytest.raises(JournalUnusable, match="cannot be written"):
            journal.record("stacklab.a")


def test_a_full_disk_shows_the_error_of_the_step(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StepFailed, match="no space for the image"), journal.step("image"):
        journal.close()
        journal.path = Path("/dev/full/journal.db")  # where nothing can be written any more
        raise StepFailed("no space for the image")


@contextmanager
def no_room() -> Iterator[None]:
    """Meanwhile no file of this process grows, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_a_journal_that_nobody_writes_is_read_and_goes_on_when_there_is_room(
    journal: Journal, path: Path
) -> None:
    first = journal.record("stacklab.node.started")
    journal.close()
    with no_room():
        assert journal.read() == [first]
        assert journal.newest() == first.id
        with pytest.raises(JournalUnusable, match=r"cannot be written: the disk is full") as raised:
            journal.record("stacklab.node.stopped")
        assert raised.value.hint.startswith("df -h")
        assert journal.read() == [first]
    second = journal.record("stacklab.node.stopped")
    assert journal.read() == [first, second]


def test_on_a_full_disk_a_journal_is_not_read_without_what_is_in_its_log(
    journal: Journal, path: Path
) -> None:
    """Its process was killed, and the index of the log has gone."""
    journal.record("stacklab.node.started")
    log = path.with_name("journal.db-wal").read_bytes()
    journal.close()
    path.with_name("journal.db-wal").write_bytes(log)
    with no_room(), pytest.raises(JournalUnusable, match="cannot be read: the disk is full"):
        journal.read()
