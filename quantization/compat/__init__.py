"""For programs written against torch.ao: its module names, served by this library."""

from quantization.compat.alias import Alias as Alias, alias_torch_ao as alias_torch_ao
