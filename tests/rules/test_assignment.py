"""The assignment of a member of a consumer group: by examples, and for a whole group through any sequence of joins,
leaves, fences, batches and commits."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cocoa_tornado.rules.assignment import Assignment, GivenUp
from cocoa_tornado.rules.handoff import Span

from ..profiles import examples

PARTITIONS = range(4)
MEMBERS = range(3)


def reading(starts: dict[int, int]) -> Assignment[int]:
    assignment: Assignment[int] = Assignment()
    assignment.add(starts)
    assignment.begin(starts)
    return assignment


def test_a_partition_that_stays_is_read_on_while_others_come_and_go() -> None:
    assignment = reading({0: 10, 1: 20})
    stays = assignment.ledgers[0]
    span = stays.read(15, pending=1)
    assignment.add({2})
    assert (assignment.partitions, assignment.is_settled, stays.position) == ({0, 1, 2}, False, 15)
    assert assignment.remove({1}) == {1: GivenUp(20, True)}
    assignment.begin({2: 7})
    assert assignment.is_settled
    assert assignment.ledgers[0] is stays
    span.done_one()
    assert assignment.to_commit() == {0: 15}


def test_a_partition_that_is_assigned_again_without_having_been_revoked_is_not_read_again() -> None:
    assignment = reading({0: 10})
    assignment.ledgers[0].read(15, pending=1)
    assignment.add({0, 1})
    assert assignment.unresolved == {1}
    assignment.begin({0: 10, 1: 3})
    assert {partition: ledger.position for partition, ledger in assignment.ledgers.items()} == {0: 15, 1: 3}


def test_a_partition_that_is_revoked_before_its_start_is_known_is_not_read() -> None:
    assignment = reading({0: 10})
    assignment.add({1, 2})
    assert assignment.remove({2}) == {}
    assignment.begin({1: 5, 2: 5})
    assert assignment.ledgers.keys() == {0, 1}


def test_what_is_done_after_a_partition_was_revoked_changes_no_offset_of_its_next_assignment() -> None:
    assignment = reading({0: 10})
    late = assignment.ledgers[0].read(15, pending=1)
    assert assignment.remove({0}) == {0: GivenUp(10, True)}
    assignment.add({0})
    assignment.begin({0: 12})
    late.done_one()
    assert assignment.to_commit() == {}


def test_what_is_done_and_not_known_to_be_committed_is_handed_back() -> None:
    assignment = reading({0: 10, 1: 10})
    for partition in (0, 1):
        assignment.ledgers[partition].read(15, pending=0)
    assert assignment.to_commit() == {0: 15, 1: 15}
    assignment.note_committed(0, 15)
    assert assignment.remove({0, 1}) == {0: GivenUp(15, True), 1: GivenUp(15, False)}
    assignment.note_committed(1, 15)
    assert assignment.ledgers == {}


def test_what_was_done_before_a_partition_was_assigned_again_is_committed_without_a_further_record() -> None:
    assignment: Assignment[int] = Assignment()
    assignment.add({0, 1})
    assignment.begin({0: 15, 1: 7}, behind={0: 10})
    assert assignment.to_commit() == {0: 15}
    assignment.note_committed(0, 15)
    assert (assignment.to_commit(), assignment.is_idle()) == ({}, True)


def test_a_member_may_have_no_partition() -> None:
    assignment: Assignment[int] = Assignment()
    assert not assignment.is_settled
    assignment.add(())
    assert (assignment.is_member, assignment.is_settled) == (True, False)
    assignment.begin({})
    assert assignment.is_settled
    assignment.leave()
    assert (assignment.is_member, assignment.is_settled) == (False, False)


def test_the_lag_counts_only_what_is_read() -> None:
    assignment = reading({0: 10, 1: 10})
    assignment.note_ends({0: 15, 1: 12})
    assignment.note_ends({0: 13})
    assert assignment.lag() == 7
    assignment.restart(1, 4)
    assert assignment.lag() == 5
    assignment.remove({0})
    assert assignment.lag() == 0


class Member:
    """
    :ivar is_fenced: the group has gone on without it, and it has not noticed
    :ivar reads: of each partition, the next offset that it has to read while it keeps the partition
    :ivar open: spans in flight, with what they cover
    :ivar commits: sent and not answered
    """

    def __init__(self) -> None:
        self.assignment: Assignment[int] = Assignment()
        self.is_fenced = False
        self.reads: dict[int, int] = {}
        self.open: list[tuple[Span, int, range]] = []
        self.commits: list[tuple[dict[int, int], bool]] = []

    def give_up(self, partitions: set[int]) -> None:
        given_up = self.assignment.remove(partitions)
        assert given_up.keys() == partitions & self.reads.keys()
        for partition in given_up:
            del self.reads[partition]


class GroupMachine(RuleBasedStateMachine):
    """The coordinator assigns a partition only after its owner has given it up or was fenced. The commits of a fenced
    member are refused. Each partition has as many records as are read."""

    def __init__(self) -> None:
        super().__init__()
        self.members = [Member() for _ in MEMBERS]
        self.owners: dict[int, int | None] = dict.fromkeys(PARTITIONS)
        self.committed = dict.fromkeys(PARTITIONS, 0)
        self.done: dict[int, set[int]] = {partition: set() for partition in PARTITIONS}

    def owned(self, member: int) -> set[int]:
        return {partition for partition, owner in self.owners.items() if owner == member}

    @rule(
        wanted=st.lists(st.sampled_from([*MEMBERS, None]), min_size=len(PARTITIONS), max_size=len(PARTITIONS)),
        waits=st.booleans(),
        commits=st.sampled_from(["no", "lost", "ok"]),
    )
    def reassign(self, wanted: list[int | None], waits: bool, commits: str) -> None:
        """Members join and leave: some partitions move, and the others stay."""
        for number, member in enumerate(self.members):
            moving = {partition for partition in self.owned(number) if wanted[partition] != number}
            if not moving:
                continue
            if waits:
                self.finish(number, moving)
            assert not waits or member.assignment.is_idle(moving)
            if commits != "no":
                self.commit(number)
                self.answer(number, len(member.commits) - 1, is_lost=commits == "lost")
            member.give_up(moving)
            self.owners |= dict.fromkeys(moving)
        for number, member in enumerate(self.members):
            if member.is_fenced:
                continue  # it has to join again
            coming = {
                partition
                for partition, target in enumerate(wanted)
                if target == number and self.owners[partition] is None
            }
            member.assignment.add(coming)
            self.owners |= dict.fromkeys(coming, number)

    @rule(number=st.sampled_from(MEMBERS))
    def fence(self, number: int) -> None:
        """It was silent for too long."""
        self.members[number].is_fenced = True
        self.owners |= dict.fromkeys(self.owned(number))

    @rule(number=st.sampled_from(MEMBERS))
    def notice_the_fence(self, number: int) -> None:
        member = self.members[number]
        if member.is_fenced:
            member.give_up(member.assignment.partitions)
            member.assignment.leave()
            member.is_fenced = False

    @rule()
    def all_begin(self) -> None:
        for number in MEMBERS:
            self.begin(number)

    @rule(number=st.sampled_from(MEMBERS))
    def begin(self, number: int) -> None:
        """The starting points are the committed offsets."""
        member = self.members[number]
        wanted = member.assignment.unresolved or set()
        starts = {partition: self.committed[partition] for partition in wanted}
        member.assignment.begin(starts)
        member.reads |= starts

    @rule(data=st.data(), count=st.integers(1, 5))
    def read_somewhere(self, data: st.DataObject, count: int) -> None:
        readable = [(number, partition) for number in MEMBERS for partition in self.members[number].reads]
        if readable:
            number, partition = data.draw(st.sampled_from(readable))
            self.read(number, partition, count)

    def read(self, number: int, partition: int, count: int) -> None:
        member = self.members[number]
        ledger = member.assignment.ledgers[partition]
        # Neither again nor past a gap: it continues exactly where this assignment of the partition was.
        assert ledger.position == member.reads[partition]
        covered = range(ledger.position, ledger.position + count)
        span = ledger.read(covered.stop, pending=1)
        member.open.append((span, partition, covered))
        member.reads[partition] = covered.stop

    @rule(number=st.sampled_from(MEMBERS), data=st.data())
    def finish_one(self, number: int, data: st.DataObject) -> None:
        member = self.members[number]
        if member.open:
            self.end(member, data.draw(st.integers(0, len(member.open) - 1)))

    def finish(self, number: int, partitions: set[int]) -> None:
        member = self.members[number]
        for at in reversed(range(len(member.open))):
            if member.open[at][1] in partitions:
                self.end(member, at)

    def end(self, member: Member, at: int) -> None:
        span, partition, covered = member.open.pop(at)
        self.done[partition] |= set(covered)
        span.done_one()

    @rule()
    def all_commit(self) -> None:
        for number in MEMBERS:
            self.commit(number)

    @rule(number=st.sampled_from(MEMBERS))
    def commit(self, number: int) -> None:
        """The request reaches the coordinator at once, and the answer comes later."""
        member = self.members[number]
        offsets = member.assignment.to_commit()
        assert offsets.keys() <= member.reads.keys()
        if not member.is_fenced:
            for partition, offset in offsets.items():
                assert self.owners[partition] == number
                assert offset >= self.committed[partition], "a committed offset goes back"
            self.committed |= offsets
        member.commits.append((offsets, member.is_fenced))

    @rule(number=st.sampled_from(MEMBERS), at=st.integers(0, 3), is_lost=st.booleans())
    def answer(self, number: int, at: int, is_lost: bool) -> None:
        member = self.members[number]
        if at < len(member.commits):
            offsets, is_refused = member.commits.pop(at)
            for partition, offset in {} if is_lost or is_refused else offsets.items():
                member.assignment.note_committed(partition, offset)

    @invariant()
    def nothing_is_committed_that_is_not_done(self) -> None:
        for partition, offset in self.committed.items():
            assert self.done[partition] >= set(range(offset))

    @invariant()
    def each_reads_what_it_is_assigned_and_no_other_does(self) -> None:
        for number, member in enumerate(self.members):
            assert member.reads.keys() == member.assignment.ledgers.keys()
            if not member.is_fenced:
                assert member.assignment.partitions == self.owned(number)

    def teardown(self) -> None:
        """However it went, all that anyone has read is done and committed in the end."""
        for number in MEMBERS:
            self.finish(number, set(PARTITIONS))
            self.notice_the_fence(number)
        self.reassign([0] * len(PARTITIONS), True, "ok")
        self.begin(0)
        for partition in PARTITIONS:
            self.read(0, partition, 5 + len(self.done[partition]))
        self.finish(0, set(PARTITIONS))
        self.commit(0)
        assert all(self.done[partition] == set(range(self.committed[partition])) for partition in PARTITIONS)


TestGroup = GroupMachine.TestCase
TestGroup.settings = examples(100, steps=40)
