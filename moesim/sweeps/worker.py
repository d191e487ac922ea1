"""A worker process of the local pool: takes points from a connection, answers each, ends when the connection does."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread

from moesim.sweeps.work import Task, answer


def main(number: int) -> None:
    """Answers what comes in over the file descriptor `number`, in order, after a first empty message."""
    connection = Connection(number)
    inbox: SimpleQueue[Task] = SimpleQueue()
    Thread(target=_listen, args=(connection, inbox), daemon=True).start()
    try:
        connection.send_bytes(b"")
        while True:
            connection.send_bytes(answer(inbox.get()).text.encode())
    except OSError:
        os._exit(0)  # the parent is gone: nobody wants the answer


def _listen(connection: Connection, inbox: SimpleQueue[Task]) -> None:
    """Puts points in the inbox. The connection ends with the parent: then nobody waits for the one at work."""
    try:
        while True:
            inbox.put(Task(*connection.recv()))
    except (EOFError, OSError):
        os._exit(0)
