"""One server for all tests of this folder."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator

import pytest
from monailabel.client.client import MONAILabelClient

from serving import ROOT, Server, running

sys.path.insert(0, str(ROOT / "slicer-extension" / "Fewlabel"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture
def client(server: Server, tmp_path: pathlib.Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="python-test")
