"""`make dist`: the release archive out of the built programs. Standard library only.

    main.py BIN OUT     BIN: the folder of taiji and taiji-trainer; writes OUT/taiji-VERSION-x86_64-linux.tar.gz and its .sha256

Same commit, same programs: same bytes. Ends with 69 and the reason where no archive can be made.
"""

import gzip
import hashlib
import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

import crates as crates_of
import libraries as libraries_of
import notice
import sbom
from crates import PROGRAMS, DistError, asked

PAGES = ["README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE"]


def commit():
    """(commit, its time in seconds). Outside of a git checkout unknown, and the time is SOURCE_DATE_EPOCH."""
    if not Path(".git").exists():
        if not os.environ.get("SOURCE_DATE_EPOCH", "").isdigit():
            raise DistError("this tree is no git checkout: set SOURCE_DATE_EPOCH, the time in seconds that files get")
        return "unknown", int(os.environ["SOURCE_DATE_EPOCH"])
    if asked("git", "status", "--porcelain", "--untracked-files=no"):
        raise DistError("tracked files are changed: commit them first, an archive is of one commit")
    return asked("git", "rev-parse", "--short=12", "HEAD").strip(), int(asked("git", "log", "-1", "--format=%ct"))


def check_built(binaries, version, commit):
    """The programs must be those of this commit."""
    for program in PROGRAMS:
        said = asked(f"{binaries}/{program}", "--version").strip()
        wanted = f"{program} {version} (commit {commit}"
        if not said.startswith(wanted):
            raise DistError(f"{binaries}/{program} is '{said}', not of commit {commit}: make build")


def stage(folder, binaries, version, commit, seconds):
    """All files of the archive."""
    asked("bash", "scripts/image_programs.sh", f"{folder}/bin", binaries)
    for program in PROGRAMS:
        asked(f"{folder}/bin/{program}", "pages", "--out", str(folder))
    (folder / "man").mkdir()
    (folder / "man1").rename(folder / "man/man1")
    shutil.copytree("packaging/systemd", folder / "systemd")
    shutil.copy("src/config/default.toml", folder / "default.toml")
    for page in PAGES:
        shutil.copy(page, folder / page)

    crates = crates_of.of_this_tree()
    shared = next((folder / "bin").glob("libonnxruntime.so.*"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "taiji")
    programs = {name: hashlib.sha256((folder / "bin" / name).read_bytes()).hexdigest() for name in PROGRAMS}
    libraries = [libraries_of.rust(asked("rustc", "--print", "sysroot").strip()), *libraries_of.bundled(crates)]
    libraries += [libraries_of.onnx_runtime(shared, cache / "wheels")]
    libraries += libraries_of.linked([folder / "bin" / name for name in PROGRAMS] + [shared])
    (folder / "NOTICE").write_text(notice.write(version, crates, libraries))
    bill = sbom.write(version, commit, seconds, crates, libraries, programs)
    (folder / "sbom.cdx.json").write_text(json.dumps(bill, indent=1) + "\n")

    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(sums))


def pack(folder, archive, seconds):
    """A .tar.gz whose bytes depend on names, contents and `seconds` alone."""

    def entry(info):
        info.uid = info.gid = 0
        info.uname = info.gname = "root"
        info.mtime = seconds
        info.mode = 0o755 if info.isdir() or info.name.split("/")[1:2] == ["bin"] else 0o644
        return info

    with open(archive, "wb") as out, gzip.GzipFile("", "wb", 6, out, mtime=seconds) as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for path in [folder, *sorted(folder.rglob("*"))]:
                tar.add(path, arcname=str(path.relative_to(folder.parent)), recursive=False, filter=entry)


def main():
    binaries, out = sys.argv[1:]
    version = re.search(r'^version = "(.*)"', Path("Cargo.toml").read_text(), re.MULTILINE)[1]
    try:
        of_commit, seconds = commit()
        check_built(binaries, version, of_commit)
        name = f"taiji-{version}-x86_64-linux"
        folder = Path(".cache/dist", name)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        stage(folder, binaries, version, of_commit, seconds)
    except DistError as error:
        print(f"dist: {error}", file=sys.stderr)
        sys.exit(69)
    Path(out).mkdir(exist_ok=True)
    archive = Path(out, f"{name}.tar.gz")
    pack(folder, archive, seconds)
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    Path(f"{archive}.sha256").write_text(f"{digest}  {archive.name}\n")
    print(f"dist: {archive} {archive.stat().st_size / 1e6:.1f} MB, commit {of_commit}, sha256 {digest}")


main()
