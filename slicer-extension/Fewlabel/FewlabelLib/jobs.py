"""Work off the main thread, and its results back on it.

Slicer's main thread keeps Python's lock while it waits in Qt's event loop, so a thread alone would starve. While work
is pending a timer of the main thread calls `tick`, which waits a few milliseconds without the lock: threads run in that
time. Nothing of Qt or MRML may be used in the work itself; `done` and `failed` run on the main thread.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from .client import Cancel, Fault

TICK_MS = 20
GIVE_S = 0.008
"""How long a tick gives to the threads."""


class Timer(Protocol):
    """A timer of the main thread that calls `Jobs.tick` every `TICK_MS`."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


class Job:
    """One piece of work: `work(job)` in a thread, then `done` or `failed` on the main thread."""

    def __init__(self, name: str, work: Callable[[Job], Any], done: Callable[[Any], None], failed: Callable[[Fault], None]) -> None:
        self.name = name
        self.cancel = Cancel()
        self.started_s = time.monotonic()
        self.text = ""
        """What it is doing, for the user. Set by the work; reading it is safe at any time."""
        self._work, self._done, self._failed = work, done, failed

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started_s

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A callback that tells how much of something has been transferred."""

        def tell(done: int, total: int) -> None:
            self.cancel.check()
            self.text = f"{what}: {done / 1e6:.0f} of {total / 1e6:.0f} MB" if total else f"{what}: {done / 1e6:.0f} MB"

        return tell

    def run(self) -> Callable[[], None]:
        """Does the work; what is to be called on the main thread."""
        try:
            self.cancel.check()
            result = self._work(self)
        except Fault as fault:
            return self._telling(fault)
        except OSError as error:
            # The client tells of the network itself.
            fault = Fault("disk", f"The disk of this computer cannot be used: {error.strerror or error}.", "Make room on it, or ask your administrator; then try again.")
            return self._telling(fault)
        except Exception as error:
            detail = "".join(traceback.format_exception(error))
            fault = Fault("bug", f"The extension failed: {type(error).__name__}: {error}", f"Save your scene and report this:\n{detail}")
            return self._telling(fault)
        return lambda: None if self.cancel.is_set() else self._done(result)

    def _telling(self, fault: Fault) -> Callable[[], None]:
        # A cancelled job was told to the user when it was cancelled.
        return lambda: None if self.cancel.is_set() else self._failed(fault)


class Jobs:
    """Threads, one for each lane: what is in the same lane happens one after the other."""

    def __init__(self, timer: Timer) -> None:
        self._timer = timer
        self._lanes: dict[str, queue.SimpleQueue[Job | None]] = {}
        self._results: queue.SimpleQueue[tuple[Job, Callable[[], None]]] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._pending: set[Job] = set()
        self._closed = False

    def start(
        self, lane: str, name: str, work: Callable[[Job], Any], done: Callable[[Any], None], failed: Callable[[Fault], None]
    ) -> Job:
        """Puts work behind what the lane has already. Call on the main thread."""
        job = Job(name, work, done, failed)
        if self._closed:
            job.cancel.set()
            return job
        if lane not in self._lanes:
            self._lanes[lane] = queue.SimpleQueue()
            # A daemon, because Slicer must be able to quit while a server does not answer.
            threading.Thread(target=self._serve, args=(self._lanes[lane],), daemon=True, name=f"fewlabel-{lane}").start()
        self._pending.add(job)
        self._lanes[lane].put(job)
        self._timer.start()
        return job

    @property
    def pending(self) -> set[Job]:
        return self._pending

    def stop(self, job: Job | None) -> None:
        """Ends a job; neither `done` nor `failed` will be called."""
        if job is not None:
            job.cancel.set()

    def tick(self) -> None:
        """Gives the threads some time, and calls what is finished. Call on the main thread, by the timer."""
        if self._pending:
            self._ready.wait(GIVE_S)
        self._ready.clear()
        while True:
            try:
                job, call = self._results.get_nowait()
            except queue.Empty:
                break
            self._pending.discard(job)
            call()
        if not self._pending:
            self._timer.stop()

    def close(self) -> None:
        """Cancels everything; the threads end by themselves."""
        self._closed = True
        for job in self._pending:
            job.cancel.set()
        self._pending.clear()
        for lane in self._lanes.values():
            lane.put(None)
        self._timer.stop()

    def _serve(self, lane: queue.SimpleQueue[Job | None]) -> None:
        while (job := lane.get()) is not None:
            self._results.put((job, job.run()))
            self._ready.set()
