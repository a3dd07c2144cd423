"""Every error that geodino raises on purpose, and the exit code the command line gives it.

    GeodinoError
    ├── ConfigError      (ValueError)    2  an option, a pipeline file or a config is wrong
    ├── InputError       (ValueError)    3  the AOI or a raster cannot be used as it is
    │   ├── AOIError                        ... the area of interest
    │   └── SourceError                     ... the imagery: bands, CRS, GSD
    │       └── NoImageryError              ... there is none over the AOI
    ├── ReadError        (OSError)       4  imagery is there, but cannot be reached or decoded
    ├── ClusterError     (OSError)       4  workers or their scheduler are gone, or what they compute ends them
    ├── ModelError       (RuntimeError)  6  the model or its weights are refused
    └── OutputError      (OSError)       7  the output folder, the disk
        └── InUseError                      ... another run holds the folder

A run that was told to skip what cannot be read, and had to, ends with exit code 5: done in part.

A message names the thing, the value, and what would do: `overlap 40 px must be a multiple of 16`.
"""

__all__ = [
    "DONE_IN_PART",
    "AOIError",
    "ClusterError",
    "ConfigError",
    "GeodinoError",
    "InUseError",
    "InputError",
    "ModelError",
    "NoImageryError",
    "OutputError",
    "ReadError",
    "SourceError",
]


DONE_IN_PART = 5


class GeodinoError(Exception):
    """Base of all errors that geodino raises on purpose."""

    exit_code = 1


class ConfigError(GeodinoError, ValueError):
    """An option, a pipeline file or a config file is wrong."""

    exit_code = 2


class InputError(GeodinoError, ValueError):
    """The AOI or the imagery cannot be used as it is."""

    exit_code = 3


class AOIError(InputError):
    """The area of interest cannot be used as it is."""


class SourceError(InputError):
    """The imagery cannot be used as it is, or there is none over the AOI."""


class NoImageryError(SourceError):
    """There is no imagery over the AOI, or none with a valid pixel."""


class ReadError(GeodinoError, OSError):
    """Imagery or a catalog exists but cannot be reached or decoded."""

    exit_code = 4


class ClusterError(GeodinoError, OSError):
    """The workers or their scheduler are gone, or what they are to compute ends them."""

    exit_code = 4


class ModelError(GeodinoError, RuntimeError):
    """A model or its weights are refused."""

    exit_code = 6


class OutputError(GeodinoError, OSError):
    """The output folder cannot be written, or belongs to another run."""

    exit_code = 7


class InUseError(OutputError):
    """Another run writes to the output folder."""
