"""Slicer's own slice views without a window: pictures beside the panel for people who look at them, and pixels for tests."""

from __future__ import annotations

import ctypes.util
import pathlib
from typing import Any

import numpy
import slicer
import slicer.util
import vtk
from PySide6 import QtGui
from vtk.util import numpy_support

from extension_panel import Module

WINDOW_HU, LEVEL_HU = 400, 40
MANAGERS = ("vtkMRMLModelSliceDisplayableManager", "vtkMRMLSegmentationsDisplayableManager2D")
"""What draws in Slicer's slice views, as far as segmentations need it."""


def can_draw() -> bool:
    """Whether VTK can draw without a display."""
    return ctypes.util.find_library("EGL") is not None


class SliceView:
    """One slice view, drawn by Slicer's displayable managers as in the application."""

    def __init__(self, name: str, orientation: str, volume: Any, size: tuple[int, int] = (400, 400), zoom: float = 1.0) -> None:
        application = slicer.app.applicationLogic()
        self._logic = slicer.vtkMRMLSliceLogic()
        self._logic.SetMRMLApplicationLogic(application)
        self._logic.SetMRMLScene(slicer.mrmlScene)
        self.node = self._logic.AddSliceNode(name)
        self.node.SetOrientation(orientation)
        self._logic.GetSliceCompositeNode().SetBackgroundVolumeID(volume.GetID())
        volume.GetDisplayNode().SetAutoWindowLevel(False)
        volume.GetDisplayNode().SetWindowLevel(WINDOW_HU, LEVEL_HU)
        self._window = vtk.vtkRenderWindow()
        self._window.SetOffScreenRendering(1)
        self._window.SetSize(*size)
        self._window.SetMultiSamples(0)
        renderer = vtk.vtkRenderer()
        self._window.AddRenderer(renderer)
        interactor = vtk.vtkGenericRenderWindowInteractor()
        interactor.SetRenderWindow(self._window)
        mapper = vtk.vtkImageMapper()
        mapper.SetColorWindow(255)
        mapper.SetColorLevel(127.5)
        mapper.SetInputConnection(self._logic.GetImageDataConnection())
        actor = vtk.vtkActor2D()
        actor.SetMapper(mapper)
        actor.GetProperty().SetDisplayLocationToBackground()
        renderer.AddViewProp(actor)
        factory = slicer.vtkMRMLSliceViewDisplayableManagerFactory.GetInstance()
        factory.SetMRMLApplicationLogic(application)
        for manager in MANAGERS:
            if not factory.IsDisplayableManagerRegistered(manager):
                factory.RegisterDisplayableManager(manager)
        self._group = slicer.vtkMRMLDisplayableManagerGroup()
        self._group.Initialize(factory, renderer)
        self._group.SetMRMLDisplayableNode(self.node)
        self._logic.ResizeSliceNode(*size)
        self._logic.FitSliceToBackground()
        across, down, depth = self.node.GetFieldOfView()
        self.node.SetFieldOfView(across / zoom, down / zoom, depth)

    def look_at(self, ras_mm: numpy.ndarray) -> None:
        self.node.JumpSliceByCentering(*(float(part) for part in ras_mm[:3]))

    def pixels(self) -> numpy.ndarray:
        """What it shows, `[row, column, red green blue]`."""
        self._window.Render()
        grab = vtk.vtkWindowToImageFilter()
        grab.SetInput(self._window)
        grab.ReadFrontBufferOff()
        grab.Update()
        image = grab.GetOutput()
        width, height, _ = image.GetDimensions()
        return numpy.array(numpy_support.vtk_to_numpy(image.GetPointData().GetScalars()).reshape(height, width, -1)[::-1, :, :3])

    def close(self) -> None:
        self._group.SetMRMLDisplayableNode(None)
        self._window.Finalize()


def ras_of(module: Module, at: tuple[int, int, int]) -> numpy.ndarray:
    """Where a voxel `[z, y, x]` of the open case lies."""
    return module.scene.copy().ijk_to_ras @ numpy.array([*at[::-1], 1.0])


def compose(module: Module, views: list[SliceView], path: pathlib.Path, width: int = 420) -> None:
    """The panel, and the views below each other beside it, as one file."""
    module.picture(path.stem, path.parent, width)
    panel = module.widget.parent.grab().toImage()
    images = []
    for view in views:
        pixels = numpy.ascontiguousarray(view.pixels())
        images.append(QtGui.QImage(pixels.data, pixels.shape[1], pixels.shape[0], 3 * pixels.shape[1], QtGui.QImage.Format_RGB888).copy())
    height = max(panel.height(), sum(image.height() + 4 for image in images) - 4)
    canvas = QtGui.QImage(panel.width() + 4 + max(image.width() for image in images), height, QtGui.QImage.Format_RGB888)
    canvas.fill(QtGui.QColor("#efefef"))
    painter = QtGui.QPainter(canvas)
    painter.drawImage(0, 0, panel)
    top = 0
    for image in images:
        painter.drawImage(panel.width() + 4, top, image)
        top += image.height() + 4
    painter.end()
    assert canvas.save(str(path))
