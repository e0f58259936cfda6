//! The files of a backup.

use std::path::{Path, PathBuf};

use aws_lc_rs::digest::{Context, SHA256};
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{BackupError, FORMAT, Manifest, Saved};

const MANIFEST: &str = "manifest.json";
/// Bytes read at once; the server takes parts of up to its `max_payload`, 1 MiB by default.
pub(super) const PART: usize = 128 * 1024;

/// Where a backup is.
pub(super) struct Folder(PathBuf);

impl Folder {
    /// Makes it, or takes an empty one.
    pub async fn create(path: &Path) -> Result<Self, BackupError> {
        let mut builder = tokio::fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        builder.mode(0o700);
        builder.create(path).await.map_err(failed(path))?;
        let mut entries = tokio::fs::read_dir(path).await.map_err(failed(path))?;
        if entries.next_entry().await.map_err(failed(path))?.is_some() {
            return Err(BackupError::FolderInUse { path: path.to_owned() });
        }
        Ok(Self(path.to_owned()))
    }

    pub fn open(path: &Path) -> Self {
        Self(path.to_owned())
    }

    pub async fn write_manifest(&self, manifest: &Manifest) -> Result<(), BackupError> {
        let path = self.0.join(MANIFEST);
        let text = serde_json::to_vec_pretty(manifest)
            .map_err(|error| BackupError::Manifest { path: path.clone(), reason: error.to_string() })?;
        let mut file = self.writer(MANIFEST).await?;
        file.write(&text).await?;
        file.finish().await.map(drop)
    }

    pub async fn read_manifest(&self) -> Result<Manifest, BackupError> {
        let path = self.0.join(MANIFEST);
        let text = tokio::fs::read(&path).await.map_err(failed(&path))?;
        let wrong = |reason: String| BackupError::Manifest { path: path.clone(), reason };
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        if manifest.format != FORMAT {
            return Err(wrong(format!("format {} is not known to this version", manifest.format)));
        }
        if manifest.shards.len() != manifest.contents.shards.len() {
            return Err(wrong("it does not name a snapshot for each stream".into()));
        }
        Ok(manifest)
    }

    /// Compares a file with what the manifest says of it.
    pub async fn verify(&self, saved: &Saved) -> Result<(), BackupError> {
        let mut parts = self.reader(saved).await?;
        let (mut digest, mut bytes) = (Context::new(&SHA256), 0);
        while let Some(part) = parts.next().await? {
            digest.update(&part);
            bytes += part.len() as u64;
        }
        match bytes == saved.bytes && hex(digest) == saved.sha256 {
            true => Ok(()),
            false => Err(BackupError::Damaged { path: parts.path }),
        }
    }

    pub async fn reader(&self, saved: &Saved) -> Result<Reader, BackupError> {
        // A name only: what a manifest says leads out of no folder.
        let name = Path::new(&saved.file).file_name().unwrap_or_default();
        let path = self.0.join(name);
        let file = File::open(&path).await.map_err(failed(&path))?;
        Ok(Reader { path, file })
    }

    pub async fn writer(&self, name: &str) -> Result<Writer, BackupError> {
        let path = self.0.join(name);
        let mut options = File::options();
        options.write(true).create_new(true);
        #[cfg(unix)]
        options.mode(0o600);
        let file = options.open(&path).await.map_err(failed(&path))?;
        Ok(Writer { path, file, digest: Context::new(&SHA256), bytes: 0 })
    }
}

/// A file that is read in parts.
pub(super) struct Reader {
    path: PathBuf,
    file: File,
}

impl Reader {
    /// The next part; none at the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, BackupError> {
        let mut part = Vec::with_capacity(PART);
        let read = (&mut self.file).take(PART as u64).read_to_end(&mut part).await.map_err(failed(&self.path))?;
        Ok((read > 0).then_some(part))
    }
}

/// A file that is written in parts.
pub(super) struct Writer {
    path: PathBuf,
    file: File,
    digest: Context,
    bytes: u64,
}

impl Writer {
    pub async fn write(&mut self, part: &[u8]) -> Result<(), BackupError> {
        self.digest.update(part);
        self.bytes += part.len() as u64;
        self.file.write_all(part).await.map_err(failed(&self.path))
    }

    /// Bytes and SHA-256 of what is on the disk now.
    pub async fn finish(mut self) -> Result<(u64, String), BackupError> {
        self.file.flush().await.map_err(failed(&self.path))?;
        self.file.sync_all().await.map_err(failed(&self.path))?;
        Ok((self.bytes, hex(self.digest)))
    }
}

fn hex(digest: Context) -> String {
    digest.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |source| BackupError::File { path, source }
}
