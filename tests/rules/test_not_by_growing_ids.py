"""Why a cursor names an epoch of the mailbox (rules/box.py), and not only a number that always grows.

The rule that is not used: number a message with the time at which it is stored, and with more than the newest number of
the mailbox where the clock stands still or goes back. No number comes twice after a backup is put back, so that nothing
but the number would have to be remembered. Each history below breaks that; the last lines of each hold the rule that is
used against it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cocoa_tornado.rules.box import Box, Epochs, Numbers, Position


@dataclass
class GrowingIds:
    """One device's box, by the rule that is not used: the messages in it, by their numbers."""

    messages: dict[int, str] = field(default_factory=dict)

    def store(self, text: str, now: int) -> int:
        number = max([now, *(newest + 1 for newest in self.messages)])
        self.messages[number] = text
        return number

    def after(self, cursor: int) -> list[str]:
        return [text for number, text in self.messages.items() if number > cursor]

    def copy(self) -> GrowingIds:
        return GrowingIds(dict(self.messages))


def stored(box: Box, messages: int = 1) -> Box:
    for _ in range(messages):
        box = box.with_lane("normal", box.normal.append(box.epochs))
    return box


def named(epoch: int, epochs: tuple[int, ...], box: Box) -> Box:
    """The box once another epoch of its mailbox has begun."""
    return box._replace(epochs=Epochs(epoch, epochs))


def test_two_copies_that_go_on_give_different_numbers_and_a_cursor_of_one_skips_messages_of_the_other() -> None:
    here = GrowingIds()
    here.store("both", now=100)
    there = here.copy()
    here.store("only here", now=200)
    cursor = there.store("only there", now=300)  # a device is sent "both" and "only there"
    assert cursor not in here.messages
    assert here.after(cursor) == []  # and loses "only here", which it has never had

    ours = stored(named(7, (0, 7), stored(Box())))
    theirs = Position(2, epoch=8)  # of an epoch that this copy has not begun: it stands for the beginning
    assert ours.find(theirs) is not None
    assert ours.start(theirs).normal == 0


def test_a_clock_that_is_set_back_with_the_machine_gives_numbers_below_a_cursor_of_before() -> None:
    """A virtual machine is put back to its snapshot, its clock with it, until it is set again."""
    mailbox = GrowingIds()
    mailbox.store("first", now=100)
    backup = mailbox.copy()
    cursor = mailbox.store("lost with the snapshot", now=500)
    backup.store("stored after it", now=150)
    assert backup.after(cursor) == []  # "stored after it" is skipped

    box = stored(named(7, (0, 7), stored(Box())))
    assert box.find(Position(2, epoch=0)) == Numbers(1, 0)
    assert box.start(Position(2, epoch=0)).normal == 1  # the second message comes


def test_numbers_with_holes_do_not_tell_how_many_messages_were_missed() -> None:
    """Contract section 7: ``{"type":"gap","missed":N}``, from two numbers and without reading the deleted messages."""
    mailbox = GrowingIds()
    cursor = mailbox.store("read", now=100)
    gone = [mailbox.store("expired", now) for now in (200, 900)]
    assert gone[-1] - cursor != len(gone)

    lane = stored(Box(), 3).normal.lose(3)
    assert lane.missed(1, lane.gone) == len(gone)
