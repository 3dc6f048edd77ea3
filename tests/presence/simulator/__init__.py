"""Presence over Redis in simulated time: the rules (``Slots``, ``Membership``) and the Lua scripts of several servers,
under delayed, lost and repeated messages, pauses, cut links, drifting clocks, and a Redis that restarts and forgets.

``python -m tests.presence.simulator --seeds 100000 --from 0`` runs random walks, ``--fault`` with a planted fault.
What is simulated beside the rules and the scripts is what an adapter does with their actions, see ``server.py``.
"""
