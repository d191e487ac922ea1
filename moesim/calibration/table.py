"""What a fit found, for the terminal: rows, misses and noise of every law, coefficients that moved, what has no fit."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from moesim.calibration.fit import Calibration
from moesim.results.table import plain_table


def tables(calibration: Calibration) -> list[Table]:
    """The fitted laws, a line each, coefficients of the training step old and new, and why what has no fit has none."""
    fitted = plain_table("Fitted", first="calibration")
    for heading in ("rows", "median", "p90", "bias", "noise"):
        fitted.add_column(heading, justify="right", no_wrap=True)
    for name, entry in calibration.entries.items():
        miss, noise, rows = entry.get("residual", {}), entry.get("noise", {}), entry.get("rows", {})
        cells = [_percent(miss.get(key)) for key in ("median", "p90", "bias")]
        fitted.add_row(Text(name), f"{rows.get('used', 0):,}", *cells, _percent(next(iter(noise.values()), None)))
    found = [fitted]
    if calibration.moved:
        moved = plain_table("Coefficients of the training step", first="coefficient")
        for heading in ("shipped", "fitted", "change", "known to"):
            moved.add_column(heading, justify="right", no_wrap=True)
        for name, (old, new) in calibration.moved.items():
            moved.add_row(
                Text(name), f"{old:.4g}", f"{new:.4g}", f"{100 * (new / old - 1):+.1f} %", _known(calibration, name)
            )
        found.append(moved)
    if calibration.left_out:
        without = plain_table("Without a fit", first="rows")
        without.add_column("reason", overflow="fold")
        for name, reason in calibration.left_out.items():
            without.add_row(Text(name), Text(reason))
        found.append(without)
    return found


def _known(calibration: Calibration, name: str) -> str:
    """How far a coefficient may still be off, one standard deviation."""
    entry, _, path = name.partition(".")
    error = calibration.entries[entry]["standard_error"][path]
    return f"{100 * error:.0f} %"


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, (int, float)) else "–"
