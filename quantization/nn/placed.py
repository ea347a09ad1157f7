"""A converted layer knows the name it has in its model, and puts it into the errors it raises."""

from __future__ import annotations

from typing import Any

from torch import nn

from quantization.engine.swap import PLACE
from quantization.errors import name_place


class Placed(nn.Module):
    """Says which module of the model got a wrong input; TorchScript, which compiles `forward`, skips this."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module; an error raised inside names its place."""
        try:
            return super().__call__(*args, **kwargs)
        except Exception as error:
            place = self.__dict__.get(PLACE)
            if place:
                name_place(error, place, "running")
            raise
