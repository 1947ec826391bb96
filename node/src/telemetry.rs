//! Spans and logs: text on standard error, and OTLP over HTTP where the config names a collector.
//!
//! [`init`] is for `main` alone, because a subscriber is global to the process; everything else only makes
//! spans. [`adopt`] takes the W3C context from a request's header into its span; the client puts it there.

#[cfg(feature = "otlp")]
mod otlp;

use roost_protocol::trace::TraceContext;
use serde::Deserialize;
use tracing::Span;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

/// The section `[telemetry]` of a config.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TelemetryConfig {
    /// What is logged and traced, as a filter directive of `tracing-subscriber`: `info`, or
    /// `info,roost_node::worker=debug`. Default `info,openraft=warn`. `debug` costs microseconds per request.
    pub log: String,
    /// The collector that spans go to by OTLP over HTTP, such as `http://localhost:4318`. Default: none.
    /// Which share of the requests is traced is `OTEL_TRACES_SAMPLER`'s to say, by default all that the
    /// caller did not exclude.
    pub otlp_endpoint: Option<String>,
}

impl Default for TelemetryConfig {
    fn default() -> Self {
        Self { log: "info,openraft=warn".to_owned(), otlp_endpoint: None }
    }
}

/// Why telemetry did not start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is none.
    #[error("telemetry.log is {directive:?}, which is no filter: {source}")]
    Filter {
        /// What the config says.
        directive: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// The process has a subscriber already.
    #[error("this process logs elsewhere already: {0}")]
    Subscriber(#[from] TryInitError),
    /// The collector's address is of another form.
    #[error(
        "telemetry.otlp_endpoint is {endpoint:?}; it must be an http:// address such as http://localhost:4318 (for a \
         collector behind TLS, run one beside the node that forwards)"
    )]
    Endpoint {
        /// What the config says.
        endpoint: String,
    },
    /// The exporter could not be made.
    #[error("the export of spans to {endpoint} cannot start: {reason}")]
    Exporter {
        /// The collector.
        endpoint: String,
        /// Why not.
        reason: String,
    },
    /// This build has no exporter.
    #[error(
        "telemetry.otlp_endpoint is set, but this roost-node was built without the feature otlp; build it with \
         --features otlp, or leave the key out"
    )]
    NotBuilt,
}

/// Keeps telemetry running. Dropping it sends what is left.
#[derive(Debug)]
#[must_use = "spans are lost when it is dropped early"]
pub struct TelemetryGuard {
    #[cfg(feature = "otlp")]
    _export: Option<otlp::Export>,
}

/// Installs the process's subscriber. `service` and `node` name the process to the collector.
///
/// # Errors
/// [`TelemetryError`] when the config is wrong, or the process has a subscriber already.
pub fn init(config: &TelemetryConfig, service: &str, node: &str) -> Result<TelemetryGuard, TelemetryError> {
    let filter = EnvFilter::try_new(&config.log)
        .map_err(|source| TelemetryError::Filter { directive: config.log.clone(), source })?;
    let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let subscriber = tracing_subscriber::registry().with(filter).with(text);
    #[cfg(feature = "otlp")]
    {
        let export = config.otlp_endpoint.as_deref();
        let export = export.map(|endpoint| otlp::Export::start(endpoint, service, node)).transpose()?;
        subscriber.with(export.as_ref().map(otlp::Export::layer)).try_init()?;
        Ok(TelemetryGuard { _export: export })
    }
    #[cfg(not(feature = "otlp"))]
    {
        let _ = (service, node);
        if config.otlp_endpoint.is_some() {
            return Err(TelemetryError::NotBuilt);
        }
        subscriber.try_init()?;
        Ok(TelemetryGuard {})
    }
}

/// Makes a request's trace context the parent of a span. Call it before the span is first entered. Nothing
/// happens when spans are not exported.
pub fn adopt(span: &Span, trace: Option<TraceContext>) {
    #[cfg(feature = "otlp")]
    if let Some(trace) = trace {
        otlp::adopt(span, trace);
    }
    #[cfg(not(feature = "otlp"))]
    let _ = (span, trace);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_has_defaults_and_no_unknown_keys() {
        assert_eq!(toml::from_str::<TelemetryConfig>("").unwrap(), TelemetryConfig::default());
        let config: TelemetryConfig = toml::from_str("otlp_endpoint = \"http://localhost:4318\"").unwrap();
        assert_eq!(
            (config.log.as_str(), config.otlp_endpoint.as_deref()),
            ("info,openraft=warn", Some("http://localhost:4318"))
        );
        toml::from_str::<TelemetryConfig>("otlp = \"http://localhost:4318\"").unwrap_err();
    }

    #[test]
    fn a_bad_config_does_not_start() {
        let check = |log: &str, endpoint: Option<&str>, expected: &str| {
            let config = TelemetryConfig { log: log.to_owned(), otlp_endpoint: endpoint.map(str::to_owned) };
            let error = init(&config, "roost-node", "a").unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("roost=loud", None, "telemetry.log is \"roost=loud\"");
        let endpoint =
            if cfg!(feature = "otlp") { "http://localhost:4318" } else { "without the feature otlp" };
        check("info", Some("https://collector:4318"), endpoint);
        check("info", Some("localhost:4318"), endpoint);
    }

    #[cfg(feature = "otlp")]
    #[test]
    fn without_export_a_span_has_no_context() {
        let trace = TraceContext { trace_id: [1; 16], parent_id: [2; 8], flags: 1 };
        let subscriber = tracing_subscriber::registry();
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("infer");
            adopt(&span, Some(trace));
            assert_eq!(roost_client::trace::of(&span), None);
        });
    }
}
