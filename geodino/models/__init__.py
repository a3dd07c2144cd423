"""The models: a catalog of every DINOv3 backbone, strict loading of their weights, and canopy height from them."""
