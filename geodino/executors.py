"""Who computes the bands of a run: this process, or the workers of a Dask cluster. Both do the same to each band."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Protocol

from geodino.bands import Band, BandId
from geodino.cluster.machines import Machines, cluster_config
from geodino.compute import Hand, Work
from geodino.errors import GeodinoError, ModelError, ReadError, SourceError
from geodino.models import Model, load_model
from geodino.models.as_run import ModelAsRun
from geodino.options import RunOptions
from geodino.products import Products
from geodino.progress import Progress, Receipt
from geodino.watch import Watch

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

# What a band may be given up for where that is asked: what it reads and what the model says of it. A disk or a store
# that refuses would refuse the next band as well.
OF_A_BAND = (ReadError, SourceError, ModelError, MemoryError)

Load = Callable[..., Model]
Told = Callable[[Receipt | None], None]
"""Is told of each receipt when it is there, and of None for a band that was given up."""


class Executor(Protocol):
    """Computes what is not done yet of a run.

    Attributes
    ----------
    model
        How the model is run where bands are computed.
    described
        Who computes, for the record: `this process`, `2 workers on 1 host`.
    """

    @property
    def model(self) -> ModelAsRun: ...
    @property
    def described(self) -> str: ...

    def compute(self, progress: Progress, told: Told) -> None:
        """Predict and finish all bands.

        Raises
        ------
        GeodinoError
            A band cannot be computed, and is not to be given up.
        """


@contextmanager
def machines_at_hand(options: RunOptions, watch: Watch) -> Iterator[Client | None]:
    """The machines that a run asks for, found or started: their client, None where it computes in this process.

    Raises
    ------
    ConfigError, ClusterError
        They cannot be reached or started.
    """
    machines = machines_of(options)
    if not machines.asked:
        yield None
        return
    from geodino.cluster.opening import connect  # Late, because distributed takes half a second to import.

    with connect(machines, watch) as client:
        yield client


@contextmanager
def executor(work: Work, model: str, load: Load, watch: Watch, client: Client | None) -> Iterator[Executor]:
    """Whoever the options of a run ask for, ready to compute.

    Parameters
    ----------
    model
        Its name, hub id or folder.
    load
        As `load_model`; where workers are asked for, these load it themselves.
    client
        As `machines_at_hand` gives it.

    Raises
    ------
    GeodinoError
        The model is refused, or the workers are not fit.
    """
    if client is None:
        yield Here(work, model_for(work.products, work.plan.options, model, load))
        return
    from geodino.cluster.run import on_cluster

    with on_cluster(machines_of(work.plan.options), client, work, model, watch) as crew:
        yield crew


def machines_of(options: RunOptions) -> Machines:
    """Where a run is computed; ConfigError where its options do not fit together."""
    workers = None if options.workers is None else str(options.workers)
    machines = Machines.of(workers, options.scheduler, options.config)
    if machines.config is not None:
        cluster_config(machines.config)
    return machines


def model_for(products: Products, options: RunOptions, name: str, load: Load = load_model) -> Model:
    """The model, loaded as the options of a run say."""
    head = "height" if products.maps else "trees"
    return load(
        name,
        precision=options.precision,
        device=options.device,
        batch_size=options.batch_size,
        head=head,
        tta=options.tta,
    )


class Here:
    """This process computes, band after band; chips of the next band are read while the model runs."""

    described = "this process"

    def __init__(self, work: Work, model: Model) -> None:
        self._work, self._model = work, model
        self.model = ModelAsRun.of(model, work.plan.tiling.size)

    def compute(self, progress: Progress, told: Told) -> None:
        """As `Executor` says."""
        todo = deque(progress.to_predict())
        with Hand(self._work, self._model) as hand:
            while todo:
                try:
                    _predict(hand, todo, progress, told)
                except OF_A_BAND as error:
                    if self._work.plan.options.on_band_error == "fail":
                        raise
                    give_up(progress, todo.popleft().id, error)
                    told(None)
            for id_ in list(progress.can_finish()):
                receipt = hand.finish(hand.fetch(progress.receipts[id_]), progress.around(id_), progress.missing(id_))
                progress.note(receipt)
                told(receipt)


def _predict(hand: Hand, todo: deque[Band], progress: Progress, told: Told) -> None:
    with closing(hand.compute(list(todo))) as stream:
        for computed in stream:
            id_ = computed.band.id
            # In lattice order what a band waits for is nearly always there.
            at_once = all(map(progress.settled, id_.before))
            receipt = hand.keep(computed, core=not at_once)
            if at_once and not receipt.final:
                receipt = hand.finish(computed, progress.around(id_) | {id_: receipt}, progress.missing(id_))
            progress.note(receipt)
            todo.popleft()
            told(receipt)


def give_up(progress: Progress, id_: BandId, error: BaseException) -> None:
    """Go on without a band."""
    said = str(error) if isinstance(error, GeodinoError) else f"{type(error).__name__}: {error}"
    progress.give_up(id_, said)
    logger.info("gave up band %s: %s", id_.key, said)
