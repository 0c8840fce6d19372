"""A service: one folder of data that says what it requires, installs, configures, runs, registers and checks.

The words are explained, with an example, in docs/reference/service.md.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from stacklab.model.documents import Step
from stacklab.model.schema import Name, Port, Root, Size, Strict, Word, wrong
from stacklab.model.topology import Role

Phase = Literal["before-configure", "after-configure", "before-start", "after-start", "after-register"]
"""Where a service may hook an Ansible task file of its own into the lifecycle."""

Scenario = Literal["agents", "bare-metal", "floating-ip", "instance", "names", "neighbours", "volumes"]
"""What takes more than one command to find out, and is built into stacklab (stacklab/check/scenarios.py)."""


def _absolute(path: str) -> str:
    if not path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ValueError(f"expected an absolute path on the node, got '{path}'")
    return path


def _relative(path: str) -> str:
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ValueError(f"expected a path below the service's folder, got '{path}'")
    return path


Mode = Annotated[str, Field(pattern=r"^0[0-7]{3}$")]
Wheel = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*$")]
"""A Python package of one version: NAME==VERSION."""
AbsolutePath = Annotated[str, AfterValidator(_absolute)]
RelativePath = Annotated[str, AfterValidator(_relative)]


class Needs(Strict):
    """Memory at run time and room on the node's disk, in MiB.

    kernel: whether its nodes need a kernel of their own, which containers have not.
    """

    memory: Size = 0
    disk: Size = 0
    kernel: bool = False


class Part(Strict):
    """What the nodes of one role install and run; wheels are what Debian does not carry."""

    packages: tuple[Word, ...] = ()
    wheels: tuple[Wheel, ...] = ()
    units: tuple[Word, ...] = ()
    ports: tuple[Port, ...] = ()


class Ownership(Strict):
    """Whose a file on a node is; on: the role of the nodes that have it, all that run a part if none."""

    owner: Word = "root"
    group: Word = "root"
    mode: Mode = "0644"
    on: Role | None = None


class Files(Strict):
    """Whose the files below files/ are: root:root 0644, or root:GROUP 0640; `special` paths as they say."""

    group: Word | None = None
    on: Role | None = None
    special: Mapping[AbsolutePath, Ownership] = Field(default_factory=dict)

    def ownership(self, path: str) -> Ownership:
        """Owner, group, mode and nodes of the absolute `path` on the node."""
        if path in self.special:
            own = self.special[path]
            return own if own.on else own.model_copy(update={"on": self.on})
        return Ownership(group=self.group, mode="0640", on=self.on) if self.group else Ownership(on=self.on)


class Command(Strict):
    """A shell command on a node, idempotent: it may be run again. `run` may hold Jinja expressions."""

    name: Name
    run: Word
    user: Word = Field(default="root", alias="as")
    on: Role = "controller"


class Database(Strict):
    """Databases to create, and the commands that fill their schemas (they need nothing but the database)."""

    names: tuple[Word, ...]
    sync: tuple[Command, ...] = ()


class Endpoint(Strict):
    """An API as Keystone's catalogue lists it: http://<controller>:<port><path>."""

    name: Name
    type: Word
    port: Port
    path: str = ""


class Identity(Strict):
    """The service's own user, the roles that it knows beside Keystone's own, and its APIs."""

    user: Name | None = None
    roles: tuple[Word, ...] = ()
    services: tuple[Endpoint, ...] = ()


class Flavor(Strict):
    """A flavor of instances; ram in MiB, disk in GiB; properties as Nova calls its extra specs."""

    name: Word
    ram: int
    vcpus: int
    disk: int = 0
    properties: Mapping[Word, Word] = Field(default_factory=dict)


class Subnet(Strict):
    """The subnet of a network; `start` to `end` is what instances get."""

    name: Word
    cidr: Word
    gateway: Word | None = None
    start: Word
    end: Word
    dns: tuple[Word, ...] = ()


class Network(Strict):
    """A network of the cloud; `physical` is the name that the agents map to an interface."""

    name: Word
    shared: bool = False
    external: bool = False
    type: Word | None = None
    physical: Word | None = None
    subnet: Subnet | None = None


class Router(Strict):
    """A router: its gateway is on the network `external`, and it has an interface on each of `subnets`."""

    name: Word
    external: Word
    subnets: tuple[Word, ...] = ()


class Image(Strict):
    """An image of the cloud; `file` lies in the images folder of the lab.

    kernel, ramdisk: names of the images that it is booted by, where it is not booted by itself.
    """

    name: Word
    file: Word
    format: Word
    kernel: Word | None = None
    ramdisk: Word | None = None


class Rule(Strict):
    """A rule that lets traffic in, in a security group of the admin project."""

    group: Word
    protocol: Word
    port: Port | None = None


class Encryption(Strict):
    """How volumes of a type are encrypted, by the compute node; key_size in bits."""

    provider: Word = "luks"
    cipher: Word = "aes-xts-plain64"
    key_size: int = 256


class VolumeType(Strict):
    """A type of volumes, with the properties by which Cinder chooses where they lie."""

    name: Word
    properties: Mapping[str, Word] = Field(default_factory=dict)
    encryption: Encryption | None = None


class Resources(Strict):
    """What stacklab creates through the cloud's own APIs when the layer is up."""

    flavors: tuple[Flavor, ...] = ()
    networks: tuple[Network, ...] = ()
    routers: tuple[Router, ...] = ()
    images: tuple[Image, ...] = ()
    rules: tuple[Rule, ...] = ()
    volume_types: tuple[VolumeType, ...] = ()


class Check(Strict):
    """A question to the running cloud: a command with its credentials, or a scenario built into stacklab."""

    name: Word
    run: Word | None = None
    scenario: Scenario | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if (self.run is None) == (self.scenario is None):
            raise wrong("a check has either 'run' or 'scenario'")
        return self


class Service(Root):
    """One folder of data: service.yaml beside its files/ and tasks/."""

    summary: str = ""
    requires: tuple[Name, ...] = ()
    uses: tuple[Name, ...] = ()
    provides: tuple[Word, ...] = ()
    emits: tuple[Word, ...] = ()
    needs: Needs = Needs()
    limits: tuple[Word, ...] = ()
    secrets: tuple[Name, ...] = ()
    parts: Mapping[Role, Part] = Field(default_factory=dict)
    files: Files = Files()
    database: Database | None = None
    initialise: tuple[Command, ...] = ()
    identity: Identity = Identity()
    resources: Resources = Resources()
    finalise: tuple[Command, ...] = ()
    retire: tuple[Command, ...] = ()
    tasks: Mapping[Phase, RelativePath] = Field(default_factory=dict)
    checks: tuple[Check, ...] = ()

    @property
    def folder(self) -> Path:
        """The folder of the service: files/ and tasks/ lie in it."""
        return self.file.parent

    @model_validator(mode="after")
    def _passwords_have_a_secret(self) -> Self:
        if self.database is not None and "database" not in self.secrets:
            raise wrong("the database's password needs 'database' among the secrets", "database")
        if self.identity.user is not None and "identity" not in self.secrets:
            raise wrong("the user's password needs 'identity' among the secrets", "identity", "user")
        return self

    @model_validator(mode="after")
    def _task_files_exist(self) -> Self:
        for phase, path in self.tasks.items():
            if not (self.folder / path).is_file():
                raise wrong(f"there is no file {self.folder / path}", "tasks", phase)
        return self

    @model_validator(mode="after")
    def _requires_others(self) -> Self:
        for word, names in (("requires", self.requires), ("uses", self.uses)):
            for index, name in enumerate(names):
                if name == self.name:
                    raise wrong(f"a service cannot name itself in '{word}'", word, index)
                if name in names[:index]:
                    raise wrong(f"'{name}' is listed twice", word, index)
        return self

    def commands(self) -> Iterator[Command]:
        """Every command of the service, in the order of the lifecycle."""
        for command, _ in self.commands_in_place():
            yield command

    def commands_in_place(self) -> Iterator[tuple[Command, tuple[Step, ...]]]:
        """Every command, with where it stands: keys and indexes."""
        lists: tuple[tuple[tuple[Step, ...], tuple[Command, ...]], ...] = (
            (("database", "sync"), self.database.sync if self.database else ()),
            (("initialise",), self.initialise),
            (("finalise",), self.finalise),
            (("retire",), self.retire),
        )
        for where, commands in lists:
            for index, command in enumerate(commands):
                yield command, (*where, index)

    def texts(self) -> Iterator[tuple[str, tuple[Step, ...]]]:
        """Every text that may hold Jinja expressions, with where it stands."""
        for command, where in self.commands_in_place():
            yield command.run, (*where, "run")
        for index, check in enumerate(self.checks):
            if check.run is not None:
                yield check.run, ("checks", index, "run")
