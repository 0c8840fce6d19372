"""The `stacklab` command: its verbs, and the one place where errors are printed and become exit codes."""

import errno
import gc
import os
import re
import shlex
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stacklab import __version__
from stacklab.cli import (
    checkpoint,
    clone,
    destroy,
    doctor,
    down,
    events,
    exec_,
    graph,
    images,
    list_,
    lock,
    logs,
    plan,
    profiles,
    services,
    shell,
    ssh,
    start,
    status,
    stop,
    tempest,
    up,
    verify,
    version,
)
from stacklab.cli.failure import show, show_usage, translate
from stacklab.cli.options import VERBOSE, Verbose, examples
from stacklab.errors import Interrupted

# Whatever is heavy (Ansible, libvirt, openstacksdk, pydantic, the journal's SQLite) is imported inside the
# verbs: shell completion runs this module at every press of the tab key.

EXAMPLES = examples(
    "stacklab up --layer 1", "stacklab exec -- openstack server list", "stacklab status", "stacklab destroy"
)
_ARGUMENTS = "stacklab.arguments"


class Stacklab(TyperGroup):
    """The group of verbs, which also translates whatever a verb raises.

    Exit codes: 0 done, 1 failed, 2 wrong usage or profile, 3 the host is not fit, 4 a check of the cloud
    failed, 130 interrupted.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep the arguments as typed, for hints and for errors that are found before they are understood."""
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; print what goes wrong and leave with its exit code."""
        arguments: list[str] = ctx.meta[_ARGUMENTS]
        as_json = _asks_for_json(arguments)
        try:
            return super().invoke(ctx)
        except typer.Exit:
            raise
        except typer.TyperException as error:  # wrong usage, which Typer prints well by itself
            if not as_json:
                raise
            show_usage(error)
            raise typer.Exit(error.exit_code) from error
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # the reader of a pipe has gone; Typer ends quietly
            again = shlex.join(["stacklab", *self._with_lab(ctx, arguments)])
            failure = translate(error, again=again, verbose=bool(ctx.meta.get(VERBOSE)))
            if isinstance(failure, Interrupted):
                goes_on = "   (up again goes on from here)" if ctx.invoked_subcommand == "up" else ""
                failure.hint = again + goes_on
            show(failure, as_json=as_json)
            raise typer.Exit(failure.exit_code) from error

    def _with_lab(self, ctx: Any, arguments: list[str]) -> list[str]:
        """The arguments, with the lab that the environment named, so that they mean the same everywhere."""
        lab, verb = os.environ.get("STACKLAB_LAB"), ctx.invoked_subcommand
        named = any(word == "--lab" or word.startswith("--lab=") for word in arguments)
        if not lab or named or verb not in self.commands:
            return arguments
        if all(parameter.name != "lab" for parameter in self.commands[verb].params):
            return arguments
        place = arguments.index(verb) + 1
        return [*arguments[:place], "--lab", lab, *arguments[place:]]


def _asks_for_json(arguments: list[str]) -> bool:
    """Whether `--output json` is among the arguments of stacklab itself, not of a command that it runs."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    words = "\n".join(["", *own, ""])
    return re.search(r"\n(--output[\n=]|-[a-z]*o\n?)json\n", words) is not None


app = typer.Typer(
    cls=Stacklab,
    name="stacklab",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,  # a traceback is for -v
    context_settings={"help_option_names": ["--help", "-h"]},
    epilog=EXAMPLES,
)

_BUILD = "Build a cloud"
_USE = "Use it"
_LOOK = "Look at it"
_KEEP = "Keep it or leave it"
_KNOW = "Know what there is"
_PASS_ON = {"allow_interspersed_args": False}  # what follows the command belongs to it

app.command("up", epilog=up.EXAMPLES, rich_help_panel=_BUILD)(up.up)
app.command("plan", epilog=plan.EXAMPLES, rich_help_panel=_BUILD)(plan.plan)
app.command("verify", epilog=verify.EXAMPLES, rich_help_panel=_BUILD)(verify.verify)
app.command("tempest", epilog=tempest.EXAMPLES, rich_help_panel=_USE)(tempest.tempest)
app.command("exec", epilog=exec_.EXAMPLES, rich_help_panel=_USE, context_settings=_PASS_ON)(exec_.exec_)
app.command("shell", epilog=shell.EXAMPLES, rich_help_panel=_USE)(shell.shell)
app.command("ssh", epilog=ssh.EXAMPLES, rich_help_panel=_USE, context_settings=_PASS_ON)(ssh.ssh)
app.command("status", epilog=status.EXAMPLES, rich_help_panel=_LOOK)(status.status)
app.command("list", epilog=list_.EXAMPLES, rich_help_panel=_LOOK)(list_.list_)
app.command("logs", epilog=logs.EXAMPLES, rich_help_panel=_LOOK)(logs.logs)
app.command("events", epilog=events.EXAMPLES, rich_help_panel=_LOOK)(events.events)
app.command("stop", epilog=stop.EXAMPLES, rich_help_panel=_KEEP)(stop.stop)
app.command("start", epilog=start.EXAMPLES, rich_help_panel=_KEEP)(start.start)
app.command("down", epilog=down.EXAMPLES, rich_help_panel=_KEEP)(down.down)
app.add_typer(checkpoint.app, name="checkpoint", rich_help_panel=_KEEP)
app.command("clone", epilog=clone.EXAMPLES, rich_help_panel=_KEEP)(clone.clone)
app.add_typer(images.app, name="images", rich_help_panel=_KNOW)
app.command("lock", epilog=lock.EXAMPLES, rich_help_panel=_KEEP)(lock.lock)
app.command("destroy", epilog=destroy.EXAMPLES, rich_help_panel=_KEEP)(destroy.destroy)
app.command("services", epilog=services.EXAMPLES, rich_help_panel=_KNOW)(services.services)
app.command("profiles", epilog=profiles.EXAMPLES, rich_help_panel=_KNOW)(profiles.profiles)
app.command("graph", epilog=graph.EXAMPLES, rich_help_panel=_KNOW)(graph.graph)
app.command("doctor", epilog=doctor.EXAMPLES, rich_help_panel=_KNOW)(doctor.doctor)
app.command("version", epilog=version.EXAMPLES, rich_help_panel=_KNOW)(version.version)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"stacklab {__version__}")
        raise typer.Exit


@app.callback()
def stacklab(
    verbose: Verbose = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Build real OpenStack clouds for a lab, one layer at a time, on this machine."""


def _open_closed_streams() -> None:
    """Have /dev/null where standard input or output was closed: else the next file takes its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode))


def _complete_path() -> None:
    """Have the folders of root's own programs on the PATH: it may lack them (`su` without a dash)."""
    path = os.environ.get("PATH") or os.defpath
    missing = [folder for folder in ("/usr/sbin", "/sbin") if folder not in path.split(":")]
    os.environ["PATH"] = ":".join([path, *missing])


def _leave_broken_output() -> None:
    """Have Python end without a word more, and with the exit code of the work, where its output goes nowhere.

    Nobody reads it, as with `| head`, or the disk is full, which was told.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main() -> None:
    """The entry point of the program; always ends the process."""
    _open_closed_streams()
    _complete_path()
    try:
        app(prog_name="stacklab")
    finally:
        _leave_broken_output()
        # Python ends by looking for garbage in all that there is: a tenth of the time of a short command.
        gc.freeze()
