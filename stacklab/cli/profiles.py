"""`stacklab profiles`: which layer profiles there are, and what their layers hold."""

from stacklab.cli.options import Output, OutputOption, Verbose, examples
from stacklab.cli.request import SearchPath
from stacklab.cli.screen import print_json, print_table

EXAMPLES = examples("stacklab profiles", "stacklab profiles --output json")


def profiles(path: SearchPath = None, output: OutputOption = Output.TABLE, verbose: Verbose = False) -> None:
    """List the layer profiles, and the services of their layers."""
    from stacklab.model.catalog import Catalog
    from stacklab.model.picture import document

    catalog = Catalog.load(path or ())
    graphs = [catalog.graph(name) for name in sorted(catalog.profiles)]
    if output is Output.JSON:
        documents = [document(graph) for graph in graphs]
        print_json([{key: each[key] for key in each if key != "services"} for each in documents])
        return
    print_table(
        ["profile", "release", "layer", "services", "planned, not built yet"],
        [
            [
                graph.profile.name,
                graph.profile.release,
                f"{cut.number} {cut.title}",
                " ".join(service.name for service in graph.services_of(cut.number)),
                " ".join(cut.planned),
            ]
            for graph in graphs
            for cut in graph.layers
        ],
    )
