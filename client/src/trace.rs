//! The W3C trace context of a span.

use roost_protocol::trace::TraceContext;
use tracing::Span;

/// The context of a span that OpenTelemetry records.
#[cfg(feature = "opentelemetry")]
pub fn of(span: &Span) -> Option<TraceContext> {
    use opentelemetry::trace::TraceContextExt as _;
    use tracing_opentelemetry::OpenTelemetrySpanExt as _;
    let context = span.context();
    let span = context.span();
    let span = span.span_context();
    span.is_valid().then(|| TraceContext {
        trace_id: span.trace_id().to_bytes(),
        parent_id: span.span_id().to_bytes(),
        flags: span.trace_flags().to_u8(),
    })
}

/// Without OpenTelemetry spans have no context.
#[cfg(not(feature = "opentelemetry"))]
pub(crate) fn of(_: &Span) -> Option<TraceContext> {
    None
}

#[cfg(all(test, feature = "opentelemetry"))]
mod tests {
    use opentelemetry::trace::TracerProvider as _;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[test]
    fn a_recorded_span_is_the_parent_of_what_is_asked() {
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let outer = tracing::info_span!("outer");
            let inner = outer.in_scope(|| tracing::info_span!("inner"));
            let (outer, inner) = (of(&outer).unwrap(), of(&inner).unwrap());
            assert_eq!(outer.trace_id, inner.trace_id);
            assert_ne!(outer.parent_id, inner.parent_id);
            assert_eq!(TraceContext::parse(&inner.to_header()), Some(inner));
        });
        assert_eq!(of(&tracing::info_span!("unrecorded")), None);
    }
}
