"""Where rows are kept to be fed from: chosen from what is there, unless it is said.

device     all of them in the memory of the accelerator      exact shuffle, no copies at all
ram        all of them in memory, in one piece                exact shuffle
mapped     in the store's files, mapped                       exact shuffle; the system keeps in memory what fits
streamed   read from the store's files, block by block        block shuffle, in a bounded amount of memory
"""

from dataclasses import dataclass

from forethought.errors import DataError

TIERS = ("device", "ram", "mapped", "streamed")
_OFTEN = 2  # shuffled epochs before rows are copied into one piece: that costs about as much as one of them


@dataclass(frozen=True)
class Facts:
    """What the choice depends on.

    Attributes:
        size_bytes: Of all rows, as stored.
        fed_bytes: Of all rows, as the head is given them.
        files: Over how many the rows are spread.
        available: Memory that rows may fill, in bytes; None if that is not known.
        device_free: Free memory of the accelerator, in bytes; None if rows go to none, or it does not say.
        is_on_host: Whether rows go to the memory of this machine rather than to a device.
        shuffled: How many shuffled epochs were fed before.
    """

    size_bytes: int
    fed_bytes: int
    files: int
    available: int | None
    device_free: int | None
    is_on_host: bool
    shuffled: int = 0


def choose(tier: str | None, facts: Facts) -> str:
    """Choose where to keep rows.

    Half of an accelerator's free memory may be filled with rows: training needs the rest. Rows that memory can hold
    stay in the mapped files, whose pages are memory too. They are copied into one piece only if they are spread over
    several files, were shuffled before and before that, and memory could hold them twice over. The rest is streamed.

    Raises:
        DataError: there is no such tier, or rows cannot be kept there.
    """
    if tier is not None and tier not in TIERS:
        raise DataError(f"Cannot feed from tier {tier!r}: expected one of {', '.join(TIERS)}. batches(..., tier='ram')")
    if tier == "device" and facts.is_on_host:
        raise DataError(
            "Cannot keep rows on a device: expected one to feed, got the CPU. "
            "batches(..., tier='device', device='cuda')"
        )
    if tier is not None:
        return tier
    if facts.device_free is not None and facts.fed_bytes <= facts.device_free // 2:
        return "device"
    if facts.available is None or facts.size_bytes <= facts.available:
        is_roomy = facts.available is not None and facts.size_bytes <= facts.available // 2
        return "ram" if facts.files > 1 and facts.shuffled >= _OFTEN and is_roomy else "mapped"
    return "streamed"
