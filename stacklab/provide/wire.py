"""A network card of a virtual machine elsewhere, plugged into a bridge here.

Run as `python3 -I wire.py SOCKET BRIDGE TAP LOG` in the lab's network. QEMU's end comes in over SOCKET
(`-netdev socket`: each Ethernet frame behind its length, four bytes in network order), this end is the device
TAP on the bridge. It takes one connection and ends with it, and the socket's file and the device are gone.
What goes wrong is written to LOG.
"""

import contextlib
import fcntl
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

TUNSETIFF = 0x400454CA  # linux/if_tun.h
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_BYTES = 65535
ACCEPT_SECONDS = 300.0
TAP_SECONDS = 5.0
BUFFER_BYTES = 1 << 20


def open_tap(name: str, bridge: str) -> int:
    """A new TAP device on a bridge; it goes when it is closed."""
    tap = os.open("/dev/net/tun", os.O_RDWR)
    request = struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI)
    deadline = time.monotonic() + TAP_SECONDS
    while True:
        try:
            fcntl.ioctl(tap, TUNSETIFF, request)
            break
        except OSError:  # the one before us is about to end
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
    subprocess.run(["ip", "link", "set", name, "master", bridge, "up"], check=True)
    return tap


def to_machine(tap: int, connection: socket.socket) -> None:
    """Send the machine what the bridge has for it, until the connection ends."""
    with contextlib.suppress(OSError):
        while frame := os.read(tap, FRAME_BYTES):
            connection.sendall(struct.pack("!I", len(frame)) + frame)


def from_machine(tap: int, connection: socket.socket) -> None:
    """Give the bridge what the machine sends, until the connection ends."""
    with connection.makefile("rb", buffering=BUFFER_BYTES) as stream:
        while len(head := stream.read(4)) == 4:
            frame = stream.read(struct.unpack("!I", head)[0])
            with contextlib.suppress(OSError):  # one that no bridge takes is lost, as on any wire
                os.write(tap, frame)


def main() -> None:
    """Wait for the machine, and carry its frames until it ends."""
    file, bridge, name = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    os.dup2(os.open(sys.argv[4], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    tap = open_tap(name, bridge)
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(ACCEPT_SECONDS)
        server.bind(str(file))
        file.chmod(0o600)
        server.listen(1)
        try:
            connection, _ = server.accept()
            connection.settimeout(None)
            threading.Thread(target=to_machine, args=(tap, connection), daemon=True).start()
            from_machine(tap, connection)
        finally:
            file.unlink()


if __name__ == "__main__":
    main()
