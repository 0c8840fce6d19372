"""`stacklab up`: build a cloud, or climb a layer."""

import typer

from stacklab.cli.host_keys import asking
from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.progress import progress
from stacklab.cli.request import (
    AcceptHostKeys,
    Computes,
    Layer,
    Locked,
    NodeKindOption,
    Offline,
    Profile,
    Release,
    SearchPath,
    Topology,
    With,
    Without,
    service_names,
)
from stacklab.cli.screen import seconds_text
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab up --layer 1",
    "stacklab up --layer 1 --lab blue --profile starter-kit",
    "stacklab up --layer 1 --computes 2",
    "stacklab up --layer 1 --topology ./rack.yaml --accept-host-keys",
    "stacklab up --layer 1 --locked versions.yaml",
    "stacklab up --layer 1 --offline --output json",
)


def up(
    layer: Layer = None,
    lab: LabOption = "default",
    profile: Profile = None,
    release: Release = None,
    topology: Topology = None,
    computes: Computes = None,
    node_kind: NodeKindOption = None,
    with_services: With = None,
    without_services: Without = None,
    path: SearchPath = None,
    locked: Locked = None,
    offline: Offline = False,
    accept_host_keys: AcceptHostKeys = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Build a cloud up to a layer.

    It goes on where the last `up` stopped; a cloud that is healthy is only looked at.
    """
    from stacklab.blueprint import UpRequest
    from stacklab.climb import up as climb

    home = Home.from_environment()
    request = UpRequest(
        lab=lab,
        layer=layer,
        profile=profile,
        release=release,
        topology=topology,
        computes=computes,
        node_kind=node_kind,
        with_services=service_names(with_services),
        without_services=service_names(without_services),
        path=tuple(path or ()),
        locked=locked,
        offline=offline,
    )
    with progress(home, output, verbose=verbose) as screen:
        done = climb(home, request, screen, asking(screen, always=accept_host_keys))
    if output is Output.JSON:
        return
    what = "is up" if done.changed else "was up already"
    typer.echo(f"\nLab {lab} {what} on layer {done.layer}, after {seconds_text(done.seconds)}. Now try:\n")
    for line in what_next(lab):
        typer.echo(f"  {line}")


def what_next(lab: str) -> list[str]:
    """What the person can type next in a lab that is up."""
    option = "" if lab == "default" else f" --lab {lab}"
    boot = "openstack server create --image guest --flavor tiny --network provider --wait probe"
    return [
        f"stacklab exec{option} -- {boot}",
        f"stacklab exec{option} -- openstack server list",
        f"stacklab shell{option}",
        f"stacklab verify{option}",
        f"stacklab status{option}",
        f"stacklab stop{option}",
    ]
