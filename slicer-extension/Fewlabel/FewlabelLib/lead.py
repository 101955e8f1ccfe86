"""What the lead of a project sees: rounds, how new models compare with the live one, versions, and who did how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .asker import Asker
from .client import Client
from .jobs import Job, Jobs
from .session import Button, Message

POLL_S = 5.0
"""How often a running round is looked at."""
_RUNNING = ("queued", "running")


@dataclass(frozen=True)
class LeadView:
    """Everything that the lead's panel shows."""

    labels: str
    """How many there are, and when the next round begins."""
    round: str
    """What the last round does or did."""
    share: float
    """How far it is, 0 to 1; 0 when none runs."""
    comparison: tuple[tuple[str, str, str, str], ...]
    """Structure, old Dice, new Dice, difference, on the validation cases; the mean first."""
    compared: str
    versions: tuple[tuple[int, str, str, str], ...]
    """Number, state, mean Dice, reason; newest first."""
    annotators: tuple[tuple[str, str, str, str], ...]
    """Name, cases, submits, minutes a case."""
    structures: tuple[tuple[str, str], ...]
    """Name, cases in which it was annotated."""
    buttons: dict[str, Button]
    message: Message | None


class Lead(Asker):
    """Asks the server and gives it the lead's decisions. On the main thread, but the work of its jobs."""

    def __init__(self, jobs: Jobs, client: Callable[[], Client | None], model: Callable[[], str], now_s: Callable[[], float]) -> None:
        super().__init__(jobs)
        self.chosen: int | None = None
        """The version that the buttons are about."""
        self.rounds: list[dict[str, Any]] = []
        self.settings: dict[str, Any] = {}
        self.new_labels: int | None = None
        """Images that were labelled since the last round began; none when the server does not tell."""
        self.models: list[dict[str, Any]] = []
        self.statistics: dict[str, Any] = {}
        self._client, self._model, self._now_s = client, model, now_s
        self._asked_s = float("-inf")

    @property
    def running(self) -> dict[str, Any] | None:
        """The round that is under way."""
        return next((entry for entry in self.rounds if entry.get("state") in _RUNNING), None)

    @property
    def versions(self) -> list[dict[str, Any]]:
        return self._of_model().get("versions", [])

    def _of_model(self) -> dict[str, Any]:
        return next((entry for entry in self.models if entry.get("name") == self._model()), {})

    def view(self) -> LeadView:
        return LeadView(
            labels=self._labels_text(), round=self._round_text(), share=self._share(), comparison=self._comparison(), compared=self._compared_text(),
            versions=tuple(version_row(entry) for entry in self.versions),
            annotators=tuple(annotator_row(entry) for entry in self.statistics.get("annotators", [])),
            structures=tuple((str(entry["name"]), str(entry["images"])) for entry in self.statistics.get("structures", [])),
            buttons=self._buttons(), message=self.message,
        )  # fmt: skip

    def _labels_text(self) -> str:
        images = self.statistics.get("images")
        if not images:
            return ""
        text = f"{images['labelled']} of {images['total']} cases labelled, {images.get('leased', 0)} being worked on."
        new, after, daily_at = self.new_labels, self.settings.get("after_labels"), self.settings.get("daily_at")
        if self.rounds and new is not None:
            text += f" {new} since the last round."
        if after and new is None:
            text += f" A round begins by itself after {after} new labels."
        elif after and new is not None:
            text += f" The next round begins by itself after {after - new} more." if after > new else " The next round begins by itself soon."
        if daily_at:
            text += f" A round begins by itself at {daily_at} when there are new labels."
        if images["labelled"] == 0:
            text += " A round needs labelled cases first."
        return text

    def _round_text(self) -> str:
        if self._client() is None:
            return "Connect to a server first."
        if not self.rounds:
            return "There was no round yet."
        entry = self.running or self.rounds[0]
        name, state = f"Round {entry.get('round')}", entry.get("state")
        if state == "queued":
            return f"{name} waits for its turn."
        if state != "running":
            words = {"published": "was published", "kept": "was not published", "failed": "failed", "stopped": "was stopped"}.get(str(state), str(state))
            reason = f": {entry['reason']}" if entry.get("reason") else "."
            return f"{name} {words}{reason}"
        progress = entry.get("progress") or {}
        stage = {"preparing": "prepares the cases", "training": "trains", "comparing": "compares with the live version"}.get(str(progress.get("stage")), "runs")
        text = f"{name} {stage}"
        if progress.get("steps"):
            text += f", step {progress.get('step') or 0} of {progress['steps']}"
        if isinstance(progress.get("eta_s"), int | float):
            text += f", about {duration(progress['eta_s'])} left"
        return text + ". Proposals and submits go on meanwhile."

    def _share(self) -> float:
        progress = (self.running or {}).get("progress") or {}
        steps = progress.get("steps") or 0
        return min(max((progress.get("step") or 0) / steps, 0.0), 1.0) if steps else 0.0

    def _last_compared(self) -> dict[str, Any] | None:
        return next((entry for entry in self.rounds if entry.get("comparison")), None)

    def _comparison(self) -> tuple[tuple[str, str, str, str], ...]:
        entry = self._last_compared()
        if entry is None:
            return ()
        found = entry["comparison"]
        rows = [("mean", found.get("old_dice"), found.get("new_dice"), found.get("difference"))]
        rows += [(each["name"], each.get("old_dice"), each.get("new_dice"), each.get("difference")) for each in found.get("structures", [])]
        return tuple((name, dice(old), dice(new), dice(change, signed=True)) for name, old, new, change in rows)

    def _compared_text(self) -> str:
        entry = self._last_compared()
        if entry is None:
            return "Nothing was compared yet: that needs labelled validation cases." if self.rounds else ""
        found = entry["comparison"]
        left_out = f", {len(found['left_out'])} left out because the live version has learned from them" if found.get("left_out") else ""
        return f"Dice of round {entry['round']} on the same {found.get('cases')} validation cases{left_out}: the live version of then (old), and version {entry.get('version')} (new)."

    def _buttons(self) -> dict[str, Button]:
        # It looks at the server all the time; that is nothing to wait for.
        busy = "Wait for the answer." if self._order else ""
        offline = "Connect to a server first." if self._client() is None else ""
        model = self._of_model()
        chosen = next((entry for entry in self.versions if entry.get("version") == self.chosen), None)
        none = "" if chosen else "Choose a version in the table."
        live = bool(chosen and chosen.get("live"))
        no_labels = "A round needs labelled cases." if self.statistics and not self.statistics.get("images", {}).get("labelled") else ""
        return {
            "refresh": Button(busy or offline),
            "start": Button(busy or offline or ("A round is under way." if self.running else no_labels)),
            "stop": Button(busy or offline or ("" if self.running else "No round is under way.")),
            "publish": Button(busy or offline or none or ("This version is live already." if live else "")),
            "keep": Button(busy or offline or none or ("The live version cannot be set aside." if live else "" if chosen and chosen.get("state") == "candidate" else "Only candidates can be set aside.")),
            "pin": Button(busy or offline or ("It is pinned already." if model.get("pinned") else "" if model else "There is no model.")),
            "unpin": Button(busy or offline or ("" if model.get("pinned") else "No version is pinned.")),
            "rollback": Button(busy or offline or ("" if model.get("rollback_version") else "There is no version to go back to.")),
        }

    # Commands

    def tick(self, shown: bool) -> None:
        """Call about once a second; asks the server while the panel is shown or a round runs."""
        if (shown or self.running) and self._now_s() - self._asked_s >= POLL_S and not self._job:
            self.refresh()

    def refresh(self) -> None:
        client = self._client()
        if client is None:
            return
        self._asked_s = self._now_s()

        def work(job: Job) -> tuple[Any, Any, Any]:
            return client.get("/rounds/", job.cancel, limit="20"), client.get("/models/", job.cancel), client.get("/statistics/", job.cancel)

        def done(result: tuple[Any, Any, Any]) -> None:
            rounds, models, self.statistics = result
            self.rounds, self.settings, self.models = rounds.get("rounds", []), rounds.get("settings", {}), models.get("models", [])
            self.new_labels = rounds.get("new_labels")
            if self.chosen not in [entry.get("version") for entry in self.versions]:
                self.chosen = None
            if self.message and self.message.level == "error":
                self.message = None
            self._changed()

        self._run("look at the project", work, done)

    def start_round(self) -> None:
        """As long as the rounds that begin by themselves."""
        how = {key: self.settings[key] for key in ("max_epochs", "steps") if self.settings.get(key)}
        self._send("POST", f"/rounds/{self._model()}", "The round begins.", how)

    def stop_round(self) -> None:
        client = self._client()
        if self.running and client:
            self._send("DELETE", f"/rounds/{self.running['round']}", "The round was stopped. The live version stays.", client_id=client.user)

    def publish(self) -> None:
        self._decide("publish", f"Version {self.chosen} is live.")

    def keep(self) -> None:
        self._decide("keep", f"Version {self.chosen} is set aside; the live version stays.")

    def pin(self) -> None:
        self._send("POST", f"/models/{self._model()}/pin", "The live version is pinned: rounds publish nothing.")

    def unpin(self) -> None:
        self._send("POST", f"/models/{self._model()}/unpin", "Rounds publish again.")

    def roll_back(self) -> None:
        self._send("POST", f"/models/{self._model()}/rollback", f"Version {self._of_model().get('rollback_version')} is live again.")

    def _decide(self, what: str, told: str) -> None:
        if self.chosen is not None:
            self._send("POST", f"/models/{self._model()}/{what}", told, version=str(self.chosen))

    def _send(self, method: str, path: str, told: str, sends: dict[str, Any] | None = None, **query: str) -> None:
        client = self._client()
        if client is None or self._order:
            return

        def done(_: Any) -> None:
            self.message = Message("info", told)
            self.refresh()
            self._changed()

        self._run(told, lambda job: client.send(method, path, job.cancel, {"client_id": client.user, **(sends or {})}, **query), done, order=True)


def version_row(entry: dict[str, Any]) -> tuple[int, str, str, str]:
    state = "live" if entry.get("live") else str(entry.get("state", ""))
    mean = (entry.get("metrics") or {}).get("mean_dice")
    return int(entry["version"]), state, dice(mean), str(entry.get("reason") or "")


def annotator_row(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    seconds = entry.get("seconds_median")
    minutes = f"{seconds / 60:.1f}" if isinstance(seconds, int | float) else "–"
    return str(entry["author"]), str(entry["images"]), str(entry["revisions"]), minutes


def dice(value: Any, signed: bool = False) -> str:
    """A Dice, or a difference of two; a dash where no case defines it."""
    if not isinstance(value, int | float):
        return "–"
    return f"{value:+.3f}" if signed else f"{value:.3f}"


def duration(seconds: float) -> str:
    """As people say it, rounded up."""
    seconds = max(int(seconds), 0)
    if seconds < 90:
        return f"{seconds} s"
    minutes = -(-seconds // 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02} min"
