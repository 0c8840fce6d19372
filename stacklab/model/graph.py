"""The graph of services: the truth that layers are cuts through.

A service that no layer of the profile lists, but that a listed one requires, stands in the lowest layer that
requires it.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from stacklab.errors import ModelError, Problem, UsageError
from stacklab.model.documents import unknown
from stacklab.model.profile import Layer, Profile
from stacklab.model.service import Service

Added = Collection[str] | Mapping[str, int]
"""Services to add to a lab; mapped to the number of the layer that each was added to."""


class Graph:
    """The services of a profile, and those from outside that can be added to it, with what each requires."""

    def __init__(self, services: Mapping[str, Service], profile: Profile) -> None:
        """Raises ModelError for a cycle, or a service that stands below something that it requires."""
        problems = [*cycles(services), *below_required(services, profile)]
        if problems:
            raise ModelError(problems)
        self.profile = profile
        self._services = services

    @cached_property
    def services(self) -> Mapping[str, Service]:
        """All services that there are, each after what it requires, whether a layer holds them or not."""
        return {name: self._services[name] for name in self._in_order(self._services)}

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of the profile, from the bottom up."""
        return self.profile.layers

    @cached_property
    def standing(self) -> Mapping[str, int]:
        """The number of the layer that each service stands in, from the bottom up."""
        layers = _standing(self._services, self.profile)
        return {name: layers[name] for name in self._in_order(layers)}

    def layer_of(self, service: str) -> int | None:
        """The number of the layer that the service stands in; None where the profile has no place for it."""
        self._known(service)
        return self.standing.get(service)

    def services_of(self, layer: int) -> tuple[Service, ...]:
        """The services that stand in this one layer, in order. Raises UsageError for an unknown layer."""
        self._layers_up_to(layer)
        return tuple(self._services[name] for name, number in self.standing.items() if number == layer)

    def closure(self, layer: int, with_: Added = (), without: Collection[str] = ()) -> tuple[Service, ...]:
        """Every service of a lab on `layer`, each after what it requires: the cuts, one after the other."""
        return tuple(service for cut in self.cuts(layer, with_, without) for service in cut)

    def cuts(
        self, layer: int, with_: Added = (), without: Collection[str] = ()
    ) -> tuple[tuple[Service, ...], ...]:
        """The services of a lab on `layer`, from layer 1 upwards, each after what it requires.

        with_: services to add, with all that they require; to `layer`, or each to the layer it is mapped to.
        without: services to leave out, with what only they require.
        With the same mapping, what stands in a layer stays there when a lab climbs to the next one.
        Raises UsageError for a name or layer that is not there, a service that is planned and not built yet,
        and a service to leave out that another one needs.
        """
        asked = self._layers_up_to(layer)
        for name in (*with_, *without):
            self._known(name)
            if name in with_ and name in without:
                raise UsageError(f"'{name}' is asked for with --with and with --without")
        self._refuse_planned(asked, with_, without)
        added = with_ if isinstance(with_, Mapping) else dict.fromkeys(with_, layer)
        numbers: dict[str, int] = {}
        for cut in asked:
            wanted = [name for name in cut.services if name not in without]
            wanted += [name for name, number in added.items() if number == cut.number]
            for name in self._required_by(wanted):
                numbers.setdefault(name, cut.number)
        self._refuse_needed(numbers, without)
        ordered = self._in_order(numbers)
        return tuple(
            tuple(self._services[name] for name in ordered if numbers[name] == cut.number) for cut in asked
        )

    def generations(self, services: Iterable[Service]) -> tuple[tuple[Service, ...], ...]:
        """The services in sets that follow one another; those of one set can be worked on in parallel."""
        names = {service.name for service in services}
        sorter = TopologicalSorter({name: names & set(self._services[name].requires) for name in names})
        sorter.prepare()
        sets = []
        while sorter.is_active():
            ready = sorter.get_ready()
            sets.append(tuple(self._services[name] for name in sorted(ready)))
            sorter.done(*ready)
        return tuple(sets)

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """The names by generation, then by name."""
        generations = self.generations(self._services[name] for name in names)
        return [service.name for generation in generations for service in generation]

    def _required_by(self, names: Iterable[str]) -> set[str]:
        return _reach(names, lambda name: self._services[name].requires)

    def _needing(self, name: str, among: Collection[str]) -> list[str]:
        """The services that require `name`, themselves or through others."""
        needing = _reach([name], lambda it: [n for n in among if it in self._services[n].requires])
        return sorted(needing - {name})

    def _known(self, name: str) -> None:
        known = {*self._services, *(name for layer in self.layers for name in layer.planned)}
        if name not in known:
            raise unknown("service", name, known)

    def _layers_up_to(self, number: int) -> tuple[Layer, ...]:
        if not 1 <= number <= len(self.layers):
            raise UsageError(f"there is no layer {number}: {self.profile.name} has 1 to {len(self.layers)}")
        return self.layers[:number]

    def _refuse_planned(self, asked: Sequence[Layer], with_: Added, without: Collection[str]) -> None:
        listed = [name for cut in asked for name in cut.planned if name not in without]
        missing = [name for name in (*listed, *with_) if name not in with_ or name not in self._services]
        if missing:
            highest = next((cut.number - 1 for cut in self.layers if cut.planned), len(self.layers))
            raise UsageError(
                f"planned, not built yet: {', '.join(dict.fromkeys(missing))}",
                detail=f"the highest layer of {self.profile.name} that can be asked for: {highest or 'none'}",
                hint=f"leave them out: --without {','.join(listed)}" if listed else "",
            )

    def _refuse_needed(self, names: Collection[str], without: Collection[str]) -> None:
        for name in without:
            needing = self._needing(name, names) if name in names else []
            if needing:
                needed_by = f"{', '.join(needing)} need{'s' if len(needing) == 1 else ''} it"
                raise UsageError(
                    f"'{name}' cannot be left out: {needed_by}",
                    hint=f"leave these out too: --without {','.join(needing)}",
                )


def _standing(services: Mapping[str, Service], profile: Profile) -> dict[str, int]:
    """The layer that each service of the profile stands in; names that are no service are passed over."""
    layers = {name: cut.number for cut in profile.layers for name in cut.services if name in services}
    for cut in profile.layers:
        for name in _reach(cut.services, lambda it: services[it].requires if it in services else ()):
            if name in services:
                layers.setdefault(name, cut.number)
    return layers


def below_required(services: Mapping[str, Service], profile: Profile) -> Iterator[Problem]:
    """A problem for each service of the profile that stands below something that it requires."""
    layers = _standing(services, profile)
    entries = dict(profile.entries())
    for name, layer in layers.items():
        for index, required in enumerate(services[name].requires):
            above = layers.get(required, layer)
            if above > layer:
                yield profile.problem(
                    f"'{required}' stands in layer {above}, above '{name}' in layer {layer} that requires it"
                    f" ({services[name].place('requires', index)})",
                    *entries[required],
                )


def cycles(services: Mapping[str, Service]) -> Iterator[Problem]:
    """A problem for each cycle of requirements, with the whole chain."""
    requires = {name: set(service.requires) for name, service in services.items()}
    while chain := _cycle(requires):
        links = []
        for name, required in pairwise(chain):
            where = ("requires", services[name].requires.index(required))
            links.append(f"{name} requires {required} ({services[name].place(*where)})")
        first = services[chain[0]]
        where = ("requires", first.requires.index(chain[1]))
        yield first.problem(f"a cycle: {', '.join(links)}", *where)
        requires[chain[0]].remove(chain[1])  # so that the next cycle is found


def _cycle(requires: Mapping[str, set[str]]) -> list[str]:
    """The names along a cycle, each requiring the next, back to the first; empty where there is none."""
    try:
        TopologicalSorter(requires).prepare()
    except CycleError as error:
        names = error.args[1][:0:-1]  # graphlib puts the required first, and repeats the first at the end
        start = names.index(min(names))
        return [*names[start:], *names[:start], names[start]]
    return []


def _reach(start: Iterable[str], step: Callable[[str], Iterable[str]]) -> set[str]:
    """Everything that `step`, taken again and again, leads to from `start`, and `start` itself."""
    reached: set[str] = set()
    waiting = list(start)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += step(name)
    return reached
