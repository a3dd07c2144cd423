"""Which job is whose and what became of it, as objects that are made once and never changed.

Below `.batch/state/SHARD/` an object says of attempt K of a job, by its name alone, what happened:

    ID.K.claim      a process has taken it; of those who try at once, one succeeds
    ID.K.released   that process gave it back, which does not count as an attempt
    ID.K.failed     it failed and may be tried again
    ID.K.final      it failed, and is not tried again ...
    ID.K.retry      ... unless the user says so
    ID.done         the receipt: by whom, in what time, what it mapped; removed where the user wants it done again

So one listing of names tells the state of the whole batch, and a process that looked too early loses nothing but an
attempt to make an object that is already there: every change of hands needs a claim of a new number.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from geodino.batch.jobs import STATE, Job, shard
from geodino.batch.leases import Pulses
from geodino.stores import Store

State = Literal["waiting", "claimed", "failed", "done"]
Mark = Literal["claim", "released", "failed", "final", "retry"]
Receipt = dict[str, JsonValue]

# A job that took its process down so often is not tried again.
MOST_ATTEMPTS = 3
# Lost to others in a row, after which their names are listed anew.
_MOST_LOST = 16
DIED = "its process died"


@dataclass(slots=True)
class Track:
    """What is known of one job: the marks of each attempt, counted from 1, and whether its receipt is there."""

    attempts: dict[int, set[str]] = field(default_factory=dict)
    done: bool = False

    @property
    def newest(self) -> int:
        return max(self.attempts, default=0)

    @property
    def state(self) -> State:
        marks = self.attempts.get(self.newest, {"released"})
        if self.done:
            return "done"
        if "final" in marks and "retry" not in marks:
            return "failed"
        return "claimed" if marks == {"claim"} else "waiting"

    @property
    def tries(self) -> int:
        """Attempts that count, since the user last asked for another."""
        asked = max((k for k, marks in self.attempts.items() if "retry" in marks), default=0)
        return sum(k > asked and "released" not in marks for k, marks in self.attempts.items())


def read_tracks(store: Store) -> dict[str, Track]:
    """What has happened to every job that was ever begun, by one listing."""
    tracks: dict[str, Track] = {}
    for entry in store.entries(f"{STATE}/"):
        name, _, mark = entry.key.rsplit("/", 1)[-1].rpartition(".")
        if mark == "done":
            tracks.setdefault(name, Track()).done = True
        else:
            job_id, _, number = name.rpartition(".")
            tracks.setdefault(job_id, Track()).attempts.setdefault(int(number), set()).add(mark)
    return tracks


def read_receipt(store: Store, job_id: str, what: str) -> Receipt | None:
    """What an object says, such as `done` or `2.final`; None where there is none. `2.done` is `done`."""
    content = store.get(_key(job_id, "done" if what.endswith(".done") else what))
    return None if content is None else json.loads(content)


class Ledger:
    """The batch as one of its processes sees it.

    Parameters
    ----------
    jobs
        All of them, in the order of the mosaic.
    owner, pulses
        This process's name, and the others' signs of life.

    Attributes
    ----------
    tracks
        Of every job by its id, as of the last `refresh` and this process's own doings; so are the two numbers.
    ended, failures
        How many jobs are done or have failed, and how many have failed.
    """

    def __init__(self, store: Store, jobs: Sequence[Job], owner: str, pulses: Pulses) -> None:
        self.store, self.owner, self._pulses = store, owner, pulses
        self._jobs = {job.id: job for job in jobs}
        self.tracks: dict[str, Track] = {}
        self.ended = self.failures = 0
        self._queue: list[str] = []
        self._held: dict[str, int] = {}
        self._owners: dict[str, str] = {}
        self._aside: set[str] = set()
        self._spread = 1
        self.refresh()

    def refresh(self) -> None:
        """Learn what the others have done, and give up what dead processes held."""
        self.tracks = read_tracks(self.store)
        dead: dict[str, bool] = {}
        waiting = []
        self.ended = self.failures = 0
        for job_id, job in self._jobs.items():
            track = self.tracks.setdefault(job_id, Track())
            state = track.state
            if state == "claimed" and job_id not in self._held and self._is_dead(job_id, track, dead):
                state = self._taken_from_the_dead(job_id, track)
            self.ended += state in ("done", "failed")
            self.failures += state == "failed"
            if state == "waiting" and job_id not in self._held:
                waiting.append((job_id not in self._aside, -track.tries, job.hectares, job_id))
        self._queue = [job_id for *_, job_id in sorted(waiting)]
        self._aside = set()

    def claim(self) -> tuple[Job, int] | None:
        """The next job for this process and the number of its attempt, the largest first; None where none waits."""
        lost = 0
        while self._queue:
            # Whoever begins together meets at the largest; who has lost looks elsewhere from then on, as far as to
            # the middle of the largest quarter on average.
            place = random.randrange(max(1, min(self._spread, len(self._queue) // 4)))
            job_id = self._queue.pop(-1 - place)
            number = self.tracks[job_id].newest + 1
            if self._mark(job_id, number, "claim", {"owner": self.owner}):
                self._held[job_id] = number
                return self._jobs[job_id], number
            lost += 1
            self._spread = min(4 * self._spread + 4, len(self._jobs))
            if lost % _MOST_LOST == 0:
                self.refresh()
        return None

    def done(self, job_id: str, receipt: Receipt) -> bool:
        """Write a job's receipt; False where another process was faster, after this one was taken for dead."""
        number = self._held.pop(job_id)
        self.tracks[job_id].done = True
        self.ended += 1
        said: Receipt = {"id": job_id, "key": self._jobs[job_id].key, "attempt": number, "owner": self.owner}
        return self._made(_key(job_id, "done"), said | receipt)

    def failed(self, job_id: str, receipt: Receipt, *, again: bool) -> bool:
        """Note a failure; True where the job is not tried again: it may not be, or was often enough."""
        number = self._held.pop(job_id)
        final = not again or self.tracks[job_id].tries >= MOST_ATTEMPTS
        self._mark(job_id, number, "final" if final else "failed", receipt)
        if final:
            self.ended, self.failures = self.ended + 1, self.failures + 1
        else:
            self._queue.insert(0, job_id)
        return final

    def put_aside(self, job_id: str) -> None:
        """Give a job back, uncounted, which another process is at; it waits again after the next `refresh`."""
        self._mark(job_id, self._held.pop(job_id), "released", {})
        self._aside.add(job_id)

    def release(self) -> None:
        """Give back all that this process holds, uncounted, for others to take at once."""
        for job_id, number in list(self._held.items()):
            self._mark(job_id, number, "released", {})
            del self._held[job_id]

    @property
    def waiting(self) -> bool:
        """Whether any job can be taken at once."""
        return bool(self._queue)

    @property
    def aside(self) -> bool:
        """Whether any job was put aside since the last `refresh`."""
        return bool(self._aside)

    def others(self) -> int:
        """How many jobs other processes hold, as of the last refresh."""
        return sum(self.tracks[job_id].state == "claimed" for job_id in self._jobs if job_id not in self._held)

    def silent(self) -> Iterator[tuple[str, int, float]]:
        """(owner, jobs that it holds, seconds without a sign) of those who should have given one."""
        held = Counter(
            self._owners.get(f"{job_id}.{track.newest}", "")
            for job_id, track in self.tracks.items()
            if track.state == "claimed" and job_id not in self._held
        )
        for owner, number in held.items():
            silent_s = self._pulses.silent_s(owner)
            if silent_s is not None:
                yield owner, number, silent_s

    def _is_dead(self, job_id: str, track: Track, dead: dict[str, bool]) -> bool:
        claim = f"{job_id}.{track.newest}"
        if claim not in self._owners:
            said = read_receipt(self.store, job_id, f"{track.newest}.claim")
            self._owners[claim] = str(said["owner"]) if said else ""
        owner = self._owners[claim]
        if owner not in dead:
            dead[owner] = self._pulses.is_dead(owner)
        return dead[owner]

    def _taken_from_the_dead(self, job_id: str, track: Track) -> State:
        if track.tries < MOST_ATTEMPTS:
            return "waiting"
        sentence = f"{track.tries} processes died while they ran it: give it more memory, or leave it out"
        self._mark(job_id, track.newest, "final", {"cause": DIED, "error": sentence, "seconds": 0.0})
        return "failed"

    def _mark(self, job_id: str, number: int, mark: Mark, receipt: Receipt) -> bool:
        self.tracks[job_id].attempts.setdefault(number, {"claim"}).add(mark)
        said: Receipt = {"id": job_id, "attempt": number}
        return self._made(_key(job_id, f"{number}.{mark}"), said | receipt)

    def _made(self, key: str, receipt: Receipt) -> bool:
        """Whether this process made the object: the answer may be lost, and the next try find it there."""
        content = json.dumps(receipt).encode()
        return self.store.create(key, content) or self.store.get(key) == content


def forgive(store: Store) -> list[str]:
    """Let every job that has failed be tried again; their ids."""
    forgiven = []
    for job_id, track in read_tracks(store).items():
        if track.state == "failed":
            store.create(_key(job_id, f"{track.newest}.retry"), b"{}")
            forgiven.append(job_id)
    return forgiven


def revoke(store: Store, job_ids: Iterable[str]) -> None:
    """Let jobs that are done be done again; their results stay until new ones take their place."""
    tracks = read_tracks(store)
    for job_id in job_ids:
        # The mark first: an attempt without a receipt and without a mark is one that died.
        store.create(_key(job_id, f"{tracks[job_id].newest}.retry"), b"{}")
        store.delete(_key(job_id, "done"))


def receipts(tracks: dict[str, Track]) -> Iterator[tuple[str, str]]:
    """(id, what) of each receipt that says how a job ended, as of its newest attempt: `2.done`, `1.final`."""
    for job_id, track in tracks.items():
        marks = track.attempts.get(track.newest, set())
        if track.done:
            yield job_id, f"{track.newest}.done"
        elif marks & {"final", "failed"}:
            yield job_id, f"{track.newest}.{'final' if 'final' in marks else 'failed'}"


def _key(job_id: str, what: str) -> str:
    return f"{STATE}/{shard(job_id)}/{job_id}.{what}"
