from __future__ import annotations

from cocoa_tornado.presence.actions import Send
from cocoa_tornado.presence.redis_backlog import Backlog
from cocoa_tornado.relay.messages import Answer
from cocoa_tornado.rules.claims import Claim

A1, B1, C1 = Claim("a", 1), Claim("b", 1), Claim("c", 1)


def gone(challenger: Claim) -> Send:
    return Send(challenger.server, Answer("doll", A1, challenger, "gone"))


def test_a_release_that_is_repeated_while_it_is_under_way_keeps_the_messages_of_both() -> None:
    backlog = Backlog()
    backlog.release("doll", A1)
    assert backlog.send_after(gone(B1))
    first = backlog.take()
    backlog.release("doll", A1)
    assert backlog.send_after(gone(C1))
    backlog.give_back(first)
    again = backlog.take()
    assert len(again.releases) == 1
    assert backlog.released(again.releases) == [gone(B1), gone(C1)]
    assert not backlog.send_after(gone(B1)), "nothing is under way"


def test_what_was_not_answered_goes_before_what_has_come_since() -> None:
    backlog = Backlog()
    backlog.release("doll", A1)
    first = backlog.take()
    backlog.release("bear", B1)
    backlog.give_back(first)
    assert [releasing.claim for releasing in backlog.take().releases] == [A1, B1]
