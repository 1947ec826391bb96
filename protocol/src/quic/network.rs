//! Where sockets, timers and addresses come from.
//!
//! The simulator implements [`Network`] over its own UDP and virtual time; nothing else in Roost opens a socket.

use std::fmt::Debug;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use futures::future::BoxFuture;
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime};

/// Gives sockets and resolves addresses.
pub trait Network: Debug + Send + Sync + 'static {
    /// Binds a UDP socket at `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// The operating system's, such as an address in use.
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn AsyncUdpSocket>>>;

    /// The socket address of `host:port`.
    ///
    /// # Errors
    /// When the text is no address, or its host is not known.
    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<SocketAddr>>;

    /// The runtime that QUIC runs on.
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(TokioRuntime)
    }
}

/// The operating system's UDP, on the current tokio runtime.
#[derive(Debug, Clone, Copy, Default)]
pub struct TokioNetwork;

impl Network for TokioNetwork {
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn AsyncUdpSocket>>> {
        Box::pin(async move {
            let socket = std::net::UdpSocket::bind(self.resolve(address).await?)?;
            quinn::TokioRuntime.wrap_udp_socket(socket)
        })
    }

    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<SocketAddr>> {
        Box::pin(async move {
            let none = || io::Error::new(io::ErrorKind::NotFound, format!("no address for {address}"));
            tokio::net::lookup_host(address).await?.next().ok_or_else(none)
        })
    }
}

/// QUIC's timers and tasks on the current tokio runtime. Unlike quinn's own it reads tokio's clock, which the simulator
/// pauses; in production both are the same.
#[derive(Debug)]
pub struct TokioRuntime;

impl Runtime for TokioRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(Timer(Box::pin(tokio::time::sleep_until(at.into()))))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        tokio::spawn(future);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        quinn::TokioRuntime.wrap_udp_socket(socket)
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}

#[derive(Debug)]
struct Timer(Pin<Box<tokio::time::Sleep>>);

impl AsyncTimer for Timer {
    fn reset(mut self: Pin<&mut Self>, at: Instant) {
        self.0.as_mut().reset(at.into());
    }

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        Future::poll(self.0.as_mut(), cx)
    }
}
