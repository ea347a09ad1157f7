"""The rows of the layer matrix: what kind of layer it is, whatever is done to its weight."""
