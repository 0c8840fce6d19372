"""`stacklab images`: what the cache holds."""

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from stacklab.cli.options import Output, OutputOption, Verbose, complete_image, examples
from stacklab.cli.screen import print_json, print_table
from stacklab.home import Home

EXAMPLES = examples(
    "stacklab images ls",
    "stacklab images export layer-90c2 layer-1.stacklab",
    "stacklab images import layer-1.stacklab",
    "stacklab images verify",
    "stacklab images prune",
)
app = typer.Typer(no_args_is_help=True, help="See and move the images that labs start from.", epilog=EXAMPLES)

Name = Annotated[
    str,
    typer.Argument(
        metavar="IMAGE", autocompletion=complete_image, help="The image's name, or its beginning."
    ),
]
MIB = 2**20


@app.command("ls")
def list_(output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """List the images: size on the disk, age, what each is, and what needs it."""
    from stacklab.images.usage import store_of, users

    home = Home.from_environment()
    store = store_of(home)
    with store.kept():  # so that none goes meanwhile; one may come
        needed, found = users(home, store), store.all()
        sizes = {image.name: store.size(image) for image in found}
    images: list[dict[str, Any]] = [
        {
            "name": image.name,
            "kind": image.kind,
            "title": image.title,
            "own_bytes": sizes[image.name],
            "shared_bytes": sum(sizes.get(name, 0) for name in image.stands_on),
            "built": image.built,
            "used_by": needed.get(image.name, []),
        }
        for image in found
    ]
    if output is Output.JSON:
        print_json(images)
        return
    rows = [
        [
            each["name"],
            each["title"] or each["kind"],
            f"{each['own_bytes'] / MIB:.0f} MiB",
            f"{each['shared_bytes'] / MIB:.0f} MiB",
            f"{datetime.fromtimestamp(each['built']):%Y-%m-%d %H:%M}",
            ", ".join(each["used_by"]) or "nothing",
        ]
        for each in images
    ]
    print_table(["name", "what", "own", "shared", "built", "used by"], rows)


@app.command("rm")
def remove(name: Name, output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Remove an image that nothing needs."""
    from stacklab.images.usage import remove_unused, store_of

    home = Home.from_environment()
    store = store_of(home)
    image = store.get(name)
    remove_unused(home, store, image)
    if output is Output.JSON:
        print_json({"image": image.name, "removed": True})
    else:
        typer.echo(f"{image.name} is gone.")


@app.command("prune")
def prune(
    everything: Annotated[
        bool, typer.Option("--all", help="Also what the next lab could start from.")
    ] = False,
    forget: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="A state folder whose labs are gone for good. May be repeated."),
    ] = None,
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Remove what nothing needs: outdated images, and what interrupted builds left.

    A state folder (STACKLAB_STATE) with labs that cannot be seen, as its disk is not mounted, is no reason to
    remove what they need: prune refuses then.
    """
    from stacklab.images import usage

    home = Home.from_environment()
    gone = usage.prune(
        home, usage.store_of(home), everything=everything, forget=[path.absolute() for path in forget or ()]
    )
    if output is Output.JSON:
        print_json(gone)
    else:
        typer.echo("\n".join(gone) or "There was nothing to remove.")


@app.command("verify")
def verify(output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """Check every file of every image against what it was when the image was made."""
    from stacklab.errors import StepFailed
    from stacklab.images.digest import damage
    from stacklab.images.usage import store_of

    store = store_of(Home.from_environment())
    with store.kept():  # so that none goes meanwhile
        broken = {image.name: damage(image.folder) for image in store.all()}
    if output is Output.JSON:
        print_json(broken)
    else:
        print_table(
            ["image", "state"], [[name, "damaged" if paths else "whole"] for name, paths in broken.items()]
        )
    damaged = [f"{name}: {path}" for name, paths in broken.items() for path in paths]
    if damaged:
        raise StepFailed(
            "images are damaged", detail="\n".join(damaged[:40]), hint="stacklab images rm IMAGE"
        )


@app.command("export")
def export(
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", dir_okay=False, help="The file to write.")],
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Write an image, with all that it stands on, into one file."""
    from stacklab.images.transfer import export_image
    from stacklab.images.usage import store_of

    store = store_of(Home.from_environment())
    images = export_image(store, store.get(name), file)
    names, size = [image.name for image in images], file.stat().st_size
    if output is Output.JSON:
        print_json({"file": file, "images": names, "bytes": size})
    else:
        typer.echo(f"{file}: {', '.join(names)}, {size / MIB:.0f} MiB")


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that `images export` wrote.")],
    output: OutputOption = Output.TABLE,
    verbose: Verbose = False,
) -> None:
    """Take images from a file, after checking each of their files."""
    from stacklab.images.transfer import import_images
    from stacklab.images.usage import store_of

    taken = import_images(store_of(Home.from_environment()), file)
    if output is Output.JSON:
        print_json({"taken": taken})
    else:
        typer.echo("\n".join(taken) or "All of it was here already.")
