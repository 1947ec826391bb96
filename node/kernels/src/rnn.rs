//! Cells of recurrent networks: what follows the products, over one row of hidden units.
//!
//! Products are GEMMs: `X · W` of some steps at once, then `H · R` of each step on top of it (see
//! `accumulate` of [`crate::Gemm::run`]). Gates lie side by side in a row, in the order of ONNX.

use crate::math;
use crate::simd::{Simd, Vector};
use crate::table::Kernels;

/// A cell's kernel.
///
/// # Safety
/// All pointers hold as many values as the cell's doc says; the instruction set is there.
pub(crate) type LstmFn = unsafe fn(&LstmArgs);

/// A row of an LSTM.
#[derive(Clone, Copy)]
pub(crate) struct LstmArgs {
    pub(crate) gates: *const f32,
    pub(crate) peepholes: *const f32,
    pub(crate) cell: *mut f32,
    pub(crate) hidden: *mut f32,
    pub(crate) n: usize,
}

/// r, y, what is added or null, out, n.
///
/// # Safety
/// As [`LstmFn`].
pub(crate) type GateFn = unsafe fn(*const f32, *const f32, *const f32, *mut f32, usize);

/// z, candidate, hidden in and out, n.
///
/// # Safety
/// As [`LstmFn`].
pub(crate) type BlendFn = unsafe fn(*const f32, *const f32, *mut f32, usize);

impl Kernels {
    /// One step of an LSTM with sigmoid and tanh: `gates` are `[i o f c]` before their activations, biases
    /// included, n values each; `cell` is read and replaced; `hidden` is written.
    ///
    /// `i = σ(gi + pi·c)`, `f = σ(gf + pf·c)`, `c' = f·c + i·tanh(gc)`, `o = σ(go + po·c')`, `h =
    /// o·tanh(c')`; the peepholes are `[i o f]`, n values each.
    ///
    /// # Panics
    /// When a length is another.
    pub fn lstm_cell(&self, gates: &[f32], peepholes: Option<&[f32]>, cell: &mut [f32], hidden: &mut [f32]) {
        let n = cell.len();
        assert_eq!(gates.len(), n.checked_mul(4).expect("gates fit the address space"), "four gates");
        assert_eq!(hidden.len(), n, "as many hidden units as cells");
        assert!(peepholes.is_none_or(|p| p.len() == 3 * n), "three peepholes");
        let args = LstmArgs {
            gates: gates.as_ptr(),
            peepholes: peepholes.map_or(std::ptr::null(), <[f32]>::as_ptr),
            cell: cell.as_mut_ptr(),
            hidden: hidden.as_mut_ptr(),
            n,
        };
        // SAFETY: lengths were checked.
        unsafe { (self.lstm_fn())(&args) }
    }

    /// `out = σ(gate) · y + plus`: the reset gate of a GRU.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn gate(&self, gate: &[f32], y: &[f32], plus: Option<&[f32]>, out: &mut [f32]) {
        let n = out.len();
        assert!(gate.len() == n && y.len() == n && plus.is_none_or(|plus| plus.len() == n), "equal lengths");
        let plus = plus.map_or(std::ptr::null(), <[f32]>::as_ptr);
        // SAFETY: lengths were checked.
        unsafe { (self.gate_fn())(gate.as_ptr(), y.as_ptr(), plus, out.as_mut_ptr(), n) }
    }

    /// `h = (1 - σ(update)) · tanh(candidate) + σ(update) · h`: the last step of a GRU.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn gru_blend(&self, update: &[f32], candidate: &[f32], hidden: &mut [f32]) {
        let n = hidden.len();
        assert!(update.len() == n && candidate.len() == n, "equal lengths");
        // SAFETY: lengths were checked.
        unsafe { (self.blend_fn())(update.as_ptr(), candidate.as_ptr(), hidden.as_mut_ptr(), n) }
    }
}

/// A row of an LSTM.
///
/// # Safety
/// As [`LstmFn`].
#[inline(always)]
pub(crate) unsafe fn lstm<S: Simd>(t: &LstmArgs) {
    // SAFETY: vectors within n of each gate, and a part at the end.
    unsafe {
        for at in (0..t.n).step_by(S::V::LANES) {
            let left = t.n - at;
            let gate = t.gates.add(at);
            let peephole = t.peepholes.wrapping_add(at);
            let mut i = S::V::load_first(gate, left);
            let mut o = S::V::load_first(gate.add(t.n), left);
            let mut f = S::V::load_first(gate.add(2 * t.n), left);
            let c = S::V::load_first(gate.add(3 * t.n), left);
            let old = S::V::load_first(t.cell.add(at), left);
            if !t.peepholes.is_null() {
                i = S::V::load_first(peephole, left).fma(old, i);
                f = S::V::load_first(peephole.add(2 * t.n), left).fma(old, f);
            }
            // Sigmoids and tangents are quotients; each product of two takes one division.
            let (c, c_divisor) = math::tanh_quotient(c);
            let kept = old.div(math::sigmoid_divisor(f));
            let new = c.div(c_divisor.mul(math::sigmoid_divisor(i))).add(kept);
            if !t.peepholes.is_null() {
                o = S::V::load_first(peephole.add(t.n), left).fma(new, o);
            }
            new.store_part(t.cell.add(at), left);
            let (c, c_divisor) = math::tanh_quotient(new);
            c.div(c_divisor.mul(math::sigmoid_divisor(o))).store_part(t.hidden.add(at), left);
        }
    }
}

/// `σ(gate) · y + plus`.
///
/// # Safety
/// As [`GateFn`].
#[inline(always)]
pub(crate) unsafe fn gate<S: Simd>(
    gate: *const f32,
    y: *const f32,
    plus: *const f32,
    out: *mut f32,
    n: usize,
) {
    // SAFETY: vectors within n, and a part at the end.
    unsafe {
        for at in (0..n).step_by(S::V::LANES) {
            let left = n - at;
            let mut value =
                math::sigmoid(S::V::load_first(gate.add(at), left)).mul(S::V::load_first(y.add(at), left));
            if !plus.is_null() {
                value = value.add(S::V::load_first(plus.add(at), left));
            }
            value.store_part(out.add(at), left);
        }
    }
}

/// `(1 - z) · tanh(candidate) + z · hidden`.
///
/// # Safety
/// As [`BlendFn`].
#[inline(always)]
pub(crate) unsafe fn blend<S: Simd>(update: *const f32, candidate: *const f32, hidden: *mut f32, n: usize) {
    // SAFETY: vectors within n, and a part at the end.
    unsafe {
        for at in (0..n).step_by(S::V::LANES) {
            let left = n - at;
            let z = math::sigmoid(S::V::load_first(update.add(at), left));
            let new = math::tanh(S::V::load_first(candidate.add(at), left));
            let old = S::V::load_first(hidden.add(at), left);
            S::V::splat(1.0).sub(z).mul(new).add(z.mul(old)).store_part(hidden.add(at), left);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::test::{Guarded, close, kernels, lengths, noise, same};

    fn sigmoid(x: f64) -> f64 {
        1.0 / (1.0 + (-x).exp())
    }

    #[test]
    fn lstm_on_every_set() {
        for n in lengths() {
            // Up to where sigmoids and tangents are 0 and 1.
            let gates = Guarded::from(&noise(4 * n, 1).iter().map(|x| x * 60.0).collect::<Vec<_>>());
            let peepholes = Guarded::from(&noise(3 * n, 2));
            let cell = noise(n, 3);
            for peep in [false, true] {
                let p = |g: usize, i: usize| if peep { f64::from(peepholes[g * n + i]) } else { 0.0 };
                let (mut cells, mut hiddens) = (Vec::new(), Vec::new());
                for i in 0..n {
                    let (g, c) = (|g: usize| f64::from(gates[g * n + i]), f64::from(cell[i]));
                    let new = sigmoid(g(2) + p(2, i) * c) * c + sigmoid(g(0) + p(0, i) * c) * g(3).tanh();
                    hiddens.push(sigmoid(g(1) + p(1, i) * new) * new.tanh());
                    cells.push(new);
                }
                let mut first: Option<[Vec<f32>; 2]> = None;
                for kernels in kernels() {
                    let name = format!("{n} {}", kernels.isa());
                    let mut c = Guarded::from(&cell);
                    let mut h = Guarded::from(&vec![0.0; n]);
                    kernels.lstm_cell(&gates, peep.then_some(&*peepholes), &mut c, &mut h);
                    close(&c, &cells, 1e-6, &name);
                    close(&h, &hiddens, 1e-6, &name);
                    let [expected, expected_h] = first.get_or_insert_with(|| [c.to_vec(), h.to_vec()]);
                    same(&c, expected, &name);
                    same(&h, expected_h, &name);
                }
            }
        }
    }

    #[test]
    fn lstm_at_its_bounds() {
        let cell = |gates: [f32; 4], old: f32| {
            let results = kernels().map(|kernels| {
                let (mut c, mut h) = ([old], [0.0]);
                kernels.lstm_cell(&gates, None, &mut c, &mut h);
                [c[0], h[0]]
            });
            let all: Vec<[f32; 2]> = results.collect();
            all.iter().for_each(|found| same(found, &all[0], &format!("{gates:?} {old}")));
            all[0]
        };
        let inf = f32::INFINITY;
        // i, o, f, c.
        assert_eq!(cell([inf, inf, inf, inf], 2.0), [3.0, 3.0_f32.tanh()]);
        assert_eq!(cell([-inf, inf, inf, inf], 2.0), [2.0, 2.0_f32.tanh()]);
        assert_eq!(cell([-inf, -inf, -inf, -inf], 2.0), [0.0, 0.0]);
        assert_eq!(cell([200.0, 200.0, -200.0, -200.0], 2.0), [-1.0, (-1.0_f32).tanh()]);
        // A small input gate beside a large candidate: its exponential is not lost.
        let [found, _] = cell([-60.0, 0.0, 0.0, 20.0], 0.0);
        assert!((f64::from(found) / sigmoid(-60.0) - 1.0).abs() < 1e-5, "{found}");
        for at in 0..4 {
            let mut gates = [0.5; 4];
            gates[at] = f32::NAN;
            assert!(cell(gates, 1.0)[1].is_nan(), "gate {at}");
        }
        assert!(cell([0.5; 4], f32::NAN).iter().all(|x| x.is_nan()));
    }

    #[test]
    fn gru_on_every_set() {
        for n in lengths() {
            let (a, b, c) = (noise(n, 1), noise(n, 2), noise(n, 3));
            let each = |f: &dyn Fn(f64, f64, f64) -> f64| -> Vec<f64> {
                (0..n).map(|i| f(f64::from(a[i]), f64::from(b[i]), f64::from(c[i]))).collect()
            };
            let gated = each(&|a, b, c| sigmoid(a) * b + c);
            let blended = each(&|a, b, c| (1.0 - sigmoid(a)) * b.tanh() + sigmoid(a) * c);
            let mut first: Option<[Vec<f32>; 2]> = None;
            for kernels in kernels() {
                let name = format!("{n} {}", kernels.isa());
                let mut out = Guarded::from(&vec![0.0; n]);
                kernels.gate(&Guarded::from(&a), &Guarded::from(&b), Some(&Guarded::from(&c)), &mut out);
                let mut h = Guarded::from(&c);
                kernels.gru_blend(&Guarded::from(&a), &Guarded::from(&b), &mut h);
                close(&out, &gated, 1e-6, &name);
                close(&h, &blended, 1e-6, &name);
                let [expected, expected_h] = first.get_or_insert_with(|| [out.to_vec(), h.to_vec()]);
                same(&out, expected, &name);
                same(&h, expected_h, &name);
            }
        }
    }
}
