"""The extension's client: every way in which a server can fail has its own words, and nothing hangs or is done twice."""

from __future__ import annotations

import hashlib
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from extension import SHAPE, Stub, proposal_bytes, quick, stub
from FewlabelLib import nrrd
from FewlabelLib.client import Address, Cancel, Client, Fault, parts_of

server = pytest.fixture(stub)


def fault(call: Callable[[], object]) -> Fault:
    with pytest.raises(Fault) as caught:
        call()
    assert caught.value.what and caught.value.next_step
    return caught.value


class Raw:
    """A socket that answers every connection with the same bytes, or with nothing."""

    def __init__(self, answer: bytes | None) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self._answer = answer
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._open.append(connection)
            if self._answer is not None:
                connection.recv(65536)
                connection.sendall(self._answer)
                connection.close()

    def close(self) -> None:
        self._socket.close()
        for connection in self._open:
            connection.close()


@pytest.fixture
def raw() -> Iterator[Callable[[bytes | None], str]]:
    made: list[Raw] = []

    def make(answer: bytes | None) -> str:
        made.append(Raw(answer))
        return made[-1].url

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("127.0.0.1:8000", "http://127.0.0.1:8000"), ("http://a.example/", "http://a.example:80"), ("https://a.example/few/", "https://a.example:443/few"),
        ("  http://[::1]:8000 ", "http://[::1]:8000"), ("", None), ("ftp://a", None), ("http://", None), ("http://a:x", None), ("http://me:secret@a", None),
    ],
)  # fmt: skip
def test_addresses(text: str, url: str | None) -> None:
    if url is None:
        assert fault(lambda: Address.parse(text)).kind == "address"
    else:
        assert Address.parse(text).url == url


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, "login"), (403, "forbidden"), (404, "missing"), (409, "conflict"), (412, "conflict"), (413, "large"), (422, "refused"), (429, "busy"), (500, "server"), (503, "unavailable"), (507, "full")],
)  # fmt: skip
def test_each_refusal_has_its_words(server: Stub, status: int, kind: str) -> None:
    server.failing["GET /info/"] = [status] * 3
    found = fault(lambda: quick(server.url, "ann").info(Cancel()))
    assert (found.kind, found.status, found.code, found.request_id) == (kind, status, "ordered", "r-1")
    assert kind in ("login", "conflict", "busy") or "on order" in found.what


def test_what_is_no_server_is_told_apart(raw: Callable[[bytes | None], str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    kinds = {}
    for name, url in {
        "closed port": f"http://127.0.0.1:{port}", "no such host": "http://no-such-host.invalid:8000", "not http": raw(b"SSH-2.0-x\r\n"), "cut": raw(b""),
        "a web page": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"), "json of another": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        "cut in the middle": raw(b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n{"), "no tls": raw(b"HTTP/1.1 400 x\r\n\r\n").replace("http:", "https:"),
    }.items():  # fmt: skip
        kinds[name] = fault(lambda url=url: quick(url, "ann").info(Cancel())).kind
    # Some networks answer for hosts that do not exist.
    assert kinds.pop("no such host") in ("name", "unreachable")
    assert kinds == {
        "closed port": "unreachable", "not http": "cut", "cut": "cut", "a web page": "stranger", "json of another": "stranger", "cut in the middle": "cut", "no tls": "tls",
    }  # fmt: skip


def test_silence_ends(raw: Callable[[bytes | None], str]) -> None:
    client = Client(raw(None), "ann", waits_s=(), answer_s=0.2)
    assert fault(lambda: client.info(Cancel())).kind == "timeout"


def test_a_cancel_wakes_a_waiting_request(raw: Callable[[bytes | None], str]) -> None:
    client, cancel, found = Client(raw(None), "ann", waits_s=(), answer_s=300), Cancel(), []
    thread = threading.Thread(target=lambda: found.append(fault(lambda: client.info(cancel)).kind))
    thread.start()
    time.sleep(0.2)
    cancel.set()
    thread.join(60)
    assert found == ["cancelled"]
    assert fault(lambda: client.info(cancel)).kind == "cancelled"


def test_what_passes_is_tried_again(server: Stub) -> None:
    server.failing["GET /info/"] = [503, "cut before"]
    assert quick(server.url, "ann").info(Cancel())["name"] == "Stub"
    server.failing["GET /info/"] = [422, 200]
    assert fault(lambda: quick(server.url, "ann").info(Cancel())).kind == "refused"
    server.failing["POST /activelearning/random"] = ["cut after"]
    before = server.asked.count("POST /activelearning/random")
    assert fault(lambda: quick(server.url, "ann").next_case("random", Cancel())).kind == "cut"
    assert server.asked.count("POST /activelearning/random") == before + 1, "what is not the same twice is not repeated"


@pytest.fixture
def label(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "label.nrrd"
    path.write_bytes(proposal_bytes())
    return path


def test_a_submit_whose_answer_is_lost_counts_once(server: Stub, label: pathlib.Path) -> None:
    client = quick(server.url, "ann")
    server.failing["PUT /datastore/label"] = ["cut after", "cut after"]
    assert client.submit("case 1", "final", label, {}, Cancel(), key="k", seen=0) == 1
    assert len(server.labels["case 1", "final"]) == 1
    assert server.labels["case 1", "final"][0] == label.read_bytes()
    assert server.params["case 1", "final"][0]["client_id"] == "ann"
    assert fault(lambda: client.submit("case 1", "final", label, {}, Cancel(), key="k2", seen=0)).status == 412
    assert client.current_revision("case 1", "final", Cancel()) == 1
    assert client.current_revision("case 2", "final", Cancel()) == 0
    assert client.label_map("case 2", "final", Cancel()) is None


def test_images_are_fetched_once_and_checked(server: Stub, tmp_path: pathlib.Path) -> None:
    client, told = quick(server.url, "ann"), []
    sha256 = hashlib.sha256(server.images["case 1"]).hexdigest()
    path = client.image("case 1", sha256, tmp_path, Cancel(), lambda done, total: told.append((done, total)))
    assert path.read_bytes() == server.images["case 1"] and path.name == f"{sha256}.nrrd"
    assert told[-1] == (len(server.images["case 1"]),) * 2
    assert client.image("case 1", sha256, tmp_path, Cancel()) == path
    assert server.asked.count("GET /datastore/image") == 1
    assert fault(lambda: client.image("case 2", "0" * 64, tmp_path, Cancel())).kind == "damaged"
    assert [each.name for each in tmp_path.iterdir()] == [path.name], "nothing half-fetched stays"


def test_a_proposal_is_taken_apart(server: Stub) -> None:
    proposal = quick(server.url, "ann").propose("pct-net-s", "case 1", Cancel())
    assert proposal.names == ["liver", "spleen"] and proposal.made_by == "pct-net-s, version 3"
    assert nrrd.read(proposal.file)[0].shape == SHAPE
    assert parts_of(type("A", (), {"headers": {"content-type": "application/json"}, "body": b"{}"})()) == {}


def test_security_is_told() -> None:
    assert Client("http://a").security == "not encrypted"
    assert "NOT verified" in Client("https://a", verify=False).security
    assert Client("https://a").security == "encrypted, certificate verified"
