//! `import kuairand`: KuaiRand-Pure, short videos with what was shown and what came of it → our four files.
//!
//! In: impressions, histories before them, users, videos; tab-separated with a header, may be gzip. Out: as [`super`] says. Caller:
//! `taiji-trainer import`.
//!
//! A video has no text: its title is its number, its categories are its tags, its brand is its author. Of a history only the last time is
//! known: the others are made up, an hour apart. An impression is followed by one engagement, the strongest that it led to. The set holds a
//! small part of what these people saw, 1.1 impressions within half an hour: what is scored together is a user's day (UTC), of those after the
//! day on which the last history ends: whatever is made up lies before them. A click is a click, a conversion a click that was watched for
//! long.

use super::MAX_TS_MS;
use super::rejected::{RejectedRow, RowGate, tell_rejected, write_rejected};
use crate::data::time_split::{DAY_MS, day_of};
use crate::data::{DataError, Label, UserRecord, open_text, write_jsonl};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::path::Path;
use taiji::event::item::MAX_CATEGORIES;
use taiji::event::{Event, Item, ItemState, MIN_TS_MS};

/// Between two videos of a history.
const APART_MS: i64 = 60 * 60 * 1000;
/// What of a user becomes the profile. Left out are counts, which their ranges say, two codes of 454 and 1,471 values, and what has one value.
const PROFILE: [&str; 23] = [
    "user_active_degree",
    "is_live_streamer",
    "is_video_author",
    "follow_user_num_range",
    "fans_user_num_range",
    "friend_user_num_range",
    "register_days_range",
    "onehot_feat0",
    "onehot_feat1",
    "onehot_feat2",
    "onehot_feat4",
    "onehot_feat5",
    "onehot_feat6",
    "onehot_feat7",
    "onehot_feat9",
    "onehot_feat10",
    "onehot_feat11",
    "onehot_feat12",
    "onehot_feat13",
    "onehot_feat14",
    "onehot_feat15",
    "onehot_feat16",
    "onehot_feat17",
];

/// The set's files.
#[derive(Debug, Clone, Copy)]
pub struct KuaiRandFiles<'a> {
    /// `user video time_ms click like comment forward hate long_view` and more.
    pub impressions: &'a Path,
    /// `user last_time_ms watched long_watched liked`: videos before the impressions, oldest first, with spaces between them.
    pub histories: &'a Path,
    /// `user_id` and attributes.
    pub users: &'a Path,
    /// `video_id author_id tag` and more.
    pub videos: &'a Path,
}

/// What an import did; its `Display` is what the command prints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KuaiRandSummary {
    /// With a line among the users.
    pub users: usize,
    /// Of histories and impressions.
    pub events: usize,
    /// Videos.
    pub items: usize,
    /// Days of users that have labels.
    pub points: usize,
    /// Days of users, after the last history.
    pub days: usize,
    /// Impressions of those points.
    pub labels: usize,
    /// Impressions that were there twice.
    pub doubles: usize,
    /// Rows of all files that were left out.
    pub rejected: Vec<RejectedRow>,
}

impl fmt::Display for KuaiRandSummary {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { users, events, items, points, days, labels, doubles, rejected } = self;
        write!(
            out,
            "{users} users, {events} events, {items} items, {labels} labels on {points} of {days} days of users ({doubles} impressions \
             were there twice)"
        )?;
        tell_rejected(rejected, out)
    }
}

/// 0 or 1 in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flag(bool);

impl<'de> Deserialize<'de> for Flag {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u8::deserialize(deserializer)? {
            0 => Ok(Flag(false)),
            1 => Ok(Flag(true)),
            other => Err(serde::de::Error::custom(format!("{other} is neither 0 nor 1"))),
        }
    }
}

#[derive(Debug, Deserialize)]
struct Impression {
    user: u64,
    video: u64,
    time_ms: i64,
    click: Flag,
    like: Flag,
    comment: Flag,
    forward: Flag,
    hate: Flag,
    long_view: Flag,
}

#[derive(Debug, Deserialize)]
struct History {
    user: u64,
    last_time_ms: i64,
    watched: String,
    long_watched: String,
    liked: String,
}

#[derive(Debug, Deserialize)]
struct Video {
    video_id: u64,
    author_id: String,
    /// With commas between them.
    tag: String,
}

/// Reads the four files and writes ours into `out`, which is created. Labels are those of at most `points` days of users, drawn with
/// `seed`; without it, of all. More bad rows than `max_bad_share` (0 to 1) of a file are an error.
pub fn import_kuairand(
    files: &KuaiRandFiles<'_>,
    out: &Path,
    points: Option<usize>,
    seed: u64,
    max_bad_share: f64,
) -> Result<KuaiRandSummary, DataError> {
    std::fs::create_dir_all(out).map_err(DataError::io(out))?;
    let mut summary = KuaiRandSummary::default();
    let mut known_items = HashSet::new();
    let once = |video: &Video| match known_items.insert(video.video_id) {
        true => Ok(()),
        false => Err(format!("video_id: {} is there twice", video.video_id)),
    };
    let items = items(rows(files.videos, max_bad_share, &mut summary, once)?);
    let named = |row: &BTreeMap<String, String>| row.get("user_id").map(drop).ok_or("no column user_id".to_owned());
    let users = rows(files.users, max_bad_share, &mut summary, named)?;
    let users: Vec<UserRecord> = users.into_iter().filter_map(user_record).collect();
    let in_time = |one: &History| time("last_time_ms", one.last_time_ms, one.watched.split_whitespace().count());
    let histories: Vec<History> = rows(files.histories, max_bad_share, &mut summary, in_time)?;
    let in_time = |one: &Impression| time("time_ms", one.time_ms, 0);
    let mut shown: Vec<Impression> = rows(files.impressions, max_bad_share, &mut summary, in_time)?;
    let all = shown.len();
    let mut known = HashSet::new();
    shown.retain(|one| known.insert((one.user, one.video, one.time_ms)));
    summary.doubles = all - shown.len();

    let mut events: Vec<Event> = histories.iter().flat_map(watched).chain(shown.iter().flat_map(followed)).collect();
    events.sort_by(|left, right| (left.ts_ms, &left.event_id).cmp(&(right.ts_ms, &right.event_id)));
    let last_ms = histories.iter().map(|history| day_of(history.last_time_ms)).max().unwrap_or(i64::MIN);
    shown.retain(|one| day_of(one.time_ms) > last_ms);
    let labels = labels(&shown, points, seed, &mut summary);
    summary.items = write_jsonl(&out.join("items.jsonl"), items)?;
    summary.users = write_jsonl(&out.join("users.jsonl"), users)?;
    summary.events = write_jsonl(&out.join("events.jsonl"), events)?;
    summary.labels = write_jsonl(&out.join("labels.jsonl"), labels)?;
    write_rejected(out, &summary.rejected)?;
    Ok(summary)
}

/// The rows of a file as their type and the check say.
fn rows<T: DeserializeOwned>(
    path: &Path,
    max_bad_share: f64,
    summary: &mut KuaiRandSummary,
    mut check: impl FnMut(&T) -> Result<(), String>,
) -> Result<Vec<T>, DataError> {
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').quoting(false).from_reader(open_text(path)?);
    let (mut gate, mut rows) = (RowGate::new(path), Vec::new());
    let fail = |line: usize, error: csv::Error| match error.into_kind() {
        csv::ErrorKind::Io(source) => DataError::unreadable(path, line, source),
        csv::ErrorKind::Deserialize { err, .. } => DataError::line(path, line, err.to_string()),
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => {
            DataError::line(path, line, format!("{len} columns; the header has {expected_len}"))
        }
        csv::ErrorKind::Utf8 { err, .. } => DataError::line(path, line, format!("not utf-8: {err}")),
        other => DataError::line(path, line, format!("{other:?}")),
    };
    // A header that cannot be read is no bad row.
    let headers = reader.headers().map_err(|error| fail(1, error))?.clone();
    let mut raw = csv::StringRecord::new();
    loop {
        let line = reader.position().line() as usize;
        let row = match reader.read_record(&mut raw) {
            Ok(false) => break,
            Ok(true) => raw.deserialize::<T>(Some(&headers)).map_err(|error| fail(line, error)),
            Err(error) => Err(fail(line, error)),
        };
        let checked = row.and_then(|row| match check(&row) {
            Ok(()) => Ok(row),
            Err(message) => Err(DataError::line(path, line, message)),
        });
        rows.extend(gate.admit(checked)?);
    }
    summary.rejected.extend(gate.finish(max_bad_share)?);
    Ok(rows)
}

/// A time that events may have, and so many hours before it.
fn time(column: &str, ms: i64, videos: usize) -> Result<(), String> {
    let first_ms = ms.saturating_sub(videos as i64 * APART_MS);
    match first_ms >= MIN_TS_MS && ms < MAX_TS_MS {
        true => Ok(()),
        false => Err(format!("{column}: {ms} is no time in ms, or too early for the {videos} videos before it")),
    }
}

fn items(videos: Vec<Video>) -> Vec<Item> {
    let item = |video: Video| Item {
        id: video.video_id.to_string(),
        title: format!("video {}", video.video_id),
        categories: video
            .tag
            .split(',')
            .filter(|tag| !tag.is_empty())
            .take(MAX_CATEGORIES)
            .map(str::to_owned)
            .collect(),
        brand: Some(video.author_id).filter(|author| !author.is_empty()),
        price: None,
        state: ItemState::Active,
    };
    videos.into_iter().map(item).collect()
}

fn user_record(mut row: BTreeMap<String, String>) -> Option<UserRecord> {
    let value = |name: &str| Some((name.to_owned(), row.get(name).filter(|value| !value.is_empty())?.clone()));
    let profile = PROFILE.iter().filter_map(|name| value(name)).collect();
    Some(UserRecord { user_id: row.remove("user_id")?, profile, latent: None })
}

fn event(event_id: String, user: u64, video: &str, action: &str, ts_ms: i64) -> Event {
    Event {
        event_id,
        user_id: user.to_string(),
        item_id: Some(video.to_owned()),
        action: action.to_owned(),
        ts_ms,
        value: None,
        domain: None,
        request_id: None,
        context: BTreeMap::new(),
    }
}

/// A history as engagements that end with its last time.
fn watched(history: &History) -> Vec<Event> {
    let videos = |text: &'_ str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (all, long, liked) = (videos(&history.watched), videos(&history.long_watched), videos(&history.liked));
    let action = |video: &String| match (liked.contains(video), long.contains(video)) {
        (true, _) => "like",
        (false, true) => "long_view",
        (false, false) => "click",
    };
    let of = |(place, video): (usize, &String)| {
        let ts_ms = history.last_time_ms - (all.len() - 1 - place) as i64 * APART_MS;
        event(format!("h{}-{place:02}", history.user), history.user, video, action(video), ts_ms)
    };
    all.iter().enumerate().map(of).collect()
}

/// An impression, and the strongest engagement that it led to, a millisecond later.
fn followed(one: &Impression) -> Vec<Event> {
    let Impression { user, video, time_ms, .. } = *one;
    let led_to = [
        ("like", one.like),
        ("share", one.forward),
        ("comment", one.comment),
        ("long_view", one.long_view),
        ("click", one.click),
        ("dislike", one.hate),
    ];
    let engaged = led_to.into_iter().find(|(_, Flag(it_did))| *it_did);
    let id = |kind: &str| format!("{kind}{user}-{time_ms}-{video}");
    let video = video.to_string();
    let shown = event(id("i"), user, &video, "impression", time_ms);
    let engaged = engaged.map(|(action, _)| event(id("e"), user, &video, action, time_ms + 1));
    [shown].into_iter().chain(engaged).collect()
}

/// Of the days that are drawn.
fn labels(shown: &[Impression], points: Option<usize>, seed: u64, summary: &mut KuaiRandSummary) -> Vec<Label> {
    let key = |one: &Impression| (day_of(one.time_ms), one.user);
    let mut days: Vec<(i64, u64)> = shown.iter().map(key).collect::<BTreeSet<_>>().into_iter().collect();
    summary.days = days.len();
    if let Some(points) = points {
        days.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
        days.truncate(points);
    }
    let drawn: HashSet<(i64, u64)> = days.into_iter().collect();
    summary.points = drawn.len();
    let label = |one: &Impression| Label {
        user_id: one.user.to_string(),
        item_id: one.video.to_string(),
        ts_ms: one.time_ms,
        request_id: format!("{}-{}", one.user, one.time_ms.div_euclid(DAY_MS)),
        clicked: one.click.0,
        converted: one.click.0 && one.long_view.0,
    };
    shown.iter().filter(|one| drawn.contains(&key(one))).map(label).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::data::{Dataset, read_labels};
    use crate::rank::points;
    use taiji::event::ActionTable;

    const IMPRESSIONS: &str = "user\tvideo\ttime_ms\ttab\tclick\tlike\tfollow\tcomment\tforward\thate\tlong_view\n\
        1\t5\t1650844800000\t1\t1\t0\t0\t0\t0\t0\t1\n\
        1\t6\t1650844860000\t1\t0\t0\t0\t0\t0\t0\t0\n\
        1\t6\t1650844860000\t1\t0\t0\t0\t0\t0\t0\t0\n\
        1\t7\t1650931200000\t1\t1\t1\t0\t0\t0\t0\t0\n\
        2\t5\t1650844800000\t1\t0\t0\t0\t0\t0\t0\t1\n";
    const HISTORIES: &str = "user\thistory_len\tlast_time_ms\twatched\tlong_watched\tliked\n\
        1\t3\t1650758400000\t6 7 7\t7\t\n2\t0\t1650758400000\t\t\t\n";
    const USERS: &str = "user_id\tuser_active_degree\tonehot_feat3\tonehot_feat5\n1\tfull_active\t949\t3\n2\t\t1\t0\n";
    const VIDEOS: &str = "video_id\tauthor_id\ttag\n5\t70\t39,68\n6\t71\t\n7\t70\t3\n";

    fn import(folder: &Path, texts: [&str; 4], points: Option<usize>) -> Result<KuaiRandSummary, DataError> {
        let paths = ["impressions.tsv", "histories.tsv", "users.tsv", "videos.tsv"].map(|name| folder.join(name));
        for (path, text) in paths.iter().zip(texts) {
            std::fs::write(path, text).unwrap();
        }
        let [impressions, histories, users, videos] = paths.each_ref();
        let files = KuaiRandFiles { impressions, histories, users, videos };
        import_kuairand(&files, &folder.join("out"), points, 7, 0.0)
    }

    #[test]
    fn a_day_of_a_user_is_a_point_with_what_lay_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let summary = import(folder.path(), [IMPRESSIONS, HISTORIES, USERS, VIDEOS], None).unwrap();
        assert_eq!((summary.doubles, summary.days, summary.points, summary.labels), (1, 3, 3, 4));
        assert_eq!((summary.users, summary.items, summary.rejected.len()), (2, 3, 0));
        // 3 of the history, 4 impressions and what they led to: 3.
        assert_eq!(summary.events, 3 + 4 + 3, "{summary}");
        let out = folder.path().join("out");
        let dataset = Dataset::load(&out, &ActionTable::default()).unwrap();
        let done: Vec<(&str, &str)> =
            dataset.users[0].engagements.iter().map(|one| (one.item_id.as_str(), one.action.as_str())).collect();
        let expected = [("6", "click"), ("7", "long_view"), ("7", "long_view"), ("5", "long_view"), ("7", "like")];
        assert_eq!(done, expected);
        assert_eq!(dataset.users[0].profile_before(0).len(), 2, "a code of many values is left out");
        assert_eq!(dataset.items[0].categories, ["39", "68"]);
        let labels = read_labels(&out).unwrap();
        let (points, _) = points(&dataset, &labels);
        let sizes: Vec<(usize, usize, usize)> =
            points.iter().map(|point| (point.user, point.cut.engagements, point.impressions.len())).collect();
        assert_eq!(sizes, [(0, 3, 2), (1, 0, 1), (0, 4, 1)]);
        // Who watched for long without a click did not convert.
        assert_eq!(labels.iter().filter(|label| label.converted).count(), 1);
        assert_eq!(import(folder.path(), [IMPRESSIONS, HISTORIES, USERS, VIDEOS], Some(2)).unwrap().points, 2);
    }

    #[test]
    fn bad_rows_are_named_by_file_line_and_column() {
        let folder = tempfile::tempdir().unwrap();
        for (place, find, put, part) in [
            (0, "6\t1650844860000\t1\t0", "6\t1650844860000\t1\t2", "line 3: "),
            (0, "user\tvideo", "user\tfilm", "missing field `video`"),
            (0, "1\t7\t1650931200000", "1\t7\t99", "line 5: time_ms: 99"),
            (0, "\t0\n2\t5", "\n2\t5", "line 5: "),
            (1, "1\t3\t1650758400000", "1\t3\tx", "histories.tsv"),
            (2, "user_id", "id", "no column user_id"),
            (3, "7\t70", "5\t70", "line 4: video_id: 5 is there twice"),
        ] {
            let texts = [IMPRESSIONS, HISTORIES, USERS, VIDEOS].map(str::to_owned);
            let mut texts = texts.each_ref().map(|text| text.as_str());
            let wrong = texts[place].replacen(find, put, 1);
            assert_ne!(wrong, texts[place]);
            texts[place] = &wrong;
            let message = import(folder.path(), texts, None).unwrap_err().to_string();
            assert!(message.contains(part), "{part}: {message}");
        }
    }

    #[test]
    fn the_public_set_imports() {
        let shared = testkit::data_folder();
        let paths = ["impressions", "histories", "users", "videos"];
        let paths = paths.map(|name| shared.join(format!("kuairand.{name}.tsv.gz")));
        if !paths[0].is_file() {
            testkit::skip(&format!("{} is not there; TAIJI_DATA_DIR names the folder", paths[0].display()));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let [impressions, histories, users, videos] = paths.each_ref();
        let files = KuaiRandFiles { impressions, histories, users, videos };
        let summary = import_kuairand(&files, folder.path(), Some(1000), 7, 0.0).unwrap();
        assert_eq!((summary.users, summary.items, summary.doubles), (27_285, 7_583, 228_329 - 222_444));
        assert_eq!((summary.points, summary.rejected.len()), (1000, 0), "{summary}");
        let dataset = Dataset::load(folder.path(), &ActionTable::default()).unwrap();
        assert!(dataset.users.iter().flat_map(|user| &user.engagements).all(|one| one.item.is_some()));
    }
}
