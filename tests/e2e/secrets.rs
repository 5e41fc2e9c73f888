//! Keys and certificates that lie in files: taken up when they change, whichever way that is, and refused when they are broken.

use crate::worlds::{click, data_plane_bundle, now_ms};
use reqwest::tls::TlsInfo;
use reqwest::{Certificate, Client};
use serde_json::Value;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use testkit::certificates::{make_certificates, sign_server};
use testkit::process::{SOON, Server, Setup, call, free_address, wait_until};
use tokio::runtime::Runtime;

/// A folder as Kubernetes mounts a Secret: files are links into `..data`, itself a link that is swapped.
struct Mounted {
    folder: PathBuf,
}

impl Mounted {
    fn new(folder: PathBuf, version: &str, files: &[(&str, Vec<u8>)]) -> Mounted {
        std::fs::create_dir(&folder).expect("folder");
        let mounted = Mounted { folder };
        mounted.swap(version, files);
        for (name, _) in files {
            symlink(format!("..data/{name}"), mounted.folder.join(name)).expect("link");
        }
        mounted
    }

    fn swap(&self, version: &str, files: &[(&str, Vec<u8>)]) {
        let data = self.folder.join(version);
        std::fs::create_dir(&data).expect("version");
        for (name, content) in files {
            std::fs::write(data.join(name), content).expect("write");
        }
        symlink(version, self.folder.join("..data_tmp")).expect("link");
        std::fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data")).expect("swap");
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }
}

fn canned(folder: &TempDir) -> Setup {
    Setup::canned(&data_plane_bundle(folder.path()), &folder.path().join("store"))
}

/// A keys file in which one reader has that key.
fn keys_file(read: &str) -> Vec<u8> {
    format!("read_keys = [\"{read}\"]\nwrite_keys = []\nadmin_keys = [\"admin-key-0123456789\"]\n").into_bytes()
}

fn status(server: &Server, key: &str) -> u16 {
    let bearer = format!("Bearer {key}");
    let headers = [("authorization", bearer.as_str())];
    call(server.public(), "GET", "/v1/users/u/features", &headers, b"").expect("answer").status
}

fn reloads(metrics: &str, file: &str, result: &str) -> u64 {
    let series = format!("taiji_file_reloads_total{{file=\"{file}\",result=\"{result}\"}} ");
    metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or_else(|| panic!("{series}"))
}

const KEYS: [&str; 4] = ["read-key-000000001", "read-key-000000002", "read-key-000000003", "read-key-000000004"];

#[test]
fn a_keys_file_is_taken_up_when_it_changes_and_a_broken_one_changes_nothing() {
    let folder = tempfile::tempdir().expect("tempdir");
    let mounted = Mounted::new(folder.path().join("mounted"), "..1", &[("keys.toml", keys_file(KEYS[0]))]);
    let setup = canned(&folder).env("TAIJI__AUTH__KEYS_FILE", &mounted.path("keys.toml"));
    let server = setup.start();
    let turns = |to: &str, from: &str| {
        wait_until("the new key", SOON, || (status(&server, to) == 200).then_some(()));
        assert_eq!(status(&server, from), 401, "the old key");
    };
    assert_eq!((status(&server, KEYS[0]), status(&server, KEYS[1])), (200, 401));
    mounted.swap("..2", &[("keys.toml", keys_file(KEYS[1]))]);
    turns(KEYS[1], KEYS[0]);
    // A rename over it, as editors and renewals do.
    let (file, beside) = (mounted.path("..data/keys.toml"), mounted.path("..data/new"));
    std::fs::write(&beside, keys_file(KEYS[2])).expect("write");
    std::fs::rename(&beside, &file).expect("rename");
    turns(KEYS[2], KEYS[1]);
    // Half of it in place, for longer than a writer takes; then nothing at all; then it is gone.
    let half = &keys_file(KEYS[3])[..40];
    let mut refused = 0;
    let breaks: [&dyn Fn(); 3] =
        [&|| std::fs::write(&file, half).expect("write"), &|| std::fs::write(&file, b"").expect("write"), &|| {
            std::fs::remove_file(&file).expect("remove")
        }];
    for make in breaks {
        make();
        refused += 1;
        let is_told = || (reloads(&server.metrics(), "keys", "refused") == refused).then_some(());
        wait_until("a refusal that is counted", SOON, is_told);
        assert_eq!((status(&server, KEYS[2]), status(&server, KEYS[3])), (200, 401), "what was loaded stays");
        assert_eq!(call(server.public(), "GET", "/v1/users/u/features", &[], b"").expect("answer").status, 401);
    }
    // Further looks add nothing.
    std::thread::sleep(Duration::from_millis(2500));
    assert_eq!(reloads(&server.metrics(), "keys", "refused"), refused);
    let log = server.stderr();
    assert_eq!(log.matches("a changed file cannot be used").count(), 3, "once each: {log}");
    std::fs::write(&file, keys_file(KEYS[3])).expect("write");
    turns(KEYS[3], KEYS[2]);
    assert_eq!(reloads(&server.metrics(), "keys", "loaded"), 3);
    for key in KEYS {
        assert!(!server.stderr().contains(key), "a key is in the log");
    }
}

#[test]
fn a_keys_file_that_cannot_be_used_ends_the_start() {
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("keys.toml");
    let setup = canned(&folder).env("TAIJI__AUTH__KEYS_FILE", &file.display().to_string());
    let told = setup.run().expect_code(69).stderr;
    assert!(told.contains("auth.keys_file") && told.contains("keys.toml"), "{told}");
    for (content, part) in [
        (&keys_file(KEYS[0])[..40], "admin_keys"),
        (b"read_keys = []\nwrite_keys = []\nadmin_keys = []", "holds no key"),
        (&keys_file("short")[..], "read_keys: a key has at least 16 characters"),
        (b"", "read_keys"),
    ] {
        std::fs::write(&file, content).expect("write");
        let told = setup.run().expect_code(64).stderr;
        assert!(told.contains("auth.keys_file") && !told.contains(KEYS[0]), "{told}");
        assert!(told.contains(part) || told.contains("line "), "{part:?} in {told}");
    }
    std::fs::write(&file, keys_file(KEYS[0])).expect("write");
    let told = setup.env("TAIJI__AUTH__WRITE_KEYS", KEYS[1]).run().expect_code(64).stderr;
    assert!(told.contains("auth.keys_file takes the place of") && !told.contains(KEYS[1]), "{told}");
}

/// reqwest, which trusts the folder's authority and no other. A client of its own for every call: one that resumes a session is shown
/// no certificate, and reports that of before.
struct Caller {
    runtime: Runtime,
    authority: Certificate,
}

impl Caller {
    fn trusting(folder: &Path) -> Caller {
        taiji::tls::choose_provider();
        let authority = std::fs::read(folder.join("ca.pem")).expect("ca.pem");
        let authority = Certificate::from_pem(&authority).expect("an authority");
        Caller { runtime: Runtime::new().expect("runtime"), authority }
    }

    fn client(&self) -> Client {
        let client = Client::builder().tls_certs_only([self.authority.clone()]).tls_info(true);
        client.timeout(SOON).no_proxy().build().expect("a client")
    }

    /// Status, body and the certificate shown.
    fn ask(&self, address: &str, path: &str, body: Option<&Value>) -> reqwest::Result<(u16, String, Vec<u8>)> {
        let url = format!("https://{address}{path}");
        let request = match body {
            Some(body) => self.client().post(url).json(body),
            None => self.client().get(url),
        };
        self.runtime.block_on(async {
            let answer = request.send().await?;
            let info = answer.extensions().get::<TlsInfo>().and_then(TlsInfo::peer_certificate);
            let (status, shown) = (answer.status().as_u16(), info.expect("a certificate").to_vec());
            Ok((status, answer.text().await?, shown))
        })
    }
}

fn pair(folder: &Path, name: &str) -> Vec<(&'static str, Vec<u8>)> {
    let read = |ending: &str| std::fs::read(folder.join(format!("{name}.{ending}"))).expect("file");
    vec![("tls.crt", read("pem")), ("tls.key", read("key"))]
}

#[test]
fn all_ports_speak_tls_and_show_a_renewed_certificate() {
    let folder = tempfile::tempdir().expect("tempdir");
    make_certificates(folder.path());
    for name in ["second", "third"] {
        sign_server(folder.path(), name, 2);
    }
    let mounted = Mounted::new(folder.path().join("mounted"), "..1", &pair(folder.path(), "server"));
    let (caller, openai) = (Caller::trusting(folder.path()), free_address());
    let setup = canned(&folder)
        .env("TAIJI__TLS__CERTIFICATE_FILE", &mounted.path("tls.crt"))
        .env("TAIJI__TLS__KEY_FILE", &mounted.path("tls.key"))
        .env("TAIJI__OPENAI__LISTEN", &openai);
    let is_ready =
        |server: &Server| caller.ask(server.admin(), "/readyz", None).is_ok_and(|(status, ..)| status == 200);
    let server = setup.start_when(is_ready);
    let ask = |address: &str, path: &str| caller.ask(address, path, None).expect("an answer");
    let metrics = || ask(server.admin(), "/metrics").1;

    let (status, text, first) =
        caller.ask(server.public(), "/v1/events", Some(&click("u", "e1", now_ms()))).expect("an answer");
    assert_eq!(status, 202, "{text}");
    assert_eq!((ask(&openai, "/health").0, ask(server.public(), "/v1/users/u/history").0), (200, 200));
    // Who knows no TLS is told.
    for address in [server.public(), server.admin(), &openai] {
        let answer = call(address, "GET", "/livez", &[], b"").expect("an answer").expect_status(400);
        assert!(answer.text().contains("https://") && answer.text().contains("tls_required"), "{}", answer.text());
    }
    // Who trusts another authority is refused by its own doing, and counted.
    let stranger = tempfile::tempdir().expect("tempdir");
    make_certificates(stranger.path());
    assert!(Caller::trusting(stranger.path()).ask(server.public(), "/", None).is_err());

    let shows = |other_than: &[u8]| {
        wait_until("the new certificate", SOON, || {
            let shown = ask(server.public(), "/v1/users/u/history").2;
            (shown != other_than).then_some(shown)
        })
    };
    mounted.swap("..2", &pair(folder.path(), "second"));
    let second = shows(&first);
    // Two renames, one after the other: between them the key is another's.
    for (name, content) in pair(folder.path(), "third") {
        std::fs::write(mounted.path("new"), content).expect("write");
        std::fs::rename(mounted.path("new"), mounted.path(&format!("..data/{name}"))).expect("rename");
    }
    let third = shows(&second);
    assert_eq!(ask(server.admin(), "/livez").2, third, "the operators' port shows the same");
    // A broken one, and one that is over, change nothing.
    sign_server(folder.path(), "over", -1);
    let mut broken = pair(folder.path(), "server");
    broken[1].1.truncate(60);
    for (count, (version, files)) in [("..3", broken), ("..4", pair(folder.path(), "over"))].into_iter().enumerate() {
        mounted.swap(version, &files);
        wait_until("a refusal that is counted", SOON, || {
            (reloads(&metrics(), "certificate", "refused") == count as u64 + 1).then_some(())
        });
        assert_eq!(ask(server.public(), "/v1/users/u/history").2, third);
    }
    let log = server.stderr();
    assert!(log.contains("the key file holds no whole PEM private key") && log.contains("expired 1 days ago"), "{log}");
    let text = metrics();
    let series = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    let ends = series("taiji_tls_certificate_expiry_timestamp_seconds ").expect("a gauge");
    let left = ends - now_ms() as f64 / 1000.0;
    assert!(left > 86_400.0 && left < 3.0 * 86_400.0, "{left}");
    assert_eq!(series("taiji_tls_handshakes_failed_total{port=\"public\",reason=\"plain_http\"} "), Some(1.0));
    assert_eq!(series("taiji_tls_handshakes_failed_total{port=\"public\",reason=\"failed\"} "), Some(1.0));
}

#[test]
fn only_the_ports_that_are_named_speak_tls() {
    let folder = tempfile::tempdir().expect("tempdir");
    make_certificates(folder.path());
    let path = |name: &str| folder.path().join(name).display().to_string();
    let server = canned(&folder)
        .env("TAIJI__TLS__CERTIFICATE_FILE", &path("server.pem"))
        .env("TAIJI__TLS__KEY_FILE", &path("server.key"))
        .env("TAIJI__TLS__PORTS", "public")
        .start();
    let caller = Caller::trusting(folder.path());
    assert_eq!(caller.ask(server.public(), "/v1/users/u/features", None).expect("an answer").0, 200);
    assert!(caller.ask(server.admin(), "/livez", None).is_err(), "the operators' port is plain");
}

#[test]
fn a_certificate_that_cannot_be_shown_ends_the_start_before_any_port_is_bound() {
    let folder = tempfile::tempdir().expect("tempdir");
    make_certificates(folder.path());
    sign_server(folder.path(), "over", -1);
    let path = |name: &str| folder.path().join(name).display().to_string();
    let setup = |chain: &str, key: &str| {
        canned(&folder).env("TAIJI__TLS__CERTIFICATE_FILE", &path(chain)).env("TAIJI__TLS__KEY_FILE", &path(key))
    };
    for (chain, key, code, part) in [
        ("over.pem", "over.key", 69, "expired 1 days ago; renew it"),
        ("server.pem", "over.key", 64, "the key is not that of the certificate"),
        ("server.key", "server.key", 64, "holds no PEM certificate"),
        ("nowhere.pem", "server.key", 69, "nowhere.pem"),
    ] {
        let told = setup(chain, key).run().expect_code(code).stderr;
        assert!(told.contains(part) && told.contains("tls.certificate_file"), "{part:?} in {told}");
    }
    let told = canned(&folder).env("TAIJI__TLS__KEY_FILE", &path("server.key")).run().expect_code(64).stderr;
    assert!(told.contains("tls.certificate_file and tls.key_file go together"), "{told}");
}
