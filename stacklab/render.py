"""What a layer puts on the nodes, rendered on the controller: files, steps, playbook and inventory.

What is rendered lies in the lab's folder before anything is run, so that it can be read, compared with what
was there before (`stacklab plan`), and run by hand.
"""

import base64
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, get_args

import yaml

from stacklab.blueprint import Blueprint, parts_on
from stacklab.errors import ModelError, Problem
from stacklab.files import remove_tree, write_atomically
from stacklab.home import data_dir
from stacklab.lab.settings import HOST
from stacklab.model.service import Command, Service
from stacklab.model.topology import MANAGEMENT, PROVIDER, LabNetwork, Role, tunnel_address
from stacklab.provide.provider import Node
from stacklab.steps import Scope, Step, final_steps, node_steps
from stacklab.templating import FAILURES, failure_in, service_template, stacklab_environment

JOBS = 4
STEPS_FILE = "/var/lib/stacklab/steps.json"
# What a host needs so that all of it can be undone there, by hand even: see playbooks/files/ledger.py.
RETIRE_FILE = "/var/lib/stacklab/retire.json"
LEDGER_FILE = "/usr/lib/stacklab/ledger.py"
REMOTE_TMP = "/tmp/.stacklab-ansible"
FINAL_FILE = "/var/lib/stacklab/final.json"
ELSEWHERE = (
    b"# Rendered by stacklab: runs on another node of the lab.\n[Unit]\nConditionPathExists=/nonexistent\n"
)


@dataclass(frozen=True)
class RenderedFile:
    """A file on a node. secret: its content must not be shown."""

    content: bytes
    owner: str = "root"
    group: str = "root"
    mode: int = 0o644

    @property
    def digest(self) -> str:
        """The hash of its content, owner and mode, in hex."""
        about = f"{self.owner} {self.group} {self.mode:o}\0".encode()
        return hashlib.sha256(about + self.content).hexdigest()

    @property
    def secret(self) -> bool:
        """Whether others on the node may not read it either."""
        return not self.mode & 0o004


@dataclass(frozen=True)
class HostFacts:
    """What templates may know of the machine that the nodes run on.

    kvm: works on a node. openvswitch: a node's kernel has it. patience: how many times longer a node takes.
    """

    kvm: bool
    openvswitch: bool
    patience: float = 1.0

    def longer(self, natively: int) -> int:
        """How many seconds, or times, to wait on such a node for what is waited for `natively` on others."""
        return round(natively * self.patience)


@dataclass(frozen=True)
class Rendered:
    """A layer as rendered.

    files: by node, by path. steps: by node; final: by node, those for when all nodes run. playbook,
    inventory: texts.
    """

    layer: int
    files: Mapping[str, Mapping[str, RenderedFile]]
    steps: Mapping[str, Sequence[Step]]
    final: Mapping[str, Sequence[Step]]
    playbook: str
    inventory: str
    images: Mapping[str, Path] = field(default_factory=dict)
    demands: str = ""

    @property
    def key(self) -> str:
        """The hash of everything in it, in hex."""
        digest = hashlib.sha256()
        for node, files in sorted(self.files.items()):
            for path, file in sorted(files.items()):
                digest.update(f"{node} {path} {file.digest}\n".encode())
        digest.update(self.playbook.encode())
        digest.update(self.demands.encode())
        return digest.hexdigest()

    @property
    def applied_key(self) -> str:
        """The key of the journal's step that says: this very layer was applied and passed its checks."""
        return f"layer-{self.layer}/{self.key}"

    def write(self, folder: Path) -> None:
        """Put it into `folder`, whole, replacing what is there. It holds secrets: only root may enter."""
        new = folder.with_name(f".{folder.name}.new")
        remove_tree(new)
        new.mkdir(parents=True, mode=0o700)
        (new / "playbook.yml").write_text(self.playbook)
        (new / "inventory.yml").write_text(self.inventory)
        for node, files in self.files.items():
            (new / "trees").mkdir(exist_ok=True)
            (new / "trees" / f"{node}.tar.gz.b64").write_bytes(base64.b64encode(_archive(files)))
            for path, file in files.items():
                target = new / "files" / node / path.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.content)
        remove_tree(folder)
        new.rename(folder)
        write_atomically(folder / "key", self.key)


def demands(blueprint: Blueprint, layer: int) -> dict[str, Any]:
    """What the layers up to `layer` want beside files and steps: packages by node, checks, and task files."""
    services = blueprint.up_to(layer)
    checks = {service.name: [check.model_dump() for check in service.checks] for service in services}
    packages = {
        node.name: [*blueprint.packages(services, node), *blueprint.wheels(services, node)]
        for node in blueprint.nodes
    }
    tasks = {service.name: _tasks_digest(service) for service in services if service.tasks}
    return {"packages": packages, "checks": checks, "tasks": tasks}


class Renderer:
    """Renders the layers of one lab.

    lab: its name. secrets: by service and name. ssh: arguments of ssh(1) for Ansible. images: the files of
    images to upload, by name.
    """

    def __init__(
        self,
        lab: str,
        blueprint: Blueprint,
        secrets: Mapping[str, Mapping[str, str]],
        host: HostFacts,
        ssh: Sequence[str] = (),
        images: Mapping[str, Path] | None = None,
    ) -> None:
        self._lab = lab
        self._blueprint = blueprint
        self.secrets = {service: dict(names) for service, names in secrets.items()}
        self._host = host
        self._ssh = ssh
        self._images = images or {}
        self._controller = next(node for node in blueprint.nodes if "controller" in node.roles)

    def text(self, text: str) -> str:
        """Render the text of a check's command. Raises jinja2.TemplateError."""
        context = self._context(self._controller, self._blueprint.services)
        return service_template(text).render(context)

    def file(self, source: Path, words: Mapping[str, Any]) -> str:
        """Render a template that is for no node, with `words` beside its own. Raises ModelError."""
        context = {**self._context(self._controller, self._blueprint.services), **words}
        problems: list[Problem] = []
        content = _render_file(source, context, problems)
        if problems:
            raise ModelError(problems)
        return content.decode()

    def layer(self, number: int) -> Rendered:
        """Render the layers 1 to `number` as they are when layer `number` is up.

        Raises ModelError with every template that cannot be rendered, at its line.
        """
        services = self._blueprint.up_to(number)
        problems: list[Problem] = []
        files = {node.name: self._files(node, services, problems) for node in self._blueprint.nodes}
        self._examine_checks(services, problems)
        scopes = {node.name: self._scope(node, services, files, problems) for node in self._blueprint.nodes}
        steps = {name: self._patient(node_steps(scope)) for name, scope in scopes.items()}
        final = (
            {} if self._alone else {name: self._patient(final_steps(scope)) for name, scope in scopes.items()}
        )
        if problems:
            raise ModelError(problems)
        whole = {node: dict(tree) for node, tree in files.items()}
        for node, tree in whole.items():
            tree[STEPS_FILE] = _steps_file(steps[node])
            tree["/usr/lib/stacklab/register.py"] = RenderedFile(
                (data_dir() / "playbooks" / "files" / "register.py").read_bytes(), mode=0o755
            )
            if final.get(node):
                tree[FINAL_FILE] = _steps_file(final[node])
            if self._blueprint.settings.node_kind == HOST:
                tree |= self._ledger_files(scopes[node])
        images = self._image_files(services)
        return Rendered(
            number,
            whole,
            steps,
            final,
            self._playbook(number, services, [name for name, last in final.items() if last], images),
            self._inventory(),
            images,
            json.dumps(demands(self._blueprint, number)),
        )

    def _ledger_files(self, scope: Scope) -> dict[str, RenderedFile]:
        """What keeps book on a host, and what services want to be run when they go, the last one first."""
        commands = [
            {"service": service.name, "run": scope.render(service, command)}
            for service in reversed(scope.services)
            for command in service.retire
            if command.on in scope.node.roles
        ]
        program = data_dir() / "playbooks" / "files" / "ledger.py"
        return {
            LEDGER_FILE: RenderedFile(program.read_bytes(), mode=0o755),
            RETIRE_FILE: RenderedFile(json.dumps(commands, indent=1).encode(), mode=0o600),
        }

    @property
    def _provider(self) -> LabNetwork:
        """The provider network: the one that the hosts' site has, or that of all labs."""
        own = self._blueprint.settings.provider
        return own.network() if own else PROVIDER

    def _text(
        self,
        service: Service,
        text: str,
        where: tuple[str | int, ...],
        context: Mapping[str, Any],
        problems: list[Problem],
    ) -> str:
        """The text that stands at `where` in a service's file, rendered; what is wrong goes to `problems`."""
        try:
            return service_template(text).render(context)
        except FAILURES as error:
            line, message = failure_in(error)
            problems.append(service.problem_in(message, line, *where))
            return ""

    def _examine_checks(self, services: Sequence[Service], problems: list[Problem]) -> None:
        """Checks are rendered when they are run, which is too late to tell what is wrong with them."""
        context = self._context(self._controller, self._blueprint.services)
        for service in services:
            for text, where in service.texts():
                if where[0] == "checks":
                    self._text(service, text, where, context, problems)

    def _image_files(self, services: Sequence[Service]) -> dict[str, Path]:
        """The files of the images to upload, by name: stacklab's own, or one in the service's folder."""
        return {
            image.file: self._images.get(image.file, service.folder / image.file)
            for service in services
            for image in service.resources.images
        }

    def _patient(self, steps: Sequence[Step]) -> list[Step]:
        """The steps, each with the time that it takes on such a node."""
        return [replace(step, timeout=self._host.longer(step.timeout)) for step in steps]

    @property
    def _alone(self) -> bool:
        return len(self._blueprint.nodes) == 1

    def _context(self, node: Node, services: Sequence[Service]) -> dict[str, Any]:
        facts = {other.name: _node_facts(other, index) for index, other in enumerate(self._blueprint.nodes)}
        return {
            "lab": {"name": self._lab},
            "release": {"name": self._blueprint.release.name},
            "node": facts[node.name],
            "nodes": list(facts.values()),
            "nodes_by_role": {
                role: [each for each in facts.values() if role in each["roles"]] for role in get_args(Role)
            },
            "controller": self._controller.address,
            "services": {service.name: service for service in services},
            "secrets": self.secrets,
            "network": {"management": MANAGEMENT, "provider": self._provider},
            "host": self._host,
            "workers": 1,
        }

    def _files(
        self, node: Node, services: Sequence[Service], problems: list[Problem]
    ) -> dict[str, RenderedFile]:
        context = self._context(node, services)
        files: dict[str, RenderedFile] = {}
        owners: dict[str, str] = {}
        for service in services:
            if not parts_on(service, node):
                continue
            for path, source in _sources(service):
                ownership = service.files.ownership(path)
                if ownership.on not in (None, *node.roles):
                    continue
                if source.suffix == ".j2":
                    content = _render_file(source, context, problems)
                else:
                    content = source.read_bytes()
                if path in files:
                    problems.append(
                        Problem(source, 1, 1, f"{path} is a file of the service '{owners[path]}' too")
                    )
                owners[path] = service.name
                files[path] = RenderedFile(content, ownership.owner, ownership.group, int(ownership.mode, 8))
        return files | {path: RenderedFile(ELSEWHERE) for path in _units_elsewhere(node, services)}

    def _scope(
        self,
        node: Node,
        services: Sequence[Service],
        files: Mapping[str, Mapping[str, RenderedFile]],
        problems: list[Problem],
    ) -> Scope:
        context = self._context(node, services)

        def files_of(service: Service) -> Mapping[str, bytes]:
            tree = files[node.name]
            return {path: tree[path].content for path, _ in _sources(service) if path in tree}

        def render(service: Service, command: Command) -> str:
            where = next(where for each, where in service.commands_in_place() if each is command)
            return self._text(service, command.run, (*where, "run"), context, problems)

        return Scope(
            node=node,
            controller=self._controller,
            services=services,
            alone=self._alone,
            provider=self._provider,
            secrets=self.secrets,
            files=files_of,
            render=render,
            image_digests={
                image.name: _digest(self._image_files(services)[image.file])
                for service in services
                for image in service.resources.images
            },
            admin={
                "url": f"http://{self._controller.address}:5000/v3",
                "user": "admin",
                "password": self.secrets.get("keystone", {}).get("admin", ""),
                "project": "admin",
            },
        )

    def _playbook(
        self, number: int, services: Sequence[Service], last: Sequence[str], images: Mapping[str, Path]
    ) -> str:
        """The playbook. last: the nodes with steps for when all nodes run.

        What runs on the other nodes logs in at the controller's APIs, so they come after it.
        """
        others = [node.name for node in self._blueprint.nodes if node != self._controller]
        plays = [
            {"title": title, "nodes": nodes, "file": file}
            for title, nodes, file in (
                ("Bring up the controller", [self._controller.name], STEPS_FILE),
                ("Bring up the other nodes", others, STEPS_FILE),
                ("Complete", last, FINAL_FILE),
            )
            if nodes
        ]
        tasks: dict[str, list[dict[str, str]]] = {}
        for service in services:
            for phase, file in service.tasks.items():
                tasks.setdefault(phase, []).append(
                    {"service": service.name, "file": str(service.folder / file)}
                )
        return (
            stacklab_environment()
            .get_template("playbooks/layer.yml.j2")
            .render(
                layer=number,
                lab=self._lab,
                plays=plays,
                tasks=tasks,
                jobs=JOBS,
                images=[
                    {"name": name, "source": str(source), "digest": _digest(source)}
                    for name, source in images.items()
                ],
            )
        )

    def _inventory(self) -> str:
        hosts = {
            node.name: {
                "ansible_host": node.address,
                **_access(node),
                "node_roles": list(node.roles),
                "services_here": [
                    service.name for service in self._blueprint.services if parts_on(service, node)
                ],
            }
            for node in self._blueprint.nodes
        }
        shared = {
            "ansible_python_interpreter": "/usr/bin/python3",
            "ansible_ssh_common_args": " ".join(self._ssh),
            "controller_node": self._controller.name,
        }
        return yaml.safe_dump({"all": {"hosts": hosts, "vars": shared}}, sort_keys=False)


def _access(node: Node) -> dict[str, Any]:
    """How Ansible logs in to a node, and becomes root there."""
    access: dict[str, Any] = {"ansible_user": node.user}
    if node.kind == HOST:
        access |= {"ansible_port": node.port, "ansible_remote_tmp": REMOTE_TMP}
    if node.user != "root":
        access["ansible_become"] = True
    if node.key:
        access["ansible_ssh_private_key_file"] = node.key
    return access


def _digest(file: Path) -> str:
    """The SHA-256 of a file; empty where it is not there yet, as in the plan of a first `up`."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return ""
    return _digest_as_of(file, status.st_mtime_ns, status.st_size)


@cache
def _digest_as_of(file: Path, modified: int, size: int) -> str:
    """The SHA-256 of a file as it was then: images take tens of MiB, and go into every recipe."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _tasks_digest(service: Service) -> str:
    """The hash, in hex, of a service's task files, their phases, and all in tasks/, which they may read."""
    beside = (file for file in (service.folder / "tasks").rglob("*") if file.is_file())
    digest = hashlib.sha256(repr(sorted(service.tasks.items())).encode())
    for file in sorted({*beside, *(service.folder / path for path in service.tasks.values())}):
        digest.update(f"{file.relative_to(service.folder)} {_digest(file)}\n".encode())
    return digest.hexdigest()


def _units_elsewhere(node: Node, services: Sequence[Service]) -> Iterator[str]:
    """Files by which units that are for other nodes do not start on this one.

    All nodes start from one image with the packages of all of them, and Debian's units want each other: an
    agent of Neutron starts the database and Keystone where it finds them.
    """
    own = {unit for service in services for part in parts_on(service, node).values() for unit in part.units}
    every = {unit for service in services for part in service.parts.values() for unit in part.units}
    for unit in sorted(every - own):
        name = unit if "." in unit else f"{unit}.service"
        yield f"/etc/systemd/system/{name}.d/stacklab-elsewhere.conf"


def _node_facts(node: Node, index: int) -> dict[str, Any]:
    return {
        "name": node.name,
        "address": node.address,
        "tunnel_address": tunnel_address(index),
        "roles": list(node.roles),
        "kind": node.kind,
        "provider_interface": node.provider_interface,
    }


def _steps_file(steps: Sequence[Step]) -> RenderedFile:
    text = json.dumps([step.document() for step in steps], indent=1)
    return RenderedFile(text.encode(), mode=0o600)


def _sources(service: Service) -> list[tuple[str, Path]]:
    """The files of a service's folder, each with its path on a node; not what Python leaves beside them."""
    top = service.folder / "files"
    return [
        (f"/{file.relative_to(top).as_posix()}".removesuffix(".j2"), file)
        for file in sorted(top.rglob("*"))
        if file.is_file() and "__pycache__" not in file.parts
    ]


def _render_file(source: Path, context: Mapping[str, Any], problems: list[Problem]) -> bytes:
    try:
        return service_template(source.read_text()).render(context).encode()
    except FAILURES as error:
        line, message = failure_in(error)
        problems.append(Problem(source, line, 1, message))
        return b""


def _archive(files: Mapping[str, RenderedFile]) -> bytes:
    """A gzipped tar archive, the same bytes for the same files."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for path, file in sorted(files.items()):
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode = len(file.content), file.mode
            member.uname, member.gname = file.owner, file.group
            archive.addfile(member, io.BytesIO(file.content))
    return buffer.getvalue()


def differences(old: Path, new: Rendered) -> Iterator[tuple[str, str, bytes, bytes]]:
    """Files that differ between what is in the folder `old` and `new`.

    Node, path, content before and after.
    """
    for node, files in new.files.items():
        top = old / "files" / node
        before = {f"/{file.relative_to(top).as_posix()}": file for file in top.rglob("*") if file.is_file()}
        for path in sorted({*files, *before}):
            was = before[path].read_bytes() if path in before else b""
            becomes = files[path].content if path in files else b""
            if was != becomes or (path in before) != (path in files):
                yield node, path, was, becomes
