"""What the clinician does with the panel, for the tests: clicks, and looks at what it shows."""

from __future__ import annotations

import logging
import pathlib
import time
from typing import Any

import numpy
import slicer
import slicer.util
from PySide6 import QtCore

import ctk
import qt
from serving import Server


class Panel:
    """The widget of the plugin, open and not connected."""

    def __init__(self, server: Server, caplog: Any) -> None:
        import MONAILabel

        qt.faults.clear()
        ctk.ctkMessageBox.asked.clear()
        ctk.ctkMessageBox.answer = qt.QMessageBox.Ok
        qt.QSettings().clear()
        self._log = caplog
        self.server = server
        self.widget = MONAILabel.MONAILabelWidget()
        self.widget.setup()
        self.ui = self.widget.ui
        self.widget.parent.show()

    def close(self) -> None:
        if self.widget.timer:
            self.widget.timer.stop()
        self.widget.cleanup()
        self.widget.parent.hide()

    def click(self, name: str) -> None:
        """Press a button as far as it can be pressed, and check that nothing went wrong."""
        button = getattr(self.ui, name)
        assert button.enabled, f"{name} is not enabled"
        button.click()
        self.settle()
        self.assert_well()

    def settle(self) -> None:
        """What Slicer's event loop would do now."""
        for _ in range(3):
            QtCore.QCoreApplication.processEvents()

    def errors(self) -> list[str]:
        """What the plugin told in its error and warning boxes."""
        return [record.getMessage() for record in self._log.records if record.levelno >= logging.WARNING]

    def assert_well(self) -> None:
        assert not qt.faults, qt.faults
        assert not self.errors()

    def set(self, name: str, value: object) -> None:
        """A setting of the plugin."""
        qt.QSettings().setValue(f"MONAILabel/{name}", value)

    def connect(self) -> None:
        self.ui.serverComboBox.setCurrentText(self.server.url)
        self.click("fetchServerInfoButton")

    def texts(self, box: str) -> list[str]:
        combo = getattr(self.ui, box)
        return [combo.itemText(k) for k in range(combo.count)]

    def table(self) -> dict[str, Any]:
        """The options table: a text, a truth value, or the choices of a box, by key."""
        table, shown = self.ui.configTable, {}
        for row in range(table.rowCount):
            cell, box = table.item(row, 1), table.cellWidget(row, 1)
            if cell:
                value: Any = cell.text()
            elif isinstance(box, qt.QCheckBox):
                value = box.checked
            else:
                value = [box.itemText(k) for k in range(box.count)]
            shown[table.item(row, 0).text()] = value
        return shown

    def edit(self, key: str, value: Any) -> None:
        """Change one row of the options table."""
        table = self.ui.configTable
        row = list(self.table()).index(key)
        if table.item(row, 1):
            table.item(row, 1).setText(value)
        elif isinstance(value, bool):
            table.cellWidget(row, 1).setChecked(value)
        else:
            table.cellWidget(row, 1).setCurrentText(value)

    def segments(self) -> list[str]:
        segmentation = self.widget._segmentNode.GetSegmentation()
        return [segmentation.GetNthSegment(k).GetName() for k in range(segmentation.GetNumberOfSegments())]

    def mask(self, name: str) -> numpy.ndarray:
        """The voxels of a segment on the grid of the scan, [z, y, x]."""
        node = self.widget._segmentNode
        segment = node.GetSegmentation().GetSegmentIdBySegmentName(name)
        return slicer.util.arrayFromSegmentBinaryLabelmap(node, segment, self.widget._volumeNode) > 0

    def draw(self, name: str, voxels: numpy.ndarray) -> None:
        """What the Segment Editor does: put these voxels [z, y, x] into a segment."""
        node = self.widget._segmentNode
        segment = node.GetSegmentation().GetSegmentIdBySegmentName(name)
        array = voxels.astype(numpy.uint8)
        slicer.util.updateSegmentBinaryLabelmapFromArray(array, node, segment, self.widget._volumeNode)

    def scan(self) -> numpy.ndarray:
        return slicer.util.arrayFromVolume(self.widget._volumeNode)

    def wait_for_training(self, limit_s: float = 300) -> None:
        """Until the plugin's own timer, hurried, sees the end of the round."""
        deadline = time.monotonic() + limit_s
        if self.widget.timer:
            self.widget.timer.setInterval(100)
        while self.widget.timer:
            self.settle()
            self.assert_well()
            assert time.monotonic() < deadline, "the round does not end"
            time.sleep(0.02)

    def picture(self, path: pathlib.Path) -> None:
        self.widget.parent.resize(440, self.widget.parent.sizeHint().height())
        self.settle()
        assert self.widget.parent.grab().save(str(path))
