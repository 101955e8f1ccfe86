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


class Compiled:
    """What NVRTC makes of a source for an architecture: its complaint, or None, and the PTX."""

    def __init__(self, nvrtc, source, architecture):
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
            failed = nvrtc.nvrtcCompileProgram(program, len(options), encoded) != 0
            self.complaint = self.text(nvrtc, program, "ProgramLog") if failed else None
            self.ptx = "" if failed else self.text(nvrtc, program, "PTX")
        finally:
            nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    @staticmethod
    def text(nvrtc, program, what):
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(max(size.value, 1))
        getattr(nvrtc, f"nvrtcGet{what}")(program, text)
        return text.value.decode(errors="replace")


def test_there_are_sources():
    assert len(SOURCES) > 50


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("path", SOURCES.values(), ids=SOURCES.keys())
def test_compiles(nvrtc, path, architecture):
    complaint = Compiled(nvrtc, path.read_bytes(), architecture).complaint
    assert complaint is None, f"{path.read_text().splitlines()[0]}\n{complaint}"


# Kernels that multiply on tensor units, by name and the format that they round factors to.
TENSOR = {
    (name.split("_kernel_")[0], re.search(r"_s_([a-z0-9]+)_", name)[1]): path
    for name, path in SOURCES.items()
    if name.startswith("tiled_")
}
FORMATS = {"f16": "f32.f32", "bf16": "f32.bf16.bf16.f32", "tf32": "f32.tf32.tf32.f32"}


def test_every_product_has_every_format():
    kernels = {kernel for kernel, _ in TENSOR}
    assert len(kernels) == 5, kernels
    assert set(TENSOR) == {(kernel, format_) for kernel in kernels for format_ in FORMATS}


@pytest.mark.parametrize("kernel", TENSOR, ids=map("-".join, TENSOR))
def test_holds_instructions_of_tensor_units(nvrtc, kernel):
    compiled = Compiled(nvrtc, TENSOR[kernel].read_bytes(), "compute_80")
    assert compiled.complaint is None, compiled.complaint
    instruction = rf"wmma\.mma\.sync\.aligned\.\w+\.\w+\.m16n16k\d+\.{FORMATS[kernel[1]]}"
    assert re.search(instruction, compiled.ptx)
