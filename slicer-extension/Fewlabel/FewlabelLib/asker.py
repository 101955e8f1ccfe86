"""What the lead's and the reviewer's panels share: one request at a time, its failure as a message, listeners."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .client import Fault
from .jobs import Job, Jobs
from .session import Message


class Asker:
    """Asks the server for one thing at a time and tells who listens. On the main thread, but the work of its jobs."""

    def __init__(self, jobs: Jobs) -> None:
        self.on_change: list[Callable[[], None]] = []
        self.message: Message | None = None
        self._jobs = jobs
        self._job: Job | None = None
        """What was asked last and is not answered yet."""
        self._order: Job | None = None
        """The same, of what changes something."""

    def _run(self, name: str, work: Callable[[Job], Any], done: Callable[[Any], None], order: bool = False, aside: bool = False) -> None:
        """An `order` changes something at the server, also when its answer is lost. Nobody waits for what is asked `aside`."""

        def answered() -> None:
            self._job = None if self._job is job else self._job
            self._order = None if self._order is job else self._order

        def finished(result: Any) -> None:
            answered()
            done(result)

        def failed(fault: Fault) -> None:
            answered()
            unsure = order and fault.kind in ("timeout", "cut")
            safe = "It may have been done all the same: refresh and look." if unsure else "Nothing was changed."
            self.message = Message("error", fault.what, safe, fault.next_step)
            self._changed()

        job = self._jobs.start("watch", name, work, finished, failed)
        self._job = self._job if aside else job
        self._order = job if order else self._order
        self._changed()

    def _changed(self) -> None:
        for call in self.on_change:
            call()
