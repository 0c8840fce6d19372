"""Replies to RPC calls are taken when they come, in every service of OpenStack.

oslo.messaging looks for the reply to a call every half second (https://bugs.launchpad.net/bugs/2035113), and
the start of a compute service or the boot of an instance makes a dozen calls, one after the other. Python
runs this at each start, by stacklab_rpc.pth, which writes no bytecode for it; it does nothing before
oslo.messaging is imported.
"""

import sys
from typing import Any

DRIVER = "oslo_messaging._drivers.amqpdriver"
# Seconds from one look to the next: more each time, as a call that takes long may take longer still.
FIRST, GROWTH, LONGEST = 0.002, 1.5, 0.05


class Mender:
    """Finds the driver's module, once, and mends it when it has been loaded."""

    def find_spec(self, name: str, _path: Any = None, _target: Any = None) -> Any:
        """The spec of the driver's module; of others none, so that Python looks on."""
        if name != DRIVER:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(name)
        loader: Any = spec.loader if spec else None
        if loader:
            load = loader.exec_module

            def exec_module(module: Any) -> None:
                load(module)
                mend(module)

            loader.exec_module = exec_module
        return spec


def mend(driver: Any) -> None:
    """Have waiters for replies look for them more often."""

    def get(self: Any, msg_id: str, timeout: float) -> Any:
        watch = driver.timeutils.StopWatch(duration=timeout)
        watch.start()
        pause = FIRST
        while not watch.expired():
            try:
                return self._queues[msg_id].get(block=False)
            except driver.queue.Empty:
                driver.time.sleep(pause)
                pause = min(pause * GROWTH, LONGEST)
        raise driver.oslo_messaging.MessagingTimeout(f"Timed out waiting for a reply to message ID {msg_id}")

    driver.ReplyWaiters.get = get


sys.meta_path.insert(0, Mender())
