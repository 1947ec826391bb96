//! What is written reads back.

use bytes::Bytes;
use proptest::prelude::*;
use roost_protocol::error::InferError;
use roost_protocol::frame::{ALIGNMENT, Frame, Kind, encode_message};
use roost_protocol::ids::{Digest, Epoch, Incarnation, NodeId, Revision, Target, Term, Version};
use roost_protocol::messages::control::SoftUpdate;
use roost_protocol::messages::infer::{
    InferHeader, InferRequest, Named, PartHeader, ResponseHeader, Trailer, lay_out, read_part,
    read_response_header, read_trailer,
};
use roost_protocol::quic::{PeerIdentity, Role};
use roost_protocol::tensor::{DType, Element, Shape, Tensor};
use roost_protocol::trace::TraceContext;
use roost_protocol::traffic::Weight;
use roost_protocol::view::{Liveness, NodeReport, SoftState, View};

use crate::messages::infer::frame;
use crate::messages::state;

fn dtype() -> impl Strategy<Value = DType> {
    prop::sample::select(DType::ALL.to_vec())
}

/// A tensor of any type and of up to 8 dimensions, empty ones among them.
fn tensor() -> impl Strategy<Value = Tensor> {
    (dtype(), prop::collection::vec(0..4u64, 0..5), prop::collection::vec(1..2u64, 0..4)).prop_flat_map(
        |(dtype, mut dims, ones)| {
            dims.extend(ones);
            let count = dims.iter().product::<u64>() as usize;
            let bytes = count * dtype.element_bytes().unwrap_or(0);
            let texts = if dtype == DType::String { count } else { 0 };
            let values = if dtype == DType::Bool { 0..=1u8 } else { 0..=u8::MAX };
            (
                Just((dtype, dims)),
                prop::collection::vec(values, bytes),
                prop::collection::vec("\\PC{0,6}", texts),
            )
                .prop_map(|((dtype, dims), bytes, texts)| match dtype {
                    DType::String => {
                        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                        Tensor::from_strings(&dims, &texts).expect("as many texts as elements")
                    }
                    _ => {
                        let shape = Shape::new(&dims).expect("rank 8 at most");
                        Tensor::new(dtype, shape, bytes.into()).expect("as many bytes as elements")
                    }
                })
        },
    )
}

fn tensors() -> impl Strategy<Value = Vec<Named<Tensor>>> {
    let named = ("\\PC{0,20}", tensor()).prop_map(|(name, tensor)| Named { name, tensor });
    prop::collection::vec(named, 0..6)
}

fn trace() -> impl Strategy<Value = TraceContext> {
    let nonzero = |id: &[u8]| id.iter().any(|byte| *byte != 0);
    (any::<[u8; 16]>(), any::<[u8; 8]>(), any::<u8>())
        .prop_filter("ids are not zero", move |(trace, parent, _)| nonzero(trace) && nonzero(parent))
        .prop_map(|(trace_id, parent_id, flags)| TraceContext { trace_id, parent_id, flags })
}

fn header() -> impl Strategy<Value = InferHeader> {
    let who =
        (any::<[u8; 16]>(), any::<u8>(), prop::option::of("\\PC{0,30}"), prop::option::of(any::<u64>()));
    let when = (any::<u64>(), any::<u8>(), prop::option::of(trace()));
    let what = ("\\PC{0,30}", any::<u32>(), any::<u64>(), 0..3u8, 0..2u8, any::<u64>(), any::<u32>());
    (who, when, what, prop::collection::vec("\\PC{0,30}", 0..4)).prop_map(|(who, when, what, outputs)| {
        InferHeader {
            request: who.0,
            attempt: who.1,
            deadline_us: when.0,
            priority: when.1,
            tenant: who.2,
            sequence: who.3,
            trace: when.2,
            response_mode: what.4,
            model: what.0,
            version: what.1,
            revision: what.2,
            generation: what.6,
            choice: what.3,
            key_hash: what.5,
            tensors: vec![],
            outputs,
        }
    })
}

fn name() -> impl Strategy<Value = String> {
    "[a-z0-9][a-z0-9._-]{0,62}"
}

fn report() -> impl Strategy<Value = NodeReport> {
    (any::<u64>(), any::<u64>(), any::<bool>(), 0..8usize).prop_map(
        |(incarnation, sequence, live, versions)| NodeReport {
            incarnation: Incarnation(incarnation),
            sequence,
            liveness: if live { Liveness::Live } else { Liveness::Suspect },
            versions: state::version_reports().into_iter().take(versions).collect(),
        },
    )
}

fn soft() -> impl Strategy<Value = SoftState> {
    let nodes = prop::collection::btree_map((0..6u64).prop_map(NodeId), report(), 0..6);
    (any::<u64>(), any::<u64>(), any::<bool>(), nodes)
        .prop_map(|(term, sequence, settled, nodes)| SoftState { term: Term(term), sequence, settled, nodes })
}

/// The sample view without some of its parts.
fn view() -> impl Strategy<Value = View> {
    (any::<u64>(), any::<u8>()).prop_map(|(index, kept)| {
        let mut view = state::view(index);
        let mut bits = (0..8).map(|bit| kept & (1 << bit) != 0);
        view.coordinators.retain(|_, _| bits.next().unwrap_or(true));
        view.nodes.retain(|_, _| bits.next().unwrap_or(true));
        view.models.retain(|_, _| bits.next().unwrap_or(true));
        view
    })
}

/// Reads the elements as `T` when the tensor holds them: tensors from a frame are aligned for every type.
fn elements_as<T: Element>(tensor: &Tensor) {
    if tensor.dtype() == T::DTYPE {
        let elements = tensor.elements::<T>().expect("a tensor from a frame is aligned");
        assert_eq!(bytemuck::cast_slice::<T, u8>(elements), &tensor.bytes()[..]);
    }
}

fn all_elements(tensor: &Tensor) {
    elements_as::<half::f16>(tensor);
    elements_as::<half::bf16>(tensor);
    elements_as::<f32>(tensor);
    elements_as::<f64>(tensor);
    elements_as::<i8>(tensor);
    elements_as::<i16>(tensor);
    elements_as::<i32>(tensor);
    elements_as::<i64>(tensor);
    elements_as::<u8>(tensor);
    elements_as::<u16>(tensor);
    elements_as::<u32>(tensor);
    elements_as::<u64>(tensor);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn requests_read_back(mut header in header(), tensors in tensors()) {
        let (headers, pieces) = lay_out(&tensors).unwrap();
        header.tensors = headers;
        let frame = Frame::parse(&frame(Kind::InferRequest, &header, &pieces)).unwrap();
        prop_assert_eq!(frame.body().as_ptr() as usize % if frame.body().is_empty() { 1 } else { ALIGNMENT }, 0);
        let request = InferRequest::read(&frame).unwrap();
        let read = rkyv::deserialize::<InferHeader, rkyv::rancor::Error>(request.header()).unwrap();
        prop_assert_eq!(&read, &header);
        prop_assert_eq!(request.trace(), header.trace);
        let views: Vec<_> = request.tensors().collect::<Result<_, _>>().unwrap();
        prop_assert_eq!(views.len(), tensors.len());
        for ((name, view), named) in views.into_iter().zip(&tensors) {
            prop_assert_eq!((name, view), (named.name.as_str(), named.tensor.view()));
        }
    }

    #[test]
    fn parts_read_back_aligned(tensors in tensors()) {
        let (headers, pieces) = lay_out(&tensors).unwrap();
        let bytes = frame(Kind::InferPart, &PartHeader { tensors: headers }, &pieces);
        let read = read_part(&Frame::parse(&bytes).unwrap()).unwrap();
        prop_assert_eq!(&read, &tensors);
        read.iter().for_each(|named| all_elements(&named.tensor));
    }

    #[test]
    fn response_headers_and_trailers_read_back(
        numbers in any::<(u32, u64, u64, u32, u64)>(),
        reason in prop::option::of("\\PC{0,80}"),
        hosted in prop::collection::vec(any::<u32>(), 0..8),
    ) {
        let (generation, index, revision, version, node) = numbers;
        let epoch = Epoch { generation, index };
        let header = ResponseHeader::new(epoch, Revision(revision), Version(version), NodeId(node));
        let bytes = frame(Kind::InferHeader, &header, &[]);
        prop_assert_eq!(read_response_header(&Frame::parse(&bytes).unwrap()).unwrap(), header);
        let error = reason.map(|model| InferError::UnknownVersion { model, version, hosted });
        let trailer = Trailer {
            error,
            queue_us: index,
            compute_us: revision,
            batch_rows: generation,
            in_flight: version,
        };
        let bytes = frame(Kind::InferTrailer, &trailer, &[]);
        prop_assert_eq!(read_trailer(&Frame::parse(&bytes).unwrap()).unwrap(), trailer);
    }

    #[test]
    fn bodies_come_through(body in prop::collection::vec(any::<u8>(), 0..2000)) {
        let header = PartHeader { tensors: vec![] };
        let frame = Frame::parse(&frame(Kind::InferPart, &header, &[Bytes::from(body.clone())])).unwrap();
        prop_assert_eq!(frame.body(), &body[..]);
        prop_assert_eq!(&frame.body_bytes()[..], &body[..]);
    }

    #[test]
    fn deltas_lead_from_any_view_to_any_other(base in view(), next in view()) {
        let bytes = encode_message(Kind::WatchUpdate, &next.delta_from(&base)).unwrap();
        let delta = Frame::parse(&bytes).unwrap().message().unwrap();
        let mut moved = base;
        moved.apply(delta).unwrap();
        prop_assert_eq!(moved, next);
    }

    #[test]
    fn soft_updates_lead_from_any_state_to_any_other(base in soft(), next in soft()) {
        for from in [None, Some(&base)] {
            let bytes = encode_message(Kind::WatchUpdate, &SoftUpdate::between(from, &next)).unwrap();
            let update: SoftUpdate = Frame::parse(&bytes).unwrap().message().unwrap();
            prop_assert_eq!(update.onto(&base), Some(next.clone()));
        }
    }

    #[test]
    fn texts_read_as_they_print(
        names in (name(), name(), name()),
        version in 1..u32::MAX,
        points in 0..=10_000u16,
        trace in trace(),
        roles in prop::sample::subsequence(Role::ALL.to_vec(), 1..=5),
        digest in any::<[u8; 32]>(),
    ) {
        let (model, label, cluster) = names;
        for text in [model.clone(), format!("{model}@{version}"), format!("{model}:{label}")] {
            prop_assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        let weight = Weight::from_basis_points(points).unwrap();
        prop_assert_eq!(weight.to_string().parse::<Weight>().unwrap(), weight);
        prop_assert_eq!(TraceContext::parse(&trace.to_header()), Some(trace));
        let identity = PeerIdentity {
            cluster: cluster.parse().unwrap(),
            roles: roles.into_iter().collect(),
            name: label.parse().unwrap(),
        };
        prop_assert_eq!(PeerIdentity::from_uri(&identity.to_uri()).unwrap(), identity);
        prop_assert_eq!(Digest(digest).to_string().parse::<Digest>().unwrap(), Digest(digest));
    }
}
