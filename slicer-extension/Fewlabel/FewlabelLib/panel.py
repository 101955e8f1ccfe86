"""Binds the view-models to the widgets of `Fewlabel.ui`. Main thread only; decides nothing by itself.

Only calls are used that PythonQt of Slicer and PySide6 of the tests have alike: methods instead of attributes, and
signals that have one form.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import slicer

import qt

from .jobs import TICK_MS, Jobs
from .lead import Lead
from .review import Review
from .session import Busy, Button, Message, Session, State, View

SHORTCUTS = {
    "Ctrl+Shift+N": ("nextButton", "Next case"),
    "Ctrl+Shift+P": ("proposeButton", "Propose"),
    "Ctrl+Shift+Return": ("submitNextButton", "Submit and next"),
    "Ctrl+Shift+D": ("saveDraftButton", "Keep as draft"),
}
"""Each presses a button, so that a key does nothing that the button would not."""
LOOK_KEY = "Ctrl+Shift+L"
"""Goes through the places to look at."""
_TIPS = {
    "testButton": "Says what answers at this address, and changes nothing",
    "takeOfferButton": "Replaces your segmentation; Undo proposal brings it back",
    "dropOfferButton": "Your segmentation stays as it is",
    "undoButton": "Brings back what was there before the proposal",
    "submitButton": "Sends the segmentation, and stays with this case",
    "discardButton": "Removes your edits and their draft, after asking",
    "useVolumeButton": "Asks before anything is sent",
    "addButton": "Uploads the volume for good, so that its segmentation can be submitted",
}
_COLORS = {"info": ("#2f6f3e", "#8fd6a0"), "warning": ("#8a5a00", "#f2c261"), "error": ("#a1260d", "#ff9c86")}
"""Of messages, on a light and on a dark background."""
_MOST_ROWS = 8
"""Of a table before it scrolls."""
_MOST_TICKS = 8
_WIDEST_PX = 150
"""Of a column but the last, which takes what is left."""


class Settings:
    """What is remembered between starts of Slicer, in its own settings."""

    def __init__(self) -> None:
        self._kept = qt.QSettings()

    def get(self, name: str, default: Any = None) -> Any:
        value = self._kept.value(f"Fewlabel/{name}")
        if value is None:
            return default
        # Settings come back as text on most systems.
        return value in (True, "true", "True", 1, "1") if isinstance(default, bool) else value

    def __setitem__(self, name: str, value: Any) -> None:
        self._kept.setValue(f"Fewlabel/{name}", value)


class QtTimer:
    """A timer of Qt for `Jobs` and for the seconds."""

    def __init__(self, interval_ms: int, call: Callable[[], None]) -> None:
        self._timer = qt.QTimer()
        self._timer.setInterval(interval_ms)
        self._timer.timeout.connect(call)

    def start(self) -> None:
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()


def start_jobs() -> Jobs:
    """Jobs whose results come through Qt's event loop."""
    holder: list[Jobs] = []
    jobs = Jobs(QtTimer(TICK_MS, lambda: holder[0].tick()))
    holder.append(jobs)
    return jobs


class Panel:
    """The widgets, the session behind them, and the Segment Editor between."""

    def __init__(self, ui: Any, session: Session, lead: Lead, review: Review, scene: Any, settings: Settings) -> None:
        self.ui, self.session, self.lead, self.review, self._scene, self._settings = ui, session, lead, review, scene, settings
        self._rendering = False
        self._shown: dict[str, Any] = {}
        """What each list shows, so that it is only made anew when that changed."""
        self._place = 0
        self._was_connected = False
        self._listed: Any = None
        """The server and its counts when the list of submitted cases was asked for."""
        self._volumes: list[tuple[str, str]] = []
        """Scene id and name of the volumes in the list."""
        self._shortcuts: list[Any] = []
        self.editor: Any = None
        self._make_editor()
        self._connect()
        session.on_change.append(self.render)
        lead.on_change.append(self.render)
        review.on_change.append(self.render)
        scene.on_show = self._show_in_editor
        self._second = QtTimer(1000, self._tick)
        self._second.start()
        ui.serverEdit.setText(str(settings.get("server", "http://127.0.0.1:8000")))
        ui.userEdit.setText(str(settings.get("user", "")))
        ui.autoProposeCheck.setChecked(bool(settings.get("auto_propose", True)))
        ui.verifyCheck.setChecked(bool(settings.get("verify", True)))
        self._fit_tabs()
        self.render()

    # Slicer's Segment Editor

    def _make_editor(self) -> None:
        self.editor = slicer.qMRMLSegmentEditorWidget()
        self.editor.setMRMLScene(slicer.mrmlScene)
        self.editor.setMaximumNumberOfUndoStates(10)
        self.ui.editorPlace.layout().addWidget(self.editor)
        self.reset_editor()

    def reset_editor(self) -> None:
        """A new parameter node, at the start and after the scene was closed."""
        node = slicer.mrmlScene.GetSingletonNode("Fewlabel", "vtkMRMLSegmentEditorNode")
        if node is None:
            node = slicer.vtkMRMLSegmentEditorNode()
            node.SetSingletonTag("Fewlabel")
            node = slicer.mrmlScene.AddNode(node)
        self.editor.setMRMLSegmentEditorNode(node)

    def _show_in_editor(self) -> None:
        self._place = 0
        self.editor.setSegmentationNode(self._scene.segmentation_node)
        self.editor.setSourceVolumeNode(self._scene.volume_node)

    # Widgets to commands

    def _connect(self) -> None:
        ui, session, lead, review = self.ui, self.session, self.lead, self.review
        commands: dict[str, Callable[[], None]] = {
            "testButton": lambda: session.test(_text(ui.serverEdit), _text(ui.userEdit), self._verify()),
            "connectButton": self._connect_to_server,
            "cancelButton": session.cancel,
            "nextButton": session.next_case,
            "proposeButton": session.propose,
            "takeOfferButton": session.take_offer,
            "dropOfferButton": session.drop_offer,
            "undoButton": session.undo,
            "submitButton": lambda: session.submit(),
            "submitNextButton": lambda: session.submit(then_next=True),
            "saveDraftButton": lambda: session.save_draft(),
            "discardButton": session.discard,
            "resumeButton": self._resume,
            "openButton": lambda: self._with_text(ui.casesBox, session.open_case),
            "useVolumeButton": self._use_volume,
            "addButton": session.add_to_project,
            "reviewRefreshButton": review.refresh,
            "showReadingButton": lambda: self._show_readings(False),
            "compareButton": lambda: self._show_readings(True),
            "hideReadingsButton": self._scene.hide_readings,
            "approveButton": lambda: review.approve(self._comment()),
            "sendBackButton": lambda: review.send_back(self._comment()),
            "startRoundButton": lead.start_round,
            "stopRoundButton": lead.stop_round,
            "leadRefreshButton": lead.refresh,
            "publishButton": lead.publish,
            "keepButton": lead.keep,
            "rollBackButton": lead.roll_back,
            "pinButton": lead.pin,
            "unpinButton": lead.unpin,
        }
        for name, command in commands.items():
            getattr(ui, name).clicked.connect(_without_arguments(command))
        for index in range(4):
            getattr(ui, f"answerButton{index}").clicked.connect(_without_arguments(lambda index=index: self._answer(index)))
        ui.passwordEdit.returnPressed.connect(_without_arguments(self._connect_to_server))
        ui.serverEdit.returnPressed.connect(_without_arguments(self._connect_to_server))
        ui.strategyBox.currentTextChanged.connect(self._strategy_chosen)
        ui.modelBox.currentTextChanged.connect(self._model_chosen)
        ui.versionBox.currentTextChanged.connect(self._version_chosen)
        ui.placesBox.currentTextChanged.connect(self._place_chosen)
        ui.structuresList.itemChanged.connect(self._structure_ticked)
        ui.autoProposeCheck.toggled.connect(self._auto_propose_chosen)
        ui.reviewTable.itemSelectionChanged.connect(_without_arguments(self._case_chosen))
        ui.versionsTable.itemSelectionChanged.connect(_without_arguments(self._version_row_chosen))
        ui.tabs.currentChanged.connect(self._tab_chosen)

    def _verify(self) -> bool:
        verify = bool(self.ui.verifyCheck.property("checked"))
        self._settings["verify"] = verify
        return verify

    def _connect_to_server(self) -> None:
        password = _text(self.ui.passwordEdit) or None
        self.ui.passwordEdit.setText("")
        self.session.connect(_text(self.ui.serverEdit), _text(self.ui.userEdit), self._verify(), password)

    def _answer(self, index: int) -> None:
        if self.session.question:
            self.session.answer(self.session.question.choices[index][0])

    def _resume(self) -> None:
        index = self.ui.draftsBox.property("currentIndex")
        drafts = self.session.view().drafts
        if 0 <= index < len(drafts):
            self.session.resume(drafts[index])

    def _use_volume(self) -> None:
        index = self.ui.volumesBox.property("currentIndex")
        if 0 <= index < len(self._volumes):
            self.session.use_volume(*self._volumes[index])

    def _with_text(self, box: Any, command: Callable[[str], None]) -> None:
        index = box.property("currentIndex")
        if 0 <= index < len(self.review.cases):
            command(self.review.cases[index].image)

    def _show_readings(self, both: bool) -> None:
        first, second = self.ui.firstReaderBox.property("currentIndex"), self.ui.secondReaderBox.property("currentIndex")
        readings = self.review.readings
        if 0 <= first < len(readings):
            self.review.show(readings[first].revision, readings[second].revision if both and 0 <= second < len(readings) else None)

    def _comment(self) -> str:
        return str(self.ui.commentEdit.property("plainText") or "")

    def _strategy_chosen(self, *_: Any) -> None:
        if not self._rendering:
            self.session.strategy = str(self.ui.strategyBox.property("currentText"))
            self._settings["strategy"] = self.session.strategy

    def _model_chosen(self, *_: Any) -> None:
        if not self._rendering:
            self.session.model, self.session.version = str(self.ui.modelBox.property("currentText")), None
            self.render()

    def _version_chosen(self, *_: Any) -> None:
        if not self._rendering:
            index = self.ui.versionBox.property("currentIndex")
            self.session.version = self.lead.versions[index - 1]["version"] if index > 0 else None

    def _place_chosen(self, *_: Any) -> None:
        index = self.ui.placesBox.property("currentIndex")
        if not self._rendering and self.session.case and 0 <= index < len(self.session.case.places):
            self._place = index
            self.session.jump(self.session.case.places[index])

    def look_at_next_place(self) -> None:
        if self.session.case and self.session.case.places:
            self._place = (self._place + 1) % len(self.session.case.places)
            self.ui.placesBox.setCurrentIndex(self._place)

    def _structure_ticked(self, item: Any) -> None:
        if not self._rendering:
            self.session.set_complete(str(item.text()), item.checkState() == qt.Qt.Checked)

    def _auto_propose_chosen(self, *_: Any) -> None:
        self._settings["auto_propose"] = bool(self.ui.autoProposeCheck.property("checked"))

    def _case_chosen(self) -> None:
        row = self.ui.reviewTable.currentRow()
        if not self._rendering and 0 <= row < len(self.review.cases):
            self.review.choose(self.review.cases[row].image)

    def _version_row_chosen(self) -> None:
        row = self.ui.versionsTable.currentRow()
        if not self._rendering and 0 <= row < len(self.lead.versions):
            self.lead.chosen = self.lead.versions[row]["version"]
            self.render()

    def _fit_tabs(self) -> None:
        """Only the tab that is shown asks for room."""
        tabs = self.ui.tabs
        for index in range(tabs.property("count")):
            policy = qt.QSizePolicy.Preferred if index == tabs.property("currentIndex") else qt.QSizePolicy.Ignored
            tabs.widget(index).setSizePolicy(qt.QSizePolicy.Preferred, policy)

    def _tab_chosen(self, *_: Any) -> None:
        self._fit_tabs()
        {1: self.review.refresh, 2: self.lead.refresh}.get(self.ui.tabs.property("currentIndex"), lambda: None)()

    def _tick(self) -> None:
        self.session.tick()
        view = self.session.view()
        if view.project and not view.login and self._listed != (view.server, view.project):
            self._listed = (view.server, view.project)
            self.review.refresh()
            # The versions that proposals can be made by.
            self.lead.refresh()
        self.lead.tick(self.ui.tabs.property("currentIndex") == 2)
        self._volumes = self._scene.volumes()
        self._list("volumesBox", [name for _, name in self._volumes])
        self._use_volume_button(view)

    def _use_volume_button(self, view: View) -> None:
        self._button("useVolumeButton", view.buttons["use_volume"] if self._volumes else Button("Load a volume into Slicer first."), _TIPS["useVolumeButton"])

    # Shortcuts, only while the module is open

    def enter(self, window: Any) -> None:
        self.leave()
        for key, (button, _) in SHORTCUTS.items():
            self._shortcut(window, key, lambda button=button: getattr(self.ui, button).click())
        self._shortcut(window, LOOK_KEY, self.look_at_next_place)

    def _shortcut(self, window: Any, key: str, command: Callable[[], None]) -> None:
        shortcut = qt.QShortcut(window)
        shortcut.setKey(qt.QKeySequence(key))
        shortcut.activated.connect(_without_arguments(command))
        self._shortcuts.append(shortcut)

    def leave(self) -> None:
        for shortcut in self._shortcuts:
            shortcut.setParent(None)
        self._shortcuts = []

    def close(self) -> None:
        self._second.stop()
        self.leave()
        self.session.close()
        self.editor.setMRMLSegmentEditorNode(None)
        self._scene.close()

    # View-models to widgets

    @contextlib.contextmanager
    def _quietly(self) -> Iterator[None]:
        was, self._rendering = self._rendering, True
        try:
            yield
        finally:
            self._rendering = was

    def render(self) -> None:
        with self._quietly():
            self._render_session()
            self._render_review()
            self._render_lead()

    def _render_session(self) -> None:
        ui, view = self.ui, self.session.view()
        back = {case.image for case in self.review.sent_back_to(self.session.client.user)} if self.session.client else set()
        sent_back = f" {len(back)} sent back to you (see More)." if back else ""
        ui.serverLabel.setText(f"{view.server} ({view.security}). {view.project}.{sent_back}" if view.server else "Not connected.")
        ui.passwordEdit.setEnabled(view.login)
        connected = view.state is not State.DISCONNECTED and not view.login
        if connected and not self._was_connected:
            ui.serverGroup.setProperty("collapsed", True)
        self._was_connected = connected
        ui.caseLabel.setText(f"<b>{_html(view.case)}</b>")
        ui.hintLabel.setText(view.hint)
        ui.progressFrame.setVisible(view.busy is not Busy.NOTHING)
        ui.progressLabel.setText(view.progress or view.busy.value)
        message = {1: self.review.message, 2: self.lead.message}.get(ui.tabs.property("currentIndex")) or view.message
        self._render_message(message)
        ui.questionFrame.setVisible(view.question is not None)
        choices = view.question.choices if view.question else ()
        ui.questionLabel.setText(view.question.text if view.question else "")
        for index in range(4):
            button = getattr(ui, f"answerButton{index}")
            button.setVisible(index < len(choices))
            button.setText(choices[index][1] if index < len(choices) else "")
        ui.offerFrame.setVisible(view.buttons["take_offer"].enabled)
        ui.placesFrame.setVisible(bool(view.places))
        widgets = {
            "connect": "connectButton", "test": "testButton", "next": "nextButton", "propose": "proposeButton", "take_offer": "takeOfferButton", "drop_offer": "dropOfferButton",
            "undo": "undoButton", "submit": "submitButton", "save_draft": "saveDraftButton", "discard": "discardButton", "cancel": "cancelButton", "add_to_project": "addButton",
        }  # fmt: skip
        keys = {button: f"{words} ({key})" for key, (button, words) in SHORTCUTS.items()}
        for key, name in widgets.items():
            self._button(name, view.buttons[key], keys.get(name) or _TIPS.get(name, ""))
        self._button("submitNextButton", view.buttons["submit"], keys["submitNextButton"])
        self._use_volume_button(view)
        self._button("resumeButton", view.buttons["open"] if view.drafts else Button("There are no drafts of other cases."))
        self._button("openButton", view.buttons["open"] if self.review.cases else Button("No submitted cases are known; refresh the list on the tab Review."))
        self._structures(view.structures)
        self._list("strategyBox", list(view.strategies), self.session.strategy)
        self._list("modelBox", list(view.models), self.session.model)
        self._list("draftsBox", [draft.image for draft in view.drafts])
        self._list("placesBox", [place.text for place in view.places], index=0)
        self._list("casesBox", [case.image + (f" (sent back: {case.comment})" if case.image in back else "") for case in self.review.cases])

    def _render_message(self, message: Message | None) -> None:
        self.ui.messageFrame.setVisible(message is not None)
        if message:
            parts = [f"<b>{_html(message.what)}</b>", _html(message.safe), _html(message.next_step)]
            text = "<br>".join(part for part in parts if part)
            background = self.ui.messageFrame.property("palette").color(qt.QPalette.Window)
            color = _COLORS[message.level][background.lightness() < 128]
            self.ui.messageLabel.setText(f'<span style="color:{color}">{text}</span>')

    def _render_review(self) -> None:
        view = self.review.view()
        self._table("reviewTable", [case.row for case in view.cases])
        self._list("firstReaderBox", [reading.text for reading in view.readings])
        self._list("secondReaderBox", [reading.text for reading in view.readings], index=1)
        self._table("readersTable", list(view.comparison), "voxelsLabel")
        self.ui.commentLabel.setText(view.comment)
        self.ui.commentLabel.setVisible(bool(view.comment))
        for key, name in {"refresh": "reviewRefreshButton", "show": "showReadingButton", "compare": "compareButton", "approve": "approveButton", "send_back": "sendBackButton"}.items():
            self._button(name, view.buttons[key])

    def _render_lead(self) -> None:
        ui, view = self.ui, self.lead.view()
        ui.labelsLabel.setText(view.labels)
        ui.roundLabel.setText(view.round)
        ui.roundProgress.setVisible(self.lead.running is not None)
        ui.roundProgress.setValue(int(view.share * 100))
        ui.comparedLabel.setText(view.compared)
        ui.comparedLabel.setVisible(bool(view.compared))
        self._table("comparisonTable", list(view.comparison))
        self._table("versionsTable", [(str(number), *rest) for number, *rest in view.versions], "versionsLabel")
        self._table("annotatorsTable", list(view.annotators), "annotatorsLabel")
        self._table("structuresTable", list(view.structures), "structuresLabel")
        versions = ["the live one"] + [f"{number} ({state}, Dice {mean})" for number, state, mean, _ in view.versions]
        chosen = next((index for index, entry in enumerate(self.lead.versions, 1) if entry["version"] == self.session.version), 0)
        self._list("versionBox", versions, versions[chosen])
        for key, name in {
            "start": "startRoundButton", "stop": "stopRoundButton", "refresh": "leadRefreshButton", "publish": "publishButton", "keep": "keepButton",
            "rollback": "rollBackButton", "pin": "pinButton", "unpin": "unpinButton",
        }.items():  # fmt: skip
            self._button(name, view.buttons[key])

    def _button(self, name: str, button: Button, tip: str = "") -> None:
        widget = getattr(self.ui, name)
        widget.setEnabled(button.enabled)
        widget.setToolTip(button.reason or tip)

    def _structures(self, structures: Sequence[tuple[Any, bool]]) -> None:
        if self._shown.get("structures") == structures:
            return
        self._shown["structures"] = structures
        self.ui.structuresList.clear()
        for structure, complete in structures:
            item = qt.QListWidgetItem(structure.name)
            item.setCheckState(qt.Qt.Checked if complete else qt.Qt.Unchecked)
            pixels = qt.QPixmap(12, 12)
            pixels.fill(qt.QColor(*structure.color))
            item.setIcon(qt.QIcon(pixels))
            self.ui.structuresList.addItem(item)
        self.ui.structuresList.setVisible(bool(structures))
        self.ui.completeLabel.setVisible(bool(structures))
        self.ui.structuresList.setFixedHeight(min(len(structures), _MOST_TICKS) * max(self.ui.structuresList.sizeHintForRow(0), 16) + 6)

    def _list(self, name: str, texts: list[str], current: str | None = None, index: int | None = None) -> None:
        box = getattr(self.ui, name)
        with self._quietly():
            if self._shown.get(name) != texts:
                kept = box.property("currentIndex") if name in self._shown else 0
                self._shown[name] = texts
                box.clear()
                box.addItems(texts)
                box.setCurrentIndex(index if index is not None and index < len(texts) else kept if 0 <= kept < len(texts) else 0)
            if current in texts:
                box.setCurrentIndex(texts.index(current))

    def _table(self, name: str, rows: list[tuple[str, ...]], label: str = "") -> None:
        """Shows rows in a table that is as high as it needs to be; without any it is not there, nor is its label."""
        if self._shown.get(name) == rows:
            return
        self._shown[name] = rows
        table = getattr(self.ui, name)
        for widget in [table] + ([getattr(self.ui, label)] if label else []):
            widget.setVisible(bool(rows))
        selected = table.currentRow()
        table.setRowCount(len(rows))
        for row, texts in enumerate(rows):
            for column, text in enumerate(texts):
                item = qt.QTableWidgetItem(text)
                item.setToolTip(text)
                table.setItem(row, column, item)
        for column in range(table.property("columnCount") - 1):
            table.resizeColumnToContents(column)
            table.setColumnWidth(column, min(table.columnWidth(column), _WIDEST_PX))
        table.resizeRowsToContents()
        header_px = table.fontMetrics().height() + 12
        table.setFixedHeight(header_px + sum(table.rowHeight(row) for row in range(min(len(rows), _MOST_ROWS))))
        if 0 <= selected < len(rows):
            table.selectRow(selected)


def _text(edit: Any) -> str:
    return str(edit.property("text") or "").strip()


def _html(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", "<br>")


def _without_arguments(command: Callable[[], None]) -> Callable[..., None]:
    """Qt gives some signals arguments, such as whether a button is checked."""

    def call(*_: Any) -> None:
        command()

    return call


def data_folder() -> pathlib.Path:
    """Where drafts and fetched images are kept: beside Slicer's settings, so that they outlive its updates."""
    return pathlib.Path(str(slicer.app.slicerUserSettingsFilePath)).parent / "Fewlabel"


