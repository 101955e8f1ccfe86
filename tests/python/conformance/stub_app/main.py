"""An application of the real MONAI Label server with the smallest model that answers: every voxel above 60 HU."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from monai.inferers import SimpleInferer
from monai.transforms import EnsureChannelFirstd, LoadImaged
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.tasks.infer.basic_infer import BasicInferTask
from monailabel.tasks.scoring.dice import Dice

MODEL = "pct-net-s"
LABELS = {"liver": 1, "spleen": 2}


class Threshold(BasicInferTask):
    def __init__(self) -> None:
        config = {"largest_cc": False}
        super().__init__(None, None, "segmentation", LABELS, 3, "threshold", config=config)

    def is_valid(self) -> bool:
        return True

    def pre_transforms(self, data: Any = None) -> list[Any]:
        return [LoadImaged(keys="image"), EnsureChannelFirstd(keys="image")]

    def inferer(self, data: Any = None) -> Any:
        return SimpleInferer()

    def run_inferer(self, data: dict[str, Any], convert_to_batch: bool = True, device: str = "cpu") -> dict[str, Any]:
        data["pred"] = (torch.as_tensor(data["image"])[0] > 60).to(torch.uint8)
        return data

    def post_transforms(self, data: Any = None) -> list[Any]:
        return []


class Sleep(TrainTask):
    def __init__(self) -> None:
        super().__init__("learns nothing")

    def config(self) -> dict[str, Any]:
        return {"name": "train_01", "pretrained": True, "device": ["cpu"], "max_epochs": 50, "val_split": 0.2}

    def __call__(self, request: dict[str, Any], datastore: Any) -> dict[str, Any]:
        for _ in range(600):
            logging.getLogger(__name__).info("step")
            time.sleep(0.1)
        return {}


class Stub(MONAILabelApp):
    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        super().__init__(app_dir, studies, conf, name="stub", description="stub", version="0")

    def init_infers(self) -> dict[str, Any]:
        return {MODEL: Threshold()}

    def init_trainers(self) -> dict[str, Any]:
        return {MODEL: Sleep()}

    def init_strategies(self) -> dict[str, Any]:
        return {"random": Random(), "first": First(), "last": First()}

    def init_scoring_methods(self) -> dict[str, Any]:
        return {"dice": Dice()}
