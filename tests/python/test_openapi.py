"""`schemathesis` on the interface description: no 500, and no answer that is not described."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
import requests

from serving import STUDIES, Server, running

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "response_headers_conformance", "negative_data_rejection", "unsupported_method",
)
NAMES = """
[parameters]
"path.model" = "pct-net-s"
"path.strategy" = "first"
"path.method" = "dice"
"query.image" = "{image}"
"query.label" = "{image}"
"query.tag" = "final"
"query.run_sync" = false
"""
"""Values with which the requests get further than to a 404."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("openapi")) as server:
        yield server


@pytest.mark.parametrize("names", ["any", "known"])
def test_description(site: Server, tmp_path: pathlib.Path, names: str) -> None:
    config = tmp_path / "schemathesis.toml"
    config.write_text(NAMES.format(image=STUDIES[0]) if names == "known" else "")
    command = [
        sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run", f"{site.url}/openapi.json",
        "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing", "--max-examples", "12", "--seed", "1",
        "--generation-database", "none", "--request-timeout", "60", "--no-color",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-20_000:] + run.stderr[-2_000:]
    assert re.search(r"[1-9]\d* generated, [1-9]\d* passed", run.stdout), run.stdout[-2_000:]
    requests.delete(f"{site.url}/train/", timeout=60)
    assert requests.get(f"{site.url}/readyz", timeout=60).status_code == 200, "the server lives on"
