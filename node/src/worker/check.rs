//! Whether a request fits the version that it asks for, told in the caller's terms.

use roost_protocol::error::reason;
use roost_protocol::{InferError, Shape, Tensor};

use super::plan::Plan;
use crate::engine::{Dim, Port};

/// A request that fits.
#[derive(Debug, Clone, PartialEq)]
pub struct Checked {
    /// The inputs, in the order of the signature.
    pub inputs: Vec<Tensor>,
    /// Its rows; 1 when no input has a row axis.
    pub rows: u32,
    /// The outputs that are wanted.
    pub wanted: Wanted,
}

/// The outputs that a request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// All that the model gives.
    All,
    /// These, by their index in the signature.
    Some(Vec<usize>),
}

impl Wanted {
    /// Whether an output is wanted; `None` is one that the signature does not have.
    pub fn has(&self, output: Option<usize>) -> bool {
        match self {
            Self::All => true,
            Self::Some(wanted) => output.is_some_and(|output| wanted.contains(&output)),
        }
    }
}

/// Checks a request's inputs, in any order, and the outputs that it names.
///
/// # Errors
/// The [`InferError`] that says what was expected and what came.
pub fn check<'a>(
    plan: &Plan,
    tensors: impl IntoIterator<Item = Result<(&'a str, Tensor), InferError>>,
    outputs: impl IntoIterator<Item = &'a str>,
) -> Result<Checked, InferError> {
    let ports = &plan.signature.inputs;
    let mut inputs: Vec<Option<Tensor>> = vec![None; ports.len()];
    for tensor in tensors {
        let (name, tensor) = tensor?;
        let Some(index) = ports.iter().position(|port| port.name == name) else {
            return Err(InferError::UnknownInput {
                model: plan.version.to_string(),
                input: name.to_owned(),
                inputs: names(ports),
            });
        };
        if inputs[index].is_some() {
            return Err(InferError::DuplicateInput { input: name.to_owned() });
        }
        check_type_and_shape(&ports[index], &tensor)?;
        inputs[index] = Some(tensor);
    }
    let missing =
        |port: &Port| InferError::MissingInput { model: plan.version.to_string(), input: port.name.clone() };
    let given = ports.iter().zip(inputs).map(|(port, input)| input.ok_or_else(|| missing(port)));
    let inputs = given.collect::<Result<Vec<_>, _>>()?;
    let rows = count_rows(plan, &inputs)?;
    let wanted = find_outputs(plan, outputs)?;
    Ok(Checked { inputs, rows, wanted })
}

fn check_type_and_shape(port: &Port, tensor: &Tensor) -> Result<(), InferError> {
    if tensor.dtype() != port.dtype {
        return Err(InferError::WrongDType {
            input: port.name.clone(),
            expected: port.dtype.to_string(),
            actual: tensor.dtype().to_string(),
        });
    }
    let shape = tensor.shape();
    let fits = |(dim, size): (&Dim, &u64)| match dim {
        Dim::Fixed(fixed) => fixed == size,
        Dim::Free(_) => true,
    };
    if shape.rank() != port.dims.len() || !port.dims.iter().zip(shape.dims()).all(fits) {
        return Err(wrong_shape(port, shape, ""));
    }
    Ok(())
}

fn wrong_shape(port: &Port, actual: Shape, condition: &str) -> InferError {
    let expected = format!("{}{condition}", port.shape_text());
    InferError::WrongShape { input: port.name.clone(), expected, actual: actual.to_string() }
}

fn count_rows(plan: &Plan, inputs: &[Tensor]) -> Result<u32, InferError> {
    let mut rows = None;
    for ((input, axis), port) in inputs.iter().zip(&plan.input_axes).zip(&plan.signature.inputs) {
        let Some(axis) = *axis else { continue };
        let actual = input.shape().dims()[axis];
        let expected = *rows.get_or_insert(actual);
        if actual != expected {
            return Err(InferError::RowsDiffer { input: port.name.clone(), expected, actual });
        }
        if actual == 0 {
            return Err(wrong_shape(port, input.shape(), " with one row at least"));
        }
    }
    let (rows, max) = (rows.unwrap_or(1), u64::from(plan.request_rows_max));
    if rows > max {
        let what = format!("rows of a request to {}", plan.version);
        return Err(InferError::LimitExceeded { what, max, actual: rows });
    }
    Ok(rows as u32)
}

fn find_outputs<'a>(plan: &Plan, outputs: impl IntoIterator<Item = &'a str>) -> Result<Wanted, InferError> {
    let ports = &plan.signature.outputs;
    let mut wanted = Vec::new();
    for name in outputs {
        let Some(index) = ports.iter().position(|port| port.name == name) else {
            return Err(InferError::UnknownOutput {
                model: plan.version.to_string(),
                output: reason(name),
                outputs: names(ports),
            });
        };
        wanted.push(index);
    }
    Ok(if wanted.is_empty() { Wanted::All } else { Wanted::Some(wanted) })
}

fn names(ports: &[Port]) -> Vec<String> {
    ports.iter().map(|port| port.name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use roost_protocol::DType;

    use super::*;
    use crate::worker::plan::tests::{plan_of, port};

    fn plan() -> Plan {
        let inputs = [port("image", DType::F32, &[-1, 2]), port("scale", DType::F32, &[-1])];
        let outputs = [port("probs", DType::F32, &[-1, 10]), port("label", DType::I64, &[-1])];
        let manifest = "[batch_axes]\nimage = 0\nscale = 0\nprobs = 0\nlabel = 0\n[limits]\nrows_max = 4";
        plan_of(&inputs, &outputs, manifest).unwrap()
    }

    fn f32s(dims: &[u64]) -> Tensor {
        Tensor::from_elements(dims, vec![0f32; dims.iter().product::<u64>() as usize]).unwrap()
    }

    fn check_named(inputs: &[(&str, Tensor)], outputs: &[&str]) -> Result<Checked, InferError> {
        let inputs = inputs.iter().map(|(name, tensor)| Ok((*name, tensor.clone())));
        check(&plan(), inputs, outputs.iter().copied())
    }

    #[test]
    fn a_request_that_fits_is_put_in_order() {
        let checked = check_named(&[("scale", f32s(&[3])), ("image", f32s(&[3, 2]))], &["label"]).unwrap();
        assert_eq!(checked.inputs, [f32s(&[3, 2]), f32s(&[3])]);
        assert_eq!((checked.rows, &checked.wanted), (3, &Wanted::Some(vec![1])));
        assert!(checked.wanted.has(Some(1)) && !checked.wanted.has(Some(0)) && !checked.wanted.has(None));
    }

    #[test]
    fn what_does_not_fit_is_told() {
        let check = |inputs: &[(&str, Tensor)], outputs: &[&str], expected: &str| {
            assert_eq!(check_named(inputs, outputs).unwrap_err().to_string(), expected);
        };
        let (image, scale) = (|| ("image", f32s(&[3, 2])), || ("scale", f32s(&[3])));
        check(
            &[image(), ("x", f32s(&[1]))],
            &[],
            r#"digits@2 has no input "x"; its inputs are ["image", "scale"]"#,
        );
        check(&[image()], &[], r#"digits@2 needs an input "scale""#);
        check(&[image(), image()], &[], r#"the input "image" was given twice"#);
        let bytes = Tensor::from_elements(&[3, 2], vec![0u8; 6]).unwrap();
        check(&[("image", bytes)], &[], r#"input "image" is of f32, u8 came"#);
        check(&[("image", f32s(&[3, 3]))], &[], r#"input "image" has the shape [N, 2], [3, 3] came"#);
        check(&[("image", f32s(&[3]))], &[], r#"input "image" has the shape [N, 2], [3] came"#);
        check(
            &[("image", f32s(&[0, 2])), ("scale", f32s(&[0]))],
            &[],
            r#"input "image" has the shape [N, 2] with one row at least, [0, 2] came"#,
        );
        check(&[image(), ("scale", f32s(&[2]))], &[], r#"input "scale" has 2 rows, another input has 3"#);
        check(
            &[("image", f32s(&[5, 2])), ("scale", f32s(&[5]))],
            &[],
            "rows of a request to digits@2 may be 4 at most, it is 5",
        );
        check(
            &[image(), scale()],
            &["probs", "logits"],
            r#"digits@2 has no output "logits"; its outputs are ["probs", "label"]"#,
        );
    }

    #[test]
    fn without_row_axes_a_request_is_one_row() {
        let plan = plan_of(&[port("x", DType::F32, &[-1, 2])], &[], "").unwrap();
        let checked = check(&plan, [Ok(("x", f32s(&[7, 2])))], []).unwrap();
        assert_eq!((checked.rows, checked.wanted), (1, Wanted::All));
    }
}
