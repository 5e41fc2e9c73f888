//! The simple index over HTTP: its page, then the file with the pinned sha256.
//!
//! Proxies come from the environment, root certificates from the system (and from pip's `cert`).

use super::page::{ACCEPT, Listed, files, normalised};
use super::{FetchError, Wheel, io};
use crate::checksum::sha256_file;
use reqwest::header::{ACCEPT as ACCEPT_HEADER, CONTENT_TYPE};
use reqwest::{Certificate, Client, Response, StatusCode, Url};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Longest silence of a server.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Calls of one address before it is given up, and the pause after the first; the second is twice as long.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);

/// An address without the name and password that may stand in it.
pub(super) fn shown(url: &Url) -> String {
    let mut plain = url.clone();
    // Both fail only for addresses that cannot hold them.
    let _ = plain.set_username("");
    let _ = plain.set_password(None);
    plain.to_string()
}

/// Downloads the wheel into a folder; the caller compares its sha256 once more.
pub(super) fn download(
    wheel: &Wheel,
    index: &Url,
    certificate: Option<&Path>,
    folder: &Path,
) -> Result<PathBuf, FetchError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io(folder))?;
    runtime.block_on(async {
        let client = client(index, certificate)?;
        let page = index.join(&format!("{}/", normalised(&wheel.package))).unwrap_or_else(|_| index.clone());
        let listed = listed(&client, &page).await?;
        let exact = listed.iter().filter(|file| file.sha256.as_deref() == Some(&wheel.sha256));
        // An index that says no checksum: every wheel of that version is looked at.
        let unsaid = listed.iter().filter(|file| file.sha256.is_none() && is_version(&file.name, wheel));
        for file in exact.chain(unsaid) {
            let path = folder.join(format!("{}.whl", file.name.trim_end_matches(".whl").replace(['/', '\\'], "_")));
            save(&client, &file.url, &path).await?;
            if sha256_file(&path).map_err(io(&path))? == wheel.sha256 {
                return Ok(path);
            }
            if file.sha256.is_some() {
                return Err(wheel.failed(format!("{} has another sha256 than its index says", file.name)));
            }
        }
        let Wheel { package, version, sha256, .. } = wheel.clone();
        Err(FetchError::NotListed { url: shown(&page), package, version, sha256 })
    })
}

/// Whether a wheel's file name begins with this name and version.
fn is_version(file: &str, wheel: &Wheel) -> bool {
    let mut parts = file.split('-');
    let (Some(name), Some(version)) = (parts.next(), parts.next()) else { return false };
    file.ends_with(".whl") && normalised(name) == normalised(&wheel.package) && version == wheel.version
}

fn client(index: &Url, certificate: Option<&Path>) -> Result<Client, FetchError> {
    crate::tls::choose_provider();
    let failed = |error: reqwest::Error| FetchError::Index { url: shown(index), message: reason(&error) };
    let mut builder = Client::builder()
        .user_agent(concat!("taiji/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT);
    if let Some(path) = certificate {
        let bytes = std::fs::read(path).map_err(io(path))?;
        builder = builder.tls_certs_merge(Certificate::from_pem_bundle(&bytes).map_err(failed)?);
    }
    builder.build().map_err(failed)
}

async fn listed(client: &Client, page: &Url) -> Result<Vec<Listed>, FetchError> {
    let failed = |message: String| FetchError::Index { url: shown(page), message };
    let response = get(client, page).await?;
    let base = response.url().clone();
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = content_type.to_owned();
    let text = response.text().await.map_err(|error| failed(reason(&error)))?;
    files(&content_type, &text, &base).map_err(failed)
}

/// Writes what an address answers into a file.
async fn save(client: &Client, url: &Url, path: &Path) -> Result<(), FetchError> {
    let mut response = get(client, url).await?;
    let mut file = std::fs::File::create(path).map_err(io(path))?;
    let failed = |error: reqwest::Error| FetchError::Index { url: shown(url), message: reason(&error) };
    while let Some(piece) = response.chunk().await.map_err(failed)? {
        file.write_all(&piece).map_err(io(path))?;
    }
    file.sync_all().map_err(io(path))
}

/// Asks, again where the network or the server failed.
async fn get(client: &Client, url: &Url) -> Result<Response, FetchError> {
    let mut tries = 1;
    loop {
        let message = match client.get(url.clone()).header(ACCEPT_HEADER, ACCEPT).send().await {
            Ok(response) if response.status().is_success() => return Ok(response),
            Ok(response) if response.status().is_server_error() => format!("it answers {}", response.status()),
            Ok(response) => {
                let message = match response.status() {
                    StatusCode::NOT_FOUND => "it has no such package (404)".to_owned(),
                    other => format!("it answers {other}"),
                };
                return Err(FetchError::Index { url: shown(url), message });
            }
            Err(error) => reason(&error),
        };
        if tries == TRIES {
            return Err(FetchError::Index { url: shown(url), message });
        }
        tokio::time::sleep(PAUSE * tries).await;
        tries += 1;
    }
}

/// The innermost cause, which says what happened; reqwest's own words repeat the address, with its password.
fn reason(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    match std::ptr::addr_eq(cause, error) {
        true if error.is_timeout() => "no answer in time".to_owned(),
        true => "the call failed".to_owned(),
        false => cause.to_string(),
    }
}
