//! The command `import`: public data sets.

use crate::{Failure, unavailable};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use taiji_trainer::data::{KuaiRandFiles, import_amazon, import_kuairand};

#[derive(Debug, Subcommand)]
pub(crate) enum Import {
    /// Review sequences with the texts of their items (Amazon): events.jsonl, items.jsonl, users.jsonl.
    #[command(
        after_help = "Example:\n  taiji-trainer import amazon --interactions instruments-mm.interactions.tsv.gz \\\n    --items instruments-mm.items.jsonl.gz --out data/instruments"
    )]
    Amazon {
        /// Tab-separated `user item pos ts rating` (.gz accepted).
        #[arg(long, value_name = "FILE")]
        interactions: PathBuf,
        /// One item a line, JSON (.gz accepted).
        #[arg(long, value_name = "FILE")]
        items: PathBuf,
        #[command(flatten)]
        into: Destination,
    },
    /// Short videos without texts, what was shown and what came of it (KuaiRand-Pure): the same files, and labels.jsonl.
    #[command(
        after_help = "Example:\n  taiji-trainer import kuairand --impressions kuairand.impressions.tsv.gz \\\n    --histories kuairand.histories.tsv.gz --users kuairand.users.tsv.gz --videos kuairand.videos.tsv.gz --out data/kuairand"
    )]
    Kuairand {
        /// Tab-separated, with the columns user, video, time_ms, click, like, comment, forward, hate, long_view (.gz accepted).
        #[arg(long, value_name = "FILE")]
        impressions: PathBuf,
        /// Tab-separated, with the columns user, last_time_ms, watched, long_watched, liked: videos before the impressions, oldest
        /// first, with spaces between them (.gz accepted).
        #[arg(long, value_name = "FILE")]
        histories: PathBuf,
        /// Tab-separated, with the column user_id and attributes (.gz accepted).
        #[arg(long, value_name = "FILE")]
        users: PathBuf,
        /// Tab-separated, with the columns video_id, author_id, tag (.gz accepted).
        #[arg(long, value_name = "FILE")]
        videos: PathBuf,
        /// Days of users that get labels, drawn at random; all without it.
        #[arg(long)]
        points: Option<usize>,
        /// Decides which.
        #[arg(long, default_value_t = 7)]
        seed: u64,
        #[command(flatten)]
        into: Destination,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Destination {
    /// Folder to write.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Share of a file's rows, 0 to 1, that may be bad: they are left out and told of, in rejected.jsonl, too.
    #[arg(long, value_name = "SHARE", default_value_t = 0.01, value_parser = share)]
    max_bad_share: f64,
}

pub(crate) fn import(command: Import) -> Result<(), Failure> {
    match command {
        Import::Amazon { interactions, items, into } => {
            let summary = import_amazon(&interactions, &items, &into.out, into.max_bad_share).map_err(unavailable)?;
            println!("{summary}");
        }
        Import::Kuairand { impressions, histories, users, videos, points, seed, into } => {
            let (impressions, histories, users, videos) = (&*impressions, &*histories, &*users, &*videos);
            let files = KuaiRandFiles { impressions, histories, users, videos };
            let summary = import_kuairand(&files, &into.out, points, seed, into.max_bad_share).map_err(unavailable)?;
            println!("{summary}");
        }
    }
    Ok(())
}

/// A share on the command line.
fn share(text: &str) -> Result<f64, String> {
    let value: f64 = text.parse().map_err(|_| format!("'{text}' is not a number"))?;
    match (0.0..=1.0).contains(&value) {
        true => Ok(value),
        false => Err(format!("{value} is not from 0 to 1")),
    }
}
