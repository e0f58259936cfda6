//! A folder that holds backups by their time: the newest is found, the oldest go.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

/// The last file that a backup gets; a folder without it is none.
const MANIFEST: &str = "manifest.json";
/// Beginning of the name of a folder that is being written.
const UNFINISHED: &str = "unfinished-";
/// One that is older than this has no writer any more.
const FORGOTTEN: Duration = Duration::from_hours(24);

/// A folder of backups. Names are times (`2026-11-21T22-03-04.123Z`), so they sort by age.
pub struct Shelf<'a>(&'a Path);

impl<'a> Shelf<'a> {
    pub fn new(folder: &'a Path) -> Self {
        Self(folder)
    }

    /// Where a backup is written; `put` gives it its name. Folders of writers that ended long ago are removed.
    pub fn unfinished(&self) -> anyhow::Result<PathBuf> {
        fs::create_dir_all(self.0).with_context(|| self.0.display().to_string())?;
        for (name, path) in self.folders()? {
            let changed = fs::metadata(&path).and_then(|data| data.modified()).ok();
            let age = changed.and_then(|time| time.elapsed().ok()).unwrap_or_default();
            if name.starts_with(UNFINISHED) && age > FORGOTTEN {
                fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
            }
        }
        Ok(self.0.join(format!("{UNFINISHED}{:016x}", rand::random::<u64>())))
    }

    /// Names a finished backup by its time and keeps it and the newest of the others, `keep` in all (0: all). Returns its
    /// folder and how many went.
    pub fn put(&self, unfinished: &Path, made_at: &str, keep: usize) -> anyhow::Result<(PathBuf, usize)> {
        // Not every file system takes a colon.
        let place = self.0.join(made_at.replace(':', "-"));
        fs::rename(unfinished, &place).with_context(|| place.display().to_string())?;
        let mut others = self.backups()?;
        // By a clock that went wrong it may be older than they are.
        others.retain(|path| *path != place);
        let old = if keep == 0 { 0 } else { others.len().saturating_sub(keep - 1) };
        for path in &others[..old] {
            fs::remove_dir_all(path).with_context(|| path.display().to_string())?;
        }
        Ok((place, old))
    }

    /// The newest backup.
    pub fn newest(&self) -> anyhow::Result<PathBuf> {
        match self.backups()?.pop() {
            Some(path) => Ok(path),
            None => bail!("{} holds no backup", self.0.display()),
        }
    }

    /// Whole backups, the oldest first.
    fn backups(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut all = self.folders()?;
        all.retain(|(name, path)| is_time(name) && path.join(MANIFEST).is_file());
        all.sort();
        Ok(all.into_iter().map(|(_, path)| path).collect())
    }

    /// Names and paths of the folders in it.
    fn folders(&self) -> anyhow::Result<Vec<(String, PathBuf)>> {
        let failed = || self.0.display().to_string();
        let mut found = Vec::new();
        for entry in fs::read_dir(self.0).with_context(failed)? {
            let entry = entry.with_context(failed)?;
            if entry.file_type().with_context(failed)?.is_dir() {
                found.extend(entry.file_name().into_string().ok().map(|name| (name, entry.path())));
            }
        }
        Ok(found)
    }
}

fn is_time(name: &str) -> bool {
    name.len() >= 20
        && name.ends_with('Z')
        && name.bytes().zip(*b"0000-00-00T00-00-00").all(|(found, shape)| match shape {
            b'0' => found.is_ascii_digit(),
            other => found == other,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes with the test.
    struct Temporary(PathBuf);

    impl Temporary {
        fn new() -> Self {
            Self(std::env::temp_dir().join(format!("plenum-shelf-{:016x}", rand::random::<u64>())))
        }

        fn save(&self, made_at: &str, keep: usize) -> usize {
            let shelf = Shelf::new(&self.0);
            let folder = shelf.unfinished().unwrap();
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join(MANIFEST), made_at).unwrap();
            shelf.put(&folder, made_at, keep).unwrap().1
        }
    }

    impl Drop for Temporary {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_newest_stay_and_what_is_no_backup_is_left_alone() {
        let folder = Temporary::new();
        let shelf = Shelf::new(&folder.0);
        assert!(shelf.newest().is_err());
        assert_eq!(folder.save("2026-11-21T22:03:04.123Z", 0), 0);
        // Neither a file system's own folder, nor one that somebody writes to, nor one without its manifest.
        for name in ["lost+found", "unfinished-1", "2027-01-01T00-00-00.000Z"] {
            fs::create_dir(folder.0.join(name)).unwrap();
        }
        assert_eq!(folder.save("2026-11-22T22:03:04.123Z", 2), 0);
        assert_eq!(folder.save("2026-11-23T22:03:04.123Z", 2), 1);
        assert_eq!(shelf.newest().unwrap(), folder.0.join("2026-11-23T22-03-04.123Z"));
        let mut names: Vec<_> = shelf.folders().unwrap().into_iter().map(|(name, _)| name).collect();
        names.sort();
        let wanted = ["2026-11-22T22-03-04.123Z", "2026-11-23T22-03-04.123Z", "2027-01-01T00-00-00.000Z"];
        assert_eq!(names, [&wanted[..], &["lost+found", "unfinished-1"]].concat());
    }

    #[test]
    fn the_one_just_made_stays_whatever_the_clock_said_before() {
        let folder = Temporary::new();
        let shelf = Shelf::new(&folder.0);
        let names = || shelf.backups().unwrap().into_iter().map(|path| path.file_name().unwrap().to_owned());
        for (made_at, removed) in [("2126-11-21T22:03:04.123Z", 0), ("2126-11-21T22:03:05.123Z", 0)] {
            assert_eq!(folder.save(made_at, 2), removed);
        }
        assert_eq!(folder.save("2026-11-22T22:03:04.123Z", 2), 1);
        assert!(names().eq(["2026-11-22T22-03-04.123Z", "2126-11-21T22-03-05.123Z"]));
        assert_eq!(folder.save("2026-11-23T22:03:04.123Z", 1), 2);
        assert!(names().eq(["2026-11-23T22-03-04.123Z"]));
    }
}
