"""Every choice of layer 2's services is rendered on layer 1: none leans on what it only uses."""

from collections.abc import Collection, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from stacklab.blueprint import Blueprint, UpRequest, resolve
from stacklab.errors import UsageError
from stacklab.home import Home
from stacklab.lab.lab import Lab
from stacklab.lab.secrets import placeholder_secrets
from stacklab.model.catalog import Catalog
from stacklab.model.graph import Graph
from stacklab.render import HostFacts, Rendered, Renderer

HOST = HostFacts(kvm=False, openvswitch=False)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return Catalog.load().graph("openstack")


@pytest.fixture
def layer1(tmp_path: Path) -> Blueprint:
    return resolve(Lab(Home(tmp_path / "state", tmp_path / "cache"), "blue"), UpRequest(lab="blue", layer=1))


def render(blueprint: Blueprint) -> Rendered:
    secrets = placeholder_secrets(Path("/nonexistent"), blueprint.services)
    return Renderer("blue", blueprint, secrets, HOST).layer(blueprint.target)


def choices(names: Collection[str]) -> Iterator[frozenset[str]]:
    """All 2^n subsets."""
    for count in range(len(names) + 1):
        yield from map(frozenset, combinations(names, count))


def test_every_subset_of_layer_2_is_rendered(graph: Graph, layer1: Blueprint) -> None:
    names = graph.layers[1].services
    needs = {name: {each.name for each in graph.closure(1, [name])}.intersection(names) for name in names}
    keys = {}
    for chosen in choices(names):
        without = [*graph.layers[1].planned, *(name for name in names if name not in chosen)]
        if any(needs[name] - chosen for name in chosen):
            with pytest.raises(UsageError, match="cannot be left out"):
                graph.cuts(2, without=without)
            continue
        keys[chosen] = render(replace(layer1, target=2, cuts=graph.cuts(2, without=without))).key
    assert len(set(keys.values())) == len(keys) > len(names)


def test_each_service_alone_is_rendered_on_layer_1(graph: Graph, layer1: Blueprint) -> None:
    outside = [name for name in graph.services if name not in graph.standing]
    below = render(layer1).key
    for name in (*graph.layers[1].services, *outside):
        assert render(replace(layer1, cuts=graph.cuts(1, [name]))).key != below


def test_what_is_added_to_a_layer_stays_there_as_the_lab_climbs(graph: Graph, layer1: Blueprint) -> None:
    planned = graph.layers[1].planned
    with_barbican = render(replace(layer1, cuts=graph.cuts(1, {"barbican": 1}))).key
    cuts = graph.cuts(2, {"barbican": 1}, planned)
    secrets = placeholder_secrets(Path("/nonexistent"), [service for cut in cuts for service in cut])
    climbed = Renderer("blue", replace(layer1, target=2, cuts=cuts), secrets, HOST)
    assert climbed.layer(1).key == with_barbican
    assert "barbican" not in {service.name for service in cuts[1]}
