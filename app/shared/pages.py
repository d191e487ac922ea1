"""Which pages there are: path -> title and icon; the first is at the root."""

from __future__ import annotations

PAGES = {
    "what-if": ("What if", ":material/tune:"),
    "plan": ("Plan", ":material/search:"),
    "compare": ("Compare", ":material/compare_arrows:"),
    "sweep": ("Sweep", ":material/grid_on:"),
    "traces": ("Traces", ":material/route:"),
    "validation": ("Validation", ":material/fact_check:"),
    "catalog": ("Catalog", ":material/menu_book:"),
}
"""Path -> (title, icon)."""
HOME = next(iter(PAGES))
