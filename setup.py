"""Build the compiled kernels, if there is a compiler; all else about the package is in pyproject.toml.

The result is no Python extension but a plain shared library that `eagerquant_native` opens with `ctypes`.
It is linked with nothing: torch, which is loaded first, lends its OpenMP, so that both share one pool of
threads.
"""

from __future__ import annotations

import platform
import re
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
SOURCES = Path("eagerquant_native/src")

_AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
FLAGS = {
    "portable": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": [*_AVX512, "-mprefer-vector-width=512"],
    "vnni": [*_AVX512, "-mavx512vnni"],
    "amx": [*_AVX512, "-mavx512vnni", "-mamx-tile", "-mamx-int8"],
}
ANY = ("portable", "avx2", "avx512")
# Which levels each file is compiled for.
LEVELS = {
    "levels": ("portable",),
    "fake_quantize": ANY,
    "moving_average": ANY,
    "rescale": ANY,
    "ranges": ANY,
    "weights": ANY,
    "pack": ("portable",),
    "linear": ("vnni", "amx"),
    "linear_static": ("vnni", "amx"),
    "histogram": ANY,
    "histogram_search": ANY,
    "recurrent": ("vnni", "amx"),
    "lstm_static": ("vnni", "amx"),
}
# No contraction to fused multiply-add: kernels promise torch's results bit for bit.
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math",
          "-ffp-contract=off", "-g0", "-Wno-uninitialized", "-Wno-maybe-uninitialized"]  # fmt: skip


def interface() -> str:
    """The number that signatures.py expects, so that it is written once."""
    text = (ROOT / "eagerquant_native/signatures.py").read_text()
    return re.search(r"^INTERFACE = (\d+)$", text, re.MULTILINE)[1]


class BuildKernels(build_ext):
    """Compile each file for its levels, and link the objects into one library."""

    def get_ext_filename(self, fullname: str) -> str:
        """Without Python's version in the name: the library does not depend on it."""
        return fullname.replace(".", "/") + ".so"

    def build_extension(self, ext: Extension) -> None:
        if sys.platform == "win32":
            print("no compiled kernels on Windows: the library runs without them")
            return
        runnable = set(FLAGS) if platform.machine() in ("x86_64", "AMD64") else {"portable"}
        common = [*COMMON, f"-DEQ_INTERFACE={interface()}"]
        if sys.platform == "linux":
            common.append("-fopenmp")
        objects = []
        for name, levels in LEVELS.items():
            for level in [level for level in levels if level in runnable]:
                flags = [*common, *FLAGS[level], f"-DEQ_LEVEL={level}"]
                objects += self.compiler.compile(
                    [str(SOURCES / f"{name}.cpp")], f"{self.build_temp}/{level}", extra_postargs=flags
                )
        self.compiler.link_shared_object(objects, self.get_ext_fullpath(ext.name), target_lang="c++")


class Wheel(bdist_wheel):
    """A wheel for any Python 3 of one platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "eagerquant_native._kernels",
            [str(SOURCES / f"{name}.cpp") for name in LEVELS],
            depends=[str(path) for path in SOURCES.glob("*.h")],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": Wheel},
)
