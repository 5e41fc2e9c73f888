//! What lies on this machine: keys, certificate, bundle, models.

use super::super::{CommandError, opening, secrets};
use super::report::{Finding, Report};
use crate::clock::unix_ms;
use crate::config::{Role, Settings};
use crate::telemetry::Metrics;
use std::sync::Arc;

/// A certificate with fewer days left is worth a word.
const FEW_DAYS: i64 = 30;

/// Who may ask.
pub(super) fn keys(settings: &Settings) -> Finding {
    let auth = &settings.auth;
    let shown = |keys: &crate::config::ScopedKeys| {
        let (read, write, admin) = (keys.read_keys.len(), keys.write_keys.len(), keys.admin_keys.len());
        format!("{read} read, {write} write, {admin} admin")
    };
    if !auth.keys_file.is_empty() {
        return match secrets::read_keys(&auth.keys_file) {
            Ok(keys) => Finding::ok("keys", format!("{}: {}", auth.keys_file, shown(&keys))),
            Err(error) => {
                Finding::refused("keys", &error, "mend the file; a running service goes on with what it loaded before")
            }
        };
    }
    let own = auth.own_keys();
    if own.is_empty() && (settings.server.has(Role::Api) || settings.openai.listen.is_some()) {
        return Finding::warning("keys", "none: the ports are open to everyone who reaches them", "set auth.keys_file");
    }
    Finding::ok("keys", format!("in the settings: {}", shown(&own)))
}

/// What the ports show.
pub(super) fn certificate(settings: &Settings) -> Finding {
    let tls = &settings.tls;
    if !tls.is_on() {
        return Finding::off("certificate", "tls.certificate_file is not set: the ports speak plain HTTP");
    }
    let certificate = match secrets::read_certificate(tls) {
        Ok(certificate) => certificate,
        Err(error) => {
            let remedy = "renew or mend the files; a running service goes on with what it loaded before";
            return Finding::refused("certificate", &error, remedy);
        }
    };
    let days = certificate.days_left(unix_ms() / 1000);
    let shown = format!("{}: {days} days left", tls.certificate_file);
    match days {
        ..FEW_DAYS => Finding::warning("certificate", shown, "renew it; no restart is needed"),
        _ => Finding::ok("certificate", shown),
    }
}

/// The bundle as a start checks it; its models only if asked for, since they take memory and time.
pub(super) async fn bundle(settings: &Settings, with_models: bool, report: &mut Report) -> Result<(), CommandError> {
    let metrics = Arc::new(Metrics::new().map_err(|error| CommandError::Internal(format!("metrics: {error}")))?);
    let mut light = settings.clone();
    light.server.roles.retain(|role| *role != Role::Infer);
    let loaded = opening::load_bundle(if with_models { settings } else { &light }, &metrics).await;
    let is_loaded = loaded.is_ok();
    let remedy = "taiji bundle check --bundle DIR; taiji bundle fetch completes one; or another bundle.dir";
    report.add(match loaded {
        Ok(bundle) => {
            let (dir, manifest) = (settings.bundle.dir.display(), &bundle.manifest);
            Finding::ok("bundle", format!("{dir}: {} epoch {} space {}", manifest.name, manifest.epoch, manifest.space))
        }
        Err(error) => Finding::refused("bundle", &error, remedy),
    });
    report.add(match (settings.server.has(Role::Infer), with_models) {
        (false, _) => Finding::off("models", "only the role infer loads them"),
        (true, false) => Finding::off("models", "taiji doctor --models loads them, as a start does"),
        (true, true) if is_loaded => Finding::ok("models", "they load, and the parity gate passed"),
        (true, true) => Finding::not_checked("models", "the bundle does not load"),
    });
    Ok(())
}
