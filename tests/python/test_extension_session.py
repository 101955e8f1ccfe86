"""What the clinician does with the extension, against a server that fails on order: nothing is ever lost."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import numpy
import pytest

from extension import SHAPE, Desk, FakeScene, Stub, stub
from FewlabelLib import labels
from FewlabelLib.drafts import Drafts
from FewlabelLib.session import Busy, State

server = pytest.fixture(stub)


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Desk:
    return Desk(tmp_path)


def drafts_of(desk: Desk, url: str) -> list[str]:
    return [draft.image for draft in Drafts(desk.folder / "drafts").all(url)]


def draft_voxels(desk: Desk, url: str, image: str) -> numpy.ndarray:
    """The liver in a draft, also where another structure lies over it."""
    drafts = Drafts(desk.folder / "drafts")
    draft = drafts.find(url, image)
    assert draft is not None
    return dict(labels.masks(drafts.voxels(draft)[0], draft.names, drafts.covered(draft)))["liver"]


def test_the_loop(server: Stub, desk: Desk) -> None:
    session = desk.session
    assert session.state is State.DISCONNECTED
    desk.do(session.connect, server.url, "ann")
    assert session.state is State.CONNECTED and session.view().project == "0 of 3 cases labelled"
    assert session.schema.structures[0].color == (200, 60, 50)
    desk.do(session.next_case)
    assert session.state is State.SAMPLE and session.case and session.case.image == "case 0"
    assert not session.view().buttons["submit"].enabled, "an untouched case is no annotation"
    desk.do(session.propose)
    assert session.state is State.SEGMENTED and desk.said() == "Proposed by pct-net-s, version 3."
    assert desk.scene.masks["spleen"].sum() == 4
    drawn = desk.draw("liver")
    assert session.state is State.EDITING
    desk.submit(True)
    assert numpy.array_equal(server.submitted("case 0") == 1, drawn)
    params = server.params["case 0", "final"][0]
    assert params["origin"] == "interactive" and params["annotated_labels"] == ["liver", "spleen"] and params["tool"].startswith("Fewlabel")
    assert session.case and session.case.image == "case 1" and session.state is State.SAMPLE
    assert drafts_of(desk, server.url) == []


def test_a_new_case_is_proposed_at_once_when_wanted(server: Stub, desk: Desk) -> None:
    desk.settings["auto_propose"] = True
    desk.case(server.url)
    assert desk.session.state is State.SEGMENTED


def test_everything_labelled(server: Stub, desk: Desk) -> None:
    for image in server.images:
        server.labels[image, "final"] = [server.proposal]
    desk.do(desk.session.connect, server.url, "ann")
    desk.do(desk.session.next_case)
    assert desk.said().startswith("Every case is labelled.") and desk.session.state is State.CONNECTED
    desk.do(desk.session.open_case, "case 1")
    assert desk.session.state is State.SEGMENTED and desk.scene.masks["liver"].sum() == 4
    desk.draw()
    desk.submit()
    assert len(server.labels["case 1", "final"]) == 2, "a submitted case can be opened and submitted again"


def test_testing_a_connection_changes_nothing(server: Stub, desk: Desk) -> None:
    desk.do(desk.session.test, server.url, "ann")
    assert "Stub answers" in desk.said() and "not encrypted" in desk.said() and "3 cases" in desk.said()
    assert desk.session.state is State.DISCONNECTED and desk.session.client is None
    desk.do(desk.session.test, "http://127.0.0.1:9", "ann")
    assert "Nothing answers" in desk.said()


FAILURES: list[int | str] = ["cut before", "cut after", 500, 503, 507, 401, 403, 404]


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("route", ["GET /info/", "POST /activelearning/random", "GET /datastore/image", "HEAD /datastore/label", "GET /datastore/label/map"])
def test_fetching_fails(server: Stub, desk: Desk, route: str, failure: int | str) -> None:
    """The open case stays on the screen and can be worked on; the same command works when the server is well again."""
    session = desk.session
    desk.case(server.url)
    drawn = desk.draw()
    desk.submit()
    server.failing[route] = [failure] * 20
    desk.do(session.next_case)
    if route == "GET /info/" or (failure == 404 and route.endswith(("label", "map"))):
        assert session.case and session.case.image == "case 1", "not needed for it, or no such label"
        return
    assert session.message and session.message.level == "error"
    assert "The open case was not touched" in desk.said() and session.message.next_step
    assert session.case and session.case.image == "case 0" and numpy.array_equal(desk.scene.masks["liver"], drawn)
    assert session.busy is Busy.NOTHING
    server.failing.clear()
    if failure == 401:
        assert not session.view().buttons["next"].enabled
        desk.do(session.connect, server.url, "ann")
    desk.do(session.next_case)
    assert session.case and session.case.image == "case 1"


@pytest.mark.parametrize("failure", [each for each in FAILURES if each != "cut after"])
def test_submitting_fails(server: Stub, desk: Desk, failure: int | str) -> None:
    session = desk.session
    desk.case(server.url)
    drawn = desk.draw()
    server.failing["PUT /datastore/label"] = [failure] * 20
    desk.submit(True)
    assert session.message and session.message.level == "error" and "as a draft on this computer" in desk.said()
    assert session.state is State.EDITING and session.case and session.case.image == "case 0", "no next case before this one is safe"
    assert numpy.array_equal(desk.scene.masks["liver"], drawn)
    assert numpy.array_equal(draft_voxels(desk, server.url, "case 0"), drawn)
    server.failing.clear()
    if failure == 401:
        desk.do(session.connect, server.url, "ann")
    desk.submit()
    assert numpy.array_equal(server.submitted("case 0") == 1, drawn) and drafts_of(desk, server.url) == []


def test_a_lost_answer_makes_one_revision(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    desk.draw()
    server.failing["PUT /datastore/label"] = ["cut after", "cut after"]
    desk.submit()
    assert len(server.labels["case 0", "final"]) == 1 and desk.said() == "case 0 is submitted."


@pytest.mark.parametrize("failure", ["cut before", 500, 429])
def test_proposing_fails(server: Stub, desk: Desk, failure: int | str) -> None:
    desk.case(server.url)
    drawn = desk.draw()
    server.failing["POST /infer/pct-net-s"] = [failure] * 20
    desk.do(desk.session.propose)
    assert desk.session.message and desk.session.message.level == "error" and "was not changed" in desk.said()
    assert numpy.array_equal(desk.scene.masks["liver"], drawn) and desk.session.state is State.EDITING


def test_a_proposal_never_overwrites_edits(server: Stub, desk: Desk) -> None:
    session = desk.session
    desk.case(server.url)
    session.propose()
    drawn = desk.draw()  # while it is computed
    desk.wait()
    assert numpy.array_equal(desk.scene.masks["liver"], drawn) and desk.scene.offered is not None
    assert "beside your segmentation" in desk.said() and session.view().buttons["take_offer"].enabled
    desk.do(session.take_offer)
    assert desk.scene.masks["liver"].sum() == 4 and desk.scene.offered is None
    desk.do(session.undo)
    assert numpy.array_equal(desk.scene.masks["liver"], drawn)
    desk.do(session.propose)
    desk.do(session.drop_offer)
    assert numpy.array_equal(desk.scene.masks["liver"], drawn) and desk.scene.offered is None


def test_a_proposal_of_another_grid_is_refused(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    desk.scene.shape = (9, 9, 9)
    before = dict(desk.scene.masks)
    desk.do(desk.session.propose)
    assert desk.session.message and desk.session.message.level == "error"
    assert desk.scene.masks == before


def test_a_late_answer_changes_nothing(server: Stub, desk: Desk) -> None:
    session = desk.session
    desk.case(server.url)
    session.propose()
    session.cancel()
    assert "cancelled" in desk.said()
    desk.wait()
    assert session.state is State.SAMPLE and not desk.scene.masks["liver"].any()
    session.next_case()
    session.cancel()
    desk.wait()
    assert session.case and session.case.image == "case 0"


def leave(desk: Desk) -> numpy.ndarray:
    drawn = desk.draw()
    desk.do(desk.session.next_case)
    assert desk.session.question and "not submitted" in desk.session.question.text
    assert not desk.session.view().buttons["next"].enabled and desk.session.view().buttons["next"].reason == "Answer the question first."
    return drawn


def test_leaving_by_submitting(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    drawn = leave(desk)
    desk.answer("submit")
    desk.sure()
    assert numpy.array_equal(server.submitted("case 0") == 1, drawn)
    assert desk.session.case and desk.session.case.image == "case 1"


def test_leaving_with_a_draft(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    drawn = leave(desk)
    server.labels["case 1", "final"] = server.labels["case 2", "final"] = [server.proposal]
    desk.answer("draft")
    assert numpy.array_equal(server.submitted("case 0", "draft-ann_0") == 1, drawn), "on the server too"
    assert drafts_of(desk, server.url) == ["case 0"]
    # The server offers the same case again: the draft is back.
    assert desk.session.case and desk.session.case.image == "case 0" or desk.said().startswith("Every case")


def test_leaving_by_giving_up(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    desk.draw()
    desk.do(desk.session.save_draft)
    desk.do(desk.session.next_case)
    desk.answer("discard")
    assert drafts_of(desk, server.url) == [] and ("case 0", "draft-ann_0") not in server.labels
    assert desk.session.state is State.SAMPLE and not desk.scene.masks["liver"].any()


def test_staying(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    drawn = leave(desk)
    desk.answer("stay")
    assert desk.session.state is State.EDITING and numpy.array_equal(desk.scene.masks["liver"], drawn)


def test_edits_made_while_the_next_case_comes(server: Stub, desk: Desk) -> None:
    session = desk.session
    desk.case(server.url)
    desk.draw()
    desk.submit()
    session.next_case()
    drawn = desk.draw("spleen")
    desk.wait()
    assert session.question and session.case and session.case.image == "case 0"
    assert numpy.array_equal(desk.scene.masks["spleen"], drawn)
    desk.answer("submit")
    desk.sure()
    assert numpy.array_equal(server.submitted("case 0") == 2, drawn)
    assert session.case.image == "case 1"


def test_edits_made_while_it_is_submitted(server: Stub, desk: Desk) -> None:
    session = desk.session
    desk.case(server.url)
    drawn = desk.draw()
    desk.do(session.submit)
    session.answer("submit")
    more = desk.draw("liver", plane=3)
    desk.wait()
    assert numpy.array_equal(server.submitted("case 0") == 1, drawn)
    assert session.state is State.EDITING and "not in it" in desk.said()
    desk.submit()
    assert numpy.array_equal(server.submitted("case 0") == 1, more) and len(server.labels["case 0", "final"]) == 2


def test_warned_before_a_submit(server: Stub, desk: Desk) -> None:
    session = desk.session
    desk.case(server.url)
    drawn = desk.draw("liver")
    desk.draw("spleen")
    desk.draw("notes", plane=0)
    session.set_complete("spleen", False)
    desk.do(session.submit)
    assert session.question
    text = session.question.text
    assert "overlap in 6 voxels" in text and "not sent: notes" in text and "not ticked as complete" in text
    desk.answer("back")
    assert ("case 0", "final") not in server.labels and session.state is State.EDITING
    desk.scene.masks["liver"] = numpy.roll(drawn, 2, axis=0)
    desk.do(session.submit)
    desk.answer("submit")
    assert set(numpy.unique(server.submitted("case 0"))) == {0, 1}, "what is not complete is not sent"
    assert server.params["case 0", "final"][0]["annotated_labels"] == ["liver"]


def test_an_empty_structure_is_asked_about(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    desk.draw("liver")
    desk.do(desk.session.submit)
    assert desk.session.question and "counts as not in this image: spleen" in desk.session.question.text
    desk.answer("submit")
    assert server.params["case 0", "final"][0]["annotated_labels"] == ["liver", "spleen"]


def test_somebody_else_was_faster(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    drawn = desk.draw()
    server.labels["case 0", "final"] = [server.proposal]
    desk.submit()
    assert desk.session.question and "Somebody else" in desk.session.question.text
    assert drafts_of(desk, server.url) == ["case 0"] and server.submitted("case 0").sum() == 12
    desk.answer("newer")
    assert numpy.array_equal(server.submitted("case 0") == 1, drawn) and drafts_of(desk, server.url) == []


def test_a_crash_of_slicer(server: Stub, desk: Desk, tmp_path: pathlib.Path) -> None:
    """What was kept is there at the next start, also a segment that the project does not know, and with the server down."""
    desk.case(server.url)
    drawn = desk.draw()
    notes = desk.draw("notes", plane=0)
    desk.session.tick()
    desk.wait()
    assert drafts_of(desk, server.url) == [], "not every second"
    desk.now_s += 61
    desk.session.tick()
    desk.wait()
    assert drafts_of(desk, server.url) == ["case 0"]

    other = Desk(tmp_path)
    other.do(other.session.connect, server.url, "ann")
    assert "Unsent work was found: case 0" in other.said()
    server.failing = {route: ["cut before"] * 20 for route in ("GET /datastore/image", "HEAD /datastore/label", "GET /datastore/label/map")}
    other.do(other.session.resume, other.session.view().drafts[0])
    assert other.session.state is State.EDITING, other.said()
    assert numpy.array_equal(other.scene.masks["liver"], drawn) and numpy.array_equal(other.scene.masks["notes"], notes)
    server.failing.clear()
    other.submit()
    assert numpy.array_equal(server.submitted("case 0") == 1, drawn)


def test_drafts_go_to_the_server_and_come_from_it(server: Stub, desk: Desk, tmp_path: pathlib.Path) -> None:
    desk.case(server.url)
    drawn = desk.draw()
    desk.now_s += 601
    desk.session.tick()
    desk.wait()
    assert numpy.array_equal(server.submitted("case 0", "draft-ann_0") == 1, drawn)
    elsewhere = Desk(tmp_path / "another computer")
    elsewhere.case(server.url)
    assert elsewhere.session.state is State.EDITING and numpy.array_equal(elsewhere.scene.masks["liver"], drawn)
    elsewhere.submit()
    assert ("case 0", "draft-ann_0") not in server.labels


def test_the_last_edits_are_kept_when_slicer_quits_or_the_scene_is_closed(server: Stub, desk: Desk, tmp_path: pathlib.Path) -> None:
    desk.case(server.url)
    drawn = desk.draw()
    desk.session.scene_closes()
    assert "kept as a draft" in desk.said() and desk.session.case is None
    assert numpy.array_equal(draft_voxels(desk, server.url, "case 0"), drawn)
    other = Desk(tmp_path / "b")
    other.case(server.url)
    other.draw()
    other.session.close()
    assert drafts_of(other, server.url) == ["case 0"]


def test_a_volume_is_sent_after_consent_only(server: Stub, desk: Desk) -> None:
    session = desk.session
    desk.do(session.connect, server.url, "ann")
    session.use_volume("v1", "my scan")
    assert session.question and "Send my scan to 127.0.0.1 (not encrypted)?" in session.question.text
    asked = len(server.asked)
    desk.answer("no")
    assert len(server.asked) == asked and session.case is None
    session.use_volume("v1", "my scan")
    desk.answer("session")
    assert session.case and not session.case.in_project and session.state is State.SEGMENTED
    assert "my scan" not in server.images, "a session is no upload"
    assert "Add this volume" in session.view().buttons["submit"].reason
    drawn = desk.draw()
    desk.do(session.add_to_project)
    assert "my scan" in server.images and numpy.array_equal(desk.scene.masks["liver"], drawn), "what was drawn stays"
    desk.submit()
    assert numpy.array_equal(server.submitted("my scan") == 1, drawn)
    session.use_volume("v1", "my scan")
    assert session.question and "as you agreed before" in session.question.text


def test_a_login(server: Stub, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    work = server.work

    def locked(method: str, path: str, query: dict, body: bytes, headers: object) -> tuple:
        if path == "/auth/":
            return 200, {"enabled": True}, {}
        if path == "/auth/token":
            right = body == b"username=ann&password=s+%26&grant_type=password"
            return (200, {"access_token": "t", "token_type": "bearer"}, {}) if right else (401, {"detail": "no"}, {})
        if headers["Authorization"] != "Bearer t":
            return 401, {"detail": "no"}, {}
        return work(method, path, query, body, headers)

    monkeypatch.setattr(server, "work", locked)
    session = desk.session
    desk.do(session.connect, server.url, "ann")
    assert session.view().login and session.view().buttons["next"].reason == "Log in first."
    desk.do(session.connect, server.url, "ann", True, "wrong")
    assert "does not know this name" in desk.said()
    desk.do(session.connect, server.url, "ann", True, "s &")
    desk.do(session.next_case)
    assert session.case, desk.said()
    assert "s &" not in str(desk.settings), "the password is not kept"


def test_a_case_that_slicer_cannot_show(server: Stub, desk: Desk) -> None:
    desk.case(server.url)
    desk.draw()
    desk.submit()
    desk.scene.broken = True
    desk.do(desk.session.next_case)
    assert "cannot show case 1" in desk.said() and desk.session.case and desk.session.case.image == "case 0"


def test_random_walks_lose_nothing(server: Stub, tmp_path: pathlib.Path) -> None:
    """Commands, edits, cancels and failures in any order: what was drawn last for a case is in the scene, in a draft, or submitted,
    unless the user gave it up; and the session always comes to rest with a case and a scene that belong together."""
    for seed in range(60):
        rng = numpy.random.default_rng(seed)
        server.labels.clear()
        server.failing.clear()
        desk = Desk(tmp_path / str(seed), FakeScene())
        session, drawn = desk.session, {}
        desk.do(session.connect, server.url, "ann")

        def draw(desk: Desk = desk, drawn: dict = drawn, rng: numpy.random.Generator = rng) -> None:
            if desk.session.case:
                mask = rng.random(SHAPE) < 0.2
                mask[0, 0, 0] = True
                desk.scene.draw("liver", mask)
                drawn[desk.session.case.image] = mask

        def answer(session: object = session, drawn: dict = drawn, rng: numpy.random.Generator = rng) -> None:
            if session.question:
                key = str(rng.choice([key for key, _ in session.question.choices]))
                if key == "discard" and session.case:
                    drawn.pop(session.case.image, None)
                session.answer(key)

        def fail(rng: numpy.random.Generator = rng) -> None:
            routes = ["GET /datastore/image", "PUT /datastore/label", "POST /activelearning/random", "POST /infer/pct-net-s", "GET /info/", "HEAD /datastore/label"]
            server.failing[str(rng.choice(routes))] = [rng.choice(["cut before", "cut after", "500"]).item() for _ in range(4)]
            server.failing = {route: [int(each) if each == "500" else each for each in list_] for route, list_ in server.failing.items()}

        def late(desk: Desk = desk) -> None:
            desk.now_s += 400
            desk.session.tick()

        commands: list[Callable[[], None]] = [
            draw, draw, answer, answer, fail, late, session.next_case, session.propose, session.submit, lambda session=session: session.submit(True), session.cancel,
            session.save_draft, session.discard, session.drop_offer, desk.wait, desk.wait, lambda session=session: session.open_case("case 1"),
        ]  # fmt: skip
        for _ in range(40):
            commands[rng.integers(len(commands))]()
            desk.jobs.tick()
        desk.wait()
        server.failing.clear()
        for image, mask in drawn.items():
            kept = []
            if session.case and session.case.image == image:
                kept.append(desk.scene.masks["liver"])
            for tag in ("final", "draft-ann_0"):
                kept += [server.submitted(image, tag) == 1] if (image, tag) in server.labels else []
            kept += [draft_voxels(desk, server.url, image)] if image in drafts_of(desk, server.url) else []
            assert any(numpy.array_equal(voxels, mask) for voxels in kept), f"seed {seed}: {image} lost"
        assert session.busy is Busy.NOTHING
        if session.case:
            assert desk.scene.shown and desk.scene.shown.case.image == session.case.image
        session.close()


def test_leases(server: Stub, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """A case that is left without a submit is given back, and one that is worked on for long is kept."""
    work, sent = server.work, []

    def leasing(method: str, path: str, query: dict, body: bytes, headers: object) -> tuple:
        if path.startswith("/activelearning/"):
            sent.append(json.loads(body))
        if path == "/leases/":
            sent.append(query)
            return 409, {"detail": "ben has it"}, {}
        return work(method, path, query, body, headers)

    monkeypatch.setattr(server, "work", leasing)
    server.told = {"lease": {"expires_in_s": 300.0}}
    desk.case(server.url)
    desk.do(desk.session.next_case)
    assert sent == [{"client_id": "ann"}, {"client_id": "ann", "skip": True}]
    sent.clear()
    desk.now_s += 200
    desk.session.tick()
    assert not sent, "who does nothing keeps nobody from the case"
    desk.draw()
    desk.session.tick()
    desk.wait()
    assert sent == [{"image": "case 0", "client_id": "ann"}]
    assert "Somebody else works on case 0" in desk.said()
    desk.submit()
    sent.clear()
    desk.do(desk.session.next_case)
    assert sent == [{"client_id": "ann"}]
    server.told = {"id": None, "leased": 2}
    desk.do(desk.session.next_case)
    assert "Others work on the 2 cases" in desk.said()
