//! Typed access to a node's attributes.

use super::proto::{AttributeProto, GraphProto, NodeProto, TensorProto};

/// Why a node cannot be translated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The node is malformed.
    Malformed(String),
    /// The engine does not have it.
    Unsupported(String),
}

impl Refusal {
    /// A malformed node.
    pub fn malformed(reason: impl Into<String>) -> Self {
        Self::Malformed(reason.into())
    }

    /// An unsupported node.
    pub fn unsupported(reason: impl Into<String>) -> Self {
        Self::Unsupported(reason.into())
    }
}

/// A node's attributes.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(pub &'a NodeProto);

impl<'a> Attributes<'a> {
    /// An attribute by name.
    pub fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        self.0.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// An integer, or the default.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.get(name).map_or(default, |attribute| attribute.i)
    }

    /// An integer that is a flag.
    pub fn flag(&self, name: &str) -> bool {
        self.int(name, 0) != 0
    }

    /// A number, or the default.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.get(name).map_or(default, |attribute| attribute.f)
    }

    /// A list of integers, empty where absent.
    pub fn ints(&self, name: &str) -> &'a [i64] {
        self.get(name).map_or(&[], |attribute| &attribute.ints)
    }

    /// A list of sizes.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] for negative ones.
    pub fn sizes(&self, name: &str) -> Result<Vec<usize>, Refusal> {
        let size = |value: &i64| {
            usize::try_from(*value).map_err(|_| Refusal::malformed(format!("{name} has {value}")))
        };
        self.ints(name).iter().map(size).collect()
    }

    /// A size, or the default.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] for a negative one.
    pub fn size(&self, name: &str, default: usize) -> Result<usize, Refusal> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => {
                usize::try_from(value.i).map_err(|_| Refusal::malformed(format!("{name} is {}", value.i)))
            }
        }
    }

    /// A text, or the default.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] where it is not UTF-8.
    pub fn text(&self, name: &str, default: &'a str) -> Result<&'a str, Refusal> {
        match self.get(name) {
            None => Ok(default),
            Some(value) => {
                std::str::from_utf8(&value.s).map_err(|_| Refusal::malformed(format!("{name} is not UTF-8")))
            }
        }
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] where one is not UTF-8.
    pub fn texts(&self, name: &str) -> Result<Vec<&'a str>, Refusal> {
        let list = self.get(name).map_or(&[][..], |attribute| &attribute.strings);
        let text = |bytes: &'a bytes::Bytes| std::str::from_utf8(bytes).map_err(|_| Refusal::malformed(name));
        list.iter().map(text).collect()
    }

    /// A list of numbers, empty where absent.
    pub fn floats(&self, name: &str) -> &'a [f32] {
        self.get(name).map_or(&[], |attribute| &attribute.floats)
    }

    /// A tensor.
    pub fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.get(name).and_then(|attribute| attribute.t.as_ref())
    }

    /// A graph.
    ///
    /// # Errors
    /// [`Refusal::Malformed`] where it is missing.
    pub fn graph(&self, name: &str) -> Result<&'a GraphProto, Refusal> {
        let graph = self.get(name).and_then(|attribute| attribute.g.as_ref());
        graph.ok_or_else(|| Refusal::malformed(format!("no graph {name}")))
    }
}
