"""What the programs have beside crates: libraries compiled into them, ONNX Runtime beside them, libraries of the system.

In: the crates, the built programs, dpkg's records. Out: a list of Library. Callers: notice.py, sbom.py.
"""

import hashlib
import html
import os
import re
import subprocess
import zipfile
from dataclasses import dataclass
from pathlib import Path

from crates import DistError, asked

# Crate -> what is compiled into it: name, licence, where its version stands (file in the crate and pattern; none: behind the + of the crate's).
BUNDLED = {
    "faiss-sys": ("FAISS", "MIT", ("faiss/CMakeLists.txt", r"\n\s+VERSION (\d+\.\d+\.\d+)\s")),
    "libmimalloc-sys": ("mimalloc", "MIT", ("c_src/mimalloc/v3/include/mimalloc.h", r"define MI_MALLOC_VERSION\s+(\d+)")),
    "rdkafka-sys": ("librdkafka", "BSD-2-Clause", None),
    "zstd-sys": ("Zstandard", "BSD-3-Clause", None),
}
# Crates whose `links` is about something else, and what.
NOT_BUNDLED = {
    "libz-sys": "links the system's zlib",
    "openssl-sys": "links the system's OpenSSL",
    "ort-sys": "loads ONNX Runtime at run time",
    "rayon-core": "a guard against two versions",
    "ring": "its own C and assembly, under its own licence",
}
# Debian's package -> licence of its libraries.
LINKED = {
    "libc6": "LGPL-2.1-or-later",
    "libgcc-s1": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libgfortran5": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libgomp1": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "libopenblas0-pthread": "BSD-3-Clause",
    "libquadmath0": "LGPL-2.1-or-later",
    "libssl3": "Apache-2.0",
    "libstdc++6": "GPL-3.0-or-later WITH GCC-exception-3.1",
    "zlib1g": "Zlib",
}


@dataclass
class Library:
    name: str
    version: str
    licence: str
    purl: str
    how: str  # compiled in | shipped | linked
    texts: list[tuple[str, str]]  # (where it stands, licence text); empty where those of a crate hold it
    sha256: str | None = None  # of the file that is shipped
    files: tuple[str, ...] = ()  # sonames that are linked


def bundled(crates):
    """Libraries that crates compile into the programs. A crate with `links` that nobody has looked at is refused."""
    found = []
    for crate in crates:
        if crate.name in BUNDLED:
            name, licence, place = BUNDLED[crate.name]
            if place:
                match = re.search(place[1], (crate.folder / place[0]).read_text())
            else:
                match = re.search(r"\+(?:[a-z]+\.)?(\d[\w.]*)$", crate.version)
            if not match:
                raise DistError(f"{crate.key}: the version of {name} is not where scripts/dist/libraries.py looks for it")
            # mimalloc writes 3.3.2 as 30302.
            number = int(match[1]) if match[1].isdigit() else None
            version = f"{number // 10000}.{number // 100 % 100}.{number % 100}" if number else match[1]
            found.append(Library(name, version, licence, f"pkg:generic/{name.lower()}@{version}", "compiled in", []))
        elif crate.links and crate.name not in NOT_BUNDLED and not crate.ours:
            raise DistError(f"{crate.key} links {crate.links}: say in scripts/dist/libraries.py what that brings")
    return found


def rust(sysroot):
    """The standard library, with what it is made of."""
    version = asked("rustc", "--version").split()[1]
    page = Path(sysroot, "share/doc/rust/COPYRIGHT-library.html")
    if not page.is_file():
        raise DistError(f"{page} is missing: licences of Rust's standard library come with rustup's toolchains")
    text = re.sub(r"<(script|style).*?</\1>", "", page.read_text(), flags=re.DOTALL)
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    text = re.sub(r"\n\s*\n+", "\n\n", text).strip()
    return Library("Rust standard library", version, "MIT OR Apache-2.0", f"pkg:generic/rust-std@{version}", "compiled in", [("COPYRIGHT-library", text)])


def onnx_runtime(shared, wheels):
    """ONNX Runtime: `shared` is the library that is shipped, `wheels` the folder in which `taiji runtime fetch` keeps what it came from."""
    version = shared.name.removeprefix("libonnxruntime.so.")
    sha256 = hashlib.sha256(shared.read_bytes()).hexdigest()
    for wheel in sorted(wheels.glob(f"*/onnxruntime-{version}-*.whl")):
        with zipfile.ZipFile(wheel) as packed:
            if hashlib.sha256(packed.read(f"onnxruntime/capi/{shared.name}")).hexdigest() != sha256:
                continue
            texts = [(name, packed.read(f"onnxruntime/{name}").decode()) for name in ("LICENSE", "ThirdPartyNotices.txt")]
        return Library("ONNX Runtime", version, "MIT", f"pkg:pypi/onnxruntime@{version}", "shipped", texts, sha256)
    raise DistError(f"no wheel in {wheels} holds this {shared.name}, and so no licence: remove the library from the cache folder and run `taiji runtime fetch`")


def package_of(path):
    """Debian's package that installed a file, and its version."""
    # Merged /usr: dpkg may know either name.
    for name in (path, path.removeprefix("/usr")):
        done = subprocess.run(["dpkg-query", "--search", name], capture_output=True, text=True)
        if done.returncode == 0:
            package = done.stdout.split(": ")[0].split(":")[0].split(",")[0]
            return package, asked("dpkg-query", "--show", "--showformat=${Version}", package).strip()
    raise DistError(f"{path}: no Debian package installed it, so its licence is not known")


def linked(programs):
    """Libraries of the system that the programs are linked to, by package."""
    places = {}
    for program in programs:
        for line in asked("ldd", str(program)).splitlines():
            match = re.match(r"\s+(\S+) => (/\S+)", line)
            if match:
                places[match[1]] = os.path.realpath(match[2])
    packages = {}
    for soname, path in places.items():
        packages.setdefault(package_of(path), []).append(soname)
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    distro = f"{release['ID']}-{release['VERSION_ID']}".replace('"', "")
    found = []
    for (package, version), sonames in sorted(packages.items()):
        if package not in LINKED:
            raise DistError(f"the programs are linked to {', '.join(sonames)} of {package}: name its licence in scripts/dist/libraries.py")
        text = Path("/usr/share/doc", package, "copyright").read_text(errors="replace")
        purl = f"pkg:deb/debian/{package}@{version.replace('+', '%2B').replace(':', '%3A')}?arch=amd64&distro={distro}".replace("c++", "c%2B%2B")
        found.append(Library(package, version, LINKED[package], purl, "linked", [("copyright", text)], files=tuple(sorted(sonames))))
    return found
