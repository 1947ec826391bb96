//! What a disk did wrong first: after that nothing is read or written, because what it holds is unknown (design §7).

use std::io::{self, ErrorKind};
use std::sync::Arc;

use super::record::RecordError;
use redb::StorageError;
use tokio::sync::watch;

/// What a disk did wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DiskFault {
    /// There is no room for a write. What was durable before is; with room it may be opened again.
    #[error("the disk is full: {0}")]
    Full(Arc<str>),
    /// A read failed.
    #[error("a read failed: {0}")]
    Read(Arc<str>),
    /// A write failed.
    #[error("a write failed: {0}")]
    Write(Arc<str>),
    /// An fsync failed, after which it is unknown what is durable.
    #[error("an fsync failed: {0}")]
    Sync(Arc<str>),
    /// What was read is not what was written.
    #[error("what the disk holds is damaged: {0}")]
    Damaged(Arc<str>),
    /// A later build wrote what is there: this one would misread it.
    #[error("a later build wrote it: {0}")]
    LaterBuild(Arc<str>),
    /// The database panicked over what it read, or lost its executor.
    #[error("the database stopped: {0}")]
    Stopped(Arc<str>),
}

/// What was asked of a storage when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Read,
    Write,
    Sync,
}

impl DiskFault {
    /// The fault behind an operation of the storage that failed.
    pub(super) fn of_operation(operation: Operation, error: &io::Error) -> Self {
        let text = error.to_string().into();
        match (operation, error.kind()) {
            // Whatever the reason, nobody knows what of the cache is on the disk: to make room does not mend that.
            (Operation::Sync, _) => Self::Sync(text),
            (_, ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => Self::Full(text),
            (Operation::Read, _) => Self::Read(text),
            (Operation::Write, _) => Self::Write(text),
        }
    }

    /// The fault behind work on the database whose storage did all that it was asked.
    pub(crate) fn of_work(error: &io::Error) -> Self {
        let text = error.to_string().into();
        let record = error.get_ref().and_then(|source| source.downcast_ref::<RecordError>());
        if matches!(record, Some(RecordError::Format { .. } | RecordError::Level { .. })) {
            Self::LaterBuild(text)
        } else if error.kind() == ErrorKind::InvalidData || is_corruption(error) {
            Self::Damaged(text)
        } else {
            Self::Stopped(text)
        }
    }
}

/// Whether redb found its own pages to be other than it wrote them.
fn is_corruption(error: &io::Error) -> bool {
    let Some(source) = error.get_ref() else { return false };
    let storage = source.downcast_ref::<StorageError>().or_else(|| {
        let table = source.downcast_ref::<redb::TableError>().and_then(|error| match error {
            redb::TableError::Storage(storage) => Some(storage),
            _ => None,
        });
        let transaction = source.downcast_ref::<redb::TransactionError>().and_then(|error| match error {
            redb::TransactionError::Storage(storage) => Some(storage),
            _ => None,
        });
        let commit = source.downcast_ref::<redb::CommitError>().and_then(|error| match error {
            redb::CommitError::Storage(storage) => Some(storage),
            _ => None,
        });
        table.or(transaction).or(commit)
    });
    matches!(storage, Some(StorageError::Corrupted(_)))
}

/// The first fault, which is kept.
#[derive(Debug, Default)]
pub(super) struct Failure(watch::Sender<Option<DiskFault>>);

impl Failure {
    pub fn subscribe(&self) -> watch::Receiver<Option<DiskFault>> {
        self.0.subscribe()
    }

    pub fn get(&self) -> Option<DiskFault> {
        self.0.borrow().clone()
    }

    fn set(&self, fault: DiskFault) {
        self.0.send_if_modified(|failure| {
            let first = failure.is_none();
            if first {
                *failure = Some(fault);
            }
            first
        });
    }

    /// Fails once there is a fault.
    pub fn check(&self) -> io::Result<()> {
        match &*self.0.borrow() {
            None => Ok(()),
            Some(fault) => Err(io::Error::other(format!("the disk failed before: {fault}"))),
        }
    }

    /// Notes the failure of an operation of the storage.
    pub fn operated<T>(&self, operation: Operation, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.set(DiskFault::of_operation(operation, error)))
    }

    /// Notes the failure of work on the database, unless an operation under it failed.
    pub fn worked<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|error| self.set(DiskFault::of_work(error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_fault_is_named_and_kept() {
        let failure = Failure::default();
        failure.check().unwrap();
        let full = io::Error::new(ErrorKind::StorageFull, "no room");
        failure.operated(Operation::Write, Err::<(), _>(full)).unwrap_err();
        failure.operated(Operation::Sync, Err::<(), _>(io::Error::other("gone"))).unwrap_err();
        assert_eq!(failure.get(), Some(DiskFault::Full("no room".into())));
        let said = failure.check().unwrap_err().to_string();
        assert_eq!(said, "the disk failed before: the disk is full: no room");
    }

    #[test]
    fn damage_is_told_from_a_database_that_stopped() {
        let corrupted = || StorageError::Corrupted("page 3".to_owned());
        for error in [
            io::Error::new(ErrorKind::InvalidData, "a checksum"),
            io::Error::other(corrupted()),
            io::Error::other(redb::TableError::Storage(corrupted())),
            io::Error::other(redb::TransactionError::Storage(corrupted())),
            io::Error::other(redb::CommitError::Storage(corrupted())),
        ] {
            assert!(matches!(DiskFault::of_work(&error), DiskFault::Damaged(_)), "{error}");
        }
        for error in [
            RecordError::Format { what: "vote".to_owned(), format: 2 },
            RecordError::Level { level: 2, obeyed: 1 },
        ] {
            let error = error.into();
            assert!(matches!(DiskFault::of_work(&error), DiskFault::LaterBuild(_)), "{error}");
        }
        let stopped = DiskFault::of_work(&io::Error::other(StorageError::PreviousIo));
        assert!(matches!(stopped, DiskFault::Stopped(_)), "{stopped}");
        let read = DiskFault::of_operation(Operation::Read, &io::Error::other("sector 9"));
        assert_eq!(read, DiskFault::Read("sector 9".into()));
    }
}
