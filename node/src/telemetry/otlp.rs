//! Export of spans by OTLP over HTTP.
//!
//! A thread of its own gathers ended spans and posts them in batches; a full queue drops spans rather than
//! slowing requests down. Without TLS: the collector is meant to stand beside the node.

use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use roost_protocol::trace::TraceContext;
use tracing::{Metadata, Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use super::TelemetryError;

/// Where a collector takes spans, in the OTLP specification.
const PATH: &str = "/v1/traces";

/// What the exporter itself is made of: its spans are not exported, or each export would lead to the next.
const EXPORTER_CRATES: [&str; 4] = ["hyper", "opentelemetry", "reqwest", "tower"];

/// An export that runs. Dropping it sends what is left and waits for that, a few seconds at most.
#[derive(Debug)]
pub struct Export {
    provider: SdkTracerProvider,
}

impl Export {
    /// Starts an export. No connection is made yet: a collector that is down costs spans, not the node.
    ///
    /// # Errors
    /// [`TelemetryError::Endpoint`] or [`TelemetryError::Exporter`].
    pub fn start(endpoint: &str, service: &str, node: &str) -> Result<Self, TelemetryError> {
        // The exporter's client wants one as soon as another part of the build gives it TLS, although it never uses it. An
        // earlier one is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let exporter =
            SpanExporter::builder().with_http().with_endpoint(traces_url(endpoint)?).build().map_err(
                |error| TelemetryError::Exporter { endpoint: endpoint.to_owned(), reason: error.to_string() },
            )?;
        let instance = KeyValue::new("service.instance.id", node.to_owned());
        let resource =
            Resource::builder().with_service_name(service.to_owned()).with_attribute(instance).build();
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        Ok(Self { provider })
    }

    /// The layer that hands spans to the export.
    pub fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let layer = tracing_opentelemetry::layer().with_tracer(self.provider.tracer("roost"));
        layer.with_filter(filter_fn(|metadata: &Metadata<'_>| !is_exporters(metadata.target())))
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last spans were not exported");
        }
    }
}

/// The address that spans are posted to.
fn traces_url(endpoint: &str) -> Result<String, TelemetryError> {
    let base = endpoint.trim_end_matches('/');
    let host = base.strip_prefix("http://").unwrap_or_default();
    if host.is_empty() || host.starts_with('/') {
        return Err(TelemetryError::Endpoint { endpoint: endpoint.to_owned() });
    }
    Ok(if base.ends_with(PATH) { base.to_owned() } else { format!("{base}{PATH}") })
}

fn is_exporters(target: &str) -> bool {
    EXPORTER_CRATES.iter().any(|name| target.starts_with(name))
}

/// See [`super::adopt`].
pub fn adopt(span: &Span, trace: TraceContext) {
    let TraceContext { trace_id, parent_id, flags } = trace;
    let remote = SpanContext::new(
        TraceId::from_bytes(trace_id),
        SpanId::from_bytes(parent_id),
        TraceFlags::new(flags),
        true,
        TraceState::default(),
    );
    // It fails where there is no export, or the span is filtered out: then nobody misses the parent.
    let _ = span.set_parent(Context::new().with_remote_span_context(remote));
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use roost_client::trace::of as current;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// Far above what a post on loopback takes: it only keeps a broken export from hanging the test.
    const HANGS: Duration = Duration::from_secs(20);

    const TRACE: TraceContext =
        TraceContext { trace_id: *b"the trace of all", parent_id: *b"a caller", flags: 1 };

    #[test]
    fn urls_are_completed_and_checked() {
        let check = |endpoint: &str, expected: Option<&str>| {
            assert_eq!(traces_url(endpoint).ok().as_deref(), expected, "{endpoint}");
        };
        check("http://localhost:4318", Some("http://localhost:4318/v1/traces"));
        check("http://localhost:4318/", Some("http://localhost:4318/v1/traces"));
        check("http://host/otlp/v1/traces", Some("http://host/otlp/v1/traces"));
        for endpoint in ["", "localhost:4318", "https://host", "http://", "http:///v1/traces"] {
            check(endpoint, None);
        }
    }

    #[test]
    fn a_remote_context_becomes_the_parent_and_goes_on() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let span = tracing::info_span!("infer");
            super::super::adopt(&span, Some(TRACE));
            let outer = current(&span).unwrap();
            let inner = span.in_scope(|| current(&tracing::info_span!("batch")).unwrap());
            assert_eq!((outer.trace_id, inner.trace_id), (TRACE.trace_id, TRACE.trace_id));
            assert_eq!((outer.flags, inner.flags), (1, 1));
            assert!(outer.parent_id != TRACE.parent_id && inner.parent_id != outer.parent_id);

            let other = current(&tracing::info_span!("infer")).unwrap();
            assert_ne!(other.trace_id, TRACE.trace_id);
        });
    }

    /// In a task, where the exporter's blocking client could not be made or dropped without care.
    #[tokio::test]
    async fn spans_reach_a_collector() {
        let collector = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", collector.local_addr().unwrap());
        let posted = std::thread::spawn(move || receive_post(collector.accept().unwrap().0));

        let export = Export::start(&endpoint, "roost-node", "node-a").unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(export.layer()), || {
            let span = tracing::info_span!("infer");
            adopt(&span, TRACE);
            span.in_scope(|| tracing::info!(target: "hyper::client", "not exported"));
            drop(tracing::info_span!(target: "hyper_util::pool", "of the exporter"));
        });
        drop(export);

        let (request, body) = posted.join().unwrap();
        assert_eq!(request, "POST /v1/traces HTTP/1.1");
        let has = |bytes: &[u8]| body.windows(bytes.len()).any(|window| window == bytes);
        for bytes in [&b"roost-node"[..], b"node-a", b"infer", &TRACE.trace_id, &TRACE.parent_id] {
            assert!(has(bytes), "{:?}", String::from_utf8_lossy(bytes));
        }
        assert!(!has(b"of the exporter") && !has(b"not exported"));
    }

    /// Reads one request, answers it, and gives its first line and its body.
    fn receive_post(mut stream: TcpStream) -> (String, Vec<u8>) {
        stream.set_read_timeout(Some(HANGS)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let request = line();
        let mut length = 0;
        loop {
            let header = line().to_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        (request, body)
    }
}
