#![allow(clippy::unwrap_used, clippy::expect_used)]
use super::{Calibration, Hits, Rows, Values};
use serde_json::json;
use std::path::Path;

const DECLARED: &str = "name = \"trial\"\nquestion = \"q\"\ndata = \"d\"\narms = [\"plain\", \"filtered\"]\nseeds = 2\nusers = 40\n\
    alpha = 0.05\n[stop]\nlooks = [0.5, 1.0]\nspending = \"o_brien_fleming\"\n[[contrast]]\nname = \"helps\"\nmetric = \"l3\"\n\
    arm = \"filtered\"\nagainst = \"plain\"\nprimary = true\n";

fn write(folder: &Path, arm: &str, seed: u64, hits: &[bool]) {
    let look = |step: Option<u64>| json!({ "step": step, "metrics": { "l3": Hits::new(hits) }, "texts": [] });
    let planted = json!({ "true": 3, "wrong_own": 1 });
    let calibration = Calibration::new([(0.1, 0.2), (0.5, 0.25 * seed as f64)].into_iter());
    let pairs = json!({ "pairs": 4, "distinct_prompts": 2, "planted_taken": planted });
    let row = json!({ "experiment": "trial", "arm": arm, "seed": seed, "commit": "0123456789", "stages": {},
        "result": { "pairs": pairs, "calibration": { "click": calibration }, "looks": [look(Some(3)), look(None)] } });
    std::fs::write(folder.join(format!("{arm}-{seed}.json")), row.to_string()).unwrap();
}

#[test]
fn contrasts_are_decided_when_all_rows_are_there_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let declaration = folder.path().join("trial.toml");
    std::fs::write(&declaration, DECLARED).unwrap();
    let rows = folder.path().join("trial");
    std::fs::create_dir(&rows).unwrap();
    // Eight users in ten are hit by the one, two by the other.
    let hits = |most: usize| (0..40).map(|user| user % 10 < most).collect::<Vec<bool>>();
    write(&rows, "plain", 1, &hits(2));
    write(&rows, "filtered", 1, &hits(8));
    write(&rows, "plain", 2, &hits(2));
    let told = || Rows::read(&declaration, &rows).unwrap().markdown().unwrap();
    let early = told();
    assert!(
        early.contains("3 of 4 rows; commits 0123456.") && early.contains("1 of 2 seeds: nothing is decided"),
        "{early}"
    );
    assert!(early.contains("| plain | 2 | 4 | 2 | 0.250 | 0.200 | 0.200 |"), "{early}");
    write(&rows, "filtered", 2, &hits(8));
    let whole = told();
    assert_eq!(whole.matches("**shown**").count(), 2, "{whole}");
    assert!(whole.contains("| helps | l3 | +0.6000 | "), "{whole}");
    let read = Rows::read(&declaration, &rows).unwrap();
    let pictures = read.page().unwrap();
    // The contrast, the arm beside the first, both arms; and one curve of the looks.
    assert_eq!(pictures.matches("class=\"dot ").count(), 4, "{pictures}");
    // Two arms' curves of the looks; of calibration too, and what they would be without a fault.
    assert_eq!(pictures.matches("<polyline").count(), 5);
    // The mean of two seeds' second buckets.
    assert!(pictures.contains("Calibration of click") && pictures.contains("0.375"), "{pictures}");
    assert!(pictures.contains("filtered − plain") && pictures.contains("+0.6000 (") && pictures.contains(">shown<"));
    let page = read.put_into("a\n<!-- trial:begin -->\nold\n<!-- trial:end -->\nb\n").unwrap();
    assert_eq!(page, format!("a\n<!-- trial:begin -->\n{whole}<!-- trial:end -->\nb\n"));
    assert!(read.put_into("no place").unwrap_err().to_string().contains("<!-- trial:begin -->"));
    write(&rows, "unheard", 1, &hits(2));
    assert!(Rows::read(&declaration, &rows).unwrap_err().to_string().contains("unheard is not declared"));
}

#[test]
fn the_mean_of_a_seeds_runs_is_its_figure_and_half_a_seed_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let declaration = folder.path().join("trial.toml");
    std::fs::write(&declaration, DECLARED.replace("seeds = 2", "seeds = 2\nruns = 2")).unwrap();
    let write = |arm: &str, seed: u64, run: u64, most: usize| {
        let hits: Vec<bool> = (0..40).map(|user| user % 10 < most).collect();
        let look = json!({ "step": null, "metrics": { "l3": Hits::new(&hits) }, "texts": [] });
        let row = json!({ "arm": arm, "seed": seed, "run": run, "commit": null, "seconds": { "sft": 20.0, "align": run },
            "result": { "looks": [look.clone(), look] } });
        std::fs::write(folder.path().join("trial").join(format!("{arm}-{seed}.{run}.json")), row.to_string()).unwrap();
    };
    std::fs::create_dir(folder.path().join("trial")).unwrap();
    for (seed, run) in [(1, 1), (1, 2), (2, 1)] {
        write("plain", seed, run, 2);
        write("filtered", seed, run, if run == 1 { 4 } else { 8 });
    }
    let told = || Rows::read(&declaration, &folder.path().join("trial")).unwrap().markdown().unwrap();
    let early = told();
    assert!(Rows::read(&declaration, &folder.path().join("trial")).unwrap().page().is_ok());
    assert!(early.contains("6 of 8 rows") && early.contains("1 of 2 seeds: nothing is decided"), "{early}");
    write("plain", 2, 2, 2);
    write("filtered", 2, 2, 8);
    let whole = told();
    // (.4 + .8) / 2 - .2, at both seeds.
    assert!(whole.contains("| helps | l3 | +0.4000 | "), "{whole}");
    assert!(whole.contains("| seconds of all stages |") && whole.contains(" | 22 |"), "{whole}");
    assert!(whole.contains("| plain | 2 (4 runs) |"), "{whole}");
    write("plain", 2, 3, 2);
    let refused = |declared: &str| {
        std::fs::write(&declaration, declared).unwrap();
        Rows::read(&declaration, &folder.path().join("trial")).unwrap_err().to_string()
    };
    let runs = DECLARED.replace("seeds = 2", "seeds = 2\nruns = 2");
    let surplus = refused(&runs);
    assert!(surplus.contains("plain-2.3.json") && surplus.contains("is run 3, and 2 runs"), "{surplus}");
    std::fs::remove_file(folder.path().join("trial/plain-2.3.json")).unwrap();
    assert!(refused(DECLARED).contains("1 runs of a seed are declared"));
    assert!(refused(&runs.replace("users = 40", "users = 41")).contains("figures of 40 users, 41 are declared"));
}

#[test]
fn a_rankers_rows_say_how_far_they_go_and_what_is_not_there_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let declaration = folder.path().join("trial.toml");
    let contrasts: String = ["first", "second"]
        .map(|name| {
            format!("[[contrast]]\nname = \"{name}\"\nmetric = \"click_auc\"\narm = \"both\"\nagainst = \"none\"\nprimary = false\n")
        })
        .concat();
    let declared =
        DECLARED.replace("[\"plain\", \"filtered\"]", "[\"none\", \"both\", \"away\"]").replace("l3", "click_auc");
    let declared = declared.replace("\"filtered\"", "\"both\"").replace("\"plain\"", "\"none\"");
    let declared = declared.replace("looks = [0.5, 1.0]\nspending = \"o_brien_fleming\"", "looks = [1.0]");
    std::fs::write(&declaration, declared + &contrasts).unwrap();
    let rows = folder.path().join("trial");
    std::fs::create_dir(&rows).unwrap();
    for (arm, seed, mean, commit) in [
        ("none", 1, 0.5, "0123456789-dirty"),
        ("none", 2, 0.5, "0123456789"),
        ("both", 1, 0.54, "0123456000"),
        ("both", 2, 0.56, "0123456789"),
    ] {
        let values: Vec<f64> = (0..40).map(|user| mean + 0.01 * f64::from(user % 5 - 2)).collect();
        let look = json!({ "step": null, "metrics": { "click_auc": Values::new(&values) } });
        let truth = json!({ "click_auc": 0.7, "ctcvr_auc": null });
        let row = json!({ "arm": arm, "seed": seed, "commit": commit, "result": { "looks": [look], "truth": truth } });
        std::fs::write(rows.join(format!("{arm}-{seed}.json")), row.to_string()).unwrap();
    }
    let told = Rows::read(&declaration, &rows).unwrap().markdown().unwrap();
    assert!(told.contains("4 of 6 rows; commits 0123456, 0123456-dirty."), "{told}");
    // From .50 to .55, where .70 can be had.
    assert!(told.contains("| none | 2 | 0.5000 | – |") && told.contains("| both | 2 | 0.5500 | 25 % |"), "{told}");
    assert!(told.contains("| away | 0 | – | – |"), "{told}");
    assert!(told.contains("for reading") && told.contains("Holm"), "{told}");
}
