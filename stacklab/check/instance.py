"""The scenario `instance`: what a base compute cloud is there for, from the upload of an image to the last
trace gone.
"""

import secrets

from stacklab.check.cloud import Cloud
from stacklab.check.result import Checking, Unmet
from stacklab.check.trial import Trial, play
from stacklab.model.service import Service

UPLOAD_BYTES = 1024 * 1024


def check_instance(cloud: Cloud, service: Service, name: str) -> Checking:
    """An image can be uploaded, and an instance on the provider network boots, answers SSH and goes."""
    trial = _Instance(cloud)
    steps = [
        ("a compute node has room", trial.find_room),
        ("an image is uploaded", trial.upload_image),
        ("a key pair is accepted", trial.import_key),
        ("an instance becomes active", trial.boot),
        ("it gets its address", trial.find_address),
        ("its console says that it is up", trial.read_console),
        ("SSH with its key works", trial.log_in),
        ("metadata answer from inside", trial.read_metadata),
    ]
    yield from play(trial, steps, service, name)


class _Instance(Trial):
    def upload_image(self) -> None:
        """An image comes back as it was sent."""
        sent = secrets.token_bytes(UPLOAD_BYTES)
        image = self.api.image.create_image(
            self.name, data=sent, disk_format="raw", container_format="bare", validate_checksum=True
        )
        image = self.api.image.get_image(image.id)
        if image.status != "active":
            raise Unmet(f"the image is {image.status}, not active")
        if self.api.image.download_image(image.id).content != sent:
            raise Unmet("the image that comes back is not the one that was uploaded")
