#!/usr/bin/python3
"""Put a rendered tree on the disk of a node that is off, so that its services start with it at the boot.

usage: settle.py ROOT TREE        ROOT: where the disk is mounted. TREE: a tar.gz in base64

It does what the modules config_tree and converge would do, and restart services for, when the node runs. As
they do, it needs Ansible's Python.
"""

import base64
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "library"))
import config_tree
import converge

STEPS = "var/lib/stacklab/steps.json"


def main(root: Path, tree: Path) -> None:
    """Write what differs, and remember of each unit that has run that it starts with that."""
    entries = config_tree.read_archive(base64.b64decode(tree.read_text(), validate=True))
    config_tree.ConfigTree("stacklab", root).apply(entries)
    stamps = converge.Stamps(root / converge.STAMPS.relative_to("/"))
    for step in converge.read_steps(json.loads((root / STEPS).read_text())):
        stamps.renew(step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
