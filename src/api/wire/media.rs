//! Media types: what a client sends, and which of our encodings it would rather have (RFC 9110, 12.5.1 and 8.3).

use crate::http::ApiError;
use axum::http::{HeaderMap, header};

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::api) enum Encoding {
    Json,
    MessagePack,
    Protobuf,
    Arrow,
}

impl Encoding {
    /// Every one of them; the first where a client has no preference.
    pub(in crate::api) const ALL: [Encoding; 4] =
        [Encoding::Json, Encoding::Protobuf, Encoding::MessagePack, Encoding::Arrow];
    /// Those that serde writes.
    pub(in crate::api) const OF_SERDE: [Encoding; 2] = [Encoding::Json, Encoding::MessagePack];

    /// Its media types; the first is the one we send.
    const fn names(self) -> &'static [&'static str] {
        match self {
            Encoding::Json => &["application/json"],
            Encoding::MessagePack => &["application/msgpack", "application/vnd.msgpack", "application/x-msgpack"],
            Encoding::Protobuf => &["application/x-protobuf", "application/protobuf"],
            Encoding::Arrow => &["application/vnd.apache.arrow.stream"],
        }
    }

    /// The media type that we send.
    pub(in crate::api) const fn name(self) -> &'static str {
        self.names()[0]
    }

    fn is(self, media_type: &str) -> bool {
        self.names().iter().any(|name| name.eq_ignore_ascii_case(media_type))
    }
}

/// One range of an `Accept` header.
struct Range<'a> {
    kind: &'a str,
    /// 0 to 1.
    quality: f32,
}

impl Range<'_> {
    /// 3 names the encoding, 2 its `application/*`, 1 anything, 0 does not hold it.
    fn fit(&self, encoding: Encoding) -> u8 {
        match self.kind {
            "*/*" => 1,
            kind if kind.eq_ignore_ascii_case("application/*") => 2,
            kind => 3 * u8::from(encoding.is(kind)),
        }
    }
}

/// The encoding of the answer: of those offered the one that the client likes best; the first one where it says nothing.
pub(in crate::api) fn accepted(headers: &HeaderMap, offered: &[Encoding]) -> Result<Encoding, ApiError> {
    // One header that names one of ours and nothing else: what clients send that know what they want.
    let mut values = headers.get_all(header::ACCEPT).iter();
    if let (Some(only), None) = (values.next(), values.next())
        && let Some(named) = offered.iter().find(|encoding| encoding.name().as_bytes() == only.as_bytes())
    {
        return Ok(*named);
    }
    let lines: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let ranges: Vec<Range<'_>> = lines.iter().flat_map(|line| line.split(',')).filter_map(range).collect();
    if ranges.is_empty() {
        return Ok(offered[0]);
    }
    // The closest range that holds an encoding says how good it is; what is named is meant before what a star holds, then comes who
    // stands first.
    let rank = |encoding: &&Encoding| {
        let holding = ranges.iter().enumerate().filter(|(_, range)| range.fit(**encoding) > 0);
        let (place, closest) = holding.max_by_key(|(place, range)| (range.fit(**encoding), usize::MAX - place))?;
        let quality = (closest.quality * 1000.0) as u32;
        (quality > 0).then_some((quality, closest.fit(**encoding), usize::MAX - place))
    };
    let mut best: Option<(Encoding, (u32, u8, usize))> = None;
    for encoding in offered {
        if let Some(found) = rank(&encoding)
            && best.is_none_or(|(_, before)| found > before)
        {
            best = Some((*encoding, found));
        }
    }
    best.map(|(encoding, _)| encoding).ok_or_else(|| ApiError::NotAcceptable {
        accept: lines.join(", "),
        served: offered.iter().map(|encoding| encoding.name()).collect::<Vec<_>>().join(", "),
    })
}

fn range(text: &str) -> Option<Range<'_>> {
    let mut parts = text.split(';').map(str::trim);
    let kind = parts.next().filter(|kind| !kind.is_empty())?;
    let quality = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
    let quality = quality.map_or(Some(1.0), |text| text.trim().parse().ok().filter(|q| (0.0..=1.0).contains(q)));
    // A quality that is none makes the range none.
    Some(Range { kind, quality: quality.unwrap_or(0.0) })
}

/// The encoding of the body that came; JSON where nothing is said, as `curl -d` and Feast's client do.
pub(in crate::api) fn sent(headers: &HeaderMap, taken: &[Encoding]) -> Result<Encoding, ApiError> {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(Encoding::Json) };
    if let Some(named) = taken.iter().find(|encoding| encoding.name().as_bytes() == value.as_bytes()) {
        return Ok(*named);
    }
    let text = value.to_str().unwrap_or("?");
    let kind = text.split(';').next().unwrap_or_default().trim();
    if kind.is_empty() || kind.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        return Ok(Encoding::Json);
    }
    let known = taken.iter().copied().find(|encoding| encoding.is(kind));
    known.ok_or_else(|| ApiError::UnsupportedMediaType {
        sent: text.to_string(),
        taken: taken.iter().map(|encoding| encoding.name()).collect::<Vec<_>>().join(", "),
    })
}
