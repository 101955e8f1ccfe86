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


TABLE = (
    Deliberate("an error has a code for programs and the id that is in the log", ".*", r"body\.(code|request_id): more"),
    Deliberate(
        "what does not exist is not found, instead of an internal error",
        "(delete image|submit|label info of the Reviewer|infer|next sample|(image|label) info, put), unknown( model| image)?",
        "status: 500 -> 404|content_type: text/plain -> application/json|body: text -> object",
    ),
    Deliberate(
        "a task for something unknown is refused at once, instead of failing later",
        "(scoring, unknown method|(train|batch), unknown model)",
        r"status: 200 -> 404|body\.(id|status|request|start_ts|details): missing|body\.detail: more",
    ),
    Deliberate(
        "params that cannot be used are the client's mistake",
        ".*, (bad params|bad info|unknown dtype)",
        "status: 500 -> 400|content_type: text/plain -> application/json|body: text -> object",
    ),
    Deliberate(
        "nothing is written outside the store",
        ".* that leaves the store",
        r"status: 200 -> 422|body\.(image|label): missing|body\.detail: more",
    ),
    Deliberate("an image that comes again keeps its labels", "its label afterwards", r"body\.(ts|name): more"),
    Deliberate("nobody stops the server over HTTP", "reload", r"status: 200 -> 403|body\.detail: more"),
    Deliberate("an inference of nothing is the client's mistake", "infer, nothing to infer", "status: 500 -> 400"),
    Deliberate(
        "what this server does not have is not found, instead of an internal error",
        "logs of the GPU|DICOM proxy|infer, pathology",
        "status: 500 -> 404|content_type: text/plain -> application/json|body: text -> object",
    ),
    Deliberate("a sign that needs no file", "icon", r"content_type: image/x-icon -> image/svg\+xml|headers\.(last-modified|etag): missing"),
    Deliberate("every method of a route is named", "datastore, wrong method", r"headers\.allow: GET -> DELETE, GET, HEAD, PUT"),
    Deliberate(
        "of a proposal among many the label is kept, and which version gave it",
        "batch, at once",
        r"body\.case 02\.params\.(latencies: missing|centroids: missing|model_version: more)",
    ),
    Deliberate("refused before the inference, not after it", "infer, DICOM SEG", "status: 500 -> 400"),
    Deliberate(
        "strokes need no model of their own, so that they are always offered, as the real server's radiology app does",
        "info.*",
        r"body\.models\.(Histogram|GMM)\+GraphCut: more",
    ),
    Deliberate("busy says when to come again", "train, again", r"headers\.retry-after: more"),
    Deliberate("GET routes answer HEAD", "info, wrong method", r"headers\.allow: GET -> GET, HEAD"),
    Deliberate(
        "HEAD tells the headers of the file, instead of those of an empty JSON answer",
        "(image|label), head",
        r"content_type: application/json -> application/octet-stream|headers\.(last-modified|etag): more",
    ),
    Deliberate("the revision that was made, for whoever wants to know", "submit.*", r"headers\.etag: more"),
    Deliberate(
        "a file made for one answer cannot be asked for again",
        "dataset.*|infer, (image|compressed|int16)",
        r"headers\.(last-modified|etag): missing",
    ),
    Deliberate("images by id, instead of as the file system lists them", "datastore, all", r"body\.objects: other order"),
    Deliberate("the order of an image's facts means nothing", "datastore.*all", r"body\.objects\.\w+\.image\.info: other order"),
    Deliberate(
        "which model gave the proposal",
        "infer.*|label info of a proposal",
        r"body(\[0\]\.body|\.params)?\.(model|model_version|model_sha256|windows|windows_skipped|window|computed_ahead): more",
    ),
    Deliberate("allowed by the format, and read by every reader", "infer.*", r"body(\[1\]\.body)?\.nrrd\.endian: more"),
    Deliberate("Slicer's cache is by file name and needs the checksum", "next sample, .*", r"body\.checksum: more"),
    Deliberate(
        "who was offered the image before, without this time",
        "next sample, first.*",
        r"body\.strategy(\.first)?: missing",
    ),
    Deliberate("more strategies and scores, the recommended strategy first", "info|scoring, every method", r"body\.(strategies\.\w+|scoring\.\w+|sum|epistemic): more|body\.strategies: other order"),
    Deliberate("whom the image is leased to", "next sample, random", r"body\.lease: more"),
    Deliberate(
        "an image that somebody else has on lease is not offered",
        "next sample, first.*",
        r"body\.(id|path|ts|name): missing|body\.leased: more",
    ),
    Deliberate("which version made the label", "batch, at once", r"body\..*\.params\.model(_sha256)?: more"),
    Deliberate("a weight is a number with a fraction", "next sample, random", r"body\.weight: int -> float"),
    Deliberate("the viewer is not part of this server", "ohif.*", "status: 307 -> 404|content_type:  -> application/json|headers.location: missing"),
    Deliberate(
        "pages of other origins are not let in unless they are named",
        "(preflight of a )?page elsewhere",
        r"headers\.access-control-allow-(origin|credentials): missing|headers\.allow: more|content_type: text/plain -> |body: text -> empty",
    ),
)


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
