"""Python runs this when it starts with this folder in PYTHONPATH: in the server of MONAI Label, and in the processes that it starts."""

import sys

from stand_ins import StandIns

sys.meta_path.append(StandIns())
