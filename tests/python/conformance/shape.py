"""Plays a list of requests against a server of MONAI Label's protocol, and keeps the shape of every answer.

A shape is what a client can depend on: status, content type, the headers that matter, the names and types in JSON, the
parts of a multipart body, the header of an NRRD file. Not bytes, numbers, dates or sentences.
"""

from __future__ import annotations

import email.message
import email.parser
import http.client
import json
import pathlib
import re
import time
import urllib.parse
from typing import Any

HERE = pathlib.Path(__file__).parent
REQUESTS = HERE / "requests.json"
RECORDING = HERE / "recording.json"
WAIT_S = 300
_BOUNDARY = "----------lImIt_of_THE_fIle_eW_$"
_OPEN = ("config", "request", "transform", "stats", "centroids", "train_stats", "labels_dir", "ctx", "input", "user", "details")
"""Names whose content is the business of the server or of the request."""
_NRRD_VALUES = (b"type", b"dimension", b"space", b"sizes", b"kinds", b"encoding", b"endian")


def _encode(request: dict[str, Any], folder: pathlib.Path) -> tuple[bytes | None, dict[str, str]]:
    """The body as MONAI Label's clients send it, full local path of the file included."""
    if "json" in request:
        return json.dumps(request["json"]).encode(), {"Content-Type": "application/json"}
    if "raw" in request:
        return request["raw"].encode(), {"Content-Type": "application/json"}
    if "form" in request:
        kind = "application/x-www-form-urlencoded"
        return urllib.parse.urlencode(request["form"]).encode(), {"Content-Type": kind}
    if "multipart" not in request:
        return None, {}
    lines: list[bytes] = []
    fields = [(name, value) for name, values in request["multipart"].items()
              for value in (values if isinstance(values, list) else [values])]
    for name, value in fields:
        lines.append(f"--{_BOUNDARY}".encode())
        if value.startswith("@"):
            path = folder / value[1:]
            lines.append(f'Content-Disposition: form-data; name="{name}"; filename="{path}"'.encode())
            lines += [b"Content-Type: application/gzip", b"", path.read_bytes()]
        else:
            lines += [f'Content-Disposition: form-data; name="{name}"'.encode(), b"", value.encode()]
    lines += [f"--{_BOUNDARY}--".encode(), b""]
    return b"\r\n".join(lines), {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}


def json_shape(value: Any) -> Any:
    """Names in their order, and types. A list has the shape of its first element."""
    if isinstance(value, dict):
        return {key: ("open" if key in _OPEN else json_shape(inner)) for key, inner in value.items()}
    if isinstance(value, list):
        return [json_shape(value[0])] if value else []
    return "null" if value is None else type(value).__name__


def _nrrd_shape(data: bytes) -> dict[str, str]:
    head = data.split(b"\n\n", 1)[0].split(b"\n")[1:]
    fields = dict(line.split(b": ", 1) for line in head if b": " in line)
    return {key.decode(): fields[key].decode() if key in _NRRD_VALUES else "" for key in sorted(fields)}


def _disposition(text: str) -> str:
    """Temporary names differ; quoting, encoding and suffixes do not."""
    return re.sub(r'"[^".]+(\.[^"]*)"', r'"*\1"', text) if "filename=" in text and "case" not in text else text


def _body_shape(kind: str, body: bytes, headers: email.message.Message) -> Any:
    if not body:
        return "empty"
    if kind == "application/json":
        return json_shape(json.loads(body))
    if kind == "multipart/form-data":
        head = f"Content-Type: {headers['content-type']}\r\n\r\n".encode()
        parts = []
        for part in email.parser.BytesParser().parsebytes(head + body).get_payload():
            data = part.get_payload(decode=True)
            own = {name.lower(): _disposition(value) for name, value in part.items()}
            parts.append({"headers": own, "body": _body_shape(part.get_content_type(), data, part)})
        return parts
    if body.startswith(b"NRRD"):
        return {"nrrd": _nrrd_shape(body)}
    if body.startswith(b"\x1f\x8b"):
        return "gzip"
    if body.startswith(b"PK"):
        return "zip"
    return "text"


def _answer_shape(answer: http.client.HTTPResponse, body: bytes, wants_body: bool) -> dict[str, Any]:
    kind = answer.headers.get_content_type() if "content-type" in answer.headers else ""
    headers: dict[str, str] = {}
    for name in ("content-disposition", "location", "allow", "access-control-allow-origin",
                 "access-control-allow-credentials", "www-authenticate", "retry-after"):
        if name in answer.headers:
            value = re.sub(r"^http://[^/]+", "http://host", answer.headers[name])
            headers[name] = ", ".join(sorted(re.split(", *", value))) if name == "allow" else _disposition(value)
    for name in ("last-modified", "etag"):
        if name in answer.headers:
            headers[name] = ""
    if "transfer-encoding" in answer.headers:
        headers["transfer-encoding"] = answer.headers["transfer-encoding"]
    shape: dict[str, Any] = {"status": answer.status, "content_type": kind, "headers": headers}
    if wants_body:
        shape["body"] = _body_shape(kind, body, answer.headers)
    return shape


class Player:
    """Sends requests one after the other; an answer can be used in the path of later ones."""

    def __init__(self, url: str, folder: pathlib.Path) -> None:
        parts = urllib.parse.urlsplit(url)
        self._host, self._port = parts.hostname or "", parts.port
        self._folder = folder
        self._kept: dict[str, str] = {}

    def _once(self, request: dict[str, Any]) -> tuple[http.client.HTTPResponse, bytes]:
        path = request["path"]
        for name, value in self._kept.items():
            path = path.replace(f"{{{name}}}", value)
        body, headers = _encode(request, self._folder)
        connection = http.client.HTTPConnection(self._host, self._port, timeout=300)
        try:
            connection.request(request["method"], path, body, headers | request.get("headers", {}))
            answer = connection.getresponse()
            return answer, answer.read()
        finally:
            connection.close()

    def play(self, request: dict[str, Any]) -> dict[str, Any]:
        """The shape of the answer.

        `until` asks again until the task has this status, `settle` until nothing is found; what is there only
        `sometimes` is left out.
        """
        deadline = time.monotonic() + WAIT_S
        answer, body = self._once(request)
        while time.monotonic() < deadline:
            waits_for = request.get("until")
            told = json.loads(body) if waits_for and answer.status == 200 else {}
            if (not waits_for or told.get("status") == waits_for) and not (request.get("settle") and answer.status == 200):
                break
            time.sleep(0.2)
            answer, body = self._once(request)
        for name, key in request.get("keep", {}).items():
            self._kept[name] = json.loads(body)[key]
        shape = _answer_shape(answer, body, request.get("body", True))
        for name in request.get("sometimes", []):
            shape["body"].pop(name, None)
        return shape


def compare(real: Any, ours: Any, where: str = "") -> list[str]:
    """Every difference as a line, in the words `WHERE: REAL -> OURS`."""
    if isinstance(real, dict) and isinstance(ours, dict):
        lines = [f"{where}.{key}: missing" for key in real if key not in ours]
        lines += [f"{where}.{key}: more" for key in ours if key not in real]
        for key in real:
            if key in ours:
                lines += compare(real[key], ours[key], f"{where}.{key}")
        common = [key for key in real if key in ours]
        if not lines and common != [key for key in ours if key in real]:
            lines.append(f"{where}: other order")
        return lines
    if isinstance(real, list) and isinstance(ours, list) and len(real) == len(ours):
        return [line for k, pair in enumerate(zip(real, ours, strict=True)) for line in compare(*pair, f"{where}[{k}]")]
    if real == ours:
        return []
    return [f"{where}: {_short(real)} -> {_short(ours)}"]


def _short(shape: Any) -> str:
    return {dict: "object", list: "list"}.get(type(shape)) or str(shape)
