"""`make dist-check`: is the release archive whole, the same twice, and does what the README says install it? As root.

    dist_check.py BIN     BIN: the folder of the built programs

Installs by the README's lines on the image's base (scripts/image.sh), serves there what the systemd unit starts. Ends with 69 where this
machine cannot do it.
"""

import filecmp
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from container import Container, container, expect

WORK = Path(".cache/dist-check")
ROOT = str(WORK / "root")
BUNDLE = "models/demo/1"
USER = 10001
# Most that `systemd-analyze security` may find (0 nothing, 10 all).
EXPOSURE = 1.5
PROGRAMS = ["taiji", "taiji-trainer"]
UNITS = ["taiji.service", "taiji@.service"]


def run(*command, code=0, **settings):
    """A command of this machine, and what it prints."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **settings)
    if done.returncode == 69 and code == 0:
        print(done.stdout.strip())
        sys.exit(69)
    expect(done.returncode == code, f"{shlex.join(map(str, command))} ended with {done.returncode}: {done.stdout.strip()[-2000:]}")
    return done.stdout


def make_twice(binaries):
    """The archive; made again it has the same bytes."""
    for out in ("dist", str(WORK / "again")):
        print(run("python3", "scripts/dist/main.py", binaries, out).strip())
    [archive] = Path("dist").glob(f"taiji-{version()}-*.tar.gz")
    for name in (archive.name, archive.name + ".sha256"):
        expect(filecmp.cmp(f"dist/{name}", WORK / "again" / name, shallow=False), f"{name} is another when it is made again")
    return archive


def version():
    return re.search(r'^version = "(.*)"', Path("Cargo.toml").read_text(), re.MULTILINE)[1]


def check_entries(archive):
    with tarfile.open(archive) as tar:
        entries = tar.getmembers()
    names = [entry.name for entry in entries]
    top = archive.name.removesuffix(".tar.gz")
    expect(names == sorted(names) and all(name.split("/")[0] == top for name in names), "entries are out of order or outside of their folder")
    expect({entry.mtime for entry in entries} == {int(run("git", "log", "-1", "--format=%ct"))}, "the time of an entry is not the commit's")
    expect({(entry.uid, entry.gid, entry.uname) for entry in entries} == {(0, 0, "root")}, "an entry is not root's")
    files = {name.removeprefix(top + "/") for name, entry in zip(names, entries) if entry.isfile()}
    wanted = {"bin/taiji", "bin/taiji-trainer", "LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "SECURITY.md", "SHA256SUMS", "default.toml", "sbom.cdx.json"}
    wanted |= {f"systemd/{unit}" for unit in UNITS} | {"systemd/taiji.toml"}
    for program in PROGRAMS:
        wanted |= {f"completions/{program}.bash", f"completions/_{program}", f"completions/{program}.fish", f"man/man1/{program}.1"}
    missing = wanted - files
    expect(not missing, f"the archive lacks {sorted(missing)}")
    expect("man/man1/taiji-serve.1" in files and "man/man1/taiji-pages.1" not in files, "man pages are not those of what users see")
    print(f"dist-check: {len(files)} files, the same twice")


def check_bill(folder):
    """NOTICE and SBOM: of the crates that are built, in CycloneDX's own schema."""
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (folder / "sbom.cdx.json").read_text()
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    expect(validator.validate_str(text.replace('"CycloneDX"', '"Cyclone"')) is not None, "the validator notices nothing")
    error = validator.validate_str(text)
    expect(error is None, f"sbom.cdx.json: {str(error)[:500]}")
    bill = json.loads(text)
    components = {component["bom-ref"]: component for component in bill["components"]}
    expect(len(components) == len(bill["components"]), "two components of the SBOM share a reference")
    dangling = [edge for entry in bill["dependencies"] for edge in entry.get("dependsOn", []) if edge not in components]
    expect(not dangling, f"the SBOM depends on what it does not list: {dangling}")
    lock = Path("Cargo.lock").read_text()
    notice = (folder / "NOTICE").read_text()
    for component in bill["components"]:
        line = f"  {component['name']} {component['version']}: {component['licenses'][0]['expression']}\n"
        foreign = component["name"] not in (*PROGRAMS, "taiji-export")
        expect(not foreign or line in notice, f"NOTICE lacks {line.strip()}")
        if component["purl"].startswith("pkg:cargo/") and foreign:
            entry = f'name = "{component["name"]}"\nversion = "{component["version"]}"'
            expect(entry in lock and component["hashes"][0]["content"] in lock, f"{component['name']} of the SBOM is not that of Cargo.lock")
    for program in PROGRAMS:
        sha256 = hashlib.sha256((folder / "bin" / program).read_bytes()).hexdigest()
        expect(components[f"cargo:{program}@{version()}"]["hashes"][0]["content"] == sha256, f"the SBOM's {program} is another")
    for name in ("serde", "tokio", "candle-core", "FAISS", "librdkafka", "Zstandard", "mimalloc", "ONNX Runtime", "Rust standard library", "libopenblas0-pthread", "libssl3"):
        expect(any(component["name"] == name for component in bill["components"]), f"the SBOM lacks {name}")
    for text in ("Facebook", "Magnus Edenhill", "Microsoft Corporation", "The OpenBLAS Project"):
        expect(text in notice, f"NOTICE lacks {text}")
    print(f"dist-check: SBOM valid, {len(components)} components, each in NOTICE ({len(notice) // 1000} kB)")


def check_pages(folder):
    run("bash", "-n", str(folder / "completions/taiji.bash"))
    offered = run("bash", "-c", 'source "$1"; COMP_WORDS=(taiji se); COMP_CWORD=1; _taiji taiji se taiji; echo "${COMPREPLY[@]}"', "_", str(folder / "completions/taiji.bash"))
    expect(offered.split() == ["serve"], f"bash completes 'taiji se' to {offered}")
    for path in sorted((folder / "completions").iterdir()):
        expect(not re.search(r"\bpages\b", path.read_text()), f"{path.name} offers the packages' own command")
    page = (folder / "man/man1/taiji-serve.1").read_text()
    expect(".TH" in page and "admin\\-listen" in page, "the man page of taiji serve does not name its options")


def readme_lines():
    """The README's lines that install the archive: the first block under its heading."""
    text = Path("README.md").read_text().split("### From the archive\n", 1)[1]
    return re.search(r"```sh\n(.*?)```", text, re.DOTALL)[1]


def install(archive):
    """Runs them on the image's base, the archive being in the folder where they are run."""
    folder = WORK / "archive"
    folder.mkdir()
    for name in (archive.name, archive.name + ".sha256"):
        shutil.copy(f"dist/{name}", folder / name)
    (folder / "install.sh").write_text(readme_lines())
    run("bash", "scripts/image.sh", "install", ROOT, str(folder))
    print("dist-check: installed by the README's lines")


def unit_of(name):
    """The [Service] settings of an installed unit; of those given twice the last."""
    text = Path(ROOT, "etc/systemd/system", name).read_text()
    return dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z]\w+=", line))


def check_units():
    units = [unit_of(name) for name in UNITS]
    for name, unit in zip(UNITS, units):
        drain = int(re.search(r"^drain_timeout_ms = (\d+)", Path("src/config/default.toml").read_text(), re.MULTILINE)[1])
        expect(int(unit["TimeoutStopSec"]) * 1000 > drain, f"{name} kills before the drain is over")
        said = run("systemd-analyze", "verify", f"--root={ROOT}", "--man=no", "--recursive-errors=no", f"/etc/systemd/system/{name.replace('@', '@api')}")
        expect(said.strip() == "", f"{name}: {said}")
        said = run("systemd-analyze", "security", f"--root={ROOT}", "--offline=yes", "--no-pager", f"--threshold={round(EXPOSURE * 10)}", name.replace("@", "@api"))
        print(f"dist-check: {name}: {said.strip().splitlines()[-1].strip('→ ')}")
    differs = {key for key in units[0].keys() | units[1].keys() if units[0].get(key) != units[1].get(key)}
    expect(differs == {"Description", "ExecStart", "EnvironmentFile"}, f"the two units differ in {sorted(differs)}")
    return units[0]


def check_programs(commit):
    for program in PROGRAMS:
        said = container(ROOT, program, "--version").strip()
        expect(said == f"{program} {version()} (commit {commit})", f"--version says {said!r}")
    container(ROOT, "bash", "-c", "cd /opt/taiji && sha256sum --check --quiet --strict SHA256SUMS")
    expect(container(ROOT, "taiji", "check-config", "--print-defaults") == Path(ROOT, "opt/taiji/default.toml").read_text(), "default.toml is not the program's")
    found = set()
    for name in [*PROGRAMS, next(Path(ROOT, "opt/taiji/bin").glob("libonnxruntime.so.*")).name]:
        lines = container(ROOT, "ldd", f"/opt/taiji/bin/{name}").splitlines()
        expect(not any("not found" in line for line in lines), f"{name}: {lines}")
        found |= {Path(line.split()[0]).name for line in lines}
    expect(found == set(Path("docker/libraries.txt").read_text().split()), f"linked libraries are not those of docker/libraries.txt: {sorted(found)}")


def check_old_processor():
    """Before anything else of a program runs: one line and 69. On a processor that has what is needed it runs."""
    for program in PROGRAMS:
        path = f"{ROOT}/opt/taiji/bin/{program}"
        for model in ("Nehalem", "SandyBridge", "Opteron_G5", "Haswell,-fma", "Haswell,-bmi2", "Haswell,-abm"):
            said = run("qemu-x86_64", "-cpu", model, path, "--version", code=69)
            said = [line for line in said.splitlines() if "TCG doesn't support requested feature" not in line]
            expect(len(said) == 1 and said[0].startswith(f"{program}: this processor is too old"), f"{program} on {model} said {said}")
        said = run("qemu-x86_64", "-cpu", "max", path, "--version")
        expect(said.startswith(f"{program} {version()} (commit"), f"{program} on a processor with all features said {said!r}")
    print("dist-check: too old a processor is refused in one line, a newer one is not")


def check_service(unit):
    """What the unit starts, with `/` read-only and without rights, serves an event."""
    program, *arguments = shlex.split(unit["ExecStart"])
    # As systemd sets them; ONNX Runtime would leave its telemetry at home.
    environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/var/lib/taiji"]
    Path(f"{ROOT}.json").write_text(json.dumps({"Env": environment, "User": f"{USER}:{USER}", "Entrypoint": [program], "Cmd": arguments}))
    data = WORK / "data"
    data.mkdir()
    os.chown(data, USER, USER)
    service = Container(ROOT, [f"{BUNDLE}:/srv/taiji/bundle:ro", f"{data}:/var/lib/taiji"], str(WORK / "serve.log"))
    try:
        service.until_ready()
        service.an_event()
        service.stop()
        written = {path.name for path in data.iterdir()}
        expect(written == {"data"}, f"the service wrote {sorted(written)} into /var/lib/taiji")
    finally:
        service.child.kill()
        service.child.wait()


def main():
    [binaries] = sys.argv[1:]
    packages = run("bash", "scripts/packages.sh", "scripts/dist/requirements.txt").splitlines()[-1]
    sys.path.insert(0, packages)
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    print(run("python3", "scripts/dist/tests.py").strip().splitlines()[-1], "(scripts/dist/tests.py)")
    archive = make_twice(binaries)
    check_entries(archive)
    folder = Path(".cache/dist", archive.name.removesuffix(".tar.gz"))
    check_bill(folder)
    check_pages(folder)
    install(archive)
    unit = check_units()
    check_service(unit)
    check_programs(run("git", "rev-parse", "--short=12", "HEAD").strip())
    check_old_processor()


main()
