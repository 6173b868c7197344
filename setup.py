"""Packaging. The packages are named one by one and the package directory is given, so that a wheel, a
source archive and an editable install all carry the twistd plugins (setuptools' import finder for
editable installs does not look into twisted.plugins)."""

from pathlib import Path

from setuptools import setup

# A seed that keeps its directory in Redis or Valkey. Whoever works on meshproto needs it too.
REDIS = "redis[hiredis]>=8,<9"

setup(
    name="meshproto",
    version="0.1.0",
    description="Direct messages between programs and people, addressed by name, on machines they run themselves",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    package_dir={"": "."},
    packages=[
        "meshproto",
        "meshproto.cli",
        "meshproto.client",
        "meshproto.core",
        "meshproto.net",
        "twisted.plugins",
    ],
    package_data={"meshproto": ["py.typed", "web/*/*"]},
    install_requires=[
        "Twisted[tls]>=25.5,<27",
        "klein>=24.8,<26",
        "treq>=25.5,<27",
        "msgspec>=0.19,<0.23",
        "sortedcontainers>=2.4,<3",
        "PyNaCl>=1.5,<2",
        "platformdirs>=4,<5",
        "click>=8.1,<9",
        "rich>=13,<16",
        # The screen of `mesh chat`, where one types while messages come: what IPython is typed into.
        "prompt_toolkit>=3.0.43,<4",
        "segno>=1.6,<2",
        "httptools>=0.6.4,<1",
        # Multicast DNS, for --lan. The first with bounds on what a flood of it may take.
        "zeroconf>=0.154,<1",
        "ifaddr>=0.2,<1",
    ],
    extras_require={
        "redis": [REDIS],
        "dev": [
            REDIS,
            "pytest>=8.3,<10",
            "pytest-twisted>=1.14.3,<2",
            # As many tests at a time as there are cores.
            "pytest-xdist>=3.6,<4",
            "hypothesis>=6.100,<7",
            "mypy>=1.15,<3",
            "mypy-zope>=1.0.11,<2",
            "ruff>=0.9,<1",
            "trustme>=1.2,<2",
            "build>=1.2,<2",
            "setuptools>=77,<90",
            "sortedcontainers-stubs>=2.4,<3",
            "schemathesis>=4.10,<5",
            # Reads the QR codes that are drawn.
            "zxing-cpp>=3.1,<4",
            # Drives the browser in the tests of the page, and for its pictures.
            "selenium>=4.30,<5",
            # docs/ as a site: `make docs`.
            "sphinx>=8.2,<10",
            "myst-parser>=4.0.1,<6",
            "furo>=2025.7.19,<2028",
            # The plots of `make bench`.
            "matplotlib>=3.9,<4",
            # `python -m bench.fuzz_guided`; it comes ready-made for these only.
            "atheris>=3,<4; sys_platform == 'linux' and platform_machine == 'x86_64' and python_version < '3.14'",
        ],
    },
    entry_points={"console_scripts": ["mesh = meshproto.cli.main:main"]},
    classifiers=[
        "Framework :: Twisted",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Topic :: Communications",
        "Typing :: Typed",
    ],
)
