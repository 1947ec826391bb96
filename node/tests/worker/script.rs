//! An engine whose sessions do what a test says: wait at a gate, fail, panic.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use roost_node::engine::{Bundle, Cancel, Dim, Engine, EngineError, Port, Session, Signature, Sink};
use roost_protocol::bundle::MODEL_FILE;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Tensor, TensorView};
use tokio::sync::watch;

/// A value on which sessions panic.
pub const PANIC: f32 = -1.0;
/// A value on which sessions give their outputs in a part each.
pub const APART: f32 = -3.0;
/// A value on which sessions fail.
pub const FAIL: f32 = -2.0;
/// What `model.onnx` holds.
pub const MODEL: &[u8] = b"doubles";
/// A manifest for it.
pub const MANIFEST: &str = "batch_rows_max = 8\nwarm_up_rows = [1]\n[batch_axes]\nx = 0\ny = 0\nsum = 0\n";

/// Nothing that a test waits for takes half as long, even on busy cores.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What sessions did so far.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Loads, also those that failed.
    pub loads: usize,
    /// The rows of each run, the warm-up's included.
    pub runs: Vec<u64>,
    /// Runs that were cancelled.
    pub cancelled: usize,
}

/// The engine: `y = 2x` and its sum per row, for `x` of `[N, 2] f32`.
#[derive(Clone)]
pub struct Script {
    seen: Arc<watch::Sender<Seen>>,
    gate: Arc<(Mutex<Gate>, Condvar)>,
}

struct Gate {
    is_open: bool,
    loads_to_fail: usize,
}

impl Script {
    /// With an open gate.
    pub fn new() -> Self {
        let gate = Gate { is_open: true, loads_to_fail: 0 };
        Self { seen: Arc::default(), gate: Arc::new((Mutex::new(gate), Condvar::new())) }
    }

    /// Opens the gate, or has further runs wait at it.
    pub fn set_open(&self, is_open: bool) {
        self.gate.0.lock().unwrap().is_open = is_open;
        self.gate.1.notify_all();
    }

    /// Has the next loads fail.
    pub fn fail_loads(&self, loads: usize) {
        self.gate.0.lock().unwrap().loads_to_fail = loads;
    }

    /// What sessions did so far.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until sessions did what is expected.
    pub async fn until(&self, what: impl Fn(&Seen) -> bool) -> Seen {
        let mut seen = self.seen.subscribe();
        let waited = tokio::time::timeout(PATIENCE, seen.wait_for(|seen| what(seen))).await;
        waited.unwrap_or_else(|_| panic!("never happened: {:?}", self.seen())).unwrap().clone()
    }
}

impl Engine for Script {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Native
    }

    fn load(&self, bundle: &Bundle) -> Result<Box<dyn Session>, EngineError> {
        self.seen.send_modify(|seen| seen.loads += 1);
        if bundle.files[MODEL_FILE] != MODEL {
            return Err(EngineError::NotAModel("it does not double".to_owned()));
        }
        let mut gate = self.gate.0.lock().unwrap();
        if gate.loads_to_fail > 0 {
            gate.loads_to_fail -= 1;
            return Err(EngineError::Run("as the test wants it".to_owned()));
        }
        let port = |name: &str, width: Option<u64>| Port {
            name: name.to_owned(),
            dtype: DType::F32,
            dims: [Dim::Free("N".to_owned())].into_iter().chain(width.map(Dim::Fixed)).collect(),
        };
        let signature = Signature {
            inputs: vec![port("x", Some(2))],
            outputs: vec![port("y", Some(2)), port("sum", None)],
        };
        Ok(Box::new(Doubles { script: self.clone(), signature }))
    }
}

struct Doubles {
    script: Script,
    signature: Signature,
}

impl Session for Doubles {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        cancel: &Cancel,
        sink: &mut dyn Sink,
    ) -> Result<(), EngineError> {
        let x = inputs[0].elements::<f32>().unwrap();
        let rows = inputs[0].shape().dims()[0];
        self.script.seen.send_modify(|seen| seen.runs.push(rows));
        self.wait_at_the_gate(cancel)?;
        assert!(!x.contains(&PANIC), "as the request wants it");
        if x.contains(&FAIL) {
            return Err(EngineError::Run("a value is forbidden".to_owned()));
        }
        let y = x.iter().map(|x| 2.0 * x).collect();
        let sum = x.chunks(2).map(|row| 2.0 * (row[0] + row[1])).collect();
        let named = |name: &str, dims: &[u64], elements: Vec<f32>| Named {
            name: name.to_owned(),
            tensor: Tensor::from_elements(dims, elements).unwrap(),
        };
        let (y, sum) = (named("y", &[rows, 2], y), named("sum", &[rows], sum));
        if x.contains(&APART) {
            sink.part(vec![y]);
            sink.part(vec![sum]);
        } else {
            sink.part(vec![y, sum]);
        }
        Ok(())
    }
}

impl Doubles {
    fn wait_at_the_gate(&self, cancel: &Cancel) -> Result<(), EngineError> {
        let gate = self.script.gate.clone();
        let tell = move || {
            // With the lock, so that it does not fall between the check and the wait.
            let _gate = gate.0.lock().unwrap();
            gate.1.notify_all();
        };
        let passed = cancel.while_telling(tell, || {
            let (gate, changed) = &*self.script.gate;
            let waits = |gate: &mut Gate| !gate.is_open && !cancel.is_raised();
            let _gate = changed.wait_while(gate.lock().unwrap(), waits).unwrap();
            !cancel.is_raised()
        });
        if !passed {
            self.script.seen.send_modify(|seen| seen.cancelled += 1);
            return Err(EngineError::Cancelled);
        }
        Ok(())
    }
}
