"""A topic that is recreated at any time, and a gateway that reads it, loses its membership, and crashes at any time."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cocoa_tornado.brokers.kafka_positions import History, Start
from cocoa_tornado.rules.records import Record
from cocoa_tornado.rules.topic_log import Committed, Log, Recent, Repeats

from ..profiles import examples

TOPIC = "results"


class RecreatedTopic(RuleBasedStateMachine):
    """One partition, whose records are numbered through all logs, and the shell around the rules in a few lines."""

    @initialize()
    def begin(self) -> None:
        self.log_number = 0
        self.records: list[int] = []  # of the present log
        self.produced = 0
        self.committed: Committed | None = None
        self.stored: set[tuple[str, int]] = set()  # what a mailbox knows: source and offset
        self.got: set[int] = set()
        self.missable: set[int] = set()  # a fresh group begins behind them
        self.start()

    def start(self) -> None:
        self.history, self.recent, self.repeats = History(), Recent(), Repeats(set())
        self.got_here: list[int] = []
        self.join()

    def topic_id(self) -> str:
        return f"id{self.log_number}"

    def join(self) -> None:
        plan = self.history.plan([0], {0: self.committed}, self.topic_id())
        if plan.start is Start.NOWHERE:
            self.position = plan.starts[0]
        elif plan.start is Start.BEGINNING:
            self.position = 0
        else:
            self.position = len(self.records)
            self.missable |= set(self.records)
        if self.history.enter(plan.log):
            self.repeats, self.recent = self.recent.repeats(), Recent()
        if plan.rest or plan.uncommitted:
            self.committed = Committed(self.position, plan.log)

    def log(self) -> Log:
        assert self.history.log is not None
        return self.history.log

    @rule(count=st.integers(1, 5))
    def produce(self, count: int) -> None:
        self.records += range(self.produced, self.produced + count)
        self.produced += count

    @rule()
    def recreate(self) -> None:
        self.log_number += 1
        self.records, self.committed = [], None

    @rule()
    def look(self) -> None:
        self.recent.ask()
        if self.log().id == self.topic_id():
            self.recent.confirm()
        else:
            self.leave()
            self.join()

    @rule()
    def read(self) -> None:
        """All that is there, of whatever log; a position beyond the end makes it look first."""
        if self.position > len(self.records):
            self.look()
        offsets = list(range(self.position, len(self.records)))
        records = [Record("doll", b"%d" % self.records[offset], 0) for offset in offsets]
        sources = [(self.log().source(TOPIC, 0), len(offsets))] if offsets else []
        self.position = max(self.position, len(self.records))
        if self.repeats:
            records, offsets, sources = self.repeats.without(records, offsets, sources)
        self.recent.note(offsets, records, sources)
        for record, offset in zip(records, offsets, strict=True):
            number, key = int(record.payload), (sources[0][0], offset)
            if self.log().id == self.topic_id():  # until it is noticed, timestamps tell the two apart
                assert key not in self.stored or number in self.got, "a mailbox takes it for another record"
            self.stored.add(key)
            self.got.add(number)
            self.got_here.append(number)

    @rule()
    def commit(self) -> None:
        """With the mark of the log that the gateway takes it for, be it another one by now."""
        self.committed = Committed(self.position, self.log())

    def leave(self) -> None:
        is_committed = self.committed == Committed(self.position, self.log())
        self.history.give_up(0, self.position, is_committed=is_committed)

    @rule()
    def lose_the_membership(self) -> None:
        self.leave()
        self.join()

    @precondition(lambda self: self.committed is not None)  # without any it is a fresh group
    @rule()
    def crash(self) -> None:
        self.start()

    @invariant()
    def nothing_is_handed_over_twice_by_one_process(self) -> None:
        assert len(self.got_here) == len(set(self.got_here))

    def teardown(self) -> None:
        """Nothing is missing in the end."""
        if hasattr(self, "records"):
            self.look()
            self.read()
            assert set(self.records) <= self.got | self.missable


RecreatedTopic.TestCase.settings = examples(50)
TestRecreatedTopic = RecreatedTopic.TestCase
