"""The extension's session against the built server: the loop, second readers, and a server that is killed in every state."""

from __future__ import annotations

import pathlib
from collections.abc import Callable

import numpy
import pytest

from extension import Desk, FakeScene, killable
from FewlabelLib.lead import Lead
from FewlabelLib.review import Review
from FewlabelLib.session import Busy, State
from serving import LABELS, ORIGIN_MM, SHAPE, SPACING_MM, torso


def scene() -> FakeScene:
    """An empty scene on the grid of the studies."""
    grid = numpy.diag((*SPACING_MM, 1.0))
    grid[:3, 3] = ORIGIN_MM
    return FakeScene(SHAPE[::-1], grid)


@pytest.fixture
def desk(tmp_path: pathlib.Path) -> Desk:
    return Desk(tmp_path / "desk", scene())


def reference(desk: Desk) -> numpy.ndarray:
    """The label of the open case, [z, y, x]."""
    assert desk.session.case
    return torso(("case_01", "case 02", "case.03").index(desk.session.case.image))[1].T


def stored(desk: Desk, image: str, tag: str = "final") -> numpy.ndarray:
    """What the server has, by opening it at another desk."""
    other = Desk(desk.folder.parent / "other", scene())
    assert desk.session.client
    other.do(other.session.connect, desk.session.client.address.url, "ben")
    other.do(other.session.open_case, image, tag)
    assert other.session.case and other.session.case.image == image, other.said()
    voxels = other.scene.copy().flat(other.session.schema).voxels
    other.jobs.close()
    return voxels


def test_the_loop(desk: Desk, tmp_path: pathlib.Path) -> None:
    with killable(tmp_path) as server:
        session = desk.session
        desk.case(server.url)
        assert session.schema.names == list(LABELS)
        assert session.schema.structures[0].terminology.split("~")[2] == "SCT^10200004^Liver"
        desk.do(session.propose)
        # An untrained network may find anything, or nothing.
        assert session.state is State.SEGMENTED, desk.said()
        first, wanted = session.case.image, reference(desk)
        for value, name in enumerate(LABELS, 1):
            desk.scene.draw(name, wanted == value)
        desk.submit(True)
        assert session.case and session.case.image != first, desk.said()
        assert numpy.array_equal(stored(desk, first), wanted)

        # Somebody else submits the case that is open here.
        other = Desk(tmp_path / "second", scene())
        other.do(other.session.connect, server.url, "ben")
        other.do(other.session.open_case, session.case.image)
        other.draw("liver", 3)
        other.submit()
        assert "is submitted" in other.said()
        mine = desk.draw("liver", 5)
        desk.submit()
        assert session.question and "Somebody else" in session.question.text
        desk.answer("newer")
        assert numpy.array_equal(stored(desk, session.case.image) == 1, mine)

        # Drafts do not count as labelled.
        desk.do(session.next_case)
        desk.draw("spleen", 7)
        desk.do(session.save_draft)
        assert "and on the server" in desk.said()
        desk.session.refresh()
        desk.wait()
        assert session.view().project == "2 of 3 cases labelled"
        second_readers(desk, first)


def second_readers(desk: Desk, image: str) -> None:
    """What was submitted is listed, shown beside another reading, sent back and approved."""
    session = desk.session
    review = Review(desk.jobs, lambda: session.client, lambda: session.schema, desk.scene, desk.folder / "images", lambda: "")
    desk.do(review.refresh)
    assert {case.image: case.author for case in review.cases}[image] == "ann"
    double = next(case for case in review.cases if case.image != image)
    desk.do(review.choose, double.image)
    assert [reading.author for reading in review.readings] == ["ann", "ben"]
    desk.do(review.show, review.readings[0].revision, review.readings[1].revision)
    assert [shown.case.name.split(", ")[1] for shown in desk.scene.readings] == ["ann", "ben"], review.message
    assert [row[0] for row in review.view().comparison] == list(LABELS)
    assert review.view().comparison[0][3] == "0.000", "drawn in different planes"

    desk.do(review.choose, image)
    desk.do(review.send_back, " ")
    assert review.message and "needs a comment" in review.message.text
    desk.do(review.send_back, "the tip is missing")
    assert [case.image for case in review.sent_back_to("ann")] == [image] and review.sent_back_to("ben") == []
    desk.do(review.choose, image)
    assert review.view().comment == "ann: the tip is missing"
    desk.do(review.approve, "")
    assert review.sent_back_to("ann") == []


def test_killed_in_every_state(desk: Desk, tmp_path: pathlib.Path) -> None:
    """`kill -9`, the command that fails, the start, and the same command: the work of before is there all the time."""
    with killable(tmp_path) as server:
        session = desk.session

        def killed(command: Callable[[], None]) -> None:
            """The command at a dead server, and again at one that lives."""
            server.kill()
            desk.do(command)
            assert session.busy is Busy.NOTHING and session.message and session.message.level == "error", session.message
            server.start()
            desk.do(command)
            assert session.message is None or session.message.level != "error", desk.said()

        killed(lambda: session.connect(server.url, "ann"))
        assert session.state is State.CONNECTED
        killed(session.next_case)
        first = session.case
        assert first and session.state is State.SAMPLE
        killed(session.propose)
        assert session.state is State.SEGMENTED
        wanted = reference(desk)
        for value, name in enumerate(LABELS, 1):
            desk.scene.draw(name, wanted == value)
        killed(session.propose)
        assert desk.scene.offered is not None and numpy.array_equal(desk.scene.copy().flat(session.schema).voxels, wanted)
        desk.do(session.drop_offer)

        server.kill()
        desk.do(session.save_draft)
        assert "kept on this computer" in desk.said() and "did not take it" in desk.said()
        server.start()
        killed(session.submit)
        assert numpy.array_equal(stored(desk, first.image), wanted)

        # Killed while it works: what the client started before is answered as a cut connection.
        for command, check in ((session.next_case, None), (session.propose, None), (session.submit, "submit")):
            if check:
                desk.draw("liver", 5)
                desk.draw("spleen", 6)
            command()
            desk.jobs.tick()
            server.kill()
            desk.wait()
            assert session.busy is Busy.NOTHING and session.case
            server.start()
            if session.case.image == first.image:
                desk.do(session.next_case)
            if check and session.state is State.EDITING:
                desk.submit()
                # The submit of before may have been on the disk although its answer was lost.
                if session.question:
                    desk.answer("newer")
                assert "is submitted" in desk.said(), desk.said()
        other_case = session.case
        killed(lambda: session.open_case(first.image))
        assert session.case and session.case.image == first.image and numpy.array_equal(desk.scene.copy().flat(session.schema).voxels, wanted)
        killed(lambda: (session.use_volume("v1", "my scan"), session.answer("project"))[0])
        assert session.case.name == "my scan" and session.case.in_project
        killed(session.next_case)
        last = other_case
        assert last and (stored(desk, last.image) == 1)[5].any() and (stored(desk, last.image) == 2)[6].any()
        assert numpy.array_equal(stored(desk, first.image), wanted)


def test_the_lead_and_leases(desk: Desk, tmp_path: pathlib.Path) -> None:
    """What the tab Project shows and orders, and two people who never get the same case."""
    with killable(tmp_path) as server:
        session = desk.session
        desk.case(server.url)
        lead = Lead(desk.jobs, lambda: session.client, lambda: session.model, lambda: 0.0)
        desk.do(lead.refresh)
        if lead.message and "nothing like that" in lead.message.text:
            pytest.skip("this server has no rounds")
        assert lead.message is None, lead.message
        assert lead.view().labels.startswith("0 of 3 cases labelled, 1 being worked on."), lead.view().labels
        assert [row[:2] for row in lead.view().versions] == [(1, "live")]
        assert not lead.view().buttons["start"].enabled

        other = Desk(tmp_path / "second", scene())
        other.do(other.session.connect, server.url, "ben")
        other.do(other.session.next_case)
        assert other.session.case and session.case and other.session.case.image != session.case.image
        again = Desk(tmp_path / "after a crash", scene())
        again.case(server.url)
        assert again.session.case and again.session.case.image == session.case.image, "the same person gets the same case"
        first = session.case.image
        desk.do(session.next_case)
        assert session.case.image != first and session.case.image != other.session.case.image, "left without a submit, it is given back"

        desk.draw("liver", 5)
        desk.submit()
        desk.do(lead.refresh)
        assert lead.view().annotators[0][:3] == ("ann", "1", "1")
        assert dict(lead.view().structures) == {name: "1" for name in LABELS}
        desk.do(lead.start_round)
        assert lead.running, lead.message
        assert lead.view().round.startswith("Round 1") and not lead.view().buttons["start"].enabled
        desk.do(lead.stop_round)
        desk.do(lead.refresh)
        assert lead.running is None and "was stopped" in lead.view().round, lead.view().round
        desk.do(lead.pin)
        assert lead.message and "pinned" in lead.message.text and lead.view().buttons["unpin"].enabled
        desk.do(lead.unpin)
        assert not lead.view().buttons["unpin"].enabled
