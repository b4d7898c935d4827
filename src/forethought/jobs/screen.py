"""What was done, for people."""

from forethought.jobs.extracting import Extracted


def stored(extracted: Extracted) -> str:
    """Say what is stored now, and what was left out."""
    facts = extracted.facts
    forms = ", ".join(f"{'x'.join(map(str, one['shape'])) or '1'} {one['dtype']}" for one in facts["features"])
    energy = "energy not measured" if facts["energy_j"] is None else f"{facts['energy_j']:,.0f} J"
    lines = [
        f"features: {forms} a sample",
        f"{facts['rows']:,} rows in {facts['store']}: {facts['rows_computed']:,} computed, "
        f"{facts['rows_reused']:,} reused, {facts['size_bytes'] / 1e6:,.1f} MB, {facts['time_s']:.1f} s, {energy}",
        *([skipped(extracted)] if extracted.bad else []),
    ]
    return "\n".join(lines)


def skipped(extracted: Extracted) -> str:
    """Name what could not be read."""
    bad = extracted.bad
    named = [f"  {path}: {reason}" for path, reason in bad[:10]]
    more = [f"  and {len(bad) - 10:,} more (--json names all)"] if len(bad) > 10 else []
    return "\n".join([f"{len(bad):,} left out, which cannot be read:", *named, *more])
