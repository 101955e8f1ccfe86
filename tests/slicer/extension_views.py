"""Pictures of the panel beside slices of what is in the scene, for people who look at them."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy
import slicer
import slicer.util
from PySide6 import QtCore, QtGui

from extension_panel import Module

WINDOW_HU = (-160.0, 240.0)
SHADE = 0.35


def slice_image(scan: numpy.ndarray, labels: list[tuple[numpy.ndarray, Any]], spacing_mm: tuple[float, float], height: int) -> QtGui.QImage:
    """A slice `[row, column]` in grey with its structures shaded and outlined, scaled to mm."""
    low, high = WINDOW_HU
    grey = numpy.clip((scan - low) / (high - low), 0, 1) * 255
    rgb = numpy.repeat(grey[..., None], 3, axis=2)
    for mask, color in labels:
        inner = mask.copy()
        for axis in (0, 1):
            for step in (-1, 1):
                inner &= numpy.roll(mask, step, axis)
        rgb[mask] = (1 - SHADE) * rgb[mask] + SHADE * numpy.array(color)
        rgb[mask & ~inner] = color
    pixels = numpy.ascontiguousarray(rgb.astype(numpy.uint8))
    image = QtGui.QImage(pixels.data, pixels.shape[1], pixels.shape[0], 3 * pixels.shape[1], QtGui.QImage.Format_RGB888).copy()
    width = int(height * pixels.shape[1] * spacing_mm[1] / (pixels.shape[0] * spacing_mm[0]))
    return image.scaled(width, height, QtCore.Qt.IgnoreAspectRatio, QtCore.Qt.SmoothTransformation)


def views(module: Module, at: tuple[int, int, int], height: int) -> list[QtGui.QImage]:
    """The axial and the coronal slice through a voxel `[z, y, x]`, patient's left on the right side."""
    scan = slicer.util.arrayFromVolume(module.scene.volume_node)
    grid = module.scene.ijk_to_ras()
    spacing = numpy.linalg.norm(grid[:3, :3], axis=0)
    # Radiological: rows from front to back or head to feet, columns from right to left.
    flips = [slice(None, None, -1) if (grid[2, 2] > 0) else slice(None), slice(None, None, -1) if grid[1, 1] > 0 else slice(None), slice(None, None, -1) if grid[0, 0] > 0 else slice(None)]
    structures = {structure.name: structure.color for structure in module.session.schema.structures}
    masks = [(module.mask(name), color) for name, color in structures.items()]

    def cut(array: numpy.ndarray, axial: bool) -> numpy.ndarray:
        return array[at[0]][flips[1], flips[2]] if axial else array[:, at[1], :][flips[0], flips[2]]

    images = []
    for axial in (True, False):
        labels = [(cut(mask, axial), color) for mask, color in masks]
        side = (spacing[1], spacing[0]) if axial else (spacing[2], spacing[0])
        images.append(slice_image(cut(scan, axial).astype(float), labels, side, height))
    return images


def compose(module: Module, at: tuple[int, int, int], path: pathlib.Path, width: int = 420) -> None:
    """The panel, and the axial above the coronal slice beside it, as one file."""
    module.picture(path.stem, path.parent, width)
    panel = module.widget.parent.grab().toImage()
    half = panel.height() // 2
    slices = [image.scaled(half * 5 // 4, half, QtCore.Qt.KeepAspectRatio, QtCore.Qt.SmoothTransformation) for image in views(module, at, half)]
    right = max(image.width() for image in slices)
    canvas = QtGui.QImage(panel.width() + right + 8, panel.height(), QtGui.QImage.Format_RGB888)
    canvas.fill(QtGui.QColor("black"))
    painter = QtGui.QPainter(canvas)
    painter.drawImage(0, 0, panel)
    for index, image in enumerate(slices):
        painter.drawImage(panel.width() + 8 + (right - image.width()) // 2, index * half + (half - image.height()) // 2, image)
    painter.end()
    assert canvas.save(str(path))
