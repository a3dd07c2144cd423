"""Statistics of polygons on a canopy height map: what grows on each, how sure that is, and what plots say of it."""
