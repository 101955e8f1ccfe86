"""SNOMED CT codes of structures against the dictionary of pydicom, which is made of the standard (PS3.16)."""

from __future__ import annotations

import re

from pydicom.sr._concepts_dict import concepts

from serving import ROOT

SOURCE = ROOT / "src/imaging/terminology.rs"
# Words that make a concept of a structure its whole region or part: "Kidney structure (body structure)".
FILLERS = re.compile(r"\(.*?\)|\b(?:entire|bone structure of|structure of|structure|region|part)\b")


def plain(meaning: str) -> str:
    return " ".join(FILLERS.sub(" ", meaning.lower()).split())


def known() -> dict[str, set[str]]:
    """Meanings by code."""
    meanings: dict[str, set[str]] = {}
    for codes in concepts["SCT"].values():
        for code, (meaning, _) in codes.items():
            meanings.setdefault(code, set()).update((meaning.lower(), plain(meaning)))
    return meanings


def test_every_code_means_what_the_dictionary_says() -> None:
    ours = set(re.findall(r'sct\(\s*"(\d+)",\s*"([^"]+)"', SOURCE.read_text()))
    dictionary = known()
    wrong = {
        (code, meaning): dictionary[code]
        for code, meaning in ours
        if code in dictionary and meaning.lower() not in dictionary[code]
    }
    assert not wrong
    unknown = {meaning for code, meaning in ours if code not in dictionary}
    assert unknown == {"Intestine"}, "113276009 is in none of the context groups that pydicom has"
    assert len(ours) > 45
