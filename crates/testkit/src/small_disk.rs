//! A file system that is full when it ought to be.

use crate::skip;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A file system in memory of a size of its own; gone when dropped.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one on a folder, which is made if need be. `None` where nothing can be mounted, which takes root: the test is left out
    /// and says so.
    #[track_caller]
    pub fn mount(folder: &Path, size: &str) -> Option<SmallDisk> {
        std::fs::create_dir_all(folder).expect("folder");
        let options = format!("size={size}");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(folder).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(folder.to_owned()));
        }
        skip(&format!("a full disk: mounting takes root: {mounted:?}"));
        None
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes room.
    pub fn grow(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().expect("mount").success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a process under test may still hold a file. What is left goes with the machine's memory.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
