"""One server for all tests of this folder."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest
from monailabel.client.client import MONAILabelClient

from serving import Server, running


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("site")) as server:
        yield server


@pytest.fixture
def client(server: Server, tmp_path: pathlib.Path) -> MONAILabelClient:
    return MONAILabelClient(server.url, tmpdir=str(tmp_path), client_id="python-test")
