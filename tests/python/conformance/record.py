"""Records the shapes of the real MONAI Label server's answers: `record.py PYTHON`.

PYTHON is a Python 3.9 to 3.12 of a throw-away environment that holds monailabel 0.8.5 with its dependencies, for
example made by `pip install monailabel==0.8.5 'pydicom<3' 'fastapi<0.116'`. It is no part of the tests' environments: it is some
gigabytes large. The answers go to `recording.json`, with the versions that gave them.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from conformance.shape import RECORDING, REQUESTS, Player  # noqa: E402
from serving import make_studies  # noqa: E402

PORT = 18_754
START_S = 120
PACKAGES = ("monailabel", "monai", "torch", "fastapi", "starlette", "uvicorn", "python-multipart", "pydantic")


def wait_for(url: str, server: subprocess.Popen) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            urllib.request.urlopen(f"{url}/info/", timeout=30).read()
            return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.5)


def record(python: str) -> None:
    probe = f"import importlib.metadata as m, json; print(json.dumps({{p: m.version(p) for p in {PACKAGES}}}))"
    versions = json.loads(subprocess.run([python, "-c", probe], check=True, capture_output=True).stdout)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        studies = make_studies(folder)
        # The server writes its log beside the application.
        app = folder / "app"
        app.mkdir()
        (app / "main.py").write_text((HERE / "stub_app" / "main.py").read_text())
        (app / "logs").mkdir()
        (app / "logs" / "app.log").write_text("first line\n")
        settings = {
            "MONAI_LABEL_APP_DIR": str(app), "MONAI_LABEL_STUDIES": str(studies),
            # As `monailabel start_server` sets it; without it no task ever starts.
            "PYTHONPATH": str(app),
            "MONAI_LABEL_SESSION_PATH": str(folder / "sessions"), "MONAI_LABEL_DATASTORE_AUTO_RELOAD": "false", "MONAI_LABEL_AUTO_UPDATE_SCORING": "false",
        }
        command = [python, "-m", "uvicorn", "monailabel.app:app", "--port", str(PORT)]
        with open(folder / "server.log", "w") as log:
            server = subprocess.Popen(command, env=os.environ | settings, cwd=folder, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{PORT}"
            wait_for(url, server)
            player = Player(url, folder)
            answers = {}
            for request in json.loads(REQUESTS.read_text()):
                answers[request["name"]] = player.play(request)
                print(request["name"], answers[request["name"]]["status"])
        except BaseException:
            print((folder / "server.log").read_text()[-5000:])
            raise
        finally:
            server.terminate()
            server.wait(60)
    RECORDING.write_text(json.dumps({"source": "the real server with stub_app", "versions": versions, "answers": answers}, indent=1) + "\n")


if __name__ == "__main__":
    record(sys.argv[1])
