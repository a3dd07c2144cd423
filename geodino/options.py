"""What a user may say of a run beside its pipeline and AOI."""

from __future__ import annotations

from dataclasses import dataclass

from geodino.settings import Harmonise


@dataclass(frozen=True)
class RunOptions:
    """What a user may say beside the pipeline and the AOI; every default is the command line's.

    Attributes
    ----------
    sources
        Paths, URLs or names of configs; `auto` is the embedded sample where the AOI lies on it, else the default
        config.
    model
        A name, hub id or folder; None: the pipeline's.
    collections
        Of a STAC API or catalog; empty: the source config's.
    datetime
        As in STAC: `2020`, `2020-05/2021-06`, `../2022-01-01`.
    max_cloud
        Percent; None: the pipeline's.
    order, harmonise
        As the pipeline's keys; None: the pipeline's.
    strict_acquisition
        Leave out scenes beyond the limits of sun and view that the model was validated for.
    bands
        Red, green and blue by name or 1-based index; empty: found by name or colour.
    aoi_layer, aoi_crs, repair_aoi
        Which layer, which CRS where the AOI declares none, and whether crossing outlines may be repaired.
    crs
        CRS of the run's grid; None: the imagery's own where it keeps metres true, else UTM.
    force_gsd
        Run on imagery far from the GSD the model was trained at.
    radiometry
        A profile by name; None: the pipeline's.
    precision, device, batch_size
        How the model runs; they move numbers by less than the stated precision.
    tta
        How many views of each window are averaged (test-time augmentation): 1, 2, 4 or 8, at as many times the time.
    threads
        Reader threads; None: what suits the imagery and the device (`reader_threads`).
    on_read_error
        `fail`, or `skip`: what cannot be read after all attempts becomes nodata, and is counted and named.
    on_band_error
        `fail`, or `skip`: windows that end whatever computes them, or that cannot be computed, become nodata, and are
        counted and named.
    verify
        Whether the bytes of each block that is read are held against their checksum, where they have one.
    overwrite
        Replace an earlier run's files.
    resume
        Go on with an unfinished run in the folder, where it is the same one.
    workers, scheduler, config
        Who computes: so many processes of this machine (`auto`: as many as it can hold), a Dask scheduler by address
        or file, or a cluster by a YAML file; None of them: this process.
    """

    sources: tuple[str, ...] = ("auto",)
    model: str | None = None
    collections: tuple[str, ...] = ()
    datetime: str | None = None
    max_cloud: float | None = None
    order: str | None = None
    harmonise: Harmonise | None = None
    strict_acquisition: bool = False
    bands: tuple[str, ...] = ()
    aoi_layer: str | None = None
    aoi_crs: str | None = None
    repair_aoi: bool = False
    crs: str | None = None
    force_gsd: bool = False
    radiometry: str | None = None
    precision: str = "auto"
    device: str = "auto"
    batch_size: int | None = None
    tta: int = 1
    threads: int | None = None
    on_read_error: str = "fail"
    on_band_error: str = "fail"
    verify: bool = False
    overwrite: bool = False
    resume: bool = True
    workers: int | str | None = None
    scheduler: str | None = None
    config: str | None = None
