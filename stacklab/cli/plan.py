"""`stacklab plan`: what `up` would do; nothing is touched."""

from stacklab.cli.options import LabOption, Output, OutputOption, Verbose, examples
from stacklab.cli.request import (
    Layer,
    NodeKindOption,
    Offline,
    Profile,
    Release,
    SearchPath,
    Topology,
    With,
    Without,
)
from stacklab.cli.screen import print_json
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab plan --layer 1",
    "stacklab plan --layer 1 --profile starter-kit --with memcached",
    "stacklab plan --output json | jq .steps",
)


def plan(
    layer: Layer = None,
    lab: LabOption = "default",
    profile: Profile = None,
    release: Release = None,
    topology: Topology = None,
    node_kind: NodeKindOption = None,
    with_services: With = None,
    without_services: Without = None,
    path: SearchPath = None,
    offline: Offline = False,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Show what `up` would do.

    Steps, files with their differences, and what is cached; nothing is touched.
    """
    from stacklab.climb import UpRequest
    from stacklab.plan import make_plan

    request = UpRequest(
        lab=lab,
        layer=layer,
        profile=profile,
        release=release,
        topology=topology,
        node_kind=node_kind,
        with_services=tuple(with_services or ()),
        without_services=tuple(without_services or ()),
        path=tuple(path or ()),
        offline=offline,
    )
    print_json(make_plan(Home.from_environment(), request))
