"""Who reaches this dashboard, and whom it asks: this machine alone unless told otherwise, and nobody."""

from __future__ import annotations

from functools import cache

import streamlit as st
from streamlit import net_util

from moesim.dashboard_cli import is_loopback
from moesim.terminal import say


def opened_wider() -> bool:
    """Whether other machines may reach this dashboard."""
    return not is_loopback(_address())


@cache
def settle() -> None:
    """Once a process: asks no other host, and says on standard error where other machines are let in."""
    # Streamlit would ask hosts of others for this machine's addresses, to print them where it listens wider and to
    # judge a connection that a page of elsewhere opens; pages of our own server are let in without them.
    net_util.get_external_ip = net_util.get_internal_ip = lambda: None
    if opened_wider():
        where = _address() or "every address"
        say(
            f"warning: on {where} anyone who reaches this machine can use the dashboard; it asks for no password, "
            "scenarios may then name entries of the catalog and uploads, but no files of this machine"
        )


def _address() -> str:
    return str(st.get_option("server.address") or "")
