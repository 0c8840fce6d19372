"""Ironic's API, in which a machine does not become its own parent.

Ironic 29.0.5 in Debian takes a machine whose `parent_node` a change does not speak of for its new parent;
from then on it is in no list of machines, nor seen by Nova.
"""

from typing import Any

from ironic.api.controllers.v1 import utils
from ironic.api.wsgi import initialize_wsgi_app

_authorize_node_link_patch = utils.authorize_node_link_patch


def authorize_node_link_patch(node: Any, patch: Any, field: str) -> Any:
    """The machine that the patch links to; of a parent that it does not speak of, none."""
    if field == "parent_node" and not utils.get_patch_values(patch, f"/{field}"):
        return None
    return _authorize_node_link_patch(node, patch, field)


utils.authorize_node_link_patch = authorize_node_link_patch
application = initialize_wsgi_app()
