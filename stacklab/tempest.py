"""Tempest's configuration for a lab: what each of its services says of itself, with the ids of its cloud.

A service may have a file tempest.conf.j2 in its folder: a template of sections and options as Tempest knows
them (https://docs.openstack.org/tempest/latest/sampleconf.html). They are merged bottom up: where two
services set an option, the one that stands above the other wins.
"""

import configparser
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from stacklab.blueprint import as_it_stands
from stacklab.check.cloud import Cloud
from stacklab.check.result import Unmet
from stacklab.errors import ModelError, StepFailed
from stacklab.images.usage import store_of
from stacklab.lab.lab import Lab
from stacklab.model.service import Service
from stacklab.restore import images_at_hand

FILE = "tempest.conf.j2"
HEAD = "# Tempest's configuration for the lab '{lab}', with the password of its administrator in it.\n\n"


class Asked(Protocol):
    """What is asked for ids: the APIs of a cloud."""

    def get(self, kind: str, path: str = "") -> Any:
        """The JSON document at `path` below the address of a type of service. Raises Unmet."""


@dataclass(frozen=True)
class CloudFacts:
    """The word `cloud` in the templates: it looks up what only the running cloud knows."""

    api: Asked

    def image(self, name: str) -> str:
        """The id of an image. Raises Unmet where there is none, as the other words do."""
        return self._id("image", f"/v2/images?name={quote(name)}", "images", name)

    def flavor(self, name: str) -> str:
        """The id of a flavor."""
        return self._id("compute", "/flavors", "flavors", name)

    def network(self, name: str) -> str:
        """The id of a network."""
        return self._id("network", f"/v2.0/networks?name={quote(name)}", "networks", name)

    def extensions(self) -> str:
        """The extensions of the network API, by their aliases."""
        found = self.api.get("network", "/v2.0/extensions")["extensions"]
        return ",".join(sorted(extension["alias"] for extension in found))

    def _id(self, kind: str, path: str, key: str, name: str) -> str:
        for found in self.api.get(kind, path)[key]:
            if found["name"] == name:
                return str(found["id"])
        raise Unmet(f"the cloud has no {key.removesuffix('s')} named '{name}'")


def tempest_conf(lab: Lab, workspace: Path) -> str:
    """The text of tempest.conf for a lab that runs, on the layer that it stands on.

    workspace: the folder for Tempest's locks and its log. Raises StepFailed when the lab is down or its cloud
    does not tell, ModelError with all that is wrong in the templates.
    """
    blueprint = as_it_stands(lab)
    cloud = Cloud.of(lab, blueprint, blueprint.target)
    images = images_at_hand(store_of(lab.home), blueprint)
    words = {"cloud": CloudFacts(cloud.api), "workspace": str(workspace), "images": images}
    with lab.namespace.network():
        try:
            text = merged(cloud.services, lambda file: cloud.renderer.file(file, words))
        except Unmet as error:
            raise StepFailed(
                str(error), detail=error.detail, hint=f"stacklab verify --lab {lab.name}"
            ) from error
    return HEAD.format(lab=lab.name) + text


def merged(services: tuple[Service, ...], render: Callable[[Path], str]) -> str:
    """What the services say, one section each. Raises ModelError with all files that are not INI."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    problems = []
    for service in services:
        file = service.folder / FILE
        if file.is_file():
            try:
                parser.read_string(render(file), source=str(file))
            except configparser.Error as error:
                problems.append(service.problem(f"{FILE}: {error.message}"))
    if problems:
        raise ModelError(problems)
    text = io.StringIO()
    parser.write(text)
    return text.getvalue()
