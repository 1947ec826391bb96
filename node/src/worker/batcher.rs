//! The queue of one version, and the batches that it forms.
//!
//! What waits goes by priority, higher first, then by arrival. A batch is the request at the head and those behind it
//! that have the same shapes, up to the manifest's rows; which outputs each wants may differ. Nothing waits for a batch to
//! fill: what is there when an executor is free goes. A request that is passed over because it does not fit stays where
//! it is, and is the head sooner or later.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use roost_protocol::limits::TENSOR_BYTES_MAX;
use roost_protocol::{Shape, Tensor};
use tokio::time::Instant;

use super::plan::Plan;

/// How many requests behind the head are looked at for one batch. Bounds the time that an executor is kept waiting when
/// many shapes wait; with equal shapes a batch is full long before.
const LOOKED_AT_MAX: usize = 256;

/// Where a request stands in the queue: its identity there, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    priority: Reverse<u8>,
    arrival: u64,
}

impl Place {
    /// The place of the request that arrived as number `arrival` of its version.
    pub fn new(priority: u8, arrival: u64) -> Self {
        Self { priority: Reverse(priority), arrival }
    }
}

/// Which requests may share a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fellows {
    /// Those of the same shapes, their rows apart.
    SameShapes(Vec<Shape>),
    /// None.
    Nobody,
}

impl Fellows {
    /// Which requests may share a batch with one of these inputs.
    pub fn of(plan: &Plan, inputs: &[Tensor]) -> Self {
        if !plan.batches {
            return Self::Nobody;
        }
        let without_rows = |(input, axis): (&Tensor, &Option<usize>)| match axis {
            Some(axis) => input.shape().with_dim(*axis, 1),
            None => input.shape(),
        };
        Self::SameShapes(inputs.iter().zip(&plan.input_axes).map(without_rows).collect())
    }

    fn includes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::SameShapes(ours), Self::SameShapes(theirs)) => ours == theirs,
            (Self::Nobody, _) | (_, Self::Nobody) => false,
        }
    }
}

/// A request that waits, with what the queue must know of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting<T> {
    /// Which requests may share its batch.
    pub fellows: Fellows,
    /// Its rows.
    pub rows: u32,
    /// The bytes of its inputs.
    pub bytes: u64,
    /// When nobody waits for its answer any more.
    pub deadline: Instant,
    /// The request.
    pub request: T,
}

/// What [`Batcher::form`] took from the queue.
#[derive(Debug, PartialEq, Eq)]
pub struct Formed<T> {
    /// Requests whose deadline has passed.
    pub expired: Vec<T>,
    /// The requests of the batch; none when nothing waits.
    pub batch: Vec<(Place, T)>,
    /// Rows of the batch.
    pub rows: u32,
}

/// The queue of one version.
#[derive(Debug)]
pub struct Batcher<T> {
    rows_max: u32,
    waiting: BTreeMap<Place, Waiting<T>>,
}

impl<T> Batcher<T> {
    /// An empty queue that forms batches of up to `rows_max` rows.
    pub fn new(rows_max: u32) -> Self {
        Self { rows_max, waiting: BTreeMap::new() }
    }

    /// Puts a request in its place. Admission bounds how many there are.
    pub fn push(&mut self, place: Place, waiting: Waiting<T>) {
        self.waiting.insert(place, waiting);
    }

    /// Takes a request out that nobody waits for any more. `None` when it is not in the queue.
    pub fn cancel(&mut self, place: Place) -> Option<T> {
        self.waiting.remove(&place).map(|waiting| waiting.request)
    }

    /// Takes out all that waits.
    pub fn drain(&mut self) -> impl Iterator<Item = T> {
        std::mem::take(&mut self.waiting).into_values().map(|waiting| waiting.request)
    }

    /// Takes the next batch out. What is met on the way and has passed its deadline is taken out too.
    pub fn form(&mut self, now: Instant) -> Formed<T> {
        let (mut expired, mut chosen) = (Vec::new(), Vec::new());
        let (mut rows, mut bytes) = (0u32, 0u64);
        let mut head: Option<&Fellows> = None;
        for (place, waiting) in self.waiting.iter().take(LOOKED_AT_MAX) {
            if waiting.deadline <= now {
                expired.push(*place);
                continue;
            }
            let joins = match head {
                // A request of more rows than a batch may have runs alone.
                None => true,
                Some(fellows) => {
                    let fits = rows.saturating_add(waiting.rows) <= self.rows_max
                        && bytes.saturating_add(waiting.bytes) <= TENSOR_BYTES_MAX;
                    fits && fellows.includes(&waiting.fellows)
                }
            };
            if joins {
                head = head.or(Some(&waiting.fellows));
                (rows, bytes) = (rows.saturating_add(waiting.rows), bytes.saturating_add(waiting.bytes));
                chosen.push(*place);
            }
            if rows >= self.rows_max || head == Some(&Fellows::Nobody) {
                break;
            }
        }
        let expired = expired.into_iter().filter_map(|place| self.cancel(place)).collect();
        let batch = chosen.into_iter().filter_map(|place| Some((place, self.cancel(place)?))).collect();
        Formed { expired, batch, rows }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    struct Queue {
        batcher: Batcher<&'static str>,
        start: Instant,
        arrivals: u64,
    }

    impl Queue {
        fn new(rows_max: u32) -> Self {
            Self { batcher: Batcher::new(rows_max), start: Instant::now(), arrivals: 0 }
        }

        fn at(&self, ms: u64) -> Instant {
            self.start + Duration::from_millis(ms)
        }

        /// Adds a request of a width, which stands for its shape, that lives for 100 ms.
        fn add(&mut self, request: &'static str, priority: u8, width: u64, rows: u32) -> Place {
            let fellows = match width {
                0 => Fellows::Nobody,
                width => Fellows::SameShapes(vec![Shape::new(&[1, width]).unwrap()]),
            };
            let place = Place::new(priority, self.arrivals);
            self.arrivals += 1;
            let deadline = self.at(100);
            self.batcher.push(place, Waiting { fellows, rows, bytes: 8, deadline, request });
            place
        }

        fn form(&mut self, ms: u64) -> String {
            let Formed { expired, batch, rows } = self.batcher.form(self.at(ms));
            let batch: Vec<_> = batch.into_iter().map(|(_, request)| request).collect();
            let expired =
                if expired.is_empty() { String::new() } else { format!(", expired {}", expired.join(" ")) };
            format!("{} ({rows} rows){expired}", batch.join(" "))
        }
    }

    #[test]
    fn equal_shapes_share_a_batch_in_order() {
        let mut queue = Queue::new(8);
        for (request, priority, width, rows) in [
            ("a", 0, 4, 2),
            ("b", 0, 5, 1),
            ("c", 0, 4, 3),
            ("urgent", 9, 4, 1),
            ("d", 0, 4, 7),
            ("e", 0, 4, 2),
        ] {
            queue.add(request, priority, width, rows);
        }
        assert_eq!(queue.form(0), "urgent a c e (8 rows)");
        assert_eq!(queue.form(0), "b (1 rows)");
        assert_eq!(queue.form(0), "d (7 rows)");
        assert_eq!(queue.form(0), " (0 rows)");
    }

    #[test]
    fn a_request_larger_than_a_batch_runs_alone() {
        let mut queue = Queue::new(4);
        queue.add("large", 0, 4, 9);
        queue.add("small", 0, 4, 1);
        assert_eq!(queue.form(0), "large (9 rows)");
        assert_eq!(queue.form(0), "small (1 rows)");
    }

    #[test]
    fn what_never_batches_runs_alone() {
        let mut queue = Queue::new(4);
        queue.add("a", 0, 0, 1);
        queue.add("b", 0, 0, 1);
        assert_eq!(queue.form(0), "a (1 rows)");
        assert_eq!(queue.form(0), "b (1 rows)");
    }

    #[test]
    fn what_was_cancelled_or_expired_is_not_run() {
        let mut queue = Queue::new(4);
        let a = queue.add("a", 0, 4, 1);
        queue.add("b", 0, 4, 1);
        assert_eq!(queue.batcher.cancel(a), Some("a"));
        assert_eq!(queue.batcher.cancel(a), None);
        queue.start += Duration::from_millis(50);
        queue.add("c", 0, 4, 1);
        assert_eq!(queue.form(60), "c (1 rows), expired b");
        queue.add("d", 0, 4, 1);
        assert_eq!(queue.batcher.drain().collect::<Vec<_>>(), ["d"]);
        assert_eq!(queue.form(0), " (0 rows)");
    }

    #[test]
    fn a_batch_never_passes_the_bytes_of_a_tensor() {
        let mut queue = Queue::new(4);
        let place = queue.add("a", 0, 4, 1);
        queue.batcher.waiting.get_mut(&place).unwrap().bytes = TENSOR_BYTES_MAX - 8;
        queue.add("b", 0, 4, 1);
        queue.add("c", 0, 4, 1);
        assert_eq!(queue.form(0), "a b (2 rows)");
        assert_eq!(queue.form(0), "c (1 rows)");
    }
}
