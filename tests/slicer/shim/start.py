"""3D Slicer without its application: the real MRML scene and logics of slicer-core, and stand-ins for the rest.

`start()` gives the module `slicer` what a scripted module expects of it, so that an unmodified one runs. Real: scene,
nodes, segmentation logic, file readers and writers, `slicer.util`. Not real: every Qt widget of Slicer and CTK.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import pathlib
import sys
import types
import urllib.request
from typing import Any

import numpy
import slicer
import slicer.util
import vtk
from PySide6 import QtCore, QtGui, QtWidgets

import qt

_SUFFIXES = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd")


class qMRMLWidget(qt.QWidget):
    isEntered = True

    def setMRMLScene(self, scene: Any) -> None:
        self.scene = scene


class qSlicerMarkupsPlaceWidget(qMRMLWidget):
    """Holds the node; points are placed by the tests."""

    placeModeEnabled = False
    buttonsVisible = True

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self._node: Any = None
        self._buttons = [qt.QPushButton(name, self) for name in ("Place", "Delete")]
        row = qt.QHBoxLayout(self)
        row.setContentsMargins(0, 0, 0, 0)
        for button in self._buttons:
            row.addWidget(button)

    def placeButton(self) -> Any:
        return self._buttons[0]

    def deleteButton(self) -> Any:
        return self._buttons[1]

    def setButtonsVisible(self, visible: bool) -> None:
        self.buttonsVisible = visible

    def setPlaceModeEnabled(self, enabled: bool) -> None:
        self.placeModeEnabled = enabled

    def setCurrentNode(self, node: Any) -> None:
        self._node = node

    def currentNode(self) -> Any:
        return self._node


class _Effect:
    """A tool of the Segment Editor, which remembers its parameters."""

    def __init__(self) -> None:
        self.parameters: dict[str, Any] = {}

    def setParameter(self, name: str, value: Any) -> None:
        self.parameters[name] = value


class qMRMLSegmentEditorWidget(qMRMLWidget):
    """Remembers what it is told, and says in pictures what it stands for; editing is done by the tests on the segmentation itself."""

    def __init__(self, parent: Any = None) -> None:
        super().__init__(parent)
        self.told: dict[str, Any] = {}
        self._effects: dict[str, _Effect] = {}
        self.setMinimumHeight(70)

    def effectByName(self, name: str) -> _Effect:
        return self._effects.setdefault(name, _Effect())

    def paintEvent(self, event: Any) -> None:
        painter = QtGui.QPainter(self)
        frame = QtWidgets.QWidget.rect(self).adjusted(1, 1, -2, -2)
        painter.setPen(QtGui.QPen(QtGui.QColor("#8a94a0"), 1, QtCore.Qt.DashLine))
        painter.drawRect(frame)
        painter.drawText(frame, QtCore.Qt.AlignCenter, "Slicer's Segment Editor is here in 3D Slicer")
        painter.end()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("set"):
            return lambda value: self.told.__setitem__(name.removeprefix("set"), value)
        raise AttributeError(name)


class ScriptedLoadableModule:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class ScriptedLoadableModuleWidget:
    def __init__(self, parent: Any = None) -> None:
        self.parent = parent or qMRMLWidget()
        self.layout = self.parent.layout() or qt.QVBoxLayout(self.parent)

    def setup(self) -> None:
        """Slicer adds its buttons for developers here."""

    def resourcePath(self, name: str) -> str:
        return str(pathlib.Path(inspect.getfile(type(self))).parent / "Resources" / name)


class ScriptedLoadableModuleLogic:
    def getParameterNode(self) -> Any:
        name = type(self).__name__.removesuffix("Logic")
        node = slicer.mrmlScene.GetSingletonNode(name, "vtkMRMLScriptedModuleNode")
        if node is None:
            node = slicer.mrmlScene.CreateNodeByClass("vtkMRMLScriptedModuleNode")
            node.UnRegister(None)
            node.SetSingletonTag(name)
            node.SetModuleName(name)
            node = slicer.mrmlScene.AddNode(node)
        return node


class ScriptedLoadableModuleTest:
    pass


class _Files:
    """`slicer.app.coreIOManager()`: the readers and writers that `slicer.util` asks for."""

    def fileType(self, path: str) -> str:
        return "VolumeFile"

    def fileWriterFileType(self, node: Any) -> str:
        return node.GetClassName()

    def loadNodes(self, kind: str, properties: dict, loaded: Any, messages: Any) -> bool:
        path = pathlib.Path(properties["fileName"])
        suffix = next((s for s in _SUFFIXES if path.name.endswith(s)), path.suffix)
        name = properties.get("name", path.name.removesuffix(suffix))
        node = slicer.modules.volumes.logic().AddArchetypeVolume(str(path), name, 0, None)
        if node:
            loaded.AddItem(node)
        return node is not None

    def saveNodes(self, kind: str, properties: dict, messages: Any) -> bool:
        node = slicer.mrmlScene.GetNodeByID(properties["nodeID"])
        storage = node.CreateDefaultStorageNode()
        storage.UnRegister(None)
        storage.SetFileName(properties["fileName"])
        return storage.WriteData(node) == 1


class _Application:
    applicationName = "Slicer"

    def __init__(self, folder: pathlib.Path, logic: Any) -> None:
        self.temporaryPath = str(folder)
        self.slicerUserSettingsFilePath = str(folder / "Slicer.ini")
        self.applicationVersion = "slicer-core"
        self._logic = logic

    def applicationLogic(self) -> Any:
        # The logics of the modules point to it and do not keep it.
        return self._logic

    def testingEnabled(self) -> bool:
        # In testing mode Slicer answers every question itself; here the tests do, in `ctk.ctkMessageBox`.
        return False

    def layoutManager(self) -> None:
        """There are no views."""

    def topLevelWidgets(self) -> list[Any]:
        return []

    def coreIOManager(self) -> _Files:
        return _Files()

    def processEvents(self) -> None:
        QtCore.QCoreApplication.processEvents()

    def connect(self, signal: str, slot: Any) -> None:
        """The tests open the module themselves."""


class SampleDataLogic:
    """Downloads as Slicer does: no headers of its own, by file name into a cache, checksum compared when there is one."""

    def downloadFromURL(self, nodeNames: str, fileNames: str, uris: str, checksums: str | None) -> list[Any]:
        path = pathlib.Path(slicer.app.temporaryPath) / fileNames
        urllib.request.urlretrieve(uris, path)
        if checksums:
            kind, expected = checksums.split(":")
            found = hashlib.new(kind.replace("-", "").lower(), path.read_bytes()).hexdigest()
            if found != expected:
                raise ValueError(f"checksum of {fileNames}: {found} instead of {expected}")
        return [slicer.util.loadVolume(str(path), {"name": nodeNames})]


def push_volume(image: Any, node: Any = None, name: str | None = None, className: str = "") -> Any:
    """`sitkUtils.PushVolumeToSlicer`: a SimpleITK image (LPS) becomes a node (RAS)."""
    import SimpleITK

    node = slicer.mrmlScene.AddNewNodeByClass(className, name or "")
    slicer.util.updateVolumeFromArray(node, SimpleITK.GetArrayFromImage(image))
    affine = numpy.eye(4)
    affine[:3, :3] = numpy.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    affine = numpy.diag((-1, -1, 1, 1)) @ affine
    matrix = vtk.vtkMatrix4x4()
    matrix.DeepCopy(affine.ravel())
    node.SetIJKToRASMatrix(matrix)
    return node


def _module(name: str, **members: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(members)
    sys.modules[name] = module


def start(folder: pathlib.Path) -> None:
    """Make `slicer` ready. Settings and temporary files go to the folder."""
    qt.QCoreApplication.setOrganizationName("fewlabel-tests")
    qt.QSettings.setDefaultFormat(qt.QSettings.IniFormat)
    qt.QSettings.setPath(qt.QSettings.IniFormat, qt.QSettings.UserScope, str(folder))
    logging.getLogger().setLevel(logging.INFO)

    scene = slicer.vtkMRMLScene()
    application_logic = slicer.vtkSlicerApplicationLogic()
    application_logic.SetMRMLScene(scene)

    def logic(name: str, kind: Any) -> types.SimpleNamespace:
        made = kind()
        made.SetMRMLScene(scene)
        made.SetMRMLApplicationLogic(application_logic)
        application_logic.SetModuleLogic(name, made)
        return types.SimpleNamespace(logic=lambda: made)

    # Volumes looks for the logic of the colours, so these come first.
    colors = logic("Colors", slicer.vtkMRMLColorLogic)
    colors.logic().AddDefaultColorNodes()
    slicer.modules = types.SimpleNamespace(
        colors=colors,
        volumes=logic("Volumes", slicer.vtkSlicerVolumesLogic),
        segmentations=logic("Segmentations", slicer.vtkSlicerSegmentationsModuleLogic),
        markups=logic("Markups", slicer.vtkSlicerMarkupsLogic),
    )
    slicer.mrmlScene = scene
    slicer.app = _Application(folder, application_logic)
    for widget in (qMRMLWidget, qSlicerMarkupsPlaceWidget, qMRMLSegmentEditorWidget):
        setattr(slicer, widget.__name__, widget)
    slicer.qSlicerWidget = qMRMLWidget

    bases = (ScriptedLoadableModule, ScriptedLoadableModuleWidget, ScriptedLoadableModuleLogic, ScriptedLoadableModuleTest)
    _module("slicer.ScriptedLoadableModule", **{base.__name__: base for base in bases})
    _module("slicer.i18n", tr=lambda text: text, translate=lambda context, text: text)
    _module("sitkUtils", PushVolumeToSlicer=push_volume)
    _module("SampleData", SampleDataLogic=SampleDataLogic)
    _module("vtkSegmentationCore", vtkOrientedImageDataResample=slicer.vtkOrientedImageDataResample)
