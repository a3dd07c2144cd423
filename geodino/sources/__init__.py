"""Where imagery comes from: GeoTIFFs and STAC, as one lazy picture on the run's grid."""

from geodino.sources.mosaic import Mosaic, Pixels
from geodino.sources.open import find_scenes
from geodino.sources.scene import GsdPolicy, Scene
from geodino.sources.search import Found, Search

__all__ = ["Found", "GsdPolicy", "Mosaic", "Pixels", "Scene", "Search", "find_scenes"]
