"""The software bill of materials, CycloneDX 1.6 in JSON.

In: crates and libraries. Out: a dictionary. Caller: main.py. Nothing of it depends on when or where it is made.
"""

import datetime
import uuid

NAMESPACE = uuid.UUID("6f1c2f6e-5b0e-5d0c-9f43-0e0c1d6a5b7e")


def of_crate(crate, programs):
    component = {
        "type": "application" if crate.name in programs else "library",
        "bom-ref": ref(crate.key),
        "name": crate.name,
        "version": crate.version,
        "licenses": [{"expression": crate.licence}],
        "purl": f"pkg:cargo/{crate.name}@{crate.version.replace('+', '%2B')}",
    }
    sha256 = programs.get(crate.name, crate.checksum)
    if sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": sha256}]
    return component


def of_library(library):
    component = {
        "type": "library",
        "bom-ref": library.purl,
        "name": library.name,
        "version": library.version,
        "licenses": [{"expression": library.licence}],
        "purl": library.purl,
        "properties": [{"name": "taiji:how", "value": library.how}] + [{"name": "taiji:file", "value": file} for file in library.files],
    }
    if library.sha256:
        component["hashes"] = [{"alg": "SHA-256", "content": library.sha256}]
    return component


def ref(key):
    name, version = key.split(" ")
    return f"cargo:{name}@{version}"


def write(version, commit, seconds, crates, libraries, programs):
    """`seconds`: the commit's time; `programs`: name → sha256 of the shipped file."""
    root = f"taiji@{version}"
    hanging = [library.purl for library in libraries]
    edges = [{"ref": root, "dependsOn": [ref(crate.key) for crate in crates if crate.name in programs] + hanging}]
    edges += [{"ref": ref(crate.key), "dependsOn": [ref(key) for key in crate.uses]} for crate in crates]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(NAMESPACE, f'{version} {commit}')}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": {
                "type": "application",
                "bom-ref": root,
                "name": "taiji",
                "version": version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "properties": [{"name": "taiji:commit", "value": commit}],
            },
        },
        "components": [of_crate(crate, programs) for crate in crates] + [of_library(library) for library in libraries],
        "dependencies": edges + [{"ref": purl} for purl in hanging],
    }
