//! The data folder on the operating system's disk.
//!
//! One process at a time has a data folder: it holds a lock on the folder's file `lock` for as long as it
//! lives, since two processes with one NodeId would both answer for it. Small files are replaced by way of a
//! new file and a rename.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use redb::StorageBackend;
use redb::backends::FileBackend;

use super::mapped::MappedFiles;
use crate::environment::Files;

/// The file that the process's lock lies on.
const LOCK_FILE: &str = "lock";

/// What a file is called until it is whole.
const NEW_SUFFIX: &str = ".new";

/// A folder of the operating system, which this process alone uses.
#[derive(Debug)]
pub struct OsFiles {
    folder: PathBuf,
    /// Folders of bundles that were opened; what lies in them half-written is from this process from then on.
    opened: Mutex<BTreeSet<String>>,
    /// Unlocked when it is closed.
    _lock: File,
}

impl OsFiles {
    /// Opens the folder and makes it when there is none.
    ///
    /// # Errors
    /// The disk's; [`ErrorKind::ResourceBusy`] when the folder is in use.
    pub fn open(folder: &Path) -> io::Result<Self> {
        // Absolute, so that it stays the same folder when the process goes to another.
        let folder = std::path::absolute(folder)?;
        let at = |error: io::Error| in_file(&folder, &error);
        make_folder(&folder).map_err(at)?;
        let lock = private().create(true).truncate(false).open(folder.join(LOCK_FILE)).map_err(at)?;
        lock_alone(&lock, &folder)?;
        Ok(Self { folder, opened: Mutex::default(), _lock: lock })
    }

    /// The path of a file in the folder.
    fn path(&self, name: &str) -> io::Result<PathBuf> {
        let mut parts = Path::new(name).components();
        let plain = matches!(parts.next(), Some(std::path::Component::Normal(part)) if part == name);
        if !plain || name == LOCK_FILE || name.ends_with(NEW_SUFFIX) {
            let text = format!("{name:?} cannot be the name of a file in the data folder");
            return Err(io::Error::new(ErrorKind::InvalidInput, text));
        }
        Ok(self.folder.join(name))
    }

    /// Makes renames and new files in the folder durable.
    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.folder)?.sync_all()
    }
}

impl Files for OsFiles {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.path(name)?;
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(in_file(&path, &error)),
        }
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path(name)?;
        // What a crash left of it is overwritten.
        let new = self.folder.join(format!("{name}{NEW_SUFFIX}"));
        let replace = || {
            let mut file = private().create(true).truncate(true).open(&new)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            self.sync_folder()
        };
        replace().map_err(|error| in_file(&path, &error))
    }

    fn database(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let path = self.path(name)?;
        let at = |error: io::Error| in_file(&path, &error);
        let file = private().read(true).create(true).truncate(false).open(&path).map_err(at)?;
        // redb asks its backend for locks too, but a backend that is wrapped need not pass them on.
        lock_alone(&file, &path)?;
        self.sync_folder().map_err(at)?;
        Ok(Box::new(FileBackend::new(file).map_err(|error| at(io::Error::other(error)))?))
    }

    fn bundles(&self, folder: &str) -> io::Result<Arc<dyn ObjectStore>> {
        let path = self.path(folder)?;
        let at = |error: io::Error| in_file(&path, &error);
        make_folder(&path).map_err(at)?;
        self.sync_folder().map_err(at)?;
        if self.opened.lock().unwrap_or_else(PoisonError::into_inner).insert(folder.to_owned()) {
            remove_staged(&path).map_err(at)?;
        }
        let store = LocalFileSystem::new_with_prefix(&path).map_err(|error| at(io::Error::other(error)))?;
        Ok(Arc::new(MappedFiles::new(store.with_fsync(true))))
    }
}

/// Options to write files that no other user may read: the data folder holds keys.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.write(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

fn make_folder(path: &Path) -> io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Removes what uploads left that a crash cut off: `object_store` writes them under `NAME#NUMBER` until they are whole, and
/// hides such files from its listings for ever.
fn remove_staged(folder: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_staged(&entry.path())?;
        } else if is_staged(&entry.file_name().to_string_lossy()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn is_staged(name: &str) -> bool {
    let number = name.rsplit_once('#').map_or("", |(_, number)| number);
    !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
}

/// Locks a file of `path` until it is closed.
fn lock_alone(file: &File, path: &Path) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => {
            let text = format!("{} is in use by another process, or twice in this one", path.display());
            io::Error::new(ErrorKind::ResourceBusy, text)
        }
        TryLockError::Error(error) => in_file(path, &error),
    })
}

/// The error with the file in its text, which the operating system leaves out.
fn in_file(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use futures::TryStreamExt;
    use redb::{ReadableDatabase, TableDefinition};

    use super::*;

    fn open() -> (tempfile::TempDir, OsFiles) {
        let folder = tempfile::tempdir().unwrap();
        let files = OsFiles::open(&folder.path().join("data")).unwrap();
        (folder, files)
    }

    #[test]
    fn a_file_is_replaced_wholly_and_stays() {
        let (folder, files) = open();
        assert_eq!(files.read("identity").unwrap(), None);
        files.replace("identity", b"a long first text").unwrap();
        files.replace("identity", b"second").unwrap();
        drop(files);
        let files = OsFiles::open(&folder.path().join("data")).unwrap();
        assert_eq!(files.read("identity").unwrap().as_deref(), Some(&b"second"[..]));
    }

    #[test]
    fn what_a_crash_left_of_a_new_file_is_not_read() {
        let (folder, files) = open();
        files.replace("identity", b"whole").unwrap();
        std::fs::write(folder.path().join("data/identity.new"), b"torn, and longer than the next").unwrap();
        assert_eq!(files.read("identity").unwrap().as_deref(), Some(&b"whole"[..]));
        files.replace("identity", b"next").unwrap();
        assert_eq!(files.read("identity").unwrap().as_deref(), Some(&b"next"[..]));
    }

    #[cfg(unix)]
    #[test]
    fn others_cannot_read_it() {
        use std::os::unix::fs::PermissionsExt;
        let (folder, files) = open();
        files.replace("key", b"secret").unwrap();
        let mode =
            |path: &str| std::fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o077;
        assert_eq!((mode("data"), mode("data/key")), (0, 0));
    }

    #[test]
    fn names_stay_in_the_folder() {
        let (_folder, files) = open();
        for name in ["", ".", "..", "a/b", "/etc/passwd", "../a", "a/", LOCK_FILE, "a.new"] {
            assert_eq!(files.replace(name, b"").unwrap_err().kind(), ErrorKind::InvalidInput, "{name:?}");
        }
    }

    #[test]
    fn a_database_is_open_once() {
        const TABLE: TableDefinition<'_, u64, &str> = TableDefinition::new("table");
        let (_folder, files) = open();
        let open =
            || redb::Database::builder().create_with_backend(Backend(files.database("db").unwrap())).unwrap();
        let database = open();
        let writing = database.begin_write().unwrap();
        writing.open_table(TABLE).unwrap().insert(1, "one").unwrap();
        writing.commit().unwrap();
        let busy = files.database("db").unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::ResourceBusy, "{busy}");
        drop(database);
        let table = open().begin_read().unwrap().open_table(TABLE).unwrap();
        assert_eq!(table.get(1).unwrap().unwrap().value(), "one");
    }

    #[test]
    fn a_second_process_does_not_open_the_folder() {
        let (folder, files) = open();
        let busy = OsFiles::open(&folder.path().join("data")).unwrap_err();
        assert_eq!(busy.kind(), ErrorKind::ResourceBusy, "{busy}");
        drop(files);
        OsFiles::open(&folder.path().join("data")).unwrap();
    }

    #[tokio::test]
    async fn bundles_are_kept_in_a_folder_of_their_own() {
        let (folder, files) = open();
        let store = files.bundles("bundles").unwrap();
        let path = object_store::path::Path::from("ab/cd");
        object_store::ObjectStoreExt::put(&*store, &path, "weights".into()).await.unwrap();
        assert_eq!(std::fs::read(folder.path().join("data/bundles/ab/cd")).unwrap(), b"weights");
        let again: Vec<_> = files.bundles("bundles").unwrap().list(None).try_collect().await.unwrap();
        assert_eq!(again.len(), 1);
    }

    #[tokio::test]
    async fn what_a_crash_left_of_an_upload_is_removed_at_the_next_start_only() {
        let (folder, files) = open();
        let path = object_store::path::Path::from("blobs/cd");
        let left = || std::fs::read_dir(folder.path().join("data/bundles/blobs")).unwrap().count();
        let store = files.bundles("bundles").unwrap();
        let mut upload = object_store::ObjectStoreExt::put_multipart(&*store, &path).await.unwrap();
        upload.put_part("half".into()).await.unwrap();
        files.bundles("bundles").unwrap();
        assert_eq!(left(), 1, "it goes on");
        // As SIGKILL does: nothing tidies up.
        std::mem::forget(upload);
        drop(files);
        std::fs::write(folder.path().join("data/bundles/blobs/ab"), "whole").unwrap();
        OsFiles::open(&folder.path().join("data")).unwrap().bundles("bundles").unwrap();
        assert_eq!(left(), 1);
        assert!(folder.path().join("data/bundles/blobs/ab").exists());
    }

    #[test]
    fn staged_files_are_told_by_their_names() {
        let staged = ["ab#1", "ab#42", "a#b#3"];
        assert!(staged.iter().all(|name| is_staged(name)));
        assert!(!["ab", "ab#", "#", "ab#x", "ab#1x", ""].iter().any(|name| is_staged(name)));
    }

    /// `redb` takes a backend by its type. As elsewhere in Roost, it does not pass `redb`'s locks on.
    #[derive(Debug)]
    struct Backend(Box<dyn StorageBackend>);

    impl StorageBackend for Backend {
        fn len(&self) -> Result<u64, io::Error> {
            self.0.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
            self.0.read(offset, out)
        }
        fn set_len(&self, len: u64) -> Result<(), io::Error> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> Result<(), io::Error> {
            self.0.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
            self.0.write(offset, data)
        }
        fn close(&self) -> Result<(), io::Error> {
            self.0.close()
        }
    }
}
