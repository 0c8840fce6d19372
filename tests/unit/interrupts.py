"""Ctrl-C, as a test presses it."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c_once(begun: threading.Event | threading.Barrier) -> Iterator[None]:
    """Interrupt the main thread once, when what it is to be interrupted in has begun."""
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        begun.wait(30)
        time.sleep(0.2)  # the main thread goes on to wait
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        thread.join()
