from __future__ import annotations

from dataclasses import replace

import pytest

from cocoa_tornado.presence.membership import Timing
from cocoa_tornado.presence.redis_cautions import Facts, cautions_of

SINGLE = Facts("noeviction", replicas=0, least_replicas=0, lag_s=10, has_sentinels=False)
WITH_REPLICA = replace(SINGLE, replicas=1, least_replicas=1, lag_s=3)


@pytest.mark.parametrize(
    "facts", [SINGLE, WITH_REPLICA, replace(SINGLE, policy="volatile-lru"), replace(WITH_REPLICA, has_sentinels=True)]
)
def test_these_settings_keep_every_promise(facts: Facts) -> None:
    assert cautions_of(facts, Timing()) == []


@pytest.mark.parametrize(
    ("facts", "remedy"),
    [
        (replace(SINGLE, policy="allkeys-lru"), "set it to noeviction"),
        (replace(SINGLE, replicas=1), "set min-replicas-to-write to 1"),
        (replace(SINGLE, has_sentinels=True), "set min-replicas-to-write to 1"),
        (replace(WITH_REPLICA, lag_s=10), "set min-replicas-max-lag to less than 3.8"),
        (replace(WITH_REPLICA, lag_s=0), "set min-replicas-max-lag to less than 3.8"),
    ],
)
def test_these_settings_are_warned_about_with_a_remedy(facts: Facts, remedy: str) -> None:
    [caution] = cautions_of(facts, Timing())
    assert remedy in caution
