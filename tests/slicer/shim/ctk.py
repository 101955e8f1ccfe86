"""Stand-ins for the widgets of CTK that the MONAI Label panel uses: what they hold, and roughly how they look."""

from __future__ import annotations

from typing import Any

from PySide6 import QtCore, QtGui, QtWidgets

import qt

_HEADER_PX = 24


class ctkCollapsibleButton(qt.QWidget):
    """A group with a header that folds it away."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._text = ""
        self._collapsed = False
        self.setContentsMargins(0, _HEADER_PX, 0, 0)

    def _set_text(self, text: str) -> None:
        self._text = text
        self.update()

    def _set_collapsed(self, collapsed: bool) -> None:
        self._collapsed = bool(collapsed)
        self.setMaximumHeight(_HEADER_PX if collapsed else 16_777_215)

    text = QtCore.Property(str, lambda self: self._text, _set_text)
    collapsed = QtCore.Property(bool, lambda self: self._collapsed, _set_collapsed)

    def paintEvent(self, event: QtGui.QPaintEvent) -> None:
        painter = QtGui.QPainter(self)
        header = QtCore.QRect(0, 0, QtCore.QObject.property(self, "width"), _HEADER_PX - 4)
        palette = QtWidgets.QWidget.palette(self)
        painter.fillRect(header, palette.color(QtGui.QPalette.Button).darker(110))
        painter.setPen(palette.color(QtGui.QPalette.ButtonText))
        mark = "▸" if self._collapsed else "▾"
        painter.drawText(header.adjusted(6, 0, 0, 0), QtCore.Qt.AlignVCenter, f"{mark} {self._text}")
        painter.end()


class ctkComboBox(qt.QComboBox):
    pass


class ctkPathLineEdit(qt.QLineEdit):
    currentPath = QtCore.Property(str, lambda self: qt.QLineEdit.text.fget(self), lambda self, path: self.setText(path))


class ctkSliderWidget(qt.QSlider):
    """CTK's counts in floating point; this one in whole steps."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(QtCore.Qt.Horizontal, parent)


class ctkMessageBox(qt.QMessageBox):
    """Answers at once, with the answer that the test has set, and keeps what it was asked."""

    asked: list[str] = []
    answer = qt.QMessageBox.Ok

    def exec_(self) -> Any:
        self.asked.append(QtCore.QObject.property(self, "text"))
        return self.answer


class ctkSettingsPanel(qt.QWidget):
    def registerProperty(self, *arguments: Any) -> None:
        """Settings are set by the tests themselves."""


class ctkCollapsibleGroupBox(qt.QGroupBox):
    pass


class ctkBooleanMapper(qt.QObject):
    def __init__(self, target: Any, name: str, signal: str) -> None:
        super().__init__(target)
