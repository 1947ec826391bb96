//! A choice of rows: `--rows 0..4` takes the first four of each input.

use std::str::FromStr;

use bytes::Bytes;
use roost_protocol::Tensor;
use roost_protocol::frame::AlignedBuffer;
use roost_protocol::tensor::TensorError;

/// Rows from `start` up to, and without, `end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rows {
    start: u64,
    end: Option<u64>,
}

/// Why rows cannot be chosen.
#[derive(Debug, thiserror::Error)]
pub enum RowsError {
    /// A text that says no rows.
    #[error("rows are A..B, A.. or ..B, counted from 0 and without B, or one number; {0:?} is none of these")]
    Text(String),
    /// There is no such axis.
    #[error("a tensor of shape {shape} has no axis {axis}, which is that of its rows")]
    Axis {
        /// The tensor's shape.
        shape: String,
        /// The axis.
        axis: usize,
    },
    /// There are not that many rows.
    #[error("there are {rows} rows, of which {start}..{end} are not all there")]
    Range {
        /// The first row that was asked for.
        start: u64,
        /// The one behind the last.
        end: u64,
        /// How many rows there are.
        rows: u64,
    },
    /// What was chosen is no tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl FromStr for Rows {
    type Err = RowsError;
    fn from_str(text: &str) -> Result<Self, RowsError> {
        let bad = || RowsError::Text(text.to_owned());
        let number = |text: &str| text.parse::<u64>().map_err(|_| bad());
        let rows = match text.split_once("..") {
            None => {
                let start = number(text)?;
                Self { start, end: Some(start.checked_add(1).ok_or_else(bad)?) }
            }
            Some(("", end)) => Self { start: 0, end: Some(number(end)?) },
            Some((start, "")) => Self { start: number(start)?, end: None },
            Some((start, end)) => Self { start: number(start)?, end: Some(number(end)?) },
        };
        if rows.end.is_some_and(|end| end <= rows.start) { Err(bad()) } else { Ok(rows) }
    }
}

impl Rows {
    /// The number of the first row.
    pub fn start(self) -> u64 {
        self.start
    }

    /// These rows of a tensor, along `axis`.
    ///
    /// # Errors
    /// [`RowsError`] when the tensor has no such axis, or fewer rows.
    pub fn of(self, tensor: &Tensor, axis: usize) -> Result<Tensor, RowsError> {
        let shape = tensor.shape();
        let rows =
            *shape.dims().get(axis).ok_or_else(|| RowsError::Axis { shape: shape.to_string(), axis })?;
        let (start, end) = (self.start, self.end.unwrap_or(rows));
        if start >= end || end > rows {
            return Err(RowsError::Range { start, end, rows });
        }
        let dims = shape.with_dim(axis, end - start);
        // The tensor is there, so neither product overflows.
        let outer: u64 = shape.dims()[..axis].iter().product();
        let inner: u64 = shape.dims()[axis + 1..].iter().product();
        let runs =
            (0..outer).map(|i| ((i * rows + start) * inner) as usize..((i * rows + end) * inner) as usize);
        let Some(width) = tensor.dtype().element_bytes() else {
            let texts: Vec<&str> = tensor.view().strings()?.collect();
            let chosen: Vec<&str> = runs.flat_map(|run| &texts[run]).copied().collect();
            return Ok(Tensor::from_strings(dims.dims(), &chosen)?);
        };
        // Aligned for every element type, as a slice of the old bytes would not be.
        let mut bytes = AlignedBuffer::new();
        for run in runs {
            bytes.extend_from_slice(&tensor.bytes()[run.start * width..run.end * width]);
        }
        Ok(Tensor::new(tensor.dtype(), dims, Bytes::from_owner(bytes))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Rows {
        text.parse().unwrap()
    }

    #[test]
    fn rows_read() {
        assert_eq!(rows("2..5"), Rows { start: 2, end: Some(5) });
        assert_eq!(rows("2.."), Rows { start: 2, end: None });
        assert_eq!(rows("..5"), Rows { start: 0, end: Some(5) });
        assert_eq!(rows("7"), Rows { start: 7, end: Some(8) });
        for bad in ["", "..", "a", "5..2", "5..5", "-1..2", "1...3", "18446744073709551615"] {
            bad.parse::<Rows>().unwrap_err();
        }
    }

    #[test]
    fn rows_are_taken_along_their_axis() {
        let tensor = Tensor::from_elements(&[2, 3, 2], (0..12i64).collect()).unwrap();
        let check = |text: &str, axis, dims: &[u64], expected: &[i64]| {
            let chosen = rows(text).of(&tensor, axis).unwrap();
            assert_eq!(chosen.shape().dims(), dims);
            assert_eq!(chosen.elements::<i64>().unwrap(), expected);
        };
        check("1..2", 0, &[1, 3, 2], &[6, 7, 8, 9, 10, 11]);
        check("0..2", 1, &[2, 2, 2], &[0, 1, 2, 3, 6, 7, 8, 9]);
        check("1", 2, &[2, 3, 1], &[1, 3, 5, 7, 9, 11]);
        let texts = Tensor::from_strings(&[3], &["a", "bc", ""]).unwrap();
        let chosen = rows("1..").of(&texts, 0).unwrap();
        assert_eq!(chosen.view().strings().unwrap().collect::<Vec<_>>(), ["bc", ""]);
    }

    #[test]
    fn missing_rows_say_how_many_there_are() {
        let tensor = Tensor::from_elements(&[3], vec![0f32; 3]).unwrap();
        let error = |text: &str, axis| rows(text).of(&tensor, axis).unwrap_err().to_string();
        assert_eq!(error("2..4", 0), "there are 3 rows, of which 2..4 are not all there");
        assert_eq!(error("3..", 0), "there are 3 rows, of which 3..3 are not all there");
        assert_eq!(error("0", 1), "a tensor of shape [3] has no axis 1, which is that of its rows");
    }
}
