"""Every way in which a call of `MONAILabelClient` can fail, and what the client then tells."""

from __future__ import annotations

import inspect
import pathlib
from collections.abc import Callable, Iterator

import pytest
import requests
from monailabel.client.client import MONAILabelClient, MONAILabelClientException

from serving import STUDIES, Server, running

MODEL = "pct-net-s"
Call = Callable[[MONAILabelClient, Server], object]

REFUSED: dict[str, tuple[int, Call]] = {
    "login": (404, lambda c, s: c.auth_token("user", "secret")),
    "next sample, unknown strategy": (404, lambda c, s: c.next_sample("unknown", {})),
    "next sample, name with a slash": (404, lambda c, s: c.next_sample("../../etc", {})),
    "session, unknown": (404, lambda c, s: c.get_session("unknown")),
    "session, remove unknown": (404, lambda c, s: c.remove_session("unknown")),
    "upload, damaged": (422, lambda c, s: c.upload_image(str(s.folder / "empty.nii.gz"), "damaged")),
    "upload, unknown format": (422, lambda c, s: c.upload_image(str(s.folder / "note.txt"), "note")),
    "upload, id that leaves the store": (422, lambda c, s: c.upload_image(s.extra, "../../evil")),
    "save, unknown image": (404, lambda c, s: c.save_label("unknown", s.label(0))),
    "save, tag that leaves the store": (422, lambda c, s: c.save_label(STUDIES[0], s.label(0), tag="../../evil")),
    "save, damaged": (422, lambda c, s: c.save_label(STUDIES[0], str(s.folder / "empty.nii.gz"))),
    "download, unknown image": (404, lambda c, s: c.download_label("unknown", "final")),
    "download, unknown tag": (404, lambda c, s: c.download_label(STUDIES[0], "unknown")),
    "infer, unknown model": (404, lambda c, s: c.infer("unknown", STUDIES[0], {})),
    "infer, unknown image": (404, lambda c, s: c.infer(MODEL, "unknown", {})),
    "infer, nothing": (400, lambda c, s: c.infer(MODEL, "", {})),
    "infer, unknown session": (400, lambda c, s: c.infer(MODEL, "", {}, session_id="unknown")),
    "infer, damaged file": (422, lambda c, s: c.infer(MODEL, "", {}, file=str(s.folder / "empty.nii.gz"))),
    "infer, unknown format": (400, lambda c, s: c.infer(MODEL, STUDIES[0], {"result_extension": ".stl"})),
    "pathology": (404, lambda c, s: c.wsi_infer(MODEL, STUDIES[0])),
    "train, unknown model": (404, lambda c, s: c.train_start("unknown", {})),
    "train, bad value": (400, lambda c, s: c.train_start(MODEL, {"max_epochs": 0})),
    "train status, none": (404, lambda c, s: c.train_status()),
}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("errors")) as server:
        (server.folder / "empty.nii.gz").write_bytes(b"")
        (server.folder / "note.txt").write_text("no image")
        yield server


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, untouched: Server, tmp_path: pathlib.Path) -> None:
    status, call = REFUSED[case]
    client = MONAILabelClient(untouched.url, tmpdir=str(tmp_path))
    with pytest.raises(MONAILabelClientException) as refused:
        call(client, untouched)
    assert f"Status: {status};" in refused.value.msg, refused.value.msg
    assert "request_id" in refused.value.msg
    assert set(client.datastore()["objects"]) == set(STUDIES), "nothing was kept"
    assert client.info()["datastore"]["completed"] == 0


def test_every_method_is_tried() -> None:
    """Each method of the client is called by some test of this folder."""
    methods = {name for name, _ in inspect.getmembers(MONAILabelClient, inspect.isfunction) if not name.startswith("_")}
    tests = "".join(path.read_text() for path in pathlib.Path(__file__).parent.glob("test_*.py"))
    assert not {name for name in methods if f".{name}(" not in tests}


def test_no_server(tmp_path: pathlib.Path) -> None:
    client = MONAILabelClient("http://127.0.0.1:9", tmpdir=str(tmp_path))
    with pytest.raises(ConnectionError):
        client.info()


def test_addresses(untouched: Server, tmp_path: pathlib.Path) -> None:
    client = MONAILabelClient("http://127.0.0.1:9/", tmpdir=str(tmp_path))
    client.set_server_url(untouched.url + "///")
    assert client.get_server_url() == untouched.url
    assert client.info()["labels"]


def test_token_is_ignored(untouched: Server, tmp_path: pathlib.Path) -> None:
    """With a token the client sends the length of an earlier body with requests that have none."""
    client = MONAILabelClient(untouched.url, tmpdir=str(tmp_path))
    assert not client.auth_valid_token()
    client.update_auth({"token_type": "Bearer", "access_token": "nonsense"})
    assert client.next_sample("first", {"some": "body"})["id"]
    for _ in range(3):
        assert client.info()["labels"]
    assert client.train_stop() is None


def test_train_all(untouched: Server, tmp_path: pathlib.Path) -> None:
    """Without a model every model is trained; what cannot be learned from says so in the task."""
    client = MONAILabelClient(untouched.url, tmpdir=str(tmp_path))
    started = client.train_start(None, {})
    assert list(started) == [MODEL]
    assert started[MODEL]["detail"] is None
    client.train_stop()
    assert client.train_status()["status"] in ("ERROR", "STOPPED")
    assert requests.get(f"{untouched.url}/train/?check_if_running=true", timeout=60).status_code == 404
