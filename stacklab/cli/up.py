"""`stacklab up`: build a cloud, or climb a layer."""

from typing import TYPE_CHECKING

import typer

from stacklab.cli.host_keys import asking
from stacklab.cli.options import Output, OutputOption, Verbose, examples
from stacklab.cli.progress import progress
from stacklab.cli.request import AcceptHostKeys, requesting
from stacklab.cli.screen import seconds_text
from stacklab.home import Home

if TYPE_CHECKING:
    from stacklab.blueprint import UpRequest

EXAMPLES = examples(
    "stacklab up --layer 1",
    "stacklab up --layer 1 --lab blue --profile starter-kit",
    "stacklab up --layer 1 --computes 2",
    "stacklab up --layer 1 --topology ./rack.yaml --accept-host-keys",
    "stacklab up --layer 1 --connect qemu+ssh://root@big-machine/system",
    "stacklab up --layer 1 --locked versions.yaml",
    "stacklab up --layer 1 --offline --output json",
)


@requesting
def up(
    request: "UpRequest",
    accept_host_keys: AcceptHostKeys = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Build a cloud up to a layer.

    It goes on where the last `up` stopped; a cloud that is healthy is only looked at.
    """
    from stacklab.climb import up as climb

    home = Home.from_environment()
    with progress(home, output, verbose=verbose) as screen:
        done = climb(home, request, screen, asking(screen, always=accept_host_keys))
    if output is Output.JSON:
        return
    lab, what = request.lab, "is up" if done.changed else "was up already"
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
