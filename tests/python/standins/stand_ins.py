"""Stands in for packages that MONAI Label imports when it starts and the tests do without: torch, MONAI and others, gigabytes large.

The application of `plugin/` uses nothing of them. What is installed is never replaced: the finder comes last.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import types
from typing import Any

STOOD_IN = (
    "PIL", "cachetools", "dicomweb_client", "girder_client", "itk", "monai", "nrrd", "psutil", "pydantic_settings", "pydicom", "pydicom_seg", "schedule", "timeloop", "torch",
)  # fmt: skip
"""What may be missing."""


class _Anything(types.ModuleType):
    """A module, class or value that stands for whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # As a class to derive from, a value, and a decorator.
        made = type(
            name, (), {"__init__": lambda self, *args, **options: None, "__call__": lambda self, *args, **options: args[0] if args else self, "__class_getitem__": classmethod(lambda cls, item: cls)}
        )
        setattr(self, name, made)
        return made


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Offers modules of packages that are not installed."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.split(".")[0] not in STOOD_IN:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> Any:
        return _Anything(spec.name)

    def exec_module(self, module: Any) -> None:
        pass
