"""The crates that the two programs are made of: which, under which licence, from where.

In: Cargo.toml and Cargo.lock of the tree, asked through cargo. Out: a list of Crate. Callers: notice.py, sbom.py.
"""

import json
import re
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

TARGET = "x86_64-unknown-linux-gnu"
PROGRAMS = ["taiji", "taiji-trainer"]

# How licence files are called in crates, at any depth.
LICENCE_FILE = re.compile(r"(licen[cs]es?|copying|copyright|notice|unlicense|patents)([-_. ].*)?", re.IGNORECASE)
NO_TEXT = {".rs", ".py", ".html", ".c", ".h", ".toml", ".yml"}


class DistError(Exception):
    """Why no archive can be made; names the thing and the remedy."""


@dataclass
class Crate:
    name: str
    version: str
    licence: str  # an SPDX expression
    folder: Path
    checksum: str | None = None  # sha256 of the .crate file; none for our own
    authors: list[str] = field(default_factory=list)
    links: str | None = None
    uses: list[str] = field(default_factory=list)  # keys of crates

    @property
    def key(self):
        return f"{self.name} {self.version}"

    @property
    def ours(self):
        return self.checksum is None


def expression(licence):
    """Cargo's older form, "MIT/Apache-2.0", as SPDX writes it."""
    return re.sub(r"\s*/\s*", " OR ", licence)


def read(tree_lines, metadata, lock):
    """`tree_lines`: `cargo tree` without its drawing, one crate a line; `metadata`: of `cargo metadata`; `lock`: of Cargo.lock."""
    built = {tuple(line.split()[:2]) for line in tree_lines if line.strip()}
    checksums = {(package["name"], package["version"]): package.get("checksum") for package in lock["package"]}
    packages = {(package["name"], "v" + package["version"]): package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    key_of = {package["id"]: f"{package['name']} {package['version']}" for package in metadata["packages"]}
    crates = []
    for name, version in sorted(built):
        package = packages[(name, version)]
        licence = package["license"]
        if not licence:
            raise DistError(f"{name} {version}: Cargo.toml names no licence")
        foreign = package["source"] is not None
        checksum = checksums[(name, package["version"])]
        if foreign and not checksum:
            raise DistError(f"{name} {version}: Cargo.lock has no checksum of it (only crates of a registry can be shipped)")
        normal = [edge["pkg"] for edge in nodes[package["id"]]["deps"] if any(kind["kind"] is None for kind in edge["dep_kinds"])]
        folder = Path(package["manifest_path"]).parent
        crates.append(Crate(name, package["version"], expression(licence), folder, checksum, package["authors"], package["links"], [key_of[id] for id in normal]))
    keys = {crate.key for crate in crates}
    for crate in crates:
        crate.uses = sorted(set(crate.uses) & keys)
    return crates


def asked(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise DistError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def of_this_tree():
    """What `cargo build --workspace` puts into the programs, features included: compiled by them or at their compilation."""
    chosen = [part for program in PROGRAMS for part in ("-p", program)]
    tree = asked("cargo", "tree", "--locked", "--edges", "normal", "--target", TARGET, "--prefix", "none", "--format", "{p}", *chosen)
    metadata = json.loads(asked("cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET))
    return read(tree.splitlines(), metadata, tomllib.loads(Path("Cargo.lock").read_text()))


def licence_files(crate):
    """Paths of a crate's licence texts, those of code that it carries included, sorted."""
    found = [path for path in crate.folder.rglob("*") if path.is_file() and LICENCE_FILE.fullmatch(path.name) and path.suffix not in NO_TEXT]
    # What Debian or CMake say of a bundled library's packaging is not about what is linked.
    return sorted(path for path in found if not {"packaging", "debian", "tests", "contrib"} & set(path.relative_to(crate.folder).parts[:-1]))
