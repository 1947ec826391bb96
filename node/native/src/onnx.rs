//! ONNX files in: the format, the versions of operators, and the translation to [`crate::ops::Op`].

pub mod attributes;
pub mod external;
pub mod glance;
pub mod import;
pub mod nodes;
pub mod proto;
pub mod schema;
pub mod windows;
