//! The tables of kernels: one for each instruction set, constant, resolved once.
//!
//! `entries!` compiles every generic kernel for one set: an entry is a function with the set's
//! `#[target_feature]`, into which the generic code is inlined. A [`Kernels`] can only be had through
//! [`Kernels::of`], which gives out tables that this machine can run: that is what the safety of calling an
//! entry rests on.

use crate::conv::{DepthwiseFn, PoolFn, QDepthwiseFn, QPoolFn};
use crate::elementwise::{MAPS, MapFn, ZIPS, ZipFn};
use crate::gemm::tile::Tiles;
use crate::half::WidenFn;
use crate::isa::{Features, Isa, IsaError};
use crate::lookup::LookupFn;
use crate::norm::NormFn;
use crate::qgemm::tile::QTiles;
use crate::quantize::{DequantizeFn, QuantizeFn};
use crate::reduce::{REDUCES, ReduceFn};
use crate::rnn::{BlendFn, GateFn, LstmFn};
use crate::softmax::SoftmaxFn;

/// All kernels, compiled for one instruction set.
pub struct Kernels {
    isa: Isa,
    entries: Entries,
}

/// The entry points.
pub(crate) struct Entries {
    pub(crate) tiles: Tiles,
    pub(crate) qtiles: QTiles,
    pub(crate) maps: [MapFn; MAPS],
    pub(crate) zips: [ZipFn; ZIPS],
    pub(crate) reduces: [ReduceFn; REDUCES],
    pub(crate) softmax: SoftmaxFn,
    pub(crate) norm: NormFn,
    pub(crate) quantize: QuantizeFn,
    pub(crate) dequantize: DequantizeFn,
    pub(crate) lstm: LstmFn,
    pub(crate) gate: GateFn,
    pub(crate) blend: BlendFn,
    pub(crate) depthwise: DepthwiseFn,
    pub(crate) qdepthwise: QDepthwiseFn,
    pub(crate) max_pool: PoolFn,
    pub(crate) average_pool: PoolFn,
    pub(crate) max_bytes: QPoolFn,
    pub(crate) lookup: LookupFn,
    pub(crate) widen: WidenFn,
}

impl Kernels {
    /// The kernels of an instruction set.
    ///
    /// # Errors
    /// [`IsaError::Unsupported`] when this machine lacks it.
    pub fn of(isa: Isa) -> Result<&'static Self, IsaError> {
        let available = Isa::available();
        if !available.contains(&isa) {
            return Err(IsaError::Unsupported { asked: isa, available });
        }
        let features = Features::detect();
        Ok(match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Scalar if features.fma => &SCALAR_FMA,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &AVX2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if features.vnni && features.vbmi => &AVX512_VBMI,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if features.vnni => &AVX512_VNNI,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &AVX512,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon if features.dotprod => &NEON_DOT,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &NEON,
            // Sets of other architectures are not available, and so do not come here.
            _ => {
                let _ = features;
                &SCALAR
            }
        })
    }

    /// The kernels of the fastest instruction set of this machine.
    pub fn best() -> &'static Self {
        Self::of(Isa::best()).expect("the best set is available")
    }

    /// Every table that this machine can run, by name: also those that [`Self::of`] passes over for a faster
    /// one of the same set. For tests of equality.
    #[doc(hidden)]
    pub fn all() -> Vec<(&'static str, &'static Self)> {
        let features = Features::detect();
        let mut tables = vec![("scalar", &SCALAR)];
        #[cfg(target_arch = "x86_64")]
        {
            if features.fma {
                tables.push(("scalar with fma", &SCALAR_FMA));
            }
            if features.avx2 {
                tables.push(("avx2", &AVX2));
            }
            if features.avx512 {
                tables.push(("avx512", &AVX512));
            }
            if features.vnni {
                tables.push(("avx512 with vnni", &AVX512_VNNI));
            }
            if features.vnni && features.vbmi {
                tables.push(("avx512 with vnni and vbmi", &AVX512_VBMI));
            }
        }
        #[cfg(target_arch = "aarch64")]
        {
            if features.neon {
                tables.push(("neon", &NEON));
            }
            if features.dotprod {
                tables.push(("neon with dotprod", &NEON_DOT));
            }
        }
        let _ = features;
        tables
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Columns of a panel of packed f32 weights, and bytes of k that lie together in packed 8-bit ones:
    /// weights packed for equal layouts can be shared.
    pub fn layout(&self) -> Layout {
        let Entries { tiles, qtiles, .. } = &self.entries;
        Layout { panel: tiles.panel(), byte_panel: qtiles.panel(), byte_group: qtiles.group }
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kernels({})", self.isa)
    }
}

/// How weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Columns of a panel of f32.
    pub panel: usize,
    /// Columns of a panel of bytes.
    pub byte_panel: usize,
    /// Bytes of k that lie together for a column.
    pub byte_group: usize,
}

/// Lets the kernels' modules reach their entries.
macro_rules! accessors {
    ($($name:ident: $field:ident -> $t:ty;)*) => {
        impl Kernels {
            $(pub(crate) fn $name(&self) -> $t { accessors!(@get self $field $t) })*
        }
    };
    (@get $s:ident $field:ident &'static $t:ty) => { &$s.entries.$field };
    (@get $s:ident $field:ident $t:ty) => { $s.entries.$field };
}

accessors! {
    softmax_fn: softmax -> SoftmaxFn;
    norm_fn: norm -> NormFn;
    quantize_fn: quantize -> QuantizeFn;
    dequantize_fn: dequantize -> DequantizeFn;
    lstm_fn: lstm -> LstmFn;
    gate_fn: gate -> GateFn;
    blend_fn: blend -> BlendFn;
    depthwise_fn: depthwise -> DepthwiseFn;
    qdepthwise_fn: qdepthwise -> QDepthwiseFn;
    max_pool_fn: max_pool -> PoolFn;
    average_pool_fn: average_pool -> PoolFn;
    max_bytes_fn: max_bytes -> QPoolFn;
    lookup_fn: lookup -> LookupFn;
    widen_fn: widen -> WidenFn;
}

impl Kernels {
    pub(crate) fn tiles(&'static self) -> &'static Tiles {
        &self.entries.tiles
    }

    pub(crate) fn qtiles(&self) -> &QTiles {
        &self.entries.qtiles
    }

    pub(crate) fn maps(&self) -> &[MapFn; MAPS] {
        &self.entries.maps
    }

    pub(crate) fn zips(&self) -> &[ZipFn; ZIPS] {
        &self.entries.zips
    }

    pub(crate) fn reduces(&self) -> &[ReduceFn; REDUCES] {
        &self.entries.reduces
    }
}

/// The tiles of one width, of 1 row up to as many as are listed.
macro_rules! rows {
    ($entry:ident, $vectors:literal, [$($rows:literal)*]) => { &[$($entry::<$rows, $vectors>),*] };
}

/// One entry: a function with the set's features that the generic kernel is inlined into.
macro_rules! entry {
    (
        [$($feature:literal)?] $name:ident [$($generics:tt)*] ($($arg:ident: $type:ty),*) $(-> $result:ty)?,
        $kernel:expr
    ) => {
        $(#[target_feature(enable = $feature)])?
        unsafe fn $name<$($generics)*>($($arg: $type),*) $(-> $result)? {
            // SAFETY: the caller keeps the kernel's contract; the features are this function's own.
            unsafe { $kernel($($arg),*) }
        }
    };
}

/// Compiles the integer tiles of a set.
macro_rules! integer_entries {
    (
        $module:ident, $simd:ty, [$($feature:literal)?],
        tiles: [$($w0:literal)*] [$($w1:literal)*] [$($w2:literal)*] [$($w3:literal)*] [$($w4:literal)*]
    ) => {
        mod $module {
            use crate::qgemm::tile::{QTileArgs, QTiles, qtile};
            use crate::simd::{Dot, Simd, Vector};

            type S = $simd;

            pub(super) const QTILES: QTiles = QTiles {
                lanes: <<S as Simd>::V as Vector>::LANES,
                group: <<S as Simd>::D as Dot>::GROUP,
                a_signed: <<S as Simd>::D as Dot>::A_SIGNED,
                by_width: [
                    rows!(qtile_entry, 1, [$($w0)*]),
                    rows!(qtile_entry, 2, [$($w1)*]),
                    rows!(qtile_entry, 4, [$($w2)*]),
                    rows!(qtile_entry, 8, [$($w3)*]),
                    rows!(qtile_entry, 16, [$($w4)*]),
                ],
            };

            entry!([$($feature)?] qtile_entry [const MR: usize, const NV: usize] (t: &QTileArgs), qtile::<S, MR, NV>);
        }
    };
}

/// Compiles all kernels for a set: modules with the entry points.
///
/// The lists are the rows of tiles by width: 1, 2, 4, 8 and 16 vectors. Registers bound rows times vectors.
macro_rules! entries {
    (
        $module:ident, $qmodule:ident, $simd:ty, [$($feature:literal)?],
        tiles: [$($w0:literal)*] [$($w1:literal)*] [$($w2:literal)*] [$($w3:literal)*] [$($w4:literal)*]
    ) => {
        integer_entries! {
            $qmodule, $simd, [$($feature)?],
            tiles: [$($w0)*] [$($w1)*] [$($w2)*] [$($w3)*] [$($w4)*]
        }

        mod $module {
            use crate::conv::{
                DepthwiseArgs, PoolArgs, QDepthwiseArgs, QPoolArgs, average_line, depthwise, max_bytes_line, max_line,
                qdepthwise,
            };
            use crate::elementwise::{Map, MapArgs, Zip, map, zip};
            use crate::gemm::tile::{TileArgs, Tiles, row_tile, tile};
            use crate::half::{Half, widen};
            use crate::norm::{Moments, NormArgs, norm};
            use crate::quantize::{Quantization, dequantize, quantize};
            use crate::reduce::{Fold, reduce};
            use crate::rnn::{LstmArgs, blend, gate, lstm};
            use crate::simd::{REDUCE_LANES, Simd, Vector};
            use crate::softmax::softmax;

            type S = $simd;
            type V = <S as Simd>::V;

            const _: () = assert!(<<S as Simd>::W as Vector>::LANES == REDUCE_LANES, "the lanes of reductions");

            pub(super) const ENTRIES: super::Entries = super::Entries {
                tiles: Tiles {
                    lanes: V::LANES,
                    by_width: [
                        rows!(tile_entry, 1, [$($w0)*]),
                        rows!(tile_entry, 2, [$($w1)*]),
                        rows!(tile_entry, 4, [$($w2)*]),
                        rows!(tile_entry, 8, [$($w3)*]),
                        rows!(tile_entry, 16, [$($w4)*]),
                    ],
                    image_rows: [
                        rows!(row_tile_entry, 1, [$($w0)*]),
                        rows!(row_tile_entry, 2, [$($w1)*]),
                        rows!(row_tile_entry, 4, [$($w2)*]),
                    ],
                },
                qtiles: super::$qmodule::QTILES,
                maps: map_table!(map_entry),
                zips: zip_table!(zip_entry),
                reduces: reduce_table!(reduce_entry),
                softmax: softmax_entry,
                norm: norm_entry,
                quantize: quantize_entry,
                dequantize: dequantize_entry,
                lstm: lstm_entry,
                gate: gate_entry,
                blend: blend_entry,
                depthwise: depthwise_entry,
                qdepthwise: qdepthwise_entry,
                max_pool: max_pool_entry,
                average_pool: average_pool_entry,
                max_bytes: max_bytes_entry,
                lookup: crate::lookup::lookup,
                widen: widen_entry,
            };

            entry!([$($feature)?] tile_entry [const MR: usize, const NV: usize] (t: &TileArgs), tile::<V, MR, NV>);
            entry!(
                [$($feature)?] row_tile_entry [const MR: usize, const NV: usize] (t: &TileArgs),
                row_tile::<V, MR, NV>
            );
            entry!([$($feature)?] map_entry [F: Map] (t: &MapArgs), map::<S, F>);
            entry!(
                [$($feature)?] zip_entry [F: Zip]
                (a: *const f32, b: *const f32, out: *mut f32, n: usize, rows: [bool; 2]),
                zip::<S, F>
            );
            entry!([$($feature)?] reduce_entry [F: Fold] (x: *const f32, n: usize) -> f32, reduce::<S, F>);
            entry!(
                [$($feature)?] softmax_entry []
                (x: *const f32, y: *mut f32, n: usize, logarithm: bool),
                softmax::<S>
            );
            entry!([$($feature)?] norm_entry [] (t: &NormArgs) -> Moments, norm::<S>);
            entry!(
                [$($feature)?] quantize_entry [] (x: *const f32, y: *mut u8, n: usize, with: &Quantization),
                quantize::<S>
            );
            entry!(
                [$($feature)?] dequantize_entry [] (x: *const u8, y: *mut f32, n: usize, with: &Quantization),
                dequantize::<S>
            );
            entry!([$($feature)?] lstm_entry [] (t: &LstmArgs), lstm::<S>);
            entry!(
                [$($feature)?] gate_entry []
                (r: *const f32, y: *const f32, plus: *const f32, out: *mut f32, n: usize),
                gate::<S>
            );
            entry!(
                [$($feature)?] blend_entry []
                (update: *const f32, candidate: *const f32, hidden: *mut f32, n: usize),
                blend::<S>
            );
            entry!([$($feature)?] widen_entry [] (x: *const u16, y: *mut f32, n: usize, format: Half), widen::<V>);
            entry!([$($feature)?] depthwise_entry [] (d: &DepthwiseArgs), depthwise::<V>);
            entry!([$($feature)?] qdepthwise_entry [] (d: &QDepthwiseArgs), qdepthwise::<S>);
            entry!([$($feature)?] max_pool_entry [] (d: &PoolArgs), max_line::<V>);
            entry!([$($feature)?] average_pool_entry [] (d: &PoolArgs), average_line::<V>);
            entry!([$($feature)?] max_bytes_entry [] (d: &QPoolArgs), max_bytes_line::<S>);
        }
    };
}

entries! {
    scalar, scalar_integer, crate::scalar::Scalar, [],
    tiles: [1 2 3 4] [1 2 3 4] [1 2] [1] []
}

static SCALAR: Kernels = Kernels { isa: Isa::Scalar, entries: scalar::ENTRIES };

// Plain Rust once more, with the instruction that `f32::mul_add` stands for: the same bits, without a call
// for each.
#[cfg(target_arch = "x86_64")]
entries! {
    scalar_fma, scalar_fma_integer, crate::scalar::Scalar, ["avx,fma"],
    tiles: [1 2 3 4] [1 2 3 4] [1 2] [1] []
}

#[cfg(target_arch = "x86_64")]
static SCALAR_FMA: Kernels = Kernels { isa: Isa::Scalar, entries: scalar_fma::ENTRIES };

// 16 registers: up to 12 sums, two vectors of B and one of A.
#[cfg(target_arch = "x86_64")]
entries! {
    avx2, avx2_integer, crate::x86::avx2::Avx2, ["avx2,fma,f16c"],
    tiles: [1 2 3 4 5 6] [1 2 3 4 5 6] [1 2 3] [1] []
}

#[cfg(target_arch = "x86_64")]
static AVX2: Kernels = Kernels { isa: Isa::Avx2, entries: avx2::ENTRIES };

// 32 registers: up to 28 sums; B may be read from memory by the product itself.
#[cfg(target_arch = "x86_64")]
entries! {
    avx512, avx512_integer, crate::x86::avx512::Avx512, ["avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"],
    tiles: [1 2 3 4 5 6 7 8 9 10 11 12 13 14] [1 2 3 4 5 6 7 8 9 10 11 12 13 14] [1 2 3 4 5 6 7] [1 2 3] [1]
}

#[cfg(target_arch = "x86_64")]
static AVX512: Kernels = Kernels { isa: Isa::Avx512, entries: avx512::ENTRIES };

// Only the integer tiles differ with VNNI.
#[cfg(target_arch = "x86_64")]
integer_entries! {
    avx512_vnni, crate::x86::avx512::Avx512Vnni, ["avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma"],
    tiles: [1 2 3 4 5 6 7 8 9 10 11 12 13 14] [1 2 3 4 5 6 7 8 9 10 11 12 13 14] [1 2 3 4 5 6 7] [1 2 3] [1]
}

#[cfg(target_arch = "x86_64")]
static AVX512_VNNI: Kernels =
    Kernels { isa: Isa::Avx512, entries: Entries { qtiles: avx512_vnni::QTILES, ..avx512::ENTRIES } };

// Only tables of bytes differ with VBMI.
#[cfg(target_arch = "x86_64")]
static AVX512_VBMI: Kernels = Kernels {
    isa: Isa::Avx512,
    entries: Entries { qtiles: avx512_vnni::QTILES, lookup: crate::x86::vbmi::lookup, ..avx512::ENTRIES },
};

// 32 registers of 4 lanes: up to 24 sums.
#[cfg(target_arch = "aarch64")]
entries! {
    neon, neon_integer, crate::arm::neon::Neon, ["neon"],
    tiles: [1 2 3 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6] [1 2 3] [1]
}

#[cfg(target_arch = "aarch64")]
static NEON: Kernels = Kernels { isa: Isa::Neon, entries: neon::ENTRIES };

// Only the integer tiles differ with dotprod. Their instruction is assembly, so the compiler needs no feature
// for it.
#[cfg(target_arch = "aarch64")]
integer_entries! {
    neon_dot, crate::arm::neon::NeonDot, ["neon"],
    tiles: [1 2 3 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6 7 8 9 10 11 12] [1 2 3 4 5 6] [1 2 3] [1]
}

#[cfg(target_arch = "aarch64")]
static NEON_DOT: Kernels =
    Kernels { isa: Isa::Neon, entries: Entries { qtiles: neon_dot::QTILES, ..neon::ENTRIES } };
