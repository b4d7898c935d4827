"""Money and CO2e: only from a factor that the user gives, with where it comes from. Without one they are unknown."""

import math
import re
from dataclasses import dataclass
from typing import Any

from forethought.energy.amounts import KWH_J
from forethought.errors import EnergyError


@dataclass(frozen=True)
class Price:
    """What a kilowatt-hour costs.

    Attributes:
        per_kwh: In `currency`.
        currency: As the user wrote it.
    """

    per_kwh: float
    currency: str

    @classmethod
    def read(cls, text: str) -> "Price":
        """Read '0.30 EUR'.

        Example:
            >>> Price.read("0.30 EUR")
            Price(per_kwh=0.3, currency='EUR')
        """
        match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([^\d\s.,-]\S{0,7})\s*", text)
        if match is None:
            raise EnergyError(f"Cannot use {text!r} as a price: expected an amount a kWh and its currency. '0.30 EUR'")
        return cls(float(match[1]), match[2])

    def of(self, energy_j: float) -> float:
        """Give what so many joules cost."""
        return energy_j / KWH_J * self.per_kwh

    def __str__(self) -> str:
        return f"{self.per_kwh:g} {self.currency} a kWh, as you set it"


@dataclass(frozen=True)
class Carbon:
    """How much CO2e a kilowatt-hour is taken to cause.

    Attributes:
        g_per_kwh: Grams.
        source: Whose number it is, for which place and year, as the user wrote it.
        pue: What a data centre draws for each kilowatt-hour that its machines do; 1 at home.
    """

    g_per_kwh: float
    source: str
    pue: float = 1.0

    @classmethod
    def read(cls, text: str, pue: float = 1.0) -> "Carbon":
        """Read '381 Germany 2023, Our World in Data': a number, then its source, with a year.

        Example:
            >>> Carbon.read("381 Germany 2023, Our World in Data").source
            'Germany 2023, Our World in Data'
        """
        match = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,6})?)\s*(?:g(?:/kWh)?)?[\s,:]+(\S.{3,200})", text)
        if match is None or not re.search(r"\b(19|20)\d\d\b", match[2]):
            raise EnergyError(
                f"Cannot use {text!r} as a carbon factor: expected grams a kWh and a source with its year. "
                "'381 Germany 2023, Our World in Data'"
            )
        if not (math.isfinite(pue) and pue >= 1):
            raise EnergyError(f"Cannot use a PUE of {pue}: expected 1 or more. --pue 1.2")
        return cls(float(match[1]), match[2].strip(), pue)

    def grams(self, energy_j: float) -> float:
        """Give the grams of CO2e for so many joules."""
        return energy_j / KWH_J * self.pue * self.g_per_kwh

    def __str__(self) -> str:
        pue = "" if self.pue == 1 else f", PUE {self.pue:g}"
        return f"{self.g_per_kwh:g} g/kWh ({self.source}{pue}), as you set it"


@dataclass(frozen=True)
class Factors:
    """What turns kilowatt-hours into other things; each may be missing."""

    price: Price | None = None
    carbon: Carbon | None = None

    def money_text(self, energy_j: float | None) -> str:
        """Write what energy costs; "unknown" without a number or a price."""
        if energy_j is None or self.price is None:
            return "unknown"
        money = self.price.of(energy_j)
        # Less than a cent is not nothing.
        return f"{f'{money:.2g}' if 0 < abs(money) < 0.01 else f'{money:,.2f}'} {self.price.currency}"

    def carbon_text(self, energy_j: float | None) -> str:
        """Write the CO2e of energy; "unknown" without a number or a factor."""
        if energy_j is None or self.carbon is None:
            return "unknown"
        grams = self.carbon.grams(energy_j)
        return f"{grams / 1000:,.3g} kg" if abs(grams) >= 100 else f"{grams:,.3g} g"

    def to_dict(self, energy_j: float | None) -> dict[str, Any]:
        """Everything, as values that JSON knows; what is unknown is null."""
        known = energy_j is not None
        return {
            "price_per_kwh": self.price.per_kwh if self.price else None,
            "currency": self.price.currency if self.price else None,
            "money": self.price.of(energy_j) if self.price and known and energy_j is not None else None,
            "co2e_g_per_kwh": self.carbon.g_per_kwh if self.carbon else None,
            "co2e_source": self.carbon.source if self.carbon else None,
            "pue": self.carbon.pue if self.carbon else None,
            "co2e_g": self.carbon.grams(energy_j) if self.carbon and known and energy_j is not None else None,
        }


def derived(factors: Factors, energy_j: float) -> list[tuple[str, str]]:
    """Say money and CO2e of so many joules, where the user gave a factor."""
    found = []
    if factors.price is not None:
        found.append(("Money", f"{factors.money_text(energy_j)} at {factors.price}"))
    if factors.carbon is not None:
        found.append(("CO2e", f"{factors.carbon_text(energy_j)} at {factors.carbon}"))
    return found
