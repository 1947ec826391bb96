//! UDP by turmoil, under QUIC: latency, reordering and partitions are turmoil's, loss, duplication and thin
//! links are ours.
//!
//! Turmoil draws each packet's latency by itself, so packets overtake each other wherever the latency varies,
//! which is everywhere.

use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roost_protocol::quic::Network;
use turmoil::net::UdpSocket;

use crate::condition::Conditions;
use crate::coverage::Rare;
use crate::disk::Life;

/// What the queue ahead of a thin link holds: a few packets, as a modem's does.
const QUEUE_BYTES: f64 = 16_000.0;

/// The simulated network, as one host sees it.
#[derive(Debug)]
pub struct SimNetwork {
    /// Whose packets leave; a client's always do.
    life: Option<Life>,
    conditions: Conditions,
    seed: u64,
}

impl SimNetwork {
    /// The network of a host in these `conditions`; `seed` decides which of its packets are lost.
    pub fn new(life: Option<Life>, conditions: Conditions, seed: u64) -> Self {
        Self { life, conditions, seed }
    }
}

impl Network for SimNetwork {
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn AsyncUdpSocket>>> {
        Box::pin(async move {
            let at = parse(address)?;
            let socket = Arc::new(UdpSocket::bind(SocketAddr::new([0, 0, 0, 0].into(), at.port())).await?);
            // Bound to all addresses of the host; peers know it by this one.
            let local = SocketAddr::new(at.ip(), socket.local_addr()?.port());
            let rng = Mutex::new(StdRng::seed_from_u64(self.seed ^ u64::from(local.port())));
            let (queue, readable) = (Mutex::default(), Mutex::new(None));
            let (life, conditions) = (self.life.clone(), self.conditions.clone());
            let socket = Socket { socket, local, life, conditions, rng, queue, readable };
            Ok(Arc::new(socket) as Arc<dyn AsyncUdpSocket>)
        })
    }

    fn resolve<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(vec![parse(address)?]) })
    }
}

fn parse(address: &str) -> io::Result<SocketAddr> {
    let bad = || io::Error::new(io::ErrorKind::InvalidInput, format!("{address} is no host:port"));
    let (host, port) = address.rsplit_once(':').ok_or_else(bad)?;
    let port = port.parse().map_err(|_| bad())?;
    let ip = host.parse().unwrap_or_else(|_| turmoil::lookup(host));
    Ok(SocketAddr::new(ip, port))
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// The bytes ahead of a thin link. They are counted, not delayed: a full queue is what harms.
#[derive(Debug, Default)]
struct Queue {
    bytes: f64,
    at: Duration,
}

impl Queue {
    /// Whether it takes a packet.
    fn takes(&mut self, bytes: usize, bytes_per_s: u32) -> bool {
        let now = crate::trace::now();
        let drained = f64::from(bytes_per_s) * now.saturating_sub(self.at).as_secs_f64();
        (self.at, self.bytes) = (now, (self.bytes - drained).max(0.0));
        let fits = self.bytes + bytes as f64 <= QUEUE_BYTES;
        if fits {
            self.bytes += bytes as f64;
        }
        fits
    }
}

/// A socket of turmoil's, as quinn wants it.
struct Socket {
    socket: Arc<UdpSocket>,
    local: SocketAddr,
    life: Option<Life>,
    conditions: Conditions,
    rng: Mutex<StdRng>,
    queue: Mutex<Queue>,
    /// Waits for the next packet. It holds turmoil's own lock on the socket, so it is dropped before a packet
    /// is taken.
    readable: Mutex<Option<Readable>>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "udp {}", self.local)
    }
}

/// Turmoil's sockets always take a packet.
#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.life.as_ref().is_some_and(|life| !life.sends()) {
            return Ok(());
        }
        let weather = self.conditions.now().weather;
        let draw: f64 = self.rng.lock().unwrap_or_else(PoisonError::into_inner).random();
        let fits = weather.bytes_per_s.is_none_or(|bytes_per_s| {
            let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
            queue.takes(transmit.contents.len(), bytes_per_s)
        });
        let copies = if draw < weather.loss || !fits {
            0
        } else if draw < weather.loss + weather.duplication {
            2
        } else {
            1
        };
        let (to, length) = (transmit.destination, transmit.contents.len());
        let (fate, rare) = match copies {
            0 => (", lost", Some(Rare::PacketLost)),
            1 => ("", None),
            _ => (", twice", Some(Rare::PacketDoubled)),
        };
        if let Some(rare) = rare {
            self.conditions.count(rare);
        }
        crate::trace::line(format_args!("{} -> {to} {length} bytes{fate}", self.local));
        for _ in 0..copies {
            // A packet that the network does not take is lost, which UDP may do.
            let _ = self.socket.try_send_to(transmit.contents, transmit.destination);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut readable = self.readable.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(waiting) = readable.as_mut() {
                match waiting.as_mut().poll(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(result) => {
                        *readable = None;
                        result?;
                    }
                }
            }
            match self.socket.try_recv_from(&mut buffers[0]) {
                Ok((length, from)) => {
                    // Nothing reaches the dead. The world tears down what waits here.
                    if self.life.as_ref().is_some_and(|life| !life.receives()) {
                        return Poll::Pending;
                    }
                    let hash = xxhash_rust::xxh3::xxh3_64(&buffers[0][..length]);
                    crate::trace::line(format_args!("{} <- {from} {length} bytes {hash:016x}", self.local));
                    meta[0] = RecvMeta {
                        addr: from,
                        len: length,
                        stride: length,
                        dst_ip: Some(self.local.ip()),
                        ..RecvMeta::default()
                    };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let socket = self.socket.clone();
                    *readable = Some(Box::pin(async move { socket.readable().await }));
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }

    fn may_fragment(&self) -> bool {
        false
    }
}
