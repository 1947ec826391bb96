//! Pools over windows and over whole images, NCHW, any number of spatial dimensions.

use super::conv::{Conv, Span, Window};
use super::fact::{Facts, Out};
use super::kernel::Lowered;
use super::reduce::{LANES, tree};
use crate::error::OpError;
use crate::tensor::{DType, Elem};

/// What a pool computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// The largest element; with the flag, indices count columns first.
    Max {
        /// `storage_order`.
        column_major: bool,
    },
    /// The mean; with the flag, padding counts.
    Average {
        /// `count_include_pad`.
        include_pad: bool,
    },
    /// The p-norm.
    Lp {
        /// p.
        p: u32,
    },
}

/// The geometry of a pool: one channel, every plane an image.
pub fn geometry(shape: &[usize], window: &Window) -> Result<Conv, OpError> {
    if shape.len() < 3 {
        return Err(OpError::Shape(format!("a pool of {shape:?}")));
    }
    let spans = window.spans(&shape[2..], &window.kernel)?;
    Ok(Conv { batch: shape[0] * shape[1], group: 1, channels_in: 1, channels_out: 1, spans })
}

/// A pool's outputs: values, and for maxima their indices.
pub fn infer(ins: Facts<'_>, window: &Window, pool: Pool) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let mut shape = x.shape.get(..2).unwrap_or_default().to_vec();
    shape.extend(geometry(x.shape, window)?.spans.iter().map(|span| span.output));
    let values = Out::new(x.dtype, shape.clone());
    Ok(match pool {
        Pool::Max { .. } => vec![values, Out::new(DType::I64, shape)],
        Pool::Average { .. } | Pool::Lp { .. } => vec![values],
    })
}

/// The kernel of a pool.
pub fn lower(ins: Facts<'_>, window: &Window, pool: Pool) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let geometry = geometry(x.shape, window)?;
    match (pool, x.dtype) {
        (Pool::Max { column_major }, DType::F32) => Ok(max(geometry, column_major, f32::NEG_INFINITY)),
        (Pool::Max { column_major }, DType::F64) => Ok(max(geometry, column_major, f64::NEG_INFINITY)),
        (Pool::Max { column_major }, DType::U8) => Ok(max(geometry, column_major, u8::MIN)),
        (Pool::Max { column_major }, DType::I8) => Ok(max(geometry, column_major, i8::MIN)),
        (Pool::Average { include_pad }, DType::F32) => {
            let counts = padded_counts(&geometry.spans, include_pad);
            Ok(average(geometry, counts))
        }
        (Pool::Lp { p }, DType::F32) => Ok(lp(geometry, p)),
        _ => Err(OpError::DType { input: 0, dtype: x.dtype }),
    }
}

fn max<T: Elem>(geometry: Conv, column_major: bool, least: T) -> Lowered {
    #[allow(clippy::eq_op, reason = "the test for NaN")]
    let nan = |v: T| v != v;
    Lowered::new("max pool", move |io| {
        let (x, out, indices) = (io.input::<T>(0), io.take::<T>(0), io.take::<i64>(1));
        let (area_in, area_out) = (geometry.input_area(), geometry.output_area());
        let taps = geometry.taps();
        for plane in 0..geometry.batch {
            let x = &x[plane * area_in..(plane + 1) * area_in];
            geometry.positions(|number, list| {
                let (mut best, mut index) = (least, None);
                for (_, at) in list.take(taps) {
                    if index.is_none() || x[at] > best || (nan(x[at]) && !nan(best)) {
                        (best, index) = (x[at], Some(at));
                    }
                }
                let to = plane * area_out + number;
                if let Some(out) = out.get_mut(to) {
                    *out = best;
                }
                if let Some(out) = indices.get_mut(to) {
                    let at = index.unwrap_or(0);
                    let at = if column_major { columns_first(&geometry.spans, at) } else { at };
                    *out = (plane * area_in + at) as i64;
                }
            });
        }
        Ok(())
    })
}

/// A row-major position counted with the last two dimensions exchanged.
fn columns_first(spans: &[Span], at: usize) -> usize {
    let [.., rows, columns] = spans else { return at };
    let area = rows.input * columns.input;
    let (row, column) = (at % area / columns.input, at % columns.input);
    at / area * area + column * rows.input + row
}

/// What each output of an average is divided by, when padding counts; empty when it does not.
pub fn padded_counts(spans: &[Span], include_pad: bool) -> Vec<u32> {
    if !include_pad {
        return Vec::new();
    }
    let total: usize = spans.iter().map(|span| span.output).product();
    (0..total)
        .map(|number| {
            let (mut rest, mut count) = (number, 1);
            for span in spans.iter().rev() {
                let start = rest % span.output * span.stride;
                rest /= span.output;
                // Taps beyond the padding exist only in ceil mode, and do not count.
                let end = (span.input + span.before + span.after).saturating_sub(start);
                count *= end.div_ceil(span.dilation).min(span.kernel);
            }
            count as u32
        })
        .collect()
}

fn average(geometry: Conv, counts: Vec<u32>) -> Lowered {
    Lowered::new("average pool", move |io| {
        let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
        let (area_in, area_out) = (geometry.input_area(), geometry.output_area());
        for plane in 0..geometry.batch {
            let x = &x[plane * area_in..(plane + 1) * area_in];
            geometry.positions(|number, list| {
                let (mut sum, mut inside) = (0.0_f32, 0_u32);
                for (_, at) in list {
                    sum += x[at];
                    inside += 1;
                }
                let count = counts.get(number).copied().unwrap_or(inside);
                out[plane * area_out + number] = sum / count as f32;
            });
        }
        Ok(())
    })
}

fn lp(geometry: Conv, p: u32) -> Lowered {
    Lowered::new("lp pool", move |io| {
        let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
        let (area_in, area_out) = (geometry.input_area(), geometry.output_area());
        for plane in 0..geometry.batch {
            let x = &x[plane * area_in..(plane + 1) * area_in];
            geometry.positions(|number, list| {
                let sum =
                    list.fold(0.0_f64, |sum, (_, at)| sum + libm::pow(f64::from(x[at].abs()), f64::from(p)));
                out[plane * area_out + number] = libm::pow(sum, 1.0 / f64::from(p)) as f32;
            });
        }
        Ok(())
    })
}

/// `GlobalAveragePool` and `GlobalMaxPool`.
pub fn infer_global(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::F32])?;
    let mut shape = vec![1; x.rank()];
    let lead = x.rank().min(2);
    shape[..lead].copy_from_slice(&x.shape[..lead]);
    Ok(vec![Out::new(x.dtype, shape)])
}

/// The kernel of a global pool.
pub fn lower_global(ins: Facts<'_>, max: bool) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let area: usize = x.shape.get(2..).unwrap_or_default().iter().product();
    Ok(Lowered::new("global pool", move |io| {
        let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
        for (i, out) in out.iter_mut().enumerate() {
            let plane = &x[i * area..(i + 1) * area];
            *out = if max {
                plane.iter().fold(f32::NEG_INFINITY, |a, &x| if x > a || x.is_nan() { x } else { a })
            } else {
                sum(plane.iter().copied()) / area as f32
            };
        }
        Ok(())
    }))
}

/// A sum in the fixed order of lanes.
pub fn sum(values: impl Iterator<Item = f32>) -> f32 {
    let mut lanes = [0.0; LANES];
    for (i, value) in values.enumerate() {
        lanes[i % LANES] += value;
    }
    tree(lanes, |a, b| a + b)
}
