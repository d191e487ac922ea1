"""Programs that Python runs at the start of every process that finds them as `sitecustomize`."""

from __future__ import annotations

from pathlib import Path

WATCH = """
import os
if os.environ.get("FAULTS_PARENT") == str(os.getppid()):
    from faults.watched import watch
    watch(os.environ["FAULTS_FOLDER"], os.environ["FAULTS_LOG"], 0, 0.0)
"""
HIDE = """
import os
from importlib.machinery import PathFinder
found, hidden = PathFinder.find_spec, os.environ["FAULTS_HIDDEN"].split(",")
def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in hidden else found(name, path, target)
PathFinder.find_spec = find_spec
"""
# Every other look at the time of day is a year early or late. What measures a duration by it is far off, or breaks.
CLOCK = """
import time
now, now_ns, looks = time.time, time.time_ns, [0]
def leap():
    looks[0] += 1
    return (0, -1, 1)[looks[0] % 3] * 366 * 86400
time.time = lambda: now() + leap()
time.time_ns = lambda: now_ns() + leap() * 10**9
"""
# Tells of every address that is looked up or reached, this machine's own left out, and refuses it.
NETWORK = """
import os, sys
def guard(event, arguments):
    if event not in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        return
    place = arguments[0] if isinstance(arguments[0], (str, bytes)) else arguments[1]
    host = place[0] if isinstance(place, tuple) else place
    if str(host).startswith(("127.", "localhost", "::1", "/", "\\0")):
        return
    with open(os.environ["FAULTS_REACHED"], "a") as log:
        log.write(f"{event} {place}\\n")
    raise OSError(101, "Network is unreachable")
sys.addaudithook(guard)
"""


def hook(folder: Path, code: str) -> str:
    """A folder for PYTHONPATH that holds the program."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(code)
    return str(folder)
