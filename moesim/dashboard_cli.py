"""The verb `dashboard`: the Streamlit app in a process of its own, on this machine alone unless told otherwise."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated

import typer

from moesim import shipped
from moesim.errors import MissingPackageError, UserError, shorten
from moesim.terminal import say

HOME = "127.0.0.1"
PORT = 8501
_PATIENCE = 3.0
Port = Annotated[int, typer.Option(min=1, max=65535, help="port to listen on")]
Address = Annotated[str, typer.Option(help="address to listen on; anything but 127.0.0.1 lets other machines in")]


def dashboard(port: Port = PORT, address: Address = HOME) -> int:
    """Open the dashboard: hardware planning by looking, in the browser. Ctrl-C ends it."""
    if find_spec("streamlit") is None:
        raise MissingPackageError("the dashboard needs streamlit: pip install 'moesim[app]'")
    main = shipped.app().with_name("server.py")
    _require_free(address, port)
    say(f"the dashboard is at http://{_named(address)}:{port} (Ctrl-C ends it)")
    return _run(command(main, port, address))


def command(main: Path, port: int, address: str) -> list[str]:
    """The command line of the process that serves the app."""
    options = {"server.port": port, "server.address": address, "server.headless": "true"}
    settings = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "streamlit", "run", str(main), *settings]


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def _named(address: str) -> str:
    """What a browser on this machine calls the address."""
    if address in ("0.0.0.0", "::"):  # noqa: S104 - what the user asked for, and was warned of
        return HOME
    return f"[{address}]" if ":" in address else address


def _require_free(address: str, port: int) -> None:
    """Raises `UserError` where nothing can listen there."""
    try:
        kind = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(kind[0], socket.SOCK_STREAM) as door:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            door.bind(kind[4])
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        other = port + 1 if port < 65535 else PORT
        raise UserError(f"cannot listen on {shorten(address)} port {port}: {reason}; try --port {other}") from error


def _run(words: list[str]) -> int:
    """Waits for the process; Ctrl-C, or the end of this one, ends it too. Its exit code."""
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:  # noqa: S603 - our own words
        before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        try:
            return _code(process.wait())
        except KeyboardInterrupt:
            return _ended(process)
        finally:
            signal.signal(signal.SIGTERM, before)


def _ended(process: subprocess.Popen[bytes]) -> int:
    """Lets the process end after Ctrl-C, which it has mostly heard too; ends it where it does not."""
    for end in (None, process.terminate, process.kill):
        if end is not None:
            end()
        try:
            process.wait(_PATIENCE)
            break
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            continue
    return 0


def _code(code: int) -> int:
    """0 where it was told to end."""
    return 0 if code in (0, -signal.SIGTERM, -signal.SIGINT) else 1
