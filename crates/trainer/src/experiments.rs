//! The commands about experiments: `contrasts`.

use crate::{Failure, unavailable};
use std::path::Path;
use taiji_trainer::evaluate::Rows;
use taiji_trainer::stats::StatsError;

pub(crate) fn contrasts(
    file: &Path,
    rows: Option<&Path>,
    into: Option<&Path>,
    page: Option<&Path>,
) -> Result<(), Failure> {
    let folder = rows.map_or_else(|| file.with_extension(""), Path::to_path_buf);
    let read = Rows::read(file, &folder).map_err(|error| Failure(error.to_string(), 64))?;
    show(&read, into, page)
}

/// The tables into a page of Markdown or onto standard output, and the pictures into a page of their own.
fn show(read: &Rows, into: Option<&Path>, page: Option<&Path>) -> Result<(), Failure> {
    let failed = |error: StatsError| Failure(error.to_string(), 69);
    let at = |path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| unavailable(format!("{path}: {error}"))
    };
    if let Some(page) = page {
        if let Some(folder) = page.parent() {
            std::fs::create_dir_all(folder).map_err(at(folder))?;
        }
        std::fs::write(page, read.page().map_err(failed)?).map_err(at(page))?;
        println!("made: {}", page.display());
    }
    match into {
        Some(into) => {
            let text = std::fs::read_to_string(into).map_err(at(into))?;
            std::fs::write(into, read.put_into(&text).map_err(failed)?).map_err(at(into))
        }
        None if page.is_some() => Ok(()),
        None => {
            print!("{}", read.markdown().map_err(failed)?);
            Ok(())
        }
    }
}
