//! Watches: views and soft states, delivered as they change.
//!
//! A watch delivers states, not events: it may skip epochs and never goes back. A watcher that names the epoch it has gets
//! an empty delta where this node has the same, so that it knows; nothing while this node is behind; and what changed since
//! where this node is ahead and still knows that epoch ([`Published::recent`]), else the full view.
//!
//! A watch takes memory here for what its watcher has not taken yet: each connection has room for [`WATCHES_MAX`], and one
//! whose reader stalls is ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use tokio::sync::watch;

use super::endpoint::Link;
use super::stream::{StreamError, finish, read_message, write_message};
use crate::error::ControlError;
use crate::frame::{Kind, encode_message};
use crate::ids::{Epoch, ModelName};
use crate::messages::control::{ControlRequest, SoftUpdate, WatchUpdate, Watched};
use crate::view::{Model, Published, SoftState, View};

/// Watches that one connection may hold: a process needs one, and its next before the last has ended.
pub const WATCHES_MAX: usize = 16;
/// What is written of an update before it is asked anew whether the reader takes any.
const PIECE_BYTES: usize = 16 << 10;
/// A reader that takes no piece for so long has stalled: 100 kbit/s carry one in a quarter of it.
const STALL_MS_MAX: u64 = 5_000;
/// The code of a watch that was ended because its reader stalled.
const STALLED: VarInt = VarInt::from_u32(1);

/// Answers a request to watch that came over `link`: serves the watch, if the connection has room for one more.
///
/// # Errors
/// As [`serve`]; a refusal is answered and is no error here.
pub async fn answer(
    link: &Link,
    send: &mut SendStream,
    source: watch::Receiver<Published>,
    from: Option<Epoch>,
    models: &Watched,
) -> Result<(), StreamError> {
    match link.watch_permit() {
        Some(_permit) => serve(send, source, from, models).await,
        None => {
            let (what, max) = ("watches of one connection".to_owned(), WATCHES_MAX as u64);
            let error = ControlError::LimitExceeded { what, max, actual: max + 1 };
            tracing::warn!(target: "audit", peer = %link.peer.to_uri(), %error, "refused");
            write_message(send, Kind::WatchUpdate, &WatchUpdate::Failed(error)).await?;
            finish(send);
            Ok(())
        }
    }
}

/// Serves a watch until the stream breaks, its reader stalls, or the source ends.
///
/// # Errors
/// [`StreamError`] when the stream breaks, which is how a watch usually ends.
pub async fn serve(
    send: &mut SendStream,
    mut source: watch::Receiver<Published>,
    from: Option<Epoch>,
    models: &Watched,
) -> Result<(), StreamError> {
    // What the watcher has: at first it says so itself, and may have heard a node that is ahead of this one.
    let mut has = from;
    let mut sent_view: Option<Arc<View>> = None;
    let mut sent_soft: Option<Arc<SoftState>> = None;
    loop {
        let published = source.borrow_and_update().clone();
        // The first update may change nothing: it tells the watcher that this node is as far as it is.
        let is_news =
            |view: &View| has.is_none_or(|has| view.epoch > has || sent_view.is_none() && view.epoch == has);
        if let Some(view) = published.view.as_ref().filter(|view| is_news(view)) {
            let is_equal = has == Some(view.epoch);
            let view = only(view.clone(), models);
            let known = || has.and_then(|has| published.recent(has)).map(|base| only(base.clone(), models));
            let equal = is_equal.then(|| view.clone());
            let update = match sent_view.take().or(equal).or_else(known) {
                Some(base) => WatchUpdate::Delta(Box::new(view.delta_from(&base))),
                None => WatchUpdate::View(Box::new(View::clone(&view))),
            };
            write(send, &update).await?;
            has = Some(view.epoch);
            sent_view = Some(view);
        }
        if sent_soft.as_ref().is_none_or(|sent| published.soft.is_after(sent)) {
            let update = SoftUpdate::between(sent_soft.as_deref(), &published.soft);
            write(send, &WatchUpdate::Soft(update)).await?;
            sent_soft = Some(published.soft);
        }
        tokio::select! {
            changed = source.changed() => if changed.is_err() {
                finish(send);
                return Ok(());
            },
            stopped = send.stopped() => {
                return stopped.map(|_| ()).map_err(|error| StreamError::Broken(error.to_string()));
            }
        }
    }
}

/// Writes an update as its reader takes it. What changes meanwhile waits in no queue: the next update has it all.
async fn write(send: &mut SendStream, update: &WatchUpdate) -> Result<(), StreamError> {
    let mut rest = Bytes::from(encode_message(Kind::WatchUpdate, update)?);
    while !rest.is_empty() {
        let piece = rest.split_to(PIECE_BYTES.min(rest.len()));
        let written =
            tokio::time::timeout(Duration::from_millis(STALL_MS_MAX), send.write_chunk(piece)).await;
        let Ok(written) = written else {
            // Fails only when it is reset already. What was not taken yet is forgotten with it.
            let _ = send.reset(STALLED);
            return Err(StreamError::Broken(format!("the watcher took nothing for {STALL_MS_MAX} ms")));
        };
        written?;
    }
    Ok(())
}

/// The view as a watcher of some models sees it.
fn only(view: Arc<View>, models: &Watched) -> Arc<View> {
    match models {
        Watched::All => view,
        Watched::Models(wanted) => {
            let kept = view.models.iter().filter(|(name, _)| wanted.contains(name));
            let models: BTreeMap<ModelName, Arc<Model>> =
                kept.map(|(name, model)| (name.clone(), model.clone())).collect();
            Arc::new(View { models, ..View::clone(&view) })
        }
    }
}

/// A watch at another node.
pub struct Watch {
    recv: RecvStream,
    view: Option<Arc<View>>,
    soft: SoftState,
}

/// What a watch delivered.
#[derive(Debug, Clone, PartialEq)]
pub enum Update {
    /// A view.
    View(Arc<View>),
    /// A soft state.
    Soft(SoftState),
}

/// Why a watch ended.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The stream broke.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The node cannot serve a view.
    #[error(transparent)]
    Refused(#[from] ControlError),
    /// A delta that does not start where the watch is; the watch starts over.
    #[error(transparent)]
    Delta(#[from] crate::view::DeltaError),
    /// A change of a soft state that was not delivered; the watch starts over.
    #[error("a change of a soft state that this watch did not deliver")]
    SoftBase,
}

impl Watch {
    /// Starts to watch over `link`, from the view that the watcher has; it must have come from a watch of the same models.
    /// That view is not delivered again.
    ///
    /// # Errors
    /// [`WatchError::Stream`] when the link is broken.
    pub async fn start(link: &Link, view: Option<Arc<View>>, models: Watched) -> Result<Self, WatchError> {
        let (mut send, recv) = link.open().await?;
        let from = view.as_ref().map(|view| view.epoch);
        write_message(&mut send, Kind::ControlRequest, &ControlRequest::Watch { from, models }).await?;
        finish(&mut send);
        Ok(Self { recv, view, soft: SoftState::default() })
    }

    /// The next state.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is to be started again then, here or elsewhere.
    pub async fn next(&mut self) -> Result<Update, WatchError> {
        match read_message(&mut self.recv, Kind::WatchUpdate).await? {
            WatchUpdate::View(view) => {
                let view = Arc::<View>::from(view);
                self.view = Some(view.clone());
                Ok(Update::View(view))
            }
            WatchUpdate::Delta(delta) => {
                let ours = Epoch::default();
                let view = self.view.as_mut();
                let view = view.ok_or(crate::view::DeltaError { from: delta.from, ours })?;
                Arc::make_mut(view).apply(*delta)?;
                Ok(Update::View(view.clone()))
            }
            WatchUpdate::Soft(update) => {
                self.soft = update.onto(&self.soft).ok_or(WatchError::SoftBase)?;
                Ok(Update::Soft(self.soft.clone()))
            }
            WatchUpdate::Failed(error) => Err(error.into()),
        }
    }
}
