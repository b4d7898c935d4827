"""Numbers as a person reads them: joules as kWh, Wh or J, seconds as hours and minutes."""

from datetime import UTC, datetime

from forethought.energy.amounts import KWH_J, Amount

NOT_MEASURED = "not measured"
_WH_J = 3600.0


def energy_text(energy_j: float) -> str:
    """Write joules.

    Example:
        >>> energy_text(12.34), energy_text(45_000.0), energy_text(1.5e6), energy_text(-7200.0)
        ('12.3 J', '12.5 Wh', '0.417 kWh', '-2.00 Wh')
    """
    size = abs(energy_j)
    if size < 0.1 * _WH_J:
        return f"{energy_j:.3g} J"
    if size < 0.0995 * KWH_J:
        return f"{energy_j / _WH_J:#.3g} Wh"
    number = energy_j / KWH_J
    return f"{number:,.0f} kWh" if abs(number) >= 99.95 else f"{number:#.3g} kWh"


def amount_text(amount: Amount) -> str:
    """Write joules that may not be known, or not all of them.

    Example:
        >>> amount_text(Amount.unknown("no counter")), amount_text(Amount.of(7200.0, "declared"))
        ('not measured', '2.00 Wh')
    """
    if amount.energy_j is not None:
        return energy_text(amount.energy_j)
    return NOT_MEASURED if amount.known_j is None else f"at least {energy_text(amount.known_j)}"


def label_text(amount: Amount) -> str:
    """Say how joules are known; of a sum, which share each way has."""
    if amount.known_j is None or len(amount.by_label) < 2:
        return amount.label
    weight = sum(map(abs, amount.by_label.values())) or 1.0
    shares = sorted(((abs(joules) / weight, label) for label, joules in amount.by_label.items()), reverse=True)
    return f"{amount.label} ({', '.join(f'{share:.0%} {label}' for share, label in shares)})"


def time_text(time_s: float) -> str:
    """Write seconds.

    Example:
        >>> time_text(0.0123), time_text(59.96), time_text(725), time_text(11_520), time_text(200_000)
        ('0.0123 s', '1 min 0 s', '12 min 5 s', '3 h 12 min', '2 d 8 h')
    """
    if time_s < 0:
        return f"-{time_text(-time_s)}"
    if time_s < 9.95:
        return f"{time_s:.3g} s"
    if time_s < 59.95:
        return f"{time_s:.1f} s"
    for small, large, unit, part in (
        (60, 3600, "min", "s"),
        (3600, 86400, "h", "min"),
        (86400, float("inf"), "d", "h"),
    ):
        step = {"s": 1, "min": 60, "h": 3600}[part]
        rounded = round(time_s / step) * step
        if rounded < large:
            whole, rest = divmod(rounded, small)
            return f"{whole:,.0f} {unit} {rest / step:.0f} {part}"
    raise AssertionError(time_s)


def day_text(moment: float) -> str:
    """Write a moment, seconds since 1970, as a day and a minute of local time."""
    try:
        return datetime.fromtimestamp(moment, UTC).astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError, OSError):  # a date that no calendar has
        return "an unknown day"


def size_text(size_bytes: float) -> str:
    """Write bytes, in powers of 1000.

    Example:
        >>> size_text(999), size_text(1_234_567)
        ('999 bytes', '1.2 MB')
    """
    if size_bytes < 1000:
        return f"{size_bytes:.0f} bytes"
    for unit in ("kB", "MB", "GB", "TB"):
        size_bytes /= 1000
        if size_bytes < 999.95 or unit == "TB":
            break
    return f"{size_bytes:,.1f} {unit}"


def epochs_text(epochs: float) -> str:
    """Write a number of epochs, which need not be whole.

    Example:
        >>> epochs_text(0.25), epochs_text(12.34), epochs_text(500), epochs_text(12_345.6)
        ('0.25', '12.3', '500', '12,346')
    """
    return f"{epochs:,.0f}" if epochs >= 99.95 else f"{epochs:.3g}"


def count_text(number: int, thing: str) -> str:
    """Write a count and what is counted.

    Example:
        >>> count_text(1, "run"), count_text(2000, "row")
        ('1 run', '2,000 rows')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
