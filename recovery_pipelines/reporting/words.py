"""Numbers and dates as people read them, the same in every format."""

from math import isnan

_MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)
_BYTE_UNITS = ("kB", "MB", "GB", "TB", "PB")


def month_name(month: str) -> str:
    """`November 2026` from `2026-11-01`."""
    year, number, *_ = month.split("-")
    return f"{_MONTHS[int(number) - 1]} {year}"


def short_month(month: str) -> str:
    """`Nov 2026`."""
    year, number, *_ = month.split("-")
    return f"{_MONTHS[int(number) - 1][:3]} {year}"


def seconds(value: float | None) -> str:
    """`0.205 s`, `12.3 s`, `3 min 5 s`, `2 h 7 min`, `1 h`; `not measured` without a value."""
    if value is None or isnan(value):
        return "not measured"
    if value < 10:
        return f"{value:.3f} s" if value < 1 else f"{value:.2f} s"
    if round(value, 1) < 60:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 3600:
        return _two(*divmod(whole, 60), "min", "s")
    return _two(*divmod(round(value / 60), 60), "h", "min")


def _two(great: int, small: int, great_unit: str, small_unit: str) -> str:
    return f"{great:,} {great_unit}" + (f" {small} {small_unit}" if small else "")


def size(value: int | None) -> str:
    """`9.2 MB`."""
    if value is None:
        return "not measured"
    if value < 1000:
        return f"{value} bytes"
    scaled, power = float(value), 0
    while scaled >= 999.5 and power < len(_BYTE_UNITS):
        scaled, power = scaled / 1000, power + 1
    return f"{scaled:.3g} {_BYTE_UNITS[power - 1]}"


def percent(value: float) -> str:
    """`88.3 %`, cut and not rounded: a bound must not be more than what is proven."""
    return f"{int(value * 1000) / 10:.1f} %"


def count(number: int, one: str, many: str | None = None) -> str:
    """`1 drill`, `4 drills`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def moment(text: str | None) -> str:
    """`2026-11-23 22:17:08 UTC` from an ISO time in UTC."""
    return f"{text[:10]} {text[11:19]} UTC" if text else "not known"
