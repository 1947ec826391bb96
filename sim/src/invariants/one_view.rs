//! An epoch names one view: whoever has a view of an epoch has the same as everyone else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost_protocol::Epoch;
use roost_protocol::view::View;

use super::Invariant;
use crate::facts::Fact;

/// Views of one epoch are equal.
#[derive(Default)]
pub struct OneView {
    /// Who saw each first, and what.
    seen: BTreeMap<Epoch, (String, Arc<View>)>,
}

impl Invariant for OneView {
    fn name(&self) -> &'static str {
        "an epoch names one view"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        let Fact::Saw(published) = fact else { return Ok(()) };
        let Some(view) = &published.view else { return Ok(()) };
        let (first, known) = self.seen.entry(view.epoch).or_insert_with(|| (host.to_owned(), view.clone()));
        if Arc::ptr_eq(known, view) || known == view {
            return Ok(());
        }
        Err(format!("at epoch {} {first} has {known:?}, {host} has {view:?}", view.epoch))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{at, published, traffic, view};
    use super::*;

    #[test]
    fn two_views_of_an_epoch_are_found_also_across_clients() {
        let mut one_view = OneView::default();
        let mut sees = |host, index, revision| {
            one_view.watch(at(1), host, &Fact::Saw(published(view(index, traffic(revision, 1), 1, 2))))
        };
        sees("user1", 4, 1).unwrap();
        sees("user2", 4, 1).unwrap();
        sees("user2", 5, 2).unwrap();
        sees("user1", 5, 3).unwrap_err();
    }
}
