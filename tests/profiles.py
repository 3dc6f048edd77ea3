"""How many examples hypothesis tries: ``ci`` the same ones each time, ``lowest`` a quarter of them, ``nightly`` ten
times as many and different ones.

``ci`` is the default; ``pytest --hypothesis-profile=nightly`` selects another one. CI runs ``ci`` on the newest
libraries, so its run on the lowest ones only shows that the tests pass there at all. An example that fails at night
becomes an explicit ``@example`` of its test, so that CI tries it from then on.
"""

from __future__ import annotations

from typing import Final

from hypothesis import HealthCheck, settings

_CI_EXAMPLES: Final = 100
_LOWEST_EXAMPLES: Final = 25
_NIGHTLY_FACTOR: Final = 10


def register() -> None:
    """Register them, and load ``ci``. Call it before a test module is imported."""
    # How long an example takes depends on the machine: no profile judges it.
    common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
    settings.register_profile("ci", common, max_examples=_CI_EXAMPLES, derandomize=True)
    settings.register_profile("lowest", common, max_examples=_LOWEST_EXAMPLES, derandomize=True)
    settings.register_profile("nightly", common, max_examples=_CI_EXAMPLES * _NIGHTLY_FACTOR, derandomize=False)
    settings.load_profile("ci")


def examples(count: int, *, steps: int = 50) -> settings:
    """Settings for ``count`` examples in CI, scaled by the profile; a state machine runs ``steps`` steps in each."""
    return settings(max_examples=max(1, count * settings().max_examples // _CI_EXAMPLES), stateful_step_count=steps)
