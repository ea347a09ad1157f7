"""The columns of the layer matrix: what is done to the weight, whatever kind of layer it is."""
