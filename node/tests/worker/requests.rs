//! What the worker says to requests that it does not run.

use roost_protocol::frame::{Kind, Prefix};
use roost_protocol::messages::infer::{Choice, InferHeader, Named};
use roost_protocol::quic::{Link, Role, finish};
use roost_protocol::traffic::{Canary, KeyHash, Weight};
use roost_protocol::{InferError, Revision, Tensor, Version};

use crate::exchange::{ask, gather, header, named, receive, x};
use crate::world::{Files, ME, Start, World, change};

async fn two_versions() -> (World, Link) {
    let versions = [("doubles@1", Files::doubles()), ("doubles@2", Files::doubles())];
    let world = Start::with(&versions).await.ready().await;
    let link = world.link(&[Role::Client]).await;
    (world, link)
}

fn split(version: &str, revision: u64) -> InferHeader {
    InferHeader { choice: Choice::Split as u8, revision, ..header(version) }
}

#[tokio::test]
async fn an_answer_says_where_it_comes_from() {
    let (world, link) = two_versions().await;
    let response = ask(&link, header("doubles@2"), &x(&[1.0, 2.0])).await;
    let from = response.header.as_ref().unwrap();
    assert_eq!(from.epoch(), world.view().epoch);
    assert_eq!((from.version, from.node, from.revision), (2, ME.0, 1));
    assert_eq!(response.f32s("y"), [2.0, 4.0]);
    assert_eq!((response.trailer.batch_rows, response.trailer.in_flight), (1, 0));
}

#[tokio::test]
async fn what_is_not_hosted_is_not_here() {
    let (world, link) = two_versions().await;
    let epoch = world.view().epoch;
    for (asked, model, version) in [("doubles@3", "doubles", 3), ("halves@1", "halves", 1)] {
        let response = ask(&link, header(asked), &x(&[1.0, 2.0])).await;
        let (generation, index) = (epoch.generation, epoch.index);
        let expected = InferError::NotHere { model: model.to_owned(), version, generation, index };
        assert_eq!(response.error(), &expected);
        assert!(response.header.is_none());
    }
}

#[tokio::test]
async fn a_request_by_an_older_traffic_is_told_so_when_that_matters() {
    let (world, link) = two_versions().await;
    let mut view = world.view();
    change(&mut view, "doubles", |model| {
        model.traffic.revision = Revision(5);
        model.traffic.canary = Some(Canary { version: Version(2), weight: Weight::ALL });
    });
    world.publish(view);
    let values = x(&[1.0, 2.0]);
    let stale = ask(&link, split("doubles@1", 4), &values).await;
    let expected = InferError::StaleView { model: "doubles".to_owned(), used: 4, newest: 5, generation: 1 };
    assert_eq!(stale.error(), &expected);
    // The same version either way, a request that was not split, one that is as new or newer, and one by the traffic that a
    // restore took back, which this node has not heard of.
    let restored = InferHeader { generation: 2, ..split("doubles@1", 4) };
    let others = [split("doubles@2", 4), header("doubles@1"), split("doubles@1", 5), split("doubles@1", 6)];
    for header in others.into_iter().chain([restored]) {
        assert_eq!(ask(&link, header, &values).await.f32s("y"), [2.0, 4.0]);
    }
    let fallback = InferHeader { choice: Choice::Fallback as u8, ..split("doubles@1", 4) };
    let key_hash = KeyHash::of(b"anna").0;
    ask(&link, InferHeader { key_hash, ..fallback }, &values).await.f32s("y");
    let statistics = world.worker.statistics();
    let counted = statistics.iter().map(|s| (s.version.to_string(), s.answered, s.fallbacks));
    let expected = [("doubles@1".to_owned(), 5, 1), ("doubles@2".to_owned(), 1, 0)];
    assert_eq!(counted.collect::<Vec<_>>(), expected);
}

#[tokio::test]
async fn what_does_not_fit_is_told() {
    let (_world, link) = two_versions().await;
    let check = async |outputs: &[&str], inputs: Vec<Named<Tensor>>, expected: &str| {
        let outputs = outputs.iter().map(|output| (*output).to_owned()).collect();
        let header = InferHeader { outputs, ..header("doubles@1") };
        let response = ask(&link, header, &inputs).await;
        assert_eq!(response.error().to_string(), expected);
        assert!(!response.error().retryable());
    };
    let tensor = |dims: &[u64]| {
        Tensor::from_elements(dims, vec![1f32; dims.iter().product::<u64>() as usize]).unwrap()
    };
    check(&[], Vec::new(), r#"doubles@1 needs an input "x""#).await;
    let z = vec![named("z", tensor(&[1, 2]))];
    check(&[], z, r#"doubles@1 has no input "z"; its inputs are ["x"]"#).await;
    let twice = vec![named("x", tensor(&[1, 2])), named("x", tensor(&[1, 2]))];
    check(&[], twice, r#"the input "x" was given twice"#).await;
    let integers = vec![named("x", Tensor::from_elements(&[1, 2], vec![1i64, 2]).unwrap())];
    check(&[], integers, r#"input "x" is of f32, i64 came"#).await;
    let wide = vec![named("x", tensor(&[1, 3]))];
    check(&[], wide, r#"input "x" has the shape [N, 2], [1, 3] came"#).await;
    let many = vec![named("x", tensor(&[1025, 2]))];
    check(&[], many, "rows of a request to doubles@1 may be 1024 at most, it is 1025").await;
    let unknown = r#"doubles@1 has no output "z"; its outputs are ["y", "sum"]"#;
    check(&["y", "z"], x(&[1.0, 1.0]), unknown).await;
}

#[tokio::test]
async fn only_a_gateway_may_state_a_tenant() {
    let (world, client) = two_versions().await;
    let gateway = world.link(&[Role::Gateway]).await;
    let stated = || InferHeader { tenant: Some("bert".to_owned()), ..header("doubles@1") };
    let refused = ask(&client, stated(), &x(&[1.0, 2.0])).await;
    assert_eq!(refused.error(), &InferError::Forbidden { needed: "gateway".to_owned() });
    assert_eq!(ask(&gateway, stated(), &x(&[1.0, 2.0])).await.f32s("y"), [2.0, 4.0]);
}

#[tokio::test]
async fn what_is_no_request_is_told_and_the_link_goes_on() {
    let (_world, link) = two_versions().await;
    let answer = async |bytes: &[u8]| {
        let (mut send, mut recv) = link.open().await.unwrap();
        // It may be refused before it is written.
        let _ = send.write_all(bytes).await;
        finish(&mut send);
        receive(&mut recv).await.error().clone()
    };
    assert!(matches!(answer(b"GET / HTTP/1.1\r\n").await, InferError::Malformed { .. }));
    let prefix = Prefix { kind: Kind::InferRequest, header_bytes: u32::MAX, body_bytes: 0 };
    let too_large = answer(&prefix.encode()).await;
    assert!(matches!(too_large, InferError::LimitExceeded { .. }), "{too_large}");
    let truncated = answer(&Prefix { header_bytes: 100, ..prefix }.encode()).await;
    assert!(matches!(truncated, InferError::Malformed { .. }), "{truncated}");
    let garbage = [&Prefix { header_bytes: 8, ..prefix }.encode()[..], &[0xff; 8]].concat();
    assert!(matches!(answer(&garbage).await, InferError::Malformed { .. }));
    let other = Prefix { kind: Kind::Hello, header_bytes: 0, body_bytes: 0 };
    assert!(matches!(answer(&other.encode()).await, InferError::Malformed { .. }));
    let unknown = InferHeader { choice: 9, ..header("doubles@1") };
    let error = ask(&link, unknown, &x(&[1.0, 2.0])).await.error().clone();
    assert_eq!(error, InferError::Unsupported { field: "choice".to_owned(), code: 9 });
    assert_eq!(ask(&link, header("doubles@1"), &x(&[1.0, 2.0])).await.f32s("y"), [2.0, 4.0]);
}

#[tokio::test]
async fn a_worker_that_stops_refuses_and_answers_what_it_has() {
    let (world, link) = two_versions().await;
    world.script.set_open(false);
    let running = world.handle.infer(&header("doubles@1"), x(&[1.0, 2.0]));
    world.script.until(|seen| seen.runs.len() == 3).await;
    let handle = world.handle.clone();
    let stopping = tokio::spawn(world.worker.stop());
    let refused = loop {
        let response = gather(handle.infer(&header("doubles@2"), x(&[1.0, 2.0])));
        tokio::select! {
            response = response => break response,
            // It has not stopped taking requests yet, and this one waits behind the gate.
            () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
        }
    };
    assert_eq!(refused.error(), &InferError::Stopping);
    assert_eq!(ask(&link, header("doubles@1"), &x(&[1.0, 2.0])).await.error(), &InferError::Stopping);
    world.script.set_open(true);
    assert_eq!(gather(running).await.f32s("y"), [2.0, 4.0]);
    stopping.await.unwrap();
}
