"""The module by which the services of a node take the replies to their RPC calls when they come."""

import subprocess
import sys
from pathlib import Path

MODULE = Path(__file__).parents[2] / "profiles/services/nova/files/usr/lib/stacklab/rpc.py"
# What the module relies on in oslo.messaging's driver, with a wait in which it would not come back.
DRIVER = """\
import queue, time
import oslo_messaging
class timeutils:
    class StopWatch:
        def __init__(self, duration): self.end = time.monotonic() + duration
        def start(self): pass
        def expired(self): return time.monotonic() > self.end
class ReplyWaiters:
    def __init__(self): self._queues = {}
    def get(self, msg_id, timeout): time.sleep(3600)
"""
CALLS = """\
import queue, sys, threading
exec(open(sys.argv[1]).read(), {"__name__": "stacklab_rpc"})
from oslo_messaging import MessagingTimeout
from oslo_messaging._drivers import amqpdriver
waiters = amqpdriver.ReplyWaiters()
waiters._queues["one"] = queue.Queue()
threading.Timer(0.3, waiters._queues["one"].put, ["the reply"]).start()
print(waiters.get("one", 30))
try:
    waiters.get("one", 0.1)
except MessagingTimeout as error:
    print(error)
print(any(type(each).__module__ == "stacklab_rpc" for each in sys.meta_path))
"""


def test_a_reply_is_taken_when_it_comes_and_waited_for_no_longer_than_told(tmp_path: Path) -> None:
    package = tmp_path / "oslo_messaging"
    (package / "_drivers").mkdir(parents=True)
    (package / "__init__.py").write_text("class MessagingTimeout(Exception): pass\n")
    (package / "_drivers" / "__init__.py").write_text("")
    (package / "_drivers" / "amqpdriver.py").write_text(DRIVER)
    told = subprocess.run(
        [sys.executable, "-c", CALLS, str(MODULE)],
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert told.stdout.splitlines() == [
        "the reply",
        "Timed out waiting for a reply to message ID one",
        "False",
    ]
