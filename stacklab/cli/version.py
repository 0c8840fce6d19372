"""`stacklab version`: which stacklab this is, and with what it works."""

import platform

import typer

from stacklab import __version__
from stacklab.cli.options import Output, OutputOption, Verbose, examples
from stacklab.cli.screen import print_json

EXAMPLES = examples("stacklab version", "stacklab version --output json")
_PARTS = ("ansible-core", "libvirt-python", "openstacksdk")


def version(output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Print the version of stacklab and of what it stands on."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    versions = {"stacklab": __version__, "python": platform.python_version()}
    for part in _PARTS:
        try:
            versions[part] = version_of(part)
        except PackageNotFoundError:
            versions[part] = "not installed"
    if output is Output.JSON:
        print_json(versions)
        return
    for name, number in versions.items():
        typer.echo(f"{name} {number}")
