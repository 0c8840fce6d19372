"""ironic-conductor, that takes kernel and ramdisk of an instance from the properties of its image.

Its ramdisk interface makes the virtual CD of an image in Glance with `kernel_id` and `ramdisk_id`, as Nova
asks for it, but the validation before that wants both in the machine's `instance_info`, where Nova does not
write them.
"""

import sys
from typing import Any

from ironic.cmd.conductor import main
from ironic.common.glance_service import service_utils
from ironic.drivers.modules import deploy_utils

_get_image_instance_info = deploy_utils.get_image_instance_info


def get_image_instance_info(node: Any) -> dict[str, Any]:
    """What is to be deployed; the properties of an image in Glance are validated afterwards."""
    source = node.instance_info.get("image_source")
    if deploy_utils.is_ramdisk_deploy(node) and service_utils.is_glance_image(source):
        return {"image_source": source}
    found: dict[str, Any] = _get_image_instance_info(node)
    return found


deploy_utils.get_image_instance_info = get_image_instance_info
sys.exit(main())
