"""The lead's tab against the built server: rounds by the real worker, their progress and verdicts, and every decision about a version."""

from __future__ import annotations

import json
import pathlib
import re
import time
from collections.abc import Callable

import requests
from PySide6 import QtWidgets

from extension import Killable, killable
from extension_panel import Module, texts
from serving import STUDIES, save, torso

MORE = ("case_4", "case_5", "case_6")
STEPS = 10
LOOK_S = 0.3


def label_everything(server: Killable) -> None:
    """Three more studies, and all labels but the last: `ann` and `ben` in turns."""
    for seed, name in enumerate((*STUDIES, *MORE)):
        scan, label = torso(seed)
        for path, voxels in ((server.folder / "scan.nii.gz", scan), (server.folder / "label.nii.gz", label)):
            save(path, voxels)
        if name in MORE:
            with open(server.folder / "scan.nii.gz", "rb") as file:
                answer = requests.put(f"{server.url}/datastore/image", params={"image": name}, files={"file": file}, timeout=60)
            assert answer.status_code == 200, answer.text
        if name != MORE[-1]:
            params = {"client_id": ("ann", "ben")[seed % 2], "seconds_open": 300.0}
            with open(server.folder / "label.nii.gz", "rb") as file:
                files = {"label": file, "params": (None, json.dumps(params))}
                answer = requests.put(f"{server.url}/datastore/label", params={"image": name}, files=files, timeout=60)
            assert answer.status_code == 200, answer.text


def live(server: Killable) -> int:
    return requests.get(f"{server.url}/models/", timeout=60).json()["models"][0]["live_version"]


def comparison_agrees(module: Module, server: Killable) -> None:
    """The table is what the server says about the same validation cases."""
    found = requests.get(f"{server.url}/rounds/2", timeout=60).json()
    comparison = found["comparison"]
    shown = texts(module.ui.comparisonTable)
    assert [row[0] for row in shown] == ["mean", "liver", "spleen"]
    for row, told in zip(shown, [comparison, *comparison["structures"]], strict=True):
        for text, key in zip(row[1:], ("old_dice", "new_dice", "difference"), strict=True):
            assert text == "–" if told[key] is None else abs(float(text) - told[key]) < 0.0006, (row, told)
    assert f"on the same {comparison['cases']} validation cases" in module.ui.comparedLabel.text
    assert "version 3 (new)" in module.ui.comparedLabel.text


def row_of(table: QtWidgets.QTableWidget, version: int) -> int:
    return [row[0] for row in texts(table)].index(str(version))


def test_rounds(module: Module, tmp_path: pathlib.Path) -> None:
    ui = module.ui
    with killable(tmp_path, "--round-steps", str(STEPS), "--round-after-labels", "20") as server:
        label_everything(server)
        module.widget.logic.settings["auto_propose"] = False
        module.connect(server.url)
        ui.tabs.setCurrentIndex(2)
        module.wait()
        seen: list[str] = []

        def saw(words: str) -> Callable[[], bool]:
            """Whether the line about the round reads so, or did before."""

            def look() -> bool:
                look_again()
                if not seen or seen[-1] != ui.roundLabel.text:
                    seen.append(ui.roundLabel.text)
                return any(re.search(words, text) for text in seen)

            return look

        def look_again() -> bool:
            """More often than the panel does by itself."""
            lead = module.widget.logic.lead
            if time.monotonic() - lead._asked_s > LOOK_S:
                lead.refresh()
            return True

        module.wait(saw("There was no round yet"))
        assert ui.labelsLabel.text.startswith("5 of 6 cases labelled, 0 being worked on."), ui.labelsLabel.text
        new = requests.get(f"{server.url}/rounds/", timeout=60).json().get("new_labels")
        assert ("after 15 more" if new == 5 else "after 20 new labels") in ui.labelsLabel.text
        assert sorted(texts(ui.annotatorsTable)) == [["ann", "3", "3", "5.0"], ["ben", "2", "2", "5.0"]]
        assert texts(ui.structuresTable) == [["liver", "5"], ["spleen", "5"]]
        assert [row[:2] for row in texts(ui.versionsTable)] == [["1", "live"]]

        module.click("startRoundButton")
        assert not ui.startRoundButton.enabled and "under way" in ui.startRoundButton.toolTip
        module.wait(saw(rf"Round 1 trains, step \d+ of {STEPS}, about .+ left\. Proposals and submits go on"))
        assert ui.roundProgress.visible
        module.picture("training", tmp_path)
        module.wait(saw("Round 1 was published"))
        module.click("leadRefreshButton")
        assert [row[:2] for row in texts(ui.versionsTable)] == [["2", "live"], ["1", "published"]]
        assert new is None or "0 since the last round" in ui.labelsLabel.text
        # Round 2: the live version is pinned, and the server is killed while it trains. It goes on after the start.
        module.click("pinButton")
        assert "is pinned" in ui.messageLabel.text and not ui.pinButton.enabled
        module.click("startRoundButton")
        module.wait(saw("Round 2 trains, step"))
        server.kill()
        module.wait(lambda: look_again() and "Nothing answers" in ui.messageLabel.text)
        assert "Round 2" in ui.roundLabel.text, "what was known is still shown"
        server.start()
        module.wait(saw("Round 2 was not published"))
        module.wait(lambda: "Nothing answers" not in ui.messageLabel.text)
        assert [row[:2] for row in texts(ui.versionsTable)] == [["3", "candidate"], ["2", "live"], ["1", "published"]]
        comparison_agrees(module, server)

        # The lead decides otherwise, and goes back.
        for name in ("publishButton", "keepButton"):
            assert "Choose a version" in getattr(ui, name).toolTip
        module.click("unpinButton")
        ui.versionsTable.selectRow(row_of(ui.versionsTable, 3))
        module.click("keepButton")
        assert "Version 3 is set aside" in ui.messageLabel.text and texts(ui.versionsTable)[0][:2] == ["3", "kept"] and live(server) == 2
        assert "Only candidates" in ui.keepButton.toolTip
        module.click("publishButton")
        assert "Version 3 is live" in ui.messageLabel.text and live(server) == 3
        module.click("rollBackButton")
        assert "Version 2 is live again" in ui.messageLabel.text and live(server) == 2
        module.picture("decided", tmp_path)

        # Proposals by the version that is chosen, whichever is live.
        ui.tabs.setCurrentIndex(0)
        module.click("nextButton")
        assert module.session.case and module.session.case.image == MORE[-1], module.said()
        versions = [ui.versionBox.itemText(index) for index in range(ui.versionBox.count)]
        assert versions[0] == "the live one" and [int(text.split()[0]) for text in versions[1:]] == [3, 2, 1]
        for version, made in ((1, 1), (3, 3), (0, 2)):
            ui.versionBox.setCurrentIndex(next(index for index, text in enumerate(versions) if text.split()[0] == (str(version) if version else "the")))
            module.click("proposeButton")
            assert f"version {made}" in module.said(), module.said()
