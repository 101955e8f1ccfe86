"""A MONAI Label application whose models live on a Fewlabel server.

    monailabel start_server --app plugin/fewlabel-app --studies STUDIES --conf fewlabel http://127.0.0.1:8000

A site keeps its MONAI Label server, its clients and its studies; proposals, training and the choice of the next image
come from Fewlabel. Options of `--conf`: `fewlabel` (the address), `fewlabel_client` (the name under which it asks,
`monai-label` without), `fewlabel_token` (where that server has a login).
"""

from __future__ import annotations

import logging
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.async_tasks.utils import processes

from lib.remote import Remote, RemoteError
from lib.tasks import RemoteInfer, RemoteStrategy, RemoteTrain

logger = logging.getLogger(__name__)


class FewlabelApp(MONAILabelApp):
    """Takes models, trainers and strategies from the server as they are when it starts."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        conf = conf or {}
        self._remote = Remote(conf.get("fewlabel", "http://127.0.0.1:8000"), conf.get("fewlabel_client", "monai-label"), conf.get("fewlabel_token", ""))
        self._about = self._remote.info()
        super().__init__(
            app_dir, studies, conf, name=f"{self._about['name']} by MONAI Label", description=self._about["description"], version=self._about["version"], labels=self._about["labels"]
        )

    def init_infers(self) -> dict[str, Any]:
        # Strokes and clicks are for clients that are connected to the Fewlabel server itself.
        models = {name: about for name, about in self._about["models"].items() if about["type"] == "segmentation"}
        return {name: RemoteInfer(self._remote, name, about) for name, about in models.items()}

    def init_trainers(self) -> dict[str, Any]:
        return {name: RemoteTrain(self._remote, name, about) for name, about in self._about["trainers"].items()}

    def init_strategies(self) -> dict[str, Any]:
        return {name: RemoteStrategy(self._remote, name, about) for name, about in self._about["strategies"].items()}

    def info(self) -> dict[str, Any]:
        self._end_orphan()
        return super().info()

    def _end_orphan(self) -> None:
        """MONAI Label stops a training by killing the process that watches it; the training itself is ended here, when somebody looks."""
        try:
            if not processes("train") and self._remote.stop_own_training():
                logger.info("the training at the Fewlabel server was stopped")
        except RemoteError as error:
            logger.warning("%s", error)
