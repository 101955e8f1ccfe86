"""Volumes and segmentations in Slicer's scene. Main thread only.

Only nodes that were made here are ever removed; what else the user has in the scene stays.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import slicer
import slicer.util
import vtk
from vtk.util import numpy_support

from . import labels, nrrd
from .session import Shown
from .where import Place

_LABELMAP, _SURFACE = "Binary labelmap", "Closed surface"
"""Slicer's names for what a segment is made of."""
_ATTRIBUTE = "Fewlabel"
"""Marks our nodes, so that they are not offered as volumes of the user."""


class MrmlScene:
    """The case that is worked on, as nodes."""

    def __init__(self) -> None:
        self.on_edit: Callable[[], None] = lambda: None
        self.on_show: Callable[[], None] = lambda: None
        """Called when other nodes are shown, for the Segment Editor."""
        self.volume_node: Any = None
        self.segmentation_node: Any = None
        self._own_volume = False
        self._offer: Any = None
        self._readings: list[Any] = []
        self._history: Any = None
        self._undoable = False
        self._quiet = 0
        self._observed: list[tuple[Any, int]] = []

    # What the session asks for

    def show(self, shown: Shown, schema: labels.Schema) -> None:
        volume, segmentation = None, None
        foreign = slicer.mrmlScene.GetNodeByID(shown.case.foreign) if shown.case.foreign else None
        try:
            volume = foreign or _load(shown)
            segmentation = _segmentation(shown.case.name, volume, labels.widen(schema, shown.names))
            if shown.voxels is not None:
                _check_grid(volume, shown.voxels, shown.ijk_to_ras)
                _fill(segmentation, volume, shown.voxels, shown.names, shown.covered)
        except BaseException:
            _remove(segmentation, None if foreign else volume)
            raise
        old = (self.segmentation_node, self.volume_node if self._own_volume else None)
        self._forget()
        self.volume_node, self.segmentation_node, self._own_volume = volume, segmentation, foreign is None
        self._history = slicer.vtkSegmentationHistory()
        self._history.SetSegmentation(segmentation.GetSegmentation())
        self._observe(segmentation)
        _look_at(volume)
        # The Segment Editor may prepare a segmentation that it is given.
        with self._silently():
            self.on_show()
        _remove(*(node for node in old if node is not volume))

    def put(self, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray, schema: labels.Schema) -> None:
        _check_grid(self.volume_node, voxels, ijk_to_ras)
        self._history.SaveState()
        self._undoable = True
        with self._silently():
            _fill(self.segmentation_node, self.volume_node, voxels, schema.names)

    def offer(self, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray, schema: labels.Schema) -> None:
        _check_grid(self.volume_node, voxels, ijk_to_ras)
        self.drop_offer()
        self._offer = _segmentation(f"{self.segmentation_node.GetName()} (proposal)", self.volume_node, schema)
        _fill(self._offer, self.volume_node, voxels, schema.names)
        display = self._offer.GetDisplayNode()
        # Outlines beside the filled segmentation that is edited.
        display.SetVisibility2DFill(False)
        display.SetAllSegmentsVisibility(True)

    def drop_offer(self) -> None:
        _remove(self._offer)
        self._offer = None

    def undo(self) -> None:
        if self.can_undo():
            with self._silently():
                self._history.RestorePreviousState()
            self._undoable = False

    def can_undo(self) -> bool:
        return self._undoable and self._history is not None and self._history.IsRestorePreviousStateAvailable()

    def copy(self) -> labels.Drawing:
        segmentation = self.segmentation_node.GetSegmentation()
        shape, grid = slicer.util.arrayFromVolume(self.volume_node).shape, _grid(self.volume_node)
        moved = self.segmentation_node.GetParentTransformNode() is not None or self.volume_node.GetParentTransformNode() is not None
        boxes: dict[Any, tuple[numpy.ndarray, tuple[int, int, int]] | None] = {}
        parts = []
        for segment_id in segmentation.GetSegmentIDs():
            segment = segmentation.GetSegment(segment_id)
            map_ = segment.GetRepresentation(_LABELMAP)
            if map_ is not None and map_ not in boxes:
                # Segments share label maps; each is copied once.
                boxes[map_] = None if moved else _box(map_, grid, shape)
            box, value = boxes.get(map_), segment.GetLabelValue()
            if box is None:
                # Not on the grid of the image, so that Slicer has to resample it.
                array = slicer.util.arrayFromSegmentBinaryLabelmap(self.segmentation_node, segment_id, self.volume_node)
                box, value = (numpy.zeros((0, 0, 0), numpy.uint8) if array is None or array.size == 0 else numpy.array(array), (0, 0, 0)), 1
            parts.append(labels.Part(segment.GetName(), *box, value))
        return labels.Drawing(shape, grid, tuple(parts))

    def volumes(self) -> list[tuple[str, str]]:
        nodes = slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")
        return [
            (node.GetID(), node.GetName()) for node in nodes
            if not node.IsA("vtkMRMLLabelMapVolumeNode") and not node.GetAttribute(_ATTRIBUTE) and node.GetImageData() is not None
        ]  # fmt: skip

    def volume(self, foreign: str) -> tuple[numpy.ndarray, numpy.ndarray]:
        node = slicer.mrmlScene.GetNodeByID(foreign)
        if node is None or node.GetImageData() is None:
            raise ValueError("the volume is not in the scene any more")
        voxels = numpy.array(slicer.util.arrayFromVolume(node))
        if voxels.dtype.kind in "iu" and voxels.dtype.itemsize > 2:
            voxels = voxels.astype(numpy.float32)
        return voxels, _grid(node)

    def jump(self, place: Place) -> None:
        for node in slicer.util.getNodesByClass("vtkMRMLSliceNode"):
            node.JumpSliceByCentering(*place.ras_mm)

    # Two readers

    def show_readings(self, shown: list[Shown], schema: labels.Schema) -> None:
        """Shows one or two labels of an image beside what is edited; two in the left and in the right view."""
        made: list[Any] = []
        try:
            volume = _load(shown[0])
            made.append(volume)
            for index, reading in enumerate(shown):
                segmentation = _segmentation(reading.case.name, volume, schema)
                made.append(segmentation)
                assert reading.voxels is not None
                _check_grid(volume, reading.voxels, reading.ijk_to_ras)
                _fill(segmentation, volume, reading.voxels, reading.names)
                if len(shown) > 1:
                    segmentation.GetDisplayNode().SetViewNodeIDs([f"vtkMRMLSliceNode{('Red', 'Yellow')[index]}"])
        except BaseException:
            _remove(*made)
            raise
        _remove(*self._readings)
        self._readings = made
        if self.segmentation_node is not None:
            self.segmentation_node.SetDisplayVisibility(False)
        _look_at(volume)
        if len(shown) > 1:
            _side_by_side()

    def hide_readings(self) -> None:
        """Back to the case that is edited."""
        _remove(*self._readings)
        self._readings = []
        if self.segmentation_node is not None:
            self.segmentation_node.SetDisplayVisibility(True)
            _look_at(self.volume_node)

    def close(self) -> None:
        """Lets go of the nodes; they stay in the scene."""
        self._forget()
        self.volume_node = self.segmentation_node = None

    # Edits of the user

    def _observe(self, node: Any) -> None:
        segmentation = node.GetSegmentation()
        kind = slicer.vtkSegmentation
        for event in (kind.SourceRepresentationModified, kind.SegmentAdded, kind.SegmentRemoved, kind.SegmentModified):
            self._observed.append((segmentation, segmentation.AddObserver(event, self._edited)))

    def _edited(self, *_: Any) -> None:
        if not self._quiet:
            self.on_edit()

    @contextlib.contextmanager
    def _silently(self) -> Iterator[None]:
        """Changes of our own are no edits of the user. VTK tells of them before they return."""
        self._quiet += 1
        try:
            yield
        finally:
            self._quiet -= 1

    def _forget(self) -> None:
        for segmentation, tag in self._observed:
            segmentation.RemoveObserver(tag)
        self._observed = []
        self.drop_offer()
        self._history, self._undoable = None, False


def _load(shown: Shown) -> Any:
    volume = slicer.util.loadVolume(str(shown.image_path), {"name": shown.case.name, "show": False})
    if volume is None:
        raise ValueError("the file of the image cannot be read")
    volume.SetAttribute(_ATTRIBUTE, shown.case.image)
    return volume


def _segmentation(name: str, volume: Any, schema: labels.Schema) -> Any:
    """A new segmentation on the grid of a volume, with an empty segment for each structure."""
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", name)
    node.SetAttribute(_ATTRIBUTE, name)
    node.CreateDefaultDisplayNodes()
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    for structure in schema.structures:
        color = [part / 255 for part in structure.color]
        segment_id = node.GetSegmentation().AddEmptySegment(structure.name, structure.name, color)
        if structure.terminology:
            segment = node.GetSegmentation().GetSegment(segment_id)
            segment.SetTag(segment.GetTerminologyEntryTagName(), structure.terminology)
    return node


def _fill(node: Any, volume: Any, voxels: numpy.ndarray, names: list[str], covered: dict[str, numpy.ndarray] | None = None) -> None:
    """Makes the segment of each name its value in a label map, which all of them share as in a loaded segmentation.

    Not imported by Slicer's logic: that goes by position, loses what comes after a gap, and takes a hundred times as long.
    """
    segmentation = node.GetSegmentation()
    surfaces = segmentation.ContainsRepresentation(_SURFACE)
    map_ = slicer.vtkOrientedImageData()
    map_.SetExtent(0, voxels.shape[2] - 1, 0, voxels.shape[1] - 1, 0, voxels.shape[0] - 1)
    known = voxels if voxels.max(initial=0) <= len(names) else numpy.where(voxels <= len(names), voxels, 0)
    # A copy, because numpy's memory goes.
    map_.GetPointData().SetScalars(numpy_support.numpy_to_vtk(numpy.ascontiguousarray(known).ravel(), deep=True))
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    map_.SetGeometryFromImageToWorldMatrix(matrix)
    for value, name in enumerate(names, 1):
        segment_id = segmentation.GetSegmentIdBySegmentName(name) or segmentation.AddEmptySegment(name, name)
        segment = segmentation.GetSegment(segment_id)
        segment.SetLabelValue(value)
        segment.AddRepresentation(_LABELMAP, map_)
    for name, hidden in (covered or {}).items():
        # What overlaps cannot share a label map.
        mask = voxels == names.index(name) + 1
        mask.ravel()[hidden] = True
        slicer.util.updateSegmentBinaryLabelmapFromArray(mask.astype(numpy.uint8), node, segmentation.GetSegmentIdBySegmentName(name), volume)
    # Views and surfaces follow what says that it changed.
    map_.Modified()
    if surfaces:
        node.CreateClosedSurfaceRepresentation()


def _box(map_: Any, grid: numpy.ndarray, shape: tuple[int, ...]) -> tuple[numpy.ndarray, tuple[int, int, int]] | None:
    """A copy of a label map of a segmentation, as far as it lies in the image, and where it begins there; nothing when it is
    not on the image's grid."""
    matrix = vtk.vtkMatrix4x4()
    map_.GetImageToWorldMatrix(matrix)
    extent, scalars = map_.GetExtent(), map_.GetPointData().GetScalars()
    if scalars is None or min(extent[1] - extent[0], extent[3] - extent[2], extent[5] - extent[4]) < 0:
        return numpy.zeros((0, 0, 0), numpy.uint8), (0, 0, 0)
    if not nrrd.same_grid(_numbers(matrix), grid, shape):
        return None
    low, high = extent[4::-2], extent[5::-2]
    voxels = numpy_support.vtk_to_numpy(scalars).reshape([last - first + 1 for first, last in zip(low, high, strict=True)])
    start = [max(first, 0) for first in low]
    inside = tuple(slice(begin - first, max(min(last + 1, size), begin) - first) for begin, first, last, size in zip(start, low, high, shape, strict=True))
    return numpy.array(voxels[inside]), (start[0], start[1], start[2])


def _grid(volume: Any) -> numpy.ndarray:
    matrix = vtk.vtkMatrix4x4()
    volume.GetIJKToRASMatrix(matrix)
    return _numbers(matrix)


def _numbers(matrix: Any) -> numpy.ndarray:
    return numpy.array([[matrix.GetElement(row, column) for column in range(4)] for row in range(4)])


def _check_grid(volume: Any, voxels: numpy.ndarray, ijk_to_ras: numpy.ndarray | None) -> None:
    shape = slicer.util.arrayFromVolume(volume).shape
    if voxels.shape != shape:
        raise ValueError(f"the label map has {voxels.shape[::-1]} voxels, the image {shape[::-1]}")
    if ijk_to_ras is not None and not nrrd.same_grid(ijk_to_ras, _grid(volume), shape):
        raise ValueError("the label map lies at another place than the image")


def _look_at(volume: Any) -> None:
    """Shows a volume in the slice views, where there are any."""
    if getattr(slicer.app, "layoutManager", None) and slicer.app.layoutManager():
        slicer.util.setSliceViewerLayers(background=volume, fit=True)


def _side_by_side() -> None:
    """Two slice views beside each other, both axial."""
    manager = slicer.app.layoutManager() if getattr(slicer.app, "layoutManager", None) else None
    if manager is None:
        return
    manager.setLayout(slicer.vtkMRMLLayoutNode.SlicerLayoutSideBySideView)
    for name in ("Red", "Yellow"):
        node = slicer.mrmlScene.GetNodeByID(f"vtkMRMLSliceNode{name}")
        if node is not None:
            node.SetOrientationToAxial()
    for composite in slicer.util.getNodesByClass("vtkMRMLSliceCompositeNode"):
        composite.SetLinkedControl(True)


def _remove(*nodes: Any) -> None:
    for node in nodes:
        if node is None or node.GetScene() is None:
            continue
        displays = [node.GetNthDisplayNode(index) for index in range(node.GetNumberOfDisplayNodes())]
        storage = node.GetStorageNode()
        slicer.mrmlScene.RemoveNode(node)
        for other in (*displays, storage):
            if other is not None and other.GetScene() is not None:
                slicer.mrmlScene.RemoveNode(other)
