"""Our answers beside those of the real MONAI Label server, recorded by `conformance/record.py`.

Every difference has to stand in the table below, and every line of the table has to occur.
"""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conformance.shape import RECORDING, REQUESTS, Player, compare
from serving import Server, running


@dataclass(frozen=True)
class Deliberate:
    """Differences on purpose, and why."""

    why: str
    requests: str
    """A pattern for the whole name of the request."""
    lines: str
    """A pattern for the whole line that tells the difference, as in `STATUS: THEIRS -> OURS`."""


TABLE: tuple[Deliberate, ...] = ()


@pytest.fixture(scope="module")
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The recording starts with untouched studies."""
    with running(tmp_path_factory.mktemp("conformance")) as server:
        yield server


def test_like_the_real_server(fresh_server: Server) -> None:
    recording = json.loads(pathlib.Path(RECORDING).read_text())
    requests = json.loads(pathlib.Path(REQUESTS).read_text())
    assert [request["name"] for request in requests] == list(recording["answers"]), "record again"
    player = Player(fresh_server.url, fresh_server.folder)
    unexpected, occurred = [], set()
    for request in requests:
        for line in compare(recording["answers"][request["name"]], player.play(request)):
            line = line.removeprefix(".")
            entries = [
                entry for entry in TABLE
                if re.fullmatch(entry.requests, request["name"]) and re.fullmatch(entry.lines, line)
            ]
            occurred.update(entries)
            if not entries:
                unexpected.append(f"{request['name']}: {line}")
    assert not unexpected, "\n" + "\n".join(unexpected)
    assert not [entry for entry in TABLE if entry not in occurred], "these differences are gone"
