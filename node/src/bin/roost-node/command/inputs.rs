//! What a model is fed: made-up tensors of its declared shapes, or the rows of test data, as many as are
//! asked for.

use anyhow::bail;
use roost_native::graph::ir::{Dim, Port};
use roost_native::tensor::bytes_of;
use roost_native::{DType, Tensor};

/// The size of a free dimension that is not the rows: a short sentence, a small picture.
const FREE_SIZE: usize = 32;

/// The shapes of inputs with so many rows: the first dimension where it is free, and all of the same name.
pub fn shapes(ports: &[Port], rows: usize) -> anyhow::Result<Vec<Vec<usize>>> {
    let first = |port: &Port| match port.dims.as_deref() {
        Some([Dim::Sym(name), ..]) if !name.is_empty() => Some(name.clone()),
        Some(_) | None => None,
    };
    let names: Vec<String> = ports.iter().filter_map(first).collect();
    let size = |(at, dim): (usize, &Dim)| match dim {
        Dim::Const(size) => *size,
        Dim::Sym(name) if at == 0 || names.contains(name) => rows,
        Dim::Sym(_) => FREE_SIZE,
    };
    let shape = |port: &Port| match &port.dims {
        Some(dims) => Ok(dims.iter().enumerate().map(size).collect()),
        None => bail!("input {} declares no rank", port.name),
    };
    ports.iter().map(shape).collect()
}

/// Tensors that repeat: numbers between -1 and 1, and integers that are indices of anything.
pub fn made_up(ports: &[Port], rows: usize) -> anyhow::Result<Vec<Tensor>> {
    let tensor = |(port, shape): (&Port, Vec<usize>)| {
        let Some(bytes) = bytes_of(port.dtype, &shape) else { bail!("{shape:?} is too large") };
        let count = bytes / port.dtype.bytes();
        let mut state = 0x9e37_79b9_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let bytes: Vec<u8> = match port.dtype {
            DType::F32 => (0..count).flat_map(|_| next().to_le_bytes()).collect(),
            DType::F64 => (0..count).flat_map(|_| f64::from(next()).to_le_bytes()).collect(),
            DType::F16 => (0..count).flat_map(|_| half::f16::from_f32(next()).to_le_bytes()).collect(),
            DType::BF16 => (0..count).flat_map(|_| half::bf16::from_f32(next()).to_le_bytes()).collect(),
            // Noughts and ones: there is hardly a table or an axis without a second entry.
            dtype => {
                let width = dtype.bytes();
                (0..bytes).map(|at| u8::from(at % width == 0 && (at / width) % 2 == 1)).collect()
            }
        };
        Ok(Tensor::of_dtype(port.dtype, &shape, &bytes))
    };
    ports.iter().zip(shapes(ports, rows)?).map(tensor).collect()
}

/// Whether the first dimension is free.
pub fn has_rows(port: &Port) -> bool {
    matches!(port.dims.as_deref(), None | Some([Dim::Sym(_), ..]))
}

/// Test data with so many rows: row `r` is the data's row `r` modulo as many as it has. What has no free
/// first dimension stays as it is.
pub fn with_rows(
    (ports, inputs): (&[Port], &mut [Tensor]),
    (out_ports, expected): (&[Port], &mut [Tensor]),
    rows: usize,
) -> anyhow::Result<()> {
    let first = inputs.iter().zip(ports).find(|(_, port)| has_rows(port));
    let Some(had) = first.and_then(|(tensor, _)| tensor.shape().first().copied()).filter(|had| *had > 0)
    else {
        bail!("--batch: no input of this model has a free first dimension");
    };
    let all = inputs.iter_mut().zip(ports).chain(expected.iter_mut().zip(out_ports));
    for (tensor, port) in all {
        if has_rows(port) && tensor.shape().first() == Some(&had) {
            *tensor = repeated(tensor, rows);
        }
    }
    Ok(())
}

fn repeated(tensor: &Tensor, rows: usize) -> Tensor {
    let had = tensor.shape()[0];
    let row_bytes = tensor.bytes().len() / had;
    let row = |row: usize| &tensor.bytes()[row % had * row_bytes..(row % had + 1) * row_bytes];
    let bytes: Vec<u8> = (0..rows).flat_map(row).copied().collect();
    let mut shape = tensor.shape().to_vec();
    shape[0] = rows;
    Tensor::of_dtype(tensor.dtype(), &shape, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(dtype: DType, dims: &[&str]) -> Port {
        let dim = |text: &&str| text.parse().map_or_else(|_| Dim::Sym((*text).to_owned()), Dim::Const);
        Port { name: "x".to_owned(), dtype, dims: Some(dims.iter().map(dim).collect()) }
    }

    #[test]
    fn rows_go_where_the_first_dimension_is_free() {
        let ports =
            [port(DType::F32, &["N", "3", "W"]), port(DType::I64, &["2", "N"]), port(DType::I64, &[])];
        assert_eq!(shapes(&ports, 5).unwrap(), [vec![5, 3, FREE_SIZE], vec![2, 5], vec![]]);
        let made = made_up(&ports, 2).unwrap();
        assert!(made[0].floats().iter().all(|value| (-1.0..1.0).contains(value)));
        assert_eq!(*made[1].values::<i64>(), [0, 1, 0, 1]);
        assert!(shapes(&[Port { dims: None, ..ports[0].clone() }], 1).is_err());
    }

    #[test]
    fn test_data_is_repeated_or_cut() {
        let ports = [port(DType::I32, &["N", "2"]), port(DType::I32, &["2"])];
        for (rows, expected) in [(1, vec![1, 2]), (3, vec![1, 2, 3, 4, 1, 2])] {
            let mut inputs = [Tensor::of(&[2, 2], &[1_i32, 2, 3, 4]), Tensor::of(&[2], &[7_i32, 8])];
            let mut outputs = [Tensor::of(&[2, 2], &[1_i32, 2, 3, 4])];
            with_rows((&ports, &mut inputs), (&ports[..1], &mut outputs), rows).unwrap();
            assert_eq!(*inputs[0].values::<i32>(), expected);
            assert_eq!(*outputs[0].values::<i32>(), expected);
            assert_eq!(*inputs[1].values::<i32>(), [7, 8]);
        }
        assert!(with_rows((&ports[1..], &mut [Tensor::of(&[2], &[1_i32, 2])]), (&[], &mut []), 3).is_err());
    }
}
