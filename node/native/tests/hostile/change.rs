//! Changes of a model's structure, drawn from a seed: names, attributes, dimensions, types, operators,
//! versions.

use roost_native::onnx::proto::{
    AttributeProto, DimProto, DimValue, GraphProto, ModelProto, NodeProto, ShapeProto, TensorProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014): a seed of any kind
/// will do.
pub struct Rng(pub u64);

impl Rng {
    /// 64 bits.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is not nought.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True one time in `times`.
    pub fn one_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of these; `None` of none.
    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        if from.is_empty() { None } else { Some(&from[self.below(from.len())]) }
    }

    fn pick_mut<'a, T>(&mut self, from: &'a mut [T]) -> Option<&'a mut T> {
        if from.is_empty() { None } else { Some(&mut from[self.below(from.len())]) }
    }

    /// A number at which arithmetic breaks, or a small one.
    pub fn number(&mut self) -> i64 {
        const EDGES: [i64; 24] = [
            i64::MIN,
            i64::MIN + 1,
            -(1 << 62),
            -(1 << 32),
            i32::MIN as i64 - 1,
            i32::MIN as i64,
            -65_536,
            -2,
            -1,
            0,
            1,
            2,
            255,
            1 << 16,
            1 << 20,
            1 << 24,
            i32::MAX as i64,
            1 << 31,
            1 << 32,
            1 << 40,
            1 << 61,
            1 << 62,
            i64::MAX - 1,
            i64::MAX,
        ];
        if self.one_in(3) { self.below(12) as i64 - 3 } else { EDGES[self.below(EDGES.len())] }
    }

    fn float(&mut self) -> f32 {
        const EDGES: [f32; 12] = [
            0.0,
            -0.0,
            1.0,
            -1.0,
            0.5,
            1e-45,
            1e20,
            -1e20,
            f32::MAX,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ];
        EDGES[self.below(EDGES.len())]
    }
}

/// Element types of ONNX, those that are not supported and one that is none too.
const TYPES: i32 = 24;

/// Attributes that decide sizes.
const ATTRIBUTES: [&str; 32] = [
    "axis",
    "axes",
    "group",
    "kernel_shape",
    "strides",
    "dilations",
    "pads",
    "output_padding",
    "output_shape",
    "hidden_size",
    "blocksize",
    "perm",
    "keepdims",
    "to",
    "ceil_mode",
    "num_groups",
    "split",
    "num_outputs",
    "shape",
    "value",
    "k",
    "size",
    "start",
    "end",
    "block_size",
    "batch_dims",
    "layout",
    "scales",
    "starts",
    "ends",
    "storage_order",
    "dtype",
];

/// Changes a model in one way; says how. Nothing is changed where there is nothing of the kind.
pub fn change(model: &mut ModelProto, operators: &[String], rng: &mut Rng) -> String {
    if rng.one_in(40) {
        let version = if rng.one_in(4) { rng.number() } else { rng.below(27) as i64 };
        model.opset_import.iter_mut().for_each(|set| set.version = version);
        return format!("opset {version}");
    }
    let Some(graph) = &mut model.graph else { return "no graph".into() };
    let mut graph = graph;
    // Into the branch of an `If`, now and then.
    if rng.one_in(3)
        && let Some(at) = graph.node.iter().position(|node| node.attribute.iter().any(|a| a.g.is_some()))
    {
        let branch = graph.node[at].attribute.iter_mut().filter_map(|a| a.g.as_mut());
        let mut branches: Vec<&mut GraphProto> = branch.collect();
        let at = rng.below(branches.len());
        graph = branches.swap_remove(at);
    }
    match rng.below(16) {
        0..=5 => of_attribute(graph, rng),
        6..=7 => of_names(graph, rng),
        8 => of_operator(graph, operators, rng),
        9..=11 => of_tensor(graph, rng),
        12 => of_declaration(graph, rng),
        13 => of_nodes(graph, operators, rng),
        14 => of_place(graph, rng),
        _ => of_outputs(graph, rng),
    }
}

/// Makes an input a constant with this value: what depends on data in a run is then folded or planned.
pub fn pin(graph: &mut GraphProto, name: &str, mut value: TensorProto) {
    graph.input.retain(|info| info.name != name);
    value.name = name.to_owned();
    graph.initializer.push(value);
}

/// Every name that a graph has.
fn names(graph: &GraphProto) -> Vec<String> {
    let made = graph.node.iter().flat_map(|node| &node.output);
    let given = graph.input.iter().map(|info| &info.name);
    given.chain(graph.initializer.iter().map(|tensor| &tensor.name)).chain(made).cloned().collect()
}

fn of_names(graph: &mut GraphProto, rng: &mut Rng) -> String {
    let other = rng.pick(&names(graph)).cloned().unwrap_or_default();
    let Some(node) = rng.pick_mut(&mut graph.node) else { return String::new() };
    let list = if rng.one_in(4) { &mut node.output } else { &mut node.input };
    let (a, b) = (rng.below(list.len().max(1)), rng.below(list.len().max(1)));
    let what = match rng.below(6) {
        0 if !list.is_empty() => format!("drops {:?}", list.remove(a)),
        1 if !list.is_empty() => {
            list.insert(a, list[b].clone());
            format!("has {:?} twice", list[a])
        }
        2 if !list.is_empty() => {
            list.swap(a, b);
            format!("swaps {a} and {b}")
        }
        3 if !list.is_empty() => {
            list[a].clear();
            format!("skips {a}")
        }
        4 if !list.is_empty() => {
            list[a].clone_from(&other);
            format!("{a} is {other:?}")
        }
        _ => {
            list.push(other.clone());
            format!("adds {other:?}")
        }
    };
    format!("{} {:?}: {what}", node.op_type, node.name)
}

fn of_attribute(graph: &mut GraphProto, rng: &mut Rng) -> String {
    let Some(node) = rng.pick_mut(&mut graph.node) else { return String::new() };
    if node.attribute.is_empty() || rng.one_in(4) {
        let name = (*rng.pick(&ATTRIBUTES).unwrap_or(&"axis")).to_owned();
        node.attribute.retain(|a| a.name != name);
        let attribute = match rng.below(3) {
            0 => AttributeProto { name, kind: 2, i: rng.number(), ..AttributeProto::default() },
            _ => {
                let ints = (0..rng.below(5)).map(|_| rng.number()).collect();
                AttributeProto { name, kind: 7, ints, ..AttributeProto::default() }
            }
        };
        let said = format!("{} {:?}: adds {attribute:?}", node.op_type, node.name);
        node.attribute.push(attribute);
        return said;
    }
    let at = rng.below(node.attribute.len());
    if rng.one_in(6) {
        let gone = node.attribute.remove(at);
        return format!("{} {:?}: drops {}", node.op_type, node.name, gone.name);
    }
    let attribute = &mut node.attribute[at];
    if let Some(tensor) = &mut attribute.t {
        return format!("{} {:?}: {}", node.op_type, node.name, tensor_value(tensor, rng));
    }
    if !attribute.s.is_empty() {
        let texts: [&[u8]; 10] = [
            b"",
            b"SAME_UPPER",
            b"SAME_LOWER",
            b"VALID",
            b"NOTSET",
            b"linear",
            b"cubic",
            b"tf_crop_and_resize",
            b"reverse",
            b"bidirectional",
        ];
        attribute.s = bytes::Bytes::from_static(rng.pick(&texts).copied().unwrap_or_default());
    } else if !attribute.ints.is_empty() {
        match rng.below(5) {
            0 => attribute.ints.clear(),
            1 => attribute.ints.push(rng.number()),
            2 => drop(attribute.ints.pop()),
            3 => {
                let number = rng.number();
                attribute.ints.fill(number);
            }
            _ => {
                let i = rng.below(attribute.ints.len());
                attribute.ints[i] = rng.number();
            }
        }
    } else if !attribute.floats.is_empty() {
        let i = rng.below(attribute.floats.len());
        attribute.floats[i] = rng.float();
    } else {
        attribute.i = rng.number();
        attribute.f = rng.float();
    }
    if rng.one_in(20) {
        attribute.kind = rng.below(15) as i32;
    }
    let AttributeProto { name, kind, f, i, s, floats, ints, .. } = attribute;
    format!("{} {:?}: {name} of kind {kind} is {i} {f} {s:?} {ints:?} {floats:?}", node.op_type, node.name)
}

fn of_operator(graph: &mut GraphProto, operators: &[String], rng: &mut Rng) -> String {
    let other = rng.pick(operators).cloned().unwrap_or_default();
    let Some(node) = rng.pick_mut(&mut graph.node) else { return String::new() };
    let old = std::mem::replace(&mut node.op_type, other);
    format!("{old} {:?} is a {}", node.name, node.op_type)
}

/// Changes a constant.
fn of_tensor(graph: &mut GraphProto, rng: &mut Rng) -> String {
    // Rather those that are small: shapes, axes, scales, zero points.
    let is_small = |tensor: &TensorProto| {
        tensor.dims.iter().try_fold(1, |all: i64, dim| all.checked_mul(*dim)) <= Some(16)
    };
    let small: Vec<usize> =
        (0..graph.initializer.len()).filter(|i| is_small(&graph.initializer[*i])).collect();
    let at = match rng.pick(&small) {
        Some(at) if !rng.one_in(4) => *at,
        _ if graph.initializer.is_empty() => return String::new(),
        _ => rng.below(graph.initializer.len()),
    };
    tensor_value(&mut graph.initializer[at], rng)
}

/// Another value, size or type of a tensor; says what.
pub fn tensor_value(tensor: &mut TensorProto, rng: &mut Rng) -> String {
    let name = tensor.name.clone();
    match rng.below(9) {
        0 => {
            let number = rng.number();
            match rng.pick_mut(&mut tensor.dims) {
                Some(dim) => *dim = number,
                None => tensor.dims.push(number),
            }
        }
        1 => tensor.dims.push(rng.number().clamp(-1, 2)),
        2 => drop(tensor.dims.pop()),
        // Another shape of as many elements.
        3 => tensor.dims.reverse(),
        4 => tensor.data_type = rng.below(TYPES as usize) as i32,
        5 => {
            // No elements, and data to match.
            tensor.dims = vec![0];
            tensor.raw_data.clear();
            tensor.int64_data.clear();
            tensor.float_data.clear();
            tensor.int32_data.clear();
        }
        6 => {
            // Twice as many.
            let raw = tensor.raw_data.repeat(2);
            tensor.raw_data = raw.into();
            let ints = tensor.int64_data.repeat(2);
            tensor.int64_data = ints;
            match tensor.dims.first_mut() {
                Some(dim) => *dim = dim.wrapping_mul(2),
                None => tensor.dims.push(2),
            }
        }
        _ => {
            // One element is another number.
            let number = rng.number();
            let float = rng.float();
            let width = match tensor.data_type {
                7 | 11..=13 => 8,
                1 | 6 => 4,
                4 | 5 | 10 | 16 => 2,
                _ => 1,
            };
            if let Some(value) = rng.pick_mut(&mut tensor.int64_data) {
                *value = number;
            } else if let Some(value) = rng.pick_mut(&mut tensor.float_data) {
                *value = float;
            } else if tensor.raw_data.len() >= width {
                let at = rng.below(tensor.raw_data.len() / width) * width;
                let mut raw = tensor.raw_data.to_vec();
                let as_float = float.to_le_bytes();
                let bytes =
                    if tensor.data_type == 1 { &as_float[..] } else { &number.to_le_bytes()[..width] };
                raw[at..at + width].copy_from_slice(bytes);
                tensor.raw_data = raw.into();
                return format!(
                    "{name:?} of type {}: {number} or {float} at {}",
                    tensor.data_type,
                    at / width
                );
            }
            return format!("{name:?} of type {}: {number} or {float}", tensor.data_type);
        }
    }
    format!("{name:?} is of type {} {:?}", tensor.data_type, tensor.dims)
}

/// What an input or output is said to be.
fn of_declaration(graph: &mut GraphProto, rng: &mut Rng) -> String {
    let infos = if rng.one_in(4) { &mut graph.output } else { &mut graph.input };
    let Some(info) = rng.pick_mut(infos) else { return String::new() };
    let tensor = info.r#type.get_or_insert_default().tensor_type.get_or_insert_default();
    match rng.below(6) {
        0 => tensor.elem_type = rng.below(TYPES as usize) as i32,
        1 => tensor.shape = None,
        2 => tensor.shape.get_or_insert_default().dim.push(size(rng)),
        3 => drop(tensor.shape.get_or_insert_default().dim.pop()),
        _ => {
            let new = size(rng);
            if let Some(dim) = rng.pick_mut(&mut tensor.shape.get_or_insert_default().dim) {
                *dim = new;
            }
        }
    }
    format!("declares {info:?}")
}

fn size(rng: &mut Rng) -> DimProto {
    let value = match rng.below(4) {
        0 => DimValue::Param("n".into()),
        _ => DimValue::Value(rng.number()),
    };
    DimProto { value: Some(value) }
}

/// Whole nodes come and go.
fn of_nodes(graph: &mut GraphProto, operators: &[String], rng: &mut Rng) -> String {
    if graph.node.is_empty() {
        return String::new();
    }
    let at = rng.below(graph.node.len());
    match rng.below(3) {
        0 => {
            let gone = graph.node.remove(at);
            // Its reader takes what it took.
            if let (Some(input), Some(output)) = (gone.input.first(), gone.output.first()) {
                for name in graph.node.iter_mut().flat_map(|node| &mut node.input) {
                    if name == output {
                        name.clone_from(input);
                    }
                }
            }
            format!("{} {:?} is gone", gone.op_type, gone.name)
        }
        1 => {
            let other = rng.below(graph.node.len());
            graph.node.swap(at, other);
            format!("nodes {at} and {other} change places")
        }
        _ => {
            // Between a value and the first of its readers.
            let op_type = rng.pick(operators).cloned().unwrap_or_default();
            let all = names(graph);
            let others: Vec<String> = (0..rng.below(3)).filter_map(|_| rng.pick(&all).cloned()).collect();
            let name = format!("between {}", graph.node.len());
            let Some(read) = rng.pick_mut(&mut graph.node[at].input) else { return String::new() };
            let input = std::iter::once(read.clone()).chain(others).collect();
            read.clone_from(&name);
            let node = NodeProto { op_type, input, output: vec![name], ..NodeProto::default() };
            let said = format!("adds {} of {:?}", node.op_type, node.input);
            graph.node.insert(at, node);
            said
        }
    }
}

/// A constant becomes an input, or is gone.
fn of_place(graph: &mut GraphProto, rng: &mut Rng) -> String {
    if graph.initializer.is_empty() {
        return String::new();
    }
    let tensor = graph.initializer.swap_remove(rng.below(graph.initializer.len()));
    let said = format!("{:?} is no constant", tensor.name);
    if rng.one_in(4) {
        return said;
    }
    let dim = |dim: &i64| DimProto { value: Some(DimValue::Value(*dim)) };
    let shape = (!rng.one_in(3)).then(|| ShapeProto { dim: tensor.dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: tensor.data_type, shape });
    graph.input.retain(|info| info.name != tensor.name);
    graph.input.push(ValueInfoProto { name: tensor.name, r#type: Some(TypeProto { tensor_type }) });
    said
}

/// Other values are asked for.
fn of_outputs(graph: &mut GraphProto, rng: &mut Rng) -> String {
    let Some(name) = rng.pick(&names(graph)).cloned() else { return String::new() };
    let said = format!("asks for {name:?}");
    let Some(info) = rng.pick(&graph.output).cloned() else { return String::new() };
    if rng.one_in(2) {
        graph.output.clear();
    }
    graph.output.push(ValueInfoProto { name, ..info });
    said
}
