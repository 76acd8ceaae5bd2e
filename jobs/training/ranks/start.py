"""Start a training on ranks: check that it can be divided, find or start the cluster, form the first generation."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cnn.backends.gpu import device_count
from cnn.checkpoint import ModelCard
from cnn.training.recipe import Recipe
from cnn.training.trainer import Trainer
from jobs.console.output import say
from jobs.console.progress import plural
from jobs.errors import JobError
from jobs.options import TrainOptions
from jobs.training.ranks.cluster import RankCluster, existing_cluster, local_cluster
from jobs.training.ranks.engine import RankEngine
from jobs.training.ranks.generations import Generations
from jobs.training.ranks.messages import RankSettings
from jobs.training.run_folder import TrainingState
from jobs.training.setup import compile_kernels, labelled
from jobs.training.timing import EpochClock
from logpose.common.cpus import available_cpus
from logpose.common.errors import printable
from pipeline.dataset.store import Dataset
from pipeline.loader.micro_batches import MicroBatches


def check_ranks(options: TrainOptions, recipe: Recipe, card: ModelCard) -> None:
    """Raise JobError for a training that cannot be divided among ranks."""
    if card.model_class.startswith("__main__:"):
        raise JobError(
            f"expected a network that the ranks can import, found {card.model_class}, of a notebook or a script; put"
            " the class into a module of its own, or train without ranks"
        )
    if not recipe.is_divided and (options.ranks or 1) > 1:
        part = max(1, recipe.batch_size // (options.ranks or 1))
        raise JobError(
            f"--ranks {options.ranks}: expected batches of several micro-batches, which ranks compute, found batches of"
            f" one; add --set train.micro_batch={part}, whose results do not depend on the number of ranks"
        )


@contextmanager
def rank_engine(
    options: TrainOptions, data: Dataset, card: ModelCard, recipe: Recipe, trainer: Trainer, state: TrainingState,
    last: Path, resumes: bool,
) -> Iterator[tuple[RankEngine, str, str]]:
    """Yield the engine, what results depend on (see `device_text`), and a description of the ranks for the user.

    `trainer` is of the same network, and never trains; `last` is the checkpoint, from which the ranks begin if
    `resumes`. Raises OptionError where there is no cluster, and what a rank raises while it is made.
    """
    division = MicroBatches(data.train.rows, recipe.batch_size, recipe.micro_batch)
    gpus = 0 if options.device == "cpu" or options.scheduler else device_count()
    ranks = min(options.ranks or division.lanes, division.lanes)
    settings = RankSettings(
        training=uuid.uuid4().hex[:8],
        dataset=data.path.resolve(),
        content_hash=data.content_hash,
        recipe=recipe,
        card=card,
        last=last.resolve(),
        init=options.init.resolve() if options.init and not resumes else None,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        workers=options.workers,
        ram_budget=options.ram_budget,
        cache=options.cache,
        ranks_a_host=1 if options.scheduler else ranks,
    )
    if (options.ranks or 0) > ranks:
        count = plural(ranks, "rank")
        say(labelled("note", f"{count} instead of {options.ranks}: a batch has no more micro-batches"))
    if not options.scheduler and not gpus:
        compile_kernels(trainer, data, available_cpus())  # which the ranks then find in the cache
    cluster = existing_cluster(options.scheduler) if options.scheduler else local_cluster(ranks, options.threads, gpus)
    with cluster as connected:
        wanted = options.ranks and ranks
        generations = Generations(connected, settings, division.lanes, wanted, "checkpoint" if resumes else "weights")
        generations.step = state.step
        try:
            generations.form()
            engine = RankEngine(generations, trainer, division, data.val, EpochClock(state.times))
            yield engine, generations.first.device, _describe(generations, connected)
        finally:
            generations.close()


def _describe(generations: Generations, cluster: RankCluster) -> str:
    size = len(generations.members)
    each = "each" if size > 1 else "with"
    where = f"{plural(size, 'rank')} on {cluster.name}, {each} {generations.first.description}"
    return printable(f"{where}; dashboard: {cluster.dashboard}" if cluster.dashboard else where)
