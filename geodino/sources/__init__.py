"""Where imagery comes from: GeoTIFFs and STAC, as one lazy picture on the run's grid."""

from geodino.sources.mosaic import Mosaic, Pixels
from geodino.sources.scene import GsdPolicy, Scene

__all__ = ["GsdPolicy", "Mosaic", "Pixels", "Scene"]
