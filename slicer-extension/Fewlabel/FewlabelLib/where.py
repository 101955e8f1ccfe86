"""Where to look in a case: the slices of which the model is least sure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_AXES = "IJK"


@dataclass(frozen=True)
class Place:
    """A slice that deserves a look."""

    text: str
    """For the list: which slice, and how unsure the model is."""
    ras_mm: tuple[float, float, float]
    """Where in the slice most of its uncertainty lies, as MRML has it."""


def places_of(told: dict[str, Any]) -> list[Place]:
    """The places in the answer for a next case, the most uncertain one first; none from a server that does not tell."""
    uncertainty = told.get("uncertainty")
    slices = uncertainty.get("slices") if isinstance(uncertainty, dict) else None
    places = []
    for entry in slices or []:
        x, y, z = (float(part) for part in entry["centre_lps_mm"])
        axis = _AXES[int(entry["axis"])]
        places.append(Place(f"{axis} slice {int(entry['index'])}, uncertainty {float(entry['entropy']):.2f}", (-x, -y, z)))
    return places
