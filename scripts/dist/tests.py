"""What the makers of NOTICE and SBOM must do, and refuse.  python3 scripts/dist/tests.py"""

import json
import tempfile
import unittest
from pathlib import Path

import libraries
import notice
import sbom
from crates import Crate, DistError, expression, licence_files, read


def package(name, version, folder, licence="MIT", source="registry", links=None):
    return {"id": f"{name} {version}", "name": name, "version": version, "license": licence, "source": source, "links": links,
            "manifest_path": f"{folder}/{name}/Cargo.toml", "authors": [f"who wrote {name}"]}


def node(name, *uses, kind=None):
    return {"id": name, "deps": [{"pkg": use, "dep_kinds": [{"kind": kind}]} for use in uses]}


class OfCrates(unittest.TestCase):
    def setUp(self):
        held = tempfile.TemporaryDirectory()
        self.addCleanup(held.cleanup)
        self.folder = Path(held.name)
        for name in ("ours", "used"):
            (self.folder / name).mkdir()
        self.metadata = {
            "packages": [package("ours", "1.0.0", self.folder, "Apache-2.0", None), package("used", "2.0.0", self.folder, "MIT/Apache-2.0"), package("other", "3.0.0", self.folder)],
            "resolve": {"nodes": [node("ours 1.0.0", "used 2.0.0", "other 3.0.0"), node("used 2.0.0"), node("other 3.0.0")]},
        }
        self.lock = {"package": [{"name": "ours", "version": "1.0.0"}, {"name": "used", "version": "2.0.0", "checksum": "ab" * 32}]}
        self.tree = [f"ours v1.0.0 ({self.folder}/ours)", "used v2.0.0", "used v2.0.0 (*)", ""]

    def read(self):
        return read(self.tree, self.metadata, self.lock)

    def test_only_what_is_built_counts_with_its_checksum(self):
        ours, used = self.read()
        self.assertEqual((ours.key, ours.ours, ours.uses), ("ours 1.0.0", True, ["used 2.0.0"]))
        self.assertEqual((used.key, used.checksum, used.licence), ("used 2.0.0", "ab" * 32, "MIT OR Apache-2.0"))

    def test_a_crate_without_licence_or_checksum_is_refused(self):
        self.metadata["packages"][1]["license"] = None
        self.assertRaisesRegex(DistError, "used v2.0.0: Cargo.toml names no licence", self.read)
        self.metadata["packages"][1]["license"] = "MIT"
        del self.lock["package"][1]["checksum"]
        self.assertRaisesRegex(DistError, "used v2.0.0: Cargo.lock has no checksum", self.read)

    def test_older_expressions_are_written_as_spdx_does(self):
        self.assertEqual([expression(text) for text in ("MIT/Apache-2.0", "Apache-2.0 / MIT", "MIT OR ISC")], ["MIT OR Apache-2.0", "Apache-2.0 OR MIT", "MIT OR ISC"])

    def test_licence_texts_are_found_at_any_depth_and_code_is_none(self):
        used = self.read()[1]
        for name in ("LICENSE-MIT", "license.rs", "vendored/COPYING", "vendored/debian/copyright", "notice"):
            path = used.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
        self.assertEqual([str(path.relative_to(used.folder)) for path in licence_files(used)], ["LICENSE-MIT", "notice", "vendored/COPYING"])

    def test_a_crate_without_a_text_gets_the_standard_one_or_is_refused(self):
        used = self.read()[1]
        [(place, text)] = notice.texts_of(used)
        self.assertEqual(place, "MIT")
        self.assertIn("Copyright (c) who wrote used", text)
        used.licence = "Ms-PL"
        self.assertRaisesRegex(DistError, "used 2.0.0 .Ms-PL. carries no licence text", notice.texts_of, used)

    def test_equal_texts_stand_once_with_all_who_have_them(self):
        kept = notice.collect([("a", [("L", "Some  Text\n")]), ("b", [("M", "some text"), ("N", "another")])])
        self.assertEqual(kept, [("Some  Text\n", ["a: L", "b: M"]), ("another", ["b: N"])])

    def test_a_native_library_that_nobody_looked_at_is_refused(self):
        [crate] = read(["zstd-sys v2.1.3+zstd.1.5.7"], {"packages": [package("zstd-sys", "2.1.3+zstd.1.5.7", self.folder, links="zstd")], "resolve": {"nodes": [node("zstd-sys 2.1.3+zstd.1.5.7")]}},
                       {"package": [{"name": "zstd-sys", "version": "2.1.3+zstd.1.5.7", "checksum": "00"}]})
        [zstd] = libraries.bundled([crate])
        self.assertEqual((zstd.name, zstd.version, zstd.how), ("Zstandard", "1.5.7", "compiled in"))
        crate.name = "new-sys"
        self.assertRaisesRegex(DistError, "new-sys .* links zstd", libraries.bundled, [crate])

    def test_the_bill_lists_each_with_hash_and_edges_and_is_the_same_twice(self):
        crates = self.read()
        bill = sbom.write("1.0.0", "abc", 1_700_000_000, crates, [], {"ours": "cd" * 32})
        self.assertEqual([component.get("hashes") for component in bill["components"]], [[{"alg": "SHA-256", "content": "cd" * 32}], [{"alg": "SHA-256", "content": "ab" * 32}]])
        self.assertEqual(bill["dependencies"][1], {"ref": "cargo:ours@1.0.0", "dependsOn": ["cargo:used@2.0.0"]})
        self.assertEqual(bill["metadata"]["timestamp"], "2023-11-14T22:13:20Z")
        self.assertEqual(json.dumps(bill), json.dumps(sbom.write("1.0.0", "abc", 1_700_000_000, self.read(), [], {"ours": "cd" * 32})))


class OfLibraries(unittest.TestCase):
    def test_libraries_of_unknown_packages_are_refused(self):
        known = dict(libraries.LINKED)
        self.addCleanup(libraries.LINKED.update, known)
        libraries.LINKED.clear()
        self.assertRaisesRegex(DistError, "name its licence", libraries.linked, ["/bin/ls"])

    def test_the_systems_libraries_are_named_by_package(self):
        found = {library.name: library for library in libraries.linked([Path("/usr/bin/env")])}
        self.assertIn("libc.so.6", found["libc6"].files)
        self.assertIn("GNU", found["libc6"].texts[0][1])


unittest.main()
