"""Compiled kernels, where there are any: plain C++ behind `ctypes`, each with a twin in plain torch.

The twins live where the kernels are used. `kernel(name)` gives a function or None; nothing here is needed
for anything but speed, and `EAGERQUANT_NATIVE=0` in the environment turns all of it off.
"""

from __future__ import annotations

from eagerquant_native.library import LEVELS as LEVELS, kernel as kernel, levels as levels
