"""A layer profile: which services make up each layer."""

from collections.abc import Iterator
from typing import Annotated, Self

from pydantic import model_validator

from stacklab.model.documents import Step
from stacklab.model.schema import Name, NotEmpty, Root, Strict, Word, wrong


class Layer(Strict):
    """One layer: the services that are built, and those that are planned, not built yet."""

    number: int
    title: Word
    services: tuple[Name, ...] = ()
    planned: tuple[Name, ...] = ()


class Profile(Root):
    """The layers of a cloud, numbered from 1."""

    release: Name
    layers: Annotated[tuple[Layer, ...], NotEmpty]

    def entries(self) -> Iterator[tuple[str, tuple[Step, ...]]]:
        """Every service that the profile names, with where: keys and indexes of the entry."""
        for position, layer in enumerate(self.layers):
            for key, names in (("services", layer.services), ("planned", layer.planned)):
                for index, name in enumerate(names):
                    yield name, ("layers", position, key, index)

    @model_validator(mode="after")
    def _numbers_count_from_one(self) -> Self:
        for position, layer in enumerate(self.layers):
            if layer.number != position + 1:
                raise wrong(
                    f"layers count from 1 in order: expected {position + 1}", "layers", position, "number"
                )
        return self

    @model_validator(mode="after")
    def _each_service_stands_once(self) -> Self:
        first: dict[str, tuple[Step, ...]] = {}
        for name, where in self.entries():
            if name in first:
                raise wrong(f"'{name}' is already listed at {self.place(*first[name])}", *where)
            first[name] = where
        return self
