//! The W3C trace context that a request carries from client to engine.
//!
//! <https://www.w3.org/TR/trace-context/>, version 00: sixteen bytes of trace, eight of the parent span, one of flags.

use rkyv::{Archive, Deserialize, Serialize};

/// The identity of a request's trace, as in the `traceparent` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct TraceContext {
    /// The trace that the request belongs to.
    pub trace_id: [u8; 16],
    /// The span that sent it.
    pub parent_id: [u8; 8],
    /// Bit 0: sampled.
    pub flags: u8,
}

impl TraceContext {
    /// Reads a `traceparent` header of version 00. `None` when it is not one, or when an id is zero (§3.2.2).
    pub fn parse(header: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        if version != "00" || parts.next().is_some() {
            return None;
        }
        let mut context = Self { trace_id: [0; 16], parent_id: [0; 8], flags: 0 };
        hex::decode_to_slice(trace, &mut context.trace_id).ok()?;
        hex::decode_to_slice(parent, &mut context.parent_id).ok()?;
        hex::decode_to_slice(flags, std::slice::from_mut(&mut context.flags)).ok()?;
        (context.trace_id != [0; 16] && context.parent_id != [0; 8]).then_some(context)
    }

    /// The `traceparent` header.
    pub fn to_header(self) -> String {
        format!("00-{}-{}-{:02x}", hex::encode(self.trace_id), hex::encode(self.parent_id), self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let header = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        assert_eq!(TraceContext::parse(header).unwrap().to_header(), header);
    }

    #[test]
    fn invalid_headers_are_none() {
        for header in ["", "00", "01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "00-00-00-00"] {
            assert_eq!(TraceContext::parse(header), None);
        }
        let zero = "00-00000000000000000000000000000000-b7ad6b7169203331-01";
        assert_eq!(TraceContext::parse(zero), None);
    }
}
