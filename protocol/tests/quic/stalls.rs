//! Transfers with a side that lives and does nothing: it is given up after a while, and one that is slow is not.

use std::fmt;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use roost_protocol::bundle::{BundleFile, FileList, MODEL_FILE};
use roost_protocol::frame::{Kind, Prefix};
use roost_protocol::ids::Digest;
use roost_protocol::messages::control::{BundleRequest, BundleResponse};
use roost_protocol::quic::bundles::{self, BundleStore, PAUSE_MAX, TransferError, fetch};
use roost_protocol::quic::stream::{StreamError, read_message, write_message};
use roost_protocol::quic::{Links, Role, Service};
use tokio::sync::mpsc;

use crate::party::{Listener, dialler};

/// Much longer than any pause, in time that jumps to the next timer.
const LONG: Duration = Duration::from_secs(1_000);
/// More than the windows of a stream and of its connection.
const LARGE: usize = 96 << 20;

/// A store in memory that never gives what is in a file.
#[derive(Debug)]
struct Hangs(InMemory);

impl fmt::Display for Hangs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a store that hangs")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Hangs {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        self.0.put_opts(path, payload, options).await
    }
    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.0.put_multipart_opts(path, options).await
    }
    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        if path.as_ref().starts_with("blobs/") && !options.head {
            return pending().await;
        }
        self.0.get_opts(path, options).await
    }
    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.0.delete_stream(paths)
    }
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.0.list(prefix)
    }
    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.0.list_with_delimiter(prefix).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.0.copy_opts(from, to, options).await
    }
}

fn file(name: &str, bytes: &[u8]) -> BundleFile {
    BundleFile { name: name.to_owned(), bytes: bytes.len() as u64, digest: Digest::of(bytes) }
}

/// A node that serves a store on a free port and takes all files; its address, and what came of each request.
async fn serve(
    store: BundleStore,
) -> (String, mpsc::UnboundedReceiver<std::result::Result<(), StreamError>>) {
    let mut node = Listener::start(&[Service::Bundle]).await;
    let (address, (sender, served)) = (node.address.clone(), mpsc::unbounded_channel());
    tokio::spawn(async move {
        loop {
            let (link, store, sender) = (node.link().await, store.clone(), sender.clone());
            tokio::spawn(async move {
                while let Ok((mut send, mut recv)) = link.accept().await {
                    let (store, sender) = (store.clone(), sender.clone());
                    tokio::spawn(async move {
                        let served = bundles::serve(&store, &mut send, &mut recv, |_| true).await;
                        // A test that has seen enough does not listen any longer.
                        let _ = sender.send(served.map(|_| ()));
                    });
                }
            });
        }
    });
    (address, served)
}

async fn links() -> Links {
    Links::new(dialler(&[Role::Operator]).await, Service::Bundle)
}

/// Waits in time that jumps: everything in between is done as fast as it can be.
async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::pause();
    let done = tokio::time::timeout(LONG, future).await;
    tokio::time::resume();
    done.unwrap_or_else(|_| panic!("{what} did not come"))
}

fn is_stall(error: &StreamError) -> bool {
    matches!(error, StreamError::Stalled { after } if *after == PAUSE_MAX)
}

#[tokio::test]
async fn a_holder_whose_store_hangs_is_passed_over() {
    let files = [(MODEL_FILE, vec![1; 300 << 10]), ("a", vec![2; 10]), ("b", vec![3; 10])];
    let list = FileList::new(files.iter().map(|(name, bytes)| file(name, bytes)).collect()).unwrap();
    let (mut addresses, mut outcomes) = (Vec::new(), Vec::new());
    let stores: [Arc<dyn ObjectStore>; 2] = [Arc::new(Hangs(InMemory::new())), Arc::new(InMemory::new())];
    for objects in stores {
        let store = BundleStore::new(objects);
        for (name, bytes) in &files {
            let mut writer = store.write(&file(name, bytes));
            writer.write(bytes.clone().into()).await.unwrap();
            writer.finish().await.unwrap();
        }
        store.seal(&list).await.unwrap();
        let (address, served) = serve(store).await;
        addresses.push(address);
        outcomes.push(served);
    }
    let (links, digest) = (links().await, list.digest());
    for address in &addresses {
        links.to(address).await.unwrap();
    }
    let ours = BundleStore::new(Arc::new(InMemory::new()));
    let began = tokio::time::Instant::now();
    let all = in_time("the bundle", fetch(&ours, &links, &addresses, &digest, |_, _| {})).await;
    assert_eq!(all.unwrap(), list);
    // It is not waited for at each of the files.
    assert!(began.elapsed() < 2 * PAUSE_MAX, "{:?}", began.elapsed());
    let ours = BundleStore::new(Arc::new(InMemory::new()));
    let alone = fetch(&ours, &links, &addresses[..1], &digest, |_, _| {});
    let error = in_time("the end", alone).await.unwrap_err();
    let TransferError::NoHolder { reasons, .. } = &error else { panic!("{error}") };
    let stalled = StreamError::Stalled { after: PAUSE_MAX };
    assert_eq!(*reasons, [format!("{}: {stalled}", addresses[0])]);
}

#[tokio::test]
async fn who_neither_gives_nor_takes_is_given_up() {
    let objects = Arc::new(InMemory::new());
    let store = BundleStore::new(objects);
    let bytes = Bytes::from(vec![1; LARGE]);
    let large = file(MODEL_FILE, &bytes);
    let mut writer = store.write(&large);
    writer.write(bytes).await.unwrap();
    writer.finish().await.unwrap();
    let (address, mut served) = serve(store).await;
    let link = links().await.to(&address).await.unwrap();
    let requests = [
        BundleRequest::Get { file: large.digest, offset: 0 },
        BundleRequest::Put { file: file("a", b"never sent") },
    ];
    for request in requests {
        // The stream lives, and nothing is read or written any more.
        let (mut send, _recv) = link.open().await.unwrap();
        write_message(&mut send, Kind::BundleRequest, &request).await.unwrap();
        let error = in_time("the end", served.recv()).await.unwrap().unwrap_err();
        assert!(is_stall(&error), "{request:?}: {error}");
        assert!(link.is_open());
    }
}

#[tokio::test]
async fn a_slow_side_is_waited_for() {
    let content = b"a byte at a time";
    let (address, _served) = serve(BundleStore::new(Arc::new(InMemory::new()))).await;
    let link = links().await.to(&address).await.unwrap();
    let (mut send, mut recv) = link.open().await.unwrap();
    let request = BundleRequest::Put { file: file("a", content) };
    write_message(&mut send, Kind::BundleRequest, &request).await.unwrap();
    let prefix = Prefix::new(Kind::BundleChunk, 0, content.len() as u64).unwrap().encode();
    let answer = async {
        for byte in prefix.iter().chain(content) {
            tokio::time::sleep(PAUSE_MAX * 2 / 3).await;
            send.write_all(&[*byte]).await.unwrap();
        }
        read_message::<BundleResponse>(&mut recv, Kind::BundleResponse).await
    };
    assert_eq!(in_time("the answer", answer).await.unwrap(), BundleResponse::Held);
}
