"""The extension on the real MRML scene of slicer-core: its own tests for Slicer, and an edit by Slicer's own editing code."""

from __future__ import annotations

import pathlib
import sys
import unittest
from typing import Any

HERE = pathlib.Path(__file__).parent


def test_tests_for_slicer(application: Any) -> None:
    """What `slicer_add_python_unittest` runs in 3D Slicer."""
    sys.path.insert(0, str(HERE.parents[1] / "slicer-extension" / "Fewlabel" / "Testing" / "Python"))
    import FewlabelLayersTest

    suite = unittest.defaultTestLoader.loadTestsFromModule(FewlabelLayersTest)
    assert suite.countTestCases() > 0
    result = unittest.TextTestRunner(verbosity=2).run(suite)
    assert result.wasSuccessful(), [text for _, text in result.failures + result.errors]
