//! Watches: views and soft states, delivered as they change.
//!
//! A watch delivers states, not events: it may skip epochs and never goes back. A watcher that names the epoch it has gets
//! a delta from the last view that was delivered on this stream, and the full view first, because a server keeps one base
//! per stream and no history.

use std::collections::BTreeMap;
use std::sync::Arc;

use quinn::{RecvStream, SendStream};
use tokio::sync::watch;

use super::endpoint::Link;
use super::stream::{StreamError, finish, read_message, write_message};
use crate::error::ControlError;
use crate::frame::Kind;
use crate::ids::{Epoch, ModelName};
use crate::messages::control::{ControlRequest, SoftUpdate, WatchUpdate, Watched};
use crate::view::{Model, Published, SoftState, View};

/// Serves a watch until the stream breaks or the source ends.
///
/// # Errors
/// [`StreamError`] when the stream breaks, which is how a watch usually ends.
pub async fn serve(
    send: &mut SendStream,
    mut source: watch::Receiver<Published>,
    from: Option<Epoch>,
    models: &Watched,
) -> Result<(), StreamError> {
    let mut sent_view: Option<Arc<View>> = None;
    let mut sent_soft: Option<Arc<SoftState>> = None;
    loop {
        let published = source.borrow_and_update().clone();
        if let Some(view) = published.view {
            // Nothing older than what the watcher has: it may have heard a node that is ahead of this one.
            let later =
                sent_view.as_ref().map_or(from, |sent| Some(sent.epoch)).is_none_or(|e| view.epoch > e);
            let first_and_equal = sent_view.is_none() && from == Some(view.epoch);
            if later || first_and_equal {
                let view = only(view, models);
                let update = match &sent_view {
                    Some(base) => WatchUpdate::Delta(Box::new(view.delta_from(base))),
                    None => WatchUpdate::View(Box::new(View::clone(&view))),
                };
                write_message(send, Kind::WatchUpdate, &update).await?;
                sent_view = Some(view);
            }
        }
        if sent_soft.as_ref().is_none_or(|sent| published.soft.is_after(sent)) {
            let update = SoftUpdate::between(sent_soft.as_deref(), &published.soft);
            write_message(send, Kind::WatchUpdate, &WatchUpdate::Soft(update)).await?;
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
    view: Option<View>,
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
    /// Starts to watch over `link`, from the epoch that the watcher has.
    ///
    /// # Errors
    /// [`WatchError::Stream`] when the link is broken.
    pub async fn start(link: &Link, from: Option<Epoch>, models: Watched) -> Result<Self, WatchError> {
        let (mut send, recv) = link.open().await?;
        write_message(&mut send, Kind::ControlRequest, &ControlRequest::Watch { from, models }).await?;
        finish(&mut send);
        Ok(Self { recv, view: None, soft: SoftState::default() })
    }

    /// The next state.
    ///
    /// # Errors
    /// [`WatchError`]; the watch is to be started again then, here or elsewhere.
    pub async fn next(&mut self) -> Result<Update, WatchError> {
        match read_message(&mut self.recv, Kind::WatchUpdate).await? {
            WatchUpdate::View(view) => {
                self.view = Some(View::clone(&view));
                Ok(Update::View(Arc::from(view)))
            }
            WatchUpdate::Delta(delta) => {
                let ours = Epoch::default();
                let view = self.view.as_mut();
                let view = view.ok_or(crate::view::DeltaError { from: delta.from, ours })?;
                view.apply(*delta)?;
                Ok(Update::View(Arc::new(view.clone())))
            }
            WatchUpdate::Soft(update) => {
                self.soft = update.onto(&self.soft).ok_or(WatchError::SoftBase)?;
                Ok(Update::Soft(self.soft.clone()))
            }
            WatchUpdate::Failed(error) => Err(error.into()),
        }
    }
}
