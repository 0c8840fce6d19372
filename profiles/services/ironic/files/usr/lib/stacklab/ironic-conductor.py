"""ironic-conductor, fitted to the lab's machines in two places.

It takes kernel and ramdisk of an instance from the properties of its image. Its ramdisk interface makes the
virtual CD of an image in Glance with `kernel_id` and `ramdisk_id`, as Nova asks for it, but the validation
before that wants both in the machine's `instance_info`, where Nova does not write them.

It asks no machine for Secure Boot. They boot by BIOS; sushy-tools answers 501, and sushy asks again ten
times, 3 s apart, after any answer from 500 on.
"""

import sys
from typing import Any

from ironic.cmd.conductor import main
from ironic.common import exception
from ironic.common.glance_service import service_utils
from ironic.drivers.modules import deploy_utils
from ironic.drivers.modules.redfish.management import RedfishManagement

_get_image_instance_info = deploy_utils.get_image_instance_info


def get_image_instance_info(node: Any) -> dict[str, Any]:
    """What is to be deployed; the properties of an image in Glance are validated afterwards."""
    source = node.instance_info.get("image_source")
    if deploy_utils.is_ramdisk_deploy(node) and service_utils.is_glance_image(source):
        return {"image_source": source}
    found: dict[str, Any] = _get_image_instance_info(node)
    return found


def get_secure_boot_state(_: RedfishManagement, task: Any) -> None:
    """Raises UnsupportedDriverExtension, as for any machine that has no Secure Boot."""
    raise exception.UnsupportedDriverExtension(driver=task.node.driver, extension="get_secure_boot_state")


deploy_utils.get_image_instance_info = get_image_instance_info
RedfishManagement.get_secure_boot_state = get_secure_boot_state
sys.exit(main())
