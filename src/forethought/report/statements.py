"""What the store saved, in words: a headline, a table of both units, and what must be said beside it."""

from forethought.report.factors import Factors, derived
from forethought.report.grid import Grid
from forethought.report.summary import SavingLine, Summary
from forethought.report.units import energy_text, epochs_text, time_text
from forethought.savings import Balance, Estimate
from forethought.savings.saving import NEVER, PERHAPS_NEVER, UNCLEAR, estimate_text, saved_text, two

_ENOUGH_S = 60.0


def best_of(summary: Summary) -> SavingLine | None:
    """Give the saving that a report begins with: of those of this machine, those with epochs, the largest."""

    def place(line: SavingLine) -> tuple[bool, bool, float]:
        return line.machine == summary.here, line.saving.fed_rows > 0, line.saving.seconds.saved.value

    lines = sorted(summary.savings, key=place)
    return lines[-1] if lines else None


def main_balance(line: SavingLine) -> tuple[Balance, str]:
    """Give the balance that counts most, and its unit: net joules, else gross ones, else seconds."""
    joules = line.saving.net_joules or line.saving.joules
    return (joules, "J") if joules is not None else (line.saving.seconds, "s")


def headline(summary: Summary) -> str:
    """The one sentence that a report is read for."""
    line = best_of(summary)
    if line is None:
        return "No saving was measured yet." if summary.spans else "Nothing was recorded yet."
    balance, unit = main_balance(line)
    if not line.saving.fed_rows:
        return _sentence(f"no epoch was recorded yet: {pays_back(balance)}")
    return _sentence(saved_text(balance, unit))


def subline(summary: Summary) -> str:
    """What the headline is of: how it is known, and the other unit."""
    line = best_of(summary)
    if line is None:
        return ""
    saving = line.saving
    epochs = f"{epochs_text(saving.epochs)} epochs" if saving.fed_rows else ""
    if line.machine != summary.here:
        epochs = f"measured elsewhere, on machine {line.machine[:8]}{epochs and '; '}{epochs}"
    if saving.joules is None:
        return _sentence("; ".join(filter(None, [epochs, saving.why_no_joules])))
    known = f"{saving.comparison.label}, {'above an idle machine' if saving.net_joules else 'gross'}"
    time = saved_text(saving.seconds, "s") if saving.fed_rows else ""
    return _sentence(
        "; ".join(filter(None, [f"{epochs}, {known}" if epochs else known, f"in time: {time}" if time else ""]))
    )


def next_step(summary: Summary) -> str:
    """What to do where no saving was measured."""
    if summary.spans:
        return "Not measured yet: ft.measure_saving(train, head) compares real steps without the store and with it."
    return "Nothing to compare yet: ft.extract(model, dataset, store) fills a store, and writes what it cost beside it."


def saving_grid(line: SavingLine, here: str = "") -> Grid:
    """Both units side by side: what an epoch costs both ways, what was spent, when it pays back, what was saved."""
    saving = line.saving
    sides: list[tuple[str, Balance | None, str]] = [("time", saving.seconds, "s")]
    sides += [("energy, net of idle", saving.net_joules, "J")] if saving.net_joules is not None else []
    sides += [("energy, gross", saving.joules, "J")]
    unknown = "not measured" if saving.comparison.joules is None else "not known"
    columns = [[unknown] * 6 if balance is None else _column(line, balance, unit) for _, balance, unit in sides]
    epochs = f"saved in {epochs_text(saving.epochs)} epochs" if saving.fed_rows else "saved so far"
    names = ("an epoch without the store", "an epoch with it", "the store cost so far", "it pays back after epochs",
             epochs, "as a share")  # fmt: skip
    rows = tuple((name, *cells) for name, *cells in zip(names, *columns, strict=True))
    rows = rows if saving.fed_rows else rows[:-1]
    title = f"{line.model or 'A model'}, table {line.table[:12]}"
    title += f", measured elsewhere, on machine {line.machine[:8]}" if here and line.machine != here else ""
    return Grid(title, ("", *(name for name, _, _ in sides)), frozenset(range(1, len(sides) + 1)), rows)


def _column(line: SavingLine, balance: Balance, unit: str) -> list[str]:
    write = energy_text if unit == "J" else time_text
    return [
        write(balance.uncached_epoch.value),
        write(balance.cached_epoch.value),
        write(balance.spent),
        _epochs(balance),
        _saved_cell(balance, unit) if line.saving.fed_rows else "no epoch recorded",
        _percent(balance.share) if balance.share is not None and balance.verdict == "saved" else "none",
    ]


def _saved_cell(balance: Balance, unit: str) -> str:
    """What was saved, in a row that says so already."""
    text = saved_text(balance, unit)
    return text if balance.verdict == UNCLEAR or balance.saved.value < 0 else text.replace(" saved", "", 1)


def saving_lines(line: SavingLine, factors: Factors) -> list[str]:
    """What must be said beside the numbers: each a line."""
    saving, comparison = line.saving, line.saving.comparison
    short = "" if comparison.time_s >= _ENOUGH_S else ": short, so the intervals are wide"
    facts = comparison.facts
    how = ", ".join(
        f"{name} {facts[key]}"
        for name, key in (("head", "head"), ("batches of", "batch_size"), ("on", "device"))
        if facts.get(key)
    )
    lines = [
        f"Measured on {comparison.blocks} blocks of real steps of each kind, in turn, {time_text(comparison.time_s)} "
        f"in all{short}; an epoch is {comparison.epoch_rows:,} rows{f'; {how}' if how else ''}. Intervals are 95 %."
    ]
    lines += [_sentence(line.elsewhere)] if line.elsewhere else []
    if saving.seconds.break_even is None:
        lines.append(_sentence(never(saving.seconds)))
    if saving.joules is None:
        return [*lines, _sentence(f"energy saved is not known: {saving.why_no_joules}")]
    best, _ = main_balance(line)
    if comparison.bound is not None:
        low, high = comparison.bound
        error = f"{high:.0%}" if low == -high else f"{low:.0%} to {high:+.0%}"
        lines.append(
            f"Energy is {comparison.label}: what was saved also allows for {error} of error of the instrument, which "
            "cancels in the share and in when it pays back."
        )
    if saving.net_joules is not None:
        lines.append("The gross number counts only if the machine is off, or busy otherwise, when it has less to do.")
    if saving.fed_rows and best.verdict != UNCLEAR:
        lines += [f"{word} saved: {text}." for word, text in derived(factors, best.saved.value)]
    return lines


def never(balance: Balance) -> str:
    """Say that a store never pays back, if that is sure."""
    return NEVER if balance.epoch.is_clear else PERHAPS_NEVER


def pays_back(balance: Balance) -> str:
    """Say when a store pays back."""
    found = balance.break_even
    if found is None:
        return never(balance)
    if found.high == float("inf"):
        return f"it pays back after about {two(found.value)} epochs, at least {two(found.low)}, or perhaps never"
    return f"it pays back after {estimate_text(found, word=' epochs')}"


def _epochs(balance: Balance) -> str:
    found = balance.break_even
    if found is None:
        return "never" if balance.epoch.is_clear else "cannot be told"
    if found.high == float("inf"):
        return f"{two(found.value)}, at least {two(found.low)}, perhaps never"
    return estimate_text(found)


def _percent(share: Estimate) -> str:
    for digits in (0, 1):
        value, low, high = (f"{end:.{digits}%}" for end in (share.value, share.low, share.high))
        if low != high:
            return f"{value} ({low} to {high})"
    return value


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""
