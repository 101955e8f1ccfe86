"""Our own module in the shim, and what a user does with it, for the tests."""

from __future__ import annotations

import os
import pathlib
import time
from collections.abc import Callable

import numpy
import slicer
import slicer.util
from PySide6 import QtCore, QtWidgets
from vtk.util import numpy_support

import qt

PICTURES = os.environ.get("FEWLABEL_PICTURES")
"""Where pictures go that somebody wants to keep."""


class Module:
    """The widget of the extension, open and not connected."""

    def __init__(self, folder: pathlib.Path) -> None:
        import Fewlabel

        qt.faults.clear()
        qt.QSettings().clear()
        slicer.app.slicerUserSettingsFilePath = str(folder / "Slicer.ini")
        self.folder = folder
        self.widget = Fewlabel.FewlabelWidget()
        self.widget.setup()
        self.ui = self.widget.ui
        self.session, self.scene = self.widget.logic.session, self.widget.logic.scene
        self.widget.parent.show()
        self.widget.enter()

    def close(self) -> None:
        self.widget.exit()
        self.widget.cleanup()
        self.widget.parent.hide()
        assert not qt.faults, qt.faults

    def wait(self, until: Callable[[], bool] | None = None, limit_s: float = 180) -> None:
        """Runs Qt's event loop until the condition holds, or no job is pending."""
        done = until or (lambda: not self.widget.logic.jobs.pending)
        deadline = time.monotonic() + limit_s
        while not done():
            QtCore.QCoreApplication.processEvents(QtCore.QEventLoop.AllEvents, 20)
            assert time.monotonic() < deadline, self.said()
        QtCore.QCoreApplication.processEvents()
        assert not qt.faults, qt.faults

    def click(self, name: str, wait: bool = True) -> None:
        button = getattr(self.ui, name)
        assert button.enabled, f"{name}: {button.toolTip}"
        button.click()
        if wait:
            self.wait()

    def said(self) -> str:
        return self.session.message.text if self.session.message else ""

    def connect(self, url: str) -> None:
        self.ui.serverEdit.setText(url)
        self.ui.userEdit.setText("ann")
        self.click("connectButton")

    def answer(self, words: str) -> None:
        for index in range(4):
            button = getattr(self.ui, f"answerButton{index}")
            if button.text == words:
                self.click(f"answerButton{index}")
                return
        raise AssertionError(f"{words} is no answer to {self.session.question}")

    def mask(self, name: str) -> numpy.ndarray:
        segment = self.scene.segmentation_node.GetSegmentation().GetSegmentIdBySegmentName(name)
        return slicer.util.arrayFromSegmentBinaryLabelmap(self.scene.segmentation_node, segment, self.scene.volume_node) > 0

    def draw(self, name: str, mask: numpy.ndarray) -> None:
        """What a brush of the Segment Editor does in the end: other voxels in the segment."""
        segment = self.scene.segmentation_node.GetSegmentation().GetSegmentIdBySegmentName(name)
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(numpy.uint8), self.scene.segmentation_node, segment, self.scene.volume_node)

    def add_segment(self, name: str, mask: numpy.ndarray) -> None:
        """A segment that the user made."""
        self.scene.segmentation_node.GetSegmentation().AddEmptySegment(name, name)
        self.draw(name, mask)

    def paint(self, name: str, box: tuple[slice, slice, slice]) -> None:
        """A stroke by Slicer's own editing code: the same that its brush uses, with undo and with what it overwrites."""
        node = self.scene.segmentation_node
        logic = slicer.vtkSlicerSegmentEditorLogic()
        logic.SetMRMLScene(slicer.mrmlScene)
        logic.SetMRMLApplicationLogic(slicer.app.applicationLogic())
        logic.SetSegmentEditorNode(self.widget.panel.editor.told["MRMLSegmentEditorNode"])
        logic.SetSegmentationNode(node)
        logic.SetSourceVolumeNode(self.scene.volume_node)
        segment = node.GetSegmentation().GetSegmentIdBySegmentName(name)
        logic.SetCurrentSegmentID(segment)
        logic.ResetModifierLabelmapToDefault()
        modifier = logic.GetModifierLabelmap()
        scalars = modifier.GetPointData().GetScalars()
        shape = slicer.util.arrayFromVolume(self.scene.volume_node).shape
        numpy_support.vtk_to_numpy(scalars).reshape(shape)[box] = 1
        scalars.Modified()
        modifier.Modified()
        logic.ModifySegmentByLabelmap(node, segment, modifier, logic.ModificationModeAdd, False, False)

    def picture(self, name: str, path: pathlib.Path, width: int = 420) -> None:
        """The panel as a file; texts must not be cut at that width."""
        parent, base = self.widget.parent, QtWidgets.QWidget
        page = self.ui.tabs.currentWidget()
        for _ in range(3):
            # Texts take more rows when they get less room, so this comes to rest in steps.
            spare = base.sizeHint(page).height() - base.minimumSizeHint(page).height()
            parent.resize(width, max(base.minimumSizeHint(parent).height() + spare, base.layout(parent).totalHeightForWidth(width)))
            QtCore.QCoreApplication.processEvents()
        folder = pathlib.Path(PICTURES) if PICTURES else path
        folder.mkdir(parents=True, exist_ok=True)
        assert parent.grab().save(str(folder / f"{name}.png"))
        for label in parent.findChildren(QtWidgets.QLabel):
            if QtWidgets.QWidget.isVisible(label) and label.hasHeightForWidth():
                size = QtWidgets.QWidget.size(label)
                assert size.height() >= label.heightForWidth(size.width()), f"{QtCore.QObject.property(label, 'text')!r} is cut"
        for button in parent.findChildren(QtWidgets.QPushButton):
            if QtWidgets.QWidget.isVisible(button):
                wanted = QtWidgets.QWidget.sizeHint(button).width()
                assert QtWidgets.QWidget.width(button) >= min(wanted, width), f"{QtCore.QObject.property(button, 'objectName')} is cut"


def texts(table: QtWidgets.QTableWidget) -> list[list[str]]:
    """What a table shows, row by row."""
    return [[table.item(row, column).text() for column in range(table.columnCount)] for row in range(table.rowCount)]
