//! A project's page of the simple index, JSON (PEP 691) or HTML (PEP 503) → its files.

use reqwest::Url;
use serde::Deserialize;
use std::collections::BTreeMap;

/// What is asked for; every index knows HTML.
pub(super) const ACCEPT: &str = "application/vnd.pypi.simple.v1+json, text/html;q=0.2";
/// How an index says that it sent JSON.
const JSON: &str = "application/vnd.pypi.simple.v1+json";

/// A file that the page lists.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Listed {
    pub name: String,
    pub url: Url,
    /// Lower-case hex, where the page says it.
    pub sha256: Option<String>,
}

#[derive(Deserialize)]
struct JsonPage {
    files: Vec<JsonFile>,
}

#[derive(Deserialize)]
struct JsonFile {
    filename: String,
    url: String,
    #[serde(default)]
    hashes: BTreeMap<String, String>,
}

/// A name as pages are called by it.
pub(super) fn normalised(package: &str) -> String {
    let parts: Vec<&str> = package.split(['-', '_', '.']).filter(|part| !part.is_empty()).collect();
    parts.join("-").to_ascii_lowercase()
}

/// The files of a page that came from `base`.
pub(super) fn files(content_type: &str, text: &str, base: &Url) -> Result<Vec<Listed>, String> {
    if content_type.starts_with(JSON) {
        let page: JsonPage = serde_json::from_str(text).map_err(|error| format!("no page of PEP 691: {error}"))?;
        let listed = page.files.into_iter().filter_map(|file| {
            let sha256 = file.hashes.get("sha256").map(|hash| hash.to_ascii_lowercase());
            Some(Listed { name: file.filename, url: base.join(&file.url).ok()?, sha256 })
        });
        return Ok(listed.collect());
    }
    Ok(links(text).into_iter().filter_map(|href| listed(&href, base)).collect())
}

fn listed(href: &str, base: &Url) -> Option<Listed> {
    let mut url = base.join(href).ok()?;
    let sha256 = url.fragment().and_then(|rest| rest.strip_prefix("sha256=")).map(str::to_ascii_lowercase);
    url.set_fragment(None);
    let name = url.path_segments()?.next_back()?.to_owned();
    Some(Listed { name, url, sha256 })
}

/// The `href` of every anchor.
fn links(html: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let Some(end) = rest.find('>') else { break };
        let tag = &rest[..end];
        rest = &rest[end..];
        let name = tag.split(|letter: char| letter.is_ascii_whitespace()).next().unwrap_or_default();
        if name.eq_ignore_ascii_case("a") {
            found.extend(href(tag).map(|value| unescaped(&value)));
        }
    }
    found
}

/// The value of `href` in a tag's text.
fn href(tag: &str) -> Option<String> {
    // ASCII only, so that places in the lower-case text are places in the tag.
    let at = tag.to_ascii_lowercase().find("href")?;
    let value = tag[at + 4..].trim_start().strip_prefix('=')?.trim_start();
    let quote = value.chars().next().filter(|first| matches!(first, '"' | '\''));
    match quote {
        Some(quote) => value[1..].split(quote).next().map(str::to_owned),
        None => value.split_ascii_whitespace().next().map(str::to_owned),
    }
}

fn unescaped(text: &str) -> String {
    text.replace("&quot;", "\"").replace("&#39;", "'").replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn audit_17_both_forms_of_a_page_say_the_same() {
        let base = Url::parse("http://index.invalid/simple/thing/").expect("base");
        let hash = "AB".repeat(32);
        let html = format!(
            "<!DOCTYPE html><html><body><h1>Links</h1>\n<a href=\"../../files/thing-1-py3-none-any.whl?a=1&amp;b=2#sha256={hash}\" \
             data-requires-python=\"&gt;=3\">thing-1-py3-none-any.whl</a><br/>\n<A HREF='http://other.invalid/thing-2.tar.gz'>x</A>\n\
             <a name=top>top</a><abbr href=\"no\">a</abbr></body></html>"
        );
        let json = format!(
            r#"{{"meta": {{"api-version": "1.1"}}, "name": "thing", "files": [
            {{"filename": "thing-1-py3-none-any.whl", "url": "../../files/thing-1-py3-none-any.whl?a=1&b=2", "hashes": {{"sha256": "{hash}"}}, "size": 3}},
            {{"filename": "thing-2.tar.gz", "url": "http://other.invalid/thing-2.tar.gz", "hashes": {{}}, "yanked": false}}]}}"#
        );
        let of_html = files("text/html; charset=utf-8", &html, &base).expect("html");
        assert_eq!(of_html, files("application/vnd.pypi.simple.v1+json", &json, &base).expect("json"));
        assert_eq!(of_html.len(), 2);
        assert_eq!(of_html[0].url.as_str(), "http://index.invalid/files/thing-1-py3-none-any.whl?a=1&b=2");
        assert_eq!(of_html[0].sha256, Some("ab".repeat(32)));
        assert_eq!((of_html[1].name.as_str(), &of_html[1].sha256), ("thing-2.tar.gz", &None));
        assert!(files(JSON, "{", &base).expect_err("half").contains("PEP 691"));
        assert_eq!(normalised("GT_all--mini.lm"), "gt-all-mini-lm");
    }
}
