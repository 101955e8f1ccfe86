"""The extension's panel against a server that fails and is slow on order: each state, its picture, and a main thread that never waits."""

from __future__ import annotations

import pathlib
import re
import time
from collections.abc import Iterator

import numpy
import pytest
import slicer
import slicer.util
from PySide6 import QtCore, QtGui, QtTest, QtWidgets

import qt
from extension import SHAPE, Stub, stub
from extension_panel import Module, texts

server = pytest.fixture(stub)

DELAY_S = 5.0
MAX_GAP_S = 0.9 * DELAY_S
"""The main thread is never away for so long: a call on it would be, and nothing that a busy machine does to a process is."""
MAX_STEP_S = 0.3
"""Processor time of the main thread between two beats, a multiple of what its longest step takes."""


def box(plane: int = 1) -> numpy.ndarray:
    mask = numpy.zeros(SHAPE, bool)
    mask[plane, 1:4, 1:4] = True
    return mask


def enabled(module: Module) -> set[str]:
    names = ("nextButton", "proposeButton", "submitButton", "submitNextButton", "saveDraftButton", "discardButton", "undoButton")
    return {name.removesuffix("Button") for name in names if getattr(module.ui, name).enabled}


def test_states(module: Module, server: Stub, tmp_path: pathlib.Path) -> None:
    """What can be done in which state; whatever cannot be says why."""
    ui = module.ui

    def check(state: str, wanted: set[str]) -> None:
        assert enabled(module) == wanted, state
        for name in ("nextButton", "proposeButton", "submitButton", "saveDraftButton"):
            assert getattr(ui, name).toolTip, f"{state}: {name} has no tooltip"
        module.picture(state, tmp_path)

    check("disconnected", set())
    module.ui.serverEdit.setText("http://127.0.0.1:9")
    module.click("connectButton")
    assert "Nothing answers" in ui.messageLabel.text and "Nothing was changed" in ui.messageLabel.text
    check("unreachable", set())

    module.widget.logic.settings["auto_propose"] = False
    module.connect(server.url)
    check("connected", {"next"})
    assert [ui.structuresList.item(row).text() for row in range(ui.structuresList.count)] == ["liver", "spleen"]

    module.click("nextButton")
    check("sample", {"next", "propose"})
    server.delay_s = 0.5
    module.click("proposeButton", wait=False)
    module.wait(lambda: bool(module.widget.logic.jobs.pending))
    assert ui.progressFrame.visible and ui.cancelButton.enabled and "Wait" in ui.nextButton.toolTip
    check("segmenting", set())
    server.delay_s = 0
    module.wait()
    check("segmented", {"next", "propose", "submit", "submitNext", "undo"})
    module.draw("liver", box())
    module.wait()
    check("editing", {"next", "propose", "submit", "submitNext", "saveDraft", "discard", "undo"})

    module.click("proposeButton")
    assert ui.offerFrame.visible
    check("offered", {"next", "propose", "submit", "submitNext", "saveDraft", "discard", "undo"})
    module.click("dropOfferButton")
    assert not ui.offerFrame.visible

    module.click("nextButton")
    assert ui.questionFrame.visible and "not submitted" in ui.questionLabel.text
    check("leaving", {"undo"})
    module.answer("Stay")
    server.failing["PUT /datastore/label"] = [507] * 9
    module.click("submitButton")
    assert "disk of the server is full" in ui.messageLabel.text and "as a draft on this computer" in ui.messageLabel.text
    check("refused", {"next", "propose", "submit", "submitNext", "saveDraft", "discard", "undo"})
    server.failing.clear()
    module.click("submitNextButton")
    assert module.session.case and module.session.case.image == "case 1"
    assert (server.submitted("case 0") == 1).sum() == 9


def test_what_is_shown_now_and_then(module: Module, server: Stub, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of the panel that are folded away or rare: nothing is cut, and everything can be read, also on a dark background."""
    ui = module.ui
    module.widget.logic.settings["auto_propose"] = False
    slices = [{"index": index, "axis": 2, "centre_lps_mm": [10.0, -20.0, 30.0 + index], "entropy": 0.4 - index / 10} for index in range(3)]
    server.told = {"uncertainty": {"slices": slices}}
    module.connect(server.url)
    module.click("nextButton")
    assert ui.placesFrame.visible and ui.placesBox.count == 3
    ui.moreGroup.setProperty("collapsed", False)
    module.wait(lambda: ui.versionBox.count == 4)
    assert [ui.versionBox.itemText(index) for index in range(4)][0] == "the live one"
    module.picture("more", tmp_path)
    ui.moreGroup.setProperty("collapsed", True)
    module.draw("liver", box())
    module.draw("spleen", box(2))
    module.add_segment("a segment of mine", box())
    ui.structuresList.item(1).setCheckState(qt.Qt.Unchecked)
    module.click("submitButton")
    assert "Not part of this project" in ui.questionLabel.text and "not ticked as complete" in ui.questionLabel.text
    module.picture("warned", tmp_path)
    module.answer("Submit")
    module.draw("liver", box(3))
    server.labels["case 0", "final"].append(server.proposal)
    module.click("submitButton")
    if "ticked" in ui.questionLabel.text:
        module.answer("Submit")
    assert "Somebody else has submitted this case" in ui.questionLabel.text
    module.picture("somebody_else", tmp_path)
    module.answer("Look first")

    work = server.work
    monkeypatch.setattr(server, "work", lambda method, path, *rest: (200, {"enabled": True}, {}) if path == "/auth/" else work(method, path, *rest))
    module.click("connectButton")
    ui.serverGroup.setProperty("collapsed", False)
    assert ui.passwordEdit.enabled and "login" in ui.messageLabel.text
    dark = QtWidgets.QWidget.palette(module.widget.parent)
    for role, color in ((QtGui.QPalette.Window, "#2b2b2b"), (QtGui.QPalette.Base, "#1e1e1e"), (QtGui.QPalette.Button, "#3a3a3a")):
        dark.setColor(role, QtGui.QColor(color))
    for role in (QtGui.QPalette.WindowText, QtGui.QPalette.Text, QtGui.QPalette.ButtonText):
        dark.setColor(role, QtGui.QColor("#e0e0e0"))
    QtWidgets.QWidget.setPalette(module.widget.parent, dark)
    module.widget.panel.render()
    colors = re.findall("color:(#[0-9a-f]{6})", ui.messageLabel.text)
    assert colors and all(QtGui.QColor(color).lightness() > 128 for color in colors)
    module.picture("login_dark", tmp_path)


def test_ticks_are_what_is_sent(module: Module, server: Stub) -> None:
    module.widget.logic.settings["auto_propose"] = False
    module.connect(server.url)
    module.click("nextButton")
    module.draw("liver", box())
    module.wait()
    module.ui.structuresList.item(1).setCheckState(qt.Qt.Unchecked)
    module.click("submitButton")
    assert server.params["case 0", "final"][0]["annotated_labels"] == ["liver"]


def test_shortcuts_press_buttons(module: Module, server: Stub) -> None:
    module.widget.logic.settings["auto_propose"] = False
    module.connect(server.url)
    keys = {shortcut.key.toString() for shortcut in module.widget.panel._shortcuts}
    assert keys == {"Ctrl+Shift+N", "Ctrl+Shift+P", "Ctrl+Shift+Return", "Ctrl+Shift+D", "Ctrl+Shift+L"}
    window, keys = module.widget.parent, QtCore.Qt
    window.activateWindow()
    module.wait(lambda: window.isActiveWindow)
    QtTest.QTest.keyClick(window, keys.Key_N, keys.ControlModifier | keys.ShiftModifier)
    module.wait()
    assert module.session.case and module.session.case.image == "case 0"
    QtTest.QTest.keyClick(window, keys.Key_P, keys.ControlModifier | keys.ShiftModifier)
    module.wait()
    assert module.mask("liver").any()
    # A button that is off stays so.
    QtTest.QTest.keyClick(window, keys.Key_D, keys.ControlModifier | keys.ShiftModifier)
    module.wait()
    assert "draft" not in module.said()
    QtTest.QTest.keyClick(window, keys.Key_Return, keys.ControlModifier | keys.ShiftModifier)
    module.wait()
    assert ("case 0", "final") in server.labels and module.session.case.image == "case 1"
    module.widget.exit()
    assert not module.widget.panel._shortcuts, "other modules have their own keys"
    module.widget.enter()


def test_nothing_is_asked_before_somebody_wants_it(module: Module, server: Stub) -> None:
    """An open module sends nothing, also with the address of the last time in its field."""
    module.ui.serverEdit.setText(server.url)
    for tab in (1, 2, 0):
        module.ui.tabs.setCurrentIndex(tab)
        module.widget.panel._tick()
        module.wait()
    assert server.asked == []
    module.click("testButton")
    assert server.asked == ["GET /auth/", "GET /info/"]


def test_closing_the_scene_keeps_the_edits(module: Module, server: Stub) -> None:
    module.widget.logic.settings["auto_propose"] = False
    module.connect(server.url)
    module.click("nextButton")
    module.draw("spleen", box())
    slicer.mrmlScene.Clear(0)
    module.wait()
    assert "kept as a draft" in module.said() and module.ui.draftsBox.currentText == "case 0"
    assert module.widget.panel.editor.told["MRMLSegmentEditorNode"].GetScene() is not None
    module.click("resumeButton")
    assert numpy.array_equal(module.mask("spleen"), box())


def test_what_was_sent_back_is_seen_at_the_start(module: Module, server: Stub) -> None:
    server.labels["case 2", "final"], server.params["case 2", "final"] = [server.proposal], [{"client_id": "ann"}]
    server.reviews["case 2"] = {"verdict": "sent_back", "reviewer": "ben", "comment": "the tip is missing", "ts": 0}
    module.connect(server.url)
    module.wait(lambda: "1 sent back to you" in module.ui.serverLabel.text)
    assert module.ui.casesBox.currentText == "case 2 (sent back: the tip is missing)"
    module.click("openButton")
    assert module.session.case and module.session.case.image == "case 2" and module.mask("liver").any()


def test_a_volume_of_the_user_stays(module: Module, server: Stub, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.nrrd"
    path.write_bytes(server.images["case 2"])
    mine = slicer.util.loadVolume(str(path), {"name": "mine"})
    module.connect(server.url)
    module.wait(lambda: module.ui.volumesBox.currentText == "mine")
    module.click("useVolumeButton")
    assert "Send mine to 127.0.0.1" in module.ui.questionLabel.text
    module.answer("For a proposal only")
    assert module.scene.volume_node is mine and module.mask("liver").any()
    module.click("addButton")
    module.click("submitButton")
    assert ("mine", "final") in server.labels
    module.click("nextButton")
    assert mine.GetScene() is not None, "only our own nodes are removed"


def test_the_tab_of_the_lead(module: Module, server: Stub, tmp_path: pathlib.Path) -> None:
    ui = module.ui
    module.connect(server.url)
    ui.tabs.setCurrentIndex(2)
    module.wait()
    assert "11 of 40 cases labelled" in ui.labelsLabel.text and "after 2 more" in ui.labelsLabel.text
    assert "Round 3 was not published: spleen is worse" in ui.roundLabel.text
    assert texts(ui.comparisonTable)[2] == ["spleen", "0.880", "0.800", "-0.080"]
    assert [row[:2] for row in texts(ui.versionsTable)] == [["4", "candidate"], ["3", "live"], ["1", "published"]]
    assert texts(ui.annotatorsTable)[0] == ["ann", "7", "9", "14.0"]
    assert not ui.publishButton.enabled and "Choose a version" in ui.publishButton.toolTip
    ui.versionsTable.selectRow(0)
    module.picture("project", tmp_path)
    module.click("publishButton")
    assert "Version 4 is live" in ui.messageLabel.text
    ui.versionsTable.selectRow(0)
    module.click("keepButton")
    module.click("rollBackButton")
    module.click("pinButton")
    assert server.orders == [
        ("POST", "/models/pct-net-s/publish", {"version": "4"}), ("POST", "/models/pct-net-s/keep", {"version": "4"}), ("POST", "/models/pct-net-s/rollback", {}),
        ("POST", "/models/pct-net-s/pin", {}),
    ]  # fmt: skip
    server.orders.clear()
    server.failing["POST /rounds/pct-net-s"] = [429]
    module.click("startRoundButton")
    assert "busy" in ui.messageLabel.text and "Nothing was changed" in ui.messageLabel.text
    running = {"round": 4, "state": "running", "progress": {"stage": "training", "step": 30, "steps": 120, "eta_s": 200}}
    server.project["/rounds/"]["rounds"].insert(0, running)
    module.click("leadRefreshButton")
    assert "step 30 of 120, about 4 min left" in ui.roundLabel.text and ui.roundProgress.value == 25
    assert not ui.startRoundButton.enabled
    module.picture("round", tmp_path)
    module.click("stopRoundButton")
    assert server.orders == [("DELETE", "/rounds/4", {"client_id": "ann"})]
    assert ui.versionBox.itemText(2).startswith("3 (live")
    ui.versionBox.setCurrentIndex(1)
    assert module.session.version == 4, "proposals by the candidate"


def test_the_tab_of_the_review(module: Module, server: Stub, tmp_path: pathlib.Path) -> None:
    ui = module.ui
    module.widget.logic.settings["auto_propose"] = False
    module.connect(server.url)
    module.click("nextButton")
    module.click("proposeButton")
    for plane in (1, 3):
        module.draw("liver", box(plane))
        module.click("submitButton")
    server.params["case 0", "final"][0]["client_id"] = "ben"
    ui.tabs.setCurrentIndex(1)
    module.wait()
    assert texts(ui.reviewTable)[0][:2] == ["case 0", "ann"] and texts(ui.reviewTable)[0][3] == "to be reviewed"
    assert not ui.approveButton.enabled
    ui.reviewTable.selectRow(0)
    module.wait()
    assert ui.firstReaderBox.currentText.startswith("ann") and ui.secondReaderBox.currentText.startswith("ben")
    module.click("compareButton")
    readings = [node for node in slicer.util.getNodesByClass("vtkMRMLSegmentationNode") if "revision" in node.GetName()]
    assert len(readings) == 2
    assert [list(node.GetDisplayNode().GetViewNodeIDs()) for node in readings] == [["vtkMRMLSliceNodeRed"], ["vtkMRMLSliceNodeYellow"]]
    assert texts(ui.readersTable)[0] == ["liver", "9", "12", "0.857"]
    module.picture("review", tmp_path)
    module.click("hideReadingsButton")
    assert len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")) == 1 and module.scene.segmentation_node.GetScene() is not None
    module.click("sendBackButton")
    assert "needs a comment" in ui.messageLabel.text and server.reviews == {}
    ui.commentEdit.setPlainText("the tip is missing")
    module.click("sendBackButton")
    assert server.reviews["case 0"]["verdict"] == "sent_back"
    assert "sent back: the tip is missing" in ui.casesBox.currentText
    assert "1 sent back to you" in ui.serverLabel.text
    ui.reviewTable.selectRow(0)
    module.wait()
    assert ui.commentLabel.text == "ann: the tip is missing"
    module.click("approveButton")
    assert texts(ui.reviewTable)[0][3] == "approved by ann"
    ui.tabs.setCurrentIndex(0)
    module.click("openButton")
    assert module.session.case and module.session.case.image == "case 0"


@pytest.fixture
def heartbeat() -> Iterator[list[tuple[float, float]]]:
    """When a timer of the main thread came to its turn, and the thread's processor time then."""
    beats: list[tuple[float, float]] = []
    timer = QtCore.QTimer()
    timer.setInterval(20)
    timer.timeout.connect(lambda: beats.append((time.monotonic(), time.thread_time())))
    timer.start()
    yield beats
    timer.stop()


def test_the_main_thread_never_waits_for_the_server(module: Module, server: Stub, heartbeat: list[tuple[float, float]]) -> None:
    """The whole loop while every call takes five seconds: Qt's event loop goes on all the time."""
    server.delay_s = DELAY_S
    start, started = time.monotonic(), time.thread_time()
    module.connect(server.url)
    module.click("nextButton")
    # Proposed at once, as it is by default.
    module.wait(lambda: bool(module.mask("liver").any()))
    module.draw("liver", box())
    module.click("submitButton", wait=False)
    module.wait(lambda: ("case 0", "final") in server.labels and module.session.busy.value == "")
    server.delay_s = 0
    module.wait()
    waited_s = time.monotonic() - start
    calls = len(server.asked)
    gaps, steps = numpy.diff([(start, started), *heartbeat], axis=0).max(axis=0)
    print(f"{calls} calls, {waited_s:.0f} s, {len(heartbeat)} beats; longest gap {gaps * 1000:.0f} ms, longest step {steps * 1000:.0f} ms of processor time")
    assert waited_s > 8 * DELAY_S, "each call waits for the one before it"
    assert gaps < MAX_GAP_S and steps < MAX_STEP_S
    assert len(heartbeat) > waited_s
