"""Another machine's libvirt, by its URI: `qemu+ssh://[USER@]HOST[:PORT]/system[?NAME=VALUE&...]`.

The parameters are libvirt's own (https://libvirt.org/uri.html#ssh-transport): `keyfile`, the private key;
`known_hosts`, the file with that machine's key; `socket`, where libvirtd listens there; `command`, what is
run in place of ssh(1).
"""

import urllib.parse
from dataclasses import dataclass

from stacklab.errors import UsageError

SCHEME = "qemu+ssh"
SOCKET = "/var/run/libvirt/libvirt-sock"
# Whatever ssh_config(5) of the user says of that machine.
SSH_OPTIONS = (
    "-oBatchMode=yes",
    "-oControlPersist=no",
    "-oForwardAgent=no",
    "-oForwardX11=no",
    "-oPermitLocalCommand=no",
)
KNOWN = ("keyfile", "known_hosts", "socket", "command")


@dataclass(frozen=True)
class Elsewhere:
    """Where another machine's libvirt is. host: with the user, as ssh(1) takes it; port: 0 for ssh's own."""

    host: str
    port: int = 0
    keyfile: str = ""
    known_hosts: str = ""
    socket: str = SOCKET
    command: str = "ssh"

    def ssh_command(self, *options: str) -> list[str]:
        """The command line of ssh(1) to that machine, which asks nobody anything."""
        port = [f"-p{self.port}"] if self.port else []
        key = [f'-oIdentityFile="{self.keyfile}"', "-oIdentitiesOnly=yes"] if self.keyfile else []
        known = [f'-oUserKnownHostsFile="{self.known_hosts}"'] if self.known_hosts else []
        return [self.command, *SSH_OPTIONS, *port, *key, *known, *options, self.host]


def parse(uri: str) -> Elsewhere:
    """Read a URI. Raises UsageError that shows the part that is not understood."""
    hint = "stacklab up --layer 1 --connect qemu+ssh://root@HOST/system"
    try:
        parts = urllib.parse.urlsplit(uri)
        port = parts.port or 0
    except ValueError as error:
        raise UsageError(f"'{uri}' is no URI: {error}", hint=hint) from error
    if parts.scheme != SCHEME or not parts.hostname:
        raise UsageError(f"'{uri}' is not of the form {SCHEME}://[USER@]HOST[:PORT]/system", hint=hint)
    if parts.netloc.startswith("-") or (parts.username or "").startswith("-"):
        raise UsageError(f"'{uri}': what begins with '-' would be an option of ssh(1)")
    if parts.password is not None:
        raise UsageError("a password in a URI is seen by everybody; ssh(1) has keys", hint=hint)
    if parts.path != "/system":
        raise UsageError(
            f"'{uri}' names '{parts.path or '/'}': machines on networks need the libvirt of the system",
            hint=f"{SCHEME}://{parts.netloc}/system",
        )
    given = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
    if unknown := sorted(set(given).difference(KNOWN)):
        raise UsageError(f"'{uri}': '{unknown[0]}' is not understood; there is: {', '.join(KNOWN)}")
    for name, value in given.items():
        if not value.startswith("/") and (name != "command" or "/" in value):
            raise UsageError(f"'{uri}': {name} has to begin with '/', as commands run in any folder")
    host = parts.netloc.removesuffix(f":{port}") if port else parts.netloc  # an alias keeps its capitals
    return Elsewhere(urllib.parse.unquote(host), port, **given)
