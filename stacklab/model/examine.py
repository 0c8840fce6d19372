"""What can be told of a service before anything is built, beyond the shape of its words.

Jinja that cannot be read, names that nothing has, files and roles that are not there: all of it at once, each
in its place.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from jinja2 import TemplateSyntaxError, meta, nodes

from stacklab.errors import Problem
from stacklab.model.documents import Step, did_you_mean
from stacklab.model.schema import identifier
from stacklab.model.service import Command, Service
from stacklab.templating import WORDS, service_environment, service_tree

TEMPLATE = ".j2"


def examine(services: Mapping[str, Service], names: Iterable[str]) -> Iterator[Problem]:
    """Everything that is wrong in the services, in no order.

    names: of all services, those whose file cannot be read, too.
    """
    secrets: dict[str, set[str] | None] = {identifier(name): None for name in names}
    secrets |= {identifier(name): set(map(identifier, each.secrets)) for name, each in services.items()}
    for service in services.values():
        yield from _names(service)
        yield from _special_files(service)
        yield from _roles(service)
        for text, where in service.texts():
            for line, message in _wrong_in(text, service, secrets):
                yield service.problem_in(message, line, *where)
        for file in sorted((service.folder / "files").rglob(f"*{TEMPLATE}")):
            for line, message in _wrong_in(_read(file), service, secrets):
                yield Problem(file, line, 1, message)


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _names(service: Service) -> Iterator[Problem]:
    """Names that are taken within their list."""
    lists: list[tuple[tuple[Step, ...], Iterable[str]]] = [
        (("checks",), [check.name for check in service.checks]),
        (("initialise",), [command.name for command in service.initialise]),
        (("finalise",), [command.name for command in service.finalise]),
        (("database", "sync"), [each.name for each in service.database.sync] if service.database else []),
    ]
    for where, names in lists:
        first: dict[str, int] = {}
        for index, name in enumerate(names):
            if name in first:
                line = service.place(*where, first[name], "name")
                yield service.problem(f"'{name}' is named already at {line}", *where, index, "name")
            first.setdefault(name, index)


def _special_files(service: Service) -> Iterator[Problem]:
    """Paths of `files: special:` at which the service has no file."""
    top = service.folder / "files"
    there = {f"/{file.relative_to(top)}".removesuffix(TEMPLATE) for file in top.rglob("*") if file.is_file()}
    for path in service.files.special:
        if path not in there:
            near = did_you_mean(path, there) or f": there is no files{path}"
            yield service.problem_at_key(
                f"no file of the service becomes {path}{near}", "files", "special", path
            )


def _roles(service: Service) -> Iterator[Problem]:
    """Commands for nodes of a role that nothing of the service runs on."""
    commands = [(each, where) for each, where in service.commands_in_place() if "on" in each.model_fields_set]
    for command, where in commands:
        if command.on not in service.parts and command.on != Command.model_fields["on"].default:
            message = f"nothing of the service runs on the role '{command.on}': add it to 'parts'"
            yield service.problem(message, *where, "on")


def _wrong_in(
    text: str, service: Service, secrets: Mapping[str, set[str] | None]
) -> Iterator[tuple[int, str]]:
    """Line, counting from 1 in the text, and message of what is wrong in a Jinja text."""
    if "{" not in text:
        return
    try:
        tree = service_tree(text)
        undeclared = meta.find_undeclared_variables(tree)
    except TemplateSyntaxError as error:
        yield error.lineno, f"not a Jinja template: {error.message}"
        return
    for fragment in meta.find_referenced_templates(tree):
        fragments = service_environment().list_templates()
        if fragment is not None and fragment not in fragments:
            line = next((number for number, words in enumerate(text.splitlines(), 1) if fragment in words), 1)
            yield line, f"there is no fragment '{fragment}'{did_you_mean(fragment, fragments)}"
    if unknown := undeclared.difference(WORDS):
        unknown -= _optional(tree)
        for name in tree.find_all(nodes.Name):
            if name.name in unknown:
                yield name.lineno, f"unknown word '{name.name}'{did_you_mean(name.name, WORDS)}"
    if "secrets" in undeclared:
        yield from _unknown_secrets(tree, service, secrets)


def _optional(tree: nodes.Template) -> set[str]:
    """Words that need not be there: the text asks whether they are, or has something in their place."""
    return {
        name.name
        for guard in (*tree.find_all(nodes.Test), *tree.find_all(nodes.Filter))
        if guard.name in ("defined", "undefined", "default", "d") and guard.node is not None
        for name in (guard.node, *guard.node.find_all(nodes.Name))
        if isinstance(name, nodes.Name)
    }


def _unknown_secrets(
    tree: nodes.Template, service: Service, secrets: Mapping[str, set[str] | None]
) -> Iterator[tuple[int, str]]:
    """Secrets that no service has. Services that are only used may come from elsewhere."""
    used = {identifier(name) for name in service.uses}
    for of in (each for each in tree.find_all(nodes.Getattr) if _is_secrets(each.node)):
        if of.attr not in secrets and of.attr not in used:
            near = did_you_mean(of.attr, secrets)
            yield of.lineno, f"there is no service with secrets called '{of.attr}'{near}"
    for name in tree.find_all(nodes.Getattr):
        if isinstance(name.node, nodes.Getattr) and _is_secrets(name.node.node):
            known = secrets.get(name.node.attr)
            if known is not None and name.attr not in known:
                near = did_you_mean(name.attr, known) or f"; it has: {', '.join(sorted(known)) or 'none'}"
                yield name.lineno, f"'{name.node.attr}' has no secret '{name.attr}'{near}"


def _is_secrets(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Name) and node.name == "secrets"
