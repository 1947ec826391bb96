//! Executors on threads of their own, and a tokio runtime per role.

use std::sync::Arc;
use std::sync::mpsc;

use futures::future::BoxFuture;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

use crate::environment::{Executor, Executors, Job, RoleHandle, Runtimes, Work};

/// The role that computes, and so gets as many worker threads as there are cores. Others wait for the
/// network.
const ROLE_OF_ALL_CORES: &str = "worker";

/// Makes executors that are threads.
#[derive(Debug, Clone, Copy, Default)]
pub struct ThreadExecutors;

impl Executors for ThreadExecutors {
    fn dedicated(&self, name: &str, _kind: Work) -> Arc<dyn Executor> {
        // Unbounded: whoever submits holds a permit for each job.
        let (jobs, queue) = mpsc::channel::<Job>();
        let thread = std::thread::Builder::new().name(name.to_owned());
        // A job that panics unwinds the thread, which drops the queue: later jobs are dropped unrun, and so
        // is what they would have told whoever waits.
        let spawned = thread.spawn(move || queue.into_iter().for_each(|job| job()));
        if let Err(error) = spawned {
            tracing::error!(name, %error, "the operating system gives no thread; the executor is dead from the start");
        }
        Arc::new(ThreadExecutor { jobs })
    }
}

/// The sending end of a thread's queue. The thread ends after the jobs that it has when this is dropped.
struct ThreadExecutor {
    jobs: mpsc::Sender<Job>,
}

impl Executor for ThreadExecutor {
    fn submit(&self, job: Job) {
        // The thread is gone when it fails; the job comes back in the error and is dropped.
        let _ = self.jobs.send(job);
    }
}

/// A tokio runtime per role.
#[derive(Debug, Clone, Copy)]
pub struct TokioRuntimes {
    cores: usize,
}

impl TokioRuntimes {
    /// Runtimes for a machine with so many cores.
    pub fn new(cores: usize) -> Self {
        Self { cores: cores.max(1) }
    }

    fn worker_threads(self, role: &str) -> usize {
        if role == ROLE_OF_ALL_CORES { self.cores } else { 1 }
    }
}

impl Runtimes for TokioRuntimes {
    fn start(&self, role: &str, task: BoxFuture<'static, ()>) -> Box<dyn RoleHandle> {
        let threads = self.worker_threads(role);
        let runtime =
            Builder::new_multi_thread().worker_threads(threads).thread_name(role).enable_all().build();
        let role = role.to_owned();
        Box::new(match runtime {
            Ok(runtime) => TokioRole { role, task: Some(runtime.spawn(task)), runtime: Some(runtime) },
            Err(error) => {
                tracing::error!(role, %error, "the operating system gives no runtime; the role ends at once");
                TokioRole { role, task: None, runtime: None }
            }
        })
    }
}

struct TokioRole {
    role: String,
    /// Until it ended.
    task: Option<JoinHandle<()>>,
    /// Until this is dropped.
    runtime: Option<Runtime>,
}

impl RoleHandle for TokioRole {
    fn ended(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(task) = self.task.as_mut() else { return };
            if let Err(error) = task.await {
                tracing::error!(role = self.role, %error, "the role's task died");
            }
            self.task = None;
        })
    }
}

impl Drop for TokioRole {
    fn drop(&mut self) {
        // Dropping a runtime waits for its threads, which a task of another runtime must not do.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn jobs_run_in_order_on_a_thread_of_that_name() {
        let executor = ThreadExecutors.dedicated("digits@2", Work::Compute);
        let (sent, received) = mpsc::channel();
        for i in 0..100 {
            let sent = sent.clone();
            executor.submit(Box::new(move || sent.send(i).unwrap()));
        }
        let name = executor.run(|| std::thread::current().name().map(str::to_owned)).await;
        assert_eq!(name.flatten().as_deref(), Some("digits@2"));
        drop(sent);
        assert_eq!(received.iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn a_panic_ends_the_executor_and_nobody_waits_for_ever() {
        let executor = ThreadExecutors.dedicated("digits@2", Work::Compute);
        let (release, hold) = mpsc::channel::<()>();
        executor.submit(Box::new(move || {
            let _ = hold.recv();
            panic!("as the test wants it");
        }));
        // Waits behind the job that panics.
        let queued = tokio::spawn({
            let executor = Arc::clone(&executor);
            async move { executor.run(|| 1).await }
        });
        tokio::task::yield_now().await;
        drop(release);
        assert_eq!(queued.await.unwrap(), None);
        assert_eq!(executor.run(|| 2).await, None);
    }

    #[tokio::test]
    async fn a_dropped_executor_finishes_what_it_has() {
        let executor = ThreadExecutors.dedicated("disk", Work::Disk);
        let (sent, received) = oneshot::channel();
        executor.submit(Box::new(move || sent.send(7).unwrap()));
        drop(executor);
        assert_eq!(received.await.unwrap(), 7);
    }

    #[tokio::test]
    async fn a_role_runs_on_threads_of_its_name_until_it_ends() {
        let (sent, received) = oneshot::channel();
        let task = async move {
            let spawned = tokio::spawn(async { std::thread::current().name().map(str::to_owned) });
            sent.send(spawned.await.unwrap()).unwrap();
        };
        let mut role = TokioRuntimes::new(2).start("coordinator", Box::pin(task));
        role.ended().await;
        role.ended().await;
        assert_eq!(received.await.unwrap().as_deref(), Some("coordinator"));
    }

    #[tokio::test]
    async fn waiting_for_a_role_may_be_given_up_and_taken_up_again() {
        let (release, held) = oneshot::channel::<()>();
        let mut role = TokioRuntimes::new(2).start("gateway", Box::pin(async move { held.await.unwrap() }));
        let waited = tokio::time::timeout(Duration::from_millis(1), role.ended()).await;
        assert!(waited.is_err());
        release.send(()).unwrap();
        role.ended().await;
    }

    #[tokio::test]
    async fn a_dropped_role_stops_with_all_that_it_spawned() {
        let (_never, held) = oneshot::channel::<()>();
        let (alive, ended) = oneshot::channel::<()>();
        let (started, starting) = oneshot::channel();
        let task = async move {
            tokio::spawn(async move {
                let _alive = alive;
                started.send(()).unwrap();
                let _ = held.await;
            });
            std::future::pending().await
        };
        let role = TokioRuntimes::new(2).start("worker", Box::pin(task));
        starting.await.unwrap();
        drop(role);
        ended.await.unwrap_err();
    }

    #[tokio::test]
    async fn a_role_that_panics_has_ended() {
        let task = async { panic!("as the test wants it") };
        TokioRuntimes::new(1).start("worker", Box::pin(task)).ended().await;
    }

    #[test]
    fn only_the_worker_gets_all_cores() {
        let runtimes = TokioRuntimes::new(8);
        let threads = ["coordinator", "worker", "gateway"].map(|role| runtimes.worker_threads(role));
        assert_eq!(threads, [1, 8, 1]);
    }
}
