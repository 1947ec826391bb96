//! Links that are kept: one to each address and service, shared by all who need it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::endpoint::{Dialler, GreetError, Link};
use super::service::Service;
use crate::error::ControlError;

/// Links to nodes by address, one each, made when first needed and made anew when broken.
#[derive(Clone)]
pub struct Links {
    dialler: Dialler,
    service: Service,
    links: Arc<Mutex<BTreeMap<Arc<str>, Arc<Slot>>>>,
}

/// The link to one address.
#[derive(Default)]
struct Slot {
    /// Dials that were made; says whether one ended while a caller waited for its turn.
    dials: AtomicU64,
    last: tokio::sync::Mutex<Option<Result<Link, ControlError>>>,
}

impl Links {
    /// No links yet.
    pub fn new(dialler: Dialler, service: Service) -> Self {
        Self { dialler, service, links: Arc::default() }
    }

    /// The dialler that makes the links.
    pub fn dialler(&self) -> &Dialler {
        &self.dialler
    }

    /// The link to a node, dialled if there is none that works. Callers that come together share one dial and its outcome.
    /// The dial goes on when the caller gives up: a caller in a hurry, such as a vote, must not keep a slow link from
    /// ever being made.
    ///
    /// # Errors
    /// [`GreetError`] when it cannot be made.
    pub async fn to(&self, address: &str) -> Result<Link, GreetError> {
        let slot = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            match links.get(address) {
                Some(slot) => slot.clone(),
                None => links.entry(address.into()).or_default().clone(),
            }
        };
        if let Ok(last) = slot.last.try_lock()
            && let Some(Ok(link)) = last.as_ref().filter(|last| last.as_ref().is_ok_and(Link::is_open))
        {
            return Ok(link.clone());
        }
        let seen = slot.dials.load(Ordering::Acquire);
        let (dialler, service, to) = (self.dialler.clone(), self.service, address.to_owned());
        let dial = tokio::spawn(async move {
            let mut last = slot.last.lock().await;
            match last.as_ref() {
                Some(Ok(link)) if link.is_open() => return Ok(link.clone()),
                Some(Err(error)) if slot.dials.load(Ordering::Acquire) > seen => return Err(error.clone()),
                Some(_) | None => {}
            }
            let dialled = dialler.dial(&to, service).await.map_err(|error| error.into_control(&to));
            *last = Some(dialled.clone());
            slot.dials.fetch_add(1, Ordering::AcqRel);
            dialled
        });
        match dial.await {
            Ok(dialled) => Ok(dialled?),
            Err(error) => {
                Err(GreetError::Handshake { address: address.to_owned(), reason: error.to_string() })
            }
        }
    }

    /// The longest round trip of the links that work at present; zero when none does.
    pub fn longest_round_trip(&self) -> Duration {
        let links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        let round_trip = |slot: &Arc<Slot>| {
            let last = slot.last.try_lock().ok()?;
            last.as_ref()?.as_ref().ok().filter(|link| link.is_open()).map(Link::round_trip)
        };
        links.values().filter_map(round_trip).max().unwrap_or_default()
    }

    /// Forgets the nodes at other addresses than these, closing links to them.
    pub fn keep_only(&self, wanted: impl Fn(&str) -> bool) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|address, slot| {
            let keep = wanted(address);
            if !keep && let Ok(last) = slot.last.try_lock() {
                last.iter().flatten().for_each(Link::close);
            }
            keep
        });
    }
}
