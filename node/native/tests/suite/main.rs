//! The engine from outside: ONNX's own tests, real models, equal bits everywhere, and files that mean harm.

mod bits;
mod conformance;
mod empty;
mod halves;
mod hostile;
mod integers;
mod limits;
mod models;
mod networks;
mod places;
mod quantised;
mod steps;
mod unfit;
