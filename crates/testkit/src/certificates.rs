//! Certificates for tests: an authority (`ca.pem`) and servers of 127.0.0.1 (`server.pem`, `server.key`) that it signed.

use std::path::Path;
use std::process::{Command, Stdio};

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

/// Makes authority and server in a folder, for two days.
pub fn make_certificates(folder: &Path) {
    let extensions = "subjectAltName=IP:127.0.0.1,DNS:localhost\nbasicConstraints=CA:FALSE\n";
    std::fs::write(folder.join("extensions"), extensions).expect("extensions");
    openssl(folder, &format!("req -x509 {KEY} -keyout ca.key -out ca.pem -days 2 -subj /CN=taiji-test-authority"));
    sign_server(folder, "server", 2);
}

/// Makes `NAME.pem` and `NAME.key` with the authority of that folder; below 0 days it is over already.
pub fn sign_server(folder: &Path, name: &str, days: i32) {
    openssl(folder, &format!("req {KEY} -keyout {name}.key -out {name}.csr -subj /CN=127.0.0.1"));
    openssl(
        folder,
        &format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days {days} -extfile \
             extensions"
        ),
    );
}

fn openssl(folder: &Path, arguments: &str) {
    let status = Command::new("openssl")
        .args(arguments.split(' '))
        .current_dir(folder)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .expect("openssl is missing: run `make setup`");
    assert!(status.success(), "openssl {arguments}");
}
