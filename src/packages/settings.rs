//! Where packages come from: a flag, the environment, or pip's configuration files. No host stands in the program.

use super::FetchError;
use reqwest::Url;
use std::path::{Path, PathBuf};

/// Variables that name the index, the first that is set counts.
const INDEX_VARIABLES: [&str; 2] = ["TAIJI_INDEX_URL", "PIP_INDEX_URL"];
/// What a variable or a file says to have none of it, as in pip.
const NO_CONFIGURATION: &str = "/dev/null";

/// The package index, if one is set, and a certificate file to trust beside the system's.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    index: Option<Url>,
    certificate: Option<PathBuf>,
}

impl Source {
    /// What holds for this process: `--index`, else the environment, else pip's configuration files. Where none of them
    /// names an index, pip itself is asked for packages.
    pub fn resolve(flag: Option<&str>) -> Result<Source, FetchError> {
        Source::of(flag, &|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn of(flag: Option<&str>, variable: &dyn Fn(&str) -> Option<String>) -> Result<Source, FetchError> {
        let mut from_files = FileSettings::default();
        for path in configuration_files(variable) {
            // What is not there or not readable says nothing, as in pip.
            if let Ok(text) = std::fs::read_to_string(&path) {
                from_files.add(&text);
            }
        }
        let from_variables = INDEX_VARIABLES.iter().find_map(|name| variable(name));
        let index = flag.map(str::to_owned).or(from_variables).or(from_files.index);
        let index = index.as_deref().map(parse_index).transpose()?;
        Ok(Source { index, certificate: variable("PIP_CERT").or(from_files.certificate).map(PathBuf::from) })
    }

    pub(super) fn index(&self) -> Option<&Url> {
        self.index.as_ref()
    }

    pub(super) fn certificate(&self) -> Option<&Path> {
        self.certificate.as_deref()
    }
}

/// The index's address, with a slash at the end so that names are added below it.
fn parse_index(text: &str) -> Result<Url, FetchError> {
    // Not shown: without a scheme that is known, nobody can say where a password stands.
    let refuse = |message: String| FetchError::Index { url: "(not shown)".into(), message };
    let mut url = Url::parse(text.trim()).map_err(|error| refuse(format!("no address: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse("only http and https are read".into()));
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}

/// pip's files, the later win: of the machine, of the user, of the virtual environment, and the one that is named.
fn configuration_files(variable: &dyn Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let named = variable("PIP_CONFIG_FILE");
    if named.as_deref() == Some(NO_CONFIGURATION) {
        return Vec::new();
    }
    let home = variable("HOME").map(PathBuf::from);
    let shared = variable("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into());
    let mut files: Vec<PathBuf> = shared.split(':').map(|folder| Path::new(folder).join("pip/pip.conf")).collect();
    files.push("/etc/pip.conf".into());
    files.extend(home.as_ref().map(|home| home.join(".pip/pip.conf")));
    let own = variable("XDG_CONFIG_HOME").map(PathBuf::from).or_else(|| home.map(|home| home.join(".config")));
    files.extend(own.map(|folder| folder.join("pip/pip.conf")));
    files.extend(variable("VIRTUAL_ENV").map(|folder| Path::new(&folder).join("pip.conf")));
    files.extend(named.map(PathBuf::from));
    files
}

/// The two keys we know of pip's files; `[download]` wins over `[global]`, a later file over an earlier one.
#[derive(Debug, Default)]
struct FileSettings {
    index: Option<String>,
    certificate: Option<String>,
}

impl FileSettings {
    fn add(&mut self, text: &str) {
        for wanted in ["global", "download"] {
            let mut section = "";
            for line in text.lines() {
                if let Some(name) = line.trim().strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                    section = name;
                    continue;
                }
                // Comments, and the further lines of a value (indented), hold no key.
                if section != wanted || line.starts_with(['#', ';', ' ', '\t']) {
                    continue;
                }
                let Some((key, value)) = line.split_once(['=', ':']) else { continue };
                let value = Some(value.trim().to_owned()).filter(|value| !value.is_empty());
                match key.trim().to_ascii_lowercase().replace('_', "-").as_str() {
                    "index-url" => self.index = value,
                    "cert" => self.certificate = value,
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn source(flag: Option<&str>, variables: &[(&str, &str)]) -> Result<Source, FetchError> {
        let variables: HashMap<&str, &str> = variables.iter().copied().collect();
        Source::of(flag, &|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    fn index(flag: Option<&str>, variables: &[(&str, &str)]) -> Option<String> {
        source(flag, variables).expect("source").index.map(|url| url.to_string())
    }

    #[test]
    fn audit_17_flag_then_environment_then_pips_files_name_the_index() {
        let home = tempfile::tempdir().expect("tempdir");
        let write = |path: &str, text: &str| {
            let path = home.path().join(path);
            std::fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            std::fs::write(&path, text).expect("write");
            path.display().to_string()
        };
        write(".pip/pip.conf", "[global]\nindex-url = http://old.invalid/simple\n");
        write(
            ".config/pip/pip.conf",
            "; mine\n[install]\nindex-url = http://install.invalid/\n[global]\ntimeout: 5\n  9\n# index-url = x\n\
             Index_URL: http://user.invalid/simple\ncert = /etc/mine.pem\n",
        );
        let named = write(
            "named.conf",
            "[download]\nindex-url = http://download.invalid/\n[global]\nindex-url=http://g.invalid\n",
        );
        let folder = home.path().display().to_string();
        let mut variables = vec![("HOME", folder.as_str()), ("XDG_CONFIG_DIRS", folder.as_str())];
        assert_eq!(index(None, &variables).as_deref(), Some("http://user.invalid/simple/"));
        let certificate = source(None, &variables).expect("source").certificate;
        assert_eq!(certificate, Some(PathBuf::from("/etc/mine.pem")));
        variables.push(("PIP_CONFIG_FILE", &named));
        assert_eq!(index(None, &variables).as_deref(), Some("http://download.invalid/"));
        variables.push(("PIP_INDEX_URL", "http://pip.invalid/simple/"));
        assert_eq!(index(None, &variables).as_deref(), Some("http://pip.invalid/simple/"));
        variables.push(("TAIJI_INDEX_URL", "https://ours.invalid/x"));
        assert_eq!(index(None, &variables).as_deref(), Some("https://ours.invalid/x/"));
        assert_eq!(index(Some("http://flag.invalid"), &variables).as_deref(), Some("http://flag.invalid/"));
    }

    #[test]
    fn audit_17_no_configuration_is_no_index_and_errors_show_no_password() {
        let home = tempfile::tempdir().expect("tempdir");
        let folder = home.path().display().to_string();
        assert_eq!(index(None, &[("HOME", &folder), ("PIP_CONFIG_FILE", "/dev/null")]), None);
        let error = source(Some("ftp://me:secret@index.invalid/simple"), &[]).expect_err("ftp").to_string();
        assert!(error.contains("http") && !error.contains("secret"), "{error}");
        let error = source(Some("me:secret at nowhere"), &[]).expect_err("no address").to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
