//! Bundles on a store that is full, fails, tears what it took, or flips a bit: a push is refused with a typed error or its
//! bundle is held whole, and nobody is ever given other bytes than were pushed.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use roost_protocol::messages::control::{Answer, Change, ControlRequest, Query};
use roost_protocol::quic::Links;
use roost_protocol::quic::bundles::{self, BundleStore, TransferError};
use roost_protocol::{ControlError, Epoch, RequestId};

use crate::faults::MANY;
use crate::party::{PATIENCE, Party, Start, ask_at, commit, files_of};

/// Bundles that each run pushes.
const PUSHES: u8 = 8;
/// Runs at once.
const AT_ONCE: usize = 4;

/// What the store does wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The put of that number fails.
    Put(u64),
    /// There is no room for the put of that number and for those after it.
    Full(u64),
    /// The put of that number says that it is done, and half of it is there: its tail was torn off by a crash.
    Torn(u64),
    /// The put of that number says that it is done, and nothing is there.
    Lost(u64),
    /// The get of that number fails.
    Get(u64),
    /// The get of that number returns a flipped bit.
    Flip(u64),
}

#[derive(Debug)]
struct Store {
    objects: InMemory,
    fault: Fault,
    puts: AtomicU64,
    gets: AtomicU64,
}

impl Store {
    fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Self { objects: InMemory::new(), fault, puts: AtomicU64::new(0), gets: AtomicU64::new(0) })
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a store with {:?}", self.fault)
    }
}

fn failed(kind: io::ErrorKind, what: &str) -> Error {
    let source = Box::new(io::Error::new(kind, format!("the test's store {what}")));
    Error::Generic { store: "test", source }
}

#[async_trait::async_trait]
impl ObjectStore for Store {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put = self.puts.fetch_add(1, Ordering::Relaxed) + 1;
        match self.fault {
            Fault::Put(at) if at == put => Err(failed(io::ErrorKind::Other, "failed a put")),
            Fault::Full(at) if at <= put => Err(failed(io::ErrorKind::StorageFull, "has no room")),
            Fault::Torn(at) if at == put => {
                let bytes = Bytes::from(payload);
                self.objects.put_opts(path, bytes.slice(..bytes.len() / 2).into(), options).await
            }
            Fault::Lost(at) if at == put => {
                Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
            }
            _ => self.objects.put_opts(path, payload, options).await,
        }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.objects.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let head = options.head;
        let result = self.objects.get_opts(path, options).await?;
        if head {
            return Ok(result);
        }
        let get = self.gets.fetch_add(1, Ordering::Relaxed) + 1;
        if self.fault == Fault::Get(get) {
            return Err(failed(io::ErrorKind::Other, "failed a get"));
        }
        let GetResult { meta, range, attributes, extensions, .. } = &result;
        let (meta, range, attributes, extensions) =
            (meta.clone(), range.clone(), attributes.clone(), extensions.clone());
        let mut bytes = BytesMut::from(&result.bytes().await?[..]);
        if self.fault == Fault::Flip(get) && !bytes.is_empty() {
            let at = get as usize * 7 % bytes.len();
            bytes[at] ^= 1 << (get % 8);
        }
        let bytes = bytes.freeze();
        let payload = GetResultPayload::Stream(stream::once(async { Ok(bytes) }).boxed());
        Ok(GetResult { payload, meta, range, attributes, extensions })
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.objects.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.objects.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.objects.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.objects.copy_opts(from, to, options).await
    }
}

/// The bundle of a push.
fn content(push: u8) -> Vec<u8> {
    vec![push; 1_000 + usize::from(push)]
}

/// What a run on a store led to.
struct Ran {
    store: Arc<Store>,
    /// Of each push, whether it was acknowledged.
    pushed: Vec<bool>,
    /// The pushed bundles that cannot be had any more, and what those who asked were told.
    lost: Vec<TransferError>,
}

/// Pushes bundles to a coordinator whose store does one thing wrong, restarts it, and fetches each.
async fn run(fault: Fault) -> Ran {
    let (party, store) = (Party::new(1), Store::new(fault));
    let start = || async {
        party.start(1, Start { bundles: Some(store.clone()), ..Start::default() }).await.unwrap()
    };
    let operator = party.operator().await;
    let member = start().await;
    operator.leader().await;
    let mut pushed = Vec::new();
    for push in 1..=PUSHES {
        let done = push_once(&operator.control, &operator.bundles, party.address(1), push).await;
        if let Err(error) = &done {
            assert!(is_named(error, fault), "{fault:?}: push {push}: {error}");
        }
        pushed.push(done.is_ok());
    }
    member.stop().await;
    let member = start().await;
    let ours = BundleStore::new(Arc::new(InMemory::new()));
    let mut lost = Vec::new();
    for (push, pushed) in (1..=PUSHES).zip(&pushed) {
        let (content, files) = (content(push), files_of(&content(push)));
        let holders = [party.address(1).to_owned()];
        let digest = files.digest();
        let fetch = bundles::fetch(&ours, &operator.bundles, &holders, &digest, |_, _| {});
        match tokio::time::timeout(PATIENCE, fetch).await.unwrap() {
            Ok(_) => assert_eq!(ours.read(&files.files()[0]).await.unwrap(), content, "{fault:?}"),
            Err(error) if *pushed => lost.push(error),
            Err(_) => {}
        }
    }
    // What the store did is no reason to forget the versions, nor to stop.
    let acknowledged = pushed.iter().filter(|pushed| **pushed).count() as u32;
    let Answer::Models(models) = operator.query(Query::Models).await else { panic!("no models") };
    let versions = models.first().map_or(0, |model| model.versions);
    assert!(versions >= acknowledged, "{fault:?}: {versions} versions of {acknowledged} pushes");
    member.stop().await;
    Ran { store, pushed, lost }
}

/// One attempt at a push, by way of the coordinator at `address`.
async fn push_once(
    control: &Links,
    links: &Links,
    address: &str,
    push: u8,
) -> std::result::Result<(), ControlError> {
    let content = Bytes::from(content(push));
    let files = files_of(&content);
    let change = |number: u128, change: Change| {
        let request = RequestId(u128::from(push) << 8 | number);
        ControlRequest::Change { request, sent: Epoch::default(), change }
    };
    ask_at(control, address, &change(1, Change::ReservePush { files: files.clone() })).await?;
    let read = |_, offset: u64, bytes: u64| {
        let chunk = content.slice(offset as usize..(offset + bytes) as usize);
        async move { Ok(chunk) }
    };
    match bundles::upload(links, address, &files, read, |_| {}).await {
        Ok(_) => {}
        Err(TransferError::Refused(error)) => return Err(error),
        Err(error) => panic!("{error}"),
    }
    ask_at(control, address, &change(2, commit(files.digest()))).await.map(|_| ())
}

/// Whether a refused push says what the store did.
fn is_named(error: &ControlError, fault: Fault) -> bool {
    let text = error.to_string();
    let of_store = matches!(error, ControlError::Storage { .. } | ControlError::NoQuorum { .. });
    match fault {
        Fault::None => false,
        Fault::Put(_) => of_store && text.contains("failed a put"),
        Fault::Full(_) => of_store && text.contains("has no room"),
        Fault::Get(_) => of_store && text.contains("failed a get"),
        Fault::Flip(_) | Fault::Torn(_) | Fault::Lost(_) => {
            of_store || matches!(error, ControlError::NoBundle { .. } | ControlError::DigestMismatch { .. })
        }
    }
}

fn check(fault: Fault, ran: &Ran) {
    let lies = match fault {
        Fault::None => {
            assert!(ran.pushed.iter().all(|pushed| *pushed) && ran.lost.is_empty());
            return;
        }
        Fault::Put(_) | Fault::Full(_) => false,
        // Once: a later read would be sound. What was damaged on the way is removed, and no other holder is here.
        Fault::Torn(_) | Fault::Lost(_) | Fault::Get(_) | Fault::Flip(_) => true,
    };
    assert!(ran.lost.len() <= usize::from(lies), "{fault:?}: {:?}", ran.lost);
    for error in &ran.lost {
        let named = matches!(error, TransferError::NoHolder { .. } | TransferError::Damaged { .. });
        assert!(named, "{fault:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_fails_once_gives_no_other_bytes_than_were_pushed() {
    let _alone = MANY.lock().await;
    let sound = run(Fault::None).await;
    check(Fault::None, &sound);
    let (puts, gets) = (sound.store.puts.load(Ordering::Relaxed), sound.store.gets.load(Ordering::Relaxed));
    let of_puts: [fn(u64) -> Fault; 4] = [Fault::Put, Fault::Full, Fault::Torn, Fault::Lost];
    let of_gets: [fn(u64) -> Fault; 2] = [Fault::Get, Fault::Flip];
    let faults = of_puts.into_iter().flat_map(|of| (1..=puts).map(of));
    let faults: Vec<Fault> = faults.chain(of_gets.into_iter().flat_map(|of| (1..=gets).map(of))).collect();
    let count = faults.len();
    let runs = stream::iter(faults).map(|fault| async move {
        let ran = run(fault).await;
        check(fault, &ran);
        (ran.pushed.contains(&false), !ran.lost.is_empty())
    });
    let runs: Vec<(bool, bool)> = runs.buffer_unordered(AT_ONCE).collect().await;
    let refused = runs.iter().filter(|(refused, _)| *refused).count();
    let lost = runs.iter().filter(|(_, lost)| *lost).count();
    println!(
        "{count} positions ({puts} puts, {gets} gets): {refused} pushes refused, {lost} bundles named lost"
    );
    assert!(refused as u64 >= puts && lost > 0, "{refused} refused, {lost} lost");
}
