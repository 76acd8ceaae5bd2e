"""Ranks in threads, without Dask: all have the same bits after each step, and take nothing of another step."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cnn.checkpoint import load_checkpoint
from jobs.options import TrainOptions
from jobs.recipes.config import resolve
from jobs.training.ranks.messages import Preparation, RankSettings, Span, SpanReport, divide
from jobs.training.ranks.rank import Rank
from jobs.training.setup import build_card
from pipeline.dataset.store import Dataset
from tests.jobs.training.ranks.fakes import Network, RecordingMailbox, generation, network, open_mailbox

STEPS, LANES = 6, 4  # of DIVIDED
OPTIONS = TrainOptions(
    model="plain", set=("model.width=4", "train.micro_batch=2", "model.dropout=0.2"), batch_size=8, epochs=3
)


@pytest.fixture
def settings(dataset: Path, tmp_path: Path) -> RankSettings:
    data, recipe = Dataset.open(dataset), resolve(OPTIONS)
    return RankSettings(
        training="training", dataset=dataset, content_hash=data.content_hash, recipe=recipe,
        card=build_card(data, recipe), last=tmp_path / "last.safetensors", init=None, device="cpu", precision="auto",
        threads=1, workers=1, ram_budget=10**8, cache="none", ranks_a_host=1,
    )  # fmt: skip


class Ranks:
    """Ranks whose mailboxes ask each other, on workers a, b, …"""

    def __init__(self, among: Network, settings: RankSettings, count: int) -> None:
        self.among, self.settings, self.number = among, settings, 0
        self.boxes: list[RecordingMailbox] = [open_mailbox(among, chr(97 + rank)) for rank in range(count)]
        self.ranks = [Rank(settings, box, threads=1) for box in self.boxes]
        self.threads = ThreadPoolExecutor(count + 1)

    def begin(self, members: Sequence[int] | None = None, step: int = 0, source: int | None = 0) -> None:
        """Begin a generation of these ranks, of which `source` has the state."""
        self.members = list(range(len(self.ranks))) if members is None else list(members)
        self.number += 1
        lanes = divide(LANES, len(self.members))
        self.generation = generation(self.number, *(self.boxes[each].address for each in self.members), lanes=lanes)
        begins = "" if step else "weights"
        tasks = [
            self.threads.submit(self.ranks[member].prepare, Preparation(self.generation, rank, step, source, begins))
            for rank, member in enumerate(self.members)
        ]
        assert all(task.result(20) for task in tasks)

    def start(self, epoch: int, start: int = 0) -> list[Future[SpanReport]]:
        spans = (Span(self.generation, rank, epoch, start) for rank in range(len(self.members)))
        return [
            self.threads.submit(self.ranks[member].train, span)
            for member, span in zip(self.members, spans, strict=True)
        ]

    def train(self, epoch: int, start: int = 0) -> list[SpanReport]:
        return [task.result(20) for task in self.start(epoch, start)]

    def end(self) -> None:
        for member in self.members:
            self.among.call(lambda box=self.boxes[member]: box.end(self.number))


@pytest.fixture
def among() -> Iterator[Network]:
    with network() as started:
        yield started


@pytest.fixture
def expected(among: Network, settings: RankSettings) -> list[str]:
    """The digest of one rank's state after each epoch."""
    one = Ranks(among, settings, 1)
    one.begin()
    return [one.train(epoch)[0].digest for epoch in (1, 2, 3)]


def assert_finished(reports: list[SpanReport], epoch: int, digest: str) -> None:
    for report in reports:
        assert (report.error, report.finished, report.step) == (None, True, STEPS * epoch)
        assert report.digest == digest


@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_offer_of_a_generation_has_the_key_of_an_earlier_one(
    among: Network, settings: RankSettings, expected: list[str], count: int
) -> None:
    """Or a rank would take the sums of an earlier step: an epoch's last offers are still there in the next one."""
    ranks = Ranks(among, settings, count)
    ranks.begin()
    for epoch in (1, 2, 3):
        assert_finished(ranks.train(epoch), epoch, expected[epoch - 1])
    among.turn()  # in which the last offers are withdrawn
    for box in ranks.boxes:
        assert len(box.offered) == len(set(box.offered)) >= 2 * 3 * STEPS
        assert [key for key in box._offers if key.split()[0] in ("parts", "sums")] == [f"sums {3 * STEPS - 1}"]


@pytest.mark.parametrize("slow", [0, 1])
@pytest.mark.parametrize("key", ["parts", "sums"])
def test_rank_waits_for_a_slower_one(
    among: Network, settings: RankSettings, expected: list[str], slow: int, key: str
) -> None:
    """In the last step of the second epoch, when the offers of the first one's last step could still be there."""
    ranks = Ranks(among, settings, 2)
    ranks.begin()
    assert_finished(ranks.train(1), 1, expected[0])
    slowed = threading.Event()

    def delay(offered: str) -> None:
        if offered.startswith(key) and ranks.ranks[slow]._trainer.step == 2 * STEPS - 1:
            slowed.wait(0.2)  # never set: time for the other rank to take what is there

    ranks.boxes[slow].before_offer = delay
    assert_finished(ranks.train(2), 2, expected[1])


def test_step_is_computed_again_after_a_rank_was_lost(
    among: Network, settings: RankSettings, expected: list[str]
) -> None:
    """Two go on from the step at which the third is gone; another one joins, and takes their state."""
    ranks = Ranks(among, settings, 3)
    ranks.begin()

    def die(key: str) -> None:
        if key == "sums 3":
            among.dead.add("c")
            raise ConnectionError

    ranks.boxes[2].before_offer = die
    tasks = ranks.start(1)
    assert isinstance(tasks[2].exception(20), ConnectionError)
    ranks.end()
    reports = [task.result(20) for task in tasks[:2]]
    assert [(report.step, report.finished, report.error) for report in reports] == [(3, False, None)] * 2
    ranks.begin((0, 1), step=3, source=None)
    assert_finished(ranks.train(1, start=3), 1, expected[0])
    ranks.end()
    ranks.boxes.append(open_mailbox(among, "d"))
    ranks.ranks.append(Rank(settings, ranks.boxes[3], threads=1))
    ranks.begin((3, 1, 0), step=STEPS, source=1)
    assert [result.step for result in ranks.ranks[3].results_since(0)] == list(range(STEPS))
    assert_finished(ranks.train(2), 2, expected[1])
    assert [result.step for result in ranks.ranks[3].results_since(0)] == list(range(STEPS, 2 * STEPS))


def test_ended_generation_stops_between_steps_and_keeps_its_results(
    among: Network, settings: RankSettings, expected: list[str]
) -> None:
    ranks = Ranks(among, settings, 2)
    ranks.begin()

    def end(key: str) -> None:
        if key == "parts 4":
            ranks.end()

    ranks.boxes[0].before_offer = end
    reports = ranks.train(1)
    assert reports[0].step == 4 and reports[1].step in (3, 4)  # it may not have fetched the last sum
    for rank, report in zip(ranks.ranks, reports, strict=True):
        assert (report.finished, report.digest, report.error) == (False, "", None)
        assert [result.step for result in rank.results_since(1)] == list(range(1, report.step))
    ranks.boxes[0].before_offer = lambda key: None
    ranks.begin(step=4, source=0)
    assert_finished(ranks.train(1, start=4), 1, expected[0])
    assert [result.step for result in ranks.ranks[1].results_since(0)] == list(range(STEPS))


def test_state_is_taken_between_steps(among: Network, settings: RankSettings, expected: list[str]) -> None:
    """While a rank trains and while it waits for work; a later training goes on from it."""
    ranks = Ranks(among, settings, 2)
    ranks.begin()
    asked = threading.Event()
    states: list[Future[Any]] = []

    def ask(key: str) -> None:
        if key == "parts 2":
            states.append(ranks.ranks[1].state(1))
            asked.set()

    ranks.boxes[1].before_offer = ask
    assert_finished(ranks.train(1), 1, expected[0])
    assert asked.is_set()
    state = states[0].result(20)
    assert state.step == 3 and [result.step for result in state.results] == [1, 2]
    idle = ranks.ranks[0].state(STEPS - 1).result(20)
    assert idle.step == STEPS and [result.step for result in idle.results] == [STEPS - 1]
    again = Ranks(among, settings, 1)
    again.begin()
    again.ranks[0]._trainer.load_tensors(state.tensors, 3)
    assert_finished(again.train(1, start=3), 1, expected[0])


def test_checkpoint_is_read_by_one_rank_and_sent_to_the_others(
    among: Network, settings: RankSettings, expected: list[str], alone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that only one needs to see the run folder, and no rank begins with another state."""
    last = alone / "last.safetensors"
    read: list[Path] = []
    monkeypatch.setattr(
        "jobs.training.ranks.rank.load_checkpoint", lambda path: read.append(path) or load_checkpoint(path)
    )
    changed = replace(settings, last=last, recipe=replace(settings.recipe, model=resolve(TrainOptions(
        model="plain", set=("model.width=4",))).model))  # fmt: skip
    changed = replace(changed, card=build_card(Dataset.open(settings.dataset), changed.recipe))
    ranks = Ranks(among, changed, 3)
    number = generation(1, "a", "b", "c", lanes=divide(LANES, 3))
    tasks = [
        ranks.threads.submit(ranks.ranks[rank].prepare, Preparation(number, rank, 12, 0, "checkpoint"))
        for rank in range(3)
    ]
    assert all(task.result(20) for task in tasks) and read == [last]
    for rank in ranks.ranks:
        for name, tensor in rank._trainer.tensors().items():
            assert tensor.tobytes() == load_checkpoint(last).tensors[name].tobytes(), name
