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

    def _run(self, name: str, work: Callable[[Job], Any], done: Callable[[Any], None]) -> None:
        def finished(result: Any) -> None:
            self._job = None
            done(result)

        def failed(fault: Fault) -> None:
            self._job = None
            self.message = Message("error", fault.what, "Nothing was changed.", fault.next_step)
            self._changed()

        self._job = self._jobs.start("watch", name, work, finished, failed)
        self._changed()

    def _changed(self) -> None:
        for call in self.on_change:
            call()
