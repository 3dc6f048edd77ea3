"""Hands records over between the workers of one machine, before they are routed."""
