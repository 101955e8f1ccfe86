"""Fewlabel: the clinician's and the lead's side of a Fewlabel server, in 3D Slicer."""

import pathlib
import time
import unittest

import slicer
from slicer.i18n import tr as _
from slicer.i18n import translate
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)
from slicer.util import VTKObservationMixin

from FewlabelLib.drafts import Drafts
from FewlabelLib.lead import Lead
from FewlabelLib.mrml import MrmlScene
from FewlabelLib.panel import Panel, Settings, data_folder, start_jobs
from FewlabelLib.review import Review
from FewlabelLib.session import Busy, Session


class Fewlabel(ScriptedLoadableModule):
    """What Slicer shows about the module."""

    def __init__(self, parent):
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = _("Fewlabel")
        parent.categories = [translate("qSlicerAbstractCoreModule", "Active Learning")]
        parent.dependencies = []
        parent.contributors = ["The Fewlabel authors"]
        parent.helpText = _(
            "Segments CT with few labels: a Fewlabel server proposes the next case and its segmentation, takes the corrected label, and learns from it. "
            "Research software, not a medical device."
        )
        parent.acknowledgementText = _("The network PCT-Net and its pretraining are the work of Guotai Wang and others (MIS-FM, arXiv 2306.16925).")


class FewlabelWidget(ScriptedLoadableModuleWidget, VTKObservationMixin):
    """The panel in Slicer's module area."""

    def __init__(self, parent=None):
        ScriptedLoadableModuleWidget.__init__(self, parent)
        VTKObservationMixin.__init__(self)
        self.panel = None
        self.logic = None

    def setup(self):
        ScriptedLoadableModuleWidget.setup(self)
        widget = slicer.util.loadUI(self.resourcePath("UI/Fewlabel.ui"))
        self.layout.addWidget(widget)
        self.ui = slicer.util.childWidgetVariables(widget)
        widget.setMRMLScene(slicer.mrmlScene)
        self.logic = FewlabelLogic()
        self.panel = Panel(self.ui, self.logic.session, self.logic.lead, self.logic.review, self.logic.scene, self.logic.settings)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.StartCloseEvent, self.onSceneStartClose)
        self.addObserver(slicer.mrmlScene, slicer.mrmlScene.EndCloseEvent, self.onSceneEndClose)

    def cleanup(self):
        self.removeObservers()
        if self.panel:
            self.panel.close()
            self.panel = None

    def enter(self):
        self.panel.enter(slicer.util.mainWindow() or self.parent)

    def exit(self):
        self.panel.leave()

    def onSceneStartClose(self, caller, event):
        self.logic.scene_closes()

    def onSceneEndClose(self, caller, event):
        self.panel.reset_editor()


class FewlabelLogic(ScriptedLoadableModuleLogic):
    """The layers put together; usable without the panel, as long as Qt's event loop runs."""

    def __init__(self, folder=None, settings=None):
        ScriptedLoadableModuleLogic.__init__(self)
        folder = pathlib.Path(folder) if folder else data_folder()
        self.settings = Settings() if settings is None else settings
        self.scene = MrmlScene()
        self.jobs = start_jobs()
        self.session = Session(
            self.jobs, self.scene, Drafts(folder / "drafts"), folder / "images", self.settings, time.time, tool_version=str(getattr(slicer.app, "applicationVersion", ""))
        )
        self.lead = Lead(self.jobs, lambda: self.session.client, lambda: self.session.model, time.monotonic)
        self.review = Review(
            self.jobs, lambda: self.session.client, lambda: self.session.schema, self.scene, folder / "images",
            lambda: "" if self.session.busy is Busy.NOTHING else f"Wait: {self.session.busy.value.lower()}.",
        )

    def scene_closes(self):
        """Keeps what was drawn before Slicer removes it, and lets go of the nodes."""
        self.session.scene_closes()
        self.scene.close()


class FewlabelTest(ScriptedLoadableModuleTest):
    """Runs in Slicer (Reload and Test); the tests of the layers are in Testing and in the project's own tests."""

    def setUp(self):
        slicer.mrmlScene.Clear()

    def runTest(self):
        self.setUp()
        self.test_panel_without_server()

    def test_panel_without_server(self):
        """The panel comes up, asks for a server, and offers nothing that needs one."""
        widget = slicer.modules.fewlabel.widgetRepresentation().self()
        case = unittest.TestCase()
        view = widget.logic.session.view()
        case.assertFalse(view.buttons["next"].enabled)
        case.assertTrue(view.buttons["connect"].enabled)
        case.assertIn("Connect", view.buttons["next"].reason)
