//! Bundles on the local disk, mapped into memory rather than read: weights then lie in the page cache once,
//! however many sessions borrow from them, and a model is there before its last byte was touched.
//!
//! Only whole files are mapped, and only large ones. Everything else is the local store's own.

#![allow(unsafe_code, reason = "a mapping is unsafe by its nature; see `map`")]

use std::fmt;
use std::fs::File;
use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use memmap2::{Advice, Mmap};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
};

/// Smaller files are read: a mapping costs a system call, a page fault per page, and an entry in the kernel's
/// table.
const MAPPED_BYTES_MIN: u64 = 64 << 10;

/// The bytes of a file, mapped.
///
/// Precondition: nobody writes the file in place or shortens it while the bytes live. It holds for the files
/// of the bundle store: their name is the digest of what is in them, they appear by a rename and go by being
/// unlinked, in a folder that one process has locked. It does not hold for files of a user, which is why
/// nothing outside maps any.
///
/// # Errors
/// The operating system's.
fn map(file: &File) -> io::Result<Bytes> {
    if file.metadata()?.len() == 0 {
        // An empty mapping is an error to the operating system.
        return Ok(Bytes::new());
    }
    // SAFETY: the bytes must not change and the file must not shrink while the mapping lives. Nobody writes
    // these files in place, as said above; unlinking leaves the pages to the mapping. A hand that truncates a
    // blob of a running node all the same ends the process by SIGBUS, and one that changes bytes changes
    // weights: neither reaches memory beyond the mapping, whose length is fixed here.
    let mapping = unsafe { Mmap::map(file)? };
    // The whole file is hashed next, from front to back. Advice that is not taken costs time only.
    let _ = mapping.advise(Advice::Sequential);
    Ok(Bytes::from_owner(mapping))
}

/// The local store, with large files mapped.
#[derive(Debug)]
pub struct MappedFiles(LocalFileSystem);

impl MappedFiles {
    /// The files of `store`, which nobody else writes.
    pub fn new(store: LocalFileSystem) -> Self {
        Self(store)
    }
}

impl fmt::Display for MappedFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, mapped", self.0)
    }
}

#[async_trait]
impl ObjectStore for MappedFiles {
    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        let whole = options.range.is_none() && !options.head;
        let mut result = self.0.get_opts(location, options).await?;
        if !whole || result.meta.size < MAPPED_BYTES_MIN {
            return Ok(result);
        }
        result.payload = match result.payload {
            GetResultPayload::File(file, path) => match map(&file) {
                Ok(bytes) => GetResultPayload::Stream(stream::iter([Ok(bytes)]).boxed()),
                // A file system that cannot map can be read from.
                Err(_) => GetResultPayload::File(file, path),
            },
            payload @ GetResultPayload::Stream(_) => payload,
        };
        Ok(result)
    }

    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.0.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.0.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.0.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.0.copy_opts(from, to, options).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> object_store::Result<()> {
        self.0.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt as _;

    use super::*;

    #[tokio::test]
    async fn a_mapped_file_outlives_its_name_and_ranges_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let files = MappedFiles::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        let text: Vec<u8> = (0..MAPPED_BYTES_MIN as usize + 7).map(|i| (i % 251) as u8).collect();
        for (name, len) in [("empty", 0), ("small", 100), ("large", text.len())] {
            let path = Path::from(name);
            files.put(&path, text[..len].to_vec().into()).await.unwrap();
            let bytes = files.get(&path).await.unwrap().bytes().await.unwrap();
            files.delete(&path).await.unwrap();
            assert_eq!(bytes, text[..len], "{name}");
        }
        let path = Path::from("part");
        files.put(&path, text.clone().into()).await.unwrap();
        assert_eq!(files.get_range(&path, 5..9).await.unwrap(), text[5..9]);
        assert_eq!(files.head(&path).await.unwrap().size, text.len() as u64);
        assert!(matches!(files.get(&Path::from("none")).await, Err(object_store::Error::NotFound { .. })));
    }

    #[test]
    fn an_empty_file_maps_to_no_bytes() {
        assert!(map(&tempfile::tempfile().unwrap()).unwrap().is_empty());
    }
}
