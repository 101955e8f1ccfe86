"""The layers of the Slicer extension that need neither Slicer nor a server: files, label maps, drafts, jobs, and figures."""

from __future__ import annotations

import pathlib
import threading

import numpy
import pytest
import SimpleITK

from extension import GRID, SHAPE, Timer
from FewlabelLib import labels, nrrd
from FewlabelLib.client import Fault
from FewlabelLib.drafts import Draft, Drafts
from FewlabelLib.jobs import Jobs
from FewlabelLib.lead import Lead, dice, duration
from FewlabelLib.review import Submitted
from FewlabelLib.session import draft_tag, image_id
from FewlabelLib.where import places_of

SCHEMA = labels.Schema.of_names(["liver", "left kidney", "spleen"])


def mask(*planes: int) -> numpy.ndarray:
    voxels = numpy.zeros(SHAPE, bool)
    voxels[list(planes)] = True
    return voxels


# Files


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16"])
def test_files_keep_voxels_and_grid(kind: str, tmp_path: pathlib.Path) -> None:
    rng = numpy.random.default_rng(1)
    for trial in range(10):
        shape = tuple(rng.integers(1, 9, 3))
        voxels = rng.integers(0, 200, shape).astype(kind)
        rotation, _ = numpy.linalg.qr(rng.normal(size=(3, 3)))
        grid = numpy.eye(4)
        grid[:3, :3] = rotation * rng.uniform(0.5, 4, 3)
        grid[:3, 3] = rng.uniform(-200, 200, 3)
        path = tmp_path / f"{trial}.nrrd"
        nrrd.write(path, voxels, grid)
        read, read_grid = nrrd.read(path.read_bytes())
        assert numpy.array_equal(read, voxels)
        assert numpy.allclose(read_grid, grid)
        image = SimpleITK.ReadImage(path)
        assert numpy.array_equal(SimpleITK.GetArrayFromImage(image), voxels)
        i, j, k = (int(n) - 1 for n in shape[::-1])
        corner = numpy.array(image.TransformIndexToPhysicalPoint((i, j, k))) * (-1, -1, 1)
        assert numpy.allclose(corner, (grid @ (i, j, k, 1))[:3], atol=1e-4), "ITK is LPS, MRML is RAS"


def test_float_volumes_can_be_sent(tmp_path: pathlib.Path) -> None:
    voxels = numpy.linspace(-1, 1, 24, dtype=numpy.float32).reshape(2, 3, 4)
    nrrd.write(tmp_path / "v.nrrd", voxels, GRID)
    assert numpy.array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(tmp_path / "v.nrrd")), voxels)


def test_damaged_files_are_refused(tmp_path: pathlib.Path) -> None:
    nrrd.write(tmp_path / "x.nrrd", numpy.ones(SHAPE, numpy.uint8), GRID)
    good = (tmp_path / "x.nrrd").read_bytes()
    head, _, body = good.partition(b"\n\n")
    bad = [
        b"", b"NRRD0005\n\n", b"<html></html>", head + b"\n\n" + body[: len(body) // 2], head.replace(b"uint8", b"double") + b"\n\n" + body,
        head.replace(b"sizes: 6", b"sizes: 99999999") + b"\n\n" + body, head.replace(b"gzip", b"bzip2") + b"\n\n" + body, head.replace(b"dimension: 3", b"dimension: 4") + b"\n\n" + body,
    ]  # fmt: skip
    for content in bad:
        with pytest.raises((ValueError, KeyError)):
            nrrd.read(content)


# Label maps


def test_values_follow_the_schema_and_not_the_order_of_segments() -> None:
    flat = labels.flatten(SCHEMA, SHAPE, [("spleen", mask(0)), ("liver", mask(1))])
    assert set(numpy.unique(flat.voxels[0])) == {3}
    assert set(numpy.unique(flat.voxels[1])) == {1}
    assert flat.counts == {"spleen": 30, "liver": 30}
    assert not flat.warnings


def test_what_is_lost_is_told() -> None:
    segments = [("liver", mask(0, 1)), ("Spleen", mask(1, 2)), ("my notes", mask(3)), ("empty notes", mask()), ("background", mask(3)), ("LIVER", mask(3))]
    flat = labels.flatten(SCHEMA, SHAPE, segments)
    assert flat.overlaps == [("liver", "spleen", 30)]
    assert flat.unknown == ["my notes"]
    assert flat.doubled == ["liver"]
    assert len(flat.warnings) == 3
    assert flat.counts == {"liver": 60, "spleen": 60}


def test_flatten_is_the_naive_loop() -> None:
    rng = numpy.random.default_rng(2)
    for _ in range(30):
        segments = [(str(rng.choice([*SCHEMA.names, "other"])), rng.random(SHAPE) < 0.3) for _ in range(rng.integers(0, 6))]
        wanted = numpy.zeros(SHAPE, numpy.uint8)
        for name, voxels in segments:
            if name in SCHEMA.names:
                wanted[voxels] = SCHEMA.names.index(name) + 1
        flat = labels.flatten(SCHEMA, SHAPE, segments)
        assert numpy.array_equal(flat.voxels, wanted)
        assert all(flat.counts[name] == (wanted == SCHEMA.names.index(name) + 1).sum() for name, _ in segments if name in SCHEMA.names)


def test_a_copy_of_what_was_drawn() -> None:
    """Segments share the voxels of a box, as Slicer keeps them; an empty one has none."""
    box = numpy.array([[[1, 2]], [[3, 1]]], numpy.uint8)
    parts = [labels.Part("spleen", box, (1, 2, 3), 2), labels.Part("liver", box, (1, 2, 3), 1), labels.Part("left kidney", box[:0], (0, 0, 0), 1)]
    flat = labels.Drawing(SHAPE, GRID, tuple(parts)).flat(SCHEMA)
    wanted = numpy.zeros(SHAPE, numpy.uint8)
    wanted[1, 2, 3:5], wanted[2, 2, 4] = (1, SCHEMA.names.index("spleen") + 1), 1
    assert numpy.array_equal(flat.voxels, wanted) and flat.counts == {"spleen": 1, "liver": 2, "left kidney": 0}


def test_a_wide_schema_keeps_everything() -> None:
    wide = labels.widen(SCHEMA, ["liver", "my notes", "background"])
    assert wide.names == [*SCHEMA.names, "my notes"]
    flat = labels.flatten(wide, SHAPE, [("my notes", mask(0)), ("liver", mask(1))])
    assert not flat.unknown
    assert numpy.array_equal(labels.to_schema(SCHEMA, flat.voxels, wide.names), numpy.where(flat.voxels == 4, 0, flat.voxels))


def test_label_maps_of_others_are_mapped_by_name() -> None:
    voxels = numpy.array([[[0, 1, 2, 3]]], numpy.uint8)
    assert labels.to_schema(SCHEMA, voxels, ["spleen", "tail", "Left_Kidney"]).tolist() == [[[0, 3, 0, 2]]]


def test_submits_say_which_structures_are_complete() -> None:
    params = labels.submit_params(SCHEMA, ["spleen", "liver"])
    assert params["annotated_labels"] == ["liver", "spleen"]
    assert [entry["idx"] for entry in params["label_info"]] == [1, 2, 3]


def test_schema_takes_colours_and_codes_of_the_server() -> None:
    code = {"scheme": "SCT", "value": "10200004", "meaning": "Liver"}
    entry = {"name": "liver", "value": 1, "color_rgb": [9, 8, 7], "terminology": {"category": {"scheme": "SCT", "value": "123037004", "meaning": "Anatomical Structure"}, "type": code}}
    schema = labels.Schema.of_server({"spleen": 2, "liver": 1, "background": 0}, {"structures": [entry]})
    assert schema.names == ["liver", "spleen"]
    assert schema.structures[0].color == (9, 8, 7)
    parts = schema.structures[0].terminology.split("~")
    assert parts[1:4] == ["SCT^123037004^Anatomical Structure", "SCT^10200004^Liver", "^^"]
    assert len(parts) == 7
    assert schema.structures[1].terminology == ""


# Drafts


def draft(image: str = "case 1", ts: float = 1.0, key: str = "") -> Draft:
    return Draft("http://a:1", image, "", ts, {"id": image}, ["liver"], ["liver"], 3, key)


def flat(plane: int) -> labels.Flat:
    return labels.Flat(mask(plane).astype(numpy.uint8))


def test_overlaps_are_kept_in_drafts(tmp_path: pathlib.Path) -> None:
    segments = [("liver", mask(0, 1)), ("left kidney", mask(1, 2)), ("spleen", mask(1))]
    kept = draft()
    kept.names = SCHEMA.names
    drafts = Drafts(tmp_path)
    drafts.save(kept, labels.flatten(SCHEMA, SHAPE, segments), GRID)
    found = Drafts(tmp_path).find("http://a:1", "case 1")
    assert found is not None
    back = dict(labels.masks(drafts.voxels(found)[0], found.names, drafts.covered(found)))
    assert all(numpy.array_equal(back[name], voxels) for name, voxels in segments)
    drafts.save(draft(ts=2), flat(0), GRID)
    assert not list(tmp_path.glob("*/*.npz"))


def test_drafts_come_back_as_they_were(tmp_path: pathlib.Path) -> None:
    drafts = Drafts(tmp_path)
    drafts.save(draft(), flat(0), GRID)
    drafts.save(draft(ts=2), flat(1), GRID)
    drafts.save(draft("a/b: c", 3), flat(2), GRID)
    again = Drafts(tmp_path)
    assert [found.image for found in again.all("http://a:1")] == ["a/b: c", "case 1"]
    assert again.all("http://b:1") == []
    found = again.find("http://a:1", "case 1")
    assert found is not None
    voxels, grid = again.voxels(found)
    assert numpy.array_equal(voxels > 0, mask(1)) and numpy.allclose(grid, GRID)
    assert len(list(tmp_path.glob("*/*.nrrd"))) == 2, "replaced label maps are removed"


def test_a_crash_while_writing_keeps_the_older_draft(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before the description, or in the middle of the label map: the draft of before is complete."""
    drafts = Drafts(tmp_path)
    drafts.save(draft(), flat(0), GRID)
    with monkeypatch.context() as patch:
        patch.setattr("FewlabelLib.drafts.os.replace", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError):
            drafts.save(draft(ts=2), flat(1), GRID)
    found = Drafts(tmp_path).find("http://a:1", "case 1")
    assert found is not None and found.ts == 1
    assert numpy.array_equal(drafts.voxels(found)[0] > 0, mask(0))


def test_an_older_draft_does_not_come_back_after_its_submit(tmp_path: pathlib.Path) -> None:
    drafts = Drafts(tmp_path)
    drafts.save(draft(ts=5, key="k"), flat(0), GRID)
    drafts.remove("http://a:1", "case 1", "other")
    assert drafts.all("http://a:1"), "another submit's draft stays"
    drafts.remove("http://a:1", "case 1", "k")
    drafts.save(draft(ts=4), flat(1), GRID)
    assert not drafts.all("http://a:1")
    drafts.save(draft(ts=6), flat(1), GRID)
    assert drafts.all("http://a:1")


def test_damaged_drafts_are_left_alone(tmp_path: pathlib.Path) -> None:
    drafts = Drafts(tmp_path)
    drafts.save(draft(), flat(0), GRID)
    described = next(tmp_path.glob("*/draft.json"))
    text = described.read_text()
    for content in ("", "{}", text.replace('"file": "', '"file": "../../'), text[:-20]):
        described.write_text(content)
        assert drafts.all("http://a:1") == []
    assert described.exists()


# Jobs


def pump(jobs: Jobs) -> None:
    while jobs.pending:
        jobs.tick()


def test_results_come_on_the_calling_thread_in_order() -> None:
    timer = Timer()
    jobs, got = Jobs(timer), []
    main = threading.get_ident()

    def done(result: tuple[int, int]) -> None:
        assert threading.get_ident() == main
        got.append(result)

    for number in range(5):
        jobs.start("a", "n", lambda job, number=number: (number, threading.get_ident()), done, lambda fault: None)
    assert timer.running
    pump(jobs)
    assert [number for number, _ in got] == [0, 1, 2, 3, 4]
    assert all(thread != main for _, thread in got)
    assert not timer.running, "no timer runs when nothing is pending"


def test_faults_and_bugs_are_told() -> None:
    jobs, told = Jobs(Timer()), []

    def raises(error: Exception) -> None:
        def work(job: object) -> None:
            raise error

        jobs.start("a", "n", work, lambda _: told.append("done"), lambda fault: told.append(fault.kind))

    raises(Fault("busy", "w", "n"))
    raises(ZeroDivisionError("x"))
    pump(jobs)
    assert told == ["busy", "bug"]


def test_a_stopped_job_says_nothing_and_the_next_one_runs() -> None:
    jobs, told, started = Jobs(Timer()), [], threading.Event()

    def work(job: object) -> None:
        started.set()
        job.cancel.wait(60)

    slow = jobs.start("a", "slow", work, lambda _: told.append("slow"), lambda _: told.append("slow"))
    jobs.start("a", "next", lambda job: None, lambda _: told.append("next"), lambda _: told.append("next"))
    assert started.wait(30)
    jobs.stop(slow)
    pump(jobs)
    assert told == ["next"]
    jobs.close()
    jobs.start("a", "late", lambda job: told.append("work"), lambda _: told.append("late"), lambda _: told.append("late"))
    pump(jobs)
    assert told == ["next"]


# Texts


def test_tags_and_ids_are_taken_by_the_server() -> None:
    assert draft_tag("ann") == "draft-ann_0"
    assert draft_tag("../a b\\c_\n") == "draft-..-a-b-c--_0"
    assert image_id("../x/y\n") == "-x-y-"
    assert image_id("...") == "volume"


def test_figures() -> None:
    assert (dice(0.81234), dice(-0.01, signed=True), dice(None)) == ("0.812", "-0.010", "–")
    assert (duration(3), duration(119), duration(7_300)) == ("3 s", "2 min", "2 h 02 min")


def test_a_verdict_is_read() -> None:
    case = Submitted.of_server({"image": "a", "revision": 2, "author": "ann", "ts": 0, "review": {"verdict": "sent_back", "reviewer": "ben", "comment": "tip"}})
    assert case.row[0] == "a" and case.row[3] == "sent back by ben"
    assert Submitted.of_server({"image": "a", "revision": 2, "review": None}).row[3] == "to be reviewed"


def test_the_lead_is_told_what_counts() -> None:
    lead = Lead(Jobs(Timer()), lambda: object(), lambda: "pct-net-s", lambda: 0.0)
    assert lead.view().round == "There was no round yet."
    lead.statistics = {"images": {"total": 40, "labelled": 12, "leased": 2}, "annotators": [{"author": "ann", "images": 7, "revisions": 9, "seconds_median": 840.0}]}
    lead.settings, lead.new_labels = {"after_labels": 5, "daily_at": "02:00"}, 3
    comparison = {
        "cases": 2, "old_dice": 0.71, "new_dice": 0.74, "difference": 0.03, "left_out": [],
        "structures": [{"name": "mandible", "old_dice": 0.8, "new_dice": None, "difference": None}],
    }  # fmt: skip
    lead.rounds = [{"round": 3, "state": "kept", "reason": "mandible is worse", "training_images": ["a"] * 8, "validation_images": ["b"], "comparison": comparison, "version": 4}]
    lead.models = [{"name": "pct-net-s", "live_version": 3, "rollback_version": 1, "versions": [
        {"version": 4, "state": "candidate", "live": False, "metrics": {"mean_dice": 0.74}}, {"version": 3, "state": "published", "live": True}]}]  # fmt: skip
    view = lead.view()
    assert "12 of 40" in view.labels and "3 since the last round" in view.labels and "after 2 more" in view.labels and "at 02:00" in view.labels
    lead.new_labels = None
    assert "after 5 new labels" in lead.view().labels and "since" not in lead.view().labels
    assert view.round == "Round 3 was not published: mandible is worse"
    assert view.comparison == (("mean", "0.710", "0.740", "+0.030"), ("mandible", "0.800", "–", "–"))
    assert view.annotators == (("ann", "7", "9", "14.0"),)
    assert view.versions[0][:3] == (4, "candidate", "0.740") and view.versions[1][1] == "live"
    assert not view.buttons["publish"].enabled and "Choose" in view.buttons["publish"].reason
    lead.chosen = 3
    assert "live already" in lead.view().buttons["publish"].reason
    lead.chosen = 4
    assert lead.view().buttons["publish"].enabled and lead.view().buttons["keep"].enabled and lead.view().buttons["rollback"].enabled
    lead.rounds.insert(0, {"round": 4, "state": "running", "progress": {"stage": "training", "step": 30, "steps": 120, "eta_s": 200}})
    view = lead.view()
    assert "step 30 of 120" in view.round and "about 4 min left" in view.round and view.share == 0.25
    assert not view.buttons["start"].enabled and view.buttons["stop"].enabled


def test_where_to_look() -> None:
    """The server's places are LPS, Slicer's RAS; a server that tells nothing is no fault."""
    told = {"uncertainty": {"slices": [{"index": 57, "axis": 2, "centre_lps_mm": [10.0, -20.0, 30.0], "entropy": 0.321}]}}
    (place,) = places_of(told)
    assert place.text == "K slice 57, uncertainty 0.32" and place.ras_mm == (-10.0, 20.0, 30.0)
    assert places_of({}) == [] and places_of({"uncertainty": None}) == []
