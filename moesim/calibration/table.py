"""What a fit found, for the terminal: rows used, misses and noise of every law, and what has no fit."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from moesim.calibration.fit import Calibration
from moesim.results.table import plain_table


def tables(calibration: Calibration) -> list[Table]:
    """The fitted laws, a line each, and the reasons for those without a fit."""
    fitted = plain_table("Fitted", first="calibration")
    for heading in ("rows", "median", "p90", "bias", "noise"):
        fitted.add_column(heading, justify="right", no_wrap=True)
    for name, entry in calibration.entries.items():
        miss, noise, rows = entry.get("residual", {}), entry.get("noise", {}), entry.get("rows", {})
        cells = [_percent(miss.get(key)) for key in ("median", "p90", "bias")]
        fitted.add_row(Text(name), f"{rows.get('used', 0):,}", *cells, _percent(next(iter(noise.values()), None)))
    found = [fitted]
    if calibration.left_out:
        without = plain_table("Without a fit", first="rows")
        without.add_column("reason", overflow="fold")
        for name, reason in calibration.left_out.items():
            without.add_row(Text(name), Text(reason))
        found.append(without)
    return found


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else "–"
