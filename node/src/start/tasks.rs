//! The tasks without which a role is not itself: an accept loop, a report, a watch.
//!
//! A task that panics tells nobody by itself: the node would look ready and be deaf. So a role waits for [`Tasks::died`]
//! beside its request to stop.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use roost_protocol::error::panic_text;
use tokio::task::JoinSet;

/// Tasks that run for as long as their role does. Dropping it ends them.
#[derive(Debug, Default)]
pub(crate) struct Tasks(JoinSet<String>);

impl Tasks {
    /// Starts a task. It must not end by itself.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            // Nothing of what it had is looked at afterwards.
            match AssertUnwindSafe(task).catch_unwind().await {
                Ok(()) => format!("its task {name} ended"),
                Err(panic) => format!("its task {name} panicked: {}", panic_text(&*panic)),
            }
        });
    }

    /// Completes when one has ended all the same, with which and how. Safe to drop half-way.
    pub async fn died(&mut self) -> String {
        match self.0.join_next().await {
            Some(Ok(how)) => how,
            Some(Err(error)) => error.to_string(),
            None => std::future::pending().await,
        }
    }

    /// Ends all, and waits until they have.
    pub async fn shutdown(mut self) {
        self.0.shutdown().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_told_by_its_name() {
        let mut tasks = Tasks::default();
        tasks.spawn("accept", std::future::pending());
        tasks.spawn("report", async { panic!("as the test wants it") });
        assert_eq!(tasks.died().await, "its task report panicked: as the test wants it");
        tasks.spawn("join", async {});
        assert_eq!(tasks.died().await, "its task join ended");
        tasks.shutdown().await;
    }

    #[tokio::test]
    async fn tasks_that_go_on_are_not_told() {
        let mut tasks = Tasks::default();
        assert_eq!(tasks.died().now_or_never(), None);
        tasks.spawn("accept", std::future::pending());
        tokio::task::yield_now().await;
        assert_eq!(tasks.died().now_or_never(), None);
    }
}
