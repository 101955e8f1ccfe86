"""Qt as Slicer's Python sees it, made of PySide6.

Slicer's modules are written for PythonQt: properties are attributes (`box.currentText`), signals are connected by
their C++ signature (`button.connect("clicked(bool)", f)`), and numbers and truth values are taken where Qt wants others.
Every QObject class is offered as a subclass that behaves so; everything else is PySide6's own.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any

from PySide6 import QtCore, QtGui, QtUiTools, QtWidgets

faults: list[BaseException] = []
"""What slots raised. Qt swallows it, so tests look here."""

_classes: dict[type, type] = {}
_alive: list[QtCore.QObject] = []
"""Without a Python reference PySide6 forgets the subclass of an object that only Qt holds."""

_VIRTUAL = {"sizeHint", "minimumSizeHint", "text@QProgressBar"}
"""Properties whose getter Qt calls itself: a Python attribute of that name would stand in its way."""


def _property(name: str) -> property:
    return property(
        lambda self: QtCore.QObject.property(self, name),
        lambda self, value: QtCore.QObject.setProperty(self, name, value),
    )


def _connect(sender: QtCore.QObject, signature: str, slot: Callable[..., Any]) -> None:
    """PythonQt's `connect`: the slot gets as many arguments as it takes."""
    parameters = inspect.signature(slot).parameters.values()
    takes_all = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)

    def call(*args: Any) -> None:
        try:
            slot(*(args if takes_all else args[:count]))
        except BaseException as fault:
            faults.append(fault)
            raise

    getattr(sender, signature.split("(")[0]).connect(call)


def facade(base: type) -> type:
    """The subclass of a PySide6 class that behaves as in PythonQt."""
    if base in _classes:
        return _classes[base]

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, *args, **kwargs)
        # On the instance: in the class Qt's own static `connect` would be found first.
        self.connect = functools.partial(_connect, self)
        _alive.append(self)

    members: dict[str, Any] = {"__init__": __init__, "name": _property("objectName")}
    meta = base.staticMetaObject
    for index in range(meta.propertyCount()):
        name = meta.property(index).name()
        if name not in _VIRTUAL and f"{name}@{base.__name__}" not in _VIRTUAL:
            members[name] = _property(name)
    members["className"] = lambda self: self.metaObject().className()
    if issubclass(base, QtWidgets.QWidget):
        members["setEnabled"] = lambda self, value: base.setEnabled(self, bool(value))
        members["setVisible"] = lambda self, value: base.setVisible(self, bool(value))
    if issubclass(base, QtWidgets.QProgressBar):
        members["setValue"] = lambda self, value: base.setValue(self, int(value))
    if issubclass(base, QtWidgets.QComboBox):
        members["setCurrentText"] = lambda self, text: base.setCurrentText(self, text or "")
    _classes[base] = type(base.__name__, (base,), members)
    return _classes[base]


class QUiLoader(QtUiTools.QUiLoader):
    """Builds the panels of a module out of the classes above and the stand-ins of `ctk` and `slicer`."""

    def createWidget(self, name: str, parent: QtWidgets.QWidget | None = None, object_name: str = "") -> Any:
        import slicer

        import ctk

        kind = getattr(ctk, name, None) or getattr(slicer, name, None) or getattr(sys.modules[__name__], name)
        widget = kind(parent)
        widget.setObjectName(object_name)
        return widget


def __getattr__(name: str) -> Any:
    for module in (QtWidgets, QtGui, QtCore):
        if hasattr(module, name):
            found = getattr(module, name)
            wants_facade = isinstance(found, type) and issubclass(found, QtCore.QObject)
            return facade(found) if wants_facade else found
    raise AttributeError(f"Qt has no {name}")
