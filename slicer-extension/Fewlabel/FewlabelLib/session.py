"""What the clinician does: a state machine without Qt and without MRML, so that every path can be tested.

    DISCONNECTED -> CONNECTED -> SAMPLE -> SEGMENTED -> EDITING -> (submitted) -> SAMPLE of the next case

Commands start jobs and return at once; their results change the state on the main thread. Three rules hold everywhere:
what is on the screen stays until its replacement is here; edits leave the scene only when they are submitted, kept as a
draft, or given up by the user's own word; an answer that comes too late changes nothing.
"""

from __future__ import annotations

import enum
import gzip
import os
import pathlib
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy

from . import VERSION, labels, nrrd
from .client import Cancel, Client, Fault, sha256_of
from .drafts import Draft, Drafts
from .jobs import Job, Jobs
from .where import Place, places_of

AUTOSAVE_S = 60.0
"""Edits are on the disk at the latest after this time."""
SERVER_DRAFT_S = 600.0
"""And on the server, which takes longer to write and to send."""


class State(enum.Enum):
    DISCONNECTED = "disconnected"
    CONNECTED = "connected"
    SAMPLE = "sample"
    SEGMENTED = "segmented"
    EDITING = "editing"


class Busy(enum.Enum):
    NOTHING = ""
    CONNECTING = "Connecting"
    FETCHING = "Fetching the next case"
    OPENING = "Opening the case"
    PROPOSING = "Segmenting"
    UPLOADING = "Uploading the volume"
    SUBMITTING = "Submitting"


@dataclass(frozen=True)
class Case:
    """The image that is worked on."""

    image: str
    name: str
    sha256: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    """What the server told about it."""
    session: str = ""
    """Id of the session of a volume that is not in the project."""
    foreign: str = ""
    """Scene id of a volume that the user loaded; such a volume is never removed."""

    @property
    def in_project(self) -> bool:
        return not self.session

    @property
    def lease_s(self) -> float:
        """How long nobody else gets it; 0 when the server does not say."""
        lease = self.told.get("lease")
        return float(lease.get("expires_in_s", 0)) if isinstance(lease, dict) else 0.0

    @property
    def places(self) -> list[Place]:
        return places_of(self.told)


@dataclass(frozen=True)
class Shown:
    """What the scene shall show."""

    case: Case
    image_path: pathlib.Path | None
    """The file of the image; none when the volume is in the scene already."""
    voxels: numpy.ndarray | None
    """Label map to start from, `[z, y, x]`."""
    names: list[str]
    """The structure of each of its values 1, 2, ..."""
    ijk_to_ras: numpy.ndarray | None = None
    """The grid of the label map."""
    covered: dict[str, numpy.ndarray] = field(default_factory=dict)
    """What overlaps hide in the label map; see `labels.Flat.covered`."""


@dataclass(frozen=True)
class Fetched:
    """What came from the server for a case."""

    shown: Shown
    seen: int | None
    """The current revision of its label, 0 for none."""
    draft: Draft | None = None
    """The draft that it starts from."""


class Scene(Protocol):
    """What the session wants of MRML. Every call is on the main thread."""

    on_edit: Callable[[], None]

    def show(self, shown: Shown, schema: labels.Schema) -> None:
        """Loads it, then removes what was shown before. When it fails, everything is as before."""

    def put(self, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray, schema: labels.Schema) -> None:
        """Replaces the segmentation, behind one undo step."""

    def offer(self, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray, schema: labels.Schema) -> None:
        """Shows another segmentation beside the one that is edited."""

    def drop_offer(self) -> None: ...

    def undo(self) -> None: ...

    def can_undo(self) -> bool: ...

    def copy(self) -> labels.Drawing:
        """A copy of the segmentation. Quick, however large it is: it is made every minute while the user draws."""

    def volumes(self) -> list[tuple[str, str]]:
        """Scene id and name of the volumes that the user loaded."""

    def volume(self, foreign: str) -> tuple[numpy.ndarray, numpy.ndarray]:
        """A copy of a volume, and its grid."""

    def jump(self, place: Place) -> None: ...


@dataclass(frozen=True)
class Message:
    """What happened, what is safe, and what to do now."""

    level: str
    """`info`, `warning` or `error`."""
    what: str
    safe: str = ""
    next_step: str = ""

    @property
    def text(self) -> str:
        return " ".join(part for part in (self.what, self.safe, self.next_step) if part)


@dataclass(frozen=True)
class Question:
    """Something that only the user can decide; shown in the panel, never as a dialog that stops everything."""

    text: str
    choices: tuple[tuple[str, str], ...]
    """Key and words of each answer; the last one changes nothing."""


@dataclass(frozen=True)
class Button:
    """Whether a command can be given, and if not, why not."""

    reason: str = ""

    @property
    def enabled(self) -> bool:
        return not self.reason


@dataclass(frozen=True)
class View:
    """Everything that the panel shows, ready to be shown."""

    state: State
    busy: Busy
    server: str
    security: str
    project: str
    progress: str
    case: str
    hint: str
    """What to do now."""
    login: bool
    buttons: dict[str, Button]
    message: Message | None
    question: Question | None
    structures: tuple[tuple[labels.Structure, bool], ...]
    """Each with whether it was annotated completely."""
    models: tuple[str, ...]
    strategies: tuple[str, ...]
    drafts: tuple[Draft, ...]
    places: tuple[Place, ...]


class Session:
    """One user at one server. All of it runs on the main thread, but the work of its jobs."""

    def __init__(
        self, jobs: Jobs, scene: Scene, drafts: Drafts, cache: pathlib.Path, settings: Any, now_s: Callable[[], float],
        connect: Callable[..., Client] = Client, tool: str = "3D Slicer", tool_version: str = "",
    ) -> None:
        self.jobs, self.drafts, self.settings = jobs, drafts, settings
        self.on_change: list[Callable[[], None]] = []
        """Called after every change. A list, because a signal defined in Python crashes Slicer."""
        self.client: Client | None = None
        self.info: dict[str, Any] = {}
        self.schema = labels.Schema(())
        self.case: Case | None = None
        self.busy = Busy.NOTHING
        self.message: Message | None = None
        self.question: Question | None = None
        self.complete: set[str] = set()
        self.model = ""
        self.version: int | None = None
        self.strategy = ""
        self._scene, self._cache, self._now_s, self._connect = scene, cache, now_s, connect
        self._tool, self._tool_version = tool, tool_version
        self._state = State.DISCONNECTED
        self._login = False
        self._job: Job | None = None
        self._answers: dict[str, Callable[[], None]] = {}
        self._edits = 0
        """Counts edits, so that what was exported can be told from what was drawn after it."""
        self._kept = 0
        """Edits that are on the disk."""
        self._on_server = 0
        """Edits that are on the server as a draft."""
        self._released = -1
        """Edits that the user let go of, kept as a draft or given up: these are left without asking again."""
        self._kept_s = self._on_server_s = 0.0
        self._shown_s = 0.0
        self._seen: int | None = None
        self._origin = "manual"
        self._offer: tuple[numpy.ndarray, numpy.ndarray] | None = None
        self._drafts: tuple[Draft, ...] = ()
        self._submitted = False
        self._renewed_s, self._renewed_edits = 0.0, 0
        scene.on_edit = self.edited

    # What is shown

    @property
    def state(self) -> State:
        return self._state

    @property
    def unsaved(self) -> bool:
        """Whether the scene has edits that were not submitted."""
        return self._state is State.EDITING

    @property
    def _holds(self) -> bool:
        """Whether the user has to be asked before the case is left."""
        return self.unsaved and self._edits != self._released

    def view(self) -> View:
        models = tuple(name for name, entry in self.info.get("models", {}).items() if entry.get("type") == "segmentation")
        counts = self.info.get("datastore", {})
        project = f"{counts.get('completed', 0)} of {counts.get('total', 0)} cases labelled" if self.client and self.info else ""
        return View(
            state=self._state, busy=self.busy, server=self.client.address.url if self.client else "", security=self.client.security if self.client else "",
            project=project, progress=self._progress(), case=self._case_text(), hint=self._hint(), login=self._login, buttons=self._buttons(),
            message=self.message, question=self.question, structures=tuple((structure, structure.name in self.complete) for structure in self.schema.structures),
            models=models, strategies=tuple(self.info.get("strategies", {})), drafts=tuple(draft for draft in self._drafts if self.case is None or draft.image != self.case.image),
            places=tuple(self.case.places) if self.case else (),
        )  # fmt: skip

    def _progress(self) -> str:
        if self.busy is Busy.NOTHING or self._job is None:
            return ""
        seconds = int(self._job.elapsed_s)
        return self._job.text or (f"{self.busy.value} ({seconds} s)" if seconds > 1 else self.busy.value)

    def _case_text(self) -> str:
        if self.case is None:
            return "No case is open"
        return self.case.name if self.case.in_project else f"{self.case.name} (not in the project)"

    def _hint(self) -> str:
        if self._login:
            return "Log in."
        return {
            State.DISCONNECTED: "Enter the address of the server and connect.",
            State.CONNECTED: "Get the next case.",
            State.SAMPLE: "Let the model propose a segmentation, or draw one.",
            State.SEGMENTED: "Correct the segmentation, then submit it.",
            State.EDITING: "Tick the structures that are complete, then submit.",
        }[self._state]

    def _buttons(self) -> dict[str, Button]:
        busy = f"Wait: {self.busy.value.lower()}." if self.busy is not Busy.NOTHING else ""
        asked = "Answer the question first." if self.question else ""
        offline = "Log in first." if self._login else "Connect to a server first." if self.client is None or not self.info else ""
        empty = "Get a case first." if self.case is None else ""
        own = "Add this volume to the project first." if self.case and not self.case.in_project else ""
        no_model = "The server has no model for this." if not self.model else ""
        untouched = "There are no edits to keep." if not self.unsaved else ""
        drawn = "Nothing was drawn yet." if self._state is State.SAMPLE else ""
        return {
            "connect": Button(busy or asked),
            "test": Button(busy),
            "login": Button(busy or ("Connect to a server first." if self.client is None else "")),
            "next": Button(busy or asked or offline),
            "propose": Button(busy or asked or offline or empty or no_model),
            "take_offer": Button(busy or ("" if self._offer else "No proposal waits.")),
            "drop_offer": Button("" if self._offer else "No proposal waits."),
            "undo": Button(empty or ("" if self.case and self._scene.can_undo() else "There is nothing to undo.")),
            "submit": Button(busy or asked or offline or empty or own or drawn),
            "save_draft": Button(busy or asked or empty or untouched),
            "discard": Button(busy or asked or empty or untouched or own),
            "open": Button(busy or asked or offline),
            "use_volume": Button(busy or asked or offline),
            "add_to_project": Button(busy or asked or offline or empty or ("" if own else "This case is in the project already.")),
            "cancel": Button("" if self.busy is not Busy.NOTHING else "Nothing runs."),
        }

    def _changed(self) -> None:
        for call in self.on_change:
            call()

    # Connecting

    def test(self, url: str, user: str, verify: bool = True) -> None:
        """Says what is at an address, and changes nothing else."""

        def work(job: Job) -> tuple[Client, dict[str, Any], bool]:
            client = self._connect(url, user, verify=verify)
            needs_login = client.login_needed(job.cancel)
            return client, {} if needs_login else client.info(job.cancel), needs_login

        def done(result: tuple[Client, dict[str, Any], bool]) -> None:
            client, info, needs_login = result
            name = info.get("name", "A server")
            more = "It wants a login." if needs_login else f"It has {len(info['models'])} model(s) and {info.get('datastore', {}).get('total', 0)} cases."
            self._say(Message("info", f"{name} answers at {client.address.url} ({client.security}).", more))

        self._start(Busy.CONNECTING, "case", work, done, "Nothing was changed.")

    def connect(self, url: str, user: str, verify: bool = True, password: str | None = None) -> None:
        """Connects, and logs in where a password is given. A case of another server has to be left first."""
        if not self._free():
            return
        if self._holds and self.client and self._address(url) != self.client.address.url:
            self._ask_to_leave(lambda: self.connect(url, user, verify, password))
            return

        def work(job: Job) -> tuple[Client, dict[str, Any], Any, bool]:
            client = self._connect(url, user, verify=verify)
            needs_login = client.login_needed(job.cancel)
            if needs_login and password is not None:
                client.login(user, password, job.cancel)
            elif needs_login:
                return client, {}, None, True
            return client, client.info(job.cancel), schema_of(client, job.cancel), False

        def done(result: tuple[Client, dict[str, Any], Any, bool]) -> None:
            client, info, schema, needs_login = result
            other = self.client is not None and client.address.url != self.client.address.url
            self.client, self._login = client, needs_login
            self.settings["server"], self.settings["user"] = client.address.url, user
            if other and self.case:
                self._forget_case()
            if self._state is State.DISCONNECTED:
                self._state = State.CONNECTED
            if needs_login:
                self._say(Message("info", "The server wants a login.", "", "Enter your name and password."))
                return
            self._take_info(info, schema)
            self._list_drafts()
            kept = [draft for draft in self._drafts if self.case is None or draft.image != self.case.image]
            found = f"Unsent work was found: {', '.join(draft.image for draft in kept)}." if kept else ""
            self._say(Message("warning" if kept else "info", f"Connected to {info.get('name', 'the server')}.", found, "Resume it from the list of drafts." if kept else ""))

        self._start(Busy.CONNECTING, "case", work, done, "Nothing was changed.")

    def _address(self, url: str) -> str:
        try:
            return Client(url).address.url
        except Fault:
            return ""

    def _take_info(self, info: dict[str, Any], schema: Any = None) -> None:
        self.info = info
        fresh = labels.Schema.of_server(info.get("labels"), schema)
        if fresh.names != self.schema.names:
            self.complete = set(fresh.names)
        if schema is not None or fresh.names != self.schema.names:
            self.schema = fresh
        models = [name for name, entry in info.get("models", {}).items() if entry.get("type") == "segmentation"]
        if self.model not in models:
            self.model = models[0] if models else ""
        strategies = list(info.get("strategies", {}))
        if self.strategy not in strategies:
            wanted = self.settings.get("strategy")
            self.strategy = wanted if wanted in strategies else next(iter(strategies), "")

    def refresh(self) -> None:
        """Counts and models anew, without a word when that fails."""
        client = self.client
        if client is None or self._login:
            return

        def done(info: dict[str, Any]) -> None:
            if client is self.client:
                self._take_info(info)
                self._changed()

        self.jobs.start("watch", "refresh", lambda job: client.info(job.cancel), done, lambda fault: None)

    # The next case

    def next_case(self) -> None:
        if not self._free() or self.client is None:
            return
        if self._holds:
            self._ask_to_leave(self.next_case)
            return
        client, strategy = self.client, self.strategy
        # A case that is left without a submit would be offered again to the one who has it.
        skip = self.case is not None and self.case.lease_s > 0 and not self._submitted

        def work(job: Job) -> Fetched | int:
            told = client.next_case(strategy, job.cancel, skip=skip)
            if not told.get("id"):
                return int(told.get("leased", 0))
            return self._fetch(client, job, str(told["id"]), told, None)

        self._start(Busy.FETCHING, "case", work, self._show_fetched, "The open case was not touched.")

    def open_case(self, image: str, tag: str = "final", revision: int | None = None, told: dict[str, Any] | None = None) -> None:
        """Opens a case by name, with its label of a tag where there is one."""
        if not self._free() or self.client is None:
            return
        if self._holds:
            self._ask_to_leave(lambda: self.open_case(image, tag, revision, told))
            return
        client = self.client
        self._start(Busy.OPENING, "case", lambda job: self._fetch(client, job, image, told or {}, tag, revision), self._show_fetched, "The open case was not touched.")

    def resume(self, draft: Draft) -> None:
        """Goes on where a draft was left."""
        if not self._free() or self.client is None:
            return
        if self._holds:
            self._ask_to_leave(lambda: self.resume(draft))
            return
        if "volume" in draft.case:
            self._say(Message("info", f"{draft.image} is a volume of yours.", "Its draft is kept.", "Load it into Slicer and choose it below as a volume of the scene."))
            return
        client = self.client
        self._start(Busy.OPENING, "case", lambda job: self._fetch(client, job, draft.image, draft.case, None), self._show_fetched, "The draft is kept.")

    def _fetch(self, client: Client, job: Job, image: str, told: dict[str, Any], tag: str | None, revision: int | None = None) -> Fetched:
        """In the job: the image, and what to start from: a draft of ours, else a label of `tag`, else a stored proposal."""
        sha256 = str(told.get("checksum", "")).removeprefix("SHA256:")
        path = ready_to_load(client.image(image, sha256, self._cache, job.cancel, job.progress("Fetching the image")), job.cancel)
        case = Case(image, str(told.get("PatientID") or image), sha256, told)
        draft = self.drafts.find(client.address.url, image) if revision is None else None
        if draft:
            voxels, grid = self.drafts.voxels(draft)
            return Fetched(Shown(case, path, voxels, draft.names, grid, self.drafts.covered(draft)), draft.seen, draft)
        job.text = "Fetching the label"
        seen = client.current_revision(image, "final", job.cancel)
        own = draft_tag(client.user)
        for wanted in [own, "final", "original"] if tag is None else [tag]:
            content = client.label_map(image, wanted, job.cancel, revision=revision)
            if content is None:
                continue
            voxels, grid = nrrd.read(content)
            names = self.schema.names
            draft = Draft(client.address.url, image, "", 0.0, told, names, names, seen) if wanted == own else None
            return Fetched(Shown(case, path, voxels, names, grid), seen, draft)
        return Fetched(Shown(case, path, None, []), seen)

    def _show_fetched(self, fetched: Fetched | int) -> None:
        """Shows it; a number is how many cases others work on when there is nothing for this user."""
        if isinstance(fetched, int):
            if fetched:
                self._say(Message("info", f"Others work on the {fetched} cases that are left.", "", "Ask again later."))
            else:
                self._say(Message("info", "Every case is labelled.", "", "Submitted cases can be opened again from the list of cases."))
            self.refresh()
            return
        if self._holds:
            # The user went on drawing while this was on its way.
            self._ask_to_leave(lambda: self._show_fetched(fetched))
            return
        shown, draft = fetched.shown, fetched.draft
        try:
            self._scene.show(shown, self.schema)
        except Exception as error:
            self._say(Message("error", f"Slicer cannot show {shown.case.name}: {error}", "What was open is still there.", "Tell your administrator the name of the case."))
            return
        self._opened(shown.case, fetched.seen)
        self._state = State.EDITING if draft else State.SAMPLE if shown.voxels is None else State.SEGMENTED
        if draft:
            self.complete = set(draft.complete) & set(self.schema.names)
            self._edits = self._kept = self._on_server = 1
        self._say(Message("info", f"{shown.case.name}: your draft is back.") if draft else None)
        if shown.case.places:
            self._scene.jump(shown.case.places[0])
        if self._state is State.SAMPLE and self.settings.get("auto_propose", True) and self._model_is_trained():
            self.propose()

    def _opened(self, case: Case, seen: int | None) -> None:
        self.case, self._seen = case, seen
        self.complete = set(self.schema.names)
        self._edits = self._kept = self._on_server = 0
        self._released = -1
        self._shown_s = self._kept_s = self._on_server_s = self._now_s()
        self._origin, self._offer, self._submitted = "manual", None, False
        self._renewed_s, self._renewed_edits = self._shown_s, 0

    def _model_is_trained(self) -> bool:
        return "not trained" not in str(self.info.get("models", {}).get(self.model, {}).get("description", ""))

    def _forget_case(self) -> None:
        self.case, self._offer = None, None
        self._state = State.CONNECTED if self.client else State.DISCONNECTED

    def jump(self, place: Place) -> None:
        if self.case:
            self._scene.jump(place)

    # The proposal

    def propose(self) -> None:
        """Lets the model segment the case. The user may go on drawing meanwhile."""
        if not self._free() or self.client is None or self.case is None or not self.model:
            return
        client, case, schema, model, version = self.client, self.case, self.schema, self.model, self.version
        edits = self._edits

        def work(job: Job) -> tuple[numpy.ndarray, numpy.ndarray, str]:
            proposal = client.propose(model, case.image, job.cancel, version=version, session=case.session)
            voxels, grid = nrrd.read(proposal.file)
            return labels.to_schema(schema, voxels, proposal.names), grid, proposal.made_by

        def done(result: tuple[numpy.ndarray, numpy.ndarray, str]) -> None:
            if self.case is not case:
                return
            voxels, grid, made_by = result
            try:
                if self.unsaved or self._edits != edits:
                    self._scene.offer(voxels, grid, self.schema)
                    self._offer = (voxels, grid)
                    self._say(Message("info", f"A proposal of {made_by} is here.", "It lies beside your segmentation, which was not changed.", "Take it or drop it."))
                    return
                self._scene.put(voxels, grid, self.schema)
            except ValueError as error:
                self._say(Message("error", f"The proposal does not fit the image: {error}.", "Your segmentation was not changed.", "Tell your administrator."))
                return
            self._state, self._origin = State.SEGMENTED, "interactive"
            if voxels.any():
                self._say(Message("info", f"Proposed by {made_by}."))
            else:
                self._say(Message("warning", f"{made_by} found nothing in this image.", "", "Draw the structures yourself."))

        self._start(Busy.PROPOSING, "case", work, done, "Your segmentation was not changed.")

    def take_offer(self) -> None:
        """Replaces the segmentation by the waiting proposal; undo brings it back."""
        if self._offer is None or self.case is None:
            return
        self._scene.put(*self._offer, self.schema)
        self._scene.drop_offer()
        self._offer, self._origin = None, "interactive"
        self.edited()
        self._say(Message("info", "The proposal was taken.", "Undo brings your own segmentation back."))

    def drop_offer(self) -> None:
        if self._offer is not None:
            self._scene.drop_offer()
            self._offer = None
            self._say(None)

    def undo(self) -> None:
        """Takes the last step back; where that was a proposal, what was there before it."""
        if self.case and self._scene.can_undo():
            self._scene.undo()
            self.edited()

    # Editing

    def edited(self) -> None:
        """The scene says that the user changed the segmentation."""
        if self.case is None:
            return
        self._edits += 1
        if self._state is not State.EDITING:
            self._state = State.EDITING
            self._changed()

    def set_complete(self, name: str, complete: bool) -> None:
        (self.complete.add if complete else self.complete.discard)(name)

    def tick(self) -> None:
        """Call about once a second: keeps drafts, and shows how long things take."""
        now_s = self._now_s()
        if self._holds and self.busy is not Busy.SUBMITTING:
            to_server = self._edits != self._on_server and now_s - self._on_server_s >= SERVER_DRAFT_S
            if to_server or (self._edits != self._kept and now_s - self._kept_s >= AUTOSAVE_S):
                self.save_draft(quiet=True, to_server=to_server)
        # Who does nothing for long does not keep others from the case.
        if self.case and self.case.lease_s and not self._submitted and self._edits != self._renewed_edits and now_s - self._renewed_s >= self.case.lease_s / 3:
            self._renew_lease()
        if self.busy is not Busy.NOTHING:
            self._changed()

    def _renew_lease(self) -> None:
        client, case = self.client, self.case
        if client is None or case is None:
            return
        self._renewed_s, self._renewed_edits = self._now_s(), self._edits

        def failed(fault: Fault) -> None:
            if fault.kind == "conflict" and self.case is case:
                self._say(Message("warning", f"Somebody else works on {case.name} now.", "Your segmentation is in the scene.", "Submit it soon, or talk to each other."))

        self.jobs.start("watch", "renew lease", lambda job: client.renew_lease(case.image, job.cancel), lambda _: None, failed)

    def save_draft(self, quiet: bool = False, to_server: bool = True, then: Callable[[], None] | None = None) -> None:
        """Keeps the edits on the disk, and on the server where it can be reached."""
        if self.case is None or self.client is None or not self.unsaved:
            return
        client, case, edits = self.client, self.case, self._edits
        drawing = self._scene.copy()
        wide = labels.widen(self.schema, drawing.names)
        draft = self._draft(wide, "")
        # The server takes the structures of the project only.
        to_server = to_server and case.in_project and not self._login and len(wide.structures) == len(self.schema.structures)
        self._kept_s = self._now_s()
        self._on_server_s = self._kept_s if to_server else self._on_server_s

        def work(job: Job) -> Fault | None:
            copy = self._cache / f"draft-{secrets.token_hex(8)}.nrrd" if to_server else None
            self.drafts.save(draft, drawing.flat(wide), drawing.ijk_to_ras, copy)
            try:
                if copy and copy.exists():
                    client.submit(case.image, draft_tag(client.user), copy, labels.submit_params(self.schema, draft.complete), job.cancel, key=secrets.token_hex(16))
            except Fault as fault:
                return fault
            finally:
                if copy:
                    copy.unlink(missing_ok=True)
            return None

        def done(fault: Fault | None) -> None:
            self._list_drafts()
            if self.case is case:
                self._kept = max(self._kept, edits)
                self._on_server = max(self._on_server, edits) if to_server and fault is None else self._on_server
            if not quiet:
                where = "on this computer" + (" and on the server" if to_server and fault is None else "")
                self._say(Message("info", f"The draft of {case.name} is kept {where}.", "", f"The server did not take it: {fault.what}" if fault else ""))
            if then:
                then()

        def failed(fault: Fault) -> None:
            self._say(Message("error", f"The draft cannot be written: {fault.what}", "Your segmentation is in the scene.", "Make room on the disk and save again."))

        self.jobs.start("draft", "save draft", work, done, failed)

    def _list_drafts(self) -> None:
        self._drafts = tuple(self.drafts.all(self.client.address.url)) if self.client else ()

    def _draft(self, schema: labels.Schema, key: str) -> Draft:
        assert self.case is not None and self.client is not None
        told = self.case.told if self.case.in_project else {"volume": self.case.name}
        return Draft(self.client.address.url, self.case.image, "", self._now_s(), told, schema.names, sorted(self.complete), self._seen, key)

    def discard(self) -> None:
        """Gives the edits up, after asking."""
        if self._free() and self.case and self.case.in_project and self.unsaved:
            case = self.case
            self._ask(
                Question(f"Give up your edits of {case.name}? The draft is removed too.", (("discard", "Give up"), ("stay", "Keep them"))),
                {"discard": lambda: self._discarded(lambda: self.open_case(case.image, told=case.told))},
            )

    def _discarded(self, then: Callable[[], None]) -> None:
        if self.case and self.client:
            self.drafts.remove(self.client.address.url, self.case.image)
            self._list_drafts()
            if self.case.in_project:
                self._remove_server_draft(self.client, self.case.image)
        self._released = self._kept = self._edits
        then()

    def _remove_server_draft(self, client: Client, image: str) -> None:
        """Before anything else is fetched. What stays there when this fails is replaced by the next draft."""
        if not self._on_server:
            return
        self._on_server = 0
        self.jobs.start("case", "remove draft", lambda job: client.remove_label(image, draft_tag(client.user), job.cancel), lambda _: None, lambda fault: None)

    # Submitting

    def submit(self, then_next: bool = False) -> None:
        self._submit((lambda: self.next_case()) if then_next else None)

    def _submit(self, then: Callable[[], None] | None, sure: bool = False, newer: bool = False) -> None:
        if not self._free() or self.client is None or self.case is None or not self.case.in_project or self._state is State.SAMPLE:
            return
        client, case, edits, schema, complete = self.client, self.case, self._edits, self.schema, sorted(self.complete)
        if not self.complete:
            self._say(Message("warning", "No structure is ticked as complete.", "", "Tick what you annotated completely, then submit."))
            return
        seen = None if newer else self._seen
        # Repeated inside this submit, so that a lost answer does not make two revisions.
        key = secrets.token_hex(16)
        drawing = self._scene.copy()
        wide = labels.widen(schema, drawing.names)
        draft = self._draft(wide, key)
        kept = False
        params = labels.submit_params(schema, complete) | {
            "tool": f"Fewlabel for {self._tool}", "tool_version": f"{VERSION} on {self._tool_version}", "origin": self._origin, "seconds_open": round(self._now_s() - self._shown_s, 1),
        }  # fmt: skip
        dropped = [structure.value for structure in schema.structures if structure.name not in complete]

        def work(job: Job) -> int | None | list[str]:
            """Submits; or what the author has to be asked about first."""
            nonlocal kept
            job.text = "Checking the segmentation"
            flat, grid = drawing.flat(schema), drawing.ijk_to_ras
            warnings = warnings_of(flat, schema, complete)
            if warnings and not sure:
                return warnings
            job.text = "Keeping a copy on this computer"
            path = self._cache / f"submit-{key}.nrrd"
            try:
                self.drafts.save(draft, flat if wide == schema else drawing.flat(wide), grid, path)
                kept = True
                if wide != schema or dropped:
                    nrrd.write(path, numpy.where(numpy.isin(flat.voxels, dropped), 0, flat.voxels).astype(flat.voxels.dtype), grid)
                revision = client.submit(case.image, "final", path, params, job.cancel, key=key, seen=seen, progress=job.progress("Submitting"))
            finally:
                path.unlink(missing_ok=True)
            self.drafts.remove(client.address.url, case.image, key)
            return revision

        def done(revision: int | None | list[str]) -> None:
            if isinstance(revision, list):
                if self.case is case:
                    self._ask(Question(" ".join(revision), (("submit", "Submit"), ("back", "Go back"))), {"submit": lambda: self._submit(then, True, newer)})
                return
            self._list_drafts()
            if self.case is case:
                self._remove_server_draft(client, case.image)
                self._seen, self._submitted = revision, True
                if self._edits == edits:
                    self._state = State.SEGMENTED
                    self._say(Message("info", f"{case.name} is submitted."))
                else:
                    self._say(Message("info", f"{case.name} is submitted.", "What you changed since then is not in it.", "Submit again to add it."))
            self.refresh()
            if then:
                then()

        def failed(fault: Fault) -> None:
            self._kept = max(self._kept, edits) if kept else self._kept
            self._list_drafts()
            if fault.kind == "conflict" and fault.status == 412:
                self._ask(
                    Question(f"{fault.what} Your label is kept as a draft.", (("newer", "Submit mine as the newer one"), ("stay", "Look first"))),
                    {"newer": lambda: self._submit(then, True, True)},
                )
                return
            self._failed(fault, "Your segmentation is in the scene" + (", and as a draft on this computer." if kept else "."))

        self._start(Busy.SUBMITTING, "case", work, done, "", failed)

    # A volume that is in Slicer already

    def use_volume(self, foreign: str, name: str) -> None:
        """Works on a volume that the user loaded, after consent to send it."""
        if not self._free() or self.client is None:
            return
        if self._holds:
            self._ask_to_leave(lambda: self.use_volume(foreign, name))
            return
        text = f"Send {name} to {self.client.address.host} ({self.client.security})? For a proposal only, the server forgets it after an hour; in the project it stays."
        choices = (("session", "For a proposal only"), ("project", "Into the project"), ("no", "Do not send"))
        if self.settings.get(self._consent()) == "yes":
            text = f"{name}: {self.client.address.host} ({self.client.security}) gets it, as you agreed before. For a proposal only, or into the project?"
        self._ask(Question(text, choices), {"session": lambda: self._upload(foreign, name, False), "project": lambda: self._upload(foreign, name, True)})

    def add_to_project(self) -> None:
        """Uploads the open volume for good, so that its label can be submitted."""
        if self.case and self.case.foreign and not self.case.in_project and self._free():
            self._upload(self.case.foreign, self.case.name, True)

    def _consent(self) -> str:
        return f"consent/{self.client.address.url if self.client else ''}"

    def _upload(self, foreign: str, name: str, into_project: bool) -> None:
        client = self.client
        if client is None:
            return
        self.settings[self._consent()] = "yes"
        voxels, grid = self._scene.volume(foreign)
        same = self.case is not None and self.case.foreign == foreign

        def work(job: Job) -> Case:
            job.text = "Compressing the volume"
            self._cache.mkdir(parents=True, exist_ok=True)
            path = self._cache / f"upload-{secrets.token_hex(8)}.nrrd"
            try:
                nrrd.write(path, voxels, grid)
                if into_project:
                    image = client.add_image(image_id(name), path, job.cancel, job.progress("Uploading"))
                    return Case(image, name, sha256_of(path), {"id": image}, "", foreign)
                session = client.open_session(path, job.cancel, job.progress("Uploading"))
                return Case(name, name, "", {}, session, foreign)
            finally:
                path.unlink(missing_ok=True)

        def done(case: Case) -> None:
            if same and self.case and self.case.foreign == foreign:
                # What was drawn on it stays.
                self.case, self._seen = case, None
                self._say(Message("info", f"{name} is in the project now as {case.image}.", "", "Submit its segmentation."))
                return
            if self._holds:
                self._ask_to_leave(lambda: done(case))
                return
            draft = self.drafts.find(client.address.url, name)
            drawn, drawn_grid = self.drafts.voxels(draft) if draft else (None, None)
            if drawn is not None and drawn.shape != voxels.shape:
                draft, drawn = None, None
            self._scene.show(Shown(case, None, drawn, draft.names if draft else [], drawn_grid, self.drafts.covered(draft) if draft else {}), self.schema)
            self._opened(case, None)
            self._state = State.EDITING if draft else State.SAMPLE
            self._edits = self._kept = 1 if draft else 0
            self._say(Message("info", f"{name}: your draft is back.") if draft else None)
            if not case.in_project and not draft:
                self.propose()

        self._start(Busy.UPLOADING, "case", work, done, "Nothing was kept by the server.")

    # Questions, messages and jobs

    def answer(self, key: str) -> None:
        """The user's answer to the question."""
        answers, self.question, self._answers = self._answers, None, {}
        self._changed()
        if key in answers:
            answers[key]()

    def cancel(self) -> None:
        """Ends what runs."""
        if self.busy is Busy.NOTHING:
            return
        was, self.busy = self.busy, Busy.NOTHING
        self.jobs.stop(self._job)
        safe = "Your segmentation is in the scene." if was is Busy.SUBMITTING else "Nothing was changed."
        sent = "It may have reached the server already. " if was is Busy.SUBMITTING else ""
        self._say(Message("info", f"{was.value}: cancelled. {sent}".strip(), safe))

    def scene_closes(self) -> None:
        """The user closes the scene: what is not kept yet is written before our nodes are gone."""
        if self.case:
            name, unsaved = self.case.name, self.unsaved
            self._keep_now()
            self._forget_case()
            self._list_drafts()
            self._say(Message("warning", f"The scene with {name} was closed.", "Your edits are kept as a draft." if unsaved else "", "Resume it from the list of drafts." if unsaved else ""))

    def close(self) -> None:
        """Slicer quits or reloads the module."""
        self._keep_now()
        self.jobs.close()

    def _keep_now(self) -> None:
        """Writes the last edits here and now, on the main thread."""
        if self.unsaved and self.case and self.client and self._edits != self._kept:
            drawing = self._scene.copy()
            wide = labels.widen(self.schema, drawing.names)
            self.drafts.save(self._draft(wide, ""), drawing.flat(wide), drawing.ijk_to_ras)

    def _free(self) -> bool:
        return self.busy is Busy.NOTHING and self.question is None

    def _ask(self, question: Question, answers: dict[str, Callable[[], None]]) -> None:
        self.question, self._answers = question, answers
        self._changed()

    def _ask_to_leave(self, then: Callable[[], None]) -> None:
        assert self.case is not None
        submit = (("submit", "Submit"),) if self.case.in_project else ()
        choices = (*submit, ("draft", "Keep as draft"), ("discard", "Give up"), ("stay", "Stay"))
        self._ask(
            Question(f"{self.case.name} has edits that were not submitted.", choices),
            {"submit": lambda: self._submit(then), "draft": lambda: self._leave_with_draft(then), "discard": lambda: self._discarded(then)},
        )

    def _leave_with_draft(self, then: Callable[[], None]) -> None:
        edits = self._edits

        def kept() -> None:
            # What was drawn while it was written is asked about again.
            self._released = edits
            then()

        self.save_draft(then=kept)

    def _say(self, message: Message | None) -> None:
        self.message = message
        self._changed()

    def _start(
        self, busy: Busy, lane: str, work: Callable[[Job], Any], done: Callable[[Any], None], safe: str, failed: Callable[[Fault], None] | None = None
    ) -> None:
        def finished(call: Callable[[Any], None]) -> Callable[[Any], None]:
            def then(result: Any) -> None:
                if self._job is job:
                    self.busy, self._job = Busy.NOTHING, None
                    call(result)

            return then

        self.busy, self.message = busy, None
        job = self.jobs.start(lane, busy.value, work, finished(done), finished(failed or (lambda fault: self._failed(fault, safe))))
        self._job = job
        self._changed()

    def _failed(self, fault: Fault, safe: str) -> None:
        if fault.kind == "login" and self.client:
            self._login = True
        number = f" Number of the request: {fault.request_id}." if fault.kind == "server" and fault.request_id else ""
        self._say(Message("error", fault.what, safe, fault.next_step + number))


def warnings_of(flat: labels.Flat, schema: labels.Schema, complete: Sequence[str]) -> list[str]:
    """What the author should know before a label is sent, as sentences."""
    warnings = flat.warnings
    absent = [name for name in schema.names if name in complete and not flat.counts.get(name)]
    if absent:
        warnings.append(f"Ticked as complete, but empty, so that it counts as not in this image: {', '.join(absent)}.")
    partial = [name for name, count in flat.counts.items() if count and name not in complete]
    if partial:
        warnings.append(f"Drawn, but not ticked as complete, so that it is not sent: {', '.join(partial)}.")
    return warnings


def draft_tag(user: str) -> str:
    """The tag under which a user's drafts are kept on the server; it never counts as labelled. MONAILabelReviewer reads a
    number at the end of tags."""
    kept = "".join(letter if letter.isalnum() or letter in "-." else "-" for letter in user)
    return f"draft-{kept[:80]}_0"


def image_id(name: str) -> str:
    """An id that the server takes, from the name of a volume."""
    kept = "".join("-" if letter in "/\\" or not letter.isprintable() else letter for letter in name).lstrip(".")
    return kept[:128] or "volume"


def schema_of(client: Client, cancel: Cancel) -> Any:
    """Colours and codes of the structures; a server that does not tell them has none."""
    try:
        return client.get("/datastore/schema", cancel)
    except Fault as fault:
        if fault.kind in ("missing", "refused"):
            return {}
        raise


def ready_to_load(path: pathlib.Path, cancel: Cancel) -> pathlib.Path:
    """Unpacks `.nii.gz` beside it, because Slicer would do it on the main thread."""
    if not path.name.endswith(".nii.gz"):
        return path
    plain = path.with_name(path.name.removesuffix(".gz"))
    if plain.exists():
        return plain
    part = plain.with_name(f"part-{secrets.token_hex(8)}")
    try:
        with gzip.open(path, "rb") as packed, open(part, "wb") as file:
            shutil.copyfileobj(_Checked(packed, cancel), file, 1 << 20)
        os.replace(part, plain)
    except (OSError, EOFError) as error:
        raise Fault("damaged", f"The image cannot be unpacked: {error}.", "Tell your administrator the name of the case.") from error
    finally:
        part.unlink(missing_ok=True)
    return plain


class _Checked:
    """A file that can be cancelled."""

    def __init__(self, file: Any, cancel: Cancel) -> None:
        self._file, self._cancel = file, cancel

    def read(self, size: int) -> bytes:
        self._cancel.check()
        return self._file.read(size)

