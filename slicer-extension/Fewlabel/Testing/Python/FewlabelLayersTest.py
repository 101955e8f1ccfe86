"""The layers of the extension inside Slicer: label maps, files, and segmentations of its own scene. Needs no server."""

import pathlib
import tempfile
import unittest

import numpy
import slicer
import slicer.util
import vtk

from FewlabelLib import labels, nrrd
from FewlabelLib.mrml import MrmlScene
from FewlabelLib.session import Case, Shown


class FewlabelLayersTest(unittest.TestCase):
    """Run by `slicer_add_python_unittest`, and by the project's own tests on slicer-core."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)
        self.folder = tempfile.TemporaryDirectory()
        self.schema = labels.Schema.of_names(["liver", "spleen"])
        self.grid = numpy.diag((-3.0, -3.5, 6.0, 1.0))
        self.grid[:3, 3] = (70.0, 65.0, -60.0)
        self.image = pathlib.Path(self.folder.name) / "image.nrrd"
        nrrd.write(self.image, numpy.arange(120, dtype=numpy.int16).reshape(4, 5, 6), self.grid)
        self.voxels = numpy.zeros((4, 5, 6), numpy.uint8)
        self.voxels[1, 1:4, 1:5], self.voxels[2, 1:4, 1:5] = 1, 2

    def tearDown(self):
        self.folder.cleanup()

    def show(self, voxels=None, name="case 1"):
        scene = MrmlScene()
        scene.show(Shown(Case(name, name), self.image, voxels, self.schema.names, self.grid), self.schema)
        return scene

    def test_a_label_map_comes_back_as_it_was(self):
        scene = self.show(self.voxels)
        self.assertEqual(scene.copy().names, ["liver", "spleen"])
        numpy.testing.assert_array_equal(scene.copy().flat(self.schema).voxels, self.voxels)
        numpy.testing.assert_allclose(scene.copy().ijk_to_ras, self.grid, atol=1e-5)

    def test_gaps_and_deleted_segments_change_no_value(self):
        scene = self.show(numpy.where(self.voxels == 2, self.voxels, 0))
        scene.segmentation_node.GetSegmentation().RemoveSegment("liver")
        self.assertEqual(set(numpy.unique(scene.copy().flat(self.schema).voxels)), {0, 2})

    def test_what_lies_on_another_grid_is_copied_too(self):
        scene = self.show(self.voxels)
        other = slicer.vtkOrientedImageData()
        other.SetExtent(0, 2, 0, 1, 0, 3)
        other.AllocateScalars(vtk.VTK_UNSIGNED_CHAR, 1)
        other.GetPointData().GetScalars().Fill(1)
        matrix = vtk.vtkMatrix4x4()
        scene.volume_node.GetIJKToRASMatrix(matrix)
        for row in range(3):
            # Voxels of twice the width.
            matrix.SetElement(row, 0, 2 * matrix.GetElement(row, 0))
        other.SetGeometryFromImageToWorldMatrix(matrix)
        scene.segmentation_node.AddSegmentFromBinaryLabelmapRepresentation(other, "notes")
        drawing = scene.copy()
        self.assertEqual(drawing.names, ["liver", "spleen", "notes"])
        numpy.testing.assert_array_equal(drawing.flat(self.schema).voxels, self.voxels)
        notes = drawing.parts[2].mask(drawing.shape)
        segment = scene.segmentation_node.GetSegmentation().GetSegmentIdBySegmentName("notes")
        numpy.testing.assert_array_equal(notes, slicer.util.arrayFromSegmentBinaryLabelmap(scene.segmentation_node, segment, scene.volume_node) > 0)
        self.assertTrue(notes[:, :2, :5].all())
        self.assertFalse(notes[:, 2:].any())

    def test_overlaps_and_unknown_values_of_a_draft(self):
        hidden = numpy.flatnonzero(self.voxels == 2)[:3]
        scene = MrmlScene()
        voxels = numpy.where(self.voxels == 0, 7, self.voxels)
        scene.show(Shown(Case("case", "case"), self.image, voxels, self.schema.names, self.grid, {"liver": hidden}), self.schema)
        flat = scene.copy().flat(self.schema)
        numpy.testing.assert_array_equal(flat.voxels, self.voxels)
        numpy.testing.assert_array_equal(flat.covered["liver"], hidden)

    def test_a_shown_surface_follows(self):
        scene = self.show(self.voxels)
        node = scene.segmentation_node
        node.CreateClosedSurfaceRepresentation()
        segment = node.GetSegmentation().GetSegmentIdBySegmentName("liver")
        before = node.GetClosedSurfaceInternalRepresentation(segment).GetNumberOfPoints()
        scene.put(numpy.where(self.voxels == 1, 0, self.voxels), self.grid, self.schema)
        after = node.GetClosedSurfaceInternalRepresentation(segment)
        self.assertGreater(before, 0)
        self.assertFalse(after is not None and after.GetNumberOfPoints())

    def test_edits_are_noticed_and_own_changes_are_not(self):
        scene = self.show()
        edits = []
        scene.on_edit = lambda: edits.append(1)
        scene.put(self.voxels, self.grid, self.schema)
        self.assertFalse(edits)
        slicer.util.updateSegmentBinaryLabelmapFromArray(numpy.ones((4, 5, 6), numpy.uint8), scene.segmentation_node, "liver", scene.volume_node)
        self.assertTrue(edits)

    def test_a_proposal_can_be_undone(self):
        drawn = numpy.where(self.voxels == 1, self.voxels, 0)
        scene = self.show(drawn)
        self.assertFalse(scene.can_undo())
        scene.put(self.voxels, self.grid, self.schema)
        numpy.testing.assert_array_equal(scene.copy().flat(self.schema).voxels, self.voxels)
        self.assertTrue(scene.can_undo())
        scene.undo()
        numpy.testing.assert_array_equal(scene.copy().flat(self.schema).voxels, drawn)

    def test_only_own_nodes_are_removed(self):
        mine = slicer.util.loadVolume(str(self.image), {"name": "mine"})
        scene = self.show(self.voxels)
        self.assertEqual([name for _, name in scene.volumes()], ["mine"])
        scene.show(Shown(Case("case 2", "case 2"), self.image, None, [], None), self.schema)
        names = {node.GetName() for node in slicer.util.getNodesByClass("vtkMRMLScalarVolumeNode")}
        self.assertEqual(names, {"mine", "case 2"})
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")), 1)
        self.assertIsNotNone(mine.GetScene())

    def test_what_does_not_fit_changes_nothing(self):
        scene = self.show(self.voxels)
        moved = self.grid.copy()
        moved[0, 3] += 5
        with self.assertRaises(ValueError):
            scene.put(self.voxels[:3], self.grid, self.schema)
        with self.assertRaises(ValueError):
            scene.put(self.voxels, moved, self.schema)
        with self.assertRaises(ValueError):
            scene.show(Shown(Case("case 2", "case 2"), self.image, self.voxels[:3], self.schema.names, self.grid), self.schema)
        numpy.testing.assert_array_equal(scene.copy().flat(self.schema).voxels, self.voxels)
        self.assertEqual(len(slicer.util.getNodesByClass("vtkMRMLSegmentationNode")), 1)


if __name__ == "__main__":
    unittest.main()
