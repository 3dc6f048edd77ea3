"""How hard hypothesis tries: ``ci`` takes the same examples each time, ``nightly`` ten times as many and other ones.

``ci`` is the default; ``pytest --hypothesis-profile=nightly`` takes the other one. An example that fails at night
becomes an explicit ``@example`` of its test, so that it is tried in CI from then on.
"""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings

_CI_EXAMPLES: Final = 100
_NIGHTLY_FACTOR: Final = 10


def register() -> None:
    """Register both, and load ``ci``. Before a test module is imported."""
    # How long an example takes depends on the machine: neither profile judges it.
    both = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.register_profile("ci", both, max_examples=_CI_EXAMPLES, derandomize=True)
    settings.register_profile("nightly", both, max_examples=_CI_EXAMPLES * _NIGHTLY_FACTOR, derandomize=False)
    settings.load_profile("ci")


def examples(count: int, *, steps: int = 50) -> settings:
    """So many examples in CI, of so many steps where a state machine is run; ten times as many at night."""
    return settings(max_examples=count * settings().max_examples // _CI_EXAMPLES, stateful_step_count=steps)
