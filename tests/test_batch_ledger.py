"""Each job of a batch is one process's at a time, done once, and never lost."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from batch_work import do, lines, small_batch
from hypothesis import given, settings
from hypothesis import strategies as st

from geodino.batch.asked import Batch
from geodino.batch.index import failed, finished, select, update_index
from geodino.batch.jobs import Job, add_jobs, read_jobs, with_ids, write_jobs
from geodino.batch.leases import Process, Pulse, Pulses, turn
from geodino.batch.ledger import DIED, MOST_ATTEMPTS, Ledger, forgive, read_receipt, read_tracks
from geodino.batch.manifest import require_same, the_manifest
from geodino.batch.status import read_status
from geodino.errors import ConfigError, OutputError
from geodino.stores import Store
from geodino.watch import Silent

NAMES = [f"job{number:02}" for number in range(12)]


class Clock:
    """A monotonic clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def ledger_of(batch: Batch, owner: str, clock: Clock | None = None) -> Ledger:
    pulses = Pulses(batch.store, 10.0, clock=clock or Clock())
    return Ledger(batch.store, batch.jobs, owner, pulses)


def sign(batch: Batch, owner: str, beats: int = 0) -> None:
    batch.store.put(f".batch/owners/{owner}.json", f"{owner} {beats}".encode())


def begin_process(folder: Path, names: list[str], lease_s: float = 1.0) -> subprocess.Popen[bytes]:
    script = Path(__file__).parent / "batch_work.py"
    return subprocess.Popen([sys.executable, script, folder, ",".join(names), str(lease_s)])


def test_of_many_who_claim_at_once_each_job_goes_to_one(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, [f"job{number:03}" for number in range(60)])

    def claim_all(number: int) -> list[str]:
        ledger = ledger_of(batch, f"owner{number}")
        taken = []
        while (found := ledger.claim()) is not None:
            taken.append(found[0].id)
        return taken

    for number in range(8):
        sign(batch, f"owner{number}")
    with ThreadPoolExecutor(8) as together:
        taken = [job_id for each in together.map(claim_all, range(8)) for job_id in each]
    assert sorted(taken) == [job.id for job in batch.jobs]


def test_the_largest_job_is_taken_first_and_one_that_failed_last(tmp_path: Path) -> None:
    ledger = ledger_of(small_batch(tmp_path, ["large", "middle", "small"]), "me")
    found = ledger.claim()
    assert found is not None and (found[0].id, found[1]) == ("large", 1)
    assert not ledger.failed("large", {"cause": "x", "error": "x"}, again=True)
    rest = [ledger.claim() for _ in range(4)]
    assert [(job.id, attempt) for job, attempt in filter(None, rest)] == [("middle", 1), ("small", 1), ("large", 2)]


def test_a_job_is_taken_over_when_its_process_has_given_no_sign_for_a_lease_and_not_before(tmp_path: Path) -> None:
    batch, clock = small_batch(tmp_path, ["only"]), Clock()
    sign(batch, "silent")
    assert ledger_of(batch, "silent").claim() is not None
    mine = ledger_of(batch, "me", clock)
    assert mine.claim() is None and mine.others() == 1
    clock.now += 9
    mine.refresh()
    assert mine.claim() is None
    sign(batch, "silent", beats=1)  # it lives
    clock.now += 9
    mine.refresh()
    assert mine.claim() is None
    clock.now += 11
    mine.refresh()
    found = mine.claim()
    assert found is not None and found[1] == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell processes apart")
def test_what_a_killed_process_held_is_taken_over_at_once_on_its_machine(tmp_path: Path) -> None:
    process = begin_process(tmp_path, ["poison", "good"], lease_s=300)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still listed
    batch = small_batch(tmp_path, ["poison", "good"], lease_s=300)
    pulses = Pulses(batch.store, 300.0)
    found = Ledger(batch.store, batch.jobs, "me", pulses).claim()
    assert process.wait(30) == -signal.SIGKILL
    assert found == (batch.jobs[1], 1)  # what killed one process comes last
    ledger = Ledger(batch.store, batch.jobs, "you", pulses)
    assert ledger.claim() == (batch.jobs[0], 2)
    assert len(list(batch.store.entries(".batch/owners/"))) == 1
    pulses.bury()
    assert not list(batch.store.entries(".batch/owners/"))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell processes apart")
def test_only_who_would_see_a_process_takes_it_for_dead_where_it_is_not_there(tmp_path: Path) -> None:
    store, me = Store(str(tmp_path)), Process.this()
    assert me is not None
    clock = Clock()
    pulses = Pulses(store, 300.0, clock=clock)

    def is_dead(process: Process) -> bool:
        store.put(".batch/owners/it.json", json.dumps({"process": asdict(process)}).encode())
        return pulses.is_dead("it")

    assert not is_dead(me)
    unseen = replace(me, began=me.began - 1)  # its number is another's by now
    clock.now += 50
    assert pulses.silent_s("it") == 50
    assert is_dead(unseen) and pulses.silent_s("it") is None
    for elsewhere in ({"host": "other"}, {"boot": "other"}, {"space": "other"}):
        assert not is_dead(replace(unseen, **elsewhere))  # type: ignore[arg-type]


def test_whoever_waits_for_a_silent_process_says_so_once(tmp_path: Path) -> None:
    class Noting(Silent):
        def note(self, sentence: str) -> None:
            notes.append(sentence)

    notes: list[str] = []
    batch = small_batch(tmp_path, ["only"])
    sign(batch, "far-away-27272-ab")
    assert ledger_of(batch, "far-away-27272-ab").claim() is not None
    assert do(batch, Noting()).done == 1
    (said,) = (note for note in notes if "held" in note)
    assert said == (
        "1 job is held by process 27272 on far-away, which gave no sign for 0 s; it is taken over after 1 s"
    )


def test_a_process_that_was_taken_for_dead_writes_no_second_receipt(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, ["only"])
    slow = ledger_of(batch, "slow")
    assert slow.claim() is not None
    fast = ledger_of(batch, "fast")  # `slow` has given no sign at all
    assert fast.claim() is not None
    assert fast.done("only", {"hectares": 1.0})
    assert not slow.done("only", {"hectares": 2.0})
    receipt = read_receipt(batch.store, "only", "done")
    assert receipt is not None and (receipt["owner"], receipt["hectares"]) == ("fast", 1.0)


def test_a_claim_whose_answer_was_lost_is_still_ones_own(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, ["only"])
    first = ledger_of(batch, "me")
    again = ledger_of(batch, "me")  # as the same process asks twice, not knowing that it was heard
    assert first.claim() is not None
    assert again.claim() is not None


def test_a_job_that_took_its_processes_down_is_given_up(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, ["poison", "good"])
    for number in range(MOST_ATTEMPTS):
        ledger = ledger_of(batch, f"dead{number}")
        found = ledger.claim()
        while found is not None and found[0].id != "poison":
            found = ledger.claim()
        assert found == (batch.jobs[0], number + 1)
    ledger = ledger_of(batch, "me")
    assert ledger.failures == 1
    receipt = read_receipt(batch.store, "poison", f"{MOST_ATTEMPTS}.final")
    assert receipt is not None and receipt["cause"] == DIED


def test_what_is_given_back_counts_as_no_attempt_and_what_the_user_asks_for_again_counts_anew(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, ["only"])
    for _ in range(MOST_ATTEMPTS + 1):
        ledger = ledger_of(batch, "me")
        assert ledger.claim() is not None
        ledger.release()
    for _ in range(2):
        ledger = ledger_of(batch, "me")
        for number in range(MOST_ATTEMPTS):
            assert ledger.claim() is not None
            assert ledger.failed("only", {"cause": "x", "error": "x"}, again=True) == (number == MOST_ATTEMPTS - 1)
        assert ledger.claim() is None and ledger_of(batch, "me").claim() is None
        assert forgive(batch.store) == ["only"]
    assert ledger_of(batch, "me").claim() is not None


@settings(max_examples=20)
@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["claim", "done", "failed", "die", "refresh"]))))
def test_whatever_happens_in_whatever_order_no_job_is_two_processes_and_none_is_lost(
    tmp_path_factory: pytest.TempPathFactory, doings: list[tuple[int, str]]
) -> None:
    batch = small_batch(tmp_path_factory.mktemp("batch"), NAMES[:4])
    held: dict[int, list[str]] = {0: [], 1: [], 2: []}
    names = {number: f"owner{number}" for number in held}
    for name in names.values():
        sign(batch, name)
    ledgers = {number: ledger_of(batch, name) for number, name in names.items()}
    for number, what in doings:
        if what == "claim" and (found := ledgers[number].claim()) is not None:
            assert not any(found[0].id in jobs for jobs in held.values())
            held[number].append(found[0].id)
        elif what in ("done", "failed") and held[number]:
            job_id = held[number].pop()
            if what == "done":
                assert ledgers[number].done(job_id, {})
            else:
                ledgers[number].failed(job_id, {"cause": "x", "error": "x"}, again=True)
        elif what == "die":
            batch.store.delete(f".batch/owners/{names[number]}.json")
            held[number], names[number] = [], f"{names[number]}x"
            sign(batch, names[number])
            ledgers[number] = ledger_of(batch, names[number])
        elif what == "refresh":
            ledgers[number].refresh()
    for name in names.values():
        batch.store.delete(f".batch/owners/{name}.json")
    for _ in range(MOST_ATTEMPTS + 1):
        last = ledger_of(batch, "last")
        while (found := last.claim()) is not None:
            last.done(found[0].id, {})
    assert {track.state for track in read_tracks(batch.store).values()} <= {"done", "failed"}
    assert len(read_tracks(batch.store)) == 4


def test_jobs_that_fail_are_tried_again_or_not_and_the_rest_is_done(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, ["good", "bad", "flaky", "fine"])
    ended = do(batch)
    assert (ended.done, ended.failed) == (3, 1)
    assert sorted(lines(tmp_path, "done")) == ["fine", "flaky", "good"]
    status = read_status(batch.store)
    assert (status.done, status.failed, status.waiting, status.processes) == (3, 1, 0, 0)
    assert status.causes["made to fail"].example == "bad"
    assert "1 job failed: made to fail, such as bad: bad fails" in status.as_text()
    assert "jobs cover 7.0 ha, overlaps counted in each" in status.as_text()


def test_a_batch_is_left_when_more_jobs_fail_than_may(tmp_path: Path) -> None:
    ended = do(small_batch(tmp_path, ["bad1", "bad2", "bad3", "good"]), max_failures=1)
    assert ended.stopped is not None and ended.failed == 2
    assert lines(tmp_path, "done") == []


def test_a_batch_whose_jobs_have_all_ended_is_at_its_end_whatever_failed(tmp_path: Path) -> None:
    ended = do(small_batch(tmp_path, ["good", "bad1", "bad2"]), max_failures=1)
    assert ended.stopped is None and (ended.done, ended.failed) == (1, 2)


def test_the_index_tells_what_the_receipts_say_and_heals(tmp_path: Path) -> None:
    batch = small_batch(tmp_path / "out", ["good", "bad", "fine"])
    do(batch)
    (tmp_path / "scratch").mkdir()
    for damage in (False, True):
        if damage:
            batch.store.put("ledger.sqlite", b"SQLite format 3\0 and no more")
        path = update_index(batch.store, batch.jobs, read_tracks(batch.store), tmp_path / "scratch")
        assert [job.id for job in finished(path)] == ["good", "fine"]
        assert [(job.id, job.error) for job in failed(path)] == [("bad", "bad fails")]
        rows = select(path, "SELECT id, state, attempts, hectares, trees FROM jobs ORDER BY place")
        assert rows[0] == ("good", "done", 1, 3.0, 3)


def test_other_settings_are_refused_and_shown(tmp_path: Path) -> None:
    batch = small_batch(tmp_path, ["only"])
    manifest = the_manifest(batch.store)
    require_same(batch.store, manifest, manifest.settings)
    options = manifest.settings["options"]
    assert isinstance(options, dict)
    with pytest.raises(ConfigError, match=r"options\.model was nano and is chmv2"):
        require_same(batch.store, manifest, manifest.settings | {"options": options | {"model": "chmv2"}})
    with pytest.raises(OutputError, match="holds no batch"):
        the_manifest(Store(str(tmp_path / "elsewhere")))


def test_ids_are_safe_and_one_of_a_kind(tmp_path: Path) -> None:
    names = ["../../etc/passwd", "scene", "Scene", "x" * 300, "", "a.1.claim", "scene", "plain-1"]
    jobs = with_ids([named(name, place) for place, name in enumerate(names)])
    assert jobs[-1].id == "plain-1"
    assert len({job.id.lower() for job in jobs}) == len(names)
    assert all(set(job.id) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_") for job in jobs)
    assert all(0 < len(job.id) < 100 for job in jobs)
    store = Store(str(tmp_path))
    assert read_jobs(store, *write_jobs(store, jobs)) == jobs
    key, digest = write_jobs(store, jobs)
    store.put(key, b"cut off")
    with pytest.raises(OutputError, match="damaged"):
        read_jobs(store, key, digest)


def named(name: str, place: float) -> Job:
    return Job("", name, "0,0,1,1", None, 1.0, order=(place, math.inf, (name, str(place))))


def test_new_jobs_join_a_list_once_whoever_adds_them_and_the_known_keep_their_ids(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    first = with_ids([named("a", 1.0), named("c", 3.0)])
    lists = write_jobs(store, first)
    # As a catalog lists them later: ids are made anew, one scene is gone, and another has the name of one that stays.
    later = with_ids([named("new", 0.0), named("a", 1.0), named("a", 2.0)])
    with ThreadPoolExecutor(8) as pool:
        added = list(pool.map(lambda _: add_jobs(store, *lists, later), range(8)))
    assert sorted(map(len, added)) == [0] * 7 + [2]
    jobs = read_jobs(store, *lists)
    assert [(job.name, job.order and job.order[0]) for job in jobs] == [
        ("new", 0.0),
        ("a", 1.0),
        ("a", 2.0),
        ("c", 3.0),
    ]
    assert (jobs[1], jobs[3]) == tuple(first) and jobs[2].id.startswith("a-")
    assert [job.id for job in add_jobs(store, *lists, [*later, *with_ids([named("d", 9.0)])])] == ["d"]
    assert [job.id for job in read_jobs(store, *lists)][-1] == "d"
    store.put(".batch/more/3", b"cut off")
    with pytest.raises(OutputError, match=r"more/3 is damaged"):
        read_jobs(store, *lists)


def test_a_turn_is_one_processs_and_lost_by_who_dies_in_it(tmp_path: Path) -> None:
    store, clock = Store(str(tmp_path)), Clock()
    with (
        Pulse(store, 10.0) as pulse,
        turn(store, "gather", pulse.owner, Pulses(store, 10.0, clock=clock), pause_s=0.01),
        ThreadPoolExecutor(1) as other,
    ):

        def take() -> bool:
            with turn(store, "gather", "other", Pulses(store, 10.0, clock=clock), pause_s=0.01):
                return True

        waiting = other.submit(take)
        time.sleep(0.2)
        assert not waiting.done()
        clock.now += 100  # the pulse's first renewal is 1 s away
        assert waiting.result(5)


def test_two_processes_at_once_do_each_job_once(tmp_path: Path) -> None:
    processes = [begin_process(tmp_path, NAMES) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert sorted(lines(tmp_path, "done")) == NAMES
    assert Counter(line.split()[1] for line in lines(tmp_path, "begun")) == {"1": len(NAMES)}


@pytest.mark.slow
def test_killed_anywhere_a_batch_goes_on_and_ends_with_every_job_done_once(tmp_path: Path) -> None:
    chance, kills = random.Random(6), 6
    names = [f"job{number:03}" for number in range(300)]
    processes = [begin_process(tmp_path, names) for _ in range(2)]
    for _ in range(kills):
        victim = chance.randrange(2)
        # Before it has begun a job there is nothing to lose by its death.
        while not has_begun(tmp_path, processes[victim].pid):
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))
        processes[victim].send_signal(signal.SIGKILL)
        processes[victim].wait()
        processes[victim] = begin_process(tmp_path, names)
    assert [process.wait(120) for process in processes] == [0, 0]
    tracks = read_tracks(Store(str(tmp_path)))
    assert {job_id for job_id, track in tracks.items() if track.state == "done"} == set(names)
    # A job that is cut short is begun again, and none else is.
    begun = Counter(line.split()[0] for line in lines(tmp_path, "begun"))
    assert len(names) < sum(begun.values()) <= len(names) + kills


def has_begun(folder: Path, pid: int) -> bool:
    return any(line.endswith(f" {pid}") for line in lines(folder, "begun"))
