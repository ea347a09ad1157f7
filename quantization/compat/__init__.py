"""For programs and files written with torch.ao: its module names, and its pickles, served by this library."""

from quantization.compat.alias import Alias as Alias, alias_torch_ao as alias_torch_ao
from quantization.compat.pickles import load as load
