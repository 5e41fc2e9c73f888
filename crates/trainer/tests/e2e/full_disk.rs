//! The disk fills up under a recipe: an error that names the file, nothing half-written, and the next run goes on.

use crate::recipe::{check, ensure_encoder_checkpoint, manifest, run_in, tiny, write};
use std::collections::BTreeSet;
use std::path::Path;
use testkit::SmallDisk;

/// KiB of the disk, run after run.
const SIZES: [u32; 9] = [300, 1_200, 2_400, 60_000, 94_000, 96_000, 120_000, 186_000, 400_000];

/// Unfinished stages have their own names; everything else must be whole.
fn nothing_is_half_written(disk: &Path) {
    for entry in std::fs::read_dir(disk.join("work")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let is_stage = name.contains('-') && !name.ends_with(".partial");
        assert!(!is_stage || path.join("stage.json").metadata().unwrap().len() > 0, "{name}");
        assert!(!name.ends_with(".new"), "{name}");
    }
    let bundle = disk.join("models/tiny/1");
    if bundle.exists() {
        check(&bundle);
    }
}

#[test]
fn a_full_disk_is_named_and_the_next_run_goes_on() {
    ensure_encoder_checkpoint();
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&folder.path().join("disk"), &format!("{}k", SIZES[0])) else { return };
    let recipe = write(folder.path(), &tiny());
    let mut failed = BTreeSet::new();
    let whole = SIZES.iter().any(|size| {
        disk.grow(&format!("{size}k"));
        let ended = run_in(&recipe, disk.path(), &[]);
        if ended.code == Some(0) {
            return true;
        }
        let told = ended.expect_code(69).stderr;
        let last = told.lines().rfind(|line| line.starts_with("taiji-trainer: ")).unwrap();
        assert!(last.contains("No space left on device"), "{told}");
        assert!(last.contains(&disk.path().display().to_string()), "a file is named: {told}");
        failed.insert(last.split([':', ' ']).nth(3).unwrap_or_default().to_string());
        nothing_is_half_written(disk.path());
        false
    });
    println!("the disk was full in {failed:?}");
    assert!(whole, "with room enough it ends");
    assert!(failed.len() >= 3, "{failed:?}");
    let elsewhere = folder.path().join("roomy");
    run_in(&recipe, &elsewhere, &[]).expect_code(0);
    assert_eq!(manifest(&disk.path().join("models/tiny/1")), manifest(&elsewhere.join("models/tiny/1")));
}
