//! Convolutions against their definition, on every set.

use crate::conv::{Conv, ConvInput, ConvPool, ConvShape, PoolKind, QWeights, Window};
use crate::elementwise::Unary;
use crate::gemm::{Activation, Epilogue, Rows, RowsMut};
use crate::half::{Half, Weights};
use crate::isa::Isa;
use crate::qgemm::{ByteRows, BytesOut, FloatsOut, Output, Sign, SumsOut};
use crate::table::Kernels;
use crate::test::{Guarded, bytes, halved, kernels, noise, same, sized};

fn window(size: usize, kernel: usize, stride: usize, dilation: usize, pad: [usize; 2]) -> Window {
    Window { size, kernel, stride, dilation, before: pad[0], after: pad[1] }
}

fn shape(y: Window, x: Window, channels: usize, filters: usize, groups: usize) -> ConvShape {
    ConvShape { y, x, channels, filters, groups }
}

/// Shapes that take each path: pointwise, spatial with borders, strides, dilation, groups, depthwise, kernels
/// beyond the image.
fn shapes() -> Vec<ConvShape> {
    let same3 = |size| window(size, 3, 1, 1, [1, 1]);
    let mut shapes = vec![
        shape(window(5, 1, 1, 1, [0, 0]), window(6, 1, 1, 1, [0, 0]), 7, 35, 1),
        shape(window(5, 1, 2, 1, [0, 0]), window(6, 1, 2, 1, [0, 0]), 8, 16, 1),
        shape(same3(7), same3(7), 8, 40, 1),
        shape(same3(5), same3(9), 3, 10, 1),
        shape(same3(1), same3(1), 4, 3, 1),
        shape(window(9, 3, 2, 1, [0, 1]), window(11, 3, 2, 1, [1, 0]), 3, 33, 1),
        shape(window(8, 3, 1, 2, [2, 2]), window(9, 2, 1, 3, [1, 2]), 4, 17, 1),
        shape(window(6, 5, 1, 1, [4, 4]), window(4, 5, 3, 1, [2, 3]), 2, 5, 1),
        shape(window(1, 1, 1, 1, [0, 0]), window(13, 7, 2, 1, [3, 3]), 5, 20, 1),
        shape(same3(6), same3(5), 12, 20, 4),
        shape(same3(6), same3(5), 6, 6, 3),
        shape(same3(7), same3(6), 37, 37, 37),
        shape(window(8, 3, 2, 1, [1, 1]), window(8, 5, 1, 2, [4, 4]), 70, 70, 70),
    ];
    if sized(true, false, false) {
        // Small images that go by rows, or by rows of taps, alone.
        shapes.push(shape(same3(7), same3(7), 256, 64, 1));
        shapes.push(shape(same3(4), same3(4), 70, 100, 1));
        shapes.push(shape(same3(8), same3(3), 128, 33, 1));
        shapes.push(shape(window(7, 3, 2, 1, [1, 1]), window(6, 3, 1, 1, [1, 1]), 130, 72, 2));
        shapes.push(shape(window(2, 5, 1, 1, [2, 2]), window(5, 3, 1, 2, [2, 2]), 64, 40, 1));
        shapes.push(shape(window(3, 4, 2, 2, [5, 4]), window(2, 2, 1, 1, [1, 1]), 96, 40, 1));
        shapes.push(shape(same3(13), same3(29), 16, 64, 1));
        shapes.push(shape(window(30, 3, 2, 1, [0, 0]), window(33, 3, 2, 1, [0, 0]), 3, 64, 1));
    }
    shapes
}

/// Whether a shape is tested at all: under Miri only small ones are.
fn is_cheap(shape: &ConvShape) -> bool {
    let products = shape.pixels() * shape.taps() * shape.channels / shape.groups * shape.filters;
    products < sized(usize::MAX, usize::MAX, 5_000)
}

/// Visits the taps of each output that lie within the image: `(row, group's first channel, tap, input
/// pixel)`.
fn visit(shape: &ConvShape, images: usize, mut each: impl FnMut(usize, usize, usize)) {
    let [height, width] = shape.output().expect("a shape");
    for image in 0..images {
        for oy in 0..height {
            for ox in 0..width {
                for ky in 0..shape.y.kernel {
                    for kx in 0..shape.x.kernel {
                        let y = (oy * shape.y.stride + ky * shape.y.dilation).checked_sub(shape.y.before);
                        let x = (ox * shape.x.stride + kx * shape.x.dilation).checked_sub(shape.x.before);
                        if let (Some(y), Some(x)) = (y, x)
                            && y < shape.y.size
                            && x < shape.x.size
                        {
                            let pixel = (image * shape.y.size + y) * shape.x.size + x;
                            each((image * height + oy) * width + ox, ky * shape.x.kernel + kx, pixel);
                        }
                    }
                }
            }
        }
    }
}

/// Outputs in all: images times pixels.
fn rows(shape: &ConvShape, images: usize) -> usize {
    let [height, width] = shape.output().expect("a shape");
    images * height * width
}

fn plain(shape: &ConvShape, images: usize, input: &[f32], weights: &[f32]) -> Vec<f32> {
    let (depth, per_group) = (shape.channels / shape.groups, shape.filters / shape.groups);
    let mut out = vec![0.0f32; rows(shape, images) * shape.filters];
    visit(shape, images, |row, tap, pixel| {
        for filter in 0..shape.filters {
            let sum = &mut out[row * shape.filters + filter];
            for channel in 0..depth {
                let x = input[pixel * shape.channels + filter / per_group * depth + channel];
                *sum = x.mul_add(weights[(filter * depth + channel) * shape.taps() + tap], *sum);
            }
        }
    });
    out
}

fn packed(conv: &Conv, weights: &[f32]) -> Guarded<f32> {
    let mut packed = Guarded::from(&vec![f32::NAN; conv.packed_len()]);
    conv.pack(weights, &mut packed);
    packed
}

#[test]
fn float_convolutions_follow_the_order_rule() {
    // Enough that small regions run along images; and one, whose small regions go by rows or rows of taps.
    let cases = shapes().into_iter().enumerate().filter(|(_, shape)| is_cheap(shape));
    for ((i, shape), images) in cases.flat_map(|case| [(case, sized(9, 4, 2)), (case, 1)]) {
        let pixels = images * shape.pixels();
        let input = Guarded::from(&noise(pixels * shape.channels, 1));
        let weights = noise(shape.filters * (shape.channels / shape.groups) * shape.taps(), 2);
        let bias = Guarded::from(&noise(shape.filters, 3));
        let residual = Guarded::from(&noise(rows(&shape, images) * shape.filters, 4));
        let activation = [Activation::None, Activation::Relu, Activation::Map(Unary::Silu)][i % 3];
        let mut expected = plain(&shape, images, &input, &weights);
        for (i, sum) in expected.iter_mut().enumerate() {
            *sum = *sum + bias[i % shape.filters] + residual[i];
        }
        match activation {
            Activation::None | Activation::Clip { .. } => {}
            Activation::Relu => expected.iter_mut().for_each(|x| *x = if 0.0 > *x { 0.0 } else { *x }),
            Activation::Map(unary) => {
                Kernels::of(Isa::Scalar).expect("scalar").unary(unary).run_in_place(&mut expected)
            }
        }
        // The same image in NCHW.
        let mut planar = vec![0.0; input.len()];
        for (image, from) in input.chunks(shape.pixels() * shape.channels).enumerate() {
            let to = &mut planar[image * from.len()..][..from.len()];
            crate::transpose(from, shape.channels, shape.pixels(), shape.channels, to, shape.pixels());
        }
        // And with gaps between its pixels.
        let apart = shape.channels + 5;
        let mut gaps = vec![f32::NAN; (pixels - 1) * apart + shape.channels];
        for (pixel, from) in input.chunks(shape.channels).enumerate() {
            gaps[pixel * apart..][..shape.channels].copy_from_slice(from);
        }
        let gaps = Guarded::from(&gaps);
        for kernels in kernels() {
            let name = format!("{shape:?} {}", kernels.isa());
            let conv = kernels.conv(shape).expect("a shape");
            let packed = packed(&conv, &weights);
            let epilogue = Epilogue {
                accumulate: false,
                bias: Some(&bias),
                residual: Some(Rows { data: &residual, stride: shape.filters }),
                activation,
            };
            let mut inputs = vec![
                ConvInput::Nhwc { data: &input, pixel: shape.channels },
                ConvInput::Nhwc { data: &gaps, pixel: apart },
            ];
            if !shape.is_depthwise() {
                inputs.push(ConvInput::Nchw { data: &planar });
            }
            for input in inputs {
                let mut scratch = vec![0.0; conv.scratch_len(images, None)];
                let mut out = Guarded::from(&vec![7.0; expected.len()]);
                let target = RowsMut { data: &mut out, stride: shape.filters };
                conv.run(images, input, Weights::F32(&packed), target, &epilogue, &mut scratch);
                same(&out, &expected, &name);

                // Weights in half precision give what they give in f32.
                let (halves, wide) = halved(&packed);
                let target = RowsMut { data: &mut out, stride: shape.filters };
                conv.run(images, input, Weights::F32(&wide), target, &epilogue, &mut scratch);
                let mut scratch = Guarded::from(&vec![f32::NAN; conv.scratch_len(images, Some(Half::BF16))]);
                let mut found = Guarded::from(&vec![7.0; expected.len()]);
                let target = RowsMut { data: &mut found, stride: shape.filters };
                let halves = Guarded::from(&halves);
                let halves = Weights::Half(Half::BF16, &halves);
                conv.run(images, input, halves, target, &epilogue, &mut scratch);
                same(&found, &out, &name);
            }
        }
    }
}

#[test]
fn a_producer_can_write_into_the_buffer_of_a_concatenation() {
    let shape = shapes()[sized(2, 2, 3)];
    let input = noise(shape.pixels() * shape.channels, 1);
    let weights = noise(shape.filters * shape.channels * shape.taps(), 2);
    let expected = plain(&shape, 1, &input, &weights);
    let stride = shape.filters + 9;
    for kernels in kernels() {
        let conv = kernels.conv(shape).expect("a shape");
        let packed = packed(&conv, &weights);
        let mut out = vec![7.0; rows(&shape, 1) * stride];
        let target = RowsMut { data: &mut out, stride };
        let input = ConvInput::Nhwc { data: &input, pixel: shape.channels };
        conv.run(1, input, Weights::F32(&packed), target, &Epilogue::default(), &mut []);
        for (row, expected) in out.chunks(stride).zip(expected.chunks(shape.filters)) {
            same(&row[..shape.filters], expected, &kernels.isa().to_string());
            same(&row[shape.filters..], &[7.0; 9], "the gap");
        }
    }
}

#[test]
fn an_image_is_the_same_alone_and_in_a_batch() {
    let (shape, images) = (shapes()[3], 3);
    let input = noise(images * shape.pixels() * shape.channels, 1);
    let weights = noise(shape.filters * shape.channels * shape.taps(), 2);
    for kernels in kernels() {
        let conv = kernels.conv(shape).expect("a shape");
        let packed = packed(&conv, &weights);
        let run = |images: usize, data: &[f32]| {
            let mut out = vec![0.0; rows(&shape, images) * shape.filters];
            let target = RowsMut { data: &mut out, stride: shape.filters };
            let input = ConvInput::Nhwc { data, pixel: shape.channels };
            conv.run(images, input, Weights::F32(&packed), target, &Epilogue::default(), &mut []);
            out
        };
        let whole = run(images, &input);
        let alone: Vec<f32> =
            input.chunks(shape.pixels() * shape.channels).flat_map(|image| run(1, image)).collect();
        same(&alone, &whole, &kernels.isa().to_string());
    }
}

#[test]
fn integer_convolutions_are_exact() {
    let images = sized(9, 4, 2);
    for shape in shapes().into_iter().filter(is_cheap) {
        let (depth, per_group) = (shape.channels / shape.groups, shape.filters / shape.groups);
        let pixels = images * shape.pixels();
        let weights: Vec<i8> =
            bytes(shape.filters * depth * shape.taps(), 2).iter().map(|x| *x as i8).collect();
        let bias: Vec<i32> = bytes(shape.filters, 3).iter().map(|x| i32::from(*x) * 50 - 6_000).collect();
        let scale: Vec<f32> = noise(shape.filters, 4).iter().map(|x| 1e-3 + x.abs() * 1e-2).collect();
        // Dense, padded to a multiple of four, and padded where the last pixel's padding is missing.
        let padded = shape.channels.next_multiple_of(4);
        for (sign, stride, len) in [
            (Sign::Unsigned, shape.channels, pixels * shape.channels),
            (Sign::Signed, padded, pixels * padded),
            (Sign::Unsigned, padded, (pixels - 1) * padded + shape.channels),
        ] {
            let zero = if sign == Sign::Unsigned { 120 } else { -3 };
            let input = Guarded::from(&bytes(len, 1));
            let mut sums: Vec<i32> = (0..rows(&shape, images)).flat_map(|_| bias.iter().copied()).collect();
            visit(&shape, images, |row, tap, pixel| {
                for filter in 0..shape.filters {
                    let sum = &mut sums[row * shape.filters + filter];
                    for channel in 0..depth {
                        let x = input[pixel * stride + filter / per_group * depth + channel];
                        let x = if sign == Sign::Signed { i32::from(x as i8) } else { i32::from(x) };
                        let w = i32::from(weights[(filter * depth + channel) * shape.taps() + tap]);
                        *sum = sum.wrapping_add((x - zero) * w);
                    }
                }
            });
            for kernels in kernels() {
                let name = format!("{shape:?} {sign:?} {stride} {}", kernels.isa());
                let conv = kernels.qconv(shape, sign).expect("a shape");
                let mut packed = Guarded::from(&vec![0i8; conv.packed_len()]);
                let mut tap_sums = vec![0; conv.sums_len()];
                conv.pack(&weights, &mut packed, &mut tap_sums);
                let mut scratch = Guarded::from(&vec![0i32; conv.scratch_len()]);
                let rows = ByteRows { data: &input, stride };
                let mut run = |out: Output<'_>| {
                    let weights = QWeights { packed: &packed, sums: &tap_sums, bias: Some(&bias) };
                    conv.run(images, rows, zero, weights, out, &mut scratch);
                };
                let mut out = Guarded::from(&vec![0i32; sums.len()]);
                run(Output::Sums(SumsOut { data: &mut out, stride: shape.filters }));
                assert_eq!(*out, *sums, "{name}");

                let mut out = Guarded::from(&vec![0u8; sums.len()]);
                run(Output::Bytes(BytesOut {
                    data: &mut out,
                    stride: shape.filters,
                    scale: &scale,
                    zero: 5,
                    low: -128,
                    high: 127,
                }));
                let expected: Vec<u8> = sums
                    .iter()
                    .enumerate()
                    .map(|(i, sum)| {
                        let value = (*sum as f32 * scale[i % shape.filters]).round_ties_even() as i32;
                        value.saturating_add(5).clamp(-128, 127) as u8
                    })
                    .collect();
                assert_eq!(*out, *expected, "{name}");

                let mut out = Guarded::from(&vec![0.0f32; sums.len()]);
                run(Output::Floats(FloatsOut {
                    data: &mut out,
                    stride: shape.filters,
                    scale: &scale,
                    bias: None,
                    activation: Activation::Map(Unary::Tanh),
                }));
                let mut expected: Vec<f32> =
                    sums.iter().enumerate().map(|(i, sum)| *sum as f32 * scale[i % shape.filters]).collect();
                Kernels::of(Isa::Scalar).expect("scalar").unary(Unary::Tanh).run_in_place(&mut expected);
                same(&out, &expected, &name);
            }
        }
    }
}

#[test]
fn pools_take_their_windows() {
    let windows = [
        [window(7, 3, 2, 1, [1, 1]), window(8, 3, 2, 1, [0, 1])],
        [window(4, 4, 1, 1, [0, 0]), window(5, 5, 1, 1, [0, 0])],
        [window(6, 2, 1, 2, [2, 2]), window(3, 2, 1, 1, [1, 1])],
    ];
    for [y, x] in windows {
        for channels in [1, 3, 16, 37, 64, 130].into_iter().take(sized(6, 6, 2)) {
            let shape = shape(y, x, channels, channels, channels);
            let images = 2;
            let mut values = noise(images * shape.pixels() * channels, 1);
            values[channels] = f32::NAN;
            let input = Guarded::from(&values);
            let raw = Guarded::from(&bytes(values.len(), 2));
            let n = rows(&shape, images) * channels;
            let (mut most, mut sums, mut counts) =
                (vec![f32::NEG_INFINITY; n], vec![0.0f32; n], vec![0u32; n]);
            let (mut unsigned, mut signed) = (vec![0u8; n], vec![-128i8; n]);
            visit(&shape, images, |row, _, pixel| {
                for c in 0..channels {
                    let (out, from) = (row * channels + c, pixel * channels + c);
                    most[out] =
                        if most[out].is_nan() || most[out] > input[from] { most[out] } else { input[from] };
                    sums[out] += input[from];
                    counts[out] += 1;
                    unsigned[out] = unsigned[out].max(raw[from]);
                    signed[out] = signed[out].max(raw[from] as i8);
                }
            });
            let whole = shape.taps() as f32;
            for kernels in kernels() {
                let name = format!("{y:?} {x:?} {channels} {}", kernels.isa());
                let run = |kind: PoolKind| {
                    let pool = kernels.pool(kind, y, x, None).expect("a shape");
                    let mut out = Guarded::from(&vec![7.0; n]);
                    let target = RowsMut { data: &mut out, stride: channels };
                    pool.run(images, channels, Rows { data: &input, stride: channels }, target);
                    out.to_vec()
                };
                same(&run(PoolKind::Max), &most, &name);
                let average: Vec<f32> = sums.iter().zip(&counts).map(|(sum, n)| sum / *n as f32).collect();
                same(&run(PoolKind::Average), &average, &name);
                let average: Vec<f32> = sums.iter().map(|sum| sum / whole).collect();
                same(&run(PoolKind::AverageWithPadding), &average, &name);
                let pool = kernels.pool(PoolKind::Max, y, x, None).expect("a shape");
                let mut out = Guarded::from(&vec![0u8; n]);
                let rows = ByteRows { data: &raw, stride: channels };
                pool.run_bytes(images, channels, rows, Sign::Unsigned, &mut out, channels);
                assert_eq!(*out, *unsigned, "{name}");
                pool.run_bytes(images, channels, rows, Sign::Signed, &mut out, channels);
                assert!(out.iter().zip(&signed).all(|(a, e)| *a as i8 == *e), "{name}");
            }
        }
    }
}

#[test]
fn a_pool_takes_rows_from_a_convolution_as_they_come() {
    for shape in shapes().into_iter().filter(is_cheap) {
        let [height, width] = shape.output().expect("a sound shape");
        // With what is asked for, where partial windows at the end count too.
        let windows = [
            ([window(height, 3, 2, 1, [1, 1]), window(width, 2, 2, 1, [0, 1])], None),
            ([window(height, 2, 3, 1, [0, 2]), window(width, 1, 1, 1, [0, 0])], None),
            ([window(height, 1, 1, 1, [0, 0]), window(width, 3, 1, 1, [2, 2])], None),
            ([window(height, 2, 1, 2, [1, 1]), window(width, 2, 1, 1, [0, 0])], None),
            (
                [window(height, 2, 2, 1, [0, 0]), window(width, 1, 1, 1, [0, 0])],
                Some([height.div_ceil(2), width]),
            ),
        ];
        for (windows, output) in windows {
            for kind in [PoolKind::Max, PoolKind::Average, PoolKind::AverageWithPadding] {
                for block_bytes in [1, 2_000, usize::MAX] {
                    kernels().for_each(|kernels| pooled(kernels, shape, windows, output, kind, block_bytes));
                }
            }
        }
    }
}

/// Compares the two in one with the two, one after the other.
fn pooled(
    kernels: &'static Kernels,
    shape: ConvShape,
    [y, x]: [Window; 2],
    output: Option<[usize; 2]>,
    kind: PoolKind,
    block_bytes: usize,
) {
    let images = 2;
    let count = shape.filters * shape.channels / shape.groups * shape.taps();
    let (weights, bias) = (noise(count, 1), noise(shape.filters, 2));
    let input = Guarded::from(&noise(images * shape.pixels() * shape.channels, 3));
    let conv = kernels.conv(shape).expect("a sound shape");
    let Ok(pool) = kernels.pool(kind, y, x, output) else { return };
    let both = ConvPool::with_block(conv, pool, block_bytes);
    let packed = packed(&conv, &weights);
    let epilogue = Epilogue { bias: Some(&bias), activation: Activation::Relu, ..Epilogue::default() };
    // A gap after each pixel, as in the buffer of a concatenation.
    let (filters, stride) = (shape.filters, shape.filters + 3);
    let pixels = pool.output().iter().product::<usize>();
    let nchw = ConvInput::Nchw { data: &input };
    let nhwc = ConvInput::Nhwc { data: &input, pixel: shape.channels };
    for data in [nhwc, nchw] {
        if shape.is_depthwise() && matches!(data, ConvInput::Nchw { .. }) {
            continue;
        }
        let mut between = vec![0.0; images * conv.output().iter().product::<usize>() * filters];
        let mut scratch = vec![0.0; conv.scratch_len(images, None)];
        let target = RowsMut { data: &mut between, stride: filters };
        conv.run(images, data, Weights::F32(&packed), target, &epilogue, &mut scratch);
        let (mut expected, mut found) = ([7.0].repeat(images * pixels * stride), Guarded::from(&[]));
        pool.run(
            images,
            filters,
            Rows { data: &between, stride: filters },
            RowsMut { data: &mut expected, stride },
        );
        if images * pixels > 0 {
            found = Guarded::from(&[7.0].repeat((images * pixels - 1) * stride + filters));
            expected.truncate(found.len());
        }
        let mut scratch = Guarded::from(&vec![f32::NAN; both.scratch_len(None)]);
        let target = RowsMut { data: &mut found, stride };
        both.run(images, data, Weights::F32(&packed), target, &epilogue, &mut scratch);
        let name = format!("{shape:?} {y:?} {x:?} {kind:?} {}", kernels.isa());
        same(&found, &expected, &name);

        // Weights in half precision give what they give in f32; for the smallest blocks alone, to save time.
        if block_bytes > 1 {
            continue;
        }
        let (halves, wide) = halved(&packed);
        let mut run = |weights: Weights<'_>| {
            let mut scratch = Guarded::from(&vec![f32::NAN; both.scratch_len(weights.half())]);
            let target = RowsMut { data: &mut found, stride };
            both.run(images, data, weights, target, &epilogue, &mut scratch);
            found.to_vec()
        };
        let expected = run(Weights::F32(&wide));
        same(&run(Weights::Half(Half::BF16, &Guarded::from(&halves))), &expected, &name);
    }
}

#[test]
fn packed_weights_can_be_had_back() {
    for shape in shapes() {
        let count = shape.filters * shape.channels / shape.groups * shape.taps();
        let floats = noise(count, 7);
        let bytes: Vec<i8> = (0..count).map(|i| (i * 37 % 251) as i8).collect();
        for kernels in kernels() {
            let name = kernels.isa();
            let conv = kernels.conv(shape).expect("a sound shape");
            let mut found = vec![f32::NAN; count];
            conv.unpack(&packed(&conv, &floats), &mut found);
            assert_eq!(found, floats, "{name} {shape:?}");
            let conv = kernels.qconv(shape, Sign::Unsigned).expect("a sound shape");
            let (mut packed, mut sums) = (vec![0; conv.packed_len()], vec![0; conv.sums_len()]);
            conv.pack(&bytes, &mut packed, &mut sums);
            let mut found = vec![0; count];
            conv.unpack(&packed, &mut found);
            assert_eq!(found, bytes, "{name} {shape:?}");
        }
    }
}
