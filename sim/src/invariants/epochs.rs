//! What a client knows never goes back: neither its view's epoch, nor its soft state's (term, sequence).

use std::collections::BTreeMap;
use std::time::Duration;

use roost_protocol::{Epoch, Term};

use super::Invariant;
use crate::facts::Fact;

/// Epochs never go back at any client.
#[derive(Default)]
pub struct Epochs {
    seen: BTreeMap<String, (Epoch, (Term, u64))>,
}

impl Invariant for Epochs {
    fn name(&self) -> &'static str {
        "epochs never go back"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        let Fact::Saw(published) = fact else { return Ok(()) };
        let epoch = published.view.as_ref().map(|view| view.epoch).unwrap_or_default();
        let soft = (published.soft.term, published.soft.sequence);
        let (last_epoch, last_soft) = self.seen.insert(host.to_owned(), (epoch, soft)).unwrap_or_default();
        if epoch < last_epoch {
            return Err(format!("{host} went from epoch {last_epoch} to {epoch}"));
        }
        if soft < last_soft {
            return Err(format!("{host} went from soft state {last_soft:?} to {soft:?}"));
        }
        Ok(())
    }
}
