"""The MONAI Label panel of 3D Slicer, unmodified, against the built server."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Iterator

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE / "shim"), str(HERE.parent / "python"), str(HERE.parents[1] / "slicer-extension" / "Fewlabel")]
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")

if sys.version_info < (3, 12):
    # PySide6 6.12 gives None back without having taken it, each time that a method returns nothing. Later Pythons do not count
    # references to None; earlier ones end when the count comes to zero.
    ctypes.c_ssize_t.from_address(id(None)).value += 1 << 40

import slicer  # noqa: E402
from PySide6 import QtWidgets  # noqa: E402

import start  # noqa: E402
from extension_panel import Module  # noqa: E402
from panel import Panel  # noqa: E402
from serving import Server, running  # noqa: E402


def plugin_folder() -> pathlib.Path:
    """Where the wheel monailabel 0.8.5 put the plugin."""
    for file in importlib.metadata.files("monailabel") or []:
        if file.as_posix().endswith("plugins/slicer/MONAILabel/MONAILabel.py"):
            return pathlib.Path(str(file.locate())).resolve().parent
    raise FileNotFoundError("the installed monailabel carries no Slicer plugin")


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture(scope="session")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[QtWidgets.QApplication]:
    application = QtWidgets.QApplication([])
    start.start(tmp_path_factory.mktemp("slicer"))
    sys.path.insert(0, str(plugin_folder()))
    yield application


@pytest.fixture
def panel(application: QtWidgets.QApplication, server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[Panel]:
    """A new panel in an empty scene."""
    slicer.mrmlScene.Clear(0)
    panel = Panel(server, caplog)
    yield panel
    panel.close()


@pytest.fixture
def module(application: QtWidgets.QApplication, tmp_path: pathlib.Path) -> Iterator[Module]:
    """Our own extension, new and not connected, in an empty scene."""
    slicer.mrmlScene.Clear(0)
    module = Module(tmp_path)
    yield module
    module.close()
