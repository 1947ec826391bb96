//! The messages: hot ones in [`infer`], cold ones in [`control`].

pub mod control;
pub mod infer;
