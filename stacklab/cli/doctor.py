"""`stacklab doctor`: every check of this machine, and what to do about what is amiss."""

from typing import Annotated

import typer

from stacklab.cli.options import Output, OutputOption, Verbose, examples
from stacklab.cli.screen import print_json, print_table
from stacklab.errors import HostUnfit
from stacklab.home import Home

EXAMPLES = examples("stacklab doctor", "stacklab doctor --output json")

Layer = Annotated[int, typer.Option("--layer", min=1, help="Check memory and disk for a lab on this layer.")]


def doctor(layer: Layer = 1, output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Check this machine, prove KVM by booting a kernel, and say which kinds of nodes run here.

    Ends with exit code 3 when a lab cannot be built here; warnings do not count.
    """
    from stacklab.blueprint import DEFAULT_PROFILE
    from stacklab.host.checks import State, examine, needs_of
    from stacklab.host.kind_checks import kind_findings
    from stacklab.model.catalog import Catalog

    home = Home.from_environment()
    catalog = Catalog.load(())
    profile = catalog.profile(DEFAULT_PROFILE)
    release = catalog.release(profile.release)
    cuts = catalog.graph(profile.name).cuts(layer, (), ())
    needs = needs_of((service for cut in cuts for service in cut), images=True)
    findings = examine(home, needs, release.distribution, release.pockets)
    findings += kind_findings(findings, home.cache)

    if output is Output.JSON:
        print_json(findings)
    else:
        print_table(["state", "check", "found"], [[item.state, item.name, item.what] for item in findings])
        for item in findings:
            if item.advice:
                typer.echo(f"\n{item.name}: {item.what}\n  -> {item.advice}")
    if any(item.state is State.FAILED for item in findings):
        raise typer.Exit(HostUnfit.exit_code)
