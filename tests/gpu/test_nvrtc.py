"""The CUDA sources of the GPU kernels, compiled for real architectures by NVIDIA's NVRTC; no GPU is needed.

FEWLABEL_CUDA_SOURCES names the folder that the test `gpu_cuda_sources` of the crate has filled.
"""

import ctypes
import importlib.util
import os
import re
from pathlib import Path

import pytest

FOLDER = os.environ.get("FEWLABEL_CUDA_SOURCES")


def kernels():
    """For each kernel and number format, the longest of its sources; the others differ in sizes alone."""
    longest = {}
    for path in sorted(Path(FOLDER).glob("*.cu")) if FOLDER else []:
        source = path.read_text()
        name = re.search(r"__global__ void\s+(?:__launch_bounds__\(\d+\)\s*)?(\w+)", source)[1]
        if len(source) > len(longest.get(name, (path, ""))[1]):
            longest[name] = (path, source)
    return {name: path for name, (path, _) in longest.items()}


SOURCES = kernels()
ARCHITECTURES = ["sm_80", "sm_90a"]


def toolkit():
    """The folder with NVIDIA's `include` and `lib`, or None."""
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations if spec else []:
        for folder in Path(place).glob("cu*"):
            if list((folder / "lib").glob("libnvrtc.so.*")):
                return folder
    return None


TOOLKIT = toolkit()
pytestmark = pytest.mark.skipif(
    TOOLKIT is None or not FOLDER, reason="NVRTC or the kernels' CUDA sources are missing"
)


@pytest.fixture(scope="session")
def nvrtc():
    return ctypes.CDLL(str(next((TOOLKIT / "lib").glob("libnvrtc.so.*"))))


def compile_source(nvrtc, source, architecture):
    """The compiler's complaint, or None."""
    program = ctypes.c_void_p()
    create = nvrtc.nvrtcCreateProgram
    create.argtypes = [
        ctypes.POINTER(ctypes.c_void_p),
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    assert create(ctypes.byref(program), source, None, 0, None, None) == 0
    include = TOOLKIT / "include"
    options = [
        f"--gpu-architecture={architecture}",
        f"--include-path={include}",
        f"--include-path={include / 'cccl'}",
    ]
    encoded = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), encoded) == 0:
            return None
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        return log.value.decode(errors="replace")
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def test_there_are_sources():
    assert len(SOURCES) > 50


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES.keys())
def test_compiles(nvrtc, path, architecture):
    complaint = compile_source(nvrtc, path.read_bytes(), architecture)
    assert complaint is None, f"{path.read_text().splitlines()[0]}\n{complaint}"
