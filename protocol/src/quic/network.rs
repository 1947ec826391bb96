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

    /// The socket addresses of `host:port`, in the order of preference: a name may have several, of both families.
    ///
    /// # Errors
    /// When the text is no address, or its host is not known.
    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>>;

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
            // The first of them that is free and of this machine.
            let socket = std::net::UdpSocket::bind(&*self.resolve(address).await?)?;
            quinn::TokioRuntime.wrap_udp_socket(socket)
        })
    }

    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
            if addresses.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, format!("no address for {address}")));
            }
            Ok(addresses)
        })
    }
}

/// Addresses that a dialler tries at most: what a name has beyond them is a round-robin that another dial comes to.
const ADDRESSES_MAX: usize = 4;

/// The addresses that a socket bound at `local` can reach, those of its own family first. A socket of IPv4 reaches no other
/// family; one of IPv6 may reach IPv4 too.
pub(super) fn of_family(addresses: &[SocketAddr], local: Option<SocketAddr>) -> Vec<SocketAddr> {
    let reaches = |to: &&SocketAddr| to.is_ipv4() || local.is_none_or(|local| local.is_ipv6());
    let mut reachable: Vec<SocketAddr> = addresses.iter().filter(reaches).copied().collect();
    reachable.sort_by_key(|to| local.is_some_and(|local| local.is_ipv4() != to.is_ipv4()));
    reachable.truncate(ADDRESSES_MAX);
    reachable
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_dials_its_own_family_first() {
        let [four, other_four, six] =
            ["10.0.0.1:1", "10.0.0.2:1", "[fd00::1]:1"].map(|text| text.parse::<SocketAddr>().unwrap());
        let rows: [(Option<&str>, &[SocketAddr]); 4] = [
            (Some("127.0.0.1:7"), &[four, other_four]),
            (Some("[::1]:7"), &[six, four, other_four]),
            (Some("[::]:7"), &[six, four, other_four]),
            (None, &[six, four, other_four]),
        ];
        for (local, expected) in rows {
            let local = local.map(|text| text.parse::<SocketAddr>().unwrap());
            assert_eq!(of_family(&[six, four, other_four], local), expected, "{local:?}");
        }
        assert!(of_family(&[six], Some(([127, 0, 0, 1], 7).into())).is_empty());
        assert_eq!(of_family(&[four; 9], None).len(), ADDRESSES_MAX);
    }
}
