"""Arithmetic behind one seam; no `nn.Module` here."""
