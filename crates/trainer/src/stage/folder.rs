//! The work folder: a finished stage lies in `<kind>-<hash>/`, an unfinished one in `<kind>-<hash>.partial/`.
//!
//! A folder gets its final name when it is whole and on disk, so a kill leaves a partial one or a finished one. While a stage is
//! written its lock file is held; the system lets go of it when the process ends, however that happens.

use super::{Fingerprint, StageError};
use crate::progress::Progress;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::fs::{self, File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Written into a stage's folder last: what it was made from.
pub const STAGE_FILE: &str = "stage.json";

/// What [`STAGE_FILE`] says.
#[derive(Serialize, Deserialize)]
struct Made<F> {
    /// What it was made from.
    #[serde(flatten)]
    fingerprint: F,
    /// How long the attempt that finished it took; not noted before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    seconds: Option<f64>,
}

/// How long it took to make a finished stage, if that was noted.
pub fn seconds(folder: &Path) -> Result<Option<f64>, StageError> {
    Ok(read_json::<Made<Fingerprint>>(&folder.join(STAGE_FILE))?.seconds)
}

/// How far a stage is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Its folder is whole.
    Done,
    /// An interrupted run left something.
    Partial,
    /// Nothing is there.
    Absent,
}

/// Where stages keep what they make.
#[derive(Debug, Clone)]
pub struct Work {
    root: PathBuf,
    wait: bool,
}

impl Work {
    /// In a folder, which is created when needed. `wait`: for stages that another process writes, instead of ending.
    pub fn new(root: PathBuf, wait: bool) -> Work {
        Work { root, wait }
    }

    /// `$XDG_CACHE_HOME/taiji/work`, else `~/.cache/taiji/work`: outside the checkout, so that a new one goes on.
    pub fn default_root() -> PathBuf {
        taiji::packages::cache_folder().join("work")
    }

    /// The root folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where a stage lies when it is finished.
    pub fn folder(&self, fingerprint: &Fingerprint) -> PathBuf {
        self.root.join(format!("{}-{}", fingerprint.kind, fingerprint.hash()))
    }

    fn partial(&self, fingerprint: &Fingerprint) -> PathBuf {
        self.root.join(format!("{}-{}.partial", fingerprint.kind, fingerprint.hash()))
    }

    /// How far a stage is.
    pub fn state(&self, fingerprint: &Fingerprint) -> State {
        if self.folder(fingerprint).join(STAGE_FILE).is_file() {
            return State::Done;
        }
        if self.partial(fingerprint).exists() { State::Partial } else { State::Absent }
    }

    /// Makes a stage's folder by `work` unless it is there; returns it. `resumes`: `work` goes on in what an interrupted run left.
    pub fn make(
        &self,
        progress: &Progress,
        fingerprint: &Fingerprint,
        resumes: bool,
        work: impl FnOnce(&Path) -> Result<(), StageError>,
    ) -> Result<PathBuf, StageError> {
        let folder = self.folder(fingerprint);
        if self.state(fingerprint) == State::Done {
            progress.say(&format!("done before ({})", folder.display()));
            return Ok(folder);
        }
        let lock = self.lock(progress, &folder)?;
        // Who held the lock may have finished it.
        if self.state(fingerprint) == State::Done {
            progress.say(&format!("done by another process ({})", folder.display()));
            return Ok(folder);
        }
        let partial = self.partial(fingerprint);
        if !resumes {
            remove(&partial)?;
        }
        fs::create_dir_all(&partial).map_err(StageError::io(&partial))?;
        progress.say("running");
        let started = Instant::now();
        work(&partial)?;
        let seconds = started.elapsed().as_secs_f64();
        write_json(&partial.join(STAGE_FILE), &Made { fingerprint, seconds: Some(seconds) })?;
        sync_folder(&partial)?;
        fs::rename(&partial, &folder).map_err(StageError::io(&folder))?;
        sync_path(&self.root)?;
        drop(lock);
        progress.say(&format!("{seconds:.1} s"));
        Ok(folder)
    }

    /// Holds a stage's lock file, in which stands who does.
    fn lock(&self, progress: &Progress, folder: &Path) -> Result<File, StageError> {
        let locks = self.root.join("locks");
        fs::create_dir_all(&locks).map_err(StageError::io(&locks))?;
        let path = locks.join(folder.file_name().unwrap_or_default());
        let io = StageError::io(&path);
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(&io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::Error(error)) => return Err(io(error)),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).map_err(&io)?;
                let holder = if holder.is_empty() { "another process".to_string() } else { holder };
                if !self.wait {
                    return Err(StageError::Busy { folder: folder.display().to_string(), holder });
                }
                progress.say(&format!("waits for {holder}"));
                file.lock().map_err(&io)?;
            }
        }
        file.set_len(0).and_then(|()| file.rewind()).map_err(&io)?;
        file.write_all(format!("process {}", std::process::id()).as_bytes()).map_err(&io)?;
        Ok(file)
    }
}

fn remove(folder: &Path) -> Result<(), StageError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StageError::io(folder)(error)),
        _ => Ok(()),
    }
}

/// Copies the files of a stage's folder, without [`STAGE_FILE`].
pub fn copy_folder(from: &Path, to: &Path) -> Result<(), StageError> {
    for file in taiji::bundle::all_files(from).map_err(StageError::io(from))? {
        if file != STAGE_FILE {
            copy_file(&from.join(&file), &to.join(&file))?;
        }
    }
    Ok(())
}

/// Copies files from anywhere into a folder, each under its name there.
pub fn copy_files(files: Vec<(String, PathBuf)>, folder: &Path) -> Result<(), StageError> {
    files.into_iter().try_for_each(|(name, path)| copy_file(&path, &folder.join(name)))
}

/// Copies a file into a folder that is made for it.
pub fn copy_file(from: &Path, to: &Path) -> Result<(), StageError> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).map_err(StageError::io(parent))?;
    }
    // `fs::copy` does not say which of the two failed; a full disk is the likelier, and at the target.
    fs::copy(from, to).map(|_| ()).map_err(StageError::io(to))
}

/// Reads what [`write_json`] wrote.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, StageError> {
    Ok(serde_json::from_slice(&fs::read(path).map_err(StageError::io(path))?)?)
}

/// Writes a value, indented.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StageError> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    fs::write(path, text).map_err(StageError::io(path))
}

/// Everything below a folder goes to disk.
pub fn sync_folder(folder: &Path) -> Result<(), StageError> {
    for entry in fs::read_dir(folder).map_err(StageError::io(folder))? {
        let entry = entry.map_err(StageError::io(folder))?;
        match entry.file_type().map_err(StageError::io(&entry.path()))?.is_dir() {
            true => sync_folder(&entry.path())?,
            false => sync_path(&entry.path())?,
        }
    }
    sync_path(folder)
}

fn sync_path(path: &Path) -> Result<(), StageError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(StageError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Console;
    use std::collections::BTreeMap;

    fn fingerprint(version: u32) -> Fingerprint {
        let (inputs, files) = (BTreeMap::new(), BTreeMap::new());
        Fingerprint { kind: "s".into(), version, settings: serde_json::json!({}), inputs, files }
    }

    fn silent() -> Progress {
        Console::lines(Box::new(std::io::sink())).stage("s")
    }

    fn failed() -> StageError {
        StageError::Input { artefact: "data" }
    }

    #[test]
    fn a_finished_stage_is_not_run_again_but_a_failed_or_a_newer_one_is() {
        let root = tempfile::tempdir().unwrap();
        let work = Work::new(root.path().to_path_buf(), false);
        let mut runs = 0;
        for (version, fails, expected) in [(1, true, 1), (1, false, 2), (1, false, 2), (2, false, 3)] {
            let made = work.make(&silent(), &fingerprint(version), false, |_| {
                runs += 1;
                if fails { Err(failed()) } else { Ok(()) }
            });
            assert_eq!((made.is_err(), runs), (fails, expected));
        }
        assert_eq!(work.state(&fingerprint(1)), State::Done);
        assert_eq!(work.state(&fingerprint(3)), State::Absent);
        let folder = work.folder(&fingerprint(1));
        assert!(seconds(&folder).unwrap().unwrap() >= 0.0);
        // As earlier programs wrote it.
        write_json(&folder.join(STAGE_FILE), &fingerprint(1)).unwrap();
        assert_eq!(seconds(&folder).unwrap(), None);
    }

    #[test]
    fn what_an_interrupted_run_left_is_for_stages_that_resume_only() {
        let root = tempfile::tempdir().unwrap();
        let work = Work::new(root.path().to_path_buf(), false);
        for (resumes, finds) in [(true, true), (false, false)] {
            let print = fingerprint(u32::from(resumes));
            let leave = |folder: &Path| fs::write(folder.join("half"), "x").map_err(StageError::io(folder));
            work.make(&silent(), &print, resumes, |folder| leave(folder).and(Err(failed()))).unwrap_err();
            assert_eq!(work.state(&print), State::Partial);
            let folder = work.make(&silent(), &print, resumes, |_| Ok(())).unwrap();
            assert_eq!(folder.join("half").exists(), finds);
            assert!(folder.join(STAGE_FILE).is_file());
        }
    }

    #[test]
    fn a_second_run_on_a_stage_is_told_who_holds_it_or_waits_and_finds_it_done() {
        let root = tempfile::tempdir().unwrap();
        let (begun, begins) = std::sync::mpsc::channel();
        let (go, goes) = std::sync::mpsc::channel::<()>();
        let first = std::thread::spawn({
            let work = Work::new(root.path().to_path_buf(), false);
            move || {
                work.make(&silent(), &fingerprint(1), false, |_| {
                    begun.send(()).unwrap();
                    goes.recv().unwrap();
                    Ok(())
                })
            }
        });
        begins.recv().unwrap();
        let none = |_: &Path| -> Result<(), StageError> { panic!("two writers") };
        let told =
            Work::new(root.path().to_path_buf(), false).make(&silent(), &fingerprint(1), false, none).unwrap_err();
        let told = told.to_string();
        assert!(told.contains(&format!("process {}", std::process::id())) && told.contains("--wait"), "{told}");
        let second = std::thread::spawn({
            let work = Work::new(root.path().to_path_buf(), true);
            move || work.make(&silent(), &fingerprint(1), false, none)
        });
        go.send(()).unwrap();
        let folders = [first.join().unwrap().unwrap(), second.join().unwrap().unwrap()];
        assert_eq!(folders[0], folders[1]);
    }
}
