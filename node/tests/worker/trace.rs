//! One trace from the caller's span over the wire to the worker's spans.

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};
use roost_client::client::ClientParts;
use roost_client::{Client, Control, QuicDispatch};
use roost_protocol::quic::Role;
use tokio::sync::watch;
use tracing::Instrument;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::exchange::x;
use crate::script::PATIENCE;
use crate::world::{Files, ME, Start, World, dialler};

/// Keeps the spans that ended.
#[derive(Debug, Clone, Default)]
struct Ended(Arc<watch::Sender<Vec<SpanData>>>);

impl SpanExporter for Ended {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.0.send_modify(|ended| ended.extend(batch));
        Ok(())
    }
}

impl Ended {
    /// The spans of a trace, as soon as there are so many.
    async fn of(&self, trace: TraceId, count: usize) -> Vec<SpanData> {
        let is_of = |span: &&SpanData| span.span_context.trace_id() == trace;
        let mut ended = self.0.subscribe();
        let enough = ended.wait_for(|ended| ended.iter().filter(is_of).count() >= count);
        let found = tokio::time::timeout(PATIENCE, enough).await.map(|ended| ended.unwrap().clone());
        let all = found.unwrap_or_else(|_| panic!("never ended: {:#?}", self.0.borrow()));
        all.into_iter().filter(|span| is_of(&span)).collect()
    }
}

/// The only span of that name below another.
fn below<'a>(spans: &'a [SpanData], name: &str, parent: SpanId) -> &'a SpanData {
    let mut found = spans.iter().filter(|span| span.name == name && span.parent_span_id == parent);
    match (found.next(), found.next()) {
        (Some(span), None) => span,
        _ => panic!("not one {name} below {parent}: {spans:#?}"),
    }
}

/// A client that follows what the worker follows.
async fn client_of(world: &World) -> Client {
    let mut view = world.view();
    view.nodes.get_mut(&ME).unwrap().address.clone_from(&world.address);
    world.publish(view);
    let (dialler, published) = (dialler(&[Role::Client]).await, world.published.subscribe());
    let control = Control::new(dialler.clone(), published.clone(), Vec::new(), [1; 32]);
    let (dispatch, deadline) = (Arc::new(QuicDispatch::new(dialler)), Duration::from_secs(30));
    Client::from_parts(ClientParts { published, follower: None, dispatch, control, deadline, seed: [2; 32] })
}

#[tokio::test]
async fn a_request_is_one_trace_from_its_caller_to_the_engine() {
    let ended = Ended::default();
    let provider = SdkTracerProvider::builder().with_simple_exporter(ended.clone()).build();
    // Timers and sockets have spans of their own in a build with tokio's.
    let ours =
        filter_fn(|metadata| ["roost", "worker"].iter().any(|name| metadata.target().starts_with(name)));
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test")).with_filter(ours);
    // For the whole process, since executors have threads of their own. The other tests here have none.
    tracing_subscriber::registry().with(layer).init();

    let world = Start::with(&[("doubles@1", Files::doubles())]).await.ready().await;
    let client = client_of(&world).await;
    let caller = tracing::info_span!("caller");
    let context = roost_client::trace::of(&caller).unwrap();
    let values = x(&[1.0, 2.0]).remove(0).tensor;
    let asked = client.infer("doubles").input("x", values).send().instrument(caller.clone());
    asked.await.unwrap();
    drop(caller);

    let spans = ended.of(TraceId::from_bytes(context.trace_id), 5).await;
    let id = |span: &SpanData| span.span_context.span_id();
    let caller = below(&spans, "caller", SpanId::INVALID);
    assert_eq!(id(caller), SpanId::from_bytes(context.parent_id));
    let at_client = below(&spans, "infer", id(caller));
    let at_worker = below(&spans, "infer", id(at_client));
    assert!(at_worker.parent_span_is_remote && !at_client.parent_span_is_remote);
    let (queue, compute) = (below(&spans, "queue", id(at_worker)), below(&spans, "compute", id(at_worker)));
    assert!(queue.end_time <= compute.start_time.max(compute.end_time));
    assert_eq!(spans.len(), 5);
}
