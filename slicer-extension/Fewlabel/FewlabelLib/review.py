"""Submitted cases: who submitted what when, two readers beside each other, approved or sent back with a comment."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import nrrd
from .asker import Asker
from .client import Client, Fault
from .jobs import Job, Jobs
from .lead import dice
from .session import Button, Case, Message, Shown, ready_to_load

_VERDICTS = {"": "to be reviewed", "approved": "approved", "sent_back": "sent back"}


@dataclass(frozen=True)
class Submitted:
    """One case with a submitted label."""

    image: str
    revision: int
    author: str
    ts: float
    verdict: str
    """Empty, `approved` or `sent_back`."""
    reviewer: str
    comment: str

    @classmethod
    def of_server(cls, entry: dict[str, Any]) -> Submitted:
        review = entry.get("review") or {}
        said = [str(review.get(key, "")) for key in ("verdict", "reviewer", "comment")]
        return cls(str(entry["image"]), int(entry["revision"]), str(entry.get("author", "")), float(entry.get("ts", 0)), *said)

    @property
    def row(self) -> tuple[str, str, str, str]:
        """Case, author, time and verdict, for the table."""
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(self.ts))
        by = f" by {self.reviewer}" if self.reviewer and self.verdict else ""
        return self.image, self.author, when, _VERDICTS.get(self.verdict, self.verdict) + by


@dataclass(frozen=True)
class Reading:
    """One reader's label of a case."""

    revision: int
    author: str
    ts: float

    @property
    def text(self) -> str:
        return f"{self.author}, {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.ts))} (revision {self.revision})"


@dataclass(frozen=True)
class ReviewView:
    """Everything that the panel of the review shows."""

    cases: tuple[Submitted, ...]
    chosen: Submitted | None
    readings: tuple[Reading, ...]
    """Newest first."""
    comparison: tuple[tuple[str, str, str, str], ...]
    """Structure, voxels of the first, voxels of the second, Dice."""
    comment: str
    """What was written about it last."""
    buttons: dict[str, Button]
    message: Message | None


class Review(Asker):
    """Lists, shows and judges submitted cases. On the main thread, but the work of its jobs."""

    def __init__(self, jobs: Jobs, client: Callable[[], Client | None], schema: Callable[[], Any], scene: Any, cache: Any, free: Callable[[], str]) -> None:
        super().__init__(jobs)
        self.cases: list[Submitted] = []
        self.chosen: Submitted | None = None
        self.readings: list[Reading] = []
        self._comparison: tuple[tuple[str, str, str, str], ...] = ()
        self._client, self._schema, self._scene, self._cache = client, schema, scene, cache
        self._free = free
        """Why a case cannot be shown now; empty when it can."""

    def sent_back_to(self, user: str) -> list[Submitted]:
        """What this author has to look at again."""
        return [case for case in self.cases if case.verdict == "sent_back" and case.author == user]

    def view(self) -> ReviewView:
        comment = f"{self.chosen.reviewer}: {self.chosen.comment}" if self.chosen and self.chosen.comment else ""
        return ReviewView(tuple(self.cases), self.chosen, tuple(self.readings), self._comparison, comment, self._buttons(), self.message)

    def _buttons(self) -> dict[str, Button]:
        busy = "Wait for the answer." if self._job else ""
        offline = "Connect to a server first." if self._client() is None else ""
        none = "" if self.chosen else "Choose a case in the table."
        single = "" if len(self.readings) > 1 else "Only one label was ever submitted for this case."
        return {
            "refresh": Button(busy or offline),
            "show": Button(busy or offline or none or self._free()),
            "compare": Button(busy or offline or none or single or self._free()),
            "approve": Button(busy or offline or none),
            "send_back": Button(busy or offline or none),
        }

    # Commands

    def refresh(self) -> None:
        client = self._client()
        if client is None:
            return

        def done(answer: dict[str, Any]) -> None:
            self.cases = [Submitted.of_server(entry) for entry in answer.get("cases", [])]
            self.chosen = next((case for case in self.cases if self.chosen and case.image == self.chosen.image), None)
            self._changed()

        self._run("review", lambda job: client.get("/reviews/", job.cancel), done, aside=True)

    def choose(self, image: str) -> None:
        """Makes a case the one that the buttons are about, and asks who read it."""
        self.chosen = next((case for case in self.cases if case.image == image), None)
        self.readings, self._comparison = [], ()
        client, chosen = self._client(), self.chosen
        if client is None or chosen is None:
            self._changed()
            return

        def done(answer: dict[str, Any]) -> None:
            if self.chosen == chosen:
                entries = [entry for entry in answer.get("revisions", []) if not entry.get("deleted")]
                self.readings = [Reading(int(entry["revision"]), str(entry["author"]), float(entry["ts"])) for entry in reversed(entries)]
                self._changed()

        self._run("review", lambda job: client.revisions(image, "final", job.cancel), done)

    def show(self, a: int, b: int | None = None) -> None:
        """Shows one reading, or two beside each other with their figures."""
        client, chosen, schema = self._client(), self.chosen, self._schema()
        if client is None or chosen is None:
            return
        readings = [reading for reading in self.readings if reading.revision in (a, b)]
        # As the user named them, not as they were sorted.
        readings.sort(key=lambda reading: reading.revision != a)

        def work(job: Job) -> tuple[list[Shown], dict[str, Any]]:
            path = ready_to_load(client.image(chosen.image, "", self._cache, job.cancel, job.progress("Fetching the image")), job.cancel)
            shown = []
            for reading in readings:
                content = client.label_map(chosen.image, "final", job.cancel, revision=reading.revision)
                if content is None:
                    raise Fault("missing", f"The label of {reading.text} is not there any more.", "Refresh the list.")
                voxels, grid = nrrd.read(content)
                case = Case(chosen.image, f"{chosen.image}, {reading.author}, revision {reading.revision}")
                shown.append(Shown(case, path, voxels, schema.names, grid))
            return shown, client.compare(chosen.image, "final", a, b, job.cancel) if b is not None else {}

        def done(result: tuple[list[Shown], dict[str, Any]]) -> None:
            shown, found = result
            self._scene.show_readings(shown, schema)
            self._comparison = tuple(comparison_row(entry) for entry in found.get("classes", []))
            self.message = Message("info", f"{chosen.image} is shown" + (": the first reader left, the second right." if len(shown) > 1 else "."))
            self._changed()

        self._run("review", work, done)

    def approve(self, comment: str) -> None:
        self._judge("approved", comment)

    def send_back(self, comment: str) -> None:
        """Its author finds it under the cases sent back, with the comment."""
        if not comment.strip():
            self.message = Message("warning", "A case that is sent back needs a comment.", "", "Write what has to be changed.")
            self._changed()
            return
        self._judge("sent_back", comment)

    def _judge(self, verdict: str, comment: str) -> None:
        client, chosen = self._client(), self.chosen
        if client is None or chosen is None:
            return
        sends = {"client_id": client.user, "verdict": verdict, "comment": comment.strip(), "revision": chosen.revision}

        def done(_: Any) -> None:
            self.message = Message("info", f"{chosen.image} is {_VERDICTS[verdict]}.")
            self.refresh()

        self._run("review", lambda job: client.send("PUT", "/reviews/", job.cancel, sends, image=chosen.image), done, order=True)


def comparison_row(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    """A structure in two revisions: name, voxels in each, Dice."""
    a, b = entry["voxels"]
    return str(entry["class"]), str(a), str(b), dice(entry.get("dice"))
