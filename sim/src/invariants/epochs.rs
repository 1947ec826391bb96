//! What a client knows never goes back: neither its view's epoch, nor its soft state's (term, sequence). Each
//! change has an epoch of its own, later than those of all changes that had returned before it was asked for.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_protocol::{Epoch, Term};

use super::{End, Invariant};
use crate::facts::Fact;
use crate::history::Op;

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

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let changes = end.ops.iter().filter_map(|op| Some((op.epoch?, op.returned.as_ref()?.0, &**op)));
        let changes: Vec<(Epoch, Duration, &Op)> = changes.collect();
        for (i, (epoch, returned, op)) in changes.iter().enumerate() {
            for (other_epoch, other_returned, other) in &changes[i + 1..] {
                let in_order = match (*returned < other.invoked, *other_returned < op.invoked) {
                    (true, _) => epoch < other_epoch,
                    (_, true) => other_epoch < epoch,
                    (false, false) => epoch != other_epoch,
                };
                if !in_order {
                    return Err(format!("{op:?} and {other:?} led to the epochs {epoch} and {other_epoch}"));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roost_protocol::Revision;
    use roost_protocol::view::{Published, SoftState};

    use super::super::fixtures::{at, end, epoch, op, traffic, view};
    use super::*;
    use crate::history::{Call, Return};

    #[test]
    fn neither_the_view_nor_the_soft_state_goes_back() {
        let mut epochs = Epochs::default();
        let mut sees = |host, index, term, sequence| {
            let soft = SoftState { term: Term(term), sequence, ..SoftState::default() };
            let view = Arc::new(view(index, traffic(1, 1), 1, 1));
            epochs.watch(at(1), host, &Fact::Saw(Published::new(Some(view), Arc::new(soft))))
        };
        sees("user1", 4, 1, 7).unwrap();
        sees("user1", 4, 2, 1).unwrap();
        sees("user2", 3, 1, 1).unwrap();
        sees("user1", 3, 2, 2).unwrap_err();
        sees("user2", 4, 1, 0).unwrap_err();
    }

    #[test]
    fn a_later_change_has_a_later_epoch() {
        let change = |from, until, index| {
            let op = op(from, Call::Promote, Some((until, Return::Rerouted(Revision(2)))));
            Arc::new(Op { epoch: Some(epoch(index)), ..op })
        };
        let judge = |ops| Epochs::default().judge(&End { ops, ..end() });
        judge(vec![change(1, 2, 5), change(3, 6, 7), change(4, 5, 6)]).unwrap();
        judge(vec![change(1, 2, 5), change(3, 4, 4)]).unwrap_err();
        judge(vec![change(3, 4, 4), change(1, 2, 5)]).unwrap_err();
        judge(vec![change(1, 3, 5), change(2, 4, 5)]).unwrap_err();
    }
}
