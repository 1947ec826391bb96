//! Frames that are none: a typed error at the reader, and the connection goes on.

use bytes::Bytes;
use roost_protocol::error::ControlError;
use roost_protocol::frame::{FrameError, Kind, Prefix, encode_message};
use roost_protocol::ids::{Epoch, Term};
use roost_protocol::limits::CONTROL_REQUEST_BYTES_MAX;
use roost_protocol::messages::control::{ControlRequest, ControlResponse, Query};
use roost_protocol::quic::stream::{read_message, write_body};
use roost_protocol::quic::{Link, Role, Service, StreamError, finish, read_frame, write_message};
use tokio::sync::mpsc;

use crate::allocations::measure;
use crate::party::{Listener, dialler, within};

const HEARD: ControlResponse =
    ControlResponse::Heard { term: Term(1), epoch: Epoch { generation: 1, index: 7 } };

type Read = Result<ControlRequest, StreamError>;

/// Answers each request of a link with `Heard`, and hands on what it read.
fn answer(link: Link) -> mpsc::UnboundedReceiver<Read> {
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut send, mut recv)) = link.accept().await {
            let read: Read = read_message(&mut recv, Kind::ControlRequest).await;
            if read.is_ok() {
                // A stream that broke meanwhile shows at the asker.
                let _ = write_message(&mut send, Kind::ControlResponse, &HEARD).await;
                finish(&mut send);
            }
            let _ = sender.send(read);
        }
    });
    receiver
}

/// Whether the connection still carries requests.
async fn assert_works(link: &Link, reads: &mut mpsc::UnboundedReceiver<Read>) {
    let query = ControlRequest::Query(Query::Models);
    let heard: ControlResponse =
        link.ask((Kind::ControlRequest, &query), Kind::ControlResponse).await.expect("the connection works");
    assert_eq!(heard, HEARD);
    assert_eq!(reads.recv().await.expect("it was read").expect("it is a request"), query);
}

fn prefix(kind: u16, header_bytes: u32, body_bytes: u64) -> Vec<u8> {
    let mut bytes = b"Ro".to_vec();
    bytes.extend(kind.to_le_bytes());
    bytes.extend(header_bytes.to_le_bytes());
    bytes.extend(body_bytes.to_le_bytes());
    bytes
}

#[tokio::test]
async fn what_is_no_frame_is_an_error_and_the_connection_goes_on() {
    let mut node = Listener::start(&[Service::Control]).await;
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.unwrap();
    let mut reads = answer(node.link().await);
    let control = Kind::ControlRequest as u16;
    let (kind, max) = (Kind::ControlRequest, u64::from(CONTROL_REQUEST_BYTES_MAX));
    let too_large = |part, max, actual| FrameError::TooLarge { part, kind, max, actual };
    let good = encode_message(kind, &ControlRequest::Query(Query::Models)).unwrap();
    let rows = [
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), FrameError::Magic(*b"GE")),
        (prefix(9, 0, 0), FrameError::Kind(9)),
        (prefix(control, u32::MAX, 0), too_large("header", max, u64::from(u32::MAX))),
        (prefix(control, CONTROL_REQUEST_BYTES_MAX + 1, 0), too_large("header", max, max + 1)),
        (prefix(control, 0, 1), too_large("body", 0, 1)),
        (prefix(control, 0, u64::MAX), too_large("body", 0, u64::MAX)),
        (good[..Prefix::BYTES - 1].to_vec(), FrameError::Truncated),
        (good[..good.len() - 1].to_vec(), FrameError::Truncated),
        (
            encode_message(Kind::Hello, &0u8).unwrap(),
            FrameError::Unexpected { expected: kind, actual: Kind::Hello },
        ),
    ];
    for (bytes, expected) in rows {
        let (mut send, _recv) = link.open().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        finish(&mut send);
        match within("the error", reads.recv()).await.unwrap() {
            Err(StreamError::Frame(error)) => assert_eq!(error, expected),
            read => panic!("{expected}: {read:?}"),
        }
        assert_works(&link, &mut reads).await;
    }
}

#[tokio::test]
async fn a_header_that_is_no_message_is_an_error_and_the_connection_goes_on() {
    let mut node = Listener::start(&[Service::Control]).await;
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.unwrap();
    let mut reads = answer(node.link().await);
    let mut too_long = encode_message(Kind::ControlRequest, &ControlRequest::Query(Query::Models)).unwrap();
    too_long.push(0);
    too_long[4] += 1;
    for bytes in [encode_message(Kind::ControlRequest, &99u8).unwrap(), too_long] {
        let (mut send, _recv) = link.open().await.unwrap();
        send.write_all(&bytes).await.unwrap();
        let error = within("the error", reads.recv()).await.unwrap().unwrap_err();
        let header = |error: &StreamError| {
            matches!(error, StreamError::Frame(FrameError::Header { kind: Kind::ControlRequest, .. }))
        };
        assert!(header(&error), "{error}");
        assert!(matches!(error.into_control("a"), ControlError::Malformed { .. }));
        assert_works(&link, &mut reads).await;
    }
}

#[tokio::test]
async fn a_stream_that_ends_or_breaks_is_told_apart() {
    let mut node = Listener::start(&[Service::Control]).await;
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.unwrap();
    let mut reads = answer(node.link().await);
    let (mut send, _recv) = link.open().await.unwrap();
    finish(&mut send);
    assert!(matches!(within("the end", reads.recv()).await, Some(Err(StreamError::Ended))));
    assert_works(&link, &mut reads).await;
    let (mut send, _recv) = link.open().await.unwrap();
    send.write_all(b"Ro").await.unwrap();
    send.reset(quinn::VarInt::from_u32(1)).unwrap();
    assert!(matches!(within("the reset", reads.recv()).await, Some(Err(StreamError::Broken(_)))));
    assert_works(&link, &mut reads).await;
}

#[tokio::test]
async fn a_response_that_stops_half_way_is_asked_for_elsewhere() {
    let mut node = Listener::start(&[Service::Control]).await;
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.unwrap();
    let served = node.link().await;
    let response = encode_message(Kind::ControlResponse, &HEARD).unwrap();
    let query = ControlRequest::Query(Query::Models);
    for bytes in [0, 5, Prefix::BYTES, response.len() - 1] {
        let answer = async {
            let (mut send, _recv) = served.accept().await.unwrap();
            send.write_all(&response[..bytes]).await.unwrap();
            // Dropped, as in a process that dies: QUIC finishes the stream.
        };
        let ask = link.ask::<_, ControlResponse>((Kind::ControlRequest, &query), Kind::ControlResponse);
        let ((), asked) = within("the end", async { tokio::join!(answer, ask) }).await;
        let error = asked.unwrap_err();
        let infer = match &error {
            StreamError::Ended => StreamError::Ended,
            StreamError::Frame(FrameError::Truncated) => FrameError::Truncated.into(),
            error => panic!("{bytes} bytes: {error}"),
        };
        assert!(error.into_control("a").retryable() && infer.into_infer("a").retryable(), "{bytes} bytes");
    }
}

#[tokio::test]
async fn a_large_frame_arrives_whole() {
    let mut node = Listener::start(&[Service::Infer]).await;
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Infer).await.unwrap();
    let served = node.link().await;
    for bytes in [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9 << 20] {
        let body: Bytes = (0..bytes).map(|i: usize| (i / 253) as u8).collect::<Vec<_>>().into();
        let (mut send, _recv) = link.open().await.unwrap();
        let sent = body.clone();
        tokio::spawn(async move {
            write_body(&mut send, Kind::InferPart, sent).await.unwrap();
            finish(&mut send);
        });
        let (_send, mut recv) = within("the stream", served.accept()).await.unwrap();
        let frame = within("the frame", read_frame(&mut recv)).await.unwrap().unwrap();
        assert_eq!(frame.body(), body);
        assert!(read_frame(&mut recv).await.unwrap().is_none());
    }
}

#[test]
fn a_prefix_alone_takes_no_memory() {
    // On one thread, so that all that either side takes is counted.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (link, mut reads, _node) = runtime.block_on(async {
        let mut node = Listener::start(&[Service::Infer]).await;
        let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Infer).await.unwrap();
        let reads = answer(node.link().await);
        (link, reads, node)
    });
    let (_, body_bytes_max) = Kind::InferRequest.limits();
    let ((), taken) = measure(|| {
        runtime.block_on(async {
            let (mut send, _recv) = link.open().await.unwrap();
            send.write_all(&prefix(Kind::InferRequest as u16, 64, body_bytes_max)).await.unwrap();
            send.write_all(&[0; 1000]).await.unwrap();
            finish(&mut send);
            let read = within("the error", reads.recv()).await.unwrap();
            assert!(matches!(read, Err(StreamError::Frame(FrameError::Truncated))), "{read:?}");
        });
    });
    assert!(taken.bytes_peak < 4 << 20, "{taken:?} for a claim of {body_bytes_max} bytes");
}
