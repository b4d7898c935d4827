"""Promises that are not kept yet, by test. Each is a strict xfail: whoever keeps one takes its line out here."""

KNOWN_LIMITS: dict[str, str] = {}
