//! The bundle store on the simulated disk.
//!
//! It keeps the contract of a local folder with fsync: an object appears whole and durably, or not at all.
//! What is still being uploaded in parts is gone after a crash; a deletion may be undone by one.
//!
//! This assumes of the store behind it in production, which never runs here, that when it says that an object
//! was put it has synced the object's bytes ahead of the rename that makes it appear, and the folder behind
//! it, and that it has passed on whatever failed of that. A part is taken without a sync: it needs room and
//! may fail, and nothing but the end of its upload makes it durable.

use std::fmt;
use std::io;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    Attributes, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};
use rand::RngExt;

use super::{DISK, Life, Object, Operation, Permit, dead};
use crate::condition::Conditions;
use crate::coverage::Stored;

/// The objects of one folder.
#[derive(Debug, Clone)]
pub(super) struct Store {
    life: Life,
    folder: String,
    conditions: Conditions,
}

impl Store {
    pub(super) fn new(life: Life, folder: &str, conditions: Conditions) -> Self {
        Self { life, folder: folder.to_owned(), conditions }
    }

    fn put_whole(&self, path: &Path, bytes: Bytes, operation: Operation) -> Result<()> {
        let mut inner = self.life.disk.lock();
        let permit = inner.begin(self.life.number, operation).map_err(failed)?;
        let done = match permit {
            Permit::Go | Permit::Last => true,
            Permit::Half => inner.rng.random(),
        };
        if done {
            let store = inner.stores.entry(self.folder.clone()).or_default();
            store.insert(path.to_string(), Object { bytes, deleted: false });
        }
        match permit {
            Permit::Go => Ok(()),
            Permit::Half | Permit::Last => {
                inner.fall("as it puts an object");
                Err(failed(dead()))
            }
        }
    }

    /// Takes a part of an upload, which has no place in the store before the upload has ended.
    fn take_part(&self) -> Result<()> {
        let mut inner = self.life.disk.lock();
        match inner.begin(self.life.number, Operation::Grow).map_err(failed)? {
            Permit::Go => Ok(()),
            Permit::Half | Permit::Last => {
                inner.fall("as it writes a part of an object");
                Err(failed(dead()))
            }
        }
    }

    fn find(&self, path: &Path) -> Result<Bytes> {
        let mut inner = self.life.disk.lock();
        inner.begin(self.life.number, Operation::Read).map_err(failed)?;
        let object = inner.stores.get(&self.folder).and_then(|store| store.get(path.as_ref()));
        let object = object.filter(|object| !object.deleted);
        object.map(|object| object.bytes.clone()).ok_or_else(|| not_found(path))
    }

    fn delete_now(&self, path: &Path) -> Result<()> {
        let mut inner = self.life.disk.lock();
        let permit = inner.begin(self.life.number, Operation::Write).map_err(failed)?;
        let store = inner.stores.entry(self.folder.clone()).or_default();
        match store.get_mut(path.as_ref()).filter(|object| !object.deleted) {
            Some(object) => object.deleted = true,
            None => return Err(not_found(path)),
        }
        match permit {
            Permit::Go => Ok(()),
            Permit::Half | Permit::Last => {
                inner.fall("as it deletes an object");
                Err(failed(dead()))
            }
        }
    }

    fn listed(&self, prefix: Option<&Path>) -> Result<Vec<ObjectMeta>> {
        let mut inner = self.life.disk.lock();
        inner.begin(self.life.number, Operation::Read).map_err(failed)?;
        let prefix = prefix.map(|prefix| format!("{prefix}/")).unwrap_or_default();
        let objects = inner.stores.get(&self.folder).into_iter().flatten();
        let live = objects.filter(|(path, object)| !object.deleted && path.starts_with(&prefix));
        Ok(live.map(|(path, object)| meta(&Path::from(path.as_str()), object.bytes.len())).collect())
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated folder {}", self.folder)
    }
}

fn failed(error: io::Error) -> Error {
    Error::Generic { store: "simulated", source: Box::new(error) }
}

fn not_found(path: &Path) -> Error {
    Error::NotFound { path: path.to_string(), source: "there is no such object".into() }
}

fn meta(path: &Path, bytes: usize) -> ObjectMeta {
    ObjectMeta {
        location: path.clone(),
        last_modified: Default::default(),
        size: bytes as u64,
        e_tag: None,
        version: None,
    }
}

fn put_result() -> PutResult {
    PutResult { e_tag: None, version: None, extensions: Default::default() }
}

#[async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, path: &Path, payload: PutPayload, _: PutOptions) -> Result<PutResult> {
        tokio::time::sleep(self.conditions.now().disk(DISK)).await;
        self.put_whole(path, payload.into(), Operation::Grow)?;
        Ok(put_result())
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(Upload { store: self.clone(), path: path.clone(), parts: BytesMut::new() }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        tokio::time::sleep(self.conditions.now().disk(DISK)).await;
        let bytes = self.find(path)?;
        let meta = meta(path, bytes.len());
        let whole = 0..bytes.len() as u64;
        let range = match options.range {
            None => whole,
            Some(range) => {
                range.as_range(bytes.len() as u64).map_err(|error| failed(io::Error::other(error)))?
            }
        };
        let bytes = if options.head {
            Bytes::new()
        } else {
            let mut read = BytesMut::from(&bytes[range.start as usize..range.end as usize]);
            self.life.disk.lock().blemish(Stored::Bundles, &self.folder, &mut read);
            read.freeze()
        };
        Ok(GetResult {
            payload: GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed()),
            meta,
            range,
            attributes: Attributes::default(),
            extensions: Default::default(),
        })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        paths
            .map(move |path| {
                let path = path?;
                store.delete_now(&path).map(|()| path)
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.listed(prefix) {
            Ok(listed) => stream::iter(listed.into_iter().map(Ok)).boxed(),
            Err(error) => stream::once(async { Err(error) }).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        // Folders have no folders here.
        let objects = self.listed(prefix)?;
        Ok(ListResult { objects, common_prefixes: Vec::new(), extensions: Default::default() })
    }

    async fn copy_opts(&self, from: &Path, to: &Path, _: CopyOptions) -> Result<()> {
        let bytes = self.find(from)?;
        self.put_whole(to, bytes, Operation::Grow)
    }
}

/// An object that comes in parts.
#[derive(Debug)]
struct Upload {
    store: Store,
    path: Path,
    parts: BytesMut,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let taken = self.store.take_part();
        if taken.is_ok() {
            data.into_iter().for_each(|chunk| self.parts.extend_from_slice(&chunk));
        }
        Box::pin(async { taken })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        tokio::time::sleep(self.store.conditions.now().disk(DISK)).await;
        // What it needs of room its parts have taken.
        let bytes = std::mem::take(&mut self.parts).freeze();
        self.store.put_whole(&self.path, bytes, Operation::Sync)?;
        Ok(put_result())
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}
