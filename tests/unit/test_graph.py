"""The graph: order, layers as cuts through it, what can be added and left out, and its pictures."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from stacklab.cli.main import app
from stacklab.errors import ModelError, UsageError
from stacklab.model.catalog import Catalog
from stacklab.model.drawing import svg
from stacklab.model.graph import Graph
from stacklab.model.picture import document, dot, mermaid
from stacklab.model.service import Service
from tests.unit.catalogs import catalog, write_catalog, write_profile, write_service

CLOUD = {
    "mariadb": "",
    "rabbitmq": "",
    "keystone": "mariadb",
    "glance": "mariadb keystone",
    "nova": "rabbitmq keystone glance",
    "cinder": "rabbitmq keystone",
    "heat": "nova cinder",
    "motd": "keystone",
    "banner": "motd cinder",
}
LAYERS = ("keystone glance nova", "cinder", "heat [zaqar]")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def graph(tmp_path: Path) -> Graph:
    return catalog(tmp_path, CLOUD, *LAYERS).graph("cloud")


def names(services: tuple[Service, ...]) -> list[str]:
    return [service.name for service in services]


def refusal(folder: Path) -> list[str]:
    with pytest.raises(ModelError) as raised:
        Catalog.read([folder])
    return [str(problem).replace(f"{folder}/", "") for problem in raised.value.problems]


def test_a_closure_holds_all_that_is_required_each_after_what_it_requires(graph: Graph) -> None:
    assert names(graph.closure(1)) == ["mariadb", "rabbitmq", "keystone", "glance", "nova"]
    assert names(graph.closure(2)) == ["mariadb", "rabbitmq", "keystone", "glance", "nova", "cinder"]


def test_a_closure_does_not_depend_on_the_order_in_the_profile(tmp_path: Path) -> None:
    turned = catalog(tmp_path, dict(reversed(CLOUD.items())), "nova glance keystone", *LAYERS[1:]).graph(
        "cloud"
    )
    assert names(turned.closure(1)) == ["mariadb", "rabbitmq", "keystone", "glance", "nova"]


def test_a_service_in_no_layer_stands_in_the_lowest_that_requires_it(tmp_path: Path) -> None:
    services = {"base": "", "etcd": "", "zun": "etcd", "magnum": "etcd zun"}
    graph = catalog(tmp_path, services, "base", "zun", "magnum").graph("cloud")
    assert graph.layer_of("etcd") == 2
    assert [names(graph.services_of(number)) for number in (1, 2, 3)] == [
        ["base"],
        ["etcd", "zun"],
        ["magnum"],
    ]


def test_a_service_that_nothing_requires_and_no_layer_lists_stands_nowhere(graph: Graph) -> None:
    assert graph.layer_of("motd") is None
    assert "motd" not in names(graph.closure(2))


def test_cuts_part_the_closure_by_layer(graph: Graph) -> None:
    assert [names(cut) for cut in graph.cuts(2)] == [
        ["mariadb", "rabbitmq", "keystone", "glance", "nova"],
        ["cinder"],
    ]


def test_generations_can_be_worked_on_in_parallel(graph: Graph) -> None:
    assert [names(each) for each in graph.generations(graph.closure(2))] == [
        ["mariadb", "rabbitmq"],
        ["keystone"],
        ["cinder", "glance"],
        ["nova"],
    ]
    assert [names(each) for each in graph.generations(graph.services_of(2))] == [["cinder"]]


def test_with_adds_a_service_and_its_closure_to_the_layer_asked_for(graph: Graph) -> None:
    assert [names(cut) for cut in graph.cuts(1, with_=["banner"])] == [
        ["mariadb", "rabbitmq", "keystone", "cinder", "glance", "motd", "banner", "nova"]
    ]
    assert [names(cut) for cut in graph.cuts(2, with_=["motd"])][1] == ["cinder", "motd"]


def test_what_stands_in_a_layer_stays_there_when_the_lab_climbs(graph: Graph) -> None:
    for with_, without in (({"banner": 1}, []), ({"motd": 1}, []), ({}, ["nova"]), ({}, ["glance", "nova"])):
        assert graph.cuts(2, with_, without)[:1] == graph.cuts(1, with_, without)
    assert [names(cut) for cut in graph.cuts(2, {}, ["nova"])] == [
        ["mariadb", "keystone", "glance"],
        ["rabbitmq", "cinder"],
    ]


def test_with_a_service_of_a_layer_below_changes_nothing(graph: Graph) -> None:
    assert graph.cuts(2, with_=["glance"]) == graph.cuts(2)


def test_without_leaves_out_a_service_and_what_only_it_required(graph: Graph) -> None:
    assert names(graph.closure(1, without=["nova"])) == ["mariadb", "keystone", "glance"]


def test_without_what_others_need_is_refused_naming_all_of_them(graph: Graph) -> None:
    with pytest.raises(UsageError, match="'glance' cannot be left out: nova needs it"):
        graph.closure(1, without=["glance"])
    with pytest.raises(
        UsageError, match="'mariadb' cannot be left out: glance, keystone, nova need it"
    ) as raised:
        graph.closure(1, without=["mariadb"])
    assert raised.value.hint == "leave these out too: --without glance,keystone,nova"
    assert names(graph.closure(1, without=["mariadb", "glance", "keystone", "nova"])) == []


def test_planned_services_are_refused_with_a_clear_word(graph: Graph) -> None:
    with pytest.raises(UsageError, match="planned, not built yet: zaqar") as raised:
        graph.closure(3)
    assert raised.value.detail == "the highest layer of cloud that can be asked for: 2"
    assert raised.value.hint == "leave them out: --without zaqar"
    assert names(graph.closure(3, without=["zaqar"]))[-1] == "heat"
    with pytest.raises(UsageError, match="planned, not built yet: zaqar"):
        graph.closure(1, with_=["zaqar"])


def test_a_planned_service_that_comes_from_outside_can_be_asked_for(tmp_path: Path) -> None:
    graph = catalog(tmp_path, {"keystone": "", "zaqar": "keystone"}, "keystone [zaqar]").graph("cloud")
    with pytest.raises(UsageError, match="planned") as raised:
        graph.closure(1)
    assert raised.value.detail == "the highest layer of cloud that can be asked for: none"
    assert names(graph.closure(1, with_=["zaqar"])) == ["keystone", "zaqar"]


@pytest.mark.parametrize(
    ("layer", "with_", "without", "message"),
    [
        (0, [], [], "there is no layer 0: cloud has 1 to 3"),
        (4, [], [], "there is no layer 4: cloud has 1 to 3"),
        (1, ["heet"], [], "unknown service 'heet', did you mean 'heat'"),
        (1, [], ["mariabd"], "unknown service 'mariabd', did you mean 'mariadb'"),
        (1, ["motd"], ["motd"], "'motd' is asked for with --with and with --without"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(
    graph: Graph, layer: int, with_: list[str], without: list[str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        graph.closure(layer, with_, without)


def test_a_cycle_is_told_with_its_chain_and_places(tmp_path: Path) -> None:
    write_catalog(tmp_path, {"a": "b", "b": "d c", "c": "a", "d": "", "x": "y", "y": "x"}, "d")
    place = "services/{}/service.yaml:4:{}".format
    assert refusal(tmp_path) == [
        f"{place('a', 12)}: a cycle: a requires b ({place('a', 12)}), b requires c ({place('b', 15)}),"
        f" c requires a ({place('c', 12)})",
        f"{place('x', 12)}: a cycle: x requires y ({place('x', 12)}), y requires x ({place('y', 12)})",
    ]


def test_a_service_below_what_it_requires_is_refused_with_both_places(tmp_path: Path) -> None:
    write_catalog(tmp_path, CLOUD, "glance heat", "keystone", "rabbitmq")
    found = refusal(tmp_path)
    for name, place in (("glance", "glance/service.yaml:4:21"), ("nova", "nova/service.yaml:4:22")):
        assert (
            f"cloud.yaml:12:16: 'keystone' stands in layer 2, above '{name}' in layer 1 that requires it"
            f" (services/{place})"
        ) in found
    assert [
        each for each in found if each.startswith("cloud.yaml:16:16: 'rabbitmq' stands in layer 3, above")
    ]


def test_another_order_of_layers_is_another_profile_on_the_same_services(tmp_path: Path) -> None:
    write_catalog(tmp_path, CLOUD, *LAYERS)
    write_profile(tmp_path, "keystone", "motd", "glance cinder nova", name="own")
    own = Catalog.read([tmp_path]).graph("own")
    assert (own.layer_of("motd"), own.layer_of("rabbitmq"), own.layer_of("nova")) == (2, 3, 3)


@pytest.fixture
def drawn(tmp_path: Path) -> Graph:
    write_catalog(tmp_path, CLOUD, *LAYERS)
    write_service(tmp_path, "nova", requires=["keystone", "glance"], uses=["cinder", "zaqar", "elsewhere"])
    return Catalog.read([tmp_path]).graph("cloud")


def test_mermaid_has_a_box_per_service_a_frame_per_layer_and_two_kinds_of_arrows(drawn: Graph) -> None:
    lines = [line.strip() for line in mermaid(drawn).splitlines()]
    assert lines[0] == "flowchart LR"
    assert 'subgraph layer2["2 Layer 2"]' in lines
    assert {'nova["nova"]', 'zaqar["zaqar"]:::planned', "nova --> glance", "nova -.-> cinder"} <= set(lines)
    assert "elsewhere" not in mermaid(drawn)


def test_dot_has_the_same_graph(drawn: Graph) -> None:
    lines = [line.strip() for line in dot(drawn).splitlines()]
    assert {'"nova" -> "glance"', '"nova" -> "cinder" [style=dashed]', 'label="3 Layer 3"'} <= set(lines)


def test_json_tells_every_service_with_its_layer(drawn: Graph) -> None:
    told = document(drawn)
    assert json.loads(json.dumps(told)) == told
    layers = {service["name"]: service["layer"] for service in told["services"]}
    assert (layers["mariadb"], layers["heat"], layers["motd"]) == (1, 3, None)
    assert told["layers"][2] == {"number": 3, "title": "Layer 3", "services": ["heat"], "planned": ["zaqar"]}


def test_the_picture_shows_every_service_of_the_layers_and_no_two_on_one_place(drawn: Graph) -> None:
    picture = ElementTree.fromstring(svg(drawn))
    words = {text.text for text in picture.iter(f"{SVG}text")}
    assert {*CLOUD, "zaqar", "1 Layer 1", "requires", "uses", "planned"} - words == {"banner", "motd"}
    boxes = [
        tuple(float(box.attrib[key]) for key in ("x", "y", "width", "height"))
        for box in picture.iter(f"{SVG}rect")
        if box.get("class") == "box"
    ]
    for index, (x, y, width, height) in enumerate(boxes):
        for other_x, other_y, other_width, other_height in boxes[:index]:
            apart = x + width <= other_x or other_x + other_width <= x
            assert apart or y + height <= other_y or other_y + other_height <= y


@pytest.mark.parametrize("layers", [[""], ["[zaqar]"], ["keystone [motd]"]])
def test_sparse_profiles_can_be_drawn(tmp_path: Path, layers: list[str]) -> None:
    services = {"keystone": "", "motd": "keystone"} if "keystone" in layers[0] else {}
    picture = svg(catalog(tmp_path, services, *layers).graph("cloud"))
    assert picture.count(">motd</text>") == (1 if services else 0)


def test_the_picture_stays_inside_its_frame(drawn: Graph) -> None:
    picture = ElementTree.fromstring(svg(drawn))
    _, _, width, height = map(float, picture.attrib["viewBox"].split())
    for box in picture.iter(f"{SVG}rect"):
        if box.get("class") in ("box", "panel"):
            assert 0 <= float(box.attrib["x"]) <= width - float(box.attrib["width"])
            assert 0 <= float(box.attrib["y"]) <= height - float(box.attrib["height"])


def test_the_same_graph_is_always_drawn_the_same(drawn: Graph) -> None:
    assert svg(drawn) == svg(drawn)


@pytest.mark.parametrize(
    ("format_", "start"), [("mermaid", "flowchart"), ("dot", "digraph"), ("svg", "<svg"), ("json", "{")]
)
def test_the_graph_of_the_shipped_profile_can_be_printed(format_: str, start: str) -> None:
    done = CliRunner().invoke(app, ["graph", "--format", format_])
    assert done.exit_code == 0
    assert done.stdout.startswith(start)
    assert "keystone" in done.stdout
