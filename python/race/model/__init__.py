"""The architecture: irreps, edges, convolution, layers, heads."""
